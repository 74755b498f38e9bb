"""Writes lines about a run to standard output and to its log.txt."""

import functools
import os
import time

from etils import epath
import jax

from omni_jax.line_file import LineFile

START = time.time()  # when the process loaded this module, in seconds since the epoch


def say(workdir: str | os.PathLike, text: str, *, show: bool = True) -> None:
  """Writes a line to log.txt in the run's folder and to standard output.

  The line starts with the seconds since the process started. Only process 0 writes.

  Args:
    workdir: folder of the run.
    text: the line.
    show: whether to write it to standard output as well.
  """
  if jax.process_index():
    return
  seconds = time.time() - START
  line = f'[{seconds:7.1f} s] {text}'
  if show:
    print(line, flush=True)
  _log_file(os.fspath(workdir)).append(line)


@functools.cache
def _log_file(workdir: str) -> LineFile:
  """Returns the log of a run's folder."""
  return LineFile(epath.Path(workdir) / 'log.txt')
