"""How much an evaluation asks, and which items it takes where there are more."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, TypeVar

import numpy as np

from omni_jax.errors import UserError

OTHER_SETTINGS = ('seed', 'targets')  # of config.evaluate, beside the limits

Item = TypeVar('Item')
Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Limits:
  """How much is asked.

  Attributes:
    n: prompts of a direction; half as many again for the second set of voices where
      speech is the prompt.
    n_images: prompts of text to image, whose spread and copying need more.
    n_any: prompts whose reply the model chooses.
    n_data: examples of each group of held-out examples.
    n_codec: test clips that pass the codec.
    sampling: extra arguments of `generate_batch` (temperature, guidance, …); none: the
      run's own.
  """

  n: int = 200
  n_images: int = 400
  n_any: int = 8
  n_data: int = 256
  n_codec: int = 800
  sampling: dict = dataclasses.field(default_factory=dict)


def limits_of(config: Any) -> Limits:
  """Returns the limits in a run's `config.evaluate`, where it has that part.

  Raises:
    UserError: for a name that `Limits` does not have.
  """
  part = config.evaluate.to_dict() if config.get('evaluate') else {}
  for name in OTHER_SETTINGS:
    part.pop(name, None)
  known = [field.name for field in dataclasses.fields(Limits)]
  if unknown := sorted(set(part) - set(known)):
    raise UserError(
      f'config.evaluate: unknown {", ".join(unknown)}; there are '
      f'{", ".join((*known, *OTHER_SETTINGS))}'
    )
  return Limits(**part)


def subset(items: Sequence[Item], n: int, seed: int) -> list[Item]:
  """Returns n of the items in their order, drawn without putting back, or all."""
  chosen = np.random.default_rng(seed).permutation(len(items))[:n]
  return [items[int(index)] for index in np.sort(chosen)]
