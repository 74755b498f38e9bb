"""Who takes part in a collective: XLA's replica groups and their mesh axes."""

from collections.abc import Sequence
import functools
import math
import re
from typing import NamedTuple

from jax.sharding import Mesh
import numpy as np

_IOTA = re.compile(r'\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?$')
_AXIS = re.compile(r"'?(\w+)'?(?::\((\d+)\)(\d+))?")


def parse_groups(text: str, devices: int) -> np.ndarray:
  """Returns the groups of partitions, shape (groups, members), that a text lists.

  XLA writes `{{0,1},{2,3}}`, `[2,2]<=[4]`, `[2,2]<=[2,2]T(1,0)`,
  `mesh['a'=2,'b'=2] {'a'}`, and `{}` for all.
  """
  if match := _IOTA.match(text):
    shape, dims, order = (
      tuple(int(n) for n in part.split(',')) if part else None
      for part in match.groups()
    )
    ids = np.arange(math.prod(dims)).reshape(dims)
    return (ids if order is None else ids.transpose(order)).reshape(shape)
  if text.startswith(('mesh[', '@mesh')):
    return _along_mesh(text)
  rows = [
    [int(n) for n in row.split(',') if n.strip()]
    for row in re.findall(r'\{([\d,\s]+)\}', text)
  ]
  return np.array(rows) if rows else np.arange(devices)[None]


def _along_mesh(text: str) -> np.ndarray:
  """Returns the groups of `mesh['a'=2,'b'=4] {'a','b':(1)2}`.

  They run along axes, or along a part of one: `:(before)size`.
  """
  head, _, along = text.partition(' ')
  sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", head)}
  ids = re.search(r'device_ids=\(?\[?([\d,<=\[\]T()]+)', text)
  dims, kept, at = [], [], 0
  parts = {
    name: (int(before or 1), int(size or sizes[name]))
    for name, before, size in _AXIS.findall(along.partition('{')[2].partition('}')[0])
    if name in sizes
  }
  for name, size in sizes.items():
    before, inside = parts.get(name, (1, 1))
    dims += [before, inside, size // (before * inside)]
    kept += [at + 1] if name in parts else []
    at += 3
  everyone = _ids(ids[1], math.prod(dims)) if ids else np.arange(math.prod(dims))
  rest = [axis for axis in range(len(dims)) if axis not in kept]
  return (
    everyone.reshape(dims)
    .transpose(rest + kept)
    .reshape(-1, math.prod(dims[axis] for axis in kept))
  )


def _ids(text: str, count: int) -> np.ndarray:
  text = text.strip('()')
  return (
    parse_groups(text, count).reshape(-1)
    if '<=' in text
    else np.array([int(n) for n in text.split(',') if n])
  )


class Members(NamedTuple):
  """The members of a collective's first group.

  Attributes:
    axes: of the mesh, joined by +; with ~ where the group is a part of them.
    count: members of a group.
    sides: for each side of the torus, how many of its places the group's members have;
      none of a group across slices.
  """

  axes: str
  count: int
  sides: tuple[int, ...]


class Groups:
  """Reads replica groups against a mesh; each text once."""

  def __init__(self, mesh: Mesh):
    self._mesh, self._devices = mesh, mesh.devices.flatten()
    self.members = functools.cache(self._members)

  def _members(self, text: str, pairs: bool = False) -> Members:
    groups = parse_groups(text, len(self._devices))
    if pairs:  # of a permutation: those that a device and its target differ in
      moving = [pair for pair in groups if pair[0] != pair[1]] or [groups[0]]
      group: Sequence[int] = moving[0]
    else:
      group = groups[0]
    places = np.array(np.unravel_index(np.asarray(group), self._mesh.devices.shape)).T
    varying = [axis for axis in range(places.shape[1]) if len(set(places[:, axis])) > 1]
    whole = math.prod(self._mesh.devices.shape[axis] for axis in varying)
    names = '+'.join(self._mesh.axis_names[axis] for axis in varying) or 'none'
    devices = [self._devices[i] for i in group]
    coords = np.array([list(getattr(d, 'coords', None) or (d.id,)) for d in devices])
    sides = tuple(len(set(column)) for column in coords.T)
    return Members(
      names + ('' if whole == len(group) or pairs else '~'), len(group), sides
    )

  def across(self) -> Members:
    """Returns the group of the same chip of every slice.

    It runs along the first axis, or a part of it.
    """
    slices = len({getattr(d, 'slice_index', 0) for d in self._devices})
    axis = self._mesh.axis_names[0]
    return Members(
      axis + ('' if slices == self._mesh.devices.shape[0] else '~'), slices, ()
    )
