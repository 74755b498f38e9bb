"""Runs the loop of every stage: reads batches, updates the state, reports and saves.

It resumes from the last checkpoint, and stops cleanly on SIGTERM.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import errno
import functools
import json
import time
from typing import Any, NamedTuple, Protocol, runtime_checkable

from etils import epath
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from omni_jax.across_processes import gather_bytes
from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.checkpoint.train_state import TrainState
from omni_jax.errors import UserError
from omni_jax.objective import Metrics, TOKENS
from omni_jax.run_folder import BOARD
from omni_jax.run_log import say
from omni_jax.sharding import named_leaves, place
from omni_jax.train.goodput import DATA, Goodput, RESTORE, SAVE
from omni_jax.train.numerics import (
  BadSteps,
  check_repeated_step,
  check_state,
  describe_not_finite,
  not_finite,
  SKIPPED,
)
from omni_jax.train.sinks import StageLog
from omni_jax.train.step import StepFn
from omni_jax.train.stop import Preempted, Stop, stop_on_signals
from omni_jax.train.trace import Trace
from omni_jax.train.writer import (
  EXAMPLES,
  LEARNING_RATE,
  SilentWriter,
  STEPS_PER_SECOND,
  Writer,
)

# Errors of a disk that is full or read-only; the logs can run into them as well.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@runtime_checkable
class Batches(Protocol):
  """An endless iterator over batches that can be saved and restored."""

  def __next__(self) -> Any:
    """Returns the next batch: this process's part of the rows."""

  def state(self) -> bytes:
    """Returns the position of this process in the data."""

  def merged(self, states: Sequence[bytes]) -> bytes:
    """Returns the state of all processes, given that of each."""

  def restore(self, state: bytes) -> None:
    """Continues from a merged state."""

  def close(self) -> None:
    """Releases workers and files."""


@runtime_checkable
class BatchesWithIds(Protocol):
  """Batches that know the ids of their examples."""

  def ids(self, before: bytes, after: bytes) -> list[str]:
    """Returns the ids of the examples between two states of this process."""


