"""Lists, begins, ends, removes and quarantines the steps of a stage, without renaming.

A step counts while its folder holds a manifest. Object stores have no atomic rename, so
none is used: a file `STEP.unfinished` beside the folder says that a step is being
written or removed. If that file exists, a folder without a complete manifest is what a
killed process left behind. Otherwise something else damaged the step, and it is moved
to quarantine.
"""

from etils import epath

from omni_jax.checkpoint import manifest
from omni_jax.paths import move

QUARANTINE = 'quarantine'
UNFINISHED = '.unfinished'


def complete(folder: epath.Path) -> list[int]:
  """Returns the complete steps, which have a manifest, in order."""
  steps = folders(folder)
  return [step for step in steps if (folder / str(step) / manifest.NAME).exists()]


def folders(folder: epath.Path) -> list[int]:
  """Returns all steps that have a folder, in order."""
  if not folder.exists():
    return []
  steps = []
  for path in folder.iterdir():
    if path.name.isdecimal() and path.is_dir():
      steps.append(int(path.name))
  return sorted(steps)


def _mark(folder: epath.Path, step: int) -> epath.Path:
  """Returns the file that says that a step is being written or removed."""
  return folder / f'{step}{UNFINISHED}'


def begin(folder: epath.Path, step: int) -> None:
  """Marks a step as unfinished, before anything of it is written."""
  folder.mkdir(parents=True, exist_ok=True)
  _mark(folder, step).write_text('')


def end(folder: epath.Path, step: int) -> None:
  """Removes the mark of a step, after its manifest is written."""
  _mark(folder, step).unlink(missing_ok=True)


def remove(folder: epath.Path, step: int) -> None:
  """Removes a step: first its manifest, so that it no longer counts, then the rest."""
  begin(folder, step)
  step_folder = folder / str(step)
  (step_folder / manifest.NAME).unlink(missing_ok=True)
  if step_folder.exists():
    step_folder.rmtree()
  end(folder, step)


def half_removed(folder: epath.Path) -> list[int]:
  """Returns the steps whose removal was not completed; no step may be in progress."""
  complete_steps = complete(folder)
  steps = [step for step in folders(folder) if step not in complete_steps]
  return [step for step in steps if _mark(folder, step).exists()]


def quarantine(folder: epath.Path, step: int, why: str) -> epath.Path:
  """Moves a step file by file into the folder `quarantine`.

  Its manifest is moved first, so that the step no longer counts. If a process was
  killed while it moved the step, its work is completed, so that the step stays together.

  Returns:
    The new folder of the step, with `why` in the file why.txt.
  """
  source = folder / str(step)
  target = _unfinished_target(folder, step)
  if target is None:
    target = _new_target(folder, step)
    target.parent.mkdir(parents=True, exist_ok=True)
    _moving_mark(target).write_text('')
  target.mkdir(exist_ok=True)
  reason = target / 'why.txt'
  if not reason.exists():
    reason.write_text(f'{why}\n')
  manifest_first = sorted(
    manifest.files_in(source), key=lambda name: name != manifest.NAME
  )
  for name in manifest_first:
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    move(source / name, target / name)
  if source.exists():  # a folder of a bucket is gone with its last object
    source.rmtree()
  _moving_mark(target).unlink(missing_ok=True)
  return target


def _new_target(folder: epath.Path, step: int) -> epath.Path:
  """Returns the first folder STEP.0, STEP.1, ... that is free in the quarantine."""
  names = [path.name for path in quarantined(folder)]
  number = 0
  while f'{step}.{number}' in names:
    number += 1
  return folder / QUARANTINE / f'{step}.{number}'


def _moving_mark(target: epath.Path) -> epath.Path:
  """Returns the file that says that a step is being moved to `target`."""
  return target.parent / f'{target.name}{UNFINISHED}'


def _unfinished_target(folder: epath.Path, step: int) -> epath.Path | None:
  """Returns the folder to which a killed process had begun to move the step, if any."""
  quarantine_folder = folder / QUARANTINE
  if not quarantine_folder.exists():
    return None
  for mark in quarantine_folder.glob(f'{step}.*{UNFINISHED}'):
    return mark.parent / mark.name.removesuffix(UNFINISHED)
  return None


def quarantined(folder: epath.Path) -> list[epath.Path]:
  """Returns the folders of the steps in quarantine."""
  quarantine_folder = folder / QUARANTINE
  if not quarantine_folder.exists():
    return []
  paths = quarantine_folder.iterdir()
  return sorted(path for path in paths if not path.name.endswith(UNFINISHED))


def _manifest_is_damaged(step_folder: epath.Path) -> bool:
  """Returns whether a step has no complete manifest."""
  try:
    manifest.read(step_folder)
  except manifest.Damaged:
    return True
  return False


def tidy(folder: epath.Path) -> list[str]:
  """Completes what a killed process began.

  Only the one process that writes to the folder may call it.

  Returns:
    Lines for the log about what was done.
  """
  lines = []
  complete_steps = complete(folder)
  for step in folders(folder):
    step_folder = folder / str(step)
    marked = _mark(folder, step).exists()
    counts = step in complete_steps
    if counts and marked and _manifest_is_damaged(step_folder):
      counts = False  # killed while it wrote the manifest
    if counts:
      end(folder, step)
    elif marked:
      remove(folder, step)
      lines.append(f'{step_folder} was unfinished and has been removed')
    else:
      why = (
        f'{manifest.NAME} is missing: it was removed, or the step was saved by older '
        'code or is half copied'
      )
      target = quarantine(folder, step, why)
      lines.append(f'WARNING: {step_folder} does not count: {why}; moved to {target}')
  _remove_stale_marks(folder)
  return lines


def _remove_stale_marks(folder: epath.Path) -> None:
  """Removes the marks of steps that need no more work."""
  paths = folder.iterdir() if folder.exists() else ()
  for path in paths:
    step = path.name.removesuffix(UNFINISHED)
    if path.name.endswith(UNFINISHED) and step.isdecimal():
      end(folder, int(step))
  for target in quarantined(folder):
    source = folder / target.name.partition('.')[0]
    if not source.exists():  # all of it had been moved
      _moving_mark(target).unlink(missing_ok=True)
