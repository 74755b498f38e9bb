"""config.init_from: a run whose omni stage starts from the weights of another run."""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.checkpoint.train_state import fresh_average, TrainState, use_average
from omni_jax.config import OMNI
from omni_jax.errors import UserError
from omni_jax.sharding import name_of


class Source(NamedTuple):
  """What config.init_from names: 'FOLDER' or 'FOLDER@STEP' (default: its last step)."""

  workdir: str
  step: int | None


def named_run(init_from: str) -> Source:
  path, at, step = init_from.rpartition('@')
  return Source(path, int(step)) if at and step.isdecimal() else Source(init_from, None)


def _wanted(state: TrainState, own: Collection[str]) -> dict[str, Any]:
  """Returns the arrays that another run may give, by name; not the autoencoders that this run has itself."""
  tree = use_average({'params': state.params, 'buffers': state.buffers})
  frozen = tree['buffers']['frozen']
  others = {name: values for name, values in frozen.items() if name not in own}
  return _by_name(tree | {'buffers': tree['buffers'] | {'frozen': others}})


def _by_name(tree: Any) -> dict[str, Any]:
  return {
    name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _without_none(tree: dict[str, Any]) -> dict[str, Any]:
  kept = {
    name: _without_none(part) if isinstance(part, dict) else part
    for name, part in tree.items()
  }
  return {name: part for name, part in kept.items() if part is not None and part != {}}


def fresh_names(
  init_from: str, state: TrainState, *, own: Collection[str]
) -> list[str]:
  """Names of the arrays that the other run cannot give: absent there, or of another shape.

  Args:
    state: arrays, or shapes only.
    own: names of the autoencoders that this run has itself; each of the others must be the other run's, as a whole.

  Raises:
    UserError: if there is no such run or step, if no parameter agrees, or if an autoencoder does not.
  """
  source = named_run(init_from)
  try:
    with Checkpoints(source.workdir, OMNI, read_only=True) as checkpoints:
      theirs = _by_name(use_average(checkpoints.shapes(source.step)))
  except UserError as error:
    raise UserError(f'config.init_from={init_from}: {error}') from error
  ours = _wanted(state, own)
  fresh = [
    name
    for name, leaf in ours.items()
    if name not in theirs or theirs[name].shape != leaf.shape
  ]
  if not any(name.startswith('params.') for name in ours.keys() - fresh):
    raise UserError(
      f'config.init_from={init_from}: none of its parameters has the name and shape of one of this '
      "model's; it is a run of another kind, or every width differs"
    )
  prefix = 'buffers.frozen.'
  for name in fresh:
    if name.startswith(prefix):
      stage = name.removeprefix(prefix).split('.')[0]
      there = any(other.startswith(f'{prefix}{stage}.') for other in theirs)
      problem = f'its {stage} is another ({name})' if there else f'it has no {stage}'
      raise UserError(
        f'config.init_from={init_from}: {problem}; put {stage!r} into config.stages to train '
        f'one for this run, or give config.model.{stage} its sizes'
      )
  return fresh


def start_from(
  init_from: str, state: TrainState, *, own: Collection[str]
) -> tuple[TrainState, str]:
  """A fresh state with the other run's parameters (its average where it keeps one), router biases and autoencoders.

  Optimizer, step and data start anew. As `fresh_names`, whose arrays stay as they are; the text says which.
  """
  source, ours = named_run(init_from), _wanted(state, own)
  fresh = set(fresh_names(init_from, state, own=own))
  with Checkpoints(source.workdir, OMNI, read_only=True) as checkpoints:
    saved = checkpoints.shapes(source.step)

    def placed(path, leaf):
      own = ours.get(name_of(path).replace('buffers.ema.', 'params.', 1))
      fits = own is not None and own.shape == leaf.shape
      return (
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own.sharding)
        if fits
        else None
      )

    wanted = _without_none(jax.tree_util.tree_map_with_path(placed, saved))
    model, step = checkpoints.restore_some(wanted, source.step)
  theirs = _by_name(use_average(model))

  def chosen(path, own):
    name = name_of(path)
    return theirs[name].astype(own.dtype) if name in ours and name not in fresh else own

  got = jax.tree_util.tree_map_with_path(
    chosen, {'params': state.params, 'buffers': state.buffers}
  )
  said = f'omni: starts from {source.workdir} at step {step}: {len(ours) - len(fresh)} of {len(ours)} arrays'
  said += f'; fresh: {", ".join(sorted(fresh))}' if fresh else ''
  return fresh_average(state._replace(**got)), said
