"""Several processes of one run, one per host: how they find each other, agree before they start, and leave."""

from collections.abc import Callable
import os
import sys
import traceback
from typing import TypeVar

import jax

from omni_jax.errors import UserError
from omni_jax.sharding import gather_bytes

T = TypeVar('T')
VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


def join() -> None:
  """Meets the other processes.

  They are where the environment variables say, or where jax finds them (TPU pods,
  Slurm). jax's own answer to SIGTERM is turned off: it would swallow the signal outside
  of the training loop, and Orbax asks it with step numbers that begin anew in every
  stage. The loop agrees by itself.
  """
  values = [os.environ.get(name) for name in VARIABLES]
  if any(values) and not all(value and value.isdecimal() for value in values[1:]):
    raise UserError(
      f'config.distributed=True: {dict(zip(VARIABLES, values, strict=True))}: give all '
      'of them, such as localhost:29500, 2 and 0, or none where jax finds out by itself'
    )
  jax.config.update('jax_enable_preemption_service', False)
  count, index = (int(value) if value else None for value in values[1:])
  try:
    jax.distributed.initialize(num_processes=count, process_id=index)
  except (ValueError, RuntimeError) as error:
    # No other process came in time, or jax does not know the cluster.
    raise UserError(
      f'config.distributed=True: {error}; set {", ".join(VARIABLES)}'
    ) from error


def agreed(make: Callable[[], T]) -> T:
  """Returns what `make` returns, or raises the error of any process in all of them.

  So none waits for one that gave up. Process 0 raises the UserError; the others end
  without a word. They part before, since all are here.
  """
  result, error = None, None
  try:
    result = make()
  except UserError as caught:
    error = caught
  messages = [text.decode() for text in gather_bytes(str(error or '').encode())]
  if not any(messages):
    return result
  disband()
  if jax.process_index():
    raise SystemExit(2)
  different = dict.fromkeys(text for text in messages if text)
  raise UserError('; '.join(different)) from error


def leave(error: Exception) -> None:
  """Ends this process at once after an error that the others may not share.

  jax's way out waits minutes for the others, which wait for this one; they see its
  connection break instead.
  """
  who = f'process {jax.process_index()} of {jax.process_count()}'
  if isinstance(error, UserError):
    print(f'error: {who}: {" ".join(str(error).split())}', file=sys.stderr)
  else:
    traceback.print_exception(error)
    print(f'error: {who} ends', file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(2 if isinstance(error, UserError) else 1)


def disband() -> None:
  """Parts all processes: from here on none can wait for another one.

  Each keeps its own devices, and may go on to compute on them alone.
  """
  if jax.process_count() > 1:
    jax.distributed.shutdown()
