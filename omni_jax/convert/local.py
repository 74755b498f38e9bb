"""Runs a conversion on one machine, in parallel processes; a killed one is resumed.

The processes first write spill files, then shards.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import json
import os
import pathlib
import shutil
from typing import Any, NamedTuple

from etils import epath

from omni_jax.convert.conversion import (
  index_of,
  output_exists,
  pieces_of,
  shard_name,
  shard_of_spills,
  write_spill,
)
from omni_jax.convert.formats.reader import Reader, RESUME
from omni_jax.convert.run_check import fingerprints_of, RunCheck
from omni_jax.data.sources.shards import (
  check_not_empty,
  manifest_of,
  SCHEMA,
  ShardStats,
  summary_files,
)
from omni_jax.data.worker_pool import WorkerPool
from omni_jax.errors import UserError
from omni_jax.retry import with_retries

SPILLS = 'spills'  # folder of the spill files, in that of the unfinished output


class Job(NamedTuple):
  """The settings of a worker.

  Attributes:
    folder: folder of the unfinished output.
    shards: number of shards.
  """

  reader: Reader
  folder: pathlib.Path
  shards: int
  check: RunCheck | None

  def spill(self, number: int) -> pathlib.Path:
    """Returns the path of a spill file."""
    return self.folder / SPILLS / f'{number:06d}.spill'

  def shard(self, number: int) -> pathlib.Path:
    """Returns the path of a shard."""
    return self.folder / shard_name(number, self.shards)


def convert(
  reader: Reader,
  output: pathlib.Path,
  *,
  shards: int,
  workers: int,
  input_name: str,
  timeout: float,
  check: RunCheck | None = None,
  log: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Writes the folder `output` and returns its manifest.

  Args:
    shards: number of shards.
    workers: number of processes.
    input_name: name of the input, for the manifest.
    timeout: seconds without any result after which the workers are considered hung.
    check: the run that every example is checked against; its fingerprints go into the
      manifest.
    log: receives one line per finished piece.

  Raises:
    UserError: if the output exists, if the input has changed since an interrupted
      conversion, if no example can be used, if the disk cannot be written, or if a
      worker dies or hangs.
  """
  if output.exists():
    raise output_exists(output)
  partial = output.with_name(f'{output.name}.partial')
  job = Job(reader, partial, shards, check)
  try:
    _begin(partial, _plan(job, input_name))
    _write_spills(job, workers, timeout, log)
    stats = list(_run(_shard, job, range(shards), workers, timeout))
    manifest = manifest_of(stats, input_name, *fingerprints_of(check))
    if not manifest['records']:
      shutil.rmtree(partial)
    check_not_empty(manifest)
    for name, text in summary_files(manifest, stats).items():
      (partial / name).write_text(text)
    shutil.rmtree(partial / SPILLS)
    _plan_file(partial).unlink()
    os.rename(partial, output)
  except OSError as error:
    raise UserError(f'{partial} cannot be written ({error}): {RESUME}') from error
  return manifest


def _plan(job: Job, input_name: str) -> dict[str, Any]:
  """Returns everything that must stay the same for a conversion to be resumed."""
  files = []
  for path in job.reader.files:
    stat = with_retries(epath.Path(path).stat, path)
    files.append([stat.length, stat.mtime])
  return {
    'schema': SCHEMA,
    'input': input_name,
    'items': len(job.reader),
    'shards': job.shards,
    'files': files,
    'config': str(job.check or ''),
  }


def _plan_file(partial: pathlib.Path) -> pathlib.Path:
  return partial / 'plan.json'


def _begin(partial: pathlib.Path, plan: dict[str, Any]) -> None:
  """Creates the folder of the unfinished output, or checks its plan against this one.

  Raises:
    UserError: if the folder was begun with another plan.
  """
  path = _plan_file(partial)
  if not path.exists():
    (partial / SPILLS).mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plan))
    return
  old_plan = json.loads(path.read_text())
  differences = [name for name in plan if plan[name] != old_plan.get(name)]
  if differences:
    raise UserError(
      f'{partial} was begun with different {" and ".join(differences)}: '
      'remove it to start over'
    )


def _write_spills(
  job: Job, workers: int, timeout: float, log: Callable[[str], None]
) -> None:
  """Converts the pieces of the input that have no complete spill file yet."""
  pieces = len(pieces_of(job.reader))
  missing = [k for k in range(pieces) if not index_of(job.spill(k)).exists()]
  finished = pieces - len(missing)
  if finished:
    log(f'convert: resuming, {finished} of {pieces} pieces are already converted')
  results = _run(_spill, job, missing, workers, timeout)
  for done, (number, examples) in enumerate(results, start=1):
    log(
      f'convert: piece {number} of {pieces}: {examples} examples '
      f'({done} of {len(missing)} pieces done)'
    )


def _spill(job: Job, number: int) -> tuple[int, int]:
  """Writes one spill file; returns the number of the piece and of its examples."""
  items = pieces_of(job.reader)[number]
  examples = write_spill(job.reader, items, job.spill(number), job.shards, job.check)
  return number, examples


def _shard(job: Job, number: int) -> ShardStats:
  spills = [job.spill(k) for k in range(len(pieces_of(job.reader)))]
  return shard_of_spills(spills, number, job.shard(number))


def _run(
  function: Callable[[Job, int], Any],
  job: Job,
  numbers: Sequence[int],
  workers: int,
  timeout: float,
) -> Iterator[Any]:
  """Yields `function(job, number)` for each number, in order.

  With one worker the function runs in this process.
  """
  if workers == 1 or len(numbers) < 2:
    for number in numbers:
      yield function(job, number)
    return
  pool = WorkerPool(
    functools.partial(function, job),
    min(workers, len(numbers)),
    timeout=timeout,
    died_message=f'a worker has died (out of memory?): {RESUME}',
    hang_message=f'no worker has finished a piece for {timeout:.0f} s: {RESUME}, with '
    '--workers=1 to see where it hangs',
  )
  try:
    results = [pool.submit(number) for number in numbers]
    for result in results:
      yield pool.result(result)
  finally:
    pool.close()
