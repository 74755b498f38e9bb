"""Accounts for a run's time.

The kinds of time are productive steps, the start, restoring, and waiting for saves and
for data; work that was lost is counted as well.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import time
from typing import Any

from etils import epath
import jax

from omni_jax.line_file import LineFile
from omni_jax.run_folder import read_json_lines
from omni_jax.run_log import START

FILE = 'goodput.jsonl'
STARTUP = 'start'
RESTORE = 'restore'
DATA = 'data'
SAVE = 'save'
STEP = 'step'
KINDS = (STARTUP, RESTORE, DATA, SAVE, STEP)


class Goodput:
  """Counts the seconds of one stage in one process, by kind.

  A line of goodput.jsonl is written whenever metrics or a checkpoint are. Time that is
  of no other kind is `step`: productive, unless it is lost later.
  """

  def __init__(self, workdir: str, stage: str):
    self._file = LineFile(epath.Path(workdir) / FILE)
    self._stage = stage
    self._session = f'{START:.3f}'
    self._earlier = read(workdir)
    own = [line for line in self._earlier if line['session'] == self._session]
    # The first stage of a process begins with the process.
    self._began = time.time() if own else START
    self._spent = dict.fromkeys(KINDS[:-1], 0.0)
    self._lost: dict[str, float] = {'steps': 0, 'seconds': 0.0}

  @contextlib.contextmanager
  def spent(self, kind: str) -> Iterator[None]:
    """Adds the time spent inside the context to a kind."""
    before = time.time()
    try:
      yield
    finally:
      self._spent[kind] += time.time() - before

  def resumed(self, step: int) -> None:
    """Counts the work of an earlier process after this step as lost: it is repeated.

    Steps after the last line of that process are unknown and not counted.
    """
    lines = [line for line in self._earlier if line['stage'] == self._stage]
    if not lines:
      return
    last = lines[-1]
    if last['session'] == self._session or last['step'] <= step:
      return
    lost = last['step'] - step
    finished = max(last['step'] - last['first'], 1)
    seconds = last['seconds'][STEP] * min(1, lost / finished)
    self._lost = {'steps': lost, 'seconds': round(seconds, 3)}

  def mark_first_step(self) -> None:
    """Marks the end of the first update.

    All time until then counts as the start, except for that of other kinds.
    """
    self._spent[STARTUP] = time.time() - self._began - sum(self._spent.values())

  def write(self, first: int, step: int) -> None:
    """Writes a line about this process up to now; it began after step `first`."""
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
    self._file.append(json.dumps(line))


def read(workdir: Any) -> list[dict[str, Any]]:
  """Returns the lines of goodput.jsonl."""
  return read_json_lines(epath.Path(workdir) / FILE)


def summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Returns the seconds by kind over all processes and stages.

  `lost` is taken off `step`; `goodput` is the share that was productive.
  """
  latest = {(line['session'], line['stage']): line for line in lines}
  seconds = {}
  for kind in KINDS:
    seconds[kind] = sum(line['seconds'][kind] for line in latest.values())
  seconds['lost'] = sum(line['lost']['seconds'] for line in latest.values())
  seconds[STEP] -= seconds['lost']
  productive = seconds[STEP] / max(sum(seconds.values()), 1e-9)
  return {**seconds, 'goodput': productive}
