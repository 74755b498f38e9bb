"""Tests grouped heads of attention, and its cache, which padding never enters."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from omni_jax.nn.attention import Attention, CachePlace, KVCache
from omni_jax.nn.reach import cached, mask_of, packed_rows

ROWS = 2
LENGTH = 7
WIDTH = 24
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 8


def attention():
  return Attention(WIDTH, HEADS, KV_HEADS, HEAD_DIM, rngs=nnx.Rngs(0))


def inputs():
  return jax.random.normal(jax.random.key(1), (ROWS, LENGTH, WIDTH))


def assert_close(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_attention_equals_the_softmax_formula():
  module = attention()
  x = inputs()
  reach = packed_rows(jnp.asarray([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1]]))
  q = module.q_norm(module.q(x).reshape(ROWS, LENGTH, HEADS, HEAD_DIM))
  # Each head has its key and its value side by side.
  kv = module.kv(x).reshape(ROWS, LENGTH, KV_HEADS, 2, HEAD_DIM)
  k, v = jnp.moveaxis(kv, 3, 0)
  # Heads 0 and 1 share the first pair of key and value, 2 and 3 the other.
  k = jnp.repeat(module.k_norm(k), 2, axis=2)
  v = jnp.repeat(v, 2, axis=2)
  score = jnp.einsum('bqha,bkha->bhqk', q, k) / HEAD_DIM**0.5
  score = jnp.where(mask_of(reach)[:, None], score, -jnp.inf)
  y = jnp.einsum('bhqk,bkha->bqha', jax.nn.softmax(score), v)
  expected = module.out(y.reshape(ROWS, LENGTH, HEADS * HEAD_DIM))
  assert_close(module(x, reach)[0], expected)


def place(cache, slot):
  """Returns the place of positions in a cache of one layer."""
  return CachePlace(cache, jnp.int32(0), slot)


def test_a_cache_equals_one_pass_and_drops_padding():
  module = attention()
  x = inputs()
  angle = jnp.zeros((ROWS, LENGTH, HEAD_DIM // 2))
  one_segment = jnp.ones((ROWS, LENGTH), jnp.int32)
  expected, _ = module(x, packed_rows(one_segment), angle)
  # Not zeros, so that a slot to which zeros are written shows.
  nines = jnp.full((ROWS, LENGTH, KV_HEADS, HEAD_DIM), 9.0)
  cache = KVCache(nines[None], nines[None])
  # The second row has two positions of padding; their slot is past the end.
  slot = jnp.asarray([[0, 1, 2, 3], [0, 1, LENGTH, LENGTH]])
  first, cache = module(
    x[:, :4], cached(slot, LENGTH), angle[:, :4], None, place(cache, slot)
  )
  assert (cache.key_IBSGA[0, 1, 2:] == 9).all()
  assert (cache.key_IBSGA[0, 0, 4:] == 9).all()
  assert_close(first[0], expected[0, :4])
  assert_close(first[1, :2], expected[1, :2])
  slot = jnp.asarray([[4, 5, 6], [2, 3, 4]])
  rest_x = jnp.stack([x[0, 4:], x[1, 2:5]])
  rest, cache = module(
    rest_x, cached(slot, LENGTH), angle[:, :3], None, place(cache, slot)
  )
  assert_close(rest[0], expected[0, 4:])
  assert_close(rest[1], expected[1, 2:5])
