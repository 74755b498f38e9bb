"""Checkpoints restore state and iterator bit-exactly, on any mesh.

A checkpoint of another model is refused with the name of an array.
"""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.checkpoint.train_state import TrainState
from omni_jax.errors import UserError
from omni_jax.sharding import make_mesh, replicated

TX = optax.adam(1e-3)


def state(step=3, width=8, **params):
  """Returns a state of this step; `params` are added to or replace its parameters."""
  key = jax.random.key(step)
  all_params = {
    'decoder': {'w': jax.random.normal(key, (16, width))},
    'scale': jnp.ones(4),
  }
  all_params |= params
  moments = jax.tree.map(lambda x: x + 0.125 if x.ndim else x, TX.init(all_params))
  return TrainState(
    params=all_params,
    buffers={'bias': jnp.arange(4.0)},
    opt_state=moments,
    step=jnp.int32(step),
    rng=jax.random.key_data(key),
  )


def save_states(folder, *states, iterator=b'{"next": 7}', keep=2):
  """Saves states one after another, and returns the folder as text."""
  with Checkpoints(str(folder), 'omni', keep=keep) as checkpoints:
    for state_to_save in states:
      checkpoints.save(state_to_save, iterator)
  return str(folder)


def reader(folder):
  """Returns the checkpoints of a run to read."""
  return Checkpoints(folder, 'omni', read_only=True)


def assert_same(actual, expected):
  """Checks that two trees are equal, with the same types."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_state_and_iterator_are_restored_bit_exactly(tmp_path):
  workdir = save_states(tmp_path, state())
  with Checkpoints(workdir, 'omni') as checkpoints:
    assert checkpoints.latest() == 3
    restored, iterator = checkpoints.restore(state(step=0))
  assert_same(restored, state())
  assert iterator == b'{"next": 7}'


def test_the_last_step_is_restored_by_default_and_old_ones_are_removed(tmp_path):
  workdir = save_states(tmp_path, *(state(step) for step in (1, 2, 3)), keep=2)
  like = {'params': state().params, 'buffers': state().buffers}
  with reader(workdir) as checkpoints:
    assert checkpoints.restore_model(like)[1] == 3
    restored, step = checkpoints.restore_model(like, 2)
    assert step == 2
    assert_same(restored['params'], state(2).params)
    with pytest.raises(UserError, match=r'no step 1 in .*there are \[2, 3\]'):
      checkpoints.restore_model(like, 1)


def state_on_mesh(spec, **sizes):
  """Returns a state on a mesh, with its matrices split as `spec`."""
  mesh = make_mesh(sizes)

  def sharding_of(x):
    if x.ndim == 2 and x.shape[0] == 16:
      return NamedSharding(mesh, spec)
    return replicated(mesh)

  return jax.device_put(state(), jax.tree.map(sharding_of, state()))


def shardings(tree):
  return [x.sharding for x in jax.tree.leaves(tree)]


def test_weights_are_restored_on_other_meshes(tmp_path):
  workdir = save_states(tmp_path, state_on_mesh(P('fsdp', 'tensor'), fsdp=4, tensor=2))
  for like in (state_on_mesh(P(), data=1), state_on_mesh(P(None, 'fsdp'), fsdp=8)):
    with Checkpoints(workdir, 'omni') as checkpoints:
      restored, _ = checkpoints.restore(like)
    assert_same(restored, state())
    assert shardings(restored) == shardings(like)


@pytest.mark.parametrize(
  'other, message',
  [
    (
      state(width=9),
      r'the first is params\.decoder\.w: saved .*\(16, 8\).*wanted .*\(16, 9\)',
    ),
    (
      state(extra=jnp.ones(2)),
      r'the first is params\.extra: saved absent, wanted .*\(2,\)',
    ),
    (
      state(scale=jnp.ones(4, jnp.bfloat16)),
      r'the first is params\.scale: saved .*float32.*wanted .*bfloat16',
    ),
  ],
  ids=['shape', 'array', 'dtype'],
)
def test_a_checkpoint_of_another_model_is_refused_with_the_name_of_an_array(
  tmp_path, other, message
):
  workdir = save_states(tmp_path, state())
  with (
    Checkpoints(workdir, 'omni') as checkpoints,
    pytest.raises(UserError, match=f'is of another model: .*{message}'),
  ):
    checkpoints.restore(other)
  like = {'params': other.params, 'buffers': other.buffers}
  with reader(workdir) as checkpoints, pytest.raises(UserError, match=message):
    checkpoints.restore_model(like)


def test_another_optimizer_is_refused(tmp_path):
  workdir = save_states(tmp_path, state())
  sgd = optax.sgd(0.1, momentum=0.9)
  other = state()._replace(opt_state=sgd.init(state().params))
  with (
    Checkpoints(workdir, 'omni') as checkpoints,
    pytest.raises(UserError, match='opt_state'),
  ):
    checkpoints.restore(other)


def test_reading_where_nothing_was_saved_is_a_user_error_and_creates_no_folder(
  tmp_path,
):
  with pytest.raises(
    UserError, match="no checkpoint of stage 'omni' in .*; train first"
  ):
    reader(str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_saving_a_step_again_changes_nothing(tmp_path):
  workdir = save_states(tmp_path, state(), iterator=b'{}')
  with Checkpoints(workdir, 'omni') as checkpoints:
    checkpoints.save(state()._replace(params=state(5).params), b'{"next": 9}')
  with Checkpoints(workdir, 'omni') as checkpoints:
    restored, iterator = checkpoints.restore(state(0))
  assert_same(restored, state())
  assert iterator == b'{}'
