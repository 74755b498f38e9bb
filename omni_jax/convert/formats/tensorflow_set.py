"""Reads a set of TensorFlow Datasets by its name."""

from collections.abc import Iterator
import functools
from types import SimpleNamespace
from typing import Any

from omni_jax.convert.formats.reader import DEFAULT_SPLIT, InputExample
from omni_jax.data.sources.tfds import open_tfds
from omni_jax.errors import UserError
from omni_jax.modalities.hosts import Hosts


class TfdsReader:
  """Reads one item per record of a split.

  Args:
    name: NAME or NAME/SPLIT; the split is `train` by default.
    root, rate, read, write, language: as under `config.data` in `configs/tfds.py`.
  """

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
    config = SimpleNamespace(**self._config)
    try:
      split = self._split or DEFAULT_SPLIT
      self._examples = open_tfds(config, Hosts.lenient(), split)
    except UserError as error:
      # The keys of a run's config are flags of this command.
      text = str(error).replace('config.data.', '')
      raise UserError(f'--input=tfds:{self._name}/{self._split}: {text}') from error

  def __getstate__(self) -> dict[str, Any]:
    state = dict(self.__dict__)
    state.pop('_examples', None)  # open files cannot be pickled
    return state

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._open()

  def __len__(self) -> int:
    return len(self._examples)

  def read(self, items: range) -> Iterator[InputExample]:
    for k in items:
      make = functools.partial(self._examples.stored, k)
      yield InputExample(f'{self._examples.path}:{k}', make)
