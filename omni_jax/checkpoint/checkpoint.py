"""Checkpoints of one stage through Orbax: model, optimizer, the data iterator's bytes, and a manifest of it all."""

from collections.abc import Callable, Mapping
import contextlib
import functools
import json
import sys
from typing import Any, NamedTuple, TypeVar

from etils import epath
import jax
import orbax.checkpoint as ocp

from omni_jax.checkpoint import digest, manifest, step_folders
from omni_jax.checkpoint.manifest import Damaged, Leaf, Manifest
from omni_jax.checkpoint.train_state import TrainState
from omni_jax.errors import UserError
from omni_jax.retry import ATTEMPTS
from omni_jax.sharding import gather_bytes, name_of

MODEL, TRAIN, ITERATOR = 'model', 'train', 'iterator'
PARTS = {
  MODEL: ('params', 'buffers'),
  TRAIN: ('opt_state', 'step', 'rng'),
}  # of a TrainState
# Of errors that say nothing about the files: a step is not put aside for them.
NOT_DAMAGE = (
  'RESOURCE_EXHAUSTED',
  'UNAVAILABLE',
  'DEADLINE_EXCEEDED',
  'PERMISSION_DENIED',
  'UNAUTHENTICATED',
)

T = TypeVar('T')
Check = Callable[
  [epath.Path, Manifest, dict[str, Any]], None
]  # of what a manifest says with what is wanted


class SaveFailed(UserError):
  """A step could not be written; those before it are as they were."""


class Restored(NamedTuple):
  state: TrainState
  iterator: bytes


class _Saving(NamedTuple):
  """What the manifest of the save under way will say."""

  step: int
  shapes: dict[str, tuple[tuple[int, ...], str]]
  digests: Any  # begun, not yet fetched
  about: Mapping[str, Any]


