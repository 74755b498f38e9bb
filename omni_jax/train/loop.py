"""The loop of every stage: batches in, updates, figures out, checkpoints between; resumes and stops cleanly."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import errno
import functools
import json
import signal
import time
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.checkpoint.train_state import TrainState
from omni_jax.errors import UserError
from omni_jax.run_log import say
from omni_jax.sharding import anywhere, gather_bytes, place
from omni_jax.train.goodput import DATA, Goodput, RESTORE, SAVE
from omni_jax.train.numerics import (
  BadSteps,
  check_state,
  not_finite,
  same_twice,
  SKIPPED,
)
from omni_jax.train.step import StepFn
from omni_jax.train.writer import Silent, Writer

NO_ROOM = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EROFS,
)  # of the logs, too, not of checkpoints only
PREEMPTED = (
  75  # exit code after SIGTERM: saved, start me again (EX_TEMPFAIL of sysexits.h)
)


@runtime_checkable
class Batches(Protocol):
  def __next__(self) -> Any: ...
  def state(self) -> bytes: ...  # of this process
  def merged(self, states: Sequence[bytes]) -> bytes: ...  # of all, from those of each
  def restore(self, state: bytes) -> None: ...
  def close(self) -> None: ...


@runtime_checkable
class Named(Protocol):
  """Batches that know what a batch is made of."""

  def ids(self, before: bytes, after: bytes) -> list[str]: ...


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of a run.

  Attributes:
    steps: updates in all.
    state: the state to start from; shapes and shardings when a checkpoint is restored.
    flops: model FLOPs of an update, for MFU; 0 if not counted.
    log_every, save_every: in steps.
    profile: 'first:last' steps to trace, or ''.
    bad_steps: updates that are not finite and may be left out; one more ends the run.
    about: plain values for the manifests of its checkpoints.
    repeat_every: make every so manieth step twice and compare the bits; 0 for none.
  """

  name: str
  steps: int
  step: StepFn
  state: TrainState
  batches: Batches
  flops: float = 0.0
  peak: float | None = None
  log_every: int = 50
  save_every: int = 500
  profile: str = ''
  bad_steps: int = 0
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  repeat_every: int = 0


class Preempted(SystemExit):
  """SIGTERM came: the step in hand was finished and saved."""

  def __init__(self):
    super().__init__(PREEMPTED)


class _Meter:
  """Time since the last report, split into waiting for data and the rest."""

  def __init__(self):
    self._start, self._wait, self._steps, self._tokens = (
      time.perf_counter(),
      0.0,
      0,
      0.0,
    )

  def waited(self, seconds: float) -> None:
    self._wait += seconds
    self._steps += 1

  def report(self, tokens_per_step: float, stage: Stage) -> dict[str, float]:
    seconds, steps = time.perf_counter() - self._start, max(self._steps, 1)
    figures = {
      'speed/steps_per_second': steps / seconds,
      'speed/data_wait': self._wait / seconds,
      'speed/tokens_per_second': tokens_per_step * steps / seconds,
    }
    if stage.flops and stage.peak:
      figures['speed/mfu'] = (
        stage.flops * steps / seconds / (stage.peak * jax.device_count())
      )
    self.__init__()
    return figures


def run(stage: Stage, workdir: str, mesh: Mesh) -> TrainState:
  """Runs a stage to its end from its last checkpoint, or from its first state; a finished one is only restored.

  Raises:
    Preempted: after SIGTERM, once everything is saved.
    UserError: if the loss is no longer finite, a save failed, or nothing more can be written.
  """
  with _sigterm(mesh) as stop:
    try:
      state = _resumed(stage, workdir, mesh, stop)
    except OSError as error:
      if error.errno not in NO_ROOM:
        raise
      raise UserError(
        f'{stage.name}: {workdir} cannot be written any more: {error}; the checkpoints are as they were: '
        'make room or mend the folder, then start again'
      ) from error
    finally:
      stage.batches.close()
    if stop.at_the_end():
      raise Preempted
    return state


def _resumed(stage: Stage, workdir: str, mesh: Mesh, stop: '_Stop') -> TrainState:
  with Checkpoints(
    workdir, stage.name, say=functools.partial(say, workdir)
  ) as checkpoints:
    state, good = stage.state, Goodput(workdir, stage.name)
    with good.spent(RESTORE):
      found = checkpoints.resume(stage.state)
    if found:
      state = found.state
      stage.batches.restore(found.iterator)
      good.resumed(int(state.step))
      say(workdir, f'{stage.name}: resumed at step {int(state.step)} of {stage.steps}')
    start = int(state.step)
    if start >= stage.steps:
      return state
    writer = (
      Silent(workdir, stage.name)
      if jax.process_index()
      else Writer(workdir, stage.name, steps=stage.steps, start=start)
    )
    with writer:
      bad = BadSteps(workdir, stage.name, stage.bad_steps)
      state = _steps(_Tools(checkpoints, writer, good, bad), stage, state, mesh, stop)
      with good.spent(SAVE):
        checkpoints.latest()  # waits for the last save
      good.write(start, stage.steps)
      return state


