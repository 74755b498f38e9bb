"""Ends a run after a signal, once the current step is finished and saved."""

from collections.abc import Iterator
import contextlib
import signal
from typing import Any

import jax
from jax.sharding import Mesh

from omni_jax.across_processes import any_process
from omni_jax.errors import INTERRUPTED, PREEMPTED


class Preempted(SystemExit):
  """Ends the process after a signal, once everything is saved.

  The exit code tells a scheduler whether to start the run again: PREEMPTED after
  SIGTERM, INTERRUPTED after ctrl-C.
  """

  def __init__(self, code: int = PREEMPTED):
    super().__init__(code)


class Stop:
  """Tells whether this process or another one was asked to stop.

  All processes of a run stop at the same step.
  """

  def __init__(self, mesh: Mesh):
    self.requested = False  # in this process
    self.code = PREEMPTED  # to exit with
    self._mesh = mesh
    self._earlier_answer: jax.Array | None = None

  def after_a_step(self) -> bool:
    """Returns whether to stop after this step.

    Several processes use the answer of the step before: waiting for that of this step
    would leave the devices idle.
    """
    if jax.process_count() == 1:
      return self.requested
    answer = self._earlier_answer
    self._earlier_answer = any_process(self.requested, self._mesh)
    return answer is not None and bool(answer)

  def at_the_end(self) -> bool:
    """Returns whether any process was asked to stop."""
    if jax.process_count() == 1:
      return self.requested
    return bool(any_process(self.requested, self._mesh))


@contextlib.contextmanager
def stop_on_signals(mesh: Mesh) -> Iterator[Stop]:
  """Yields a `Stop` that SIGTERM and ctrl-C set; afterwards they act as before.

  A second ctrl-C ends the process at once.
  """
  stop = Stop(mesh)
  previous: dict[int, Any] = {}

  def request(number: int, _: object) -> None:
    stop.requested = True
    if number == signal.SIGINT:
      stop.code = INTERRUPTED
      signal.signal(signal.SIGINT, previous[signal.SIGINT])
      print('ctrl-C: stops once this step is saved; again: stops at once', flush=True)

  try:
    for number in (signal.SIGTERM, signal.SIGINT):
      previous[number] = signal.signal(number, request)
  except ValueError:
    # Not the main thread (a notebook, a test): the signals are not ours to catch.
    yield stop
    return
  try:
    yield stop
  finally:
    for signal_number, handler in previous.items():
      signal.signal(signal_number, handler)
