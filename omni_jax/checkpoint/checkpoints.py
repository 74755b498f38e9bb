"""Saves the steps of a stage in the background and resumes from the last good one."""

from collections.abc import Callable, Mapping
import contextlib
import functools
import json
import sys
from typing import Any, NamedTuple

from etils import epath
import jax

from omni_jax.across_processes import gather_bytes
from omni_jax.checkpoint import digest, manifest, step_folders
from omni_jax.checkpoint.items import (
  first_line,
  items_of,
  ITERATOR,
  make_writer,
  MODEL,
  save_args,
  TRAIN,
)
from omni_jax.checkpoint.manifest import Damaged, Leaf
from omni_jax.checkpoint.s3 import allow_s3, S3
from omni_jax.checkpoint.train_state import TrainState
from omni_jax.checkpoint.verify import (
  Check,
  check_all_arrays,
  check_wanted_arrays,
  read_checked_shapes,
  read_model,
  read_step,
  Shape,
  shapes_of,
)
from omni_jax.errors import UserError
from omni_jax.paths import absolute
from omni_jax.retry import ATTEMPTS
from omni_jax.run_folder import CHECKPOINTS

NO_CASTS: Mapping[str, Any] = {}


class SaveFailed(UserError):
  """A step could not be written; earlier steps are unchanged."""


class Restored(NamedTuple):
  """A step as it was saved; `iterator` is the state of the data iterator."""

  state: TrainState
  iterator: bytes


class _Save(NamedTuple):
  """The contents of the manifest of the save in progress.

  Attributes:
    step: number of the step.
    shapes: shapes of the arrays, by name.
    digests: result of `digest.begin`; the devices may still compute it.
    about: plain values to store in the manifest.
  """

  step: int
  shapes: dict[str, Shape]
  digests: dict[str, Any]
  about: Mapping[str, Any]


def warn(text: str) -> None:
  """Writes a line to stderr."""
  print(text, file=sys.stderr, flush=True)


