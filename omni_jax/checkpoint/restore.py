"""A run's folder -> its config, parameters and buffers, on one device."""

import functools
import json
from typing import Any

from etils import epath
import jax
from ml_collections import ConfigDict

from omni_jax.checkpoint.checkpoints import Checkpoints, listed_steps
from omni_jax.checkpoint.init_values import init_buffers, init_frozen, init_params
from omni_jax.checkpoint.saved_config import saved_config
from omni_jax.checkpoint.train_state import use_average
from omni_jax.config import OMNI
from omni_jax.errors import UserError
from omni_jax.modalities.devices import TABLES, Tables
from omni_jax.model import ModelConfig

AVERAGE, RAW = WEIGHTS = ('average', 'raw')


def steps_of(workdir: str) -> list[int]:
  """The steps of the omni stage that can be restored now; a trainer adds and removes some."""
  return listed_steps(workdir, OMNI)


def last_step(workdir: str) -> int:
  """The step at which the run will be done, by its config; -1 while there is none."""
  path = epath.Path(workdir) / 'config.json'
  return json.loads(path.read_text())[OMNI]['steps'] if path.exists() else -1


def restore_run(
  workdir: str, step: int | None, weights: str = AVERAGE, tables: Tables = TABLES
) -> tuple[ConfigDict, dict[str, Any], int]:
  """Returns a run's config, {'params', 'buffers'} of its omni stage, and the step that they are of.

  Args:
    step: None for the last one.
    weights: one of WEIGHTS: the moving average where the run keeps one (config.omni.ema), or the parameters as trained.
    tables: of the media that the run may have.

  Raises:
    UserError: if there is no such run or step, or if its arrays do not fit its config.
  """
  config = saved_config(workdir, tables)
  model_config = ModelConfig.from_config(config.model, tables)
  if weights not in WEIGHTS:
    raise UserError(f'weights={weights!r} is unknown; it is one of {WEIGHTS}')
  whole = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  with Checkpoints(workdir, OMNI, read_only=True) as checkpoints:
    has_average = 'ema' in checkpoints.shapes(step)['buffers']
    init = functools.partial(_init_model, model_config, average=has_average)
    like = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
      jax.eval_shape(init),
    )
    model, found = checkpoints.restore_model(like, step)
  averaged = use_average(model)
  if weights == RAW:
    averaged = averaged | {'params': model['params']}
  return config, averaged, found


def _init_model(config: ModelConfig, *, average: bool) -> dict[str, Any]:
  """Returns {'params', 'buffers'} of a fresh run, with or without an average."""
  params = init_params(config, seed=0)
  frozen = init_frozen(config, seed=0)
  buffers = init_buffers(config, frozen, params if average else None)
  return {'params': params, 'buffers': buffers}
