"""A run's folder -> its config, parameters and buffers, on one device."""

import functools
import json
from typing import Any

from etils import epath
import jax
from ml_collections import ConfigDict

from omni_jax.checkpoint.checkpoint import Checkpoints, listed_steps
from omni_jax.checkpoint.saved_config import saved_config
from omni_jax.errors import UserError
from omni_jax.model import OmniConfig
from omni_jax.train.optim import make_optimizer, OptimConfig
from omni_jax.train.state import codec_values, init_codec, init_omni, use_average

AVERAGE, RAW = WEIGHTS = ('average', 'raw')


def steps_of(workdir: str) -> list[int]:
  """The steps of the omni stage that can be restored now; a trainer adds and removes some."""
  return listed_steps(workdir, 'omni')


def last_step(workdir: str) -> int:
  """The step at which the run will be done, by its config; -1 while there is none."""
  path = epath.Path(workdir) / 'config.json'
  return json.loads(path.read_text())['omni']['steps'] if path.exists() else -1


def restore_run(
  workdir: str, step: int | None, weights: str = AVERAGE
) -> tuple[ConfigDict, dict[str, Any], int]:
  """Config, {'params', 'buffers'} of the omni stage, and the step that they are of (default: the last).

  Args:
    weights: one of WEIGHTS: the moving average where the run keeps one (config.omni.ema), or the parameters as trained.

  Raises:
    UserError: if there is no such run or step, or if its arrays do not fit its config.
  """
  config = saved_config(workdir)
  omni = OmniConfig.from_config(config.model)
  if weights not in WEIGHTS:
    raise UserError(f'weights={weights!r} is unknown; it is one of {WEIGHTS}')

  def init(average):
    tx = make_optimizer(OptimConfig(), 1)
    state = init_omni(
      omni, tx, codec_values(init_codec(omni, tx, seed=0)), seed=0, average=average
    )
    return {'params': state.params, 'buffers': state.buffers}

  whole = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  with Checkpoints(workdir, 'omni', read_only=True) as checkpoints:
    shapes = jax.eval_shape(
      functools.partial(init, 'ema' in checkpoints.shapes(step)['buffers'])
    )
    like = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), shapes
    )
    model, found = checkpoints.restore_model(like, step)
  averaged = use_average(model)
  return (
    config,
    averaged if weights == AVERAGE else averaged | {'params': model['params']},
    found,
  )
