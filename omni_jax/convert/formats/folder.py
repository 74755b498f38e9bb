"""A folder of pictures and sounds, as an input of a conversion."""

from collections.abc import Iterator
import os
import pathlib

from omni_jax.convert.formats.reader import captioned, Example, Found, KIND
from omni_jax.errors import BadRecord, UserError
from omni_jax.sequence.media import read_media


class FolderReader:
  """One item a picture or sound, sorted by path.

  Its text is the file of the same name that ends in .txt, else the name of its folder inside the input; media that lie
  in the input itself without a .txt are plain examples. Links are not followed.
  """

  chunk = 200

  def __init__(self, path: str, *, language: str = ''):
    self._root, self._language = pathlib.Path(path), language
    self._names = sorted(
      name
      for name in _files(self._root)
      if pathlib.PurePath(name).suffix.lower() in KIND
    )
    self.files = tuple(str(self._root / name) for name in self._names)
    if not self._names:
      raise UserError(
        f'{path}: holds no pictures or sounds; known are files that end in {" ".join(KIND)}'
      )

  def __len__(self) -> int:
    return len(self._names)

  def read(self, items: range) -> Iterator[Found]:
    for name in self._names[items.start : items.stop]:
      yield Found(name, lambda name=name: self._example(name))

  def _example(self, name: str) -> Example:
    path = self._root / name
    folder = pathlib.PurePath(name).parent.name
    medium = {'type': KIND[path.suffix.lower()], 'data': read_media(path)} | (
      {'label': folder} if folder else {}
    )
    caption = path.with_suffix('.txt')
    return captioned(
      [medium],
      _text(caption) if caption.is_file() and not caption.is_symlink() else folder,
      self._language,
    )


def _files(root: pathlib.Path) -> Iterator[str]:
  """Regular files below the folder, relative to it."""
  for folder, _, names in os.walk(root):  # does not enter links
    for name in names:
      path = os.path.join(folder, name)
      if os.path.isfile(path) and not os.path.islink(path):
        yield os.path.relpath(path, root).replace(os.sep, '/')


def _text(path: pathlib.Path) -> str:
  try:
    return read_media(path).decode().strip()
  except UnicodeDecodeError as error:
    raise BadRecord(f'{path.name}: text is not UTF-8 at byte {error.start}') from error
