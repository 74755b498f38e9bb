"""Evaluates every new step of a run that is still being trained, until its end."""

from collections.abc import Callable
import time

from omni_jax.errors import UserError

POLL = 10.0  # seconds between two looks at the folder


def _pause() -> None:
  """Waits until it is time to look at the folder again."""
  time.sleep(POLL)


def follow(
  evaluate: Callable[[int], None],
  steps: Callable[[], list[int]],
  last: Callable[[], int],
  *,
  log: Callable[[str], None],
  wait: Callable[[], None] = _pause,
) -> None:
  """Evaluates the newest step whenever there is a newer one; others are skipped.

  The trainer may remove old steps at any time: if the step that is being read
  disappears, the newest one is evaluated instead.

  Args:
    evaluate: evaluates a step.
    steps: lists the steps that are saved now.
    last: returns the step at which the run ends, by its present config.
    log: reports a step that disappeared.
    wait: waits between two looks at the folder.

  Raises:
    UserError, OSError: those of `evaluate`, if the step is still there.
  """
  last_evaluated = -1
  while True:
    newest = max(steps(), default=-1)
    if newest > last_evaluated:
      try:
        evaluate(newest)
        last_evaluated = newest
      except (UserError, OSError) as error:
        if newest in steps():
          raise
        log(
          f'evaluate: step {newest} was removed while it was read ({error}); '
          'evaluating the newest step instead'
        )
        continue
    if last_evaluated >= last() >= 0:
      return
    wait()
