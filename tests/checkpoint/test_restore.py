"""A run is restored straight into the shards of a mesh, a few arrays at a time."""

import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samples

from omni_jax import sharding
from omni_jax.checkpoint import verify
from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.checkpoint.placement import generation_mesh, generation_params
from omni_jax.checkpoint.restore import restore_run
from omni_jax.errors import UserError
from omni_jax.model import abstract, batch_losses, ModelConfig
from omni_jax.train.state import init_model_state

MESHES = [dict(tensor=8), dict(data=2, expert=2, tensor=2), dict(data=8)]


@pytest.fixture(scope='module')
def workdir(tmp_path_factory) -> pathlib.Path:
  """Returns the folder of a run that keeps an average, which is not its parameters."""
  folder = tmp_path_factory.mktemp('averaged')
  config = samples.tiny_run()
  config.omni.ema = 0.9
  (folder / 'config.json').write_text(json.dumps(config.to_dict(), default=list))
  model = ModelConfig.from_config(config.model)
  optimizer = samples.omni_optimizer(model)
  frozen = samples.frozen_values(model)
  state = init_model_state(model, optimizer, frozen, seed=0, average=True)
  average = jax.tree.map(lambda x: x + 1, state.params)
  buffers = state.buffers | {'ema': average}
  state = state._replace(buffers=buffers, step=jnp.int32(1))
  with Checkpoints(str(folder), 'omni') as checkpoints:
    checkpoints.save(state, b'{}')
  return folder


def live_bytes() -> dict[jax.Device, int]:
  """Returns the bytes that each device holds of all arrays.

  A buffer counts once: an array and each of its shards may share it.
  """
  buffers = {}
  for x in jax.live_arrays():
    for shard in x.addressable_shards:
      pointer = shard.data.unsafe_buffer_pointer()
      buffers[shard.device, pointer] = shard.data.nbytes
  held = dict.fromkeys(jax.local_devices(), 0)
  for (device, _), size in buffers.items():
    held[device] += size
  return held


class Reading(NamedTuple):
  """What is true when a group of arrays was read and verified.

  Attributes:
    names: names of its arrays.
    size: bytes of the arrays.
    held: bytes on each device.
  """

  names: list[str]
  size: int
  held: dict[jax.Device, int]


@pytest.fixture
def readings(monkeypatch) -> list[Reading]:
  """Reads every array alone, and returns a list that is filled with the readings."""
  readings: list[Reading] = []
  digests = verify.digest.digests

  def record(tree):
    result = digests(tree)
    leaves = sharding.named_leaves(tree)
    size = sum(x.nbytes for x in leaves.values())
    readings.append(Reading(list(leaves), size, live_bytes()))
    return result

  monkeypatch.setattr(verify, 'GROUP', 0)
  monkeypatch.setattr(verify.digest, 'digests', record)
  return readings


@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_no_device_ever_holds_more_than_its_own_part(workdir, readings, sizes):
  before = live_bytes()
  run = restore_run(str(workdir), None, mesh=sizes)
  leaves = jax.tree.leaves((run.params, run.buffers))
  after = live_bytes()
  whole = sum(x.nbytes for x in leaves)
  largest = max(x.nbytes for x in leaves)
  for device in before:
    own = after[device] - before[device]
    peak = max(reading.held[device] for reading in readings) - before[device]
    assert peak <= own + largest
    if 'tensor' in sizes:  # else every device holds all of it
      assert own + largest < whole
  # Each array is read alone, and the largest ones while the least is held.
  assert all(len(reading.names) == 1 for reading in readings)
  read = [reading.size for reading in readings]
  assert read == sorted(read, reverse=True)


@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_arrays_are_split_as_the_rules_of_generation_say(workdir, sizes):
  run = restore_run(str(workdir), None, mesh=sizes)
  config = ModelConfig.from_config(run.config.model)
  wanted = generation_params(config, generation_mesh(config, sizes))
  pairs = zip(jax.tree.leaves(run.params), jax.tree.leaves(wanted), strict=True)
  for actual, expected in pairs:
    assert actual.sharding.is_equivalent_to(expected.sharding, actual.ndim)
  gate = run.params['decoder']['blocks']['moe']['gate']
  parts = sizes.get('expert', 1) * sizes.get('tensor', 1)
  assert gate.addressable_shards[0].data.size == gate.size // parts
  assert all(x.is_fully_replicated for x in jax.tree.leaves(run.buffers))


