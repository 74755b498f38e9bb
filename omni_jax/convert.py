"""python -m omni_jax.convert --input=… --output=DIR: own data -> ArrayRecord shards and a manifest.

  --input=data/train.jsonl       JSON lines with media beside them
  --input=pictures/              a folder of pictures or sounds; folders in it are labels, NAME.txt is a caption
  --input='shards/*.tar'         samples in tar files (WebDataset)
  --input='part-*.parquet'       columns --read and --write
  --input=tfds:mnist/train       a set of TensorFlow Datasets; --root is its folder
  --input=seqio:my_task/train    a SeqIO task; --module is imported first
  --input=emoji:train            a ready set (docs/ready_sources.md); --root is the folder that holds its folder

The output appears when it is whole; the same command goes on where a killed one stopped. It does not depend on the
number of workers.
"""

import argparse
import collections
from collections.abc import Callable, Iterator, Sequence
import functools
import glob
import json
import os
import pathlib
import shutil
import sys
from typing import Any, NamedTuple

from omni_jax.data.conversion import index_of, MEDIA, SCHEMA, ShardStats, write_shard, write_spill
from omni_jax.data.inputs.folder import FolderReader
from omni_jax.data.inputs.jsonl import JsonLinesReader
from omni_jax.data.inputs.parquet import ParquetReader
from omni_jax.data.inputs.reader import Reader
from omni_jax.data.inputs.ready import ReadyReader
from omni_jax.data.inputs.seqio import SeqioReader
from omni_jax.data.inputs.tar import TarReader
from omni_jax.data.inputs.tfds import TfdsReader
from omni_jax.data.pool import Pool
from omni_jax.data.ready.sets import READY
from omni_jax.errors import run_command, UserError

TARS = ('.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tar.xz')
READERS: dict[str, Callable[[list[str], Any], Reader]] = {
    'jsonl': lambda paths, f: JsonLinesReader(_one(paths)),
    'folder': lambda paths, f: FolderReader(_one(paths), language=f.language),
    'tar': lambda paths, f: TarReader(paths, language=f.language),
    'parquet': lambda paths, f: ParquetReader(paths, read=f.read, write=f.write, language=f.language),
    'tfds': lambda paths, f: TfdsReader(_one(paths), root=f.root, rate=f.rate, read=f.read, write=f.write,
                                        language=f.language),
    'seqio': lambda paths, f: SeqioReader(_one(paths), module=f.module, language=f.language),
}


class Job(NamedTuple):
  """What a worker needs."""
  reader: Reader
  folder: pathlib.Path
  shards: int

  def spill(self, number: int) -> pathlib.Path:
    return self.folder / 'spills' / f'{number:06d}.spill'

  def shard(self, number: int) -> pathlib.Path:
    return self.folder / f'data-{number:05d}-of-{self.shards:05d}.array_record'

  def pieces(self) -> list[range]:
    n, chunk = len(self.reader), self.reader.chunk
    return [range(start, min(start + chunk, n)) for start in range(0, n, chunk)]


def reader_of(flags: Any) -> Reader:
  """The reader of --input, by --kind or by what its name looks like."""
  scheme, colon, rest = flags.input.partition(':')
  if colon and scheme in ('tfds', 'seqio'):
    return READERS[scheme]([rest], flags)
  if colon and scheme in READY:
    return ReadyReader(scheme, rest or 'train', root=flags.root, read=flags.read, write=flags.write,
                       language=flags.language)
  paths = sorted(glob.glob(flags.input)) if glob.has_magic(flags.input) else [flags.input]
  if not paths or not all(map(os.path.exists, paths)):
    raise UserError(f'--input={flags.input}: no such file or folder')
  kind = flags.kind or _kind_of(paths[0])
  if kind in ('tar', 'parquet') and os.path.isdir(paths[0]):
    ends = TARS if kind == 'tar' else ('.parquet',)
    paths = sorted(entry.path for entry in os.scandir(paths[0]) if entry.name.endswith(ends))
  if not kind or not paths:
    raise UserError(f'--input={flags.input}: what is it? --kind={"|".join(READERS)}')
  return READERS[kind](paths, flags)


def _kind_of(path: str) -> str:
  if os.path.isdir(path):
    names = [entry.name for entry in os.scandir(path)]
    return next((kind for kind, ends in (('parquet', ('.parquet',)), ('tar', TARS))
                 if names and all(name.endswith(ends) for name in names)), 'folder')
  return next((kind for kind, ends in (('jsonl', ('.jsonl', '.json')), ('tar', TARS), ('parquet', ('.parquet',)))
               if path.endswith(ends)), '')


def _one(paths: list[str]) -> str:
  if len(paths) > 1:
    raise UserError(f'--input names {len(paths)} inputs ({paths[0]}, {paths[1]}, …): convert them one by one')
  return paths[0]


