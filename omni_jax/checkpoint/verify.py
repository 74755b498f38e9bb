"""Reading a step only if it is what was saved and what is wanted: compared with its manifest."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from etils import epath

from omni_jax.checkpoint import digest, manifest
from omni_jax.checkpoint.items import (
  fields_of,
  ITERATOR,
  MODEL,
  read_arrays,
  read_iterator,
  read_shapes,
)
from omni_jax.checkpoint.manifest import Damaged, Manifest
from omni_jax.errors import UserError
from omni_jax.sharding import gather_bytes, named_leaves

T = TypeVar('T')


class Shape(NamedTuple):
  """What must agree between a saved array and a wanted one; printed in messages."""

  shape: tuple[int, ...]
  dtype: str

  def __repr__(self) -> str:
    return repr(tuple(self))


# Compares the arrays in a manifest with those that are wanted: (folder of the step,
# manifest, fields of a TrainState or a part of them).
Check = Callable[[epath.Path, Manifest, dict[str, Any]], None]


def shapes_of(tree: Any) -> dict[str, Shape]:
  """Returns shape and dtype of every array by its name."""
  return {
    name: Shape(tuple(leaf.shape), str(leaf.dtype))
    for name, leaf in named_leaves(tree).items()
  }


def check_all_arrays(folder: epath.Path, saved: Manifest, like: dict[str, Any]) -> None:
  """Refuses a step whose arrays of the wanted fields are not exactly those wanted.

  Orbax casts a changed dtype and fails late on a changed shape: so they are compared
  before anything is read or allocated.
  """
  saved_shapes = _saved_shapes(saved)
  of_fields = {
    name: shape
    for name, shape in saved_shapes.items()
    if name.partition('.')[0] in like
  }
  _compare(folder, of_fields, shapes_of(like))


def check_wanted_arrays(
  folder: epath.Path, saved: Manifest, like: dict[str, Any]
) -> None:
  """Refuses a step without one of the wanted arrays; it may have others."""
  wanted, saved_shapes = shapes_of(like), _saved_shapes(saved)
  common = {name: shape for name, shape in saved_shapes.items() if name in wanted}
  _compare(folder, common, wanted)


def _saved_shapes(saved: Manifest) -> dict[str, Shape]:
  return {name: Shape(leaf.shape, leaf.dtype) for name, leaf in saved.leaves.items()}


def _compare(
  folder: epath.Path, saved: Mapping[str, Shape], wanted: Mapping[str, Shape]
) -> None:
  names = saved.keys() | wanted.keys()
  differ = [name for name in names if saved.get(name) != wanted.get(name)]
  if not differ:
    return
  # Moments differ as their weights do: a weight is named first.
  name = min(differ, key=lambda name: (not name.startswith('params.'), name))
  raise UserError(
    f'checkpoint {folder} is of another model: {len(differ)} arrays differ, first '
    f'{name}: saved {saved.get(name, "absent")}, wanted {wanted.get(name, "absent")}; '
    'use the config it was trained with, or another --workdir'
  )


def read_step(folder: epath.Path, like: dict[str, Any], check: Check) -> dict[str, Any]:
  """Reads items of a step and compares them with its manifest; all processes together.

  Args:
    like: shapes and shardings by item and field; None for the iterator.
    check: what of the wanted arrays must agree before anything is read.

  Raises:
    Damaged: in all processes, if any of them found that something is not as it was
      saved.
    UserError: if the step is of another model, or cannot be read now.
  """
  saved, items = agreed(lambda: _load(folder, like, check))
  trees = {item: tree for item, tree in items.items() if item != ITERATOR}
  manifest.check_leaves(saved, digest.digests(fields_of(trees)))
  agreed(lambda: manifest.check_files(folder, saved, tuple(trees), arrays=True))
  return items


def _load(
  folder: epath.Path, like: dict[str, Any], check: Check
) -> tuple[Manifest, dict[str, Any]]:
  """Does what a process can do without waiting for another, since it may fail in one."""
  saved = manifest.read(folder)
  trees = {item: tree for item, tree in like.items() if item != ITERATOR}
  check(folder, saved, fields_of(trees))
  manifest.check_files(folder, saved, tuple(like), arrays=False)
  items = {}
  for item, tree in trees.items():
    items[item] = read_arrays(folder / item, tree, saved)
  if ITERATOR in like:
    items[ITERATOR] = read_iterator(folder)
  return saved, items


def read_checked_shapes(folder: epath.Path) -> dict[str, Any]:
  """Returns {'params', 'buffers'} of a step with shapes in place of arrays.

  Raises:
    Damaged: if the files that say so are not as they were saved.
  """
  manifest.check_files(folder, manifest.read(folder), (MODEL,), arrays=False)
  return read_shapes(folder)


def agreed(read: Callable[[], T]) -> Any:
  """Returns what `read` returns.

  Raises:
    Damaged: in all processes, for the first damage that any of them found.
  """
  result, error = None, None
  try:
    result = read()
  except Damaged as caught:
    error = caught
  reports = [text for text in gather_bytes(str(error or '').encode()) if text]
  if reports:
    raise Damaged(reports[0].decode()) from error
  return result
