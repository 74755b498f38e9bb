"""Measures a loader's peak memory, which must not grow with the size of the corpus."""

from collections.abc import Callable, Iterator
import pathlib
from typing import Any, NamedTuple

import numpy as np

from omni_jax.data.example_maker import ExampleMaker
from omni_jax.data.loader import Loader
from omni_jax.data.sources.records import (
  ArrayRecordExamples,
  pack_example,
  write_array_record,
)
from omni_jax.data.sources.shards import SHARD_SUFFIX
from omni_jax.data.worker_pool import WorkerPool
from omni_jax.errors import UserError
from omni_jax.modalities.image.files import png_bytes
from omni_jax.sequence.example import text_part
from omni_jax.types import RowBudget

SHARE = 0.1  # size of the part of the corpus that the whole is compared with
SHARDS = 10
SIDE = 64  # pixels of an image
VARIANTS = 100  # number of different images; they are noise, which does not compress
TIMEOUT = 36_000.0  # seconds that reading the corpus may take: ten hours


class Reader(NamedTuple):
  """Reads a corpus once; a worker process calls it with None.

  Attributes:
    maker: how examples are made; its own examples are not used.
    budget: sizes of a batch.
    paths: files of the corpus.
  """

  maker: ExampleMaker
  budget: RowBudget
  paths: list[str]

  def __call__(self, _: None) -> int:
    """Returns the process's peak resident memory in MiB since its start."""
    examples = ArrayRecordExamples(self.paths, self.maker.hosts)
    loader = Loader(self.maker._replace(examples=examples), self.budget)
    count = 0
    while count < len(examples):
      count += next(loader).examples
    loader.close()
    return peak_memory()


def peak_memory() -> int:
  """Returns this process's peak resident memory in MiB, read from /proc.

  The value of getrusage would include the parent's memory when the process started.

  Raises:
    UserError: on systems other than Linux.
  """
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith('VmHWM:'):
      kibibytes = int(line.split()[1])
      return kibibytes // 1024
  raise UserError('/proc/self/status has no VmHWM: only Linux can measure memory')


def measure_peaks(
  folder: str,
  gigabytes: float,
  maker: ExampleMaker,
  budget: RowBudget,
  log: Callable[[str], None],
) -> dict[str, int]:
  """Returns the peak memory in MiB of reading a tenth of a corpus, and the whole corpus.

  Each is read in a process of its own.

  Args:
    folder: where to write the corpus.
    gigabytes: size of the corpus.
    maker: how examples are made.
    budget: sizes of a batch.
    log: function that reports a line.
  """
  shards = []
  records = 0
  size = 0
  for k in range(SHARDS):
    path = pathlib.Path(folder) / f'{k:02d}{SHARD_SUFFIX}'
    shards.append(str(path))
    contents = synthetic_records(k, gigabytes * 1e9 / SHARDS)
    records += write_array_record(str(path), contents)
    size += path.stat().st_size
  log(f'corpus: {records} records, {size / 1e9:.2f} GB')
  peaks = {}
  parts = {'tenth': shards[: round(SHARE * SHARDS)], 'whole': shards}
  for name, paths in parts.items():
    reader: Any = Reader(maker, budget, paths)
    pool = WorkerPool(
      reader,
      1,
      timeout=TIMEOUT,
      died_message='the reading process has died',
      hang_message='the reading process hangs',
    )
    peaks[name] = pool.result(pool.submit(None))
    pool.close()
    log(f'peak memory while reading the corpus ({name}): {peaks[name]} MiB')
  return peaks


def synthetic_records(seed: int, size: float) -> Iterator[bytes]:
  """Yields records of an image and a text until they have `size` bytes together."""
  rng = np.random.default_rng(seed)
  images = [png_bytes(rng.random((SIDE, SIDE, 3), np.float32)) for _ in range(VARIANTS)]
  total = 0
  number = 0
  while total < size:
    content = [
      {'type': 'image', 'data': images[number % VARIANTS]},
      text_part(f'noise {number}'),
    ]
    record = pack_example({'id': f'{seed}/{number}', 'content': content})
    total += len(record)
    number += 1
    yield record
