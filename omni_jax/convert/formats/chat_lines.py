"""Reads JSON lines whose media are files beside them."""

from collections.abc import Iterator, Sequence
import functools
import os

from etils import epath

from omni_jax.convert.formats.reader import InputExample, raising, RESUME
from omni_jax.data.sources.jsonl import index_lines, parse_line, read_beside
from omni_jax.errors import BadRecord, UserError
from omni_jax.mirror import local_copy
from omni_jax.retry import with_retries
from omni_jax.sequence.example import Example, map_media, Part


class JsonLinesReader:
  """Reads one item per line; a line without a valid example is refused, not fatal."""

  chunk = 500

  def __init__(self, path: str):
    self.files = (path,)
    self._path = epath.Path(path)
    self._lines_n3 = index_lines(self._path)

  def __len__(self) -> int:
    return len(self._lines_n3)

  def read(self, items: range) -> Iterator[InputExample]:
    lines_n3 = self._lines_n3[items.start : items.stop].tolist()
    texts = self._texts(lines_n3)
    for (_, _, number), text in zip(lines_n3, texts, strict=True):
      name = f'{os.path.basename(self._path)}:{number}'
      try:
        example = parse_line(text)
      except BadRecord as error:
        yield InputExample(name, raising(error))
        continue
      make = functools.partial(self._with_media, example)
      yield InputExample(example['id'] or name, make)

  def _texts(self, lines_n3: Sequence[Sequence[int]]) -> list[bytes]:
    """Returns all these lines at once: they hold paths of media, not the media."""

    def read() -> list[bytes]:
      texts = []
      with open(local_copy(os.fspath(self._path)), 'rb') as file:
        for start, length, _ in lines_n3:
          file.seek(start)
          texts.append(file.read(length))
      return texts

    try:
      return with_retries(read, self._path)
    except OSError as error:
      raise UserError(f'{self._path} cannot be read ({error}): {RESUME}') from error

  def _with_media(self, example: Example) -> Example:
    """Returns the example with the contents of its media files instead of paths."""
    folder = os.fspath(self._path.parent)

    def medium(part: Part) -> Part:
      path = part['path']
      try:
        return {'type': part['type'], 'data': read_beside(folder, path)}
      except BadRecord as error:
        raise error.at(path) from error

    return map_media(example, medium)