def convert(reader: Reader, output: pathlib.Path, *, shards: int, workers: int, said: str, timeout: float,
            log: Callable[[str], None] = print) -> dict[str, Any]:
  """Writes the folder `output`; returns its manifest.

  Args:
    said: what the input is, for the manifest.
    timeout: seconds after which a worker that has finished nothing is called dead.

  Raises:
    UserError: if the output exists, if the input has changed since an interrupted conversion, if no record is good,
      or if a worker dies.
  """
  if output.exists():
    raise UserError(f'--output={output} exists already: remove it or name another folder')
  partial = output.with_name(f'{output.name}.partial')
  job = Job(reader, partial, shards)
  try:
    _begin(partial, _plan(reader, said, shards))
    pieces = range(len(job.pieces()))
    missing = [k for k in pieces if not index_of(job.spill(k)).exists()]
    if len(missing) < len(pieces):
      log(f'convert: goes on, {len(pieces) - len(missing)} of {len(pieces)} pieces are there')
    for done, (k, count) in enumerate(_run(_spill, job, missing, workers, timeout), start=1):
      log(f'convert: piece {k} of {len(pieces)}, {count} examples ({done} of {len(missing)} done)')
    stats = sorted(_run(_shard, job, range(shards), workers, timeout), key=lambda shard: shard.file)
    manifest = _manifest(stats, said)
    if not manifest['records']:
      reasons = '; '.join(f'{n} x {reason}' for reason, n in list(manifest['refused'].items())[:3])
      shutil.rmtree(partial)
      raise UserError(f'{said}: no example can be used: {reasons}')
    refused = sorted(pair for shard in stats for pair in shard.refused)
    (partial / 'refused.jsonl').write_text(''.join(json.dumps({'id': id, 'reason': why}) + '\n' for id, why in refused))
    (partial / 'manifest.json').write_text(json.dumps(manifest, indent=1) + '\n')
    shutil.rmtree(partial / 'spills')
    (partial / 'plan.json').unlink()
    os.rename(partial, output)
  except OSError as error:
    raise UserError(f'{partial}: cannot be written ({error}): the same command goes on where it stopped') from error
  return manifest


def _plan(reader: Reader, said: str, shards: int) -> dict[str, Any]:
  """What must be the same for an interrupted conversion to go on."""
  stats = [os.stat(path) for path in reader.files]
  return {'schema': SCHEMA, 'input': said, 'items': len(reader), 'shards': shards,
          'files': [[stat.st_size, stat.st_mtime_ns] for stat in stats]}


def _begin(partial: pathlib.Path, plan: dict[str, Any]) -> None:
  path = partial / 'plan.json'
  if path.exists():
    before = json.loads(path.read_text())
    if differ := [name for name in plan if plan[name] != before.get(name)]:
      raise UserError(f'{partial} was begun with another {" and ".join(differ)}: remove it to convert anew')
  else:
    (partial / 'spills').mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plan))


def _spill(job: Job, number: int) -> tuple[int, int]:
  return number, write_spill(job.reader, job.pieces()[number], job.spill(number), job.shards)


def _shard(job: Job, number: int) -> ShardStats:
  return write_shard([job.spill(k) for k in range(len(job.pieces()))], number, job.shard(number))


def _run(function: Callable[[Job, int], Any], job: Job, numbers: Sequence[int], workers: int, timeout: float
         ) -> Iterator[Any]:
  """Results in order; in this process with one worker."""
  if workers == 1 or len(numbers) < 2:
    yield from (function(job, number) for number in numbers)
    return
  pool = Pool(functools.partial(function, job), min(workers, len(numbers)), timeout=timeout,
              died='a worker has died (out of memory?): the same command goes on where it stopped',
              hangs=f'no worker has finished anything for {timeout:.0f} s: they hang; the same command goes on, '
                    '--workers=1 shows where')
  try:
    yield from map(pool.get, [pool.ask(number) for number in numbers])
  finally:
    pool.close()


def _manifest(stats: Sequence[ShardStats], said: str) -> dict[str, Any]:
  reasons = collections.Counter(why for shard in stats for _, why in shard.refused)
  return {'schema': SCHEMA, 'input': said, 'records': sum(shard.records for shard in stats),
          'media': {name: sum(getattr(shard, name) for shard in stats) for name in MEDIA},
          'refused': dict(reasons.most_common()),
          'shards': [{'file': shard.file, 'records': shard.records, 'bytes': shard.bytes, 'sha256': shard.sha256}
                     for shard in stats if shard.records]}


def main(arguments: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(prog='python -m omni_jax.convert', description=__doc__, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--input', required=True)
  parser.add_argument('--output', required=True, type=pathlib.Path, help='folder to make')
  parser.add_argument('--kind', choices=list(READERS), help='of the input, where its name does not say')
  parser.add_argument('--shards', type=int, default=16)
  parser.add_argument('--workers', type=int, default=os.cpu_count())
  parser.add_argument('--timeout', type=float, default=600, help='seconds after which hanging workers are given up')
  for name, text in dict(read='column that the user shows', write='column that the assistant answers with',
                         language='of the answers', root='folder of a TFDS set or of the ready sets',
                         module='imported first, for SeqIO').items():
    parser.add_argument(f'--{name}', default='', help=text)
  parser.add_argument('--rate', type=int, default=0, help='of sounds whose TFDS feature does not say')
  flags = parser.parse_args(arguments)
  if flags.shards < 1 or flags.workers < 1 or flags.timeout <= 0:
    raise UserError(f'--shards={flags.shards} --workers={flags.workers} --timeout={flags.timeout}: each is above 0')
  made = convert(reader_of(flags), flags.output, shards=flags.shards, workers=flags.workers, said=flags.input,
                 timeout=flags.timeout)
  refused = sum(made['refused'].values())
  print(f'convert: wrote {flags.output}: {made["records"]} records in {len(made["shards"])} shards, '
        f'{made["media"]["images"]} images, {made["media"]["sounds"]} sounds of {made["media"]["seconds"] / 60:.1f} '
        f'minutes; {refused} refused' + (f', see {flags.output}/refused.jsonl' if refused else ''))


if __name__ == '__main__':
  run_command(lambda: main(sys.argv[1:]))
