"""What a run is evaluated on: the part of its data that `config.data` holds out."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from etils import epath

from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.data.sources.mixture import Drawing, Mixture
from omni_jax.data.sources.ready.sets import open_ready, READY
from omni_jax.data.sources.table import array_records
from omni_jax.data.sources.text_file import TextFile
from omni_jax.data.sources.tfds import open_tfds
from omni_jax.errors import UserError
from omni_jax.sequence.example import Example
from omni_jax.types import MediaConfig


class _Part(NamedTuple):
  """How a source is opened, and the key of its config without which it holds out nothing."""

  key: str
  open: Callable[[Any, MediaConfig], Sequence[Example]]


def _jsonl(config: Any, media: MediaConfig) -> Sequence[Example]:
  return JsonLines(epath.Path(config.get('root', '')) / config.eval_file, media)


def _text(config: Any, media: MediaConfig) -> Sequence[Example]:
  return TextFile(
    epath.Path(config.root) / config.train_file, length=config.piece, train=False
  )


HELD_OUT = {
  'jsonl': _Part('eval_file', _jsonl),
  'array_record': _Part(
    'eval_file', lambda config, media: array_records(config, media, 'eval_file')
  ),
  'text': _Part('train_file', _text),
  'tfds': _Part(
    'eval_split', lambda config, media: open_tfds(config, media, config.eval_split)
  ),
  **dict.fromkeys(
    READY,
    _Part(
      'eval_split', lambda config, media: open_ready(config, media, config.eval_split)
    ),
  ),
}


def held_out(config: Any, media: MediaConfig) -> Sequence[Example]:
  """Of a mixture: the file that it names, else what its sources hold out, of those that hold out something.

  Raises:
    UserError: if nothing is held out.
  """
  if config.source == 'mixture' and not config.get('eval_file'):
    parts = {
      name: held_out(part, media)
      for name, part in sorted(config.sources.items())
      if _holds_out(part)
    }
    if parts:
      return Mixture(parts, dict.fromkeys(parts, Drawing()))
  elif config.source == 'mixture':
    return _jsonl(config, media)
  elif _holds_out(config):
    return HELD_OUT[config.source].open(config, media)
  raise UserError(
    f'config.data.source={config.source!r} holds out nothing to evaluate on: give '
    'config.data.eval_split or eval_file (a mixture: one of its sources), or evaluate with '
    '--data=FILE.jsonl'
  )


def _holds_out(config: Any) -> bool:
  return config.source in HELD_OUT and bool(config.get(HELD_OUT[config.source].key))
