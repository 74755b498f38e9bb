"""Checkpoints of one stage through Orbax: model, optimizer and the data iterator's bytes, kept apart."""

from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp

from omni_jax.errors import UserError
from omni_jax.train.optim import name_of
from omni_jax.train.state import TrainState


class Checkpoints:
  """`checkpoints/STAGE/STEP/` with items model (params, buffers), train (optimizer, step, rng) and iterator.

  Use as a context: leaving it waits for the save under way, whatever happened inside.
  """

  def __init__(self, workdir: str, stage: str, *, keep: int = 2, read_only: bool = False):
    self._path = epath.Path(workdir).absolute() / 'checkpoints' / stage
    if read_only and not self._path.exists():
      raise UserError(f'no checkpoint of stage {stage!r} in {workdir}; train first, or check --workdir')
    options = ocp.CheckpointManagerOptions(max_to_keep=None if read_only else keep, read_only=read_only,
                                           create=not read_only)
    handlers = {'model': ocp.StandardCheckpointHandler(), 'train': ocp.StandardCheckpointHandler(),
                'iterator': ocp.JsonCheckpointHandler()}
    self._manager = ocp.CheckpointManager(self._path, options=options, item_handlers=handlers)

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *_) -> None:
    self._manager.wait_until_finished()
    self._manager.close()

  def latest(self) -> int | None:
    return self._manager.latest_step()

  def save(self, state: TrainState, iterator: bytes) -> None:
    """Begins to write; the arrays are copied before this returns."""
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    self._manager.save(step, args=ocp.args.Composite(
        model=ocp.args.StandardSave({'params': state.params, 'buffers': state.buffers}),
        train=ocp.args.StandardSave({'opt_state': state.opt_state, 'step': state.step, 'rng': state.rng}),
        iterator=ocp.args.JsonSave({'state': iterator.decode()})))

  def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, bytes]:
    """State and iterator of a step (default: the last), placed as `like`, whose leaves carry shapes and shardings."""
    step = self._find(step)
    self._check(step, 'model', {'params': like.params, 'buffers': like.buffers})
    rest = {'opt_state': like.opt_state, 'step': like.step, 'rng': like.rng}
    self._check(step, 'train', rest)
    got = self._manager.restore(step, args=ocp.args.Composite(
        model=ocp.args.StandardRestore({'params': like.params, 'buffers': like.buffers}),
        train=ocp.args.StandardRestore(rest), iterator=ocp.args.JsonRestore()))
    return TrainState(**got.model, **got.train), got.iterator['state'].encode()

  def restore_model(self, like: dict[str, Any], step: int | None = None) -> tuple[dict[str, Any], int]:
    """Parameters and buffers only, for evaluation and generation, and the step they are of."""
    step = self._find(step)
    self._check(step, 'model', like)
    return self._manager.restore(step, args=ocp.args.Composite(model=ocp.args.StandardRestore(like))).model, step

  def shapes(self, step: int | None = None) -> dict[str, Any]:
    """{'params', 'buffers'} of a step as they were saved, with shapes in place of arrays."""
    saved = self._manager.item_metadata(self._find(step))['model']
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), getattr(saved, 'tree', saved))

  def _find(self, step: int | None) -> int:
    steps = self._manager.all_steps()
    if not steps or (step is not None and step not in steps):
      raise UserError(f'no step {"" if step is None else step} in {self._path}; there are {sorted(steps)}')
    return max(steps) if step is None else step

  def _check(self, step: int, item: str, like: Any) -> None:
    """Orbax casts a changed dtype and fails late on a changed shape: compare before anything is read."""
    saved, wanted = _shapes(self._manager.item_metadata(step)[item]), _shapes(like)
    differ = [name for name in sorted(saved.keys() | wanted.keys()) if saved.get(name) != wanted.get(name)]
    if differ:
      name = differ[0]
      raise UserError(f'checkpoint {self._path}/{step} is of another model: {len(differ)} arrays differ, first {name}: '
                      f'saved {saved.get(name, "absent")}, wanted {wanted.get(name, "absent")}; '
                      f'use the config it was trained with, or another --workdir')


def has_checkpoint(workdir: str, stage: str) -> bool:
  """Whether a stage of a run has saved anything yet; makes no folder."""
  if not (epath.Path(workdir).absolute() / 'checkpoints' / stage).exists():
    return False
  with Checkpoints(workdir, stage, read_only=True) as checkpoints:
    return checkpoints.latest() is not None


def _shapes(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
  """Shape and dtype of every array by its name."""
  leaves = jax.tree_util.tree_leaves_with_path(getattr(tree, 'tree', tree))
  return {name_of(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}
