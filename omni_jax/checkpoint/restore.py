"""Restores the config, parameters and buffers of a run, straight onto a mesh."""

from collections.abc import Mapping
import functools
import json
from typing import Any, NamedTuple

from etils import epath
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from omni_jax import sharding
from omni_jax.checkpoint.checkpoints import Checkpoints, complete_steps
from omni_jax.checkpoint.init_values import init_buffers, init_frozen
from omni_jax.checkpoint.placement import generation_mesh, generation_params
from omni_jax.checkpoint.saved_config import saved_config
from omni_jax.config import AVERAGE, OMNI, RAW, WEIGHTS
from omni_jax.errors import UserError
from omni_jax.modalities.devices import TABLES, Tables
from omni_jax.model import ModelConfig
from omni_jax.paths import checked
from omni_jax.run_folder import CONFIG_FILE


class RestoredRun(NamedTuple):
  """A run as it was restored for generation.

  Attributes:
    config: config of the run.
    step: training step of the parameters.
    params: parameters, split as `sharding.GENERATION_RULES` says.
    buffers: router biases and frozen autoencoders, replicated.
    mesh: mesh of the arrays.
  """

  config: ConfigDict
  step: int
  params: Any
  buffers: Any
  mesh: Mesh


def steps_of(workdir: str) -> list[int]:
  """Returns the steps of the omni stage that can be restored now.

  A trainer may add and remove some at any time.
  """
  return complete_steps(workdir, OMNI)


def last_step(workdir: str) -> int:
  """Returns the last step of a run by its config; -1 if it has no config yet."""
  path = epath.Path(workdir) / CONFIG_FILE
  if not path.exists():
    return -1
  return json.loads(path.read_text())[OMNI]['steps']


def restore_run(
  workdir: str,
  step: int | None,
  weights: str = AVERAGE,
  tables: Tables = TABLES,
  mesh: Mapping[str, int] | None = None,
) -> RestoredRun:
  """Restores what generation needs of a run's omni stage.

  Every array is read onto the devices that will compute with it, a few at a time: no
  device holds more than its own part of the state, and the host little more than one
  array. Either the parameters or their average are read, never both.

  Args:
    workdir: folder of the run.
    step: number of the step; None for the last one.
    weights: one of WEIGHTS: the moving average, if the run keeps one (config.omni.ema),
      or the parameters as trained.
    tables: tables of the media that the run may have.
    mesh: sizes of the axes of the mesh; None for the one that `generation_mesh` chooses
      for all devices of this process.

  Raises:
    UserError: if there is no such run or step, or if its arrays do not fit its config.
  """
  workdir = checked(workdir, '--workdir')
  config = saved_config(workdir, tables)
  model_config = ModelConfig.from_config(config.model, tables)
  if weights not in WEIGHTS:
    raise UserError(f'weights={weights!r} is unknown; it is one of {WEIGHTS}')
  device_mesh = generation_mesh(model_config, mesh)
  # Before the steps are looked at: a trainer may remove one in less time.
  like, dtypes = _wanted(model_config, device_mesh)
  with Checkpoints(workdir, OMNI, read_only=True) as checkpoints:
    has_average = 'ema' in checkpoints.shapes(step)['buffers']
    if not has_average:
      del like['buffers']['ema']
      restore = checkpoints.restore_model
    elif weights == RAW:
      del like['buffers']['ema']
      restore = checkpoints.restore_some
    else:
      del like['params']
      restore = checkpoints.restore_model
    values, restored_step = restore(like, step, dtypes)
  buffers = dict(values['buffers'])
  params = buffers.pop('ema') if 'ema' in buffers else values['params']
  return RestoredRun(config, restored_step, params, buffers, device_mesh)


class _Wanted(NamedTuple):
  """What to read of a step: {'params', 'buffers'} twice, in the same structure.

  Attributes:
    like: shapes and dtypes as they were saved, with the shardings of generation.
    dtypes: dtypes to cast the arrays to, by name.
  """

  like: dict[str, Any]
  dtypes: dict[str, Any]


def _wanted(config: ModelConfig, mesh: Mesh) -> _Wanted:
  """Returns what to read of a step, both the parameters and their average."""
  placed = generation_params(config, mesh)
  params = jax.tree.map(
    lambda to: jax.ShapeDtypeStruct(to.shape, config.weights, sharding=to.sharding),
    placed,
  )
  frozen = jax.eval_shape(functools.partial(init_frozen, config, seed=0))
  buffers = jax.eval_shape(functools.partial(init_buffers, config, frozen))
  replicated = sharding.replicated(mesh)
  buffers = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), buffers
  )
  dtypes = {}
  for name, x in sharding.named_leaves(placed).items():
    dtypes[f'params.{name}'] = x.dtype
    dtypes[f'buffers.ema.{name}'] = x.dtype
  buffers['ema'] = params
  return _Wanted({'params': params, 'buffers': buffers}, dtypes)
