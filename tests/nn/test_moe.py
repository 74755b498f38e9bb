"""Every fast path of the experts equals the dense reference; padding is never routed.

The gradients are compared as well, on every mesh.
"""

import collections
import dataclasses
from functools import partial

from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import pytest
from samples import mark_long_except

from omni_jax.nn import expert_parallel
from omni_jax.nn.expert_loop import moe_loop
from omni_jax.nn.expert_parallel import Dispatch, Exchange, moe_expert_parallel
from omni_jax.nn.experts import (
  block_of_share,
  Experts,
  GroupedMatmul,
  moe_blocks,
  moe_megablox,
  moe_reference,
)
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

pytestmark = pytest.mark.usefixtures('no_rank_promotion')
ROWS = 8
LENGTH = 6
WIDTH = 16
HIDDEN = 8
EXPERTS = 8
TOP_K = 2
TOKENS = ROWS * LENGTH
FIRST_EXPERT = jax.nn.one_hot(0, EXPERTS)[None]  # one row, for all tokens
GATHER = Dispatch(Exchange.GATHER, capacity=2.0, block=4)
EXACT = Dispatch(Exchange.ALL_TO_ALL, capacity=0, block=4)
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
CASES = [(sizes, 1.0) for sizes in MESHES] + [({'data': 2, 'expert': 4}, 50.0)]
EVERY_EXCHANGE = pytest.mark.parametrize(
  'config', [GATHER, EXACT], ids=lambda config: str(config.exchange)
)


def layer_inputs(seed=0, favoured=0.0):
  """Returns tokens, weights of the experts, and a routing with some padding.

  Args:
    favoured: what is added to the logits of the first expert.
  """
  keys = jax.random.split(jax.random.key(seed), 5)
  x = jax.random.normal(keys[0], (TOKENS, WIDTH))
  weights = Experts(
    jax.random.normal(keys[1], (EXPERTS, WIDTH, HIDDEN)) / WIDTH**0.5,
    jax.random.normal(keys[4], (EXPERTS, WIDTH, HIDDEN)) / WIDTH**0.5,
    jax.random.normal(keys[2], (EXPERTS, HIDDEN, WIDTH)) / HIDDEN**0.5,
  )
  logits = jax.random.normal(keys[3], (TOKENS, EXPERTS))
  logits = logits + favoured * FIRST_EXPERT
  valid = jnp.arange(TOKENS) % 7 > 0
  routing = route(logits, jnp.zeros(EXPERTS), valid, top_k=TOP_K)
  return x, weights, routing.weight_TK, routing.expert_TK


def with_gradients(experts):
  """Returns a function that returns the output, and gradients of a weighted sum of it.

  The gradients are with respect to tokens, weights of the experts and weights of the
  choices.
  """

  def loss(x, weights, weight, expert):
    y = experts(x, weights, expert, weight)
    factors = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
    return (y * factors).sum(), y

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def assert_equal(result, expected):
  (_, y), gradients = result
  (_, expected_y), expected_gradients = expected
  arrays = [y, *jax.tree.leaves(gradients)]
  expected_arrays = [expected_y, *jax.tree.leaves(expected_gradients)]
  names = ('y', 'x', *Experts._fields, 'weight')
  for name, a, b in zip(names, arrays, expected_arrays, strict=True):
    np.testing.assert_allclose(
      a.reshape(b.shape), b, rtol=2e-5, atol=2e-5, err_msg=name
    )


@pytest.mark.parametrize('experts', [moe_blocks, moe_loop])
@pytest.mark.parametrize('block', [1, 4, 64])
@pytest.mark.parametrize('favoured', [0.0, 50.0], ids=['spread', 'one_expert'])
def test_blocks_equal_reference(experts, block, favoured):
  inputs = layer_inputs(favoured=favoured)
  result = with_gradients(partial(experts, block=block))(*inputs)
  assert_equal(result, with_gradients(moe_reference)(*inputs))


def test_the_loop_sums_gradients_of_weights_in_fp32():
  """With a block a token, bf16 sums would lose most of what is added last."""
  x, weights, weight, expert = layer_inputs(favoured=50.0)
  weights = jax.tree.map(lambda w: 1 + 1e-3 * w, weights)
  inputs = (1 + 1e-3 * x, weights, weight)
  in_bf16 = jax.tree.map(lambda x: x.astype(jnp.bfloat16), inputs)
  gradients = {}
  for block in (1, 64):
    apply = with_gradients(partial(moe_loop, block=block))
    gradients[block] = apply(*in_bf16, expert)[1][1]
  for one, many in zip(gradients[1], gradients[64], strict=True):
    np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (one, many)), 0.01)


