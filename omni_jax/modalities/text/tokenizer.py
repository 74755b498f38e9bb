"""The tokenizer: UTF-8 bytes and named special tokens. A BPE will replace the bytes."""

import dataclasses
import hashlib

from omni_jax.errors import UserError

BYTES = 256  # ids that stand for one byte of text
ANY = 'any'  # asks for a reply whose media the model chooses itself
# The task that the assistant is given, by the medium that a reply should hold.
TASKS = {'text': 'write', 'image': 'draw', 'audio': 'speak', ANY: 'reply'}
# Names of the special tokens that every run has.
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
  """The names that get a token of their own, and the size of the vocabulary.

  Attributes:
    languages: language codes, `<lang:xx>`.
    voices: speakers, `<voice:name>`.
    max_grid: largest number of pieces along a side of an item, `<size:n>`.
    marks: names of further special tokens, for example those of a new medium.
    size: number of ids, so that a table has room for a larger vocabulary later; 0 for
      exactly as many as have a meaning.

  Raises:
    ValueError: if `size` is smaller than the number of ids with a meaning.
  """

  languages: tuple[str, ...] = ('en',)
  voices: tuple[str, ...] = ()
  max_grid: int = 4
  marks: tuple[str, ...] = ()
  size: int = 0

  def __post_init__(self):
    named = len(names_of(self))
    needed = named + BYTES
    if self.size and self.size < needed:
      raise ValueError(
        f'size={self.size}: {named} names and {BYTES} bytes need {needed} ids; '
        f'set at least {needed}, or 0 for exactly as many as are needed'
      )


def names_of(config: TokenizerConfig) -> tuple[str, ...]:
  """Returns the names of all special tokens, in the order of their ids."""
  names = list(FIXED)
  names.extend(f'task:{task}' for task in TASKS.values())
  names.extend(f'size:{n}' for n in range(1, config.max_grid + 1))
  names.extend(f'lang:{language}' for language in config.languages)
  names.extend(f'voice:{voice}' for voice in config.voices)
  names.extend(config.marks)
  return tuple(names)


class Tokenizer:
  """Converts text to ids and back.

  The ids of the named special tokens come first (padding is 0), then those of the 256
  bytes, then those without a meaning.

  Attributes:
    config: the config that it is built from.
    names: names of the special tokens; the index is the id.
    first_byte: id of byte 0.
    used: number of ids with a meaning.
    vocab_size: number of ids.
  """

  def __init__(self, config: TokenizerConfig):
    self.config = config
    self.names = names_of(config)
    self._id = {name: i for i, name in enumerate(self.names)}
    self.first_byte = len(self.names)
    self.used = self.first_byte + BYTES
    self.vocab_size = config.size or self.used

  def special(self, name: str) -> int:
    """Returns the id of a special token such as 'eot' or 'lang:de'.

    Raises:
      UserError: if the run has no such token.
    """
    if name not in self._id:
      kind = name.split(':')[0]
      prefix = f'{kind}:'
      known = [x.removeprefix(prefix) for x in self.names if x.startswith(prefix)]
      raise UserError(f'no token <{name}> in this run; {kind} is one of {known}')
    return self._id[name]

  def name(self, token: int) -> str | None:
    """Returns the name of a special token, or None for any other id."""
    return self.names[token] if token < self.first_byte else None

  def encode(self, text: str) -> tuple[int, ...]:
    """Returns the ids of the text's UTF-8 bytes."""
    return tuple(byte + self.first_byte for byte in text.encode('utf-8'))

  def decode(self, tokens: tuple[int, ...]) -> str:
    """Returns the text of the ids that stand for bytes.

    All other ids are left out; broken UTF-8 becomes U+FFFD.
    """
    ids = [token for token in tokens if self.first_byte <= token < self.used]
    data = bytes(token - self.first_byte for token in ids)
    return data.decode('utf-8', errors='replace')

  def fingerprint(self) -> str:
    """Returns 16 hex digits that change whenever an id would change its meaning."""
    lines = [*self.names, 'bytes']
    if self.config.size:
      lines.append(f'size:{self.config.size}')
    digest = hashlib.sha256('\n'.join(lines).encode())
    return digest.hexdigest()[:16]
