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
    step: number of the step; None for the last one.
  """

  workdir: str
  step: int | None


def named_run(init_from: str) -> Source:
  """Returns the run that 'FOLDER' or 'FOLDER@STEP' names."""
  path, at, step = init_from.rpartition('@')
  if at and step.isdecimal():
    return Source(path, int(step))
  return Source(init_from, None)


def _wanted_arrays(state: TrainState, own: Collection[str]) -> dict[str, Any]:
  """Returns the arrays that another run may provide, by name.

  Those of this run's own autoencoders are left out.
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
    own: names of this run's own autoencoders; all arrays of the others must come from
      the other run.

  Raises:
    UserError: if there is no such run or step, or if it cannot provide any parameter,
      or an array of an autoencoder that must come from it.
  """
  source = named_run(init_from)
  try:
    with Checkpoints(source.workdir, OMNI, read_only=True) as checkpoints:
      shapes = checkpoints.shapes(source.step)
  except UserError as error:
    raise UserError(f'config.init_from={init_from}: {error}') from error
  provided = named_leaves(use_average(shapes))
  wanted = _wanted_arrays(state, own)
  fresh = []
  for name, leaf in wanted.items():
    if name not in provided or provided[name].shape != leaf.shape:
      fresh.append(name)
  if not any(name.startswith('params.') for name in wanted.keys() - fresh):
    raise UserError(
      f'config.init_from={init_from}: none of its parameters has the name and shape of '
      "one of this model's; it is a run of another kind, or every width differs"
    )
  for name in fresh:
    if name.startswith(_FROZEN):
      raise _autoencoder_error(init_from, name, provided)
  return fresh


def _autoencoder_error(
  init_from: str, name: str, provided: Mapping[str, Any]
) -> UserError:
  """Returns the error for an autoencoder's array that the other run cannot provide."""
  stage = name.removeprefix(_FROZEN).split('.')[0]
  problem = f'it has no {stage}'
  if any(other.startswith(f'{_FROZEN}{stage}.') for other in provided):
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
  wanted = _wanted_arrays(state, own)
  fresh = set(fresh_names(init_from, state, own=own))
  with Checkpoints(source.workdir, OMNI, read_only=True) as checkpoints:

    def shape_to_read(path, leaf):
      name = leaf_name(path).replace('buffers.ema.', 'params.', 1)
      target = wanted.get(name)
      if target is None or target.shape != leaf.shape:
        return None
      return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=target.sharding)

    shapes = checkpoints.shapes(source.step)
    like = _without_none(jax.tree_util.tree_map_with_path(shape_to_read, shapes))
    model, step = checkpoints.restore_some(like, source.step)
  provided = named_leaves(use_average(model))

  def initial_value(path, leaf):
    name = leaf_name(path)
    if name not in wanted or name in fresh:
      return leaf
    return provided[name].astype(leaf.dtype)

  values = {'params': state.params, 'buffers': state.buffers}
  restored = jax.tree_util.tree_map_with_path(initial_value, values)
  count = len(wanted) - len(fresh)
  message = f'omni: starts from {source.workdir} at step {step}: {count} of {len(wanted)} arrays'
  if fresh:
    message += f'; fresh: {", ".join(sorted(fresh))}'
  return fresh_average(state._replace(**restored)), message
