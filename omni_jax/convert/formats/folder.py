"""Reads a folder of pictures and sounds."""

from collections.abc import Iterator
import functools
import os
import pathlib

from omni_jax.convert.formats.reader import captioned, InputExample, MEDIUM_OF_SUFFIX
from omni_jax.errors import BadRecord, UserError
from omni_jax.sequence.example import Example
from omni_jax.sequence.read_media import read_media


class FolderReader:
  """Reads one item per picture or sound, sorted by path.

  Its text is the .txt file of the same name if there is one, else the name of the
  folder that holds it. Media directly in the input folder without a .txt file become
  plain examples. Links are not followed.
  """

  chunk = 200

  def __init__(self, path: str, *, language: str = ''):
    self._root = pathlib.Path(path)
    self._language = language
    self._names = sorted(name for name in _files(self._root) if _medium_of(name))
    self.files = tuple(str(self._root / name) for name in self._names)
    if not self._names:
      known = ' '.join(MEDIUM_OF_SUFFIX)
      raise UserError(f'{path} holds no pictures or sounds; known suffixes: {known}')

  def __len__(self) -> int:
    return len(self._names)

  def read(self, items: range) -> Iterator[InputExample]:
    for name in self._names[items.start : items.stop]:
      yield InputExample(name, functools.partial(self._example, name))

  def _example(self, name: str) -> Example:
    path = self._root / name
    label = pathlib.PurePath(name).parent.name
    medium = {'type': _medium_of(name), 'data': read_media(path)}
    if label:
      medium['label'] = label
    caption = path.with_suffix('.txt')
    has_caption = caption.is_file() and not caption.is_symlink()
    text = _text(caption) if has_caption else label
    return captioned([medium], text, self._language)


def _medium_of(name: str) -> str | None:
  """Returns the medium of a file by its name, or None if it is no medium."""
  return MEDIUM_OF_SUFFIX.get(pathlib.PurePath(name).suffix.lower())


def _files(root: pathlib.Path) -> Iterator[str]:
  """Yields the paths of the regular files below a folder, relative to it."""
  for folder, _, names in os.walk(root):  # does not follow links
    for name in names:
      path = os.path.join(folder, name)
      if os.path.isfile(path) and not os.path.islink(path):
        yield os.path.relpath(path, root).replace(os.sep, '/')


def _text(path: pathlib.Path) -> str:
  try:
    return read_media(path).decode().strip()
  except UnicodeDecodeError as error:
    raise BadRecord(f'{path.name}: text is not UTF-8 at byte {error.start}') from error
