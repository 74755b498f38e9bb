"""Going on with a changed config: what may differ from that of the checkpoint is logged, what may not is refused."""

from collections.abc import Mapping
import fnmatch
import json
from typing import Any, NamedTuple

from omni_jax.config import NETWORKS
from omni_jax.errors import UserError

# Patterns of names; the first list of a stage that fits decides, and what fits none may change.
FREE = (
  'model.decoder.remat',
  'model.decoder.unroll',
  'model.decoder.block',
  'model.decoder.exchange',
  'model.decoder.capacity',  # how it is computed, not what
  'data.root',
  'data.*_file',
)  # where the data lie: whether they are others, their own fingerprint tells
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
  """Names of a stage's config by what a change of them means."""

  free: tuple[str, ...]
  network: tuple[str, ...]
  data: tuple[str, ...]


def _patterns(stage: str, medium: str | None) -> _Patterns:
  """Returns the patterns of the omni stage, or of the stage of an autoencoder of `medium`."""
  if medium is None:
    network = ('model.*', f'{stage}.optim.kind', f'{stage}.freeze')
    return _Patterns(FREE, network, ('seed', 'data.*'))
  # The stage of an autoencoder has neither the medium's embedding nor its head.
  free = (*FREE, *(f'model.{medium}.{part}.*' for part in NETWORKS))
  network = (
    'model.dtype',
    f'model.{medium}.*',
    f'model.{stage}.*',
    f'{stage}.optim.kind',
  )
  data = (*DATA_OF_AUTOENCODER, f'{stage}.batch', f'{stage}.pieces')
  return _Patterns(free, network, data)


class Changes(NamedTuple):
  """Lines 'name: was VALUE, is VALUE'."""

  network: list[str]
  data: list[str]
  free: list[str]


def plain(config: Any) -> dict[str, Any]:
  """A ConfigDict as it comes back from JSON."""
  return json.loads(json.dumps(config.to_dict(), default=list))


def _flat(config: Mapping[str, Any], inside: str = '') -> dict[str, Any]:
  found = {}
  for name, value in config.items():
    found |= (
      _flat(value, f'{inside}{name}.')
      if isinstance(value, Mapping) and value
      else {f'{inside}{name}': value}
    )
  return found


def between(
  stage: str,
  saved: Mapping[str, Any],
  now: Mapping[str, Any],
  medium: str | None = None,
) -> Changes:
  """Returns what differs for a stage between the config of its checkpoint and the one to go on with.

  Args:
    medium: whose autoencoder the stage trains; None for the omni stage.
  """
  was, is_ = _flat(saved), _flat(now)
  changes = Changes([], [], [])
  patterns = _patterns(stage, medium)
  kinds = (
    (patterns.free, changes.free),
    (patterns.network, changes.network),
    (patterns.data, changes.data),
  )
  for name in sorted(was.keys() | is_.keys()):
    if was.get(name) == is_.get(name):
      continue
    line = f'{name} was {was.get(name, "absent")!r}, is {is_.get(name, "absent")!r}'
    lines = changes.free
    for names, candidate in kinds:
      if any(fnmatch.fnmatchcase(name, pattern) for pattern in names):
        lines = candidate
        break
    lines.append(line)
  return changes


def checked(
  workdir: str, stage: str, step: int, changes: Changes, *, strict: bool
) -> list[str]:
  """Lines for the log on what is another value now.

  Raises:
    UserError: for another network, and for other data unless `strict` is off.
  """
  refused = changes.network + (changes.data if strict else [])
  if refused:
    instead = (
      '; --config.loader.strict=False goes on with other data all the same'
      if changes.data and strict
      else ''
    )
    raise UserError(
      f'{workdir} holds step {step} of stage {stage!r} of another run: {"; ".join(refused)}. Give the '
      f'values it was trained with, or another --workdir{instead}'
    )
  lines = changes.free + changes.data
  return (
    [f'{stage}: goes on after step {step} with another config: {"; ".join(lines)}']
    if lines
    else []
  )
