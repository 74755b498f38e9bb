"""Parts of a run's config as the frozen dataclasses of the host side; loads no jax."""

from collections.abc import Sequence
import sys
from typing import Any, TypeVar

from absl import flags

from omni_jax.errors import UserError
from omni_jax.types import AudioConfig, ImageConfig, MediaConfig

T = TypeVar('T')


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


def media_of(model: Any) -> MediaConfig:
  """The limits of images and sounds, from the `model` part of a run's config."""
  return MediaConfig(
    dataclass_of(ImageConfig, model.image, 'model.image'),
    dataclass_of(AudioConfig, model.audio, 'model.audio'),
  )


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
