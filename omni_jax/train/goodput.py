"""Where a run's time went: productive steps, start, restoring, waits for saves and data, and work that was lost."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import time
from typing import Any

from etils import epath
import jax

from omni_jax.run_log import START

FILE = 'goodput.jsonl'
START_, RESTORE, DATA, SAVE, STEP = KINDS = ('start', 'restore', 'data', 'save', 'step')


class Goodput:
  """Seconds of one stage in one process by kind; a line of goodput.jsonl whenever a line of figures or a step is saved.

  What is none of the other kinds is `step`: productive, as far as it is not lost later.
  """

  def __init__(self, workdir: str, stage: str):
    self._file, self._stage, self._session = (
      epath.Path(workdir) / FILE,
      stage,
      f'{START:.3f}',
    )
    self._before = read(workdir)
    others = [line for line in self._before if line['session'] == self._session]
    self._began = (
      time.time() if others else START
    )  # of the process, for its first stage
    self._spent = dict.fromkeys(KINDS[:-1], 0.0)
    self._lost: dict[str, float] = {'steps': 0, 'seconds': 0.0}

  @contextlib.contextmanager
  def spent(self, kind: str) -> Iterator[None]:
    before = time.time()
    try:
      yield
    finally:
      self._spent[kind] += time.time() - before

  def resumed(self, step: int) -> None:
    """Counts what an earlier process did after this step, as far as it said so: it is done once more."""
    theirs = [line for line in self._before if line['stage'] == self._stage]
    if theirs and theirs[-1]['session'] != self._session and theirs[-1]['step'] > step:
      last = theirs[-1]
      lost = last['step'] - step
      done = max(last['step'] - last['first'], 1)
      self._lost = {
        'steps': lost,
        'seconds': round(last['seconds'][STEP] * min(1, lost / done), 3),
      }

  def first_step(self) -> None:
    """The first update is made: until here, apart from what is counted elsewhere, the process started and compiled."""
    self._spent[START_] = time.time() - self._began - sum(self._spent.values())

  def write(self, first: int, step: int) -> None:
    """A line on this process so far, which began after step `first`."""
    if jax.process_index():
      return
    total = time.time() - self._began
    seconds = {**self._spent, STEP: total - sum(self._spent.values())}
    line = {
      'session': self._session,
      'stage': self._stage,
      'first': first,
      'step': step,
      'seconds': {kind: round(value, 3) for kind, value in seconds.items()},
      'lost': self._lost,
    }
    with self._file.open('a') as file:
      file.write(json.dumps(line) + '\n')


def read(workdir: Any) -> list[dict[str, Any]]:
  """The lines of goodput.jsonl, without one that a killed process left half-written."""
  found, file = [], epath.Path(workdir) / FILE
  for line in file.read_text().splitlines() if file.exists() else ():
    with contextlib.suppress(json.JSONDecodeError):
      found.append(json.loads(line))
  return found


def summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Seconds by kind over all processes and stages, `lost` taken from `step`, and the share that was productive."""
  last = {(line['session'], line['stage']): line for line in lines}
  total = {kind: sum(line['seconds'][kind] for line in last.values()) for kind in KINDS}
  total['lost'] = sum(line['lost']['seconds'] for line in last.values())
  total[STEP] -= total['lost']
  return {**total, 'goodput': total[STEP] / max(sum(total.values()), 1e-9)}
