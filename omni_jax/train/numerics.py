"""What becomes of an update that is not finite: it is left out, counted and written out; the run ends or goes on."""

from collections.abc import Callable
import json
from typing import Any

from etils import epath
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from omni_jax.checkpoint import digest
from omni_jax.checkpoint.train_state import TrainState
from omni_jax.errors import UserError
from omni_jax.run_log import say

SKIPPED, FILE = 'skipped', 'bad_steps.jsonl'
JUDGED = ('loss/total', 'grad_norm/total')  # of the metrics of a step


def guarded(
  before: TrainState, after: TrainState, metrics: dict[str, Array]
) -> tuple[TrainState, dict[str, Array]]:
  """`after`, or where loss or gradient are not finite the arrays of `before`: only the step is counted.

  A pure choice inside the step, whatever the policy, so that no state is ever spoilt. metrics['skipped'] says which.
  """
  good = jnp.isfinite(
    jnp.stack([metrics[name] for name in JUDGED if name in metrics])
  ).all()
  kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, before)
  return kept._replace(step=after.step), metrics | {SKIPPED: jnp.where(good, 0, 1)}


class BadSteps:
  """Counts the updates that a step left out; more than `limit` end the run. Asks the devices one step late.

  Args:
    limit: 0 for the first one to end the run.
  """

  def __init__(self, workdir: str, stage: str, limit: int):
    self._file, self._workdir, self._stage, self._limit = (
      epath.Path(workdir) / FILE,
      workdir,
      stage,
      limit,
    )
    self.count, self._open = 0, []

  def after(
    self, step: int, metrics: dict[str, Array], records: Callable[[], Any]
  ) -> None:
    """Looks at the step before this one: to wait for this one would leave the devices idle.

    Args:
      records: names what the batch was made of; called in all processes, if it was a bad one.
    """
    if SKIPPED in metrics:
      self._open.append((step, metrics, records))
      self._look(all_but=1)

  def now(self) -> None:
    """Looks at all steps so far.

    Raises:
      UserError: if more were left out than may be.
    """
    self._look(all_but=0)

  def _look(self, all_but: int) -> None:
    while len(self._open) > all_but:
      step, metrics, records = self._open.pop(0)
      if int(metrics[SKIPPED]):
        self.count += 1
        self._say(step, jax.device_get(metrics), records)

  def _say(
    self, step: int, figures: dict[str, Any], records: Callable[[], Any]
  ) -> None:
    bad, names = not_finite(figures), records()
    if not jax.process_index():
      line = {'stage': self._stage, 'step': step, 'not_finite': bad, 'records': names}
      with self._file.open('a') as file:
        file.write(json.dumps(line) + '\n')
    said = f'{self._stage}: {", ".join(bad)} is no longer finite at step {step}'
    if self.count > self._limit:
      raise UserError(
        f'{said}; the update is left out, as {self.count} in all, config.{self._stage}.bad_steps='
        f'{self._limit} are allowed; its records are in {self._file}; '
        f'try a smaller config.{self._stage}.optim.lr'
      )
    say(
      self._workdir,
      f'WARNING: {said}; the update is left out ({self.count} of {self._limit}), its records are in '
      f'{self._file}',
    )


def not_finite(figures: dict[str, Any]) -> list[str]:
  return sorted(name for name, value in figures.items() if not np.isfinite(value).all())


def check_state(state: TrainState) -> None:
  """Before a state is saved.

  Raises:
    UserError: with the names of arrays that are not finite.
  """
  if bad := digest.not_finite(state._asdict()):
    raise UserError(
      f'step {int(state.step)} is not saved: {", ".join(bad[:3])} '
      + (f'and {len(bad) - 3} more arrays are' if len(bad) > 3 else 'is')
      + ' not finite; '
      'the last checkpoint is good: go on from it with a smaller learning rate'
    )


def same_twice(first: TrainState, second: TrainState, step: int) -> None:
  """Compares two results of one step.

  Raises:
    UserError: if they are not equal bit for bit.
  """
  ours, theirs = digest.digests(first._asdict()), digest.digests(second._asdict())
  if differ := [name for name in ours if ours[name] != theirs[name]]:
    raise UserError(
      f'step {step} was made twice from the same state and batch, and {len(differ)} arrays differ, first '
      f'{differ[0]}: {ours[differ[0]]} and {theirs[differ[0]]}; a device computes wrong, or an operation '
      'is not deterministic; nothing of it is saved'
    )
