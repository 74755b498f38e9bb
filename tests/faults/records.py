"""JSON lines with a medium each, and the real loader over them: what faults in the data are injected into."""

import json

import numpy as np
from samples import BUDGET, rows, tiny_model

from omni_jax.config import LoaderConfig
from omni_jax.data.loader import Loader
from omni_jax.data.making import Making
from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.image.files import png_bytes

MODEL = tiny_model()
HOSTS = MODEL.hosts()
TWO = rows(BUDGET, 2)


def image(seed=0):
  return png_bytes(np.random.default_rng(seed).random((8, 8, 1)))


def sound(seed=0, samples=1200):
  return wav_bytes(np.random.default_rng(seed).uniform(-1, 1, samples), 8000)


def lines(folder, media, name='train.jsonl'):
  """A file of examples about media: {file name: bytes}."""
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / name).open('w') as file:
    for medium, data in media.items():
      (folder / medium).write_bytes(data)
      kind = (
        'audio'
        if medium.rpartition('.')[2] in ('wav', 'flac', 'ogg', 'mp3')
        else 'image'
      )
      file.write(
        json.dumps(
          {
            'id': medium,
            'content': [{'type': 'text', 'text': 'a'}, {'type': kind, 'path': medium}],
          }
        )
        + '\n'
      )
  return folder / name


def loader(examples, budget=TWO, **config):
  making = Making(examples, HOSTS, 0)
  return Loader(making, budget, LoaderConfig(**config), prefetch=0)


def refusal(path):
  """{id: reason} of the examples of a file that cannot be used."""
  from omni_jax.errors import BadRecord

  found, examples = {}, JsonLines(path, HOSTS)
  for k in range(len(examples)):
    try:
      examples[k]
    except BadRecord as error:
      found[error.id] = error.reason
  return found
