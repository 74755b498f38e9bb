"""A ready set by its name, as an input of a conversion."""

from collections.abc import Iterator

from omni_jax.convert.formats.reader import Found
from omni_jax.data.sources.ready.ready_set import Asked
from omni_jax.data.sources.ready.sets import READY
from omni_jax.errors import UserError
from omni_jax.modalities.hosts import Hosts


class ReadyReader:
  """One item an example of a split; read, write and language as in a run's config."""

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
    said = f'--input={name}:{split}'
    if not root:
      raise UserError(
        f'{said}: give the folder that holds {READY[name].FOLDER}/, --root=DIR'
      )
    try:
      languages = tuple(filter(None, language.split(',')))
      self._examples = READY[name](
        root, Asked(split, write, read, languages), Hosts.lenient()
      )
    except UserError as error:  # what is a key of a run's config is a flag here
      raise UserError(f'{said}: {error}'.replace('config.data.', '--')) from error
    self.files = tuple(self._examples.files)

  def __len__(self) -> int:
    return len(self._examples)

  def read(self, items: range) -> Iterator[Found]:
    for k in items:
      yield Found(self._examples.encoded(k)['id'], lambda k=k: self._examples.stored(k))
