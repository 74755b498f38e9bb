"""Plain Orbax reads our checkpoints by its standard calls, as docs/running.md shows."""

from faults.toy import same, save_steps, stage_folder, state_at
import jax
from jax.sharding import NamedSharding, PartitionSpec
import orbax.checkpoint as ocp


def test_a_checkpointer_reads_an_item(tmp_path):
  save_steps(tmp_path, 1, 2)
  folder = stage_folder(tmp_path) / '2'
  model = ocp.StandardCheckpointer().restore(folder / 'model')
  assert same(model['params'], state_at(2).params)
  assert same(model['buffers'], state_at(2).buffers)


def test_a_checkpointer_reads_an_item_of_more_devices_onto_one(tmp_path):
  mesh = jax.make_mesh((8,), ('data',))
  replicated = NamedSharding(mesh, PartitionSpec())
  saved = ocp.StandardCheckpointer()
  saved.save(tmp_path / 'model', jax.device_put(state_at(2).params, replicated))
  saved.wait_until_finished()
  checkpointer = ocp.StandardCheckpointer()
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
    checkpointer.metadata(tmp_path / 'model').item_metadata.tree,
  )
  assert same(checkpointer.restore(tmp_path / 'model', shapes), state_at(2).params)


def test_a_manager_finds_the_last_step_and_reads_it_into_a_tree(tmp_path):
  save_steps(tmp_path, 1, 2)
  shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state_at(2))
  wanted = {'params': shapes.params, 'buffers': shapes.buffers}
  with ocp.CheckpointManager(stage_folder(tmp_path)) as manager:
    step = manager.latest_step()
    args = ocp.args.Composite(model=ocp.args.StandardRestore(wanted))
    model = manager.restore(step, args=args)['model']
  assert step == 2
  assert same(model['params'], state_at(2).params)
