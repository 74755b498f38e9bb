"""Parts of a run's config as the frozen dataclasses of the host side; loads no jax."""

from collections.abc import Mapping, Sequence
import os
import runpy
import sys
from typing import Any, TypeVar

from absl import flags
from ml_collections import ConfigDict

from omni_jax.errors import UserError
from omni_jax.modalities.contract import Host
from omni_jax.modalities.hosts import HOSTS

T = TypeVar('T')
OMNI, EVALUATE = 'omni', 'evaluate'  # stages; those of autoencoders have their names
NETWORKS = ('embed', 'head')  # parts of a medium's config that are not its sizes


def dataclass_of(kind: type[T], part: Any, name: str) -> T:
  """A frozen dataclass from a part of the config; a misspelt key or a bad value is the user's error."""
  try:  # config.json has lists where the config had tuples
    return kind(
      **{
        key: tuple(value) if isinstance(value, list) else value
        for key, value in part.to_dict().items()
      }
    )
  except (TypeError, ValueError) as error:
    raise UserError(f'config.{name}: {error}') from error


def media_sizes(
  model: Any, table: Mapping[str, tuple[type | None, type[Host]]] = HOSTS
) -> dict[str, Any]:
  """Returns the sizes of the media that a run has, by name, from the `model` part of its config."""
  sizes = {}
  for name, (kind, _) in table.items():
    if kind is not None and name in model:
      own = ConfigDict({key: model[name][key] for key in model[name] if key not in NETWORKS})
      sizes[name] = dataclass_of(kind, own, f'model.{name}')
  return sizes


def config_file(beside: str, name: str) -> dict[str, Any]:
  """Returns what NAME.py defines, which lies beside a config file: such files are run, not imported.

  Args:
    beside: `__file__` of the config file.
  """
  return runpy.run_path(os.path.join(os.path.dirname(beside), f'{name}.py'))


def derived(beside: str, name: str) -> ConfigDict:
  """Returns the config of NAME.py beside a config file, to be changed."""
  return config_file(beside, name)['get_config']()


def read_config(
  values: flags.FlagValues, arguments: Sequence[str] | None = None
) -> Any:
  """Reads the command line into the flags and returns their `config`, or None where it was not given.

  Args:
    arguments: with the name of the command, instead of `sys.argv`; the flag has to be defined with the same `sys_argv`.
  """
  try:
    values(sys.argv if arguments is None else arguments)
    config = values['config'].value
    if config is not None:
      config.to_dict()  # a file that cannot be loaded says so only now
  except (
    flags.Error,
    AttributeError,
    ImportError,
    KeyError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
  ) as error:
    said = (
      error.args[0] if isinstance(error, KeyError) else error
    )  # a KeyError shows its text in quotes
    raise UserError(
      f'{said} (see --config and the overrides --config.name=value)'
    ) from error
  return config