class Checkpoints:
  """Saves and restores the folders `checkpoints/STAGE/STEP/` of a run.

  Each has the items model (params, buffers), train (optimizer, step, rng) and iterator.
  A step counts once its manifest is written, which comes last; everything that is read
  is compared with it. An object of this class is a context manager: leaving the context
  waits for the save in progress, even after an error.

  Args:
    workdir: folder of the run.
    stage: name of the stage.
    keep: number of steps to keep; older ones are removed.
    read_only: whether to leave the folder as it is.
    say: function that reports a line to the user.

  Raises:
    UserError: if `read_only` and the stage has no checkpoints.
  """

  def __init__(
    self,
    workdir: str,
    stage: str,
    *,
    keep: int = 2,
    read_only: bool = False,
    say: Callable[[str], None] = warn,
  ):
    self._path = _folder(workdir, stage)
    if str(self._path).startswith(S3):
      allow_s3()
    self._keep = keep
    self._read_only = read_only
    self._say = say
    self._current_save: _Save | None = None
    if read_only:
      if not self._path.exists():
        raise UserError(
          f'no checkpoint of stage {stage!r} in {workdir}; train first, or check '
          '--workdir'
        )
      return
    if not jax.process_index():
      for line in step_folders.tidy(self._path):
        say(line)
    _barrier()  # no process looks at the folder before it is tidy
    self._writer = make_writer(self._complete)

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
    if self._read_only:
      return
    # A SystemExit would claim that all is saved: a failed save has to replace it.
    keep_error = error is not None and not isinstance(error, SystemExit)
    try:
      self._wait()
    except SaveFailed as failed:
      if not keep_error:
        raise
      self._say(f'error: {failed}')
    finally:
      self._writer.close()

  def latest(self) -> int | None:
    """Returns the last step that counts, after waiting for the save in progress.

    None if there is no step. Only reading a step shows whether it is undamaged.
    """
    if not self._read_only:
      self._wait()
    return max(step_folders.complete(self._path), default=None)

  def save(
    self, state: TrainState, iterator: bytes, about: Mapping[str, Any] | None = None
  ) -> None:
    """Starts writing a step in the background; the arrays are copied before it returns.

    A step that was saved before stays as it is.

    Args:
      state: the arrays.
      iterator: state of the data iterator.
      about: plain values to store in the manifest.

    Raises:
      SaveFailed: if the save before this one failed, or if this one cannot start.
    """
    step = int(state.step)
    if step in self._shared_steps():
      return
    self._wait()
    fields = state._asdict()
    # The devices compute it before the copies, and before a step that donates the arrays.
    digests = digest.begin(fields)
    self._current_save = _Save(step, shapes_of(fields), digests, about or {})
    try:
      if not jax.process_index():
        step_folders.begin(self._path, step)
      self._writer.save(self._path / str(step), args=save_args(state, iterator))
    except (OSError, ValueError) as error:
      raise self._save_error(error) from error

  def check(self) -> None:
    """Raises SaveFailed if the save in progress has failed.

    It does not wait, so that it can be called at every step.
    """
    try:
      self._writer.check_for_errors()
    except Exception as error:
      raise self._save_error(error) from error

  def _complete(self) -> None:
    """Writes the manifest that makes a step count, and removes old steps.

    The first process calls it in the background, once all files of the step are there.
    """
    save = self._current_save
    assert save is not None
    digests = digest.finish(save.digests)
    leaves = {}
    for name, (shape, dtype) in save.shapes.items():
      leaves[name] = Leaf(shape, dtype, digests[name])
    manifest.write(self._path / str(save.step), save.step, leaves, save.about)
    step_folders.end(self._path, save.step)
    self._remove_old()

  def _remove_old(self) -> None:
    """Removes all but the last steps, and those whose removal was not completed."""
    half_removed = step_folders.half_removed(self._path)
    too_many = step_folders.complete(self._path)[: -self._keep]
    for step in [*half_removed, *too_many]:
      try:
        step_folders.remove(self._path, step)
      except OSError as error:
        # NFS refuses while a reader has a file open, which is no reason to end a run.
        self._say(
          f'{self._path}/{step} cannot be removed now ({error}); the next save will try '
          'again'
        )

  def _wait(self) -> None:
    """Waits for the save in progress; raises SaveFailed if it fails."""
    try:
      self._writer.wait_until_finished()
    except Exception as error:
      raise self._save_error(error) from error

  def _save_error(self, error: Exception) -> SaveFailed:
    """Returns the error to raise for an error of the save in progress."""
    save = self._current_save
    step = '' if save is None else f' {save.step}'
    last = max(step_folders.complete(self._path), default=None)
    return SaveFailed(
      f'saving step{step} in {self._path} failed: {type(error).__name__}: '
      f'{first_line(error)}; the last good step is {last}; make room or repair the '
      'folder, then start again'
    )

  def restore(self, like: TrainState, step: int | None = None) -> Restored:
    """Returns the state and the iterator's state of a step.

    Args:
      like: shapes and shardings of the state.
      step: number of the step; None for the last one that counts.

    Raises:
      Damaged: if the step is not as it was saved.
      UserError: if there is no such step, or if it is of another model.
    """
    return self._read_all(self._given_or_last(step), like)

  def resume(self, like: TrainState) -> Restored | None:
    """Returns the last step that is as it was saved; None if nothing was saved.

    Damaged steps are moved to quarantine, each with a warning.

    Args:
      like: shapes and shardings of the state.

    Raises:
      UserError: if there were steps, but none of them is good.
    """
    return self._last_good(functools.partial(self._read_all, like=like))

  def restore_model(
    self,
    like: dict[str, Any],
    step: int | None = None,
    dtypes: Mapping[str, Any] = NO_CASTS,
  ) -> tuple[dict[str, Any], int]:
    """Returns only parameters and buffers, and the step that they belong to.

    Args:
      like: {'params', 'buffers'} with shapes and shardings.
      step: number of the step; None for the last good one.
      dtypes: dtypes by name to which arrays are cast after they were verified.

    Raises:
      UserError: if the given step is damaged or gone, or if no step is good.
    """
    return self._restore_model(like, step, dtypes, check_all_arrays)

  def restore_some(
    self,
    like: dict[str, Any],
    step: int | None = None,
    dtypes: Mapping[str, Any] = NO_CASTS,
  ) -> tuple[dict[str, Any], int]:
    """Does what `restore_model` does, but for only the arrays in `like`.

    Nothing is read of the others, whatever their size.
    """
    return self._restore_model(like, step, dtypes, check_wanted_arrays)

  def shapes(self, step: int | None = None) -> dict[str, Any]:
    """Returns {'params', 'buffers'} of a step with shapes in place of arrays.

    Args:
      step: number of the step; None for the last good one.

    Raises:
      UserError: if the given step is damaged or gone, or if no step is good.
    """
    damage: Damaged | None = None
    attempts = ATTEMPTS if step is None else 1
    # All listed steps may be removed while they are read: then they are listed again.
    for _ in range(attempts):
      last = self._given_or_last(step)
      candidates = [last]
      if step is None:
        candidates = step_folders.complete(self._path)[::-1]
      for candidate in candidates:
        try:
          return read_checked_shapes(self._path / str(candidate))
        except Damaged as error:
          damage = error
    raise UserError(f'{self._path}/{last} is damaged: {damage}') from damage

  def _restore_model(
    self,
    like: dict[str, Any],
    step: int | None,
    dtypes: Mapping[str, Any],
    check: Check,
  ) -> tuple[dict[str, Any], int]:
    def read(step: int) -> tuple[dict[str, Any], int]:
      return read_model(self._path / str(step), like, check, dtypes), step

    if step is not None:
      try:
        return read(self._given_or_last(step))
      except Damaged as error:
        raise UserError(
          f'{self._path}/{step} is damaged: {error}; choose another step of '
          f'{step_folders.complete(self._path)}'
        ) from error
    for _ in range(ATTEMPTS):
      restored = self._last_good(read)
      if restored:
        return restored
      # Either there is no step, which is refused here, or all listed steps were removed
      # while they were read, and there are others now.
      self._given_or_last(None)
    raise UserError(
      f'the steps in {self._path} are removed faster than they can be read'
    )

  def _read_all(self, step: int, like: TrainState) -> Restored:
    wanted = items_of(like) | {ITERATOR: None}
    items = read_step(self._path / str(step), wanted, check_all_arrays)
    return Restored(TrainState(**items[MODEL], **items[TRAIN]), items[ITERATOR])

  def _last_good(self, read: Callable[[int], Any]) -> Any | None:
    """Returns what `read` returns for the last undamaged step; None without a step."""
    steps = self._shared_steps()[::-1]
    problems = []
    for k, step in enumerate(steps):
      try:
        return read(step)
      except Damaged as error:
        instead = 'there is no earlier step'
        if k + 1 < len(steps):
          instead = f'step {steps[k + 1]} is used instead'
        manifest_file = self._path / str(step) / manifest.NAME
        if self._read_only and not manifest_file.exists():
          self._say(
            f'step {step} in {self._path} was removed while it was read; {instead}'
          )
          continue
        problems.append(f'step {step}: {error}')
        moved = self._quarantine(step, str(error))
        self._say(f'WARNING: {self._path}/{step} is damaged: {error}; {instead}{moved}')
    quarantined = [] if self._read_only else step_folders.quarantined(self._path)
    if problems or quarantined:
      reason = '; '.join(problems) or 'all were moved to quarantine before'
      raise UserError(
        f'no good step in {self._path}: {reason}; restore one from a backup, or remove '
        f'{self._path} to start this stage from scratch'
      )
    return None

  def _quarantine(self, step: int, why: str) -> str:
    """Moves a damaged step to quarantine, unless read-only; returns words for the log."""
    if self._read_only:
      return ''
    if not jax.process_index():
      step_folders.quarantine(self._path, step, why)
    _barrier()
    return f'; moved to {self._path}/{step_folders.QUARANTINE}'

  def _shared_steps(self) -> list[int]:
    """Returns the steps that count as the first process sees them, in all processes.

    Other processes may see the storage a moment earlier or later.
    """
    own = json.dumps(step_folders.complete(self._path)).encode()
    return json.loads(gather_bytes(own)[0])

  def _given_or_last(self, step: int | None) -> int:
    """Returns the given step, or the last one for None.

    Raises:
      UserError: if there is no such step, or if it does not count.
    """
    steps = step_folders.complete(self._path)
    folders = step_folders.folders(self._path)
    if not steps and folders:
      raise UserError(
        f'no complete step in {self._path}: {folders} have no {manifest.NAME}; they are '
        'unfinished, or older code wrote them without one: train again'
      )
    if not steps or (step is not None and step not in steps):
      wanted = 'step' if step is None else f'step {step}'
      raise UserError(f'no {wanted} in {self._path}; there are {steps}')
    return max(steps) if step is None else step


def _barrier() -> None:
  """Waits until all processes have reached this point."""
  gather_bytes(b'')


def has_checkpoint(workdir: str, stage: str) -> bool:
  """Returns whether a stage of a run has saved a step yet; creates no folder."""
  return bool(complete_steps(workdir, stage))


def complete_steps(workdir: str, stage: str) -> list[int]:
  """Returns the steps of a stage that count, in order."""
  return step_folders.complete(_folder(workdir, stage))


def last_about(workdir: str, stage: str) -> tuple[int, Mapping[str, Any]]:
  """Returns the last step with a complete manifest, and the manifest's `about`.

  Returns (0, {}) if there is none.
  """
  folder = _folder(workdir, stage)
  for step in reversed(step_folders.complete(folder)):
    with contextlib.suppress(Damaged):
      return step, manifest.read(folder / str(step)).about
  return 0, {}


def _folder(workdir: str, stage: str) -> epath.Path:
  return absolute(workdir) / CHECKPOINTS / stage
