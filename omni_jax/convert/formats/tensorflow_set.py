"""A set of TensorFlow Datasets by name, as an input of a conversion."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from omni_jax.convert.formats.reader import Found
from omni_jax.data.sources.tfds import open_tfds
from omni_jax.errors import UserError
from omni_jax.modalities.hosts import Hosts


class TfdsReader:
  """One item a record of `NAME/SPLIT`; which feature is shown and which answered as in `configs/tfds.py`."""

  chunk = 500

  def __init__(
    self,
    name: str,
    *,
    root: str = '',
    rate: int = 0,
    read: str = '',
    write: str = '',
    language: str = '',
  ):
    self.files = ()
    self._name, _, self._split = name.partition('/')
    self._config = dict(
      source='tfds',
      name=self._name,
      root=root,
      rate=rate,
      read=read,
      write=write,
      language=language,
    )
    self._open()

  def _open(self) -> None:
    try:
      self._examples = open_tfds(
        SimpleNamespace(**self._config), Hosts.lenient(), self._split or 'train'
      )
    except UserError as error:  # what is a key of a run's config is a flag here
      raise UserError(
        f'--input=tfds:{self._name}/{self._split}: {error}'.replace('config.data.', '')
      ) from error

  def __getstate__(self) -> dict[str, Any]:
    return {
      key: value for key, value in self.__dict__.items() if key != '_examples'
    }  # open files do not pickle

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._open()

  def __len__(self) -> int:
    return len(self._examples)

  def read(self, items: range) -> Iterator[Found]:
    for k in items:
      yield Found(f'{self._examples.path}:{k}', lambda k=k: self._examples.stored(k))
