"""The optimizer: schedule, clipping, which arrays decay, factors by name, and a name that fits nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.errors import UserError
from omni_jax.sharding import name_of, Role
from omni_jax.train.optim import Kind, make_optimizer, OptimConfig, schedule

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
KINDS = pytest.mark.parametrize('kind', list(Kind))


def update(grads, params=PARAMS, count=1, **config):
  """Sum of the updates of `count` steps of equal gradients."""
  tx = make_optimizer(OptimConfig(**dict(warmup=0, clip=1e9) | config), 100, ROLES)
  state, moved = tx.init(params), jax.tree.map(jnp.zeros_like, params)
  for _ in range(count):
    step, state = jax.jit(tx.update)(grads, state, params)
    moved = jax.tree.map(jnp.add, moved, step)
  return moved


def grads(seed=0):
  keys = iter(jax.random.split(jax.random.key(seed), 4))
  return jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), PARAMS)


def test_learning_rate_warms_up_and_decays_to_its_final_share():
  rate = schedule(OptimConfig(lr=1.0, warmup=10, final=0.1), 100)
  assert rate(0) == 0 and rate(5) == pytest.approx(0.5) and rate(10) == pytest.approx(1)
  assert rate(100) == pytest.approx(0.1) and all(
    rate(i) >= rate(i + 1) for i in range(10, 100)
  )
  short = schedule(OptimConfig(lr=1.0, warmup=100), 4)
  assert short(2) == pytest.approx(1), 'a short run warms up in half of its steps'


@KINDS
def test_multipliers_scale_the_updates_of_their_prefix_only(kind):
  plain, scaled = (
    update(grads(), kind=kind),
    update(grads(), kind=kind, multipliers={'heads.image': 0.25}),
  )
  np.testing.assert_allclose(
    scaled['heads']['image']['w'], 0.25 * plain['heads']['image']['w'], rtol=1e-6
  )
  np.testing.assert_array_equal(scaled['decoder']['w'], plain['decoder']['w'])


def test_a_multiplier_of_zero_freezes():
  moved = update(grads(), multipliers={'decoder': 0.0})
  assert (
    not moved['decoder']['w'].any()
    and not moved['decoder']['scale'].any()
    and moved['heads']['image']['w'].any()
  )


def test_a_multiplier_that_fits_nothing_names_what_there_is():
  with pytest.raises(
    UserError,
    match=r"no parameter begins with 'haeds'; there are \['decoder.blocks', 'decoder.scale', 'decoder.w', 'heads.image'\]",
  ):
    update(grads(), multipliers={'haeds': 2.0})


@KINDS
def test_only_matrices_decay(kind):
  still = jax.tree.map(jnp.zeros_like, PARAMS)
  moved = update(still, kind=kind, lr=0.1, weight_decay=0.5)
  np.testing.assert_allclose(moved['decoder']['w'], -0.1 * 0.5, rtol=1e-5)
  np.testing.assert_array_equal(moved['decoder']['scale'], 0)
  np.testing.assert_array_equal(
    moved['decoder']['blocks']['scale'], 0
  )  # of stacked layers


def test_large_gradients_are_clipped_to_the_norm():
  """Adam forgets the size of one gradient, but not its share in the next moments."""
  large = jax.tree.map(lambda g: 1e6 * g, grads())
  tx = make_optimizer(OptimConfig(warmup=0, clip=1.0), 100, ROLES)
  _, state = tx.update(large, tx.init(PARAMS), PARAMS)
  moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
  assert max(float(jnp.abs(m).max()) for m in moments) < 0.1


@KINDS
def test_updates_go_against_the_gradient_at_the_learning_rate(kind):
  g, moved = grads(), update(grads(), kind=kind, lr=0.01, weight_decay=0.0)
  for ours, theirs in zip(jax.tree.leaves(moved), jax.tree.leaves(g), strict=True):
    assert jnp.vdot(ours, theirs) < 0
    assert 0.0005 < float(jnp.sqrt(jnp.mean(ours**2))) < 0.02


@KINDS
def test_frozen_parameters_stand_still_and_have_no_moments(kind):
  tx = make_optimizer(
    OptimConfig(kind=kind, warmup=0, weight_decay=0.5),
    100,
    ROLES,
    freeze=('decoder.*.scale', 'heads.image.?'),
  )
  state, params = tx.init(PARAMS), PARAMS
  assert {leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim > 1} == {
    (4, 4)
  }  # of decoder.w alone
  assert not any(
    'heads' in name_of(path) or 'blocks' in name_of(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(state)
  )
  for seed in range(3):
    moved, state = jax.jit(tx.update)(grads(seed), state, params)
    params = jax.tree.map(jnp.add, params, moved)
  still = [params['decoder']['blocks']['scale'], params['heads']['image']['w']]
  for ours, theirs in zip(
    still,
    [PARAMS['decoder']['blocks']['scale'], PARAMS['heads']['image']['w']],
    strict=True,
  ):
    np.testing.assert_array_equal(ours, theirs)
  assert (params['decoder']['w'] != PARAMS['decoder']['w']).all() and (
    params['decoder']['scale'] != 1
  ).all()


def test_a_pattern_that_fits_nothing_names_what_there_is():
  with pytest.raises(
    UserError,
    match=r"no parameter is called 'haeds.\*'; there are decoder.blocks.scale, .*heads.image.w",
  ):
    make_optimizer(OptimConfig(), 100, ROLES, freeze=('decoder.*', 'haeds.*')).init(
      PARAMS
    )


def test_a_rate_by_step_takes_the_place_of_the_schedule():
  tx = make_optimizer(
    OptimConfig(weight_decay=0.0), 100, ROLES, rate=lambda step: 0.25 * step
  )
  first, state = tx.update(grads(), tx.init(PARAMS), PARAMS)
  second, _ = tx.update(grads(), state, PARAMS)
  assert not first['decoder']['w'].any()
  np.testing.assert_allclose(
    jnp.abs(second['decoder']['w']), 0.25, rtol=1e-3
  )  # Adam: the sign of an equal gradient


def test_an_unknown_kind_is_refused():
  with pytest.raises(ValueError, match='adamax'):
    OptimConfig(kind='adamax')
