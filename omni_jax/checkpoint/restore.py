"""Restores the config, parameters and buffers of a run on one device."""

import functools
import json
from typing import Any

from etils import epath
import jax
from ml_collections import ConfigDict

from omni_jax.checkpoint.checkpoints import Checkpoints, complete_steps
from omni_jax.checkpoint.init_values import init_buffers, init_frozen, init_params
from omni_jax.checkpoint.saved_config import saved_config
from omni_jax.checkpoint.train_state import use_average
from omni_jax.config import AVERAGE, OMNI, RAW, WEIGHTS
from omni_jax.errors import UserError
from omni_jax.modalities.devices import TABLES, Tables
from omni_jax.model import ModelConfig
from omni_jax.paths import checked
from omni_jax.run_folder import CONFIG_FILE


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
  workdir: str, step: int | None, weights: str = AVERAGE, tables: Tables = TABLES
) -> tuple[ConfigDict, dict[str, Any], int]:
  """Returns a run's config, {'params', 'buffers'} of its omni stage, and their step.

  Args:
    workdir: folder of the run.
    step: number of the step; None for the last one.
    weights: one of WEIGHTS: the moving average, if the run keeps one (config.omni.ema),
      or the parameters as trained.
    tables: tables of the media that the run may have.

  Raises:
    UserError: if there is no such run or step, or if its arrays do not fit its config.
  """
  workdir = checked(workdir, '--workdir')
  config = saved_config(workdir, tables)
  model_config = ModelConfig.from_config(config.model, tables)
  if weights not in WEIGHTS:
    raise UserError(f'weights={weights!r} is unknown; it is one of {WEIGHTS}')
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  with Checkpoints(workdir, OMNI, read_only=True) as checkpoints:
    has_average = 'ema' in checkpoints.shapes(step)['buffers']
    init = functools.partial(_init_model, model_config, average=has_average)
    like = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
      jax.eval_shape(init),
    )
    model, restored_step = checkpoints.restore_model(like, step)
  values = use_average(model)
  if weights == RAW:
    values['params'] = model['params']
  return config, values, restored_step


def _init_model(config: ModelConfig, *, average: bool) -> dict[str, Any]:
  """Returns {'params', 'buffers'} of a fresh run, with or without an average."""
  params = init_params(config, seed=0)
  frozen = init_frozen(config, seed=0)
  buffers = init_buffers(config, frozen, params if average else None)
  return {'params': params, 'buffers': buffers}
