"""Handles updates that are not finite: they are skipped, counted and recorded.

A run ends when there are more of them than its config allows.
"""

from collections.abc import Callable, Mapping
import json
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from omni_jax.checkpoint import digest
from omni_jax.checkpoint.train_state import TrainState
from omni_jax.errors import UserError
from omni_jax.objective import Metrics
from omni_jax.run_log import say

SKIPPED = 'skipped'
FILE = 'bad_steps.jsonl'
JUDGED = ('loss/total', 'grad_norm/total')  # metrics that have to be finite


def skip_if_not_finite(
  before: TrainState, after: TrainState, metrics: Metrics
) -> tuple[TrainState, Metrics]:
  """Returns the state after an update, without its changes if it is not finite.

  If the loss or the gradient is not finite, the arrays are those of `before`, and only
  the step advances. This is a pure choice inside the step, whatever the policy, so that
  no state is ever spoilt. metrics['skipped'] is 1 for such an update, else 0.
  """
  judged = jnp.stack([metrics[name] for name in JUDGED if name in metrics])
  good = jnp.isfinite(judged).all()
  kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, before)
  kept = kept._replace(step=after.step)
  return kept, metrics | {SKIPPED: jnp.where(good, 0, 1)}


class BadSteps:
  """Counts the skipped updates of a stage; more than `limit` of them end the run.

  It reads the metrics of a step one step late, so that the devices stay busy.

  Args:
    limit: 0 if the first one ends the run.
  """

  def __init__(self, workdir: str, stage: str, limit: int):
    self.count = 0
    self._file = epath.Path(workdir) / FILE
    self._workdir = workdir
    self._stage = stage
    self._limit = limit
    self._pending: list[tuple[int, Metrics, Callable[[], Any]]] = []

  def after(self, step: int, metrics: Metrics, records: Callable[[], Any]) -> None:
    """Checks the step before this one: waiting for this one would leave devices idle.

    Args:
      records: returns what the batch consisted of; called in all processes if the step
        was skipped.
    """
    if SKIPPED in metrics:
      self._pending.append((step, metrics, records))
      self._check(all_but=1)

  def now(self) -> None:
    """Checks all steps so far.

    Raises:
      UserError: if more were skipped than allowed.
    """
    self._check(all_but=0)

  def _check(self, all_but: int) -> None:
    while len(self._pending) > all_but:
      step, metrics, records = self._pending.pop(0)
      if int(metrics[SKIPPED]):
        self.count += 1
        self._report(step, jax.device_get(metrics), records)

  def _report(
    self, step: int, values: Mapping[str, np.ndarray], records: Callable[[], Any]
  ) -> None:
    """Records a skipped step.

    Raises:
      UserError: if there are more than allowed.
    """
    bad = not_finite(values)
    names = records()
    if not jax.process_index():
      line = {'stage': self._stage, 'step': step, 'not_finite': bad, 'records': names}
      with self._file.open('a') as file:
        file.write(json.dumps(line) + '\n')
    problem = f'{self._stage}: {", ".join(bad)} is no longer finite at step {step}'
    if self.count > self._limit:
      raise UserError(
        f'{problem}; the update is skipped, {self.count} so far, but only '
        f'config.{self._stage}.bad_steps={self._limit} are allowed; its records are in '
        f'{self._file}; try a smaller config.{self._stage}.optim.lr'
      )
    say(
      self._workdir,
      f'WARNING: {problem}; the update is skipped ({self.count} of {self._limit} '
      f'allowed), its records are in {self._file}',
    )


def not_finite(values: Mapping[str, np.ndarray]) -> list[str]:
  """Returns the names of the metrics that are not finite, sorted."""
  return sorted(name for name, value in values.items() if not np.isfinite(value).all())


def check_state(state: TrainState) -> None:
  """Checks a state before it is saved.

  Raises:
    UserError: with the names of arrays that are not finite.
  """
  bad = digest.not_finite(state._asdict())
  if not bad:
    return
  names = ', '.join(bad[:3])
  if len(bad) > 3:
    names += f' and {len(bad) - 3} more arrays'
  verb = 'is' if len(bad) == 1 else 'are'
  raise UserError(
    f'step {int(state.step)} is not saved: {names} {verb} not finite; the last '
    'checkpoint is good: continue from it with a smaller learning rate'
  )


def same_twice(first: TrainState, second: TrainState, step: int) -> None:
  """Compares two results of one step.

  Raises:
    UserError: if they are not bit-identical.
  """
  digests = digest.digests(first._asdict())
  other_digests = digest.digests(second._asdict())
  different = [name for name in digests if digests[name] != other_digests[name]]
  if not different:
    return
  name = different[0]
  raise UserError(
    f'step {step} was computed twice from the same state and batch, and '
    f'{len(different)} arrays differ, first {name}: {digests[name]} and '
    f'{other_digests[name]}; a device computes wrong results, or an operation is not '
    'deterministic; neither result is saved'
  )
