"""Experts: every fast path equals the dense reference, gradients included, on every mesh; padding is never routed."""

from functools import partial

from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.nn.moe import assign_slots, MoE, moe_blocks, moe_expert_parallel, moe_reference
from omni_jax.nn.moe_router import route
from omni_jax.sharding import make_mesh

pytestmark = pytest.mark.usefixtures('strict_ranks')
ROWS, LENGTH, WIDTH, HIDDEN, EXPERTS = 8, 6, 16, 8, 8
TOKENS = ROWS * LENGTH


def layer(seed=0, favoured=0.0):
  """Tokens, weights and a routing with some padding; `favoured` draws all tokens to the first expert."""
  keys = jax.random.split(jax.random.key(seed), 4)
  x = jax.random.normal(keys[0], (TOKENS, WIDTH))
  up = jax.random.normal(keys[1], (EXPERTS, WIDTH, 2 * HIDDEN)) / WIDTH**0.5
  down = jax.random.normal(keys[2], (EXPERTS, HIDDEN, WIDTH)) / HIDDEN**0.5
  logits = jax.random.normal(keys[3], (TOKENS, EXPERTS)) + favoured * jnp.eye(EXPERTS)[:1]
  routing = route(logits, jnp.zeros(EXPERTS), jnp.arange(TOKENS) % 7 > 0, top_k=2)
  return x, up, down, routing.weight_TK, routing.expert_TK


def with_gradients(experts):
  """Output and the gradients of a scalar of it, with respect to tokens, both weights and the router's weights."""
  def scalar(x, up, down, weight, expert):
    y = experts(x, up, down, expert, weight)
    return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum(), y
  return jax.jit(jax.value_and_grad(scalar, argnums=(0, 1, 2, 3), has_aux=True))


def assert_equal(got, wanted):
  (_, y), gradients = got
  (_, y_wanted), gradients_wanted = wanted
  np.testing.assert_allclose(y.reshape(y_wanted.shape), y_wanted, rtol=2e-5, atol=2e-5)
  for name, ours, theirs in zip(('x', 'up', 'down', 'weight'), gradients, gradients_wanted, strict=True):
    np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize('block', [1, 4, 64])
@pytest.mark.parametrize('favoured', [0.0, 50.0], ids=['spread', 'one_expert'])
def test_blocks_equal_reference(block, favoured):
  inputs = layer(favoured=favoured)
  assert_equal(with_gradients(partial(moe_blocks, block=block))(*inputs), with_gradients(moe_reference)(*inputs))


@pytest.mark.parametrize('sizes', [{}, {'expert': 8}, {'data': 8}, {'data': 2, 'expert': 4},
                                   {'data': 2, 'fsdp': 2, 'expert': 2}, {'data': 2, 'expert': 2, 'tensor': 2}], ids=str)
def test_expert_parallel_equals_reference(sizes):
  x, up, down, weight, expert = layer(favoured=1.0)
  rows = lambda a: a.reshape(ROWS, LENGTH, -1)
  mesh = make_mesh(sizes)
  with jax.set_mesh(mesh):
    got = with_gradients(partial(moe_expert_parallel, block=4, mesh=mesh))(rows(x), up, down, rows(weight), rows(expert))
  assert_equal(got, with_gradients(moe_reference)(x, up, down, weight, expert))


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(-2, 6), min_size=2, max_size=2), min_size=12, max_size=12), st.sampled_from([1, 3, 8]))
def test_every_choice_has_one_slot_of_its_expert(chosen, block):
  chosen, experts = np.array(chosen), 4
  slots = jax.tree.map(np.asarray, jax.jit(assign_slots, static_argnums=(1, 2))(chosen, experts, block))
  here = (chosen >= 0) & (chosen < experts)
  assert len(set(slots.slot_TK[here])) == here.sum()
  assert (slots.slot_TK[~here] == len(slots.token_Z)).all()
  token, _ = np.nonzero(here)
  np.testing.assert_array_equal(slots.token_Z[slots.slot_TK[here]], token)
  np.testing.assert_array_equal(slots.expert_N[slots.slot_TK[here] // block], chosen[here])
  assert (slots.token_Z < len(chosen)).sum() == here.sum()


@pytest.mark.parametrize('shared', [0, 8])
def test_padding_passes_no_routed_expert(shared):
  moe, mesh = MoE(WIDTH, HIDDEN, EXPERTS, 2, shared, 4, rngs=nnx.Rngs(0)), make_mesh({})
  x = jax.random.normal(jax.random.key(0), (2, LENGTH, WIDTH))
  modality = jnp.asarray([[1, 2, 3, 0, 0, 0], [1, 1, 0, 0, 0, 0]])
  with jax.set_mesh(mesh):
    run = nnx.jit(lambda moe, x: moe(x, modality, jnp.zeros(EXPERTS), mesh))
    y, stats = run(moe, x)
    _, spoiled = run(moe, jnp.where(modality[..., None] > 0, x, 100.0))
  routed = y - moe.shared(x) if shared else y
  np.testing.assert_allclose(routed[modality == 0], 0, atol=1e-6)
  assert (jnp.abs(routed[modality > 0]).max(axis=-1) > 1e-3).all()
  assert not stats.load_ME[0].any() and stats.load_ME.sum() == 2 * 5
  for clean, dirty in zip(stats, spoiled, strict=True):
    np.testing.assert_allclose(clean, dirty, rtol=1e-6)
