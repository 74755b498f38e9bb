"""The train step on eight devices equals the step on one: losses, gradients, moments and routing."""

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest
from samples import (
  BUDGET,
  laid,
  make_kit,
  mostly_long,
  omni_optimizer,
  packed,
  rows,
  tiny_model,
)

from omni_jax.sharding import name_of

AXES_ALONE = [
  dict(data=8),
  dict(fsdp=8),
  dict(expert=8),
  dict(tensor=8),
  dict(context=8),
]
TOGETHER = [
  dict(data=2, fsdp=2, expert=2),
  dict(data=2, tensor=2, context=2),
  dict(fsdp=2, expert=2, context=2),
  dict(expert=2, tensor=2, context=2),
  dict(expert=4, tensor=2),
  dict(tensor=2, context=4),
]
CONFIG = tiny_model(experts=8)
STEPS = 2


@pytest.fixture(scope='module')
def eight_rows():
  items = [item for seed in range(5) for item in laid(CONFIG, seed)][:22]
  batch = packed(items, CONFIG.hosts(), rows(BUDGET, 8))
  assert (batch.segment_BL.max(axis=1) > 0).all(), 'an empty row would hide a mistake'
  return batch


def trained(tx, batch, **sizes):
  """State and metrics after two updates, on a mesh of these sizes."""
  kit = make_kit(CONFIG, tx, **sizes)
  state, metrics = kit.state, []
  for _ in range(STEPS):
    state, figures = kit.step(state, batch)
    metrics.append(jax.device_get(figures))
  return state, metrics


def descent():
  """Plain gradients times a rate, and their sum: what is updated shows what the gradients are, unlike with Adam."""
  return optax.sgd(0.05, momentum=0.9)


@pytest.fixture(scope='module')
def one_device(eight_rows):
  return trained(descent(), eight_rows)


@pytest.mark.parametrize(
  'sizes', mostly_long(AXES_ALONE + TOGETHER, 0, 1, 2, 3, 4, 5, 8), ids=str
)
def test_eight_devices_equal_one(one_device, eight_rows, sizes):
  """Every number, next to the largest of its kind: weights, and momenta, which are sums of gradients.

  The same numbers are added up in fp32, in another order. Seen over all these meshes: 1.5e-7 for the figures and 1.0e-6
  of the largest for the leaves (2^-24 is 6e-8). Ten times that is for other processors; what is missing or counted
  twice on one device changes its leaf by an eighth.
  """
  state, metrics = trained(descent(), eight_rows, **sizes)
  wanted, wanted_metrics = one_device
  for step in range(STEPS):
    for name, value in metrics[step].items():
      np.testing.assert_allclose(
        value,
        wanted_metrics[step][name],
        rtol=2e-6,
        atol=2e-6,
        err_msg=f'{name}, step {step}',
      )
  leaves = jax.tree_util.tree_leaves_with_path(wanted)
  for (path, theirs), ours in zip(leaves, jax.tree.leaves(state), strict=True):
    np.testing.assert_allclose(
      ours,
      theirs,
      rtol=0,
      atol=1e-5 * float(np.abs(theirs).max()),
      err_msg=name_of(path),
    )


@pytest.mark.parametrize(
  'sizes, place',
  [
    (dict(data=2, fsdp=2, expert=2), P(None, 'expert', 'fsdp', None)),
    (dict(expert=8), P(None, 'expert', None, None)),
    (dict(data=8), P(None, None, None, None)),
    (dict(fsdp=4, tensor=2), P(None, None, 'fsdp', 'tensor')),
  ],
  ids=str,
)
def test_weights_and_moments_lie_where_the_table_says(sizes, place):
  kit = make_kit(CONFIG, omni_optimizer(CONFIG, 10), **sizes)
  up = kit.state.params['decoder']['blocks']['moe']['up']
  axes = lambda spec: tuple(
    axis if axis and kit.mesh.shape[axis] > 1 else None
    for axis in (*spec, None, None, None, None)[:4]
  )
  assert axes(up.sharding.spec) == axes(place)
  assert (
    up.addressable_shards[0].data.size
    * np.prod([kit.mesh.shape[a] for a in axes(place) if a])
    == up.size
  )
  moments = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(kit.state.opt_state)
    if name_of(path).endswith('moe.up')
  ]
  assert len(moments) == 2 and all(moment.sharding == up.sharding for moment in moments)
  whole = [
    kit.state.step,
    kit.state.rng,
    kit.state.buffers['router_bias'],
    *jax.tree.leaves(kit.state.buffers['frozen']),
  ]
  assert all(x.sharding.is_fully_replicated for x in whole)


def test_the_step_keeps_the_placement(eight_rows):
  kit = make_kit(CONFIG, descent(), data=2, fsdp=2, expert=2)
  after, _ = kit.step(kit.state, eight_rows)
  before = [x.sharding for x in jax.tree.leaves(kit.state)]
  assert [x.sharding for x in jax.tree.leaves(after)] == before
