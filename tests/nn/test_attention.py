"""Attention: grouped heads, and the cache, whose padding is never written."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from omni_jax.nn.attention import Attention, KVCache
from omni_jax.nn.reach import cached, mask_of, packed_rows


def attention():
  return Attention(24, 4, 2, 8, rngs=nnx.Rngs(0)), jax.random.normal(
    jax.random.key(1), (2, 7, 24)
  )


def test_equals_softmax_attention_written_out():
  module, x = attention()
  reach = packed_rows(jnp.asarray([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1]]))
  q = module.q_norm(module.q(x).reshape(2, 7, 4, 8))
  k, v = jnp.moveaxis(module.kv(x).reshape(2, 7, 2, 2, 8), 3, 0)
  k, v = (
    jnp.repeat(a, 2, axis=2) for a in (module.k_norm(k), v)
  )  # heads 0, 1 share the first pair; 2, 3 the other
  score = jnp.where(
    mask_of(reach)[:, None], jnp.einsum('bqha,bkha->bhqk', q, k) / 8**0.5, -jnp.inf
  )
  y = jnp.einsum('bhqk,bkha->bqha', jax.nn.softmax(score), v).reshape(2, 7, 32)
  np.testing.assert_allclose(module(x, reach)[0], module.out(y), rtol=1e-4, atol=1e-5)


def test_cache_gives_what_one_pass_gives_and_drops_padding():
  module, x = attention()
  angle = jnp.zeros((2, 7, 4))
  whole, _ = module(x, packed_rows(jnp.ones((2, 7), jnp.int32)), angle)
  cache = KVCache(jnp.full((2, 7, 2, 8), 9.0), jnp.full((2, 7, 2, 8), 9.0))
  slot = jnp.asarray(
    [[0, 1, 2, 3], [0, 1, 7, 7]]
  )  # the second row has two positions of padding
  first, cache = module(x[:, :4], cached(slot, 7), angle[:, :4], None, cache, slot)
  assert (cache.key_BSGA[1, 2:] == 9).all() and (cache.key_BSGA[0, 4:] == 9).all()
  np.testing.assert_allclose(first[0], whole[0, :4], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(first[1, :2], whole[1, :2], rtol=1e-4, atol=1e-5)
  slot = jnp.asarray([[4, 5, 6], [2, 3, 4]])
  rest, cache = module(
    jnp.stack([x[0, 4:], x[1, 2:5]]), cached(slot, 7), angle[:, :3], None, cache, slot
  )
  np.testing.assert_allclose(rest[0], whole[0, 4:], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(rest[1], whole[1, 2:5], rtol=1e-4, atol=1e-5)
