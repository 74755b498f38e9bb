"""The train step on eight devices equals the step on one device."""

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest
from samples import (
  BUDGET,
  laid_out_examples,
  make_kit,
  omni_optimizer,
  packed_batch,
  tiny_model,
  with_rows,
)

from omni_jax.sharding import leaf_name

AXES_ALONE = [  # the meshes of several axes below have all of them
  pytest.param(dict(data=8), marks=pytest.mark.long),
  dict(fsdp=8),
  dict(expert=8),
  pytest.param(dict(tensor=8), marks=pytest.mark.long),
  pytest.param(dict(context=8), marks=pytest.mark.long),
]
AXES_TOGETHER = [
  dict(data=2, fsdp=2, expert=2),
  pytest.param(dict(data=2, tensor=2, context=2), marks=pytest.mark.long),
  pytest.param(dict(fsdp=2, expert=2, context=2), marks=pytest.mark.long),
  dict(expert=2, tensor=2, context=2),
  pytest.param(dict(expert=4, tensor=2), marks=pytest.mark.long),
  pytest.param(dict(tensor=2, context=4), marks=pytest.mark.long),
]
CONFIG = tiny_model(experts=8)
STEPS = 2


@pytest.fixture(scope='module')
def eight_rows():
  """Returns a batch of eight rows, none of them empty."""
  items = []
  for seed in range(5):
    items.extend(laid_out_examples(CONFIG, seed))
  batch = packed_batch(items[:22], CONFIG.hosts(), with_rows(BUDGET, 8))
  assert (batch.segment_BL.max(axis=1) > 0).all(), 'an empty row would hide a mistake'
  return batch


def train(tx, batch, **sizes):
  """Returns the state after STEPS updates on a mesh, and the metrics of each update."""
  kit = make_kit(CONFIG, tx, **sizes)
  state = kit.state
  metrics = []
  for _ in range(STEPS):
    state, step_metrics = kit.step(state, batch)
    metrics.append(jax.device_get(step_metrics))
  return state, metrics


def momentum_sgd():
  """Returns plain gradient descent with momentum.

  Unlike Adam's, its updates scale with the gradients, so every error of a gradient shows.
  """
  return optax.sgd(0.05, momentum=0.9)


@pytest.fixture(scope='module')
def one_device(eight_rows):
  """Returns the state and the metrics of the same updates on one device."""
  return train(momentum_sgd(), eight_rows)


@pytest.mark.parametrize('sizes', AXES_ALONE + AXES_TOGETHER, ids=str)
def test_eight_devices_equal_one(one_device, eight_rows, sizes):
  """Compares all metrics, weights and momenta, which are sums of gradients.

  The leaves are compared relative to their largest number. The same numbers are added
  in fp32 but in another order. The largest differences seen over all these meshes are
  1.5e-7 for the metrics and 1.0e-6 of the largest number for the leaves (fp32 rounds to
  2^-24 = 6e-8). The tolerances are about ten times as large, for other processors.
  Something that is missing or counted twice on one device changes its leaf by an eighth.
  """
  state, metrics = train(momentum_sgd(), eight_rows, **sizes)
  expected_state, expected_metrics = one_device
  for step in range(STEPS):
    for name, value in metrics[step].items():
      expected = expected_metrics[step][name]
      message = f'{name}, step {step}'
      np.testing.assert_allclose(value, expected, rtol=2e-6, atol=2e-6, err_msg=message)
  expected_leaves = jax.tree_util.tree_leaves_with_path(expected_state)
  leaves = jax.tree.leaves(state)
  for (path, expected), leaf in zip(expected_leaves, leaves, strict=True):
    tolerance = 1e-5 * float(np.abs(expected).max())
    np.testing.assert_allclose(
      leaf, expected, rtol=0, atol=tolerance, err_msg=leaf_name(path)
    )


@pytest.mark.parametrize(
  'sizes, expected_spec',
  [
    (dict(data=2, fsdp=2, expert=2), P(None, 'expert', 'fsdp', None)),
    (dict(expert=8), P(None, 'expert', None, None)),
    (dict(data=8), P(None, None, None, None)),
    (dict(fsdp=4, tensor=2), P(None, None, 'fsdp', 'tensor')),
  ],
  ids=str,
)
def test_weights_and_moments_are_sharded_by_RULES(sizes, expected_spec):
  kit = make_kit(CONFIG, omni_optimizer(CONFIG, 10), **sizes)
  mesh_shape = kit.mesh.shape
  up = kit.state.params['decoder']['blocks']['moe']['up']
  expected_axes = used_axes(expected_spec, mesh_shape)
  assert used_axes(up.sharding.spec, mesh_shape) == expected_axes
  shards = 1
  for axis in expected_axes:
    if axis:
      shards *= mesh_shape[axis]
  assert up.addressable_shards[0].data.size * shards == up.size
  moments = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(kit.state.opt_state):
    if leaf_name(path).endswith('moe.up'):
      moments.append(leaf)
  assert len(moments) == 2
  for moment in moments:
    assert moment.sharding == up.sharding
  replicated = [
    kit.state.step,
    kit.state.rng,
    kit.state.buffers['router_bias'],
    *jax.tree.leaves(kit.state.buffers['frozen']),
  ]
  assert all(leaf.sharding.is_fully_replicated for leaf in replicated)


def used_axes(spec, mesh_shape):
  """Returns the mesh axes of a 4-D spec; None for one that splits nothing."""
  padded = (*spec, None, None, None, None)[:4]
  axes = []
  for axis in padded:
    is_used = axis and mesh_shape[axis] > 1
    axes.append(axis if is_used else None)
  return axes


def test_the_step_keeps_the_shardings(eight_rows):
  kit = make_kit(CONFIG, momentum_sgd(), data=2, fsdp=2, expert=2)
  after, _ = kit.step(kit.state, eight_rows)
  shardings_before = [leaf.sharding for leaf in jax.tree.leaves(kit.state)]
  shardings_after = [leaf.sharding for leaf in jax.tree.leaves(after)]
  assert shardings_after == shardings_before
