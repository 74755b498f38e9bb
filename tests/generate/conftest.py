"""A run that was never trained: enough to test everything but the quality of its replies."""

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


def untrained(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
  """The folder, with a run of the tiny config in it.

  Args:
    changes: of the config's model, flat: `image__fit='keep'`.
  """
  config = samples.tiny_run()
  config.model.audio.seconds = 0.48
  flat = {name.replace('__', '.'): value for name, value in changes.items()}
  config.model.update_from_flattened_dict(flat)
  model = ModelConfig.from_config(config.model)
  (folder / 'config.json').write_text(json.dumps(config.to_dict(), default=list))
  tx, frozen = samples.omni_optimizer(model), samples.frozen_values(model)
  state = init_model_state(model, tx, frozen, seed=0)
  # At the start the DiT returns zeros whatever it is told: a little noise lets its condition through.
  noisy = lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape)
  state = state._replace(params=jax.tree.map(noisy, state.params), step=jnp.int32(1))
  with Checkpoints(str(folder), 'omni') as checkpoints:
    checkpoints.save(state, b'{}')
  return folder


@pytest.fixture(scope='session')
def workdir(tmp_path_factory) -> pathlib.Path:
  return untrained(tmp_path_factory.mktemp('untrained'))


@pytest.fixture(scope='session')
def trained(workdir) -> TrainedModel:
  return load(str(workdir))


@pytest.fixture(scope='session')
def many_sizes(tmp_path_factory) -> TrainedModel:
  """Images keep their shapes and lie several in a block, an encoder sees them first, and sounds are heard as codes."""
  folder = tmp_path_factory.mktemp('many_sizes')
  changes = dict(
    image__fit='keep', image__embed__layers=1, audio__embed__hearing='codes'
  )
  return load(str(untrained(folder, **changes)))
