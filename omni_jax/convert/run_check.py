"""Whether a run could take an example: its tokenizer, its media and one of its rows; and the codes of its media."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from omni_jax.config import budget_of, dataclass_of, media_sizes
from omni_jax.data.making import prepare
from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.hosts import Hosts
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig
from omni_jax.sequence.example import Example
from omni_jax.sequence.pack import check_room
from omni_jax.types import RowBudget


@runtime_checkable
class Coder(Protocol):
  """An autoencoder that turns a payload into whole numbers (pieces, …); it must pickle."""

  name: str
  fingerprint: str

  def __call__(self, payload: Any) -> np.ndarray: ...


class RunCheck(NamedTuple):
  """What an example is checked against, as it is: augmentation may yet make it longer. May be pickled.

  Attributes:
    coders: by medium, of the codes that are stored.
  """

  hosts: Hosts
  budget: RowBudget
  coders: Mapping[str, Coder] = {}

  @classmethod
  def of(cls, config: Any) -> 'RunCheck':
    """Returns the check of a run's ConfigDict.

    Raises:
      UserError: if it has no such parts, or values that they do not take.
    """
    try:
      names = dataclass_of(TokenizerConfig, config.model.tokenizer, 'model.tokenizer')
      hosts = Hosts(media_sizes(config.model), Tokenizer(names))
      return cls(hosts, budget_of(config.data.budget))
    except AttributeError as error:  # of ConfigDict; it names the key
      raise UserError(f'--config is not that of a run: {error}') from error

  def __call__(self, example: Example) -> None:
    """Raises BadRecord for an example with decoded media that no row can hold, or that names what has no token."""
    try:
      check_room(prepare(example, self.hosts), self.budget, self.hosts)
    except ValueError as error:  # a UserError is one, too
      raise BadRecord(str(error)) from error

  def __str__(self) -> str:
    """Returns all that its answers depend on."""
    sizes = {name: host.config for name, host in self.hosts.items()}
    coders = {name: coder.fingerprint for name, coder in self.coders.items()}
    return f'{self.hosts.tokenizer.config} {sizes} {self.budget} {coders}'

  @property
  def fingerprints(self) -> tuple[str, dict[str, str]]:
    """Of the tokenizer, and of the autoencoders by name, for the manifest."""
    codecs = {coder.name: coder.fingerprint for coder in self.coders.values()}
    return self.hosts.tokenizer.fingerprint(), codecs
