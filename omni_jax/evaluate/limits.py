"""Defines the size of an evaluation, and chooses its items where there are more."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import TypeVar

from ml_collections import ConfigDict
import numpy as np

from omni_jax.errors import UserError

OTHER_SETTINGS = ('seed', 'targets')  # keys of config.evaluate that are not limits

Item = TypeVar('Item')
Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Limits:
  """Numbers of prompts and examples that an evaluation uses.

  Attributes:
    n: prompts of a direction; if they are speech, half as many again with other voices.
    n_images: prompts of text to image, whose diversity and novelty need more.
    n_any: prompts for which the model chooses the modalities of its reply.
    n_data: examples of each group of held-out examples.
    n_codec: test clips that are encoded and decoded by the codec.
    sampling: extra arguments of `generate_batch` (temperature, guidance, …); without
      any the run's own config.generate decides.
  """

  n: int = 200
  n_images: int = 400
  n_any: int = 8
  n_data: int = 256
  n_codec: int = 800
  sampling: dict[str, float] = dataclasses.field(default_factory=dict)


def limits_of(config: ConfigDict) -> Limits:
  """Returns the limits in a run's `config.evaluate`, or the defaults without that part.

  Raises:
    UserError: for a name that `Limits` does not have.
  """
  settings = config.evaluate.to_dict() if config.get('evaluate') else {}
  for name in OTHER_SETTINGS:
    settings.pop(name, None)
  known = [field.name for field in dataclasses.fields(Limits)]
  unknown = sorted(set(settings) - set(known))
  if unknown:
    raise UserError(
      f'config.evaluate: unknown {", ".join(unknown)}; the known keys are '
      f'{", ".join((*known, *OTHER_SETTINGS))}'
    )
  return Limits(**settings)


def seed_of(config: ConfigDict) -> int:
  """Returns the seed of prompts and sampling in a run's `config.evaluate`.

  Raises:
    UserError: if the config has none.
  """
  if 'seed' not in config.get('evaluate', {}):
    raise UserError('config.evaluate.seed is missing: start from configs/base.py')
  return config.evaluate.seed


def subset(items: Sequence[Item], n: int, seed: int) -> list[Item]:
  """Returns n of the items in their order, drawn without replacement, or all."""
  chosen = np.random.default_rng(seed).permutation(len(items))[:n]
  return [items[int(index)] for index in np.sort(chosen)]
