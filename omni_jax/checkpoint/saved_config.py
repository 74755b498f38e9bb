"""Writes and reads the config in a run's folder."""

import json

from etils import epath
from ml_collections import ConfigDict

from omni_jax.config import with_paths
from omni_jax.errors import UserError
from omni_jax.modalities.devices import TABLES, Tables
from omni_jax.model import ModelConfig
from omni_jax.run_folder import CONFIG_FILE, write_whole


def save_config(config: ConfigDict, workdir: str) -> None:
  """Writes the config of a run; other commands may read it at any time."""
  text = json.dumps(config.to_dict(), indent=2, default=list)
  write_whole(epath.Path(workdir) / CONFIG_FILE, text + '\n')


def saved_config(workdir: str, tables: Tables = TABLES) -> ConfigDict:
  """Returns the config that a run was last started with.

  Raises:
    UserError: if there is no such run, or if its config.json is not a config.
  """
  path = epath.Path(workdir) / CONFIG_FILE
  if not path.exists():
    raise UserError(
      f'{workdir} holds no run: {path} is missing; train first, or check the name'
    )
  try:
    config = ConfigDict(json.loads(path.read_text()))
    ModelConfig.from_config(config.model, tables)  # raises an error if it is no config
  except (ValueError, AttributeError, KeyError, TypeError) as error:
    raise UserError(f'{path} is not the config of a run: {error}') from error
  return with_paths(config)
