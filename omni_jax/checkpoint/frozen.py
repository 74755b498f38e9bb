"""Restores the values of autoencoders from the stages that trained them.

A digest tells the values of one autoencoder from those of another.
"""

import functools
import hashlib
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.checkpoint.init_values import init_autoencoder
from omni_jax.config import OMNI
from omni_jax.errors import UserError
from omni_jax.model import ModelConfig
from omni_jax.sharding import named_leaves


def fingerprint(config: ModelConfig, name: str, values: dict[str, Any]) -> str:
  """Returns a digest of everything that the codes of an autoencoder depend on.

  That is its parameters, the buffers that encoding reads, and its sizes.
  """
  medium, row = config.tables.autoencoders()[name]
  text = row.identity(config.media[medium], config.autoencoders[name])
  digest = hashlib.blake2b(text.encode(), digest_size=8)
  buffers = row.read_buffers(values['buffers'])
  tree = {'params': values['params'], 'buffers': buffers}
  for leaf_name, leaf in named_leaves(tree).items():
    array = np.asarray(leaf)
    digest.update(f'{leaf_name} {array.dtype} {array.shape}'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def restore_autoencoder(
  workdir: str, config: ModelConfig, name: str, sharding: jax.sharding.Sharding
) -> tuple[dict[str, Any], int]:
  """Returns the values of an autoencoder that a run has trained, and their step."""
  shapes = jax.eval_shape(functools.partial(init_autoencoder, config, name, seed=0))
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
  )
  with Checkpoints(workdir, name, read_only=True) as checkpoints:
    return checkpoints.restore_model(like)


def finished_autoencoder(
  workdir: str,
  config: ConfigDict,
  model_config: ModelConfig,
  name: str,
  sharding: jax.sharding.Sharding,
) -> dict[str, Any]:
  """Returns the values of an autoencoder of a run that has finished training it.

  If the run took the autoencoder from another run, they come from there.

  Args:
    workdir: folder of the run.
    config: config of the run.
    model_config: shapes of its network.
    name: name of the autoencoder.
    sharding: sharding of every array.

  Raises:
    UserError: if the autoencoder's stage is not finished.
  """
  source = config[name].get('init_from')
  values, step = restore_autoencoder(source or workdir, model_config, name, sharding)
  steps = config[name].steps
  if not source and step < steps:
    raise UserError(
      f'the {name} stage of {workdir} is at step {step} of {steps}; finish it first: '
      f'config.stages must hold {name!r} before {OMNI!r}'
    )
  return values
