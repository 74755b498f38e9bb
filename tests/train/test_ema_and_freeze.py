"""The average of the weights and frozen parameters, in a step and over a restart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import frozen_values, omni_optimizer, tiny_model

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.objective import LossConfig, Pretraining
from omni_jax.sharding import make_mesh, named_leaves, param_specs, place
from omni_jax.train import state as states
from omni_jax.train.optim import frozen, OptimConfig
from omni_jax.train.step import averaged, make_step, Update

FREEZE = ('decoder.*', 'heads.image.*', '*.table')


def test_the_average_equals_one_computed_by_hand():
  average = {'w': jnp.float32(1.0)}
  expected = 1.0
  for step, w in enumerate((2.0, -3.0, 5.0)):
    keep = min(0.15, (1 + step) / (10 + step))  # 0.1, then the decay itself
    average = averaged(average, {'w': jnp.float32(w)}, jnp.int32(step), 0.15)
    expected = keep * expected + (1 - keep) * w
  assert float(average['w']) == pytest.approx(expected, rel=1e-6)
  constant = {'w': jnp.float32(0.1)}
  held = averaged(constant, constant, jnp.int32(7), 0.999)
  assert held['w'] == jnp.float32(0.1), 'a constant weight has to keep its bits'


@pytest.fixture(scope='module')
def trained(kit, batch):
  """Functions for a fresh state and a step.

  With an average and frozen parts, on two devices, with donated states as in training.
  """
  mesh = make_mesh(dict(fsdp=2))
  optim = OptimConfig(warmup=0, lr=0.01, weight_decay=0.5)
  tx = omni_optimizer(tiny_model(), 100, optim, freeze=FREEZE)
  init = functools.partial(
    states.init_model_state, tiny_model(), tx, seed=0, average=True
  )
  values = frozen_values(kit.config)
  layout = states.shardings(jax.eval_shape(init, values), param_specs(kit.model), mesh)
  objective = Pretraining(LossConfig(), mesh)
  update = Update(ema=0.9, freeze=FREEZE, refresh=objective.refresh)
  step = make_step(objective, kit.model, tx, update)
  jitted = jax.jit(step, donate_argnums=0, out_shardings=(layout, None))

  def fresh():
    return jax.jit(init, out_shardings=layout)(values)

  def run(state):
    with jax.set_mesh(mesh):
      return jitted(state, place(batch, mesh))

  return fresh, run


def mixed(average, params, keep):
  return jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, params)


def layouts(tree):
  return jax.tree.map(lambda x: x.sharding, tree)


def test_a_step_averages_the_new_weights_and_keeps_the_bits_of_frozen_ones(
  trained, tmp_path
):
  fresh, run = trained
  state = fresh()
  start = jax.device_get(state.params)
  expected = start
  assert layouts(state.params) == layouts(state.buffers['ema'])
  for t in range(3):
    state, metrics = run(state)
    keep = min(0.9, (1 + t) / (10 + t))
    expected = mixed(expected, jax.device_get(state.params), keep)
    if t == 1:
      with Checkpoints(str(tmp_path), 'omni') as checkpoints:
        checkpoints.save(state, b'{}')
  average = jax.tree.leaves(state.buffers['ema'])
  for ours, theirs in zip(average, jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)

  is_frozen = named_leaves(frozen(start, FREEZE))
  before = named_leaves(start)
  after = named_leaves(jax.device_get(state.params))
  assert is_frozen.keys() == before.keys() == after.keys()
  for name, held in is_frozen.items():
    assert np.array_equal(before[name], after[name]) == held, name
  assert metrics['grad_norm/decoder'] == 0 < metrics['grad_norm/heads.text']

  with Checkpoints(str(tmp_path), 'omni') as checkpoints:
    resumed, _ = checkpoints.restore(fresh())
  resumed, _ = run(resumed)
  leaves = zip(jax.tree.leaves(resumed), jax.tree.leaves(state), strict=True)
  for ours, theirs in leaves:
    np.testing.assert_array_equal(ours, theirs)


def size_of(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_without_averaging_and_freezing_nothing_is_kept_for_them(kit):
  assert set(kit.state.buffers) == {'router_bias', 'frozen'}
  params = kit.state.params
  default = omni_optimizer(kit.config).init(params)
  nothing_frozen = omni_optimizer(kit.config, freeze=()).init(params)
  decoder_frozen = omni_optimizer(kit.config, freeze=('decoder.*',)).init(params)
  assert jax.tree.structure(nothing_frozen) == jax.tree.structure(default)
  saved = size_of(nothing_frozen) - size_of(decoder_frozen)
  assert saved == 2 * size_of(params['decoder'])
