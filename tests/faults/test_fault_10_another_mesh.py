"""Fault 10: a checkpoint of one mesh is restored on other meshes.

The weights are exactly the same, and so are the global batches.
"""

import jax
import numpy as np
import pytest
from samples import (
  BUDGET,
  examples,
  frozen_values,
  omni_optimizer,
  tiny_model,
  with_rows,
)

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.config import LoaderConfig
from omni_jax.data.example_maker import ExampleMaker
from omni_jax.data.loader import Loader
from omni_jax.model import abstract
from omni_jax.sharding import make_mesh, param_specs, place
from omni_jax.train import state as states

MESHES = {
  '1': {},
  '8': dict(data=8),
  '4x2': dict(fsdp=4, tensor=2),
  '2x2x2': dict(data=2, fsdp=2, expert=2),
}


@pytest.fixture(scope='module')
def model():
  return tiny_model()


def abstract_state(model, mesh):
  """Returns the shapes and shardings of the state of a stage on a mesh."""
  tx = omni_optimizer(model, 10)
  init = lambda values: states.init_model_state(model, tx, values, seed=0)
  shapes = jax.eval_shape(init, frozen_values(model))
  shardings = states.shardings(shapes, param_specs(abstract(model)), mesh)
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    shapes,
    shardings,
  )


def loader(model):
  """Returns a loader of eight rows in four lanes."""
  items = []
  for seed in range(4):
    for k, example in enumerate(examples(seed)):
      items.append(dict(example, id=f'{seed}/{k}'))
  maker = ExampleMaker(items, model.hosts(), 0)
  return Loader(maker, with_rows(BUDGET, 8), LoaderConfig(lanes=4), prefetch=0)


@pytest.fixture(scope='module')
def values(model):
  """Returns a state of random values, as NumPy arrays."""
  rng = np.random.default_rng(0)

  def noise(x):
    if x.dtype.kind == 'f':
      return rng.standard_normal(x.shape).astype(x.dtype)
    return rng.integers(0, 9, x.shape).astype(x.dtype)

  return jax.tree.map(noise, abstract_state(model, make_mesh({})))


@pytest.mark.parametrize('source', ['2x2x2', '1'])
def test_fault_10_every_mesh_restores_the_same_bits_and_batches(
  model, values, tmp_path, source
):
  like = abstract_state(model, make_mesh(MESHES[source]))
  state = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), values, like)
  batches = loader(model)
  for _ in range(3):
    next(batches)
  with Checkpoints(str(tmp_path), 'omni') as checkpoints:
    checkpoints.save(state, batches.state())
  next_batch = next(batches)
  for name, sizes in MESHES.items():
    mesh = make_mesh(sizes)
    like = abstract_state(model, mesh)
    lines = []
    with Checkpoints(str(tmp_path), 'omni', say=lines.append) as checkpoints:
      restored = checkpoints.resume(like)
    assert not lines
    check_placed(restored.state, values, like)
    split = [x for x in jax.tree.leaves(restored.state) if not x.is_fully_replicated]
    splits_weights = 'fsdp' in sizes
    assert (len(split) > 20) == splits_weights, f'{len(split)} are split on {name}'
    resumed = loader(model)
    resumed.restore(restored.iterator)
    placed = place(next(resumed), mesh)
    assert jax.tree.structure(placed) == jax.tree.structure(next_batch)
    leaves = zip(jax.tree.leaves(placed), jax.tree.leaves(next_batch), strict=True)
    for actual, expected in leaves:
      np.testing.assert_array_equal(np.asarray(actual), expected)


def check_placed(state, values, like):
  """Checks that a state has the bits of `values` and the shardings of `like`."""
  leaves = (jax.tree.leaves(tree) for tree in (state, values, like))
  for x, value, shape in zip(*leaves, strict=True):
    assert np.asarray(x).tobytes() == value.tobytes()
    assert x.sharding == shape.sharding
