"""Measures a loader's peak of memory, which must not grow with the corpus.

The corpus is of synthetic records and is read once through.
"""

from collections.abc import Callable, Iterator
import pathlib
from typing import NamedTuple

import numpy as np

from omni_jax.data.loader import Loader
from omni_jax.data.making import Making
from omni_jax.data.sources.records import (
  ArrayRecordExamples,
  pack_example,
  write_array_record,
)
from omni_jax.data.worker_pool import Pool
from omni_jax.errors import UserError
from omni_jax.sequence.media import png_bytes
from omni_jax.types import RowBudget

SHARE = 0.1  # of the corpus: the small one that it is compared with
SHARDS = 10
SIDE = 64  # pixels
VARIANTS = 100  # different images, which noise makes incompressible
HOURS = 3600.0


class Reader(NamedTuple):
  """What a process does that reads a corpus once through."""

  making: Making
  budget: RowBudget
  paths: list[str]

  def __call__(self, _: None) -> int:
    """Returns the peak of the process's resident memory in MiB, since its start."""
    examples = ArrayRecordExamples(self.paths, self.making.media)
    loader = Loader(self.making._replace(examples=examples), self.budget)
    count = 0
    while count < len(examples):
      count += int(next(loader).segment_BL.max(axis=1).sum())
    loader.close()
    return peak_memory()


def peak_memory() -> int:
  """Returns the peak of this process's resident memory in MiB.

  It is read from /proc: what getrusage says holds the parent's memory at the time of
  the start, too.
  """
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith('VmHWM:'):
      return int(line.split()[1]) >> 10
  raise UserError('/proc/self/status has no VmHWM: memory is measured on Linux only')


def measure_peaks(
  folder: str,
  gigabytes: float,
  making: Making,
  budget: RowBudget,
  log: Callable[[str], None],
) -> dict[str, int]:
  """Returns the peaks of memory in MiB of reading a tenth of the corpus and all of it.

  Each is read in a process of its own.
  """
  shards = [str(pathlib.Path(folder) / f'{k:02d}.array_record') for k in range(SHARDS)]
  records = sum(
    write_array_record(path, synthetic_records(k, gigabytes * 1e9 / SHARDS))
    for k, path in enumerate(shards)
  )
  size = sum(pathlib.Path(path).stat().st_size for path in shards)
  log(f'corpus: {records} records, {size / 1e9:.2f} GB')
  peaks = {}
  for name, paths in (('tenth', shards[: round(SHARE * SHARDS)]), ('whole', shards)):
    pool = Pool(
      Reader(making, budget, paths),
      1,
      timeout=10 * HOURS,
      died='the reading process has died',
      hangs='the reading process hangs',
    )
    peaks[name] = pool.get(pool.ask(None))
    pool.close()
    log(f'peak of memory, {name} of it read once through: {peaks[name]} MiB')
  return peaks


def synthetic_records(seed: int, size: float) -> Iterator[bytes]:
  """Yields records of an image and a text, until they hold `size` bytes."""
  rng = np.random.default_rng(seed)
  images = [png_bytes(rng.random((SIDE, SIDE, 3), np.float32)) for _ in range(VARIANTS)]
  total = 0
  number = 0
  while total < size:
    content = [
      {'type': 'image', 'data': images[number % VARIANTS]},
      {'type': 'text', 'text': f'noise {number}'},
    ]
    record = pack_example({'id': f'{seed}/{number}', 'content': content})
    total += len(record)
    number += 1
    yield record
