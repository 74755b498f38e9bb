"""Lines about a run, on standard output and in its log.txt."""

import time
from typing import Any

from etils import epath
import jax

START = time.time()  # of this process


def say(workdir: Any, text: str) -> None:
  """Writes a line to standard output and to log.txt; only the first process writes."""
  if jax.process_index():
    return
  line = f'[{time.time() - START:7.1f} s] {text}'
  print(line, flush=True)
  with (epath.Path(workdir) / 'log.txt').open('a') as file:
    file.write(line + '\n')
