"""A run that was never trained: enough to test everything but the quality of its replies."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import samples

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.generate.api import load, Omni
from omni_jax.model import OmniConfig
from omni_jax.train.state import init_omni


def untrained(folder: pathlib.Path, **dit: Any) -> pathlib.Path:
  """The folder, with a run of the tiny config in it."""
  config = samples.tiny_run()
  config.model.audio.seconds = 0.48
  config.model.dit.update(dit)
  omni = OmniConfig.from_config(config.model)
  (folder / 'config.json').write_text(json.dumps(config.to_dict(), default=list))
  state = init_omni(
    omni, samples.omni_optimizer(omni), samples.codec_values(omni), seed=0
  )
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
def omni(workdir) -> Omni:
  return load(str(workdir))


@pytest.fixture(scope='session')
def noise_in_decoder(tmp_path_factory) -> Omni:
  """The baseline without a DiT."""
  return load(
    str(
      untrained(
        tmp_path_factory.mktemp('noise_in_decoder'), denoiser='decoder', noises=1
      )
    )
  )
