"""Experts: every fast path equals the dense reference, gradients included, on every mesh; padding is never routed."""

from functools import partial

from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import mostly_long

from omni_jax.nn import expert_parallel
from omni_jax.nn.expert_parallel import Dispatch, Exchange, moe_expert_parallel
from omni_jax.nn.experts import Experts, moe_blocks, moe_megablox, moe_reference
from omni_jax.nn.moe import MoE, MoEConfig
from omni_jax.nn.moe_router import route
from omni_jax.nn.slots import (
  assign_blocks,
  assign_equal,
  assign_sorted,
  combine,
  dispatch,
  dispatch_choices,
)
from omni_jax.sharding import make_mesh

pytestmark = pytest.mark.usefixtures('strict_ranks')
ROWS, LENGTH, WIDTH, HIDDEN, EXPERTS = 8, 6, 16, 8, 8
TOKENS = ROWS * LENGTH
GATHER, EXACT = Dispatch(block=4), Dispatch(Exchange.ALL_TO_ALL, capacity=0, block=4)
MESHES = [
  {'expert': 8},
  {'data': 8},
  {'fsdp': 8},
  {'tensor': 8},
  {'data': 4, 'context': 2},
  {'data': 2, 'expert': 4},
  {'data': 2, 'fsdp': 2, 'expert': 2},
  {'data': 2, 'expert': 2, 'tensor': 2},
  {'fsdp': 2, 'expert': 2, 'context': 2},
  {'expert': 4, 'tensor': 2},
]
CASES = mostly_long(
  [*((sizes, 1.0) for sizes in MESHES), ({'data': 2, 'expert': 4}, 50.0)],
  0,
  2,
  6,
  7,
  8,
  10,
)


def layer(seed=0, favoured=0.0):
  """Tokens, weights and a routing with some padding; `favoured` draws all tokens to the first expert."""
  keys = jax.random.split(jax.random.key(seed), 5)
  x = jax.random.normal(keys[0], (TOKENS, WIDTH))
  weights = Experts(
    jax.random.normal(keys[1], (EXPERTS, WIDTH, HIDDEN)) / WIDTH**0.5,
    jax.random.normal(keys[4], (EXPERTS, WIDTH, HIDDEN)) / WIDTH**0.5,
    jax.random.normal(keys[2], (EXPERTS, HIDDEN, WIDTH)) / HIDDEN**0.5,
  )
  logits = (
    jax.random.normal(keys[3], (TOKENS, EXPERTS)) + favoured * jnp.eye(EXPERTS)[:1]
  )
  routing = route(logits, jnp.zeros(EXPERTS), jnp.arange(TOKENS) % 7 > 0, top_k=2)
  return x, weights, routing.weight_TK, routing.expert_TK


def with_gradients(experts):
  """Output and the gradients of a scalar of it, with respect to tokens, weights and the router's weights."""

  def scalar(x, weights, weight, expert):
    y = experts(x, weights, expert, weight)
    return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum(), y

  return jax.jit(jax.value_and_grad(scalar, argnums=(0, 1, 2), has_aux=True))


def assert_equal(got, wanted):
  (_, y), gradients = got
  (_, y_wanted), gradients_wanted = wanted
  np.testing.assert_allclose(y.reshape(y_wanted.shape), y_wanted, rtol=2e-5, atol=2e-5)
  names = ('x', *Experts._fields, 'weight')
  for name, ours, theirs in zip(
    names, jax.tree.leaves(gradients), jax.tree.leaves(gradients_wanted), strict=True
  ):
    np.testing.assert_allclose(
      ours.reshape(theirs.shape), theirs, rtol=2e-5, atol=2e-5, err_msg=name
    )


@pytest.mark.parametrize('block', [1, 4, 64])
@pytest.mark.parametrize('favoured', [0.0, 50.0], ids=['spread', 'one_expert'])
def test_blocks_equal_reference(block, favoured):
  inputs = layer(favoured=favoured)
  assert_equal(
    with_gradients(partial(moe_blocks, block=block))(*inputs),
    with_gradients(moe_reference)(*inputs),
  )


@pytest.mark.parametrize('favoured', [0.0, 50.0], ids=['spread', 'one_expert'])
def test_the_kernel_for_tpu_equals_reference(favoured):
  """In Pallas' interpreter, which fills what the kernel does not write with NaN."""
  inputs = layer(favoured=favoured)
  assert_equal(
    with_gradients(partial(moe_megablox, interpret=True))(*inputs),
    with_gradients(moe_reference)(*inputs),
  )


@pytest.mark.parametrize('how', [GATHER, EXACT], ids=lambda how: str(how.exchange))
@pytest.mark.parametrize('sizes, favoured', CASES, ids=str)
def test_expert_parallel_equals_reference(sizes, favoured, how):
  x, *rest = layer(favoured=favoured)
  got, dropped = spread_out(sizes, how, x, *rest)
  assert_equal(got, with_gradients(moe_reference)(x, *rest))
  assert not dropped


