"""Reads a step and compares it with its manifest and with what is wanted."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple, TypeVar

from etils import epath
import jax

from omni_jax.across_processes import gather_bytes
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
from omni_jax.sharding import leaf_name, named_leaves

T = TypeVar('T')
# Bytes of arrays that `read_model` reads together; a larger array is read alone.
GROUP = 64 << 20


class Shape(NamedTuple):
  """Shape and dtype of an array, which must agree between saved and wanted ones."""

  shape: tuple[int, ...]
  dtype: str

  def __repr__(self) -> str:
    return repr(tuple(self))


# Compares the arrays in a manifest with the wanted ones: a function of the step's folder,
# its manifest, and the wanted shapes by field of a TrainState.
Check = Callable[[epath.Path, Manifest, dict[str, Any]], None]


def shapes_of(tree: Any) -> dict[str, Shape]:
  """Returns shape and dtype of every array by its name."""
  return {
    name: Shape(tuple(leaf.shape), str(leaf.dtype))
    for name, leaf in named_leaves(tree).items()
  }


def check_all_arrays(folder: epath.Path, saved: Manifest, like: dict[str, Any]) -> None:
  """Raises UserError unless the saved arrays of the fields in `like` are those of `like`.

  They are compared before anything is read or allocated, since Orbax casts a changed
  dtype and fails late on a changed shape.
  """
  saved_shapes = {}
  for name, shape in _saved_shapes(saved).items():
    field = name.partition('.')[0]
    if field in like:
      saved_shapes[name] = shape
  _compare(folder, saved_shapes, shapes_of(like))


def check_wanted_arrays(
  folder: epath.Path, saved: Manifest, like: dict[str, Any]
) -> None:
  """Raises UserError if a step lacks one of the wanted arrays; it may have others."""
  wanted = shapes_of(like)
  saved_shapes = _saved_shapes(saved)
  common = {name: shape for name, shape in saved_shapes.items() if name in wanted}
  _compare(folder, common, wanted)


def _saved_shapes(saved: Manifest) -> dict[str, Shape]:
  return {name: Shape(leaf.shape, leaf.dtype) for name, leaf in saved.leaves.items()}


def _compare(
  folder: epath.Path, saved: Mapping[str, Shape], wanted: Mapping[str, Shape]
) -> None:
  """Raises UserError with the first difference between saved and wanted arrays."""
  names = saved.keys() | wanted.keys()
  different = [name for name in names if saved.get(name) != wanted.get(name)]
  if not different:
    return
  # Moments of the optimizer differ as their parameters do: a parameter is named first.
  name = min(different, key=lambda name: (not name.startswith('params.'), name))
  verb = 'differs' if len(different) == 1 else 'differ'
  raise UserError(
    f'checkpoint {folder} is of another model: {len(different)} of {len(names)} arrays '
    f'{verb}, the first is {name}: saved {saved.get(name, "absent")}, wanted '
    f'{wanted.get(name, "absent")}; use the config it was trained with, or another '
    '--workdir'
  )


def read_step(folder: epath.Path, like: dict[str, Any], check: Check) -> dict[str, Any]:
  """Returns items of a step, compared with its manifest; all processes call it together.

  Args:
    folder: folder of the step.
    like: shapes and shardings by item and field; None for the iterator.
    check: compares the saved arrays with the wanted ones before anything is read.

  Raises:
    Damaged: in all processes, if any of them finds that something is not as it was
      saved.
    UserError: if the step is of another model, or cannot be read at the moment.
  """
  saved, items = agreed(lambda: _load(folder, like, check))
  trees = _without_iterator(items)
  manifest.check_leaves(saved, digest.digests(fields_of(trees)))
  agreed(lambda: manifest.check_files(folder, saved, tuple(trees), arrays=True))
  return items


def read_model(
  folder: epath.Path, like: dict[str, Any], check: Check, dtypes: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns parameters and buffers of a step, compared with its manifest.

  They are read in groups, from the largest array to the smallest. The host therefore
  needs little more memory than the result and, while it reads one, the largest array.
  All processes call it together.

  Args:
    folder: folder of the step.
    like: {'params', 'buffers'} or parts of them, with shapes and shardings.
    check: compares the saved arrays with the wanted ones before anything is read.
    dtypes: dtypes by name to which arrays are cast once they are verified; other arrays
      stay as they were saved.

  Raises:
    Damaged, UserError: as in `read_step`.
  """

  def read_manifest() -> Manifest:
    saved = manifest.read(folder)
    check(folder, saved, like)
    manifest.check_files(folder, saved, (MODEL,), arrays=False)
    return saved

  saved = agreed(read_manifest)
  wanted = jax.tree_util.tree_leaves_with_path(like)
  arrays: dict[Any, Any] = {}
  for group in _groups(wanted):
    tree = agreed(functools.partial(read_arrays, folder / MODEL, _nested(group), saved))
    manifest.check_leaves(saved, digest.digests(tree))
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
      arrays[path] = x.astype(dtypes.get(leaf_name(path), x.dtype))
    del tree, x  # before the next group is read
  agreed(lambda: manifest.check_files(folder, saved, (MODEL,), arrays=True))
  in_order = [arrays[path] for path, _ in wanted]
  return jax.tree.unflatten(jax.tree.structure(like), in_order)


def _groups(leaves: Sequence[tuple[Any, Any]]) -> list[list[tuple[Any, Any]]]:
  """Returns (path, shape) of arrays in groups of at most GROUP bytes, largest first."""

  def size_of(leaf: tuple[Any, Any]) -> int:
    _, x = leaf
    return x.size * x.dtype.itemsize

  groups: list[list[tuple[Any, Any]]] = []
  room = 0
  for leaf in sorted(leaves, key=size_of, reverse=True):
    size = size_of(leaf)
    if size > room:
      groups.append([])
      room = GROUP
    groups[-1].append(leaf)
    room -= size
  return groups


def _nested(leaves: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
  """Returns (path, value) pairs as nested dicts, which is what parameters are."""
  tree: dict[Any, Any] = {}
  for path, value in leaves:
    *outer, last = [entry.key for entry in path]
    branch = tree
    for key in outer:
      branch = branch.setdefault(key, {})
    branch[last] = value
  return tree


def _without_iterator(items: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the items that hold arrays."""
  return {item: tree for item, tree in items.items() if item != ITERATOR}


def _load(
  folder: epath.Path, like: dict[str, Any], check: Check
) -> tuple[Manifest, dict[str, Any]]:
  """Returns the manifest and the items of a step, without waiting for other processes.

  It may fail in one process alone.
  """
  saved = manifest.read(folder)
  trees = _without_iterator(like)
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
    Damaged: if the files that hold the shapes are not as they were saved.
  """
  manifest.check_files(folder, manifest.read(folder), (MODEL,), arrays=False)
  return read_shapes(folder)


def agreed(read: Callable[[], T]) -> T:
  """Returns what `read` returns; all processes call it together.

  Raises:
    Damaged: in all processes, for the first damage that any of them finds.
  """
  result: Any = None
  error = None
  try:
    result = read()
  except Damaged as caught:
    error = caught
  reports = [text for text in gather_bytes(str(error or '').encode()) if text]
  if reports:
    raise Damaged(reports[0].decode()) from error
  return result