def test_either_the_average_or_the_parameters_are_read(workdir, readings):
  average = restore_run(str(workdir), None)
  names = {name for reading in readings for name in reading.names}
  assert not any(name.startswith('params.') for name in names)
  readings.clear()
  raw = restore_run(str(workdir), None, 'raw')
  names = {name for reading in readings for name in reading.names}
  assert not any(name.startswith('buffers.ema.') for name in names)
  pairs = zip(jax.tree.leaves(average.params), jax.tree.leaves(raw.params), strict=True)
  for x, y in pairs:
    np.testing.assert_array_equal(x, y + 1)
  assert set(average.buffers) == set(raw.buffers) == {'router_bias', 'frozen'}


def test_groups_hold_every_array_once_and_none_is_larger_than_allowed(monkeypatch):
  monkeypatch.setattr(verify, 'GROUP', 100)
  leaves = []
  for k, size in enumerate([3, 90, 40, 500, 10, 60, 20]):
    path = (jax.tree_util.DictKey(f'w{k}'),)
    leaves.append((path, jax.ShapeDtypeStruct((size,), jnp.int8)))
  groups = verify._groups(leaves)
  sizes = [[x.size for _, x in group] for group in groups]
  assert sizes == [[500], [90], [60, 40], [20, 10, 3]]


def test_parameters_in_the_dtype_of_the_computation_give_the_same_losses(kit, batch):
  """The model casts to it before it uses them; only the router computes in fp32."""
  run = samples.tiny_run()
  run.model.dtype = 'bfloat16'
  config = ModelConfig.from_config(run.model)
  shapes = generation_params(config)
  cast = jax.tree.map(lambda x, to: x.astype(to.dtype), kit.state.params, shapes)
  halved = [x.dtype == jnp.bfloat16 for x in jax.tree.leaves(cast)]
  assert sum(halved) == len(halved) - 1
  mesh = sharding.make_mesh({})
  buffers = kit.state.buffers

  @jax.jit
  def losses(params, batch):
    key = jax.random.key(0)
    model = abstract(config)
    return batch_losses(params, buffers, batch, key, model=model, mesh=mesh).heads

  with jax.set_mesh(mesh):
    expected = losses(kit.state.params, batch)
    actual = losses(cast, batch)
  for name, loss in expected.items():
    assert float(loss.total) == float(actual[name].total), name


def test_a_mesh_for_generation_has_no_axis_that_only_saves_memory():
  with pytest.raises(UserError, match=r"'fsdp'.* is unknown; the axes are .*'tensor'"):
    generation_mesh(ModelConfig.from_config(samples.tiny_run().model), dict(fsdp=8))


GIB = 2**30


@pytest.mark.parametrize(
  'devices, weights, tensor, experts, expected',
  [
    (16, GIB // 2, 4, 8, dict(data=16)),
    (16, 3 * GIB, 4, 8, dict(data=4, tensor=4)),
    (64, 90 * GIB, 8, 8, dict(data=4, tensor=8, expert=2)),
    (32, 57 * GIB, 2, 128, dict(data=4, tensor=2, expert=4)),
    (1, 90 * GIB, 8, 8, dict(data=1)),
    (6, 90 * GIB, 8, 8, dict(data=3, tensor=2)),
  ],
)
def test_weights_are_split_only_as_far_as_necessary(
  devices, weights, tensor, experts, expected
):
  sizes = sharding.generation_sizes(devices, weights, tensor, experts)
  assert sizes == dict.fromkeys(sharding.GENERATION_AXES, 1) | expected


def test_the_rules_of_generation_split_no_weight_over_rows():
  """Such a weight would be gathered for every id that is written."""
  model = abstract(samples.tiny_model())
  mesh = sharding.make_mesh({}, axes=sharding.GENERATION_AXES)
  rules = sharding.rules_of(mesh)
  assert rules is sharding.GENERATION_RULES
  assert sharding.rules_of(sharding.make_mesh({})) is sharding.RULES
  specs = sharding.named_leaves(sharding.param_specs(model, rules))
  for name, spec in specs.items():
    used = set(jax.tree.leaves(tuple(spec)))
    allowed = {'tensor', 'expert'} if '.moe.' in name else {'tensor'}
    assert used <= allowed, name
