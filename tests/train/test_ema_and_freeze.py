"""The average of the weights and frozen parameters, in the step of the whole model and over a restart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import frozen_values, omni_optimizer, tiny_model

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.objective import LossConfig, Pretraining
from omni_jax.sharding import param_specs, place
from omni_jax.train import state as states
from omni_jax.train.optim import frozen, OptimConfig
from omni_jax.train.step import averaged, make_step, Update

FREEZE = ('decoder.*', 'heads.image.*', '*.table')


def test_the_average_is_the_one_computed_by_hand():
  average, expected = {'w': jnp.float32(1.0)}, 1.0
  for step, w in enumerate((2.0, -3.0, 5.0)):
    keep = min(0.15, (1 + step) / (10 + step))  # 0.1, then the decay itself
    average, expected = (
      averaged(average, {'w': jnp.float32(w)}, jnp.int32(step), 0.15),
      keep * expected + (1 - keep) * w,
    )
  assert float(average['w']) == pytest.approx(expected, rel=1e-6)
  held = averaged({'w': jnp.float32(0.1)}, {'w': jnp.float32(0.1)}, jnp.int32(7), 0.999)
  assert held['w'] == jnp.float32(0.1), 'what does not move keeps its bits'


@pytest.fixture(scope='module')
def trained(kit, batch):
  """Everything once: an average and frozen parts on two devices, with donated states as in training."""
  from omni_jax.sharding import make_mesh

  mesh = make_mesh(dict(fsdp=2))
  optim = OptimConfig(warmup=0, lr=0.01, weight_decay=0.5)
  tx = omni_optimizer(tiny_model(), 100, optim, freeze=FREEZE)
  init = lambda values: states.init_model_state(
    tiny_model(), tx, values, seed=0, average=True
  )
  values = frozen_values(kit.config)
  layout = states.shardings(jax.eval_shape(init, values), param_specs(kit.model), mesh)
  objective = Pretraining(LossConfig(), mesh)
  update = Update(ema=0.9, freeze=FREEZE, refresh=objective.refresh)
  step = make_step(objective, kit.model, tx, update)
  jitted = jax.jit(step, donate_argnums=0, out_shardings=(layout, None))
  fresh = lambda: jax.jit(init, out_shardings=layout)(values)

  def run(state):
    with jax.set_mesh(mesh):
      return jitted(state, place(batch, mesh))

  return fresh, run


def test_the_step_averages_what_it_made_and_leaves_the_frozen_bit_for_bit(
  trained, tmp_path
):
  fresh, run = trained
  state = fresh()
  start = expected = jax.device_get(state.params)
  assert jax.tree.map(lambda x: x.sharding, state.params) == jax.tree.map(
    lambda x: x.sharding, state.buffers['ema']
  )
  for t in range(3):
    state, metrics = run(state)
    keep = min(0.9, (1 + t) / (10 + t))
    expected = jax.tree.map(
      lambda a, p, keep=keep: keep * a + (1 - keep) * p,
      expected,
      jax.device_get(state.params),
    )
    if t == 1:
      with Checkpoints(str(tmp_path), 'omni') as checkpoints:
        checkpoints.save(state, b'{}')
  for ours, theirs in zip(
    jax.tree.leaves(state.buffers['ema']), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)

  for still, ours, theirs in zip(
    *map(jax.tree.leaves, (frozen(start, FREEZE), jax.device_get(state.params), start)),
    strict=True,
  ):
    assert np.array_equal(ours, theirs) == still
  assert metrics['grad_norm/decoder'] == 0 < metrics['grad_norm/heads.text']

  with Checkpoints(str(tmp_path), 'omni') as checkpoints:
    resumed, _ = checkpoints.restore(fresh())
  resumed, _ = run(resumed)
  for ours, theirs in zip(
    jax.tree.leaves(resumed), jax.tree.leaves(state), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)


def test_off_costs_nothing(kit):
  assert set(kit.state.buffers) == {'router_bias', 'frozen'}
  tx = omni_optimizer(kit.config)
  plain, half = (
    omni_optimizer(kit.config, freeze=freeze).init(kit.state.params)
    for freeze in ((), ('decoder.*',))
  )
  assert jax.tree.structure(plain) == jax.tree.structure(tx.init(kit.state.params))
  size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  assert size(plain) - size(half) == 2 * size(kit.state.params['decoder'])