def warn(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


class Checkpoints:
  """`checkpoints/STAGE/STEP/` with items model (params, buffers), train (optimizer, step, rng) and iterator.

  A step counts once its manifest is written, which is last; what is read is compared with it. Use as a context:
  leaving it waits for the save under way, whatever happened inside.
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
    self._path, self._keep, self._read_only, self._say = (
      _folder(workdir, stage),
      keep,
      read_only,
      say,
    )
    self._saving: _Saving | None = None
    if read_only:
      if not self._path.exists():
        raise UserError(
          f'no checkpoint of stage {stage!r} in {workdir}; train first, or check --workdir'
        )
      return
    if not jax.process_index():
      for line in step_folders.tidy(self._path):
        say(line)
    self._shared(b'')  # nobody looks before it is tidy
    # Written in place, as on a store that cannot rename: our manifest alone says that a step is whole.
    in_place = ocp.path.atomicity.CommitFileTemporaryPath
    handler = ocp.CompositeCheckpointHandler(
      composite_options=ocp.CompositeOptions(temporary_path_class=in_place),
      **{
        MODEL: ocp.StandardCheckpointHandler(),
        TRAIN: ocp.StandardCheckpointHandler(),
        ITERATOR: ocp.JsonCheckpointHandler(),
      },
    )
    self._writer = ocp.AsyncCheckpointer(
      handler,
      temporary_path_class=in_place,
      async_options=ocp.options.AsyncOptions(post_finalization_callback=self._complete),
    )

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
    if self._read_only:
      return
    try:
      self._wait()
    except SaveFailed as failed:
      if error is not None and not isinstance(
        error, SystemExit
      ):  # which would say that all is saved
        self._say(f'error: {failed}')
        return
      raise
    finally:
      self._writer.close()

  def latest(self) -> int | None:
    """The last step that counts, once the save under way is done; whether it is undamaged, only reading tells."""
    if not self._read_only:
      self._wait()
    return max(step_folders.listed(self._path), default=None)

  def save(
    self, state: TrainState, iterator: bytes, about: Mapping[str, Any] | None = None
  ) -> None:
    """Begins to write; the arrays are copied before this returns.

    Args:
      about: plain values to be found again in the manifest.

    Raises:
      SaveFailed: if the save before this failed, or this one cannot begin.
    """
    step = int(state.step)
    if step in self._shared_steps():
      return
    self._wait()
    parts = state._asdict()
    begun = digest.begin(
      parts
    )  # on the devices ahead of the copies, and ahead of a step that donates the arrays
    self._saving = _Saving(step, _shapes(parts), begun, about or {})
    try:
      if not jax.process_index():
        step_folders.begin(self._path, step)
      items = {
        item: ocp.args.StandardSave(tree) for item, tree in _items(state).items()
      }
      items[ITERATOR] = ocp.args.JsonSave({'state': iterator.decode()})
      self._writer.save(self._path / str(step), args=ocp.args.Composite(**items))
    except (OSError, ValueError) as error:
      raise self._failed(error) from error

  def check(self) -> None:
    """Raises SaveFailed if the save under way has failed; called at every step, since it does not wait."""
    try:
      self._writer.check_for_errors()
    except Exception as error:
      raise self._failed(error) from error

  def restore(self, like: TrainState, step: int | None = None) -> Restored:
    """State and iterator of a step (default: the last good one), placed as `like`: shapes and shardings."""
    return self._read_all(self._named(step), like)

  def resume(self, like: TrainState) -> Restored | None:
    """The last step that is as it was saved; None where nothing was ever saved. What is damaged is put aside, loudly.

    Raises:
      UserError: if there were steps, and none of them is good.
    """
    return self._last_good(functools.partial(self._read_all, like=like))

  def restore_model(
    self, like: dict[str, Any], step: int | None = None
  ) -> tuple[dict[str, Any], int]:
    """Parameters and buffers only, for evaluation and generation, and the step they are of.

    By default of the last good step. One that is named is refused where it is damaged or gone.
    """
    return self._restore_model(like, step, _check)

  def _restore_model(
    self, like: dict[str, Any], step: int | None, check: Check
  ) -> tuple[dict[str, Any], int]:
    def read(step: int) -> tuple[dict[str, Any], int]:
      return self._read(step, {MODEL: like}, check)[MODEL], step

    if step is not None:
      try:
        return read(self._named(step))
      except Damaged as error:
        raise UserError(
          f'{self._path}/{step} is damaged: {error}; take another step of '
          f'{step_folders.listed(self._path)}'
        ) from error
    for _ in range(ATTEMPTS):
      if found := self._last_good(read):
        return found
      self._named(
        None
      )  # where there are steps now, all of the first list were removed while they were read
    raise UserError(f'steps of {self._path} are removed faster than they are read')

  def restore_some(
    self, like: dict[str, Any], step: int | None = None
  ) -> tuple[dict[str, Any], int]:
    """As `restore_model`, but only the arrays in `like`: of the others, whatever their size, nothing is read."""
    return self._restore_model(like, step, _check_some)

  def shapes(self, step: int | None = None) -> dict[str, Any]:
    """{'params', 'buffers'} of a step as they were saved, with shapes in place of arrays."""
    found: Damaged | None = None
    for _ in range(
      ATTEMPTS if step is None else 1
    ):  # a list may be removed as a whole while it is read: another then
      last = self._named(step)
      for known in (
        (last,) if step is not None else reversed(step_folders.listed(self._path))
      ):
        try:
          return self._shapes_of(self._path / str(known))
        except Damaged as error:
          found = error
    raise UserError(f'{self._path}/{last} is damaged: {found}') from found

  def _shapes_of(self, folder: epath.Path) -> dict[str, Any]:
    manifest.check_files(folder, manifest.read(folder), (MODEL,), arrays=False)
    saved = self._metadata(folder / MODEL)
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), getattr(saved, 'tree', saved)
    )

  def _metadata(self, folder: epath.Path) -> Any:
    try:
      return manifest.patiently(
        lambda: ocp.StandardCheckpointHandler().metadata(folder), folder
      )
    except UserError:
      raise
    except (
      Exception
    ) as error:  # of a step that is removed while it is read, Orbax says this and that
      raise _refusal(error, folder, 'its metadata') from error

  def _complete(self) -> None:
    """In the background, in the first process, once all files of a step are there: now it counts."""
    saving = self._saving
    found = digest.finish(saving.digests)
    leaves = {name: Leaf(*shape, found[name]) for name, shape in saving.shapes.items()}
    manifest.write(self._path / str(saving.step), saving.step, leaves, saving.about)
    step_folders.end(self._path, saving.step)
    for old in [
      *step_folders.half_removed(self._path),
      *step_folders.listed(self._path)[: -self._keep],
    ]:
      try:
        step_folders.remove(self._path, old)
      except (
        OSError
      ) as error:  # NFS refuses while a reader has a file open: no reason to end a run
        self._say(
          f'{self._path}/{old} cannot be removed now ({error}); the next save tries again'
        )

  def _wait(self) -> None:
    try:
      self._writer.wait_until_finished()
    except Exception as error:
      raise self._failed(error) from error

  def _failed(self, error: Exception) -> SaveFailed:
    step = '' if self._saving is None else f' {self._saving.step}'
    good = max(step_folders.listed(self._path), default=None)
    return SaveFailed(
      f'saving step{step} in {self._path} failed: {type(error).__name__}: {_first_line(error)}; the '
      f'last good step is {good}; make room or mend the folder, then start again'
    )

  def _shared(self, own: bytes) -> bytes:
    """The first process's bytes in all of them."""
    return gather_bytes(own)[0]

  def _shared_steps(self) -> list[int]:
    """The first process's list: others may see the storage a moment earlier or later."""
    return json.loads(
      self._shared(json.dumps(step_folders.listed(self._path)).encode())
    )

  def _last_good(self, read: Callable[[int], Any]) -> Any | None:
    there, bad = self._shared_steps(), []
    for k, step in enumerate(reversed(there), 1):
      try:
        return read(step)
      except Damaged as error:
        instead = (
          f'step {there[-k - 1]} is used instead'
          if k < len(there)
          else 'there is no earlier step'
        )
        if self._read_only and not (self._path / str(step) / manifest.NAME).exists():
          self._say(
            f'step {step} in {self._path} was removed while it was read; {instead}'
          )
          continue
        bad.append(f'step {step}: {error}')
        self._say(
          f'WARNING: {self._path}/{step} is damaged: {error}; {instead}'
          + self._put_aside(step, str(error))
        )
    gone = (
      [] if self._read_only else [str(path) for path in step_folders.aside(self._path)]
    )
    if bad or gone:
      raise UserError(
        f'no good step in {self._path}: {"; ".join(bad) or "all were put aside before"}; restore one '
        f'from a copy, or remove {self._path} to begin this stage anew'
      )
    return None

  def _put_aside(self, step: int, why: str) -> str:
    if self._read_only:
      return ''
    if not jax.process_index():
      step_folders.put_aside(self._path, step, why)
    self._shared(b'')
    return f'; moved to {self._path}/{step_folders.ASIDE}'

  def _read_all(self, step: int, like: TrainState) -> Restored:
    got = self._read(step, _items(like) | {ITERATOR: None}, _check)
    return Restored(
      TrainState(**got[MODEL], **got[TRAIN]), got[ITERATOR]['state'].encode()
    )

  def _agreed(self, read: Callable[[], T]) -> Any:
    """What `read` returns, or the first damage that any process found in all of them."""
    made, error = None, None
    try:
      made = read()
    except Damaged as caught:
      error = caught
    said = [text for text in gather_bytes(str(error or '').encode()) if text]
    if said:
      raise Damaged(said[0].decode()) from error
    return made

  def _read(self, step: int, like: dict[str, Any], check: Check) -> dict[str, Any]:
    """Reads items as `like` has them, and compares all of it with the manifest; all processes together."""
    folder = self._path / str(step)
    saved, got = self._agreed(lambda: self._load(folder, like, check))
    trees = {item: tree for item, tree in got.items() if item != ITERATOR}
    manifest.check_leaves(saved, digest.digests(_together(trees)))
    self._agreed(lambda: manifest.check_files(folder, saved, tuple(trees), arrays=True))
    return got

  def _load(
    self, folder: epath.Path, like: dict[str, Any], check: Check
  ) -> tuple[Manifest, dict[str, Any]]:
    """What a process can do without waiting for another, since it may fail in one only."""
    saved = manifest.read(folder)
    trees = {item: tree for item, tree in like.items() if item != ITERATOR}
    check(folder, saved, _together(trees))
    manifest.check_files(folder, saved, tuple(like), arrays=False)
    got = {
      item: self._read_item(folder / item, tree, saved) for item, tree in trees.items()
    }
    return saved, got | (
      {ITERATOR: ocp.JsonCheckpointHandler().restore(folder / ITERATOR)}
      if ITERATOR in like
      else {}
    )

  def _read_item(self, folder: epath.Path, like: Any, saved: Manifest) -> Any:
    """Through the handler alone: a Checkpointer would wait for other processes, which may have failed."""
    try:
      args = ocp.args.PyTreeRestore(
        like,
        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
        partial_restore=True,
      )
      return manifest.patiently(
        lambda: ocp.PyTreeCheckpointHandler().restore(folder, args=args), folder
      )
    except (MemoryError, UserError):
      raise
    except Exception as error:
      names = [
        name
        for name in saved.leaves
        if name.partition('.')[0] in PARTS[folder.name] and name in str(error)
      ]
      where = f'array {max(names, key=len)}' if names else f'an array of {folder.name}'
      raise _refusal(error, folder, where) from error

  def _named(self, step: int | None) -> int:
    there, all_ = step_folders.listed(self._path), step_folders.folders(self._path)
    if not there and all_:
      raise UserError(
        f'no step in {self._path} that counts: {all_} have no {manifest.NAME}; they are not finished, or '
        'of older code, which did not write one: train anew'
      )
    if not there or (step is not None and step not in there):
      raise UserError(
        f'no step {"" if step is None else step} in {self._path}; there are {there}'
      )
    return max(there) if step is None else step


def has_checkpoint(workdir: str, stage: str) -> bool:
  """Whether a stage of a run has saved anything yet; makes no folder."""
  return bool(listed_steps(workdir, stage))


def listed_steps(workdir: str, stage: str) -> list[int]:
  """The steps that count."""
  return step_folders.listed(_folder(workdir, stage))


def last_about(workdir: str, stage: str) -> tuple[int, Mapping[str, Any]]:
  """(step, what its writer said about it) of the last step with a whole manifest; (0, {}) where there is none."""
  folder = _folder(workdir, stage)
  for step in reversed(step_folders.listed(folder)):
    with contextlib.suppress(Damaged):
      return step, manifest.read(folder / str(step)).about
  return 0, {}


def _folder(workdir: str, stage: str) -> epath.Path:
  return epath.Path(workdir).absolute() / 'checkpoints' / stage


def _items(state: TrainState) -> dict[str, Any]:
  return {
    item: {part: getattr(state, part) for part in parts}
    for item, parts in PARTS.items()
  }


def _together(items: Mapping[str, Any]) -> dict[str, Any]:
  return {part: tree for item in items.values() for part, tree in item.items()}


def _refusal(error: Exception, folder: epath.Path, what: str) -> Damaged | UserError:
  """What an error of Orbax says about a step: that it is damaged, or that it cannot be read at the moment."""
  if any(word in str(error) for word in NOT_DAMAGE):
    return UserError(
      f'{folder} cannot be read: {_first_line(error)}; start again when it can'
    )
  return Damaged(f'{what} cannot be read: {type(error).__name__}: {_first_line(error)}')


def _first_line(error: BaseException) -> str:
  return next(iter(str(error).strip().splitlines()), '')[:400]


def _shapes(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
  """Shape and dtype of every array by its name."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {name_of(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}


def _check(folder: epath.Path, found: Manifest, like: dict[str, Any]) -> None:
  """Orbax casts a changed dtype and fails late on a changed shape: compare before anything is read or allocated."""
  saved = {
    name: (leaf.shape, leaf.dtype)
    for name, leaf in found.leaves.items()
    if name.partition('.')[0] in like
  }
  _compare(folder, saved, _shapes(like))


def _check_some(folder: epath.Path, found: Manifest, like: dict[str, Any]) -> None:
  wanted = _shapes(like)
  saved = {
    name: (leaf.shape, leaf.dtype)
    for name, leaf in found.leaves.items()
    if name in wanted
  }
  _compare(folder, saved, wanted)


def _compare(
  folder: epath.Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
  differ = [
    name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name)
  ]
  if differ:
    name = min(
      differ, key=lambda name: (not name.startswith('params.'), name)
    )  # moments follow their weights
    raise UserError(
      f'checkpoint {folder} is of another model: {len(differ)} arrays differ, first {name}: '
      f'saved {saved.get(name, "absent")}, wanted {wanted.get(name, "absent")}; '
      f'use the config it was trained with, or another --workdir'
    )
