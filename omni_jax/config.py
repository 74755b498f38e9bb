"""Parts of a run's config as the frozen dataclasses of the host side; loads no jax."""

from typing import Any, TypeVar

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
