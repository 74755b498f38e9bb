"""Runs the profiler over the steps of config.profile."""

import pathlib
import tempfile

from etils import epath
import jax

from omni_jax.checkpoint.train_state import TrainState
from omni_jax.paths import is_remote


class Trace:
  """Traces the steps of config.profile for XProf and TensorBoard's profile plug-in.

  A resumed run may begin after the first or even after the last of them.

  Args:
    steps: 'first:last', or '' for none.
    folder: folder for the trace; one in a bucket gets it when it is complete.
  """

  def __init__(self, steps: str, folder: epath.Path):
    first, last = steps.split(':') if steps else (-1, -1)
    self._first = int(first)
    self._last = int(last)
    self._folder = folder
    self._temporary: tempfile.TemporaryDirectory | None = None
    self._running = False

  def before(self, step: int) -> None:
    """Starts the profiler if this is the first step to trace."""
    if step != self._first:
      return
    folder = str(self._folder)
    if is_remote(folder):
      self._temporary = tempfile.TemporaryDirectory()
      folder = self._temporary.name
    jax.profiler.start_trace(folder)
    self._running = True

  def after(self, step: int, state: TrainState) -> None:
    """Stops the profiler if this was the last step to trace."""
    if not self._running or step < self._last:
      return
    jax.block_until_ready(state)
    jax.profiler.stop_trace()
    self._running = False
    if self._temporary:
      self._copy(pathlib.Path(self._temporary.name))
      self._temporary.cleanup()

  def _copy(self, source: pathlib.Path) -> None:
    """Copies all files to the folder."""
    for path in source.rglob('*'):
      if path.is_file():
        target = self._folder / str(path.relative_to(source))
        target.write_bytes(path.read_bytes())
