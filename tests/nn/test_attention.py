"""Attention: grouped heads, and the cache, into which padding is never written."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from omni_jax.nn.attention import Attention, KVCache
from omni_jax.nn.reach import cached, mask_of, packed_rows


def attention():
  return Attention(24, 4, 2, 8, rngs=nnx.Rngs(0))


def inputs():
  return jax.random.normal(jax.random.key(1), (2, 7, 24))


def assert_close(ours, theirs):
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_equals_softmax_attention_written_out():
  module = attention()
  x = inputs()
  reach = packed_rows(jnp.asarray([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1]]))
  q = module.q_norm(module.q(x).reshape(2, 7, 4, 8))
  k, v = jnp.moveaxis(module.kv(x).reshape(2, 7, 2, 2, 8), 3, 0)
  # Heads 0 and 1 share the first pair of key and value, 2 and 3 the other.
  k = jnp.repeat(module.k_norm(k), 2, axis=2)
  v = jnp.repeat(v, 2, axis=2)
  score = jnp.einsum('bqha,bkha->bhqk', q, k) / 8**0.5
  score = jnp.where(mask_of(reach)[:, None], score, -jnp.inf)
  y = jnp.einsum('bhqk,bkha->bqha', jax.nn.softmax(score), v).reshape(2, 7, 32)
  assert_close(module(x, reach)[0], module.out(y))


def test_a_cache_equals_one_pass_and_drops_padding():
  module = attention()
  x = inputs()
  angle = jnp.zeros((2, 7, 4))
  expected, _ = module(x, packed_rows(jnp.ones((2, 7), jnp.int32)), angle)
  filled = jnp.full((2, 7, 2, 8), 9.0)
  cache = KVCache(filled, filled)
  # The second row has two positions of padding.
  slot = jnp.asarray([[0, 1, 2, 3], [0, 1, 7, 7]])
  first, cache = module(x[:, :4], cached(slot, 7), angle[:, :4], None, cache, slot)
  assert (cache.key_BSGA[1, 2:] == 9).all()
  assert (cache.key_BSGA[0, 4:] == 9).all()
  assert_close(first[0], expected[0, :4])
  assert_close(first[1, :2], expected[1, :2])
  slot = jnp.asarray([[4, 5, 6], [2, 3, 4]])
  rest_x = jnp.stack([x[0, 4:], x[1, 2:5]])
  rest, cache = module(rest_x, cached(slot, 7), angle[:, :3], None, cache, slot)
  assert_close(rest[0], expected[0, 4:])
  assert_close(rest[1], expected[1, 2:5])
