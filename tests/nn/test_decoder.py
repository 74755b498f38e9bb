"""Unrolling and remat change no result, and impossible sizes are refused."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import part

from omni_jax.nn.decoder import Decoder, Remat
from omni_jax.nn.reach import cached, packed_rows
from omni_jax.sharding import make_mesh

SIZES = dict(
  width=16,
  layers=2,
  heads=2,
  kv_heads=1,
  head_dim=8,
  experts=4,
  expert_hidden=8,
  shared_hidden=8,
  block=8,
)
SEGMENT = jnp.asarray([[1, 1, 1, 2, 2, 2, 0, 0]])


def run(**changes):
  """Returns a loss, the hidden states, and the gradients of the loss.

  The loss is a weighted sum of the squares of the hidden states, and its gradients are
  with respect to the input and the weights.
  """
  decoder = Decoder(part('model.decoder', **SIZES | changes), rngs=nnx.Rngs(0))
  mesh = make_mesh({})
  graph, weights = nnx.split(decoder)
  x = jax.random.normal(jax.random.key(0), (1, 8, 16))
  position = jnp.broadcast_to(jnp.arange(8.0)[None, :, None], (1, 8, 3))

  def loss(x, weights):
    merged = nnx.merge(graph, weights)
    modality = jnp.minimum(SEGMENT, 1)
    decoded = merged(x, SEGMENT, modality, position, jnp.zeros((2, 4)), mesh)
    hidden = decoded.hidden_BLD
    return (hidden**2 * jnp.arange(16.0)).sum(), hidden

  with jax.set_mesh(mesh):
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(x, weights)


@pytest.fixture(scope='module')
def plain():
  return run()


@pytest.mark.parametrize(
  'changes',
  [
    {'remat': 'dots'},
    {'remat': 'attention'},
    {'remat': 'full'},
    {'remat': 'offload'},
    {'unroll': 2},
  ],
  ids=str,
)
def test_remat_and_unrolling_change_no_result(plain, changes):
  leaves = zip(jax.tree.leaves(run(**changes)), jax.tree.leaves(plain), strict=True)
  for actual, expected in leaves:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_layers_have_weights_of_their_own():
  blocks = Decoder(part('model.decoder', **SIZES), rngs=nnx.Rngs(0)).blocks
  up = blocks.moe.up[...]
  assert up.shape == (2, 4, 16, 8)
  assert not jnp.allclose(up[0], up[1])
  q = blocks.attention.q.w[...]
  assert not jnp.allclose(q[0], q[1])


@pytest.mark.parametrize(
  'wrong, message',
  [
    ({'kv_heads': 3}, 'heads=2 is not a multiple of kv_heads=3'),
    ({'top_k': 5}, 'top_k=5 exceeds experts=4'),
    ({'remat': 'some'}, 'some'),
  ],
  ids=str,
)
def test_impossible_sizes_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    part('model.decoder', **SIZES | wrong)


def test_remat_is_parsed_from_its_name():
  assert part('model.decoder', remat='full').remat is Remat.FULL


@pytest.mark.parametrize('routing', ['token', 'modality'])
def test_prefill_without_the_cache_equals_prefill_through_it(routing):
  """The states of valid positions and the caches agree; padding is not written."""
  config = part('model.decoder', **SIZES, routing=routing)
  mesh = make_mesh({})
  decoder = Decoder(config, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (2, 8, 16))
  valid = jnp.asarray([[True] * 7 + [False], [True] * 2 + [False] * 6])
  cache_size = 11
  slot = jnp.where(valid, jnp.arange(8), cache_size)  # that of padding does not exist
  position = jnp.broadcast_to(jnp.arange(8.0)[None, :, None], (2, 8, 3))

  modality = valid.astype(jnp.int32)

  def extend(reach):
    bias = jnp.zeros((2, 4))
    cache = decoder.init_cache(2, cache_size)
    return decoder.extend(x, slot, modality, position, bias, mesh, cache, reach)

  with jax.set_mesh(mesh):
    direct = extend(packed_rows(modality))
    through_cache = extend(cached(slot, cache_size))
  np.testing.assert_allclose(
    direct.hidden_BLD[valid], through_cache.hidden_BLD[valid], rtol=1e-5, atol=1e-6
  )
  for actual, expected in zip(direct.cache, through_cache.cache, strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected[:, 0, :7]).min() > 0
    assert not expected[:, 1, 2:].any()
