"""Provides runs that were never trained.

They are enough to test everything but the quality of replies.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import samples

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.generate.api import load, TrainedModel
from omni_jax.model import ModelConfig
from omni_jax.train.state import init_model_state


def noisy(x: jax.Array) -> jax.Array:
  """Returns a parameter with a little noise added.

  A fresh DiT returns zeros for every condition; noise makes the condition matter.
  """
  return x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape)


def write_run(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
  """Writes a run of the tiny config into a folder and returns the folder.

  Args:
    changes: changes of `config.model`, flattened: `image__fit='keep'`.
  """
  config = samples.tiny_run()
  config.model.audio.seconds = 0.48
  flat = {name.replace('__', '.'): value for name, value in changes.items()}
  config.model.update_from_flattened_dict(flat)
  model = ModelConfig.from_config(config.model)
  (folder / 'config.json').write_text(json.dumps(config.to_dict(), default=list))
  optimizer = samples.omni_optimizer(model)
  frozen = samples.frozen_values(model)
  state = init_model_state(model, optimizer, frozen, seed=0)
  params = jax.tree.map(noisy, state.params)
  state = state._replace(params=params, step=jnp.int32(1))
  with Checkpoints(str(folder), 'omni') as checkpoints:
    checkpoints.save(state, b'{}')
  return folder


@pytest.fixture(scope='session')
def workdir(tmp_path_factory) -> pathlib.Path:
  return write_run(tmp_path_factory.mktemp('untrained'))


@pytest.fixture(scope='session')
def trained(workdir) -> TrainedModel:
  """Returns the run of `workdir`, whose weights are random, as `load` restores it."""
  return load(str(workdir), mesh={})


@pytest.fixture(scope='session')
def many_sizes(tmp_path_factory) -> TrainedModel:
  """Returns a model for images of many shapes, several of them in a block.

  An encoder reads images first, and sounds are heard as codes.
  """
  folder = tmp_path_factory.mktemp('many_sizes')
  changes = dict(
    image__fit='keep', image__embed__layers=1, audio__embed__hearing='codes'
  )
  return load(str(write_run(folder, **changes)), mesh={})
