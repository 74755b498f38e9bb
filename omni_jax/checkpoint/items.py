"""Writes and reads the items in the folder of a step with Orbax."""

from collections.abc import Callable, Mapping
from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp

from omni_jax.checkpoint import manifest
from omni_jax.checkpoint.manifest import Damaged, Manifest
from omni_jax.checkpoint.train_state import TrainState
from omni_jax.errors import UserError

MODEL = 'model'
TRAIN = 'train'
ITERATOR = 'iterator'
# The fields of a TrainState that an item holds.
FIELDS = {MODEL: ('params', 'buffers'), TRAIN: ('opt_state', 'step', 'rng')}
# Words of errors that say nothing about the files: such a step is not damaged.
NOT_DAMAGE = (
  'RESOURCE_EXHAUSTED',
  'UNAVAILABLE',
  'DEADLINE_EXCEEDED',
  'PERMISSION_DENIED',
  'UNAUTHENTICATED',
)


def items_of(state: TrainState) -> dict[str, Any]:
  """Returns the values of a state by item and field."""
  items = {}
  for item, fields in FIELDS.items():
    items[item] = {field: getattr(state, field) for field in fields}
  return items


def fields_of(items: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of all items in one dict, by the names that a manifest uses."""
  fields: dict[str, Any] = {}
  for tree in items.values():
    fields |= tree
  return fields


def make_writer(on_complete: Callable[[], None]) -> ocp.AsyncCheckpointer:
  """Returns an Orbax checkpointer that writes steps in the background.

  Files are written in place, since object stores cannot rename: only our manifest says
  that a step is complete.

  Args:
    on_complete: called in the background once all files of a step exist.
  """
  in_place = ocp.path.atomicity.CommitFileTemporaryPath
  handlers = {
    MODEL: ocp.StandardCheckpointHandler(),
    TRAIN: ocp.StandardCheckpointHandler(),
    ITERATOR: ocp.JsonCheckpointHandler(),
  }
  options = ocp.CompositeOptions(temporary_path_class=in_place)
  return ocp.AsyncCheckpointer(
    ocp.CompositeCheckpointHandler(composite_options=options, **handlers),
    temporary_path_class=in_place,
    async_options=ocp.options.AsyncOptions(post_finalization_callback=on_complete),
  )


def save_args(state: TrainState, iterator: bytes) -> ocp.args.Composite:
  """Returns the arguments with which the checkpointer saves a step."""
  args = {item: ocp.args.StandardSave(tree) for item, tree in items_of(state).items()}
  args[ITERATOR] = ocp.args.JsonSave({'state': iterator.decode()})
  return ocp.args.Composite(**args)


def read_iterator(step_folder: epath.Path) -> bytes:
  """Returns the state of the data iterator, as it was given to `save_args`."""
  item = ocp.JsonCheckpointHandler().restore(step_folder / ITERATOR)
  return item['state'].encode()


def read_arrays(folder: epath.Path, like: Any, saved: Manifest) -> Any:
  """Returns the arrays in the folder of an item.

  They are read by the handler alone: a Checkpointer would wait for other processes,
  which may have failed.

  Args:
    folder: folder of the item.
    like: shapes and shardings of the arrays.
    saved: manifest of the step.

  Raises:
    Damaged: if they cannot be read because of the files.
    UserError: if they cannot be read at the moment.
  """
  restore_args = ocp.checkpoint_utils.construct_restore_args(like)
  args = ocp.args.PyTreeRestore(like, restore_args=restore_args, partial_restore=True)
  try:
    return manifest.with_retries(
      lambda: ocp.PyTreeCheckpointHandler().restore(folder, args=args), folder
    )
  except (MemoryError, UserError):
    raise
  except Exception as error:
    array = _array_named_in(error, folder, saved)
    raise _read_error(error, folder, array) from error


def read_shapes(step_folder: epath.Path) -> dict[str, Any]:
  """Returns {'params', 'buffers'} of a step with shapes in place of arrays.

  Raises:
    Damaged: if they cannot be read because of the files.
    UserError: if they cannot be read at the moment.
  """
  folder = step_folder / MODEL
  try:
    metadata = manifest.with_retries(
      lambda: ocp.StandardCheckpointHandler().metadata(folder), folder
    )
  except UserError:
    raise
  except Exception as error:
    # Orbax raises all sorts of errors for a step that is removed while it is read.
    raise _read_error(error, folder, 'its metadata') from error
  tree = getattr(metadata, 'tree', metadata)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _array_named_in(error: Exception, folder: epath.Path, saved: Manifest) -> str:
  """Returns a description of the array that an error of an item is about."""
  fields = FIELDS[folder.name]
  own = [name for name in saved.leaves if name.partition('.')[0] in fields]
  text = str(error)
  mentioned = [name for name in own if name in text]
  if not mentioned:
    return f'an array of {folder.name}'
  return f'array {max(mentioned, key=len)}'


def _read_error(error: Exception, folder: epath.Path, what: str) -> Damaged | UserError:
  """Returns the error to raise for an error of Orbax.

  It is Damaged, or a UserError if the step merely cannot be read at the moment.
  """
  line = first_line(error)
  if any(word in str(error) for word in NOT_DAMAGE):
    return UserError(
      f'{folder} cannot be read: {line}; start again when it can be read'
    )
  return Damaged(f'{what} cannot be read: {type(error).__name__}: {line}')


def first_line(error: BaseException) -> str:
  """Returns the first line of an error's message, cut to the length of a log line."""
  return next(iter(str(error).strip().splitlines()), '')[:400]
