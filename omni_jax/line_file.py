"""Files that grow by lines, on a file system or in a bucket."""

from collections.abc import Callable, Iterator
import threading

from etils import epath

from omni_jax.paths import is_remote
from omni_jax.retry import is_transient, with_retries

# An object of a bucket is written again with every line until it has this many bytes.
OBJECT_BYTES = 1 << 20


class LineFile:
  """A text file to which one process appends lines.

  Objects of a bucket cannot grow. There the file is a row of objects, FILE, FILE.1,
  FILE.2 and so on; the last one is written again, as a whole, with every line.
  """

  def __init__(self, path: epath.PathLike):
    self.path = epath.Path(path)
    # Number and text of the last object; None before it is read. Only for buckets.
    self._last: tuple[int, str] | None = None
    self._lock = threading.Lock()  # a save in the background writes lines, too

  def append(self, line: str) -> None:
    """Adds a line.

    A bucket that fails for the moment delays the line: it is written with the next one.
    """
    if not is_remote(self.path):
      with self.path.open('a') as file:
        file.write(f'{line}\n')
      return
    with self._lock:
      self._append_to_object(line)

  def _append_to_object(self, line: str) -> None:
    number, text = self._last or self._find_last()
    if len(text.encode()) >= OBJECT_BYTES:
      number += 1
      text = ''
    text += f'{line}\n'
    self._last = (number, text)
    try:
      self._object(number).write_text(text)
    except Exception as error:
      if not is_transient(error):
        raise

  def lines(self) -> list[str]:
    """Returns all lines; none if there is no such file."""
    lines = []
    for _, text in self._objects():
      lines += text.splitlines()
    return lines

  def keep(self, wanted: Callable[[str], bool]) -> None:
    """Removes the lines that are not wanted.

    A process that is killed meanwhile loses no wanted line.
    """
    self._last = None
    for number, text in list(self._objects()):
      kept = ''.join(f'{line}\n' for line in text.splitlines() if wanted(line))
      if kept == text:
        continue
      if is_remote(self.path):
        self._object(number).write_text(kept)
        continue
      part = self.path.with_name(f'{self.path.name}.part')
      part.write_text(kept)
      part.replace(self.path)

  def _object(self, number: int) -> epath.Path:
    """Returns the path of an object of the file."""
    if not number:
      return self.path
    return self.path.with_name(f'{self.path.name}.{number}')

  def _objects(self) -> Iterator[tuple[int, str]]:
    """Yields number and text of the file's objects, in order."""
    number = 0
    while (path := self._object(number)).exists():
      yield number, with_retries(path.read_text, path)
      if not is_remote(self.path):
        return
      number += 1

  def _find_last(self) -> tuple[int, str]:
    """Returns number and text of the last object; (0, '') if there is none."""
    objects = list(self._objects())
    return objects[-1] if objects else (0, '')
