"""Retries reads after transient errors, with a line in the log for each attempt."""

from collections.abc import Callable
import errno
import io
import os
import time
from typing import Any, TypeVar

from absl import logging

ATTEMPTS = 3  # attempts to read, the first one included
PAUSE = 0.5  # seconds before the second attempt; each further pause is twice as long
# Errors that waiting does not cure: a path that is missing, is not a file, or may not
# be read. Retrying them would only delay the message.
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


def is_transient(error: Exception) -> bool:
  """Returns whether an error comes from the storage and may be gone on a retry."""
  return isinstance(error, OSError) and error.errno not in LASTING


def with_retries(
  read: Callable[[], T],
  what: Any,
  *,
  retryable: Callable[[Exception], bool] = is_transient,
) -> T:
  """Calls `read` and returns its result; retries it after transient errors.

  Args:
    read: function that reads; it must open its file itself, or every attempt would use
      the same broken handle.
    what: name of what is read, for the log.
    retryable: function that returns whether an error is worth a retry; any other is
      raised at once.

  Raises:
    Exception: the error of the last attempt.
  """
  for attempt in range(1, ATTEMPTS):
    try:
      return read()
    except Exception as error:
      if not retryable(error):
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


class RetryingFile(io.RawIOBase):
  """A local file whose reads are retried one by one.

  For readers that would otherwise give up the whole file after one failed read.
  """

  def __init__(self, path: str | os.PathLike):
    super().__init__()
    self._path = path
    self._offset = 0
    self._file: int | None = os.open(path, os.O_RDONLY)

  def readable(self) -> bool:
    """Returns True: the file is open for reading."""
    return True

  def readinto(self, buffer: Any) -> int:
    """Reads the next bytes into a buffer and returns their number; 0 at the end."""
    data = with_retries(lambda: self._read(len(buffer)), self._path)
    buffer[: len(data)] = data
    self._offset += len(data)
    return len(data)

  def _read(self, size: int) -> bytes:
    """Returns up to `size` bytes at the offset; closes the handle if that fails."""
    if self._file is None:
      self._file = os.open(self._path, os.O_RDONLY)
    try:
      return os.pread(self._file, size, self._offset)
    except OSError:
      self.release()
      raise

  def release(self) -> None:
    """Closes the handle; the next read opens the file again."""
    file = self._file
    self._file = None
    if file is not None:
      os.close(file)

  def close(self) -> None:
    """Closes the file for good."""
    if not self.closed:
      self.release()
    super().close()
