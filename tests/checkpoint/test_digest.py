"""Digests are the same on host, device and every mesh, for every type.

Changes that cancel in one of the two sums show in the other.
"""

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
  """Returns an array of random whole numbers."""
  values = np.random.default_rng(seed).integers(0, 250, shape)
  return jnp.asarray(values).astype(dtype)


def digest_of(x):
  """Returns the digest of one array."""
  return digest.digests({'x': jnp.asarray(x)})['x']


@pytest.mark.parametrize('dtype', TYPES)
def test_host_and_device_agree_on_every_shape(monkeypatch, dtype):
  for shape in SHAPES:
    tree = {'x': array(shape, dtype)}
    monkeypatch.setattr(digest, 'LARGE', 1 << 30)
    host = digest.digests(tree)
    monkeypatch.setattr(digest, 'LARGE', 0)
    assert digest.digests(tree) == host, shape
    assert len(host['x']) == 16, shape


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('large', [0, 1 << 30], ids=['device', 'host'])
def test_every_mesh_agrees(monkeypatch, layout, large):
  spec, sizes = LAYOUTS[layout]
  x = array((64, 40))
  expected = digest_of(x)
  monkeypatch.setattr(digest, 'LARGE', large)
  placed = jax.device_put(x, NamedSharding(make_mesh(sizes), spec))
  assert digest_of(placed) == expected


def test_a_change_of_any_one_element_shows_in_both_sums(monkeypatch):
  """The first half of a digest is the first sum, which always changes.

  Its hash is one-to-one. The second changes here as well, though that is not certain.
  """
  monkeypatch.setattr(digest, 'LARGE', 0)
  x = np.asarray(array((16, 16)))
  original_digest = digest_of(x)
  for k in range(x.size):
    x_changed = x.copy()
    x_changed.reshape(-1)[k] += 1
    changed_digest = digest_of(x_changed)
    assert changed_digest[:8] != original_digest[:8], k
    assert changed_digest[8:] != original_digest[8:], k


def hash_of(word):
  """Returns the hash of one word."""
  return int(digest._hash(np.full(1, word, np.uint32))[0])


def word_of(x):
  """Returns the word whose hash is `x`: the inverse of `digest._hash`."""
  x = x ^ (x >> 16)
  x = x * pow(0x846CA68B, -1, 2**32) % 2**32
  x = x ^ (x >> 15) ^ (x >> 30)
  x = x * pow(0x7FEB352D, -1, 2**32) % 2**32
  return x ^ (x >> 16)


def test_two_changes_that_cancel_in_the_first_sum_show_in_the_second():
  """Such changes are constructed: one random pair in 2^32 is of this kind.

  The second word is chosen so that it reverses what the first does to the sum.
  """
  # Keys of the first two elements of an array.
  keys = [hash_of(0x9E3779B9), hash_of(0x9E3779BA)]
  rng = np.random.default_rng(0)
  for _ in range(50):
    before = rng.integers(0, 2**32, 2, np.uint32)
    first = int(rng.integers(0, 2**32))
    total = hash_of(int(before[0]) ^ keys[0]) + hash_of(int(before[1]) ^ keys[1])
    rest = (total - hash_of(first ^ keys[0])) % 2**32
    after = np.array([first, word_of(rest) ^ keys[1]], np.uint32)

    original_digest = digest_of(before)
    changed_digest = digest_of(after)
    assert changed_digest[:8] == original_digest[:8]
    assert changed_digest[8:] != original_digest[8:]


def test_swapped_rows_and_a_bit_flipped_in_two_places_show(monkeypatch):
  """A plain sum misses both, if one of the bits goes up and the other one down."""
  monkeypatch.setattr(digest, 'LARGE', 0)
  x = np.asarray(array((32, 8), 'uint32'))
  digests = {digest_of(x)}
  for bit in range(32):
    changed = x.copy()
    changed[3, 1] ^= np.uint32(1) << np.uint32(bit)
    changed[20, 5] ^= np.uint32(1) << np.uint32(bit)
    digests.add(digest_of(changed))
  for k in range(31):
    order = [*range(k), k + 1, k, *range(k + 2, 32)]
    digests.add(digest_of(x[order]))
  count = 1 + 32 + 31
  assert len({text[:8] for text in digests}) == count
  assert len({text[8:] for text in digests}) == count
