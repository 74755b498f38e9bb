"""Reads a ready set by its name."""

from collections.abc import Iterator
import functools

from omni_jax.convert.formats.reader import InputExample
from omni_jax.data.sources.ready.ready_set import Selection
from omni_jax.data.sources.ready.sets import READY
from omni_jax.errors import UserError
from omni_jax.modalities.hosts import Hosts


class ReadyReader:
  """Reads one item per example of a split.

  Args:
    root: folder that holds the folder of the set.
    read, write: `config.data.read` and `config.data.write` of a run.
    language: languages of the set, separated by commas; all where it is empty.
  """

  chunk = 500

  def __init__(
    self,
    name: str,
    split: str,
    *,
    root: str,
    read: str = '',
    write: str = '',
    language: str = '',
  ):
    input_flag = f'--input={name}:{split}'
    ready_set = READY[name]
    if not root:
      raise UserError(
        f'{input_flag}: give the folder that holds {ready_set.FOLDER}/, --root=DIR'
      )
    try:
      languages = tuple(code for code in language.split(',') if code)
      choice = Selection(split, write, read, languages)
      self._examples = ready_set(root, choice, Hosts.lenient())
    except UserError as error:
      # The keys of a run's config are flags of this command.
      message = f'{input_flag}: {error}'.replace('config.data.', '--')
      raise UserError(message) from error
    self.files = tuple(self._examples.files)

  def __len__(self) -> int:
    return len(self._examples)

  def read(self, items: range) -> Iterator[InputExample]:
    for k in items:
      example_id = self._examples.encoded(k)['id']
      yield InputExample(example_id, functools.partial(self._examples.stored, k))
