"""Our Muon gives the updates and has the state of `optax.contrib.muon`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from omni_jax.sharding import named_leaves
from omni_jax.train.muon import muon, newton_schulz

SHAPES = {
  'wide': (4, 16),
  'tall': (16, 4),
  'square': (4, 4),
  'stacked': (3, 16, 4),
  'experts': (2, 3, 4, 16),
  'alone': (6, 10),
  'vector': (16,),
}
MATRICES = {name: len(shape) > 1 for name, shape in SHAPES.items()}


def tree(seed: int) -> dict[str, jax.Array]:
  rng = np.random.default_rng(seed)
  return {
    name: jnp.asarray(rng.normal(size=shape), jnp.float32)
    for name, shape in SHAPES.items()
  }


def reference():
  last_two = lambda axes: optax.contrib.MuonDimensionNumbers(axes - 2, axes - 1)
  axes = {
    name: last_two(len(shape)) if MATRICES[name] else None
    for name, shape in SHAPES.items()
  }
  return optax.contrib.muon(
    1.0,
    beta=0.9,
    adam_b1=0.8,
    adam_b2=0.7,
    consistent_rms=0.2,
    muon_weight_dimension_numbers=axes,
  )


def ours():
  return muon(lambda params: MATRICES, momentum=0.9, rms=0.2, b1=0.8, b2=0.7)


def test_updates_are_those_of_optax_over_several_steps():
  tx, expected_tx = ours(), reference()
  state, expected_state = tx.init(tree(0)), expected_tx.init(tree(0))
  for step in range(3):
    updates, state = jax.jit(tx.update)(tree(step), state, tree(0))
    expected, expected_state = expected_tx.update(tree(step), expected_state, tree(0))
    for name in SHAPES:
      np.testing.assert_allclose(updates[name], -expected[name], rtol=2e-4, atol=2e-5)


def test_checkpoints_of_optax_have_the_same_moments_under_the_same_names():
  names = lambda tx: {
    name: leaf.shape for name, leaf in named_leaves(tx.init(tree(0))).items()
  }
  assert names(ours()) == names(reference())


@pytest.mark.parametrize('shape', [(2, 4, 16), (1, 6, 6)], ids=str)
def test_singular_values_become_about_one(shape):
  x = jax.random.normal(jax.random.key(0), shape)
  values = jnp.linalg.svd(newton_schulz(x, jnp.array([3.4445, -4.775, 2.0315])))[1]
  assert values.min() > 0.5 and values.max() < 1.4


def test_a_step_has_few_products_however_many_parameters_there_are():
  params = {f'layer {k}': jnp.ones((8, 4)) for k in range(20)}
  tx = muon(
    lambda p: jax.tree.map(lambda _: True, p), momentum=0.9, rms=0.2, b1=0.8, b2=0.7
  )
  jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params), params)
  assert str(jaxpr).count('dot_general') == 3
