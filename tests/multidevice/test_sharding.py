"""Tests meshes, the table of rules, and what is refused before any compilation."""

from flax import nnx
import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from samples import tiny_model

from omni_jax import sharding
from omni_jax.errors import UserError
from omni_jax.model import abstract
from omni_jax.train.mesh_checks import check_rows


def test_unnamed_axes_have_size_one():
  mesh = sharding.make_mesh({'data': 2, 'expert': 4})
  expected = {'data': 2, 'fsdp': 1, 'expert': 4, 'tensor': 1, 'context': 1}
  assert dict(mesh.shape) == expected
  assert sharding.make_mesh().size == 1


@pytest.mark.parametrize(
  'sizes, message',
  [
    ({'date': 2}, "'date'.* is unknown; the axes are"),
    ({'data': 3}, 'needs 3 devices, but there are 8; set config.mesh'),
    ({'data': 4, 'fsdp': 4}, 'needs 16 devices, but there are 8'),
  ],
  ids=str,
)
def test_impossible_meshes_are_refused(sizes, message):
  with pytest.raises(UserError, match=message):
    sharding.make_mesh(sizes)


def test_rows_that_do_not_divide_are_refused_with_both_sides():
  mesh = sharding.make_mesh({'data': 2, 'expert': 4})
  check_rows(mesh, 16)
  message = 'batch of 12 rows is not divisible by 8 devices .* nearest: 8'
  with pytest.raises(UserError, match=message):
    check_rows(mesh, 12)


def test_spec_looks_up_the_table():
  rows = ('data', 'fsdp', 'expert')
  assert sharding.spec('batch', 'length', None) == P(rows, 'context', None)
  assert sharding.spec('expert', 'expert_embed', 'mlp') == P('expert', 'fsdp', 'tensor')


def test_every_weight_has_a_spec_of_its_rank_that_uses_no_axis_twice():
  model = abstract(tiny_model())
  spec_tree = sharding.param_specs(model)
  specs = jax.tree.leaves(spec_tree, is_leaf=lambda x: isinstance(x, P))
  leaves = jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
  for spec, leaf in zip(specs, leaves, strict=True):
    assert len(spec) == leaf.ndim
    axes = []
    for part in spec:
      if isinstance(part, str):
        axes.append(part)
      elif part:
        axes.extend(part)
    assert len(axes) == len(set(axes)), spec


def test_axes_that_do_not_divide_a_weight_are_left_out():
  mesh = sharding.make_mesh({'fsdp': 4, 'tensor': 2})

  def fitted(spec, shape):
    return sharding.weight_sharding(mesh, spec, shape).spec

  assert fitted(P('fsdp', 'tensor'), (8, 6)) == P('fsdp', 'tensor')
  assert fitted(P('fsdp', 'tensor'), (6, 6)) == P(None, 'tensor')
  assert fitted(P('fsdp'), (8, 3, 3)) == P('fsdp', None, None)
  both = P(('tensor', 'fsdp'))
  assert fitted(both, (8,)) == both
  assert fitted(both, (6,)) == P(('tensor',))
  assert fitted(both, (3,)) == P(None)


def test_rows_are_split_over_the_batch_axes():
  mesh = sharding.make_mesh({'data': 2, 'fsdp': 2, 'expert': 2})
  x = np.arange(16.0).reshape(8, 2)
  placed = sharding.place({'x': x}, mesh)['x']
  np.testing.assert_array_equal(placed, x)
  assert {shard.data.shape for shard in placed.addressable_shards} == {(1, 2)}
