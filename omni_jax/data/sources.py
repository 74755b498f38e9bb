"""The table of data sources: what `config.data.source` can name, and the examples or clips that it gives."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from omni_jax.data.digits import DigitExamples, load_digits
from omni_jax.data.interleave import Example
from omni_jax.data.jsonl import JsonLines
from omni_jax.data.media import BadRecord
from omni_jax.data.records import ArrayRecordExamples
from omni_jax.errors import UserError
from omni_jax.types import MediaConfig


def _digits(config: Any, media: MediaConfig) -> Sequence[Example]:
  return DigitExamples(load_digits(config), dict(config.recipes), samples=media.audio.samples, seed=config.seed,
                       spoken_takes=config.spoken_takes)


def _files(config: Any, name: str) -> list[str]:
  if not config.root:
    raise UserError(f'config.data.source={config.source!r} reads files: give their folder, --config.data.root=DIR')
  return [f'{config.root}/{part}' for part in config[name].split(',')]


def _jsonl(config: Any, media: MediaConfig) -> Sequence[Example]:
  file, = _files(config, 'train_file')
  return JsonLines(file, media)


def _array_record(config: Any, media: MediaConfig) -> Sequence[Example]:
  return ArrayRecordExamples(_files(config, 'train_file'), media)


SOURCES = {'digits': _digits, 'jsonl': _jsonl, 'array_record': _array_record}


def training_examples(config: Any, media: MediaConfig) -> Sequence[Example]:
  """Random access to the training examples that `config.data` names."""
  if config.source not in SOURCES:
    raise UserError(f'config.data.source={config.source!r} is unknown; it is one of {sorted(SOURCES)}')
  return SOURCES[config.source](config, media)


def training_clips(config: Any, media: MediaConfig, limit: int = 20_000) -> list[np.ndarray]:
  """Waves for the codec stage: the digits' own clips, or every sound of the first `limit` examples, once each."""
  if config.source == 'digits':
    return [clip.wave for clip in load_digits(config).train_clips]
  examples, waves = training_examples(config, media), {}
  for i in range(min(limit, len(examples))):
    try:
      example = examples[i]
    except BadRecord:
      continue  # the loader of the omni stage counts them
    for message in example.get('messages', [example]):
      waves |= {hash(part['wave'].tobytes()): part['wave'] for part in message['content'] if part['type'] == 'audio'}
  if not waves:
    raise UserError(f'no sound in {config.root}: the codec stage needs some, or leave it out of config.stages')
  return list(waves.values())
