"""The folder of a stage: which steps count, and how one is begun, ended, removed or put aside without renaming.

A step counts while its folder holds a manifest. Object stores have no atomic rename, so none is used: a file
`STEP.unfinished` beside the folder says that a step is being written or removed. A folder without a whole manifest is
the rest of such a process where that file is there; otherwise somebody else damaged the step, and it is put aside.
"""

from etils import epath

from omni_jax.checkpoint import manifest

ASIDE, UNFINISHED = 'quarantine', '.unfinished'


def listed(folder: epath.Path) -> list[int]:
  """The steps that count, in order."""
  return [
    step for step in folders(folder) if (folder / str(step) / manifest.NAME).exists()
  ]


def folders(folder: epath.Path) -> list[int]:
  """All that have a folder, in order."""
  if not folder.exists():
    return []
  return sorted(
    int(path.name)
    for path in folder.iterdir()
    if path.name.isdecimal() and path.is_dir()
  )


def _mark(folder: epath.Path, step: int) -> epath.Path:
  return folder / f'{step}{UNFINISHED}'


def begin(folder: epath.Path, step: int) -> None:
  """Before anything of a step is written."""
  folder.mkdir(parents=True, exist_ok=True)
  _mark(folder, step).write_text('')


def end(folder: epath.Path, step: int) -> None:
  """After its manifest."""
  _mark(folder, step).unlink(missing_ok=True)


def remove(folder: epath.Path, step: int) -> None:
  """Takes a step out of the list first, and then away."""
  begin(folder, step)
  (folder / str(step) / manifest.NAME).unlink(missing_ok=True)
  if (folder / str(step)).exists():
    (folder / str(step)).rmtree()
  end(folder, step)


def half_removed(folder: epath.Path) -> list[int]:
  """Steps whose removal did not come to its end, while none is being written."""
  good = listed(folder)
  return [
    step
    for step in folders(folder)
    if step not in good and _mark(folder, step).exists()
  ]


def put_aside(folder: epath.Path, step: int, why: str) -> epath.Path:
  """Moves a step file by file into the folder `quarantine`, its manifest first, so that it no longer counts.

  Where a killed process had begun to, it is ended in the same place, so that the step stays together.

  Returns:
    Where it lies now, with `why` in a file of its own.
  """
  source, target = folder / str(step), _begun(folder, step)
  if target is None:
    names = [path.name for path in aside(folder)]
    target = (
      folder
      / ASIDE
      / next(
        name for k in range(len(names) + 1) if (name := f'{step}.{k}') not in names
      )
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    _moving(target).write_text('')
  target.mkdir(exist_ok=True)
  if not (target / 'why.txt').exists():
    (target / 'why.txt').write_text(f'{why}\n')
  for name in sorted(manifest.files_in(source), key=lambda name: name != manifest.NAME):
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).replace(target / name)
  source.rmtree()
  _moving(target).unlink(missing_ok=True)
  return target


def _moving(target: epath.Path) -> epath.Path:
  """A file beside a step that is being put aside."""
  return target.parent / f'{target.name}{UNFINISHED}'


def _begun(folder: epath.Path, step: int) -> epath.Path | None:
  """Where a process that was killed has put a part of the step."""
  marks = (
    (folder / ASIDE).glob(f'{step}.*{UNFINISHED}') if (folder / ASIDE).exists() else ()
  )
  return next(
    (mark.parent / mark.name.removesuffix(UNFINISHED) for mark in marks), None
  )


def aside(folder: epath.Path) -> list[epath.Path]:
  """The steps that were put aside."""
  there = (folder / ASIDE).iterdir() if (folder / ASIDE).exists() else ()
  return sorted(path for path in there if not path.name.endswith(UNFINISHED))


def _half_written(step_folder: epath.Path) -> bool:
  """Whether a process ended while it wrote the manifest."""
  try:
    manifest.read(step_folder)
  except manifest.Damaged:
    return True
  return False


def tidy(folder: epath.Path) -> list[str]:
  """Ends what a killed process began; only for the one process that writes here.

  Returns:
    Lines on what it did.
  """
  said, good = [], listed(folder)
  for step in folders(folder):
    if step in good and not (
      _mark(folder, step).exists() and _half_written(folder / str(step))
    ):
      end(folder, step)
    elif _mark(folder, step).exists():
      remove(folder, step)
      said.append(f'{folder}/{step} was not finished and is removed')
    else:
      why = f'{manifest.NAME} is missing: it was removed, or the step was saved by older code or is half copied'
      said.append(
        f'WARNING: {folder}/{step} does not count: {why}; moved to {put_aside(folder, step, why)}'
      )
  for path in folder.iterdir() if folder.exists() else ():
    if (
      path.name.endswith(UNFINISHED) and path.name.removesuffix(UNFINISHED).isdecimal()
    ):
      end(folder, int(path.name.removesuffix(UNFINISHED)))
  for target in aside(folder):
    if not (
      folder / target.name.partition('.')[0]
    ).exists():  # all of it had been moved
      _moving(target).unlink(missing_ok=True)
  return said
