"""Digests: the same on host, device and every mesh, for every type; what cancels in one sum shows in the other."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from omni_jax.checkpoint import digest
from omni_jax.sharding import make_mesh

SHAPES = [(), (1,), (0, 3), (33, 7), (8, 4, 6), (64, 40)]
TYPES = ['float32', 'bfloat16', 'float16', 'int32', 'uint8', 'bool', 'uint32']
LAYOUTS = {
  'rows': (P('fsdp'), dict(fsdp=8)),
  'columns': (P(None, 'fsdp'), dict(fsdp=8)),
  'both': (P('fsdp', 'tensor'), dict(fsdp=4, tensor=2)),
  'two_on_one': (P(('data', 'fsdp')), dict(data=2, fsdp=4)),
  'copies': (P('fsdp'), dict(data=4, fsdp=2)),
}


def array(shape, dtype='float32', seed=0):
  return jnp.asarray(np.random.default_rng(seed).integers(0, 250, shape)).astype(dtype)


@pytest.mark.parametrize('dtype', TYPES)
def test_host_and_device_agree_on_every_shape(monkeypatch, dtype):
  for shape in SHAPES:
    tree = {'x': array(shape, dtype)}
    monkeypatch.setattr(digest, 'LARGE', 1 << 30)
    host = digest.digests(tree)
    monkeypatch.setattr(digest, 'LARGE', 0)
    assert digest.digests(tree) == host and len(host['x']) == 16, shape


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('large', [0, 1 << 30], ids=['device', 'host'])
def test_every_mesh_agrees(monkeypatch, layout, large):
  spec, sizes = LAYOUTS[layout]
  x = array((64, 40))
  whole = digest.digests({'x': x})
  monkeypatch.setattr(digest, 'LARGE', large)
  assert (
    digest.digests({'x': jax.device_put(x, NamedSharding(make_mesh(sizes), spec))})
    == whole
  )


def test_a_change_of_any_one_element_shows_in_both_sums(monkeypatch):
  """In the first always: it is one to one. In the second here, too, though that is not certain."""
  monkeypatch.setattr(digest, 'LARGE', 0)
  x = np.asarray(array((16, 16)))
  right = digest.digests({'x': jnp.asarray(x)})['x']
  for k in range(x.size):
    changed = x.copy()
    changed.reshape(-1)[k] += 1
    wrong = digest.digests({'x': jnp.asarray(changed)})['x']
    assert wrong[:8] != right[:8] and wrong[8:] != right[8:], k


def test_two_changes_that_cancel_in_the_first_sum_show_in_the_second():
  """Made by hand, since by chance they are one in 2^32: the second word is what gives back the first one's change."""

  def unmixed(x):  # the inverse of digest._mixed
    x = x ^ (x >> 16)
    x = x * pow(0x846CA68B, -1, 2**32) % 2**32
    x = x ^ (x >> 15) ^ (x >> 30)
    x = x * pow(0x7FEB352D, -1, 2**32) % 2**32
    return x ^ (x >> 16)

  index = [0x9E3779B9, 0x9E3779BA]  # of the first two elements of an array
  key = [int(digest._mixed(np.full(1, i, np.uint32))[0]) for i in index]
  rng = np.random.default_rng(0)
  for _ in range(50):
    before, first = rng.integers(0, 2**32, 2, np.uint32), int(rng.integers(0, 2**32))
    hashes = [
      int(digest._mixed(np.array([w ^ np.uint32(k)]))[0])
      for w, k in zip(before, key, strict=True)
    ]
    changed = int(digest._mixed(np.array([first ^ key[0]], np.uint32))[0])
    after = np.array(
      [first, unmixed((sum(hashes) - changed) % 2**32) ^ key[1]], np.uint32
    )
    assert not np.array_equal(before, after)
    right, wrong = (digest.digests({'x': jnp.asarray(x)})['x'] for x in (before, after))
    assert right[:8] == wrong[:8] and right[8:] != wrong[8:]


def test_swaps_of_rows_and_of_equal_bits_show(monkeypatch):
  """What a plain sum does not see: the same bit flipped in two places, one up and one down."""
  monkeypatch.setattr(digest, 'LARGE', 0)
  x = np.asarray(array((32, 8), 'uint32'))
  found = {digest.digests({'x': jnp.asarray(x)})['x']}
  for bit in range(32):
    changed = x.copy()
    changed[3, 1] ^= np.uint32(1) << np.uint32(bit)
    changed[20, 5] ^= np.uint32(1) << np.uint32(bit)
    found.add(digest.digests({'x': jnp.asarray(changed)})['x'])
  for k in range(31):
    order = [*range(k), k + 1, k, *range(k + 2, 32)]
    found.add(digest.digests({'x': jnp.asarray(x[order])})['x'])
  assert (
    len(found)
    == 64
    == len({one[:8] for one in found})
    == len({one[8:] for one in found})
  )
