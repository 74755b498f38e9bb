"""The host table of media: the numpy side of each, in one order that also numbers them."""

from collections.abc import Iterator, Mapping
from typing import Any

from omni_jax.errors import UserError
from omni_jax.modalities.audio.host import AudioHost
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.contract import Codes, Host
from omni_jax.modalities.image.host import ImageHost
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.modalities.text.host import TextHost
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig
from omni_jax.types import StreamSpec

TEXT = 'text'
# Name of the medium -> (its sizes, its host). A medium's number is its place here, from 1.
HOSTS: Mapping[str, tuple[type | None, type[Host]]] = {
  TEXT: (None, TextHost),
  'image': (ImageConfig, ImageHost),
  'audio': (AudioConfig, AudioHost),
}


class Hosts(Mapping[str, Host]):
  """The hosts of the media that a run has, by name. May be pickled.

  Args:
    sizes: by medium; a medium that is not named is not there.
    table: as HOSTS.
    stored: by stream, codes that batches carry in the place of payloads.
  """

  def __init__(
    self,
    sizes: Mapping[str, Any],
    tokenizer: Tokenizer,
    table: Mapping[str, tuple[type | None, type[Host]]] = HOSTS,
    stored: Mapping[str, Codes] | None = None,
  ):
    self.tokenizer = tokenizer
    self.numbers = {name: k for k, name in enumerate(table, start=1)}
    self._hosts: dict[str, Host] = {}
    for name, (_, make) in table.items():
      if name != TEXT and name not in sizes:
        continue
      codes = _of_medium(stored or {}, name)
      number, text = self.numbers[name], self.numbers[TEXT]
      self._hosts[name] = make(sizes.get(name), tokenizer, number, text, codes)
    self.streams: tuple[StreamSpec, ...] = tuple(
      spec for host in self._hosts.values() for spec in host.streams()
    )

  @classmethod
  def lenient(
    cls, table: Mapping[str, tuple[type | None, type[Host]]] = HOSTS
  ) -> 'Hosts':
    """Returns hosts without a run: the smallest sizes that find damage in any file."""
    sizes = {name: host.lenient for name, (_, host) in table.items() if host.lenient}
    return cls(sizes, Tokenizer(TokenizerConfig()), table)

  def __getitem__(self, name: str) -> Host:
    return self._hosts[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._hosts)

  def __len__(self) -> int:
    return len(self._hosts)

  def __hash__(self) -> int:
    return id(self)

  def __eq__(self, other: object) -> bool:
    return self is other

  def of_part(self, kind: str) -> Host:
    """Returns the host of a part of an example.

    Raises:
      UserError: for a type that this run does not have.
    """
    if kind not in self._hosts:
      raise UserError(
        f'content of type {kind!r} is unknown; it is one of {", ".join(self._hosts)}'
      )
    return self._hosts[kind]


def _of_medium(
  stored: Mapping[str, Codes], medium: str
) -> tuple[tuple[str, Codes], ...]:
  """Returns (kind, codes) of the streams 'MEDIUM.KIND'."""
  found = []
  for stream, codes in stored.items():
    name, _, kind = stream.partition('.')
    if name == medium:
      found.append((kind, codes))
  return tuple(found)
