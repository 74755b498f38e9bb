"""Skips, counts and records updates that are not finite.

A run ends when there are more of them than its config allows.
"""

from collections.abc import Callable, Mapping, Sequence
import json
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from omni_jax.checkpoint import digest
from omni_jax.checkpoint.train_state import TrainState
from omni_jax.errors import UserError
from omni_jax.line_file import LineFile
from omni_jax.objective import Metrics
from omni_jax.run_log import say

SKIPPED = 'skipped'
FILE = 'bad_steps.jsonl'
# Metrics that have to be finite.
TOTAL_LOSS = 'loss/total'
TOTAL_GRAD_NORM = 'grad_norm/total'
GUARDED = (TOTAL_LOSS, TOTAL_GRAD_NORM)
NAMED = 3  # most arrays that a message names


def skip_if_not_finite(
  before: TrainState, after: TrainState, metrics: Metrics
) -> tuple[TrainState, Metrics]:
  """Returns the state after an update, without its changes if it is not finite.

  If the loss or the gradient is not finite, the arrays are those of `before`, and only
  the step advances. This is a pure choice inside the step, whatever the policy, so that
  no state is ever corrupted. metrics['skipped'] is 1 for such an update, else 0.
  """
  guarded = jnp.stack([metrics[name] for name in GUARDED if name in metrics])
  good = jnp.isfinite(guarded).all()
  state = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, before)
  state = state._replace(step=after.step)
  return state, metrics | {SKIPPED: jnp.where(good, 0, 1)}


class BadSteps:
  """Counts the skipped updates of a stage; more than `limit` of them end the run.

  It reads the metrics of a step one step late, so that the devices stay busy.

  Args:
    workdir: folder of the run.
    stage: name of the stage.
    limit: number of skipped updates that are allowed; with 0, the first one ends the run.
  """

  def __init__(self, workdir: str, stage: str, limit: int):
    self.count = 0
    self._file = LineFile(epath.Path(workdir) / FILE)
    self._workdir = workdir
    self._stage = stage
    self._limit = limit
    self._pending: list[tuple[int, Metrics, Callable[[], Any]]] = []

  def after(self, step: int, metrics: Metrics, records: Callable[[], Any]) -> None:
    """Notes a step, and checks the step before it.

    Waiting for the metrics of this step would leave the devices idle.

    Args:
      step: number of the step.
      metrics: metrics of the step.
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
      self._file.append(json.dumps(line))
    problem = f'{self._stage}: {describe_not_finite(bad)} at step {step}'
    where = f'the records of the batch are in {self._file.path}'
    if self.count > self._limit:
      skipped = '1 update was' if self.count == 1 else f'{self.count} updates were'
      raise UserError(
        f'{problem}; {skipped} skipped, more than '
        f'config.{self._stage}.bad_steps={self._limit} allows; {where}; try a smaller '
        f'config.{self._stage}.optim.lr'
      )
    say(
      self._workdir,
      f'WARNING: {problem}; the update is skipped ({self.count} of {self._limit} '
      f'allowed); {where}',
    )


def not_finite(values: Mapping[str, np.ndarray]) -> list[str]:
  """Returns the names of the metrics that are not finite, sorted."""
  return sorted(name for name, value in values.items() if not np.isfinite(value).all())


def describe_not_finite(names: Sequence[str]) -> str:
  """Returns, for example, 'loss/total is not finite'."""
  verb = 'is' if len(names) == 1 else 'are'
  return f'{", ".join(names)} {verb} not finite'


def check_state(state: TrainState) -> None:
  """Checks a state before it is saved.

  Raises:
    UserError: with the names of arrays that are not finite.
  """
  bad = digest.not_finite(state._asdict())
  if not bad:
    return
  names = ', '.join(bad[:NAMED])
  if len(bad) > NAMED:
    names += f' and {len(bad) - NAMED} more arrays'
  verb = 'is' if len(bad) == 1 else 'are'
  raise UserError(
    f'step {int(state.step)} is not saved: {names} {verb} not finite; the last '
    'checkpoint is good: continue from it with a smaller learning rate'
  )


def check_repeated_step(first: TrainState, second: TrainState, step: int) -> None:
  """Compares the two results of a step that was computed twice.

  Raises:
    UserError: if they are not bit-identical.
  """
  digests = digest.digests(first._asdict())
  other_digests = digest.digests(second._asdict())
  different = [name for name in digests if digests[name] != other_digests[name]]
  if not different:
    return
  name = different[0]
  verb = 'differs' if len(different) == 1 else 'differ'
  raise UserError(
    f'step {step} was computed twice from the same state and batch, and '
    f'{len(different)} of {len(digests)} arrays {verb}, the first is {name}: '
    f'{digests[name]} and {other_digests[name]}; a device computes wrong results, or an '
    'operation is not deterministic; neither result is saved'
  )
