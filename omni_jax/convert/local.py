"""A conversion on one machine: processes side by side, spill files between its halves; goes on where it was killed."""

from collections.abc import Callable, Iterator, Sequence
import functools
import json
import os
import pathlib
import shutil
from typing import Any, NamedTuple

from omni_jax.convert.conversion import (
  index_of,
  pieces_of,
  shard_name,
  shard_of_spills,
  write_spill,
)
from omni_jax.convert.formats.reader import Reader
from omni_jax.convert.run_check import RunCheck
from omni_jax.data.sources.shards import (
  check_useful,
  lists_of,
  manifest_of,
  SCHEMA,
  ShardStats,
)
from omni_jax.data.worker_pool import Pool
from omni_jax.errors import UserError


class Job(NamedTuple):
  """What a worker needs."""

  reader: Reader
  folder: pathlib.Path
  shards: int
  check: RunCheck | None

  def spill(self, number: int) -> pathlib.Path:
    return self.folder / 'spills' / f'{number:06d}.spill'

  def shard(self, number: int) -> pathlib.Path:
    return self.folder / shard_name(number, self.shards)


def convert(
  reader: Reader,
  output: pathlib.Path,
  *,
  shards: int,
  workers: int,
  said: str,
  timeout: float,
  check: RunCheck | None = None,
  log: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Writes the folder `output`; returns its manifest.

  Args:
    said: what the input is, for the manifest.
    check: the run that every example is checked against; its fingerprints go into the manifest.
    timeout: seconds after which a worker that has finished nothing is called dead.

  Raises:
    UserError: if the output exists, if the input has changed since an interrupted conversion, if no record is good,
      or if a worker dies.
  """
  if output.exists():
    raise UserError(
      f'--output={output} exists already: remove it or name another folder'
    )
  partial = output.with_name(f'{output.name}.partial')
  job = Job(reader, partial, shards, check)
  try:
    _begin(partial, _plan(job, said))
    pieces = range(len(pieces_of(reader)))
    missing = [k for k in pieces if not index_of(job.spill(k)).exists()]
    if len(missing) < len(pieces):
      log(
        f'convert: goes on, {len(pieces) - len(missing)} of {len(pieces)} pieces are there'
      )
    for done, (k, count) in enumerate(
      _run(_spill, job, missing, workers, timeout), start=1
    ):
      log(
        f'convert: piece {k} of {len(pieces)}, {count} examples ({done} of {len(missing)} done)'
      )
    stats = list(_run(_shard, job, range(shards), workers, timeout))
    manifest = manifest_of(stats, said, *(check.fingerprints if check else (None,)))
    if not manifest['records']:
      shutil.rmtree(partial)
    check_useful(manifest)
    for name, text in lists_of(manifest, stats).items():
      (partial / name).write_text(text)
    shutil.rmtree(partial / 'spills')
    (partial / 'plan.json').unlink()
    os.rename(partial, output)
  except OSError as error:
    raise UserError(
      f'{partial}: cannot be written ({error}): the same command goes on where it stopped'
    ) from error
  return manifest


def _plan(job: Job, said: str) -> dict[str, Any]:
  """What must be the same for an interrupted conversion to go on."""
  stats = [os.stat(path) for path in job.reader.files]
  return {
    'schema': SCHEMA,
    'input': said,
    'items': len(job.reader),
    'shards': job.shards,
    'files': [[stat.st_size, stat.st_mtime_ns] for stat in stats],
    'config': str(job.check or ''),
  }


def _begin(partial: pathlib.Path, plan: dict[str, Any]) -> None:
  path = partial / 'plan.json'
  if path.exists():
    before = json.loads(path.read_text())
    if differ := [name for name in plan if plan[name] != before.get(name)]:
      raise UserError(
        f'{partial} was begun with another {" and ".join(differ)}: remove it to convert anew'
      )
  else:
    (partial / 'spills').mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plan))


def _spill(job: Job, number: int) -> tuple[int, int]:
  return number, write_spill(
    job.reader, pieces_of(job.reader)[number], job.spill(number), job.shards, job.check
  )


def _shard(job: Job, number: int) -> ShardStats:
  return shard_of_spills(
    [job.spill(k) for k in range(len(pieces_of(job.reader)))], number, job.shard(number)
  )


def _run(
  function: Callable[[Job, int], Any],
  job: Job,
  numbers: Sequence[int],
  workers: int,
  timeout: float,
) -> Iterator[Any]:
  """Results in order; in this process with one worker."""
  if workers == 1 or len(numbers) < 2:
    yield from (function(job, number) for number in numbers)
    return
  pool = Pool(
    functools.partial(function, job),
    min(workers, len(numbers)),
    timeout=timeout,
    died='a worker has died (out of memory?): the same command goes on where it stopped',
    hangs=f'no worker has finished anything for {timeout:.0f} s: they hang; the same command goes on, '
    '--workers=1 shows where',
  )
  try:
    yield from map(pool.get, [pool.ask(number) for number in numbers])
  finally:
    pool.close()
