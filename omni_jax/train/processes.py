"""Connects the processes of a run, one per host, and ends them together."""

from collections.abc import Callable
import os
import sys
import traceback
from typing import Any, TypeVar

import jax

from omni_jax.across_processes import gather_bytes
from omni_jax.errors import MISTAKE, one_line, UserError

T = TypeVar('T')
VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


def join() -> None:
  """Connects to the other processes.

  The environment variables say where they are, or jax detects them (TPU pods, Slurm).
  jax's own handling of SIGTERM is turned off: it would swallow the signal outside the
  training loop, and Orbax queries it with step numbers that start over in every stage.
  The loop agrees on the step by itself.

  Raises:
    UserError: if only some of the variables are set or the processes cannot connect.
  """
  values = {name: os.environ.get(name) for name in VARIABLES}
  _, count, index = values.values()
  numbers_are_set = _is_number(count) and _is_number(index)
  if any(values.values()) and not numbers_are_set:
    raise UserError(
      f'config.distributed=True: {values}: set all of them, such as localhost:29500, 2 '
      'and 0, or none if jax detects the cluster by itself'
    )
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      num_processes=int(count) if count else None,
      process_id=int(index) if index else None,
    )
  except (ValueError, RuntimeError) as error:
    # No other process came in time, or jax does not know the cluster.
    raise UserError(
      f'config.distributed=True: {error}; set {", ".join(VARIABLES)}'
    ) from error


def _is_number(value: str | None) -> bool:
  return value is not None and value.isdecimal()


def agreed(make: Callable[[], T]) -> T:
  """Returns what `make` returns; if it fails in any process, all processes end.

  No process then waits for one that gave up. Process 0 raises the UserError; the others end
  silently. They disconnect first, while all of them are still running.
  """
  result: Any = None
  error = None
  try:
    result = make()
  except UserError as caught:
    error = caught
  messages = [text.decode() for text in gather_bytes(str(error or '').encode())]
  if not any(messages):
    return result
  disband()
  if jax.process_index():
    raise SystemExit(MISTAKE)
  different = dict.fromkeys(text for text in messages if text)
  raise UserError('; '.join(different)) from error


def leave(error: Exception) -> None:
  """Ends this process at once after an error that the others may not have.

  jax's own exit waits minutes for the others, which wait for this one; this way they
  see the connection break.
  """
  who = f'process {jax.process_index()} of {jax.process_count()}'
  if isinstance(error, UserError):
    print(f'error: {who}: {one_line(error)}', file=sys.stderr)
  else:
    traceback.print_exception(error)
    print(f'error: {who} ends', file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(MISTAKE if isinstance(error, UserError) else 1)


def disband() -> None:
  """Disconnects all processes: from here on, none can wait for another one.

  Each keeps its own devices and may go on computing on them.
  """
  if jax.process_count() > 1:
    jax.distributed.shutdown()
