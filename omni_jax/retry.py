"""Reading again what the storage cannot give at the moment: a few attempts, each with a line in the log."""

from collections.abc import Callable
import errno
import io
import os
import time
from typing import Any, TypeVar

from absl import logging

ATTEMPTS, PAUSE = (
  3,
  0.5,
)  # of reading, and seconds between the first two; every further pause is twice as long
# What is not there, is no file or is not allowed stays so: to wait for it would only slow down the answer.
LASTING = {
  errno.ENOENT,
  errno.ENOTDIR,
  errno.EISDIR,
  errno.EACCES,
  errno.EPERM,
  errno.ELOOP,
  errno.ENAMETOOLONG,
  errno.ENXIO,
  errno.ENODEV,
  errno.EINVAL,
  errno.ESPIPE,
}

T = TypeVar('T')


def may_pass(error: Exception) -> bool:
  """Whether an error is one of the storage that may be gone at the next attempt."""
  return isinstance(error, OSError) and error.errno not in LASTING


def patiently(
  read: Callable[[], T], what: Any, *, passes: Callable[[Exception], bool] = may_pass
) -> T:
  """What `read` returns. Errors that may pass are met by a few more attempts, each with a line in the log.

  Args:
    read: opens anew what it reads from, or it would meet the same broken handle again.
    what: how the log calls it.
    passes: which errors those are; every other is raised at once.

  Raises:
    Exception: the error of the last attempt.
  """
  for attempt in range(1, ATTEMPTS):
    try:
      return read()
    except Exception as error:
      if not passes(error):
        raise
      logging.error(
        '%s cannot be read (%s): attempt %d of %d follows',
        what,
        error,
        attempt + 1,
        ATTEMPTS,
      )
    time.sleep(PAUSE * 2 ** (attempt - 1))
  return read()


class PatientFile(io.RawIOBase):
  """A local file whose pieces are read patiently, for readers that would give up the whole file."""

  def __init__(self, path: str | os.PathLike):
    super().__init__()
    self._path, self._at, self._file = path, 0, os.open(path, os.O_RDONLY)

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    data = patiently(lambda: self._piece(len(buffer)), self._path)
    buffer[: len(data)] = data
    self._at += len(data)
    return len(data)

  def _piece(self, size: int) -> bytes:
    if self._file is None:
      self._file = os.open(self._path, os.O_RDONLY)
    try:
      return os.pread(self._file, size, self._at)
    except OSError:
      self.release()
      raise

  def release(self) -> None:
    """Gives the handle back; the next piece opens the file anew."""
    file, self._file = self._file, None
    if file is not None:
      os.close(file)

  def close(self) -> None:
    if not self.closed:
      self.release()
    super().close()
