"""Fault 10: a checkpoint of one mesh is restored on others: exactly the same weights, and the same global batches."""

import jax
import numpy as np
import pytest
from samples import BUDGET, examples, frozen_values, omni_optimizer, rows, tiny_model

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.config import LoaderConfig
from omni_jax.data.loader import Loader
from omni_jax.data.making import Making
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


def layout(model, mesh):
  """What the stage gives to the checkpoint: shapes and where they lie."""
  tx = omni_optimizer(model, 10)
  init = lambda values: states.init_model_state(model, tx, values, seed=0)
  shapes = jax.eval_shape(init, frozen_values(model))
  placed = states.shardings(shapes, param_specs(abstract(model)), mesh)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed
  )


def loader(model):
  items = [
    dict(example, id=f'{seed}/{i}')
    for seed in range(4)
    for i, example in enumerate(examples(seed))
  ]
  return Loader(
    Making(items, model.hosts(), 0), rows(BUDGET, 8), LoaderConfig(lanes=4), prefetch=0
  )


@pytest.fixture(scope='module')
def values(model):
  rng = np.random.default_rng(0)

  def noise(x):
    return (
      rng.standard_normal(x.shape).astype(x.dtype)
      if x.dtype.kind == 'f'
      else rng.integers(0, 9, x.shape).astype(x.dtype)
    )

  return jax.tree.map(noise, layout(model, make_mesh({})))


@pytest.mark.parametrize('source', ['2x2x2', '1'])
def test_fault_10_every_mesh_restores_the_same_bits_and_batches(
  model, values, tmp_path, source
):
  like = layout(model, make_mesh(MESHES[source]))
  batches = loader(model)
  for _ in range(3):
    next(batches)
  with Checkpoints(str(tmp_path), 'omni') as checkpoints:
    checkpoints.save(
      jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), values, like),
      batches.state(),
    )
  following = next(batches)
  for name, sizes in MESHES.items():
    mesh = make_mesh(sizes)
    like, said = layout(model, mesh), []
    with Checkpoints(str(tmp_path), 'omni', say=said.append) as checkpoints:
      found = checkpoints.resume(like)
    assert not said
    split = 0
    for wanted, got, placed in zip(
      jax.tree.leaves(values),
      jax.tree.leaves(found.state),
      jax.tree.leaves(like),
      strict=True,
    ):
      assert (
        np.asarray(got).tobytes() == wanted.tobytes()
        and got.sharding == placed.sharding
      ), name
      split += not got.is_fully_replicated
    assert (split > 20) == ('x' in name), f'{split} arrays are split on {name}'
    again = loader(model)
    again.restore(found.iterator)
    placed = place(next(again), mesh)
    assert jax.tree.structure(placed) == jax.tree.structure(following)
    for a, b in zip(jax.tree.leaves(following), jax.tree.leaves(placed), strict=True):
      np.testing.assert_array_equal(a, np.asarray(b))