def spread_out(sizes, how, x, weights, weight, expert):
  """Output, gradients and dropped share on a mesh."""
  rows = lambda a: a.reshape(ROWS, LENGTH, -1)
  shares = []

  def experts(x, *rest):
    y, dropped = moe_expert_parallel(x, None, *rest, how=how, mesh=mesh)
    jax.debug.callback(shares.append, dropped)
    return y

  with jax.set_mesh(mesh := make_mesh(sizes)):
    got = with_gradients(experts)(rows(x), weights, rows(weight), rows(expert))
    jax.effects_barrier()
  return got, shares[0]


@pytest.mark.parametrize('how', [GATHER, EXACT], ids=lambda how: str(how.exchange))
@pytest.mark.parametrize('sizes', [{}, {'data': 2, 'expert': 2, 'tensor': 2}], ids=str)
def test_the_shared_expert_is_added_once_with_its_gradient(sizes, how):
  """Also where devices along `tensor` sum their parts of the routed experts."""
  x, weights, weight, expert = layer()
  x, weight, expert = (a.reshape(ROWS, LENGTH, -1) for a in (x, weight, expert))
  shared = jax.random.normal(jax.random.key(9), x.shape)
  with jax.set_mesh(
    mesh := make_mesh(sizes or {'data': 1}, jax.devices()[: 8 if sizes else 1])
  ):
    mixed = lambda shared: (
      moe_expert_parallel(x, shared, weights, expert, weight, how=how, mesh=mesh).y_BLD
    )
    both, routed = jax.jit(mixed)(shared), jax.jit(lambda: mixed(None))()
    gradient = jax.jit(jax.grad(lambda shared: (mixed(shared) * shared).sum()))(shared)
  np.testing.assert_allclose(both, routed + shared, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(gradient, both + shared, rtol=1e-5, atol=1e-5)


def by_gathering(
  operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name
):
  """What `jax.lax.ragged_all_to_all` does, which XLA:CPU has not got: written from its documentation."""
  everyone = partial(jax.lax.all_gather, axis_name=axis_name)
  rows_MZ, start_MN, size_MN, place_MN = map(
    everyone, (operand, input_offsets, send_sizes, output_offsets)
  )
  me, place = jax.lax.axis_index(axis_name), jnp.arange(len(output))
  for m in range(len(rows_MZ)):
    inside = place - place_MN[m, me]
    here = (inside >= 0) & (inside < size_MN[m, me])
    picked = rows_MZ[m][jnp.clip(inside + start_MN[m, me], 0, len(operand) - 1)]
    output = jnp.where(here[:, None], picked, output)
  wrong = jnp.any(
    size_MN[:, me] != recv_sizes
  )  # the receiver says what the senders say
  return jnp.where(wrong, jnp.full_like(output, -1), output)


@pytest.mark.parametrize(
  'sizes', [{'expert': 8}, {'data': 2, 'fsdp': 2, 'expert': 2}], ids=str
)
def test_the_route_of_accelerators_equals_reference(sizes, monkeypatch):
  monkeypatch.setattr(jax.lax, 'ragged_all_to_all', by_gathering)
  monkeypatch.setattr(expert_parallel, '_equal_route', expert_parallel._ragged_route)
  x, *rest = layer(favoured=1.0)
  got, dropped = spread_out(sizes, EXACT, x, *rest)
  assert_equal(got, with_gradients(moe_reference)(x, *rest))
  assert not dropped


@pytest.mark.parametrize('capacity', [0.25, 1.0])
def test_the_room_of_accelerators_is_shared_by_all_senders_in_their_order(
  capacity, monkeypatch
):
  monkeypatch.setattr(jax.lax, 'ragged_all_to_all', by_gathering)
  monkeypatch.setattr(expert_parallel, '_equal_route', expert_parallel._ragged_route)
  ways, (x, weights, weight, expert) = 4, layer(favoured=2.0)
  own = TOKENS // 8  # tokens of a device: data 2 × expert 4
  room = -(-int(own * 2 * capacity) // ways) * ways
  kept, taken = np.ones(expert.shape, bool), {}
  for t, k in np.ndindex(*expert.shape):
    if expert[t, k] < EXPERTS:
      receiver = (t // (own * ways), int(expert[t, k]) // (EXPERTS // ways))
      taken[receiver] = taken.get(receiver, 0) + 1
      kept[t, k] = taken[receiver] <= room
  got, dropped = spread_out(
    {'data': 2, 'expert': ways},
    Dispatch(Exchange.ALL_TO_ALL, capacity, 4),
    x,
    weights,
    weight,
    expert,
  )
  np.testing.assert_allclose(
    dropped, (~kept).sum() / (expert < EXPERTS).sum(), rtol=1e-6
  )
  assert dropped > 0
  reference = with_gradients(
    lambda x, weights, expert, weight: moe_reference(x, weights, expert, weight * kept)
  )
  assert_equal(got, reference(x, weights, weight, expert))


@pytest.mark.parametrize('capacity', [0.5, 1.0, 1.5])
def test_what_finds_no_place_is_dropped_and_reported(capacity):
  """Every sender has the same room at every receiver; of a row the choices that come last are left out."""
  ways, (x, weights, weight, expert) = 4, layer(favoured=2.0)
  choices = TOKENS // 8 * 2  # of a device: data 2 × expert 4
  room = -(-int(choices * capacity) // ways)
  kept, taken = np.ones(expert.shape, bool), {}
  for t, k in np.ndindex(*expert.shape):
    pair = (t // (TOKENS // 8), int(expert[t, k]) // (EXPERTS // ways))
    if expert[t, k] < EXPERTS:
      taken[pair] = taken.get(pair, 0) + 1
      kept[t, k] = taken[pair] <= room
  got, dropped = spread_out(
    {'data': 2, 'expert': ways},
    Dispatch(Exchange.ALL_TO_ALL, capacity, 4),
    x,
    weights,
    weight,
    expert,
  )
  np.testing.assert_allclose(
    dropped, (~kept).sum() / (expert < EXPERTS).sum(), rtol=1e-6
  )
  assert (dropped > 0) or capacity == 1.5
  reference = with_gradients(
    lambda x, weights, expert, weight: moe_reference(x, weights, expert, weight * kept)
  )
  assert_equal(got, reference(x, weights, weight, expert))


CHOSEN = st.lists(
  st.lists(st.integers(-2, 6), min_size=2, max_size=2), min_size=12, max_size=12
)
GROUPS = 4


def slots_of(kind, chosen, size):
  if kind == 'blocks':
    slots, owner = assign_blocks(chosen, GROUPS, size)
    return slots, jnp.repeat(owner, size)
  if kind == 'equal':
    return assign_equal(chosen, GROUPS, size), jnp.repeat(jnp.arange(GROUPS), size)
  slots, sizes = assign_sorted(chosen, GROUPS)
  return slots, jnp.repeat(
    jnp.arange(GROUPS + 1),
    jnp.append(sizes, chosen.size - sizes.sum()),
    total_repeat_length=chosen.size,
  )


@settings(max_examples=30)
@given(
  CHOSEN, st.sampled_from([1, 3, 8]), st.sampled_from(['blocks', 'equal', 'sorted'])
)
def test_every_choice_has_one_slot_of_its_group(chosen, size, kind):
  """Or none, where it is of no group or its group has no more slots."""
  chosen = np.array(chosen)
  slots, owner = jax.tree.map(
    np.asarray, jax.jit(slots_of, static_argnums=(0, 2))(kind, chosen, size)
  )
  here = (chosen >= 0) & (chosen < GROUPS)
  if kind == 'equal':
    rank = np.array(
      [(chosen.flat[:i] == group).sum() for i, group in enumerate(chosen.flat)]
    ).reshape(chosen.shape)
    here &= rank < size
  assert len(set(slots.slot_TK[here])) == here.sum()
  assert (slots.slot_TK[~here] == len(slots.choice_Z)).all()
  np.testing.assert_array_equal(
    slots.choice_Z[slots.slot_TK[here]], np.flatnonzero(here)
  )
  np.testing.assert_array_equal(owner[slots.slot_TK[here]], chosen[here])
  assert (slots.choice_Z < chosen.size).sum() == here.sum()


@pytest.mark.parametrize('kind', ['blocks', 'equal', 'sorted'])
def test_there_and_back_has_the_gradients_of_plain_gathers(kind):
  """The hand-written gradients against those that jax derives of the same sums."""
  x, _, weight, expert = layer()
  slots, _ = slots_of(kind, jnp.where(expert < GROUPS, expert, GROUPS), 8)

  def plain(x, weight):
    x_Z = jnp.concatenate([x, jnp.zeros((1, WIDTH))])[slots.choice_Z // 2]
    y_Z = jnp.concatenate([jnp.sin(x_Z), jnp.zeros((1, WIDTH))])
    return (jnp.einsum('tkd,tk->td', y_Z[slots.slot_TK], weight) ** 2).sum()

  def ours(x, weight):
    return (
      combine(
        jnp.sin(dispatch(x, slots)) * dispatch_choices(weight, slots)[:, None], slots
      )
      ** 2
    ).sum()

  for got, wanted in zip(
    *(jax.value_and_grad(f, argnums=(0, 1))(x, weight) for f in (ours, plain)),
    strict=True,
  ):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, wanted
    )


@pytest.mark.parametrize('shared', [0, 8])
def test_padding_passes_no_routed_expert(shared):
  config = MoEConfig(
    width=WIDTH, hidden=HIDDEN, experts=EXPERTS, top_k=2, shared=shared, how=GATHER
  )
  moe, mesh = MoE(config, rngs=nnx.Rngs(0)), make_mesh({})
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
