"""Synthetic examples that fill the rows of a run, to time programs without a data set."""

from collections.abc import Sequence
import itertools
import operator
from typing import Any, SupportsIndex

import numpy as np

from omni_jax.data.example_maker import ExampleMaker
from omni_jax.data.loader import Loader
from omni_jax.modalities.hosts import Hosts, TEXT
from omni_jax.sequence.example import Example, Part, text_part
from omni_jax.train.plan import Plan
from omni_jax.types import Batch

LETTERS = np.frombuffer(b'etaoinshrdlu ', np.uint8)
SECONDS = 5.0  # length of a sound


def _image(config: Any, rng: np.random.Generator) -> np.ndarray:
  return rng.integers(0, 256, (config.height, config.width, config.channels), np.uint8)


def _sound(config: Any, rng: np.random.Generator) -> np.ndarray:
  samples = round(config.rate * min(config.seconds, SECONDS))
  return rng.normal(0, 3000, samples).astype(np.int16)


# medium -> function of its config and a generator that returns a payload.
PAYLOADS = {'image': _image, 'audio': _sound}


class SyntheticExamples(Sequence):
  """Random texts, images and sounds, in every direction that the run has.

  The examples go through all pairs of a medium that is read and one that is written. A
  pair of texts is one document.
  """

  path = 'synthetic examples'

  def __init__(self, hosts: Hosts, *, document: int, count: int = 4096):
    """Sets the sizes.

    Args:
      document: bytes of a document.
      count: number of different examples.
    """
    self._hosts = hosts
    self._document = document
    self._count = count
    media = [name for name in hosts if name == TEXT or name in PAYLOADS]
    self._pairs = list(itertools.product(media, media))

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: SupportsIndex) -> Example:  # type: ignore[override]  # no slices
    number = operator.index(index)
    rng = np.random.default_rng(number)
    read, written = self._pairs[number % len(self._pairs)]
    if read == written == TEXT:
      return {'id': str(number), 'content': [_text(rng, self._document)]}
    messages = [
      {'role': 'user', 'content': [self._part(rng, read)]},
      {'role': 'assistant', 'content': [self._part(rng, written)]},
    ]
    return {'id': str(number), 'messages': messages}

  def _part(self, rng: np.random.Generator, kind: str) -> Part:
    if kind == TEXT:
      return _text(rng, 40)
    host = self._hosts[kind]
    return {'type': kind, host.key: PAYLOADS[kind](host.config, rng)}


def _text(rng: np.random.Generator, size: int) -> Part:
  return text_part(rng.choice(LETTERS, size).tobytes().decode())


def synthetic_batch(plan: Plan, *, documents: int = 4) -> Batch:
  """Returns a packed batch of synthetic examples, as the run's loader would pack them.

  Args:
    documents: number of texts in a row of text alone.
  """
  document = plan.budget.length // documents - 8  # with its special tokens
  examples = SyntheticExamples(plan.hosts, document=document)
  loader = Loader(ExampleMaker(examples, plan.hosts, 0), plan.budget)
  batch = next(loader)
  loader.close()
  return batch
