"""The values of autoencoders: restored from the stage that trained them, and told apart by a digest."""

import functools
import hashlib
from typing import Any

import jax
import numpy as np

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.checkpoint.init_values import init_autoencoder
from omni_jax.errors import UserError
from omni_jax.model import ModelConfig
from omni_jax.sharding import name_of


def fingerprint(config: ModelConfig, name: str, values: dict[str, Any]) -> str:
  """Returns a digest of all that codes depend on: parameters, buffers that encoding reads, and sizes."""
  medium, row = config.tables.autoencoders()[name]
  text = row.identity(config.media[medium], config.autoencoders[name])
  digest = hashlib.blake2b(text.encode(), digest_size=8)
  read = row.read_buffers(values['buffers'])
  tree = {'params': values['params'], 'buffers': read}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.asarray(leaf)
    digest.update(f'{name_of(path)} {array.dtype} {array.shape}'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def restore_autoencoder(
  workdir: str, config: ModelConfig, name: str, place: jax.sharding.Sharding
) -> tuple[dict[str, Any], int]:
  """Returns the values of an autoencoder that a run has trained, and the step that they are of."""
  shapes = jax.eval_shape(functools.partial(init_autoencoder, config, name, seed=0))
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes
  )
  with Checkpoints(workdir, name, read_only=True) as checkpoints:
    return checkpoints.restore_model(like)


def finished_autoencoder(
  workdir: str, config: Any, name: str, place: jax.sharding.Sharding
) -> dict[str, Any]:
  """Returns the values of an autoencoder of a run whose stage is finished, or that took that of another run.

  Args:
    config: of the run.

  Raises:
    UserError: if it is not finished.
  """
  model_config = ModelConfig.from_config(config.model)
  source = config[name].get('init_from')
  values, step = restore_autoencoder(source or workdir, model_config, name, place)
  if not source and step < config[name].steps:
    raise UserError(
      f'the {name} stage of {workdir} stands at step {step} of {config[name].steps}: finish it first'
    )
  return values
