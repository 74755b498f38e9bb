"""Starts the omni stage of a run from the weights of another run (config.init_from)."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.checkpoint.train_state import fresh_average, TrainState, use_average
from omni_jax.config import OMNI
from omni_jax.errors import UserError
from omni_jax.sharding import leaf_name, named_leaves

_FROZEN = 'buffers.frozen.'  # prefix of the names of autoencoders' arrays


class Source(NamedTuple):
  """The run that config.init_from names.

  Attributes:
    workdir: the run's folder.
    step: None for the last one.
  """

  workdir: str
  step: int | None


def named_run(init_from: str) -> Source:
  """Returns the run that 'FOLDER' or 'FOLDER@STEP' names."""
  path, at, step = init_from.rpartition('@')
  if at and step.isdecimal():
    return Source(path, int(step))
  return Source(init_from, None)


def _wanted(state: TrainState, own: Collection[str]) -> dict[str, Any]:
  """Returns the arrays that another run may provide, by name.

  The autoencoders that this run has itself are not among them.
  """
  model = use_average({'params': state.params, 'buffers': state.buffers})
  buffers = model['buffers']
  frozen = buffers['frozen'].items()
  buffers['frozen'] = {name: values for name, values in frozen if name not in own}
  return named_leaves(model)


def _without_none(tree: dict[str, Any]) -> dict[str, Any]:
  """Returns a nested dict without its None values and without empty dicts."""
  kept = {}
  for name, part in tree.items():
    if isinstance(part, dict):
      part = _without_none(part)
    if part is not None and part != {}:
      kept[name] = part
  return kept


def fresh_names(
  init_from: str, state: TrainState, *, own: Collection[str]
) -> list[str]:
  """Returns the names of the arrays that the other run cannot provide.

  They are absent there, or have another shape.

  Args:
    init_from: value of config.init_from.
    state: arrays, or shapes only.
    own: names of the autoencoders that this run has itself; all arrays of the others
      must come from the other run.

  Raises:
    UserError: if there is no such run or step, if no parameter agrees, or if an
      autoencoder does not.
  """
  source = named_run(init_from)
  try:
    with Checkpoints(source.workdir, OMNI, read_only=True) as checkpoints:
      shapes = checkpoints.shapes(source.step)
  except UserError as error:
    raise UserError(f'config.init_from={init_from}: {error}') from error
  theirs = named_leaves(use_average(shapes))
  ours = _wanted(state, own)
  fresh = []
  for name, leaf in ours.items():
    if name not in theirs or theirs[name].shape != leaf.shape:
      fresh.append(name)
  if not any(name.startswith('params.') for name in ours.keys() - fresh):
    raise UserError(
      f'config.init_from={init_from}: none of its parameters has the name and shape of '
      "one of this model's; it is a run of another kind, or every width differs"
    )
  for name in fresh:
    if name.startswith(_FROZEN):
      raise _autoencoder_error(init_from, name, theirs)
  return fresh


def _autoencoder_error(
  init_from: str, name: str, theirs: Mapping[str, Any]
) -> UserError:
  """Returns the error for an autoencoder's array that the other run cannot provide."""
  stage = name.removeprefix(_FROZEN).split('.')[0]
  problem = f'it has no {stage}'
  if any(other.startswith(f'{_FROZEN}{stage}.') for other in theirs):
    problem = f'its {stage} differs ({name})'
  return UserError(
    f'config.init_from={init_from}: {problem}; put {stage!r} into config.stages to '
    f'train one for this run, or give config.model.{stage} its sizes'
  )


def start_from(
  init_from: str, state: TrainState, *, own: Collection[str]
) -> tuple[TrainState, str]:
  """Returns a fresh state with the weights of another run, and a line for the log.

  The parameters (their average, if the run keeps one), router biases and autoencoders
  come from the other run. Optimizer, step and data start fresh, as do the arrays of
  `fresh_names`, which the line lists. Arguments and errors are those of `fresh_names`.
  """
  source = named_run(init_from)
  ours = _wanted(state, own)
  fresh = set(fresh_names(init_from, state, own=own))
  with Checkpoints(source.workdir, OMNI, read_only=True) as checkpoints:

    def placed(path, leaf):
      name = leaf_name(path).replace('buffers.ema.', 'params.', 1)
      target = ours.get(name)
      if target is None or target.shape != leaf.shape:
        return None
      return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=target.sharding)

    shapes = checkpoints.shapes(source.step)
    like = _without_none(jax.tree_util.tree_map_with_path(placed, shapes))
    model, step = checkpoints.restore_some(like, source.step)
  theirs = named_leaves(use_average(model))

  def chosen(path, leaf):
    name = leaf_name(path)
    if name not in ours or name in fresh:
      return leaf
    return theirs[name].astype(leaf.dtype)

  values = {'params': state.params, 'buffers': state.buffers}
  restored = jax.tree_util.tree_map_with_path(chosen, values)
  count = len(ours) - len(fresh)
  message = (
    f'omni: starts from {source.workdir} at step {step}: {count} of {len(ours)} arrays'
  )
  if fresh:
    message += f'; fresh: {", ".join(sorted(fresh))}'
  return fresh_average(state._replace(**restored)), message
