"""Whether a run could take an example: its tokenizer, its media and one of its rows; and the codes of its sounds."""

from typing import Any, NamedTuple, Protocol

import numpy as np

from omni_jax.config import dataclass_of, media_of
from omni_jax.data.making import prepare
from omni_jax.errors import UserError
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig
from omni_jax.sequence.example import Example
from omni_jax.sequence.media import BadRecord
from omni_jax.sequence.pack import check_room
from omni_jax.types import MediaConfig, RowBudget


class Coder(Protocol):
  """A speech codec that turns a wave into whole numbers (frames, codebooks); it must pickle."""

  fingerprint: str

  def __call__(self, wave: np.ndarray) -> np.ndarray: ...


class RunCheck(NamedTuple):
  """What an example is checked against, as it is: augmentation may yet make a sound longer. May be pickled."""

  tokenizer: Tokenizer
  media: MediaConfig
  budget: RowBudget
  coder: Coder | None = None  # of the codes that are stored

  @classmethod
  def of(cls, config: Any) -> 'RunCheck':
    """Of a run's ConfigDict.

    Raises:
      UserError: if it has no such parts, or values that they do not take.
    """
    try:
      return cls(
        Tokenizer(
          dataclass_of(TokenizerConfig, config.model.tokenizer, 'model.tokenizer')
        ),
        media_of(config.model),
        dataclass_of(RowBudget, config.data.budget, 'data.budget'),
      )
    except AttributeError as error:  # of ConfigDict; it names the key
      raise UserError(f'--config is not that of a run: {error}') from error

  def __call__(self, example: Example) -> None:
    """Raises BadRecord for an example with decoded media that no row can hold, or that names what has no token."""
    try:
      check_room(prepare(example, self.tokenizer, self.media), self.budget)
    except ValueError as error:  # a UserError is one, too
      raise BadRecord(str(error)) from error

  def __str__(self) -> str:
    """All that its answers depend on."""
    return f'{self.tokenizer.config} {self.media} {self.budget} {self.coder and self.coder.fingerprint}'

  @property
  def fingerprints(self) -> tuple[str, str | None]:
    """Of the tokenizer and of the codec, for the manifest."""
    return self.tokenizer.fingerprint(), self.coder and self.coder.fingerprint
