"""Tests the average of the weights, and frozen parameters, over steps and a restart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import frozen_values, LOSSES, omni_optimizer, part, tiny_model

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.objective import Pretraining
from omni_jax.sharding import make_mesh, named_leaves, param_specs, place
from omni_jax.train import state as states
from omni_jax.train.optim import frozen_mask
from omni_jax.train.step import make_step, Update, updated_average

FREEZE = ('decoder.*', 'heads.image.*', '*.table')


def test_the_average_equals_one_computed_by_hand():
  average = {'w': jnp.float32(1.0)}
  expected = 1.0
  for step, w in enumerate((2.0, -3.0, 5.0)):
    keep = min(0.15, (1 + step) / (10 + step))  # 0.1, then the decay itself
    average = updated_average(average, {'w': jnp.float32(w)}, jnp.int32(step), 0.15)
    expected = keep * expected + (1 - keep) * w
  assert float(average['w']) == pytest.approx(expected, rel=1e-6)
  constant = {'w': jnp.float32(0.1)}
  average = updated_average(constant, constant, jnp.int32(7), 0.999)
  assert average['w'] == jnp.float32(0.1), 'a constant weight has to keep its bits'


@pytest.fixture(scope='module')
def fresh_and_step(kit, batch):
  """Returns two functions: one returns a fresh state, the other makes a step.

  The state has an average and frozen parameters, is split over two devices, and is
  donated as in training.
  """
  mesh = make_mesh(dict(fsdp=2))
  changes = dict(kind='adamw', warmup=0, lr=0.01, weight_decay=0.5)
  optim = part('omni.optim', **changes)
  tx = omni_optimizer(tiny_model(), 100, optim, freeze=FREEZE)
  init = functools.partial(
    states.init_model_state, tiny_model(), tx, seed=0, average=True
  )
  values = frozen_values(kit.config)
  shapes = jax.eval_shape(init, values)
  shardings = states.shardings(shapes, param_specs(kit.model), mesh)
  objective = Pretraining(LOSSES, mesh, bias_step=1e-3)
  update = Update(ema=0.9, freeze=FREEZE, refresh=objective.refresh)
  step = make_step(objective, kit.model, tx, update)
  jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))

  def fresh():
    return jax.jit(init, out_shardings=shardings)(values)

  def run(state):
    with jax.set_mesh(mesh):
      return jitted(state, place(batch, mesh))

  return fresh, run


def weighted_mean(average, params, keep):
  """Returns the average with weight `keep`, plus the parameters with the rest."""
  return jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, params)


def shardings_of(tree):
  """Returns the shardings of the arrays of a tree."""
  return jax.tree.map(lambda x: x.sharding, tree)


def test_a_step_averages_the_new_weights_and_keeps_the_bits_of_frozen_ones(
  fresh_and_step, tmp_path
):
  fresh, run = fresh_and_step
  state = fresh()
  start = jax.device_get(state.params)
  expected = start
  assert shardings_of(state.params) == shardings_of(state.buffers['ema'])
  for t in range(3):
    state, metrics = run(state)
    keep = min(0.9, (1 + t) / (10 + t))
    expected = weighted_mean(expected, jax.device_get(state.params), keep)
    if t == 1:
      with Checkpoints(str(tmp_path), 'omni') as checkpoints:
        checkpoints.save(state, b'{}')
  average = jax.tree.leaves(state.buffers['ema'])
  for actual, leaf in zip(average, jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(actual, leaf, rtol=1e-5, atol=1e-6)

  is_frozen = named_leaves(frozen_mask(start, FREEZE))
  before = named_leaves(start)
  after = named_leaves(jax.device_get(state.params))
  assert is_frozen.keys() == before.keys() == after.keys()
  for name, keeps_bits in is_frozen.items():
    assert np.array_equal(before[name], after[name]) == keeps_bits, name
  assert metrics['grad_norm/decoder'] == 0 < metrics['grad_norm/heads.text']

  with Checkpoints(str(tmp_path), 'omni') as checkpoints:
    resumed, _ = checkpoints.restore(fresh())
  resumed, _ = run(resumed)
  leaves = zip(jax.tree.leaves(resumed), jax.tree.leaves(state), strict=True)
  for actual, leaf in leaves:
    np.testing.assert_array_equal(actual, leaf)


def size_of(tree):
  """Returns the number of elements of all arrays of a tree."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_no_memory_is_used_for_an_average_or_for_moments_of_frozen_parameters(kit):
  assert set(kit.state.buffers) == {'router_bias', 'frozen'}
  params = kit.state.params
  default = omni_optimizer(kit.config).init(params)
  nothing_frozen = omni_optimizer(kit.config, freeze=()).init(params)
  decoder_frozen = omni_optimizer(kit.config, freeze=('decoder.*',)).init(params)
  assert jax.tree.structure(nothing_frozen) == jax.tree.structure(default)
  difference = size_of(nothing_frozen) - size_of(decoder_frozen)
  assert difference == 2 * size_of(params['decoder'])
