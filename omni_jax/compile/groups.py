"""Reads XLA's replica groups: the devices and mesh axes of a collective."""

import functools
import math
import re
from typing import NamedTuple

import jax
from jax.sharding import Mesh
import numpy as np

_IOTA = re.compile(r'\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?$')
_AXIS = re.compile(r"'?(\w+)'?(?::\((\d+)\)(\d+))?")
_AXIS_SIZE = re.compile(r"'(\w+)'=(\d+)")
_DEVICE_IDS = re.compile(r'device_ids=\(?\[?([\d,<=\[\]T()]+)')
_ROW = re.compile(r'\{([\d,\s]+)\}')


def parse_groups(text: str, devices: int) -> np.ndarray:
  """Returns the groups of partitions that a text lists, shape (groups, members).

  XLA writes `{{0,1},{2,3}}`, `[2,2]<=[4]`, `[2,2]<=[2,2]T(1,0)`,
  `mesh['a'=2,'b'=2] {'a'}`, and `{}` for one group of all devices.

  Args:
    text: the groups as XLA writes them.
    devices: number of devices of the program.
  """
  if match := _IOTA.match(text):
    return _iota_groups(*match.groups())
  if text.startswith(('mesh[', '@mesh')):
    return _mesh_groups(text)
  rows = [_numbers(row) for row in _ROW.findall(text)]
  if not rows:
    return np.arange(devices)[None]
  return np.array(rows)


def _numbers(text: str) -> list[int]:
  """Returns the numbers of `0,1,2`; spaces and a comma at the end are allowed."""
  return [int(number) for number in text.split(',') if number.strip()]


def _iota_groups(shape: str, dims: str, order: str | None) -> np.ndarray:
  """Returns the groups of `[shape]<=[dims]T(order)`, which may have no `T(order)`."""
  sizes = _numbers(dims)
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  if order:
    ids = ids.transpose(_numbers(order))
  return ids.reshape(_numbers(shape))


class _AxisPart(NamedTuple):
  """The part of a mesh axis that groups run along.

  Attributes:
    before: number of parts that the axis is cut into before this one.
    size: number of places along this part.
  """

  before: int
  size: int


def _mesh_groups(text: str) -> np.ndarray:
  """Returns the groups of `mesh['a'=2,'b'=4] {'a','b':(1)2}`, shape (groups, members).

  The groups run along whole axes, or along a part of an axis, `:(before)size`.
  """
  head, _, along = text.partition(' ')
  sizes = {name: int(size) for name, size in _AXIS_SIZE.findall(head)}
  parts = _axis_parts(along, sizes)
  # Each axis becomes three: what is before the part, the part itself, what is after it.
  dims: list[int] = []
  member_axes: list[int] = []
  for name, size in sizes.items():
    part = parts.get(name, _AxisPart(1, 1))
    if name in parts:
      member_axes.append(len(dims) + 1)
    dims += [part.before, part.size, size // (part.before * part.size)]
  group_axes = [axis for axis in range(len(dims)) if axis not in member_axes]
  members = math.prod(dims[axis] for axis in member_axes)
  ids = _mesh_device_ids(text, math.prod(dims)).reshape(dims)
  return ids.transpose(group_axes + member_axes).reshape(-1, members)


def _axis_parts(along: str, sizes: dict[str, int]) -> dict[str, _AxisPart]:
  """Returns the parts of axes that `{'a','b':(1)2}` names, by axis."""
  listed = along.partition('{')[2].partition('}')[0]
  parts = {}
  for name, before, size in _AXIS.findall(listed):
    if name in sizes:
      parts[name] = _AxisPart(int(before or 1), int(size or sizes[name]))
  return parts


def _mesh_device_ids(text: str, count: int) -> np.ndarray:
  """Returns the device ids of a mesh in the order of its places, shape (count,)."""
  match = _DEVICE_IDS.search(text)
  if not match:
    return np.arange(count)
  ids = match[1].strip('()')
  if '<=' in ids:
    return parse_groups(ids, count).reshape(-1)
  return np.array(_numbers(ids))


class Members(NamedTuple):
  """The members of a collective's first group.

  Attributes:
    axes: mesh axes, joined by +; with ~ at the end where the group is a part of them.
    count: number of members.
    sides: number of places that the members have along each side of the torus; empty
      for a group across slices.
  """

  axes: str
  count: int  # type: ignore[assignment]  # hides tuple.count
  sides: tuple[int, ...]


class Groups:
  """Reads replica groups against a mesh; each text is parsed once."""

  def __init__(self, mesh: Mesh):
    self._mesh = mesh
    self._devices = mesh.devices.flatten()
    self.members = functools.cache(self._members)

  def _members(self, text: str, pairs: bool = False) -> Members:
    """Returns the members of the first group.

    Args:
      text: the groups as XLA writes them.
      pairs: whether these are the (source, target) pairs of a permutation. Its axes are
        those in which the first source that moves differs from its target.
    """
    groups = parse_groups(text, len(self._devices))
    group = _first_moving(groups) if pairs else groups[0]
    mesh_shape = self._mesh.devices.shape
    places = np.array(np.unravel_index(group, mesh_shape)).T
    varying = [axis for axis in range(len(mesh_shape)) if len(set(places[:, axis])) > 1]
    axes = '+'.join(self._mesh.axis_names[axis] for axis in varying) or 'none'
    places_along_axes = math.prod(mesh_shape[axis] for axis in varying)
    if places_along_axes != len(group) and not pairs:
      axes += '~'
    coords = np.array([_coordinates(self._devices[i]) for i in group])
    sides = tuple(len(set(column)) for column in coords.T)
    return Members(axes, len(group), sides)

  def across_slices(self) -> Members:
    """Returns the group of the same chip of every slice.

    It runs along the first axis, or along a part of it.
    """
    slices = len({getattr(device, 'slice_index', 0) for device in self._devices})
    axis = self._mesh.axis_names[0]
    if slices != self._mesh.devices.shape[0]:
      axis += '~'
    return Members(axis, slices, ())


def _first_moving(pairs: np.ndarray) -> np.ndarray:
  """Returns the first pair of different devices, or the first pair if none differs."""
  for pair in pairs:
    if pair[0] != pair[1]:
      return pair
  return pairs[0]


def _coordinates(device: jax.Device) -> list[int]:
  """Returns a device's place on the torus, or its number where there is no torus."""
  coords = getattr(device, 'coords', None)
  return list(coords or (device.id,))
