"""Checks whether a run could train on an example, and encodes its media.

This depends on the run's tokenizer, sizes of media and budget of a row.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ml_collections import ConfigDict
import numpy as np

from omni_jax.config import budget_of, dataclass_of, media_sizes
from omni_jax.data.example_maker import prepare
from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.hosts import Hosts
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig
from omni_jax.sequence.example import Example
from omni_jax.sequence.pack import check_room
from omni_jax.types import RowBudget


@runtime_checkable
class Coder(Protocol):
  """An autoencoder that turns a payload into integer codes (pieces, …).

  It must be picklable.
  """

  name: str
  fingerprint: str

  def __call__(self, payload: Any) -> np.ndarray: ...


class RunCheck(NamedTuple):
  """The parts of a run that examples are checked against. It may be pickled.

  Examples are checked without augmentation, which may still make them longer.

  Attributes:
    coders: by medium, the autoencoders whose codes are stored.
  """

  hosts: Hosts
  budget: RowBudget
  coders: Mapping[str, Coder] = {}

  @classmethod
  def of(cls, config: ConfigDict) -> 'RunCheck':
    """Returns the check of a run's config.

    Raises:
      UserError: if a part is missing or a value is not accepted.
    """
    try:
      part = config.model.tokenizer
      tokenizer = dataclass_of(TokenizerConfig, part, 'model.tokenizer')
      sizes = media_sizes(config.model)
      hosts = Hosts(sizes, Tokenizer(tokenizer))
      return cls(hosts, budget_of(config.data.budget))
    except AttributeError as error:  # raised by ConfigDict; it names the key
      raise UserError(f'--config is not that of a run: {error}') from error

  def __call__(self, example: Example) -> None:
    """Checks an example with decoded media.

    Raises:
      BadRecord: if no row can hold it, or if it names something without a token.
    """
    try:
      check_room(prepare(example, self.hosts), self.budget, self.hosts)
    except ValueError as error:  # UserError is a ValueError
      raise BadRecord(str(error)) from error

  def __str__(self) -> str:
    """Returns everything that the check and the codes depend on."""
    sizes = {name: host.config for name, host in self.hosts.items()}
    coders = {name: coder.fingerprint for name, coder in self.coders.items()}
    return f'{self.hosts.tokenizer.config} {sizes} {self.budget} {coders}'


class Fingerprints(NamedTuple):
  """A manifest's record of the run that its examples were checked against.

  Attributes:
    tokenizer: fingerprint of the tokenizer, or None if there was no such run.
    codecs: fingerprints of the autoencoders whose codes are stored, by name.
  """

  tokenizer: str | None
  codecs: dict[str, str]


def fingerprints_of(check: RunCheck | None) -> Fingerprints:
  """Returns the fingerprints of a run, for the manifest."""
  if check is None:
    return Fingerprints(None, {})
  codecs = {coder.name: coder.fingerprint for coder in check.coders.values()}
  return Fingerprints(check.hosts.tokenizer.fingerprint(), codecs)