class _Tools(NamedTuple):
  """Where what a stage says and saves goes."""

  checkpoints: Checkpoints
  writer: Writer
  good: Goodput
  bad: BadSteps


def _steps(
  tools: _Tools, stage: Stage, state: TrainState, mesh: Mesh, stop: '_Stop'
) -> TrainState:
  checkpoints, writer, good, bad = tools
  meter, trace, metrics = (
    _Meter(),
    _Trace(stage.profile, str(writer.trace_folder)),
    None,
  )
  start, where = int(state.step), stage.batches.state()
  for step in range(start + 1, stage.steps + 1):
    checkpoints.check()
    trace.before(step)
    before = time.perf_counter()
    with good.spent(DATA):
      host = next(stage.batches)
    meter.waited(time.perf_counter() - before)
    earlier = metrics
    state, metrics = _updated(stage, state, place(host, mesh), step)
    # One step ahead of the devices is enough to keep them busy. Further ahead, the host would use up the prefetched
    # batches, wait for each new one though no device does, and hold all of them in the devices' memory.
    jax.block_until_ready(earlier)
    was, where = where, stage.batches.state()
    bad.after(step, metrics, functools.partial(_records, stage.batches, was, where))
    writer.advance()
    if step == start + 1:
      jax.block_until_ready(metrics)
      good.first_step()
    trace.after(step, state)
    log = step % stage.log_every == 0 or step == stage.steps
    asked = stop.after_a_step()  # read once: it may turn true at any moment
    save = asked or step % stage.save_every == 0 or step == stage.steps
    if log or save:
      bad.now()
      figures = jax.device_get(metrics)
      if SKIPPED not in metrics and (spoilt := not_finite(figures)):
        raise UserError(
          f'{stage.name}: {", ".join(spoilt)} is no longer finite at step {step}; the last checkpoint is '
          f'step {checkpoints.latest()}; try a smaller config.{stage.name}.optim.lr'
        )
    if log:
      tokens = float(figures.pop('tokens'))
      figures = {
        name: value for name, value in figures.items() if np.isfinite(value).all()
      }  # of a step left out
      figures |= {SKIPPED: bad.count} if bad.count else {}
      writer.write(step, figures | meter.report(tokens, stage))
    if save:
      with good.spent(SAVE):
        check_state(state)
        checkpoints.save(
          state, stage.batches.merged(gather_bytes(stage.batches.state())), stage.about
        )
    if log or save:
      good.write(start, step)
    if asked:
      raise Preempted
  return state


def _records(batches: Batches, before: bytes, after: bytes) -> Any:
  """What a batch was made of: names of its examples, or where the data stood before it; of all processes."""
  own = (
    batches.ids(before, after) if isinstance(batches, Named) else [json.loads(before)]
  )
  return [
    name for part in gather_bytes(json.dumps(own).encode()) for name in json.loads(part)
  ]


def _updated(
  stage: Stage, state: TrainState, batch: Any, step: int
) -> tuple[TrainState, Any]:
  """The state after one more step. To find silent corruption, some are made twice: the first time from a copy."""
  if not stage.repeat_every or step % stage.repeat_every:
    return stage.step(state, batch)
  first, _ = stage.step(jax.tree.map(jnp.copy, state), batch)
  second, metrics = stage.step(state, batch)
  same_twice(first, second, step)
  return second, metrics


class _Trace:
  """Starts and stops the profiler at the steps that config.profile names; a resumed run may lie past either."""

  def __init__(self, steps: str, folder: str):
    self._first, self._last = (int(x) for x in steps.split(':')) if steps else (-1, -1)
    self._folder, self._running = folder, False

  def before(self, step: int) -> None:
    if step == self._first:
      jax.profiler.start_trace(self._folder)
      self._running = True

  def after(self, step: int, state: TrainState) -> None:
    if self._running and step >= self._last:
      jax.block_until_ready(state)
      jax.profiler.stop_trace()
      self._running = False


class _Stop:
  """Whether the machine is about to be taken away, or that of another process: all of them stop at the same step."""

  def __init__(self, mesh: Mesh):
    self.asked = False  # in this process
    self._mesh, self._before = mesh, None

  def after_a_step(self) -> bool:
    """Of several processes, what they said a step ago: to wait for this step's answer would leave devices idle."""
    if jax.process_count() == 1:
      return self.asked
    before, self._before = self._before, anywhere(self.asked, self._mesh)
    return before is not None and bool(before)

  def at_the_end(self) -> bool:
    return (
      self.asked if jax.process_count() == 1 else bool(anywhere(self.asked, self._mesh))
    )


@contextlib.contextmanager
def _sigterm(mesh: Mesh) -> Iterator[_Stop]:
  """A value that turns true when the signal comes. Afterwards the signal kills as before."""
  stop = _Stop(mesh)

  def ask(*_):
    stop.asked = True

  try:
    before = signal.signal(signal.SIGTERM, ask)
  except (
    ValueError
  ):  # not the main thread (a notebook, a test): the signal is not ours to catch
    yield stop
    return
  try:
    yield stop
  finally:
    signal.signal(signal.SIGTERM, before)
