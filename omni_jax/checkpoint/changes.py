"""Compares the config of a checkpoint with the one that training continues with.

Changes that are allowed are logged; the others are refused.
"""

from collections.abc import Mapping
import fnmatch
import json
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from omni_jax.config import flat, NETWORKS
from omni_jax.errors import UserError

# Names of values that may change: they say how the network is computed, not what it
# computes, or where the data are stored (a fingerprint tells whether the data changed).
FREE = (
  'model.decoder.remat',
  'model.decoder.unroll',
  'model.decoder.block',
  'model.decoder.exchange',
  'model.decoder.capacity',
  'data.root',
  'data.*_file',
)
DATA_OF_AUTOENCODER = (
  'seed',
  'data.source',
  'data.seed',
  'data.voices',
  'data.takes',
  'data.rate',
  'data.seconds',
)


class _Patterns(NamedTuple):
  """Patterns of config names, by what a change means to a stage.

  The first field with a pattern that matches decides; names that match none may change.
  """

  free: tuple[str, ...]
  network: tuple[str, ...]
  data: tuple[str, ...]


def _patterns(stage: str, medium: str | None) -> _Patterns:
  """Returns the patterns of the omni stage, or of the autoencoder stage of `medium`."""
  if medium is None:
    network: tuple[str, ...] = ('model.*', f'{stage}.optim.kind', f'{stage}.freeze')
    return _Patterns(FREE, network, ('seed', 'data.*'))
  # The stage of an autoencoder has neither the medium's embedding nor its head.
  unused = [f'model.{medium}.{part}.*' for part in NETWORKS]
  network = (
    'model.dtype',
    f'model.{medium}.*',
    f'model.{stage}.*',
    f'{stage}.optim.kind',
  )
  data = (*DATA_OF_AUTOENCODER, f'{stage}.batch', f'{stage}.pieces')
  return _Patterns((*FREE, *unused), network, data)


class Changes(NamedTuple):
  """Lines of the form 'NAME was VALUE and is now VALUE', by what the change means."""

  network: list[str]
  data: list[str]
  free: list[str]


def plain(config: ConfigDict) -> dict[str, Any]:
  """Returns a config as it is read back from JSON."""
  return json.loads(json.dumps(config.to_dict(), default=list))


def compare(
  stage: str,
  saved: Mapping[str, Any],
  current: Mapping[str, Any],
  medium: str | None = None,
) -> Changes:
  """Returns the differences between two configs that concern a stage.

  Args:
    stage: name of the stage.
    saved: config of the checkpoint.
    current: config to continue with.
    medium: medium whose autoencoder the stage trains; None for the omni stage.
  """
  before = flat(saved)
  after = flat(current)
  changes = Changes([], [], [])
  patterns = _patterns(stage, medium)
  for name in sorted(before.keys() | after.keys()):
    if before.get(name) == after.get(name):
      continue
    old = before.get(name, 'absent')
    new = after.get(name, 'absent')
    lines = _lines_for(name, patterns, changes)
    lines.append(f'{name} was {old!r} and is now {new!r}')
  return changes


def _lines_for(name: str, patterns: _Patterns, changes: Changes) -> list[str]:
  """Returns the list of `changes` that a change of this name belongs to."""
  if _matches(name, patterns.free):
    return changes.free
  if _matches(name, patterns.network):
    return changes.network
  if _matches(name, patterns.data):
    return changes.data
  return changes.free


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def check(
  workdir: str, stage: str, step: int, changes: Changes, *, strict: bool
) -> list[str]:
  """Returns lines for the log about the values that changed.

  Raises:
    UserError: for another network, and for other data if `strict`.
  """
  refused = list(changes.network)
  hint = ''
  if strict and changes.data:
    refused += changes.data
    hint = '; --config.loader.strict=False allows other data'
  if refused:
    raise UserError(
      f'{workdir}: cannot continue from step {step} of stage {stage}, which was saved '
      f'with other values: {"; ".join(refused)}. Use the values it was saved with, or '
      f'another --workdir{hint}'
    )
  allowed = changes.free + changes.data
  if not allowed:
    return []
  differences = '; '.join(allowed)
  return [f'{stage}: continues after step {step} with a changed config: {differences}']
