"""The checkpoints of one stage: save in the background, resume from the last good step."""

from collections.abc import Callable, Mapping
import contextlib
import functools
import json
import sys
from typing import Any, NamedTuple

from etils import epath
import jax

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
from omni_jax.checkpoint.train_state import TrainState
from omni_jax.checkpoint.verify import (
  Check,
  check_all_arrays,
  check_wanted_arrays,
  read_checked_shapes,
  read_step,
  Shape,
  shapes_of,
)
from omni_jax.errors import UserError
from omni_jax.retry import ATTEMPTS
from omni_jax.sharding import gather_bytes


class SaveFailed(UserError):
  """A step could not be written; those before it are as they were."""


class Restored(NamedTuple):
  state: TrainState
  iterator: bytes


class _Save(NamedTuple):
  """What the manifest of the save under way will say."""

  step: int
  shapes: dict[str, Shape]
  digests: Any  # begun, not yet fetched
  about: Mapping[str, Any]


def warn(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


class Checkpoints:
  """The folders `checkpoints/STAGE/STEP/` of a run.

  Each has the items model (params, buffers), train (optimizer, step, rng) and iterator.
  A step counts once its manifest is written, which is last; what is read is compared
  with it. Use as a context: leaving it waits for the save under way, whatever happened
  inside.
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
    self._keep = keep
    self._read_only = read_only
    self._say = say
    self._save_under_way: _Save | None = None
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
    _barrier()  # nobody looks before it is tidy
    self._writer = make_writer(self._complete)

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
    if self._read_only:
      return
    # A SystemExit would say that all is saved: a save that failed has to replace it.
    error_goes_on = error is not None and not isinstance(error, SystemExit)
    try:
      self._wait()
    except SaveFailed as failed:
      if not error_goes_on:
        raise
      self._say(f'error: {failed}')
    finally:
      self._writer.close()

  def latest(self) -> int | None:
    """Returns the last step that counts, once the save under way is done.

    Whether it is undamaged, only reading tells.
    """
    if not self._read_only:
      self._wait()
    return max(step_folders.listed(self._path), default=None)

  def save(
    self, state: TrainState, iterator: bytes, about: Mapping[str, Any] | None = None
  ) -> None:
    """Begins to write a step; the arrays are copied before this returns.

    Args:
      about: plain values to be found again in the manifest.

    Raises:
      SaveFailed: if the save before this failed, or this one cannot begin.
    """
    step = int(state.step)
    if step in self._shared_steps():
      return
    self._wait()
    fields = state._asdict()
    # On the devices ahead of the copies, and of a step that donates the arrays.
    digests = digest.begin(fields)
    self._save_under_way = _Save(step, shapes_of(fields), digests, about or {})
    try:
      if not jax.process_index():
        step_folders.begin(self._path, step)
      self._writer.save(self._path / str(step), args=save_args(state, iterator))
    except (OSError, ValueError) as error:
      raise self._failed(error) from error

  def check(self) -> None:
    """Raises SaveFailed if the save under way has failed.

    It is called at every step, since it does not wait.
    """
    try:
      self._writer.check_for_errors()
    except Exception as error:
      raise self._failed(error) from error

  def _complete(self) -> None:
    """Makes a step count.

    In the background, in the first process, once all files of the step are there.
    """
    save = self._save_under_way
    digests = digest.finish(save.digests)
    leaves = {}
    for name, (shape, dtype) in save.shapes.items():
      leaves[name] = Leaf(shape, dtype, digests[name])
    manifest.write(self._path / str(save.step), save.step, leaves, save.about)
    step_folders.end(self._path, save.step)
    self._remove_old()

  def _remove_old(self) -> None:
    half_removed = step_folders.half_removed(self._path)
    too_many = step_folders.listed(self._path)[: -self._keep]
    for step in [*half_removed, *too_many]:
      try:
        step_folders.remove(self._path, step)
      except OSError as error:
        # NFS refuses while a reader has a file open: no reason to end a run.
        self._say(
          f'{self._path}/{step} cannot be removed now ({error}); the next save tries '
          'again'
        )

  def _wait(self) -> None:
    try:
      self._writer.wait_until_finished()
    except Exception as error:
      raise self._failed(error) from error

  def _failed(self, error: Exception) -> SaveFailed:
    save = self._save_under_way
    step = '' if save is None else f' {save.step}'
    good = max(step_folders.listed(self._path), default=None)
    return SaveFailed(
      f'saving step{step} in {self._path} failed: {type(error).__name__}: '
      f'{first_line(error)}; the last good step is {good}; make room or mend the '
      'folder, then start again'
    )

  def restore(self, like: TrainState, step: int | None = None) -> Restored:
    """Returns state and iterator of a step (default: the last that counts).

    Args:
      like: shapes and shardings.
    """
    return self._read_all(self._existing(step), like)

  def resume(self, like: TrainState) -> Restored | None:
    """Returns the last step that is as it was saved; None where nothing was saved.

    What is damaged is put aside, and said.

    Raises:
      UserError: if there were steps, and none of them is good.
    """
    return self._last_good(functools.partial(self._read_all, like=like))

  def restore_model(
    self, like: dict[str, Any], step: int | None = None
  ) -> tuple[dict[str, Any], int]:
    """Returns parameters and buffers alone, and the step that they are of.

    By default it is the last good step. One that is named is refused where it is
    damaged or gone.
    """
    return self._restore_model(like, step, check_all_arrays)

  def restore_some(
    self, like: dict[str, Any], step: int | None = None
  ) -> tuple[dict[str, Any], int]:
    """As `restore_model`, but only the arrays in `like`.

    Of the others, whatever their size, nothing is read.
    """
    return self._restore_model(like, step, check_wanted_arrays)

  def shapes(self, step: int | None = None) -> dict[str, Any]:
    """Returns {'params', 'buffers'} of a step with shapes in place of arrays."""
    damage: Damaged | None = None
    # All of a list may be removed while it is read: then another is taken.
    for _ in range(ATTEMPTS if step is None else 1):
      last = self._existing(step)
      steps = [last] if step is not None else step_folders.listed(self._path)[::-1]
      for known in steps:
        try:
          return read_checked_shapes(self._path / str(known))
        except Damaged as error:
          damage = error
    raise UserError(f'{self._path}/{last} is damaged: {damage}') from damage

  def _restore_model(
    self, like: dict[str, Any], step: int | None, check: Check
  ) -> tuple[dict[str, Any], int]:
    def read(step: int) -> tuple[dict[str, Any], int]:
      items = read_step(self._path / str(step), {MODEL: like}, check)
      return items[MODEL], step

    if step is not None:
      try:
        return read(self._existing(step))
      except Damaged as error:
        raise UserError(
          f'{self._path}/{step} is damaged: {error}; take another step of '
          f'{step_folders.listed(self._path)}'
        ) from error
    for _ in range(ATTEMPTS):
      restored = self._last_good(read)
      if restored:
        return restored
      # There was no step, or all of the list were removed while they were read: then
      # there are others now.
      self._existing(None)
    raise UserError(f'steps of {self._path} are removed faster than they are read')

  def _read_all(self, step: int, like: TrainState) -> Restored:
    wanted = items_of(like) | {ITERATOR: None}
    items = read_step(self._path / str(step), wanted, check_all_arrays)
    return Restored(TrainState(**items[MODEL], **items[TRAIN]), items[ITERATOR])

  def _last_good(self, read: Callable[[int], Any]) -> Any | None:
    """Returns what `read` returns of the last undamaged step; None without a step."""
    steps = self._shared_steps()[::-1]
    damages = []
    for k, step in enumerate(steps):
      try:
        return read(step)
      except Damaged as error:
        earlier = steps[k + 1 :]
        instead = (
          f'step {earlier[0]} is used instead'
          if earlier
          else 'there is no earlier step'
        )
        if self._read_only and not (self._path / str(step) / manifest.NAME).exists():
          self._say(
            f'step {step} in {self._path} was removed while it was read; {instead}'
          )
          continue
        damages.append(f'step {step}: {error}')
        moved = self._put_aside(step, str(error))
        self._say(f'WARNING: {self._path}/{step} is damaged: {error}; {instead}{moved}')
    aside = [] if self._read_only else step_folders.aside(self._path)
    if damages or aside:
      raise UserError(
        f'no good step in {self._path}: '
        f'{"; ".join(damages) or "all were put aside before"}; restore one from a copy, '
        f'or remove {self._path} to begin this stage anew'
      )
    return None

  def _put_aside(self, step: int, why: str) -> str:
    """Moves a damaged step away and returns what to say of it; a reader does not."""
    if self._read_only:
      return ''
    if not jax.process_index():
      step_folders.put_aside(self._path, step, why)
    _barrier()
    return f'; moved to {self._path}/{step_folders.ASIDE}'

  def _shared_steps(self) -> list[int]:
    """Returns the steps that the first process sees, in all processes.

    Others may see the storage a moment earlier or later.
    """
    own = json.dumps(step_folders.listed(self._path)).encode()
    return json.loads(gather_bytes(own)[0])

  def _existing(self, step: int | None) -> int:
    """Returns the step, or the last one for None; refused if it does not count."""
    steps = step_folders.listed(self._path)
    folders = step_folders.folders(self._path)
    if not steps and folders:
      raise UserError(
        f'no step in {self._path} that counts: {folders} have no {manifest.NAME}; they '
        'are not finished, or of older code, which did not write one: train anew'
      )
    if not steps or (step is not None and step not in steps):
      name = '' if step is None else step
      raise UserError(f'no step {name} in {self._path}; there are {steps}')
    return max(steps) if step is None else step


def _barrier() -> None:
  """Waits for the other processes."""
  gather_bytes(b'')


def has_checkpoint(workdir: str, stage: str) -> bool:
  """Returns whether a stage of a run has saved anything yet; makes no folder."""
  return bool(listed_steps(workdir, stage))


def listed_steps(workdir: str, stage: str) -> list[int]:
  """Returns the steps that count."""
  return step_folders.listed(_folder(workdir, stage))


def last_about(workdir: str, stage: str) -> tuple[int, Mapping[str, Any]]:
  """Returns the last step with a whole manifest, and what its writer said about it.

  (0, {}) where there is none.
  """
  folder = _folder(workdir, stage)
  for step in reversed(step_folders.listed(folder)):
    with contextlib.suppress(Damaged):
      return step, manifest.read(folder / str(step)).about
  return 0, {}


def _folder(workdir: str, stage: str) -> epath.Path:
  return epath.Path(workdir).absolute() / 'checkpoints' / stage
