"""Digests of arrays that depend on neither mesh nor host: over all elements, sums of a hash of index and bits."""

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

from omni_jax.sharding import gather_bytes, name_of, replicated

_UINT = {
  1: np.uint8,
  2: np.uint16,
  4: np.uint32,
  8: np.uint32,
}  # by bytes of an element; 8 become two words
LARGE = (
  1 << 20
)  # elements from which an array is digested where it lies; to compile that for small ones takes seconds
_PIECES = (
  8  # XLA:CPU adds whole vectors together many times faster than the elements of one
)
_CHUNK = 1 << 15  # elements that NumPy has in hand at a time: they stay in the cache


def _mixed(x: Any) -> Any:
  """A one-to-one hash of 32 bits in which every bit depends on every bit (Wellons' lowbias32)."""
  x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
  return x ^ (x >> 16)


def _hashes(word: Any, index: Any) -> tuple[Any, Any]:
  """Two hashes of every word at its index, of NumPy or of jax; indices count mod 2^32.

  The first is one to one in the word: to change one, be it by a bit, always changes the sum of all. The second weighs
  the first by the hash of the index, so that changes that cancel in one sum do so in the other with a chance of 33/2
  of 2^-32: of both, that is 2^-60. A second hash of its own would make it 2^-64, and cost as much as the first.
  """
  key = _mixed(index)
  first = _mixed(word ^ key)
  return first, first * key


def _index(
  xp: Any, part: Sequence[int], start: Sequence[Any], whole: Sequence[int]
) -> Callable[[int, int], Any]:
  """(first, size) -> where in the whole array, in row-major order, these elements of the flattened part are.

  Args:
    xp: numpy, or jax.numpy inside a program.
    start: where the part begins in the whole.
  """
  stride = [
    np.uint32(math.prod(whole[axis + 1 :]) % 2**32) for axis in range(len(whole))
  ]
  base = xp.full((1,), 0x9E3779B9, np.uint32)
  for first, n in zip(start, stride, strict=True):
    base = base + xp.asarray(first).astype(np.uint32) * n
  if tuple(part[1:]) == tuple(
    whole[1:]
  ):  # at most the first axis is split: what is flat here is flat there
    return lambda first, size: (
      xp.arange(size, dtype=np.uint32) + np.uint32(first % 2**32) + base
    )
  inside = base
  for axis, n in enumerate(part):
    steps = xp.arange(n, dtype=np.uint32) * stride[axis]
    inside = inside + steps.reshape(-1, *[1] * (len(part) - axis - 1))
  return lambda first, size: inside.reshape(-1)[first : first + size]