@dataclasses.dataclass(frozen=True)
class Device:
  platform: str


@pytest.mark.parametrize(
  'platform, way',
  [
    ('tpu', GroupedMatmul.MEGABLOX),
    ('gpu', GroupedMatmul.BLOCKS),
    ('cpu', GroupedMatmul.LOOP),
  ],
)
def test_devices_determine_the_grouped_matmul(platform, way):
  mesh = Mesh(np.array([Device(platform)]), ('data',))
  assert GroupedMatmul.of(mesh) == way


def test_the_blocks_of_a_gpu_grow_with_the_share_of_an_expert():
  shares = [0, 1, 8, 64, 512, 1000, 8192, 100_000]
  assert [block_of_share(share) for share in shares] == [1, 1, 1, 8, 64, 64, 1024, 1024]


@pytest.mark.parametrize('favoured', [0.0, 50.0], ids=['spread', 'one_expert'])
def test_the_kernel_for_tpu_equals_reference(favoured):
  """Pallas' interpreter fills whatever the kernel does not write with NaN."""
  inputs = layer_inputs(favoured=favoured)
  result = with_gradients(partial(moe_megablox, interpret=True))(*inputs)
  assert_equal(result, with_gradients(moe_reference)(*inputs))


@EVERY_EXCHANGE
@pytest.mark.parametrize(
  'sizes, favoured', mark_long_except(CASES, 0, 2, 6, 7, 8, 10), ids=str
)
def test_expert_parallel_equals_reference(sizes, favoured, config):
  inputs = layer_inputs(favoured=favoured)
  result, dropped = run_on_mesh(sizes, config, *inputs)
  assert_equal(result, with_gradients(moe_reference)(*inputs))
  assert not dropped


def as_rows(array):
  """Returns values of tokens as rows of positions."""
  return array.reshape(ROWS, LENGTH, -1)


def run_on_mesh(sizes, config, x, weights, weight, expert):
  """Returns the output and gradients on a mesh, and the share of dropped choices."""
  shares = []

  def experts(x, *rest):
    y, dropped = moe_expert_parallel(x, None, *rest, config=config, mesh=mesh)
    jax.debug.callback(shares.append, dropped)
    return y

  mesh = make_mesh(sizes)
  with jax.set_mesh(mesh):
    result = with_gradients(experts)(
      as_rows(x), weights, as_rows(weight), as_rows(expert)
    )
    jax.effects_barrier()
  return result, shares[0]


