"""Small media, and functions that convert them and read the result."""

import json

import numpy as np

from omni_jax.convert import __main__ as command
from omni_jax.data.sources.records import ArrayRecordExamples
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.hosts import Hosts
from omni_jax.modalities.image.files import png_bytes
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig

SIZES = {
  'image': ImageConfig(height=4, width=4, channels=1),
  'audio': AudioConfig(seconds=8.0),
}
HOSTS = Hosts(SIZES, Tokenizer(TokenizerConfig()))


def image(seed=0):
  """Returns a random image as a PNG file."""
  rng = np.random.default_rng(seed)
  return png_bytes(rng.random((4, 4, 1)))


def sound(seed=0, samples=500):
  """Returns a random sound as a WAV file."""
  rng = np.random.default_rng(seed)
  return wav_bytes(rng.uniform(-1, 1, samples), 8000)


def convert(reader, output, **options):
  """Converts what a reader reads into three shards, and returns the manifest."""
  defaults = dict(
    shards=3, workers=1, input_name='it', timeout=60, log=lambda line: None
  )
  return command.convert(reader, output, **(defaults | options))


def examples_in(folder) -> dict:
  """Returns the converted examples of a folder, by id."""
  records = ArrayRecordExamples(sorted(folder.glob('*.array_record')), HOSTS)
  return {example['id']: example for example in records}


def refused_in(folder) -> dict[str, str]:
  """Returns the reasons for refusing examples, by id."""
  reasons = {}
  for line in (folder / 'refused.jsonl').read_text().splitlines():
    refused = json.loads(line)
    reasons[refused['id']] = refused['reason']
  return reasons
