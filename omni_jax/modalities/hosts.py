"""Lists the numpy side of all media, in the order of their numbers: the host table."""

from collections.abc import Iterator, Mapping
from typing import Any

from omni_jax.errors import UserError
from omni_jax.modalities.audio.host import AudioHost
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.contract import Codes, Host, Writing
from omni_jax.modalities.image.host import ImageHost
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.modalities.text.host import TextHost
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig
from omni_jax.types import medium_and_kind, StreamSpec

TEXT = 'text'
# (config dataclass, Host class) by medium; the dataclass is None for text.
HostTable = Mapping[str, tuple[type | None, type[Host]]]
# The number of a medium is its place here, from 1.
HOSTS: HostTable = {
  TEXT: (None, TextHost),
  'image': (ImageConfig, ImageHost),
  'audio': (AudioConfig, AudioHost),
}


class Hosts(Mapping[str, Host]):
  """The hosts of a run's media, by name. They can be pickled.

  Attributes:
    tokenizer: tokenizer of the run.
    numbers: number of every medium of the table, by name.
    streams: specs of all streams, in the order of the table.

  Args:
    sizes: sizes of each medium, by name; a medium that is not named is left out.
    tokenizer: tokenizer of the run.
    table: host table, such as HOSTS.
    stored: codes that batches carry instead of payloads, by name of the stream.
  """

  def __init__(
    self,
    sizes: Mapping[str, Any],
    tokenizer: Tokenizer,
    table: HostTable = HOSTS,
    stored: Mapping[str, Codes] | None = None,
  ):
    self.tokenizer = tokenizer
    self.numbers = {name: k for k, name in enumerate(table, start=1)}
    self._hosts: dict[str, Host] = {}
    specs: list[StreamSpec] = []
    text = self.numbers[TEXT]
    for name, (_, host_class) in table.items():
      if name != TEXT and name not in sizes:
        continue
      codes = _codes_of_medium(stored or {}, name)
      number = self.numbers[name]
      host = host_class(sizes.get(name), tokenizer, number, text, codes)
      self._hosts[name] = host
      specs.extend(host.streams())
    self.streams: tuple[StreamSpec, ...] = tuple(specs)

  def writing(self, name: str) -> Writing:
    """Returns how replies write a medium that can be written."""
    writing = self._hosts[name].writing()
    assert writing is not None, name
    return writing

  @classmethod
  def lenient(cls, table: HostTable = HOSTS) -> 'Hosts':
    """Returns hosts that check files without a run: any intact file decodes."""
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

    Args:
      kind: `type` of the part.

    Raises:
      UserError: if this run has no such medium.
    """
    if kind not in self._hosts:
      known = ', '.join(self._hosts)
      raise UserError(f'content of type {kind!r} is unknown; it is one of {known}')
    return self._hosts[kind]


def _codes_of_medium(
  stored: Mapping[str, Codes], medium: str
) -> tuple[tuple[str, Codes], ...]:
  """Returns (kind, codes) of the streams of a medium."""
  codes_of_kind = []
  for stream, codes in stored.items():
    name, kind = medium_and_kind(stream)
    if name == medium:
      codes_of_kind.append((kind, codes))
  return tuple(codes_of_kind)
