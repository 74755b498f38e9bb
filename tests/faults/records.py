"""Writes and loads JSON lines with one medium each, for tests of faults in the data."""

import json

import numpy as np
from samples import BUDGET, tiny_model, with_rows

from omni_jax.config import LoaderConfig
from omni_jax.data.example_maker import ExampleMaker
from omni_jax.data.loader import Loader
from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.errors import BadRecord
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.image.files import png_bytes

MODEL = tiny_model()
HOSTS = MODEL.hosts()
TWO_ROWS = with_rows(BUDGET, 2)
SOUND_FILES = ('.wav', '.flac', '.ogg', '.mp3')


def image(seed=0):
  """Returns a random image of 8 x 8 pixels as a PNG file."""
  return png_bytes(np.random.default_rng(seed).random((8, 8, 1)))


def sound(seed=0, samples=1200):
  """Returns a random sound as a WAV file."""
  return wav_bytes(np.random.default_rng(seed).uniform(-1, 1, samples), 8000)


def write_lines(folder, media, name='train.jsonl'):
  """Writes media, {file name: bytes}, and a file with one example of each medium.

  It returns the path of the file with the examples.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / name).open('w') as file:
    for medium, data in media.items():
      (folder / medium).write_bytes(data)
      kind = 'audio' if medium.endswith(SOUND_FILES) else 'image'
      content = [{'type': 'text', 'text': 'a'}, {'type': kind, 'path': medium}]
      file.write(json.dumps({'id': medium, 'content': content}) + '\n')
  return folder / name


def loader(examples, budget=TWO_ROWS, **config):
  """Returns a loader over examples."""
  maker = ExampleMaker(examples, HOSTS, 0)
  return Loader(maker, budget, LoaderConfig(**config), prefetch=0)


def bad_records(examples):
  """Returns the errors of the examples that cannot be used, by their index."""
  errors = {}
  for k in range(len(examples)):
    try:
      examples[k]
    except BadRecord as error:
      errors[k] = error
  return errors


def refusals(path):
  """Returns the reasons why examples of a file cannot be used, by their ids."""
  errors = bad_records(JsonLines(path, HOSTS))
  return {error.id: error.reason for error in errors.values()}
