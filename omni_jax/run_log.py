"""Writes lines about a run to standard output and to its log.txt."""

import os
import time

from etils import epath
import jax

START = time.time()  # when the process loaded this module, in seconds since the epoch


def say(workdir: str | os.PathLike, text: str) -> None:
  """Writes a line to standard output and to log.txt in the run's folder.

  The line starts with the seconds since the process started. Only process 0 writes.
  """
  if jax.process_index():
    return
  seconds = time.time() - START
  line = f'[{seconds:7.1f} s] {text}'
  print(line, flush=True)
  with (epath.Path(workdir) / 'log.txt').open('a') as file:
    file.write(line + '\n')
