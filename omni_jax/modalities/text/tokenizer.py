"""Text as UTF-8 bytes plus named special tokens (a byte-fallback BPE takes the place of the bytes later)."""

import dataclasses
import hashlib
import itertools

from omni_jax.errors import UserError

# By what a reply is to hold, the task that the assistant is given.
TASKS = {'text': 'write', 'image': 'draw', 'audio': 'speak', 'any': 'reply'}
FIXED = (
  'pad',
  'bos',
  'user',
  'sot',
  'eot',
  'boi',
  'eoi',
  'boa',
  'eoa',
  'frame',
  'nospeech',
  'prev',
)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """Names that get a token of their own.

  Attributes:
    languages: language codes, `<lang:xx>`.
    voices: speakers, `<voice:name>`.
    max_grid: largest count of pieces along a side of an item, `<size:n>`.
    marks: names of further specials, such as a medium of one's own needs.
    size: ids in all, so that a table has room for a larger vocabulary later; 0: as many as have a meaning.
  """

  languages: tuple[str, ...] = ('en',)
  voices: tuple[str, ...] = ()
  max_grid: int = 8
  marks: tuple[str, ...] = ()
  size: int = 0

  def __post_init__(self):
    named = len(names_of(self))
    if self.size and self.size < named + 256:
      raise ValueError(
        f'size={self.size}: {named} names and 256 bytes need {named + 256} ids; 0 takes as many'
      )


def names_of(config: TokenizerConfig) -> tuple[str, ...]:
  """Returns the names of all special tokens, in the order of their ids."""
  return (
    FIXED
    + tuple(f'task:{x}' for x in TASKS.values())
    + tuple(f'size:{x}' for x in range(1, config.max_grid + 1))
    + tuple(f'lang:{x}' for x in config.languages)
    + tuple(f'voice:{x}' for x in config.voices)
    + config.marks
  )


class Tokenizer:
  """Text <-> ids. Ids: 0 is padding, then the named specials, then the 256 bytes, then those without a meaning."""

  def __init__(self, config: TokenizerConfig):
    self.config = config
    self.names = names_of(config)
    self._id = {name: i for i, name in enumerate(self.names)}
    self.first_byte = len(self.names)
    self.used = self.first_byte + 256
    self.vocab_size = config.size or self.used

  def special(self, name: str) -> int:
    """Id of a named special such as 'eot' or 'lang:de'.

    Raises:
      UserError: if the run has no such token.
    """
    if name not in self._id:
      kind = name.split(':')[0]
      known = [x.partition(':')[2] for x in self.names if x.startswith(kind + ':')]
      raise UserError(f'no token <{name}> in this run; {kind} is one of {known}')
    return self._id[name]

  def name(self, token: int) -> str | None:
    """The name of a special token, or None for a byte."""
    return self.names[token] if token < self.first_byte else None

  def encode(self, text: str) -> tuple[int, ...]:
    return tuple(byte + self.first_byte for byte in text.encode('utf-8'))

  def decode(self, tokens: tuple[int, ...]) -> str:
    """Bytes back to text; all other ids are left out, broken UTF-8 becomes U+FFFD."""
    said = bytes(
      t - self.first_byte for t in tokens if self.first_byte <= t < self.used
    )
    return said.decode('utf-8', errors='replace')

  def fingerprint(self) -> str:
    """Changes when any id would mean something else."""
    kinds = ['bytes'] + ([f'size:{self.config.size}'] if self.config.size else [])
    return hashlib.sha256(
      '\n'.join(itertools.chain(self.names, kinds)).encode()
    ).hexdigest()[:16]
