"""Tests the optimizer: schedule, clipping, decay, multipliers and frozen parameters."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import part

from omni_jax.errors import UserError
from omni_jax.sharding import named_leaves, Role
from omni_jax.train.optim import Kind, make_optimizer, schedule

PARAMS = {
  'decoder': {
    'w': jnp.ones((4, 4)),
    'scale': jnp.ones(4),
    'blocks': {'scale': jnp.ones((2, 4))},
  },
  'heads': {'image': {'w': jnp.ones((4, 4))}},
}
ROLES = {
  'decoder': {'w': Role.MATRIX, 'scale': Role.NORM, 'blocks': {'scale': Role.NORM}},
  'heads': {'image': {'w': Role.MATRIX}},
}
every_kind = pytest.mark.parametrize('kind', list(Kind))
optim_config = functools.partial(part, 'omni.optim', kind='adamw')


def update(grads, **config):
  """Returns the updates of a first step with these gradients."""
  config = dict(warmup=0, clip=1e9) | config
  tx = make_optimizer(optim_config(**config), 100, ROLES)
  updates, _ = jax.jit(tx.update)(grads, tx.init(PARAMS), PARAMS)
  return updates


def grads(seed=0):
  """Returns random gradients."""
  keys = iter(jax.random.split(jax.random.key(seed), 4))
  return jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), PARAMS)


def test_learning_rate_warms_up_and_decays_to_its_final_share():
  rate = schedule(optim_config(lr=1.0, warmup=10, final=0.1), 100)
  assert rate(0) == 0
  assert rate(5) == pytest.approx(0.5)
  assert rate(10) == pytest.approx(1)
  assert rate(100) == pytest.approx(0.1)
  for step in range(10, 100):
    assert rate(step) >= rate(step + 1)
  short = schedule(optim_config(lr=1.0, warmup=100), 4)
  assert short(2) == pytest.approx(1), 'a short run warms up in half of its steps'


@every_kind
def test_multipliers_scale_the_updates_of_their_prefix_only(kind):
  plain = update(grads(), kind=kind)
  scaled = update(grads(), kind=kind, multipliers={'heads.image': 0.25})
  expected = 0.25 * plain['heads']['image']['w']
  np.testing.assert_allclose(scaled['heads']['image']['w'], expected, rtol=1e-6)
  np.testing.assert_array_equal(scaled['decoder']['w'], plain['decoder']['w'])


def test_a_multiplier_of_zero_freezes():
  updates = update(grads(), multipliers={'decoder': 0.0})
  assert not updates['decoder']['w'].any()
  assert not updates['decoder']['scale'].any()
  assert updates['heads']['image']['w'].any()


def test_a_multiplier_that_matches_nothing_names_the_parameters():
  message = (
    "no parameter begins with 'haeds'; there are "
    "['decoder.blocks', 'decoder.scale', 'decoder.w', 'heads.image']"
  )
  with pytest.raises(UserError, match=re.escape(message)):
    update(grads(), multipliers={'haeds': 2.0})


@every_kind
def test_only_matrices_decay(kind):
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  updates = update(zeros, kind=kind, lr=0.1, weight_decay=0.5)
  np.testing.assert_allclose(updates['decoder']['w'], -0.1 * 0.5, rtol=1e-5)
  np.testing.assert_array_equal(updates['decoder']['scale'], 0)
  stacked_scales = updates['decoder']['blocks']['scale']
  np.testing.assert_array_equal(stacked_scales, 0)


def test_large_gradients_are_clipped_to_the_norm():
  """Adam's update does not depend on the size of one gradient, but its moments do."""
  large = jax.tree.map(lambda g: 1e6 * g, grads())
  tx = make_optimizer(optim_config(warmup=0, clip=1.0), 100, ROLES)
  _, state = tx.update(large, tx.init(PARAMS), PARAMS)
  moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
  assert max(float(jnp.abs(m).max()) for m in moments) < 0.1


@every_kind
def test_updates_go_against_the_gradient_at_the_learning_rate(kind):
  updates = update(grads(), kind=kind, lr=0.01, weight_decay=0.0)
  leaves = zip(jax.tree.leaves(updates), jax.tree.leaves(grads()), strict=True)
  for step, gradient in leaves:
    assert jnp.vdot(step, gradient) < 0
    assert 0.0005 < float(jnp.sqrt(jnp.mean(step**2))) < 0.02


@every_kind
def test_frozen_parameters_do_not_change_and_have_no_moments(kind):
  tx = make_optimizer(
    optim_config(kind=kind, warmup=0, weight_decay=0.5),
    100,
    ROLES,
    freeze=('decoder.*.scale', 'heads.image.?'),
  )
  state = tx.init(PARAMS)
  shapes = {leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim > 1}
  assert shapes == {(4, 4)}  # of decoder.w alone
  for name in named_leaves(state):
    assert 'heads' not in name
    assert 'blocks' not in name
  params = PARAMS
  for seed in range(3):
    updates, state = jax.jit(tx.update)(grads(seed), state, params)
    params = jax.tree.map(jnp.add, params, updates)
  before = named_leaves(PARAMS)
  after = named_leaves(params)
  for name in ('decoder.blocks.scale', 'heads.image.w'):
    np.testing.assert_array_equal(after[name], before[name])
  for name in ('decoder.w', 'decoder.scale'):
    assert (after[name] != before[name]).all()


def test_a_pattern_that_matches_nothing_names_the_parameters():
  tx = make_optimizer(optim_config(), 100, ROLES, freeze=('decoder.*', 'haeds.*'))
  message = (
    r"no parameter matches 'haeds.\*'; there are decoder.blocks.scale, .*heads.image.w"
  )
  with pytest.raises(UserError, match=message):
    tx.init(PARAMS)


def test_a_rate_that_is_a_function_of_the_step_replaces_the_schedule():
  config = optim_config(weight_decay=0.0)
  tx = make_optimizer(config, 100, ROLES, rate=lambda step: 0.25 * step)
  first, state = tx.update(grads(), tx.init(PARAMS), PARAMS)
  second, _ = tx.update(grads(), state, PARAMS)
  assert not first['decoder']['w'].any()
  # For equal gradients, Adam's direction is their sign.
  np.testing.assert_allclose(jnp.abs(second['decoder']['w']), 0.25, rtol=1e-3)


def test_an_unknown_kind_of_optimizer_is_refused():
  with pytest.raises(ValueError, match='adamax'):
    optim_config(kind='adamax')
