"""Beside a running trainer: every new step is evaluated, from the last one there is, until the run is done."""

from collections.abc import Callable
import time

from omni_jax.errors import UserError

POLL = 10.0  # seconds between two looks at the folder


def follow(
  evaluate: Callable[[int], None],
  steps: Callable[[], list[int]],
  last: Callable[[], int],
  *,
  log: Callable[[str], None],
  wait: Callable[[], None] = lambda: time.sleep(POLL),
) -> None:
  """Evaluates the newest step as often as there is a newer one; steps between are passed over.

  The trainer removes old steps as it likes: when the one in hand is gone, the newest is taken instead.

  Args:
    evaluate: a step.
    steps: lists those that there are now.
    last: the step at which the run is done, by its config as it is now.
  """
  done = -1
  while True:
    newest = max(steps(), default=-1)
    if newest > done:
      try:
        evaluate(newest)
        done = newest
      except (UserError, OSError) as error:
        if newest in steps():
          raise
        log(
          f'evaluate: step {newest} was removed while it was read ({error}); taking the newest instead'
        )
        continue
    if done >= last() >= 0:
      return
    wait()
