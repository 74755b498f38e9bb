"""Computes digests of arrays that depend on neither mesh nor host.

A digest holds two sums, over all elements, of a hash of the element's index and bits.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import json
import math
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np

from omni_jax.across_processes import gather_bytes
from omni_jax.sharding import named_leaves, replicated

# The type of a word by the bytes of an element; elements of 8 bytes become two words.
_UINT = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}
# Arrays of at least this many elements are digested on their devices. For smaller ones
# that would take seconds to compile.
LARGE = 1 << 20
# XLA:CPU adds whole vectors many times faster than the elements of one vector.
_PIECES = 8
# Elements that NumPy processes at a time: few enough to stay in the cache.
_CHUNK = 1 << 15
# Added to every index, so that index 0 does not hash to 0: the golden ratio in 32 bits.
_INDEX_OFFSET = 0x9E3779B9


def _hash(x: Any) -> Any:
  """Returns a one-to-one hash of 32 bits: every output bit depends on every input bit.

  It is lowbias32 by Wellons.
  """
  x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
  return x ^ (x >> 16)


def _hashes(word: Any, index: Any) -> tuple[Any, Any]:
  """Returns two hashes of every word at its index, as arrays of NumPy or of jax.

  Indices are taken mod 2^32. The first hash is one-to-one in the word: changing one word,
  even by a bit, always changes the sum of all. The second weights the first by the hash
  of the index, so that changes that cancel in one sum also cancel in the other with a
  probability of only 33/2 of 2^-32; for both together that is 2^-60. An independent
  second hash would make it 2^-64, and cost as much as the first.
  """
  key = _hash(index)
  first = _hash(word ^ key)
  return first, first * key


def _index(
  xp: Any, part_shape: Sequence[int], start: Sequence[Any], shape: Sequence[int]
) -> Callable[[int, int], Any]:
  """Returns a function that computes the indices of elements of a part of an array.

  The function takes (first, size), which select elements of the flattened part, and
  returns their row-major indices in the whole array plus a constant, as uint32.

  Args:
    xp: numpy, or jax.numpy inside a program.
    part_shape: shape of the part.
    start: position of the part's first element in the whole array.
    shape: shape of the whole array.
  """
  strides = []
  for axis in range(len(shape)):
    elements = math.prod(shape[axis + 1 :])
    strides.append(np.uint32(elements % 2**32))
  base = xp.full((1,), _INDEX_OFFSET, np.uint32)
  for offset, stride in zip(start, strides, strict=True):
    base = base + xp.asarray(offset).astype(np.uint32) * stride

  def contiguous(first, size):
    return xp.arange(size, dtype=np.uint32) + np.uint32(first % 2**32) + base

  only_first_axis_split = tuple(part_shape[1:]) == tuple(shape[1:])
  if only_first_axis_split:
    return contiguous
  indices = base
  for axis, size in enumerate(part_shape):
    steps = xp.arange(size, dtype=np.uint32) * strides[axis]
    trailing_axes = len(part_shape) - axis - 1
    indices = indices + steps.reshape(-1, *[1] * trailing_axes)
  return lambda first, size: indices.reshape(-1)[first : first + size]


def _index_of_words(
  xp: Any,
  part_shape: Sequence[int],
  start: Sequence[Any],
  shape: Sequence[int],
  extra: Sequence[int],
) -> Callable[[int, int], Any]:
  """Returns `_index` of words; `extra` is (2,) where an element has two, else ()."""
  start_of_words = [*start, *[0] * len(extra)]
  return _index(xp, [*part_shape, *extra], start_of_words, [*shape, *extra])


def _sums_on_host(
  part: np.ndarray, start: Sequence[int], shape: Sequence[int]
) -> list[int]:
  """Returns the two sums over a part, from `start`, of an array of this shape."""
  itemsize = part.dtype.itemsize
  words = np.ascontiguousarray(part).reshape(-1).view(_UINT[itemsize])
  extra = (2,) if itemsize == 8 else ()
  index = _index_of_words(np, part.shape, start, shape, extra)
  totals = [0, 0]
  for k in range(0, words.size, _CHUNK):
    chunk = words[k : k + _CHUNK].astype(np.uint32)
    hashes = _hashes(chunk, index(k, chunk.size))
    sums = [int(values.sum(dtype=np.uint32)) for values in hashes]
    totals = _add_columns(totals, sums)
  return totals


def _add_columns(*sums: Sequence[int]) -> list[int]:
  """Returns the sums of each column, mod 2^32."""
  return [sum(column) % 2**32 for column in zip(*sums, strict=True)]


def _sums_on_device(part: Array, start: Sequence[Any], shape: Sequence[int]) -> Array:
  """Returns what `_sums_on_host` returns, inside a program, as uint32 of shape (2,)."""
  if part.dtype == bool:
    part = part.astype(jnp.uint8)
  bits = jax.lax.bitcast_convert_type(part, _UINT[part.dtype.itemsize])
  extra = bits.shape[part.ndim :]
  words = bits.reshape(-1)
  index = _index_of_words(jnp, part.shape, start, shape, extra)
  size = words.size // _PIECES if words.size % _PIECES == 0 else words.size
  first, second = jnp.zeros((2, size), jnp.uint32)
  for k in range(0, words.size, max(size, 1)):
    piece = words[k : k + size].astype(jnp.uint32)
    first_hash, second_hash = _hashes(piece, index(k, size))
    first = first + first_hash
    second = second + second_hash

  def add(a, b):
    return a[0] + b[0], a[1] + b[1]

  # In one reduction: two would compute all hashes twice, each in a loop of its own.
  zeros = (np.uint32(0), np.uint32(0))
  both = jax.lax.reduce((first, second), zeros, add, (0,))
  return jnp.stack(both)


@functools.cache
def _program(sharding: NamedSharding | None) -> Callable[[Array], Array]:
  """Returns a jitted function that computes the two sums over a whole array.

  If the array is split, every device sums its part, and then the sums are added.
  """
  if sharding is None:
    return jax.jit(lambda x: _sums_on_device(x, [0] * x.ndim, x.shape))

  mesh: Any = sharding.mesh

  def sums(x):
    axes = _mesh_axes(sharding, x.ndim)
    split = tuple(name for names in axes for name in names)

    def sums_of_part(part):
      start = []
      for names, n in zip(axes, part.shape, strict=True):
        start.append(jax.lax.axis_index(names) * n if names else 0)
      total = _sums_on_device(part, start, x.shape)
      return jax.lax.psum(total, split) if split else total

    return jax.shard_map(
      sums_of_part,
      mesh=mesh,
      in_specs=sharding.spec,
      out_specs=replicated(mesh).spec,
      check_vma=False,
    )(x)

  return jax.jit(sums)


def _mesh_axes(sharding: NamedSharding, ndim: int) -> list[tuple[str, ...]]:
  """Returns the names of the mesh axes that each axis of an array is split over."""
  axes = []
  for entry in sharding.spec:
    names = (entry,) if isinstance(entry, str) else tuple(entry or ())
    axes.append(names)
  axes += [()] * (ndim - len(axes))
  return axes


def _gather_sums(small: Mapping[str, Array]) -> dict[str, list[int]]:
  """Returns the sums of small arrays, in every process.

  Each process adds the parts of which it holds the first copy.
  """
  for x in small.values():
    x.copy_to_host_async()
  own = {name: _own_sums(x) for name, x in small.items()}
  texts = gather_bytes(json.dumps(own).encode())
  processes = [json.loads(text) for text in texts]
  sums = {}
  for name in own:
    sums[name] = _add_columns(*(process[name] for process in processes))
  return sums


def _own_sums(x: Array) -> list[int]:
  """Returns the sums over those parts of an array whose first copy is in this process."""
  total = [0, 0]
  for shard in x.addressable_shards:
    if shard.replica_id == 0:
      start = [part.start or 0 for part in shard.index]
      total = _add_columns(total, _sums_on_host(np.asarray(shard.data), start, x.shape))
  return total


@jax.jit
def _zero_if_finite(x: Array) -> Array:
  """Returns zero if all elements are finite, else NaN; added in `_PIECES` pieces."""
  size = x.size // _PIECES if x.size % _PIECES == 0 else x.size
  flat = x.reshape(-1)
  total = jnp.zeros(size, x.dtype)
  for k in range(0, x.size, size):
    total += flat[k : k + size] * 0
  return jnp.sum(total)


def _is_finite(x: Array) -> bool:
  """Returns whether all elements that this process holds are finite."""
  if not jnp.issubdtype(x.dtype, jnp.inexact):
    return True
  if x.size >= LARGE:
    return bool(np.isfinite(np.asarray(_zero_if_finite(x), np.float32)))
  shards = [np.asarray(shard.data) for shard in x.addressable_shards]
  return all(np.isfinite(shard.astype(np.float32)).all() for shard in shards)


def not_finite(tree: Any) -> list[str]:
  """Returns the names of the arrays with an element that is not finite, sorted.

  All processes call it together, and all get the same names.
  """
  own = [name for name, x in named_leaves(tree).items() if not _is_finite(x)]
  names = set()
  for text in gather_bytes(json.dumps(own).encode()):
    names.update(json.loads(text))
  return sorted(names)


def begin(tree: Any) -> dict[str, Any]:
  """Returns the sums of every array by its name, without waiting for the large arrays.

  All processes call it together. Devices compute the sums before anything that is
  dispatched later, such as a step that donates the arrays.
  """
  sums: dict[str, Any] = {}
  small = {}
  for name, x in named_leaves(tree).items():
    if x.size < LARGE:
      small[name] = x
      continue
    sharding = x.sharding if isinstance(x.sharding, NamedSharding) else None
    sums[name] = _program(sharding)(x)
  return sums | _gather_sums(small)


def finish(sums: Mapping[str, Any]) -> dict[str, str]:
  """Returns the sums that `begin` returned as 16 hexadecimal digits for each array."""
  digests = {}
  for name, totals in sums.items():
    first, second = jax.device_get(totals)
    digests[name] = f'{int(first):08x}{int(second):08x}'
  return digests


def digests(tree: Any) -> dict[str, str]:
  """Returns the digest of every array of a tree by its name, 16 hexadecimal digits."""
  return finish(begin(tree))