@EVERY_EXCHANGE
@pytest.mark.parametrize('sizes', [{}, {'data': 2, 'expert': 2, 'tensor': 2}], ids=str)
def test_the_shared_expert_is_added_once_with_its_gradient(sizes, config):
  """This holds even if devices along `tensor` sum parts of the routed experts."""
  x, weights, weight, expert = layer_inputs()
  x = as_rows(x)
  shared = jax.random.normal(jax.random.key(9), x.shape)
  mesh = make_mesh(sizes or {'data': 1}, jax.devices()[: 8 if sizes else 1])

  def mixed(shared):
    y, _ = moe_expert_parallel(
      x, shared, weights, as_rows(expert), as_rows(weight), config=config, mesh=mesh
    )
    return y

  with jax.set_mesh(mesh):
    both = jax.jit(mixed)(shared)
    routed = jax.jit(lambda: mixed(None))()
    gradient = jax.jit(jax.grad(lambda shared: (mixed(shared) * shared).sum()))(shared)
  np.testing.assert_allclose(both, routed + shared, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(gradient, both + shared, rtol=1e-5, atol=1e-5)


def ragged_by_gathering(
  operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name
):
  """Does what `jax.lax.ragged_all_to_all` documents, since XLA:CPU does not have it."""
  gather = partial(jax.lax.all_gather, axis_name=axis_name)
  rows_MZ = gather(operand)
  start_MN = gather(input_offsets)
  size_MN = gather(send_sizes)
  place_MN = gather(output_offsets)
  me = jax.lax.axis_index(axis_name)
  place = jnp.arange(len(output))
  for m in range(len(rows_MZ)):
    inside = place - place_MN[m, me]
    is_from_m = (inside >= 0) & (inside < size_MN[m, me])
    picked = rows_MZ[m][jnp.clip(inside + start_MN[m, me], 0, len(operand) - 1)]
    output = jnp.where(is_from_m[:, None], picked, output)
  # The receiver has to expect what the senders send.
  wrong = jnp.any(size_MN[:, me] != recv_sizes)
  return jnp.where(wrong, jnp.full_like(output, -1), output)


@pytest.fixture
def ragged_route(monkeypatch):
  """Makes the CPU exchange choices as accelerators do."""
  monkeypatch.setattr(jax.lax, 'ragged_all_to_all', ragged_by_gathering)
  monkeypatch.setattr(expert_parallel, '_equal_route', expert_parallel._ragged_route)


@pytest.mark.parametrize(
  'sizes', [{'expert': 8}, {'data': 2, 'fsdp': 2, 'expert': 2}], ids=str
)
def test_the_route_of_accelerators_equals_reference(sizes, ragged_route):
  inputs = layer_inputs(favoured=1.0)
  result, dropped = run_on_mesh(sizes, EXACT, *inputs)
  assert_equal(result, with_gradients(moe_reference)(*inputs))
  assert not dropped


EXPERT_DEVICES = 4  # that share the experts, in a mesh of data 2 × expert 4
DEVICE_TOKENS = TOKENS // 8


def room_of(capacity):
  """Returns the number of choices of one sender that a receiver has room for."""
  return -(-int(DEVICE_TOKENS * TOP_K * capacity) // EXPERT_DEVICES)


def kept_choices(expert, room, sender_tokens):
  """Returns which choices find a place, by the slow reference.

  Groups of `sender_tokens` tokens have `room` places each at every receiver.
  """
  kept = np.ones(expert.shape, bool)
  taken = collections.Counter()
  for t, k in np.ndindex(*expert.shape):
    if expert[t, k] < EXPERTS:
      sender = t // sender_tokens
      receiver = int(expert[t, k]) // (EXPERTS // EXPERT_DEVICES)
      taken[sender, receiver] += 1
      kept[t, k] = taken[sender, receiver] <= room
  return kept


def assert_drops_all_but(kept, capacity, inputs):
  """Checks the result and the dropped share; returns that share."""
  config = Dispatch(Exchange.ALL_TO_ALL, capacity, block=4)
  sizes = {'data': 2, 'expert': EXPERT_DEVICES}
  result, dropped = run_on_mesh(sizes, config, *inputs)
  _, _, _, expert = inputs
  share = (~kept).sum() / (expert < EXPERTS).sum()
  np.testing.assert_allclose(dropped, share, rtol=1e-6)

  def reference(x, weights, expert, weight):
    return moe_reference(x, weights, expert, weight * kept)

  assert_equal(result, with_gradients(reference)(*inputs))
  return dropped


@pytest.mark.parametrize('capacity', [0.25, 1.0])
def test_the_room_of_accelerators_is_shared_by_all_senders_in_their_order(
  capacity, ragged_route
):
  inputs = layer_inputs(favoured=2.0)
  _, _, _, expert = inputs
  room = room_of(capacity) * EXPERT_DEVICES
  kept = kept_choices(expert, room, DEVICE_TOKENS * EXPERT_DEVICES)
  assert assert_drops_all_but(kept, capacity, inputs) > 0


@pytest.mark.parametrize('capacity', [0.5, 1.0, 1.5])
def test_choices_without_a_place_are_dropped_and_reported(capacity):
  """Every sender has the same room at every receiver; its last choices are dropped."""
  inputs = layer_inputs(favoured=2.0)
  _, _, _, expert = inputs
  kept = kept_choices(expert, room_of(capacity), DEVICE_TOKENS)
  dropped = assert_drops_all_but(kept, capacity, inputs)
  assert dropped > 0 or capacity == 1.5


GROUPS = 4
# The groups that twelve tokens choose, two each; -2, -1, 4, 5 and 6 are no groups.
CHOICES = st.lists(
  st.lists(st.integers(-2, 6), min_size=2, max_size=2), min_size=12, max_size=12
)


def slots_of(kind, chosen, size):
  """Returns the slots of choices, and the group of each slot."""
  if kind == 'blocks':
    slots, owner, _ = assign_blocks(chosen, GROUPS, size)
    return slots, jnp.repeat(owner, size)
  if kind == 'equal':
    return assign_equal(chosen, GROUPS, size), jnp.repeat(jnp.arange(GROUPS), size)
  slots, sizes = assign_sorted(chosen, GROUPS)
  sizes = jnp.append(sizes, chosen.size - sizes.sum())
  owner = jnp.repeat(jnp.arange(GROUPS + 1), sizes, total_repeat_length=chosen.size)
  return slots, owner


@settings(max_examples=30)
@given(
  CHOICES, st.sampled_from([1, 3, 8]), st.sampled_from(['blocks', 'equal', 'sorted'])
)
def test_every_choice_has_one_slot_of_its_group(chosen, size, kind):
  """It has none if it is of no group or its group has no slots left."""
  chosen = np.array(chosen)
  assigned = jax.jit(slots_of, static_argnums=(0, 2))(kind, chosen, size)
  slots, owner = jax.tree.map(np.asarray, assigned)
  has_slot = (chosen >= 0) & (chosen < GROUPS)
  if kind == 'equal':
    ranks = [(chosen.flat[:i] == group).sum() for i, group in enumerate(chosen.flat)]
    has_slot &= np.reshape(ranks, chosen.shape) < size
  used = slots.slot_TK[has_slot]
  assert len(set(used)) == has_slot.sum()
  assert (slots.slot_TK[~has_slot] == len(slots.choice_Z)).all()
  np.testing.assert_array_equal(slots.choice_Z[used], np.flatnonzero(has_slot))
  np.testing.assert_array_equal(owner[used], chosen[has_slot])
  assert (slots.choice_Z < chosen.size).sum() == has_slot.sum()


@pytest.mark.parametrize('kind', ['blocks', 'equal', 'sorted'])
def test_dispatch_and_combine_have_the_gradients_of_plain_gathers(kind):
  """The hand-written gradients equal those that jax derives for the same sums."""
  x, _, weight, expert = layer_inputs()
  slots, _ = slots_of(kind, jnp.where(expert < GROUPS, expert, GROUPS), 8)

  def plain(x, weight):
    x_Z = jnp.concatenate([x, jnp.zeros((1, WIDTH))])[slots.choice_Z // 2]
    y_Z = jnp.concatenate([jnp.sin(x_Z), jnp.zeros((1, WIDTH))])
    return (jnp.einsum('tkd,tk->td', y_Z[slots.slot_TK], weight) ** 2).sum()

  def with_slots(x, weight):
    weight_Z1 = dispatch_choices(weight, slots)[:, None]
    y_Z = jnp.sin(dispatch(x, slots)) * weight_Z1
    return (combine(y_Z, slots) ** 2).sum()

  actual = jax.value_and_grad(with_slots, argnums=(0, 1))(x, weight)
  expected = jax.value_and_grad(plain, argnums=(0, 1))(x, weight)
  assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  jax.tree.map(assert_close, actual, expected)


@pytest.mark.parametrize('shared', [0, 8])
def test_padding_visits_no_routed_expert(shared):
  config = MoEConfig(
    width=WIDTH,
    hidden=HIDDEN,
    experts=EXPERTS,
    top_k=TOP_K,
    shared=shared,
    dispatch=GATHER,
    modalities=4,
    routers=1,
  )
  moe = MoE(config, rngs=nnx.Rngs(0))
  mesh = make_mesh({})
  x = jax.random.normal(jax.random.key(0), (2, LENGTH, WIDTH))
  modality = jnp.asarray([[1, 2, 3, 0, 0, 0], [1, 1, 0, 0, 0, 0]])
  with jax.set_mesh(mesh):
    run = nnx.jit(lambda moe, x: moe(x, modality, jnp.zeros(EXPERTS), mesh))
    y, stats = run(moe, x)
    _, corrupted_stats = run(moe, jnp.where(modality[..., None] > 0, x, 100.0))
  routed = y - moe.shared(x) if shared else y
  np.testing.assert_allclose(routed[modality == 0], 0, atol=1e-6)
  assert (jnp.abs(routed[modality > 0]).max(axis=-1) > 1e-3).all()
  assert not stats.load_mE[0].any()
  assert stats.load_mE.sum() == TOP_K * (modality > 0).sum()
  for clean, corrupted in zip(stats, corrupted_stats, strict=True):
    np.testing.assert_allclose(clean, corrupted, rtol=1e-6)