def _on_host(part: np.ndarray, start: Sequence[int], shape: Sequence[int]) -> list[int]:
  """The two sums over a part of an array of this shape."""
  word = np.ascontiguousarray(part).reshape(-1).view(_UINT[part.dtype.itemsize])
  extra = (
    [part.dtype.itemsize // 4] if part.dtype.itemsize == 8 else []
  )  # the words of an element of 8 bytes
  index = _index(
    np, [*part.shape, *extra], [*start, *[0 for _ in extra]], [*shape, *extra]
  )
  totals = [0, 0]
  for k in range(0, word.size, _CHUNK):
    own = word[k : k + _CHUNK].astype(np.uint32)
    totals = _added(
      totals,
      [int(hashes.sum(dtype=np.uint32)) for hashes in _hashes(own, index(k, own.size))],
    )
  return totals


def _added(*sums: Sequence[int]) -> list[int]:
  return [sum(column) % 2**32 for column in zip(*sums, strict=True)]


def _on_device(part: Array, start: Sequence[Any], shape: Sequence[int]) -> Array:
  """The same inside a program."""
  part = part.astype(jnp.uint8) if part.dtype == bool else part
  bits = jax.lax.bitcast_convert_type(part, _UINT[part.dtype.itemsize])
  extra = [*bits.shape[part.ndim :]]
  word, index = (
    bits.reshape(-1),
    _index(jnp, bits.shape, [*start, *[0 for _ in extra]], [*shape, *extra]),
  )
  size = word.size // _PIECES if word.size % _PIECES == 0 else word.size
  first, second = jnp.zeros((2, size), jnp.uint32)
  for k in range(0, word.size, max(size, 1)):
    hashes = _hashes(word[k : k + size].astype(jnp.uint32), index(k, size))
    first, second = first + hashes[0], second + hashes[1]
  # In one reduction: two would compute all hashes twice, each in a loop of its own.
  both = jax.lax.reduce(
    (first, second),
    (np.uint32(0), np.uint32(0)),
    lambda a, b: (a[0] + b[0], a[1] + b[1]),
    (0,),
  )
  return jnp.stack(both)


@functools.cache
def _program(sharding: NamedSharding | None) -> Callable[[Array], Array]:
  """Of whole arrays; where they are split, every device adds its part, and then the sums are added together."""
  if sharding is None:
    return jax.jit(lambda x: _on_device(x, [0] * x.ndim, x.shape))

  def sums(x):
    axes = [
      (entry,) if isinstance(entry, str) else tuple(entry or ())
      for entry in sharding.spec
    ]
    axes += [()] * (x.ndim - len(axes))
    split = tuple(name for names in axes for name in names)

    def own(part):
      start = [
        jax.lax.axis_index(names) * n if names else 0
        for names, n in zip(axes, part.shape, strict=True)
      ]
      total = _on_device(part, start, x.shape)
      return jax.lax.psum(total, split) if split else total

    return jax.shard_map(
      own,
      mesh=sharding.mesh,
      in_specs=sharding.spec,
      out_specs=replicated(sharding.mesh).spec,
      check_vma=False,
    )(x)

  return jax.jit(sums)


def _gathered(small: Mapping[str, Array]) -> dict[str, list[int]]:
  """Sums of small arrays; every process adds the parts that it alone answers for."""

  def own(x):
    parts = [
      (np.asarray(shard.data), [part.start or 0 for part in shard.index])
      for shard in x.addressable_shards
      if shard.replica_id == 0
    ]
    return _added([0, 0], *(_on_host(data, start, x.shape) for data, start in parts))

  for x in small.values():
    x.copy_to_host_async()
  sums = {name: own(x) for name, x in small.items()}
  everywhere = [json.loads(text) for text in gather_bytes(json.dumps(sums).encode())]
  return {name: _added(*(own[name] for own in everywhere)) for name in sums}


@jax.jit
def _spoilt(x: Array) -> Array:
  """Not a number where any element is none or infinite, else zero; in pieces, see `_PIECES`."""
  size = x.size // _PIECES if x.size % _PIECES == 0 else x.size
  flat, total = x.reshape(-1), jnp.zeros(size, x.dtype)
  for k in range(0, x.size, size):
    total += flat[k : k + size] * 0
  return jnp.sum(total)


def not_finite(tree: Any) -> list[str]:
  """Names of the arrays with an element that is not finite; all processes together."""

  def bad(x):
    if not jnp.issubdtype(x.dtype, jnp.inexact):
      return False
    if x.size >= LARGE:
      return not np.isfinite(np.asarray(_spoilt(x), np.float32))
    return not all(
      np.isfinite(np.asarray(shard.data).astype(np.float32)).all()
      for shard in x.addressable_shards
    )

  own = [
    name_of(path) for path, x in jax.tree_util.tree_leaves_with_path(tree) if bad(x)
  ]
  return sorted(
    {
      name
      for text in gather_bytes(json.dumps(own).encode())
      for name in json.loads(text)
    }
  )


def begin(tree: Any) -> dict[str, Any]:
  """The sums of every array by its name, those of large ones not yet waited for; all processes together.

  Devices see to them before anything that is dispatched later, such as a step that donates the arrays.
  """
  named = {name_of(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
  large = {
    name: _program(x.sharding if isinstance(x.sharding, NamedSharding) else None)(x)
    for name, x in named.items()
    if x.size >= LARGE
  }
  return large | _gathered({name: x for name, x in named.items() if name not in large})


def finish(begun: Mapping[str, Any]) -> dict[str, str]:
  """What `begin` returned, as hexadecimal text."""
  return {
    name: ''.join(f'{int(total):08x}' for total in jax.device_get(totals))
    for name, totals in begun.items()
  }


def digests(tree: Any) -> dict[str, str]:
  """{name: 16 hexadecimal digits} of every array of a tree."""
  return finish(begin(tree))
