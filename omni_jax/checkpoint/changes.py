"""Going on with a changed config: what may differ from that of the checkpoint is logged, what may not is refused."""

from collections.abc import Mapping
import fnmatch
import json
from typing import Any, NamedTuple

from omni_jax.errors import UserError

# By stage, patterns of names; the first list that fits decides, and what fits none may change.
FREE = (
  'model.decoder.remat',
  'model.decoder.unroll',
  'model.decoder.block',
  'model.decoder.exchange',
  'model.decoder.capacity',  # how it is computed, not what
  'data.root',
  'data.*_file',
)  # where the data lie: whether they are others, their own fingerprint tells
NETWORK = {
  'codec': ('model.dtype', 'model.audio.*', 'model.codec.*', 'codec.optim.kind'),
  'omni': ('model.*', 'omni.optim.kind', 'omni.freeze'),
}
DATA = {
  'codec': (
    'seed',
    'data.source',
    'data.seed',
    'data.voices',
    'data.takes',
    'data.rate',
    'data.seconds',
    'codec.batch',
    'codec.frames',
  ),
  'omni': ('seed', 'data.*'),
}


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


def between(stage: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
  """What differs for a stage: the config of its checkpoint, and the one to go on with."""
  was, is_, found = _flat(saved), _flat(now), Changes([], [], [])
  kinds = (
    (FREE, found.free),
    (NETWORK[stage], found.network),
    (DATA[stage], found.data),
    (('*',), found.free),
  )
  for name in sorted(was.keys() | is_.keys()):
    if was.get(name) != is_.get(name):
      line = f'{name} was {was.get(name, "absent")!r}, is {is_.get(name, "absent")!r}'
      next(
        lines
        for patterns, lines in kinds
        if any(fnmatch.fnmatchcase(name, p) for p in patterns)
      ).append(line)
  return found


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