@runtime_checkable
class CountedBatches(Protocol):
  """Batches that know how many examples were used."""

  def examples_before(self, state: bytes) -> int:
    """Returns the number of examples used up to a merged state, bad ones included."""


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of a run.

  Attributes:
    name: name of the stage in the log, in the metrics and in the path of its
      checkpoints.
    steps: total number of updates.
    step: function that computes one update.
    state: the state to start from; it gives the shapes and shardings for restoring.
    batches: the data.
    log_every: number of steps between two lines of metrics.
    save_every: number of steps between two checkpoints.
    bad_steps: number of updates that may be skipped because they are not finite; one
      more ends the run.
    repeat_every: N, if every N-th step is computed twice and the bits are compared; 0
      if none is.
    about: plain values for the manifests of its checkpoints.
    flops: model FLOPs of an update, for MFU; 0 if not counted.
    peak: peak FLOP/s of one device, for MFU; None if unknown.
    profile: steps to trace, as 'first:last'; '' for none.
    rate: learning rate by number of updates, for the log; None if unknown.
    writers: names of the sinks of its metrics, see `train.sinks`.
    config: config of the run, for sinks that keep it.
  """

  name: str
  steps: int
  step: StepFn
  state: TrainState
  batches: Batches
  log_every: int
  save_every: int
  bad_steps: int
  repeat_every: int
  about: Mapping[str, Any]
  flops: float = 0.0
  peak: float | None = None
  profile: str = ''
  rate: Callable[[int], Any] | None = None
  writers: Sequence[str] = ('jsonl', 'tensorboard')
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class _Meter:
  """Measures the speed and the wait for data since the last report."""

  def __init__(self):
    self._restart()

  def _restart(self) -> None:
    self._start = time.perf_counter()
    self._wait = 0.0
    self._steps = 0

  def count_step(self, wait_seconds: float) -> None:
    """Counts a step, and the time that it waited for its batch."""
    self._wait += wait_seconds
    self._steps += 1

  def report(self, tokens_per_step: float, stage: Stage) -> dict[str, float]:
    """Returns the metrics since the last report, and starts over."""
    seconds = time.perf_counter() - self._start
    steps = max(self._steps, 1)
    metrics = {
      STEPS_PER_SECOND: steps / seconds,
      'speed/data_wait': self._wait / seconds,
      'speed/tokens_per_second': tokens_per_step * steps / seconds,
    }
    if stage.flops and stage.peak:
      peak = stage.peak * jax.device_count()
      metrics['speed/mfu'] = stage.flops * steps / seconds / peak
    self._restart()
    return metrics


class _Tools(NamedTuple):
  """The tools with which a stage reports and saves."""

  checkpoints: Checkpoints
  writer: Writer
  goodput: Goodput
  bad_steps: BadSteps
  trace: Trace


def run(stage: Stage, workdir: str, mesh: Mesh) -> TrainState:
  """Runs a stage to its end, and returns its last state.

  It starts from the last checkpoint, or from the first state if there is none; a
  finished stage is only restored.

  Raises:
    Preempted: after SIGTERM, once everything is saved.
    UserError: if the loss is no longer finite, a save failed, or the folder can no
      longer be written to.
  """
  with stop_on_signals(mesh) as stop:
    try:
      state = _resume(stage, workdir, mesh, stop)
    except OSError as error:
      if error.errno not in NO_ROOM:
        raise
      raise UserError(
        f'{stage.name}: {workdir} can no longer be written to: {error}; the '
        'checkpoints are intact: free some space or repair the folder, then start again'
      ) from error
    finally:
      stage.batches.close()
    if stop.at_the_end():
      raise Preempted(stop.code)
    return state


def _resume(stage: Stage, workdir: str, mesh: Mesh, stop: Stop) -> TrainState:
  """Restores the last checkpoint, if there is one, and runs the steps that are left."""
  log = functools.partial(say, workdir)
  with Checkpoints(workdir, stage.name, say=log) as checkpoints:
    state = stage.state
    goodput = Goodput(workdir, stage.name)
    with goodput.spent(RESTORE):
      restored = checkpoints.resume(stage.state)
    if restored:
      state = restored.state
      stage.batches.restore(restored.iterator)
      goodput.resumed(int(state.step))
      log(f'{stage.name}: resumed at step {int(state.step)} of {stage.steps}')
    start = int(state.step)
    if start >= stage.steps:
      return state
    with _writer(stage, workdir, start) as writer:
      bad_steps = BadSteps(workdir, stage.name, stage.bad_steps)
      trace = Trace(stage.profile, epath.Path(workdir) / BOARD / stage.name)
      tools = _Tools(checkpoints, writer, goodput, bad_steps, trace)
      state = _run_steps(tools, stage, state, mesh, stop)
      with goodput.spent(SAVE):
        checkpoints.latest()  # waits for the last save
      goodput.write(start, stage.steps)
      return state


def _writer(stage: Stage, workdir: str, start: int) -> Writer:
  """Returns the writer of this process: only the first one writes."""
  if jax.process_index():
    return SilentWriter()
  log = StageLog(epath.Path(workdir), stage.name, start, stage.config)
  return Writer(log, stage.writers, steps=stage.steps)


def _run_steps(
  tools: _Tools, stage: Stage, state: TrainState, mesh: Mesh, stop: Stop
) -> TrainState:
  """Runs the steps from the state to the end of the stage."""
  checkpoints, writer, goodput, bad_steps, trace = tools
  meter = _Meter()
  metrics = None
  start = int(state.step)
  position = stage.batches.state()
  began = time.perf_counter()
  writer.say(f'compiling a step of {_parameter_count(state):,} parameters')
  for step in range(start + 1, stage.steps + 1):
    checkpoints.check()
    trace.before(step)
    before = time.perf_counter()
    with goodput.spent(DATA):
      host_batch = next(stage.batches)
    meter.count_step(time.perf_counter() - before)
    earlier_metrics = metrics
    state, metrics = _compute_step(stage, state, place(host_batch, mesh), step)
    # One step ahead of the devices is enough to keep them busy. Further ahead, the host
    # would use up the prefetched batches, wait for each new one though no device does,
    # and hold all of them in the devices' memory.
    jax.block_until_ready(earlier_metrics)
    earlier_position = position
    position = stage.batches.state()
    records = functools.partial(_records, stage.batches, earlier_position, position)
    bad_steps.after(step, metrics, records)
    writer.advance()
    if step == start + 1:
      jax.block_until_ready(metrics)
      goodput.mark_first_step()
      writer.say(f'first step done {time.perf_counter() - began:.1f} s later')
    trace.after(step, state)
    is_last = step == stage.steps
    must_log = step % stage.log_every == 0 or is_last
    preempted = stop.after_a_step()  # read once: it may turn true at any moment
    must_save = preempted or step % stage.save_every == 0 or is_last
    if not must_log and not must_save:
      continue
    values = _checked_metrics(tools, stage, step, metrics)
    if must_log:
      _log(tools, stage, step, values, meter)
    if must_save:
      with goodput.spent(SAVE):
        _save(checkpoints, stage, state)
    goodput.write(start, step)
    if preempted:
      raise Preempted(stop.code)
  return state


def _checked_metrics(
  tools: _Tools, stage: Stage, step: int, metrics: Metrics
) -> dict[str, np.ndarray]:
  """Returns the metrics of a step, once it and all before it are known to be good.

  Raises:
    UserError: if they are not finite, or more steps were skipped than allowed.
  """
  tools.bad_steps.now()
  values = jax.device_get(metrics)
  bad = not_finite(values)
  if bad and SKIPPED not in metrics:
    raise UserError(
      f'{stage.name}: {describe_not_finite(bad)} at step {step}; the last checkpoint is '
      f'step {tools.checkpoints.latest()}; try a smaller config.{stage.name}.optim.lr'
    )
  return values


def _log(
  tools: _Tools,
  stage: Stage,
  step: int,
  values: Mapping[str, np.ndarray],
  meter: _Meter,
) -> None:
  """Writes a line of metrics, without those of a skipped step that are not finite."""
  logged: dict[str, Any] = {}
  for name, value in values.items():
    if name != TOKENS and np.isfinite(value).all() and not _is_absent(name, values):
      logged[name] = value
  if tools.bad_steps.count:
    logged[SKIPPED] = tools.bad_steps.count
  if stage.rate:
    logged[LEARNING_RATE] = float(stage.rate(step - 1))
  if isinstance(stage.batches, CountedBatches):
    positions = gather_bytes(stage.batches.state())
    logged[EXAMPLES] = stage.batches.examples_before(stage.batches.merged(positions))
  speed = meter.report(float(values[TOKENS]), stage)
  tools.writer.write(step, logged | speed)


def _is_absent(name: str, values: Mapping[str, np.ndarray]) -> bool:
  """Returns whether a metric is that of a head which the batch gives nothing to."""
  kind, _, head = name.partition('/')
  weight = values.get(f'weight/{head}')
  return kind in ('loss', 'weight') and weight is not None and not weight


def _parameter_count(state: TrainState) -> int:
  return sum(x.size for x in named_leaves(state.params).values())


def _save(checkpoints: Checkpoints, stage: Stage, state: TrainState) -> None:
  """Begins to save a state, with the positions of all processes in the data."""
  check_state(state)
  positions = gather_bytes(stage.batches.state())
  checkpoints.save(state, stage.batches.merged(positions), stage.about)


def _records(batches: Batches, before: bytes, after: bytes) -> list[Any]:
  """Returns what a batch consisted of, over all processes."""
  own = json.dumps(_own_records(batches, before, after))
  records = []
  for part in gather_bytes(own.encode()):
    records += json.loads(part)
  return records


def _own_records(batches: Batches, before: bytes, after: bytes) -> list[Any]:
  """Returns what this process's part of a batch consisted of.

  These are the ids of its examples or, if the batches do not know them, the position in
  the data before it.
  """
  if isinstance(batches, BatchesWithIds):
    return batches.ids(before, after)
  return [json.loads(before)]


def _compute_step(
  stage: Stage, state: TrainState, batch: Any, step: int
) -> tuple[TrainState, Metrics]:
  """Returns the state and the metrics after one more step.

  If the stage repeats steps to find silent corruption, such a step is computed twice:
  the first time from a copy.
  """
  if not stage.repeat_every or step % stage.repeat_every:
    return stage.step(state, batch)
  first, _ = stage.step(jax.tree.map(jnp.copy, state), batch)
  second, metrics = stage.step(state, batch)
  check_repeated_step(first, second, step)
  return second, metrics
