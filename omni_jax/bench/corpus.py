"""Shows that a loader's peak of memory does not grow with the corpus: synthetic records, read once through."""

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
from omni_jax.modalities.image.files import png_bytes
from omni_jax.types import RowBudget

SHARE = 0.1  # of the corpus: the small one that it is compared with
SHARDS = 10
SIDE, VARIANTS = 64, 100  # pixels; different images, which noise makes incompressible
HOURS = 3600.0


class Pass(NamedTuple):
  """One process that reads a corpus once through."""

  making: Making
  budget: RowBudget
  paths: list[str]

  def __call__(self, _: None) -> int:
    """The peak of its resident memory in MiB, since it was started."""
    examples = ArrayRecordExamples(self.paths, self.making.hosts)
    loader, seen = Loader(self.making._replace(examples=examples), self.budget), 0
    while seen < len(examples):
      seen += int(next(loader).segment_BL.max(axis=1).sum())
    loader.close()
    return peak_memory()


def peak_memory() -> int:
  """MiB, of this process. From /proc: what getrusage says holds the parent's memory at the time of the start, too."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith('VmHWM:'):
      return int(line.split()[1]) >> 10
  raise UserError('/proc/self/status has no VmHWM: memory is measured on Linux only')


def measure(
  folder: str,
  gigabytes: float,
  making: Making,
  budget: RowBudget,
  log: Callable[[str], None],
) -> dict[str, int]:
  """Peak of memory in MiB of reading a tenth of the corpus and all of it, each in a process of its own."""
  shards = [str(pathlib.Path(folder) / f'{k:02d}.array_record') for k in range(SHARDS)]
  records = sum(
    write_array_record(path, synthetic(k, gigabytes * 1e9 / SHARDS))
    for k, path in enumerate(shards)
  )
  written = sum(pathlib.Path(path).stat().st_size for path in shards)
  log(f'corpus: {records} records, {written / 1e9:.2f} GB')
  peaks = {}
  for name, paths in (('tenth', shards[: round(SHARE * SHARDS)]), ('whole', shards)):
    pool = Pool(
      Pass(making, budget, paths),
      1,
      timeout=10 * HOURS,
      died='the reading process has died',
      hangs='the reading process hangs',
    )
    peaks[name] = pool.get(pool.ask(None))
    pool.close()
    log(f'peak of memory, {name} of it read once through: {peaks[name]} MiB')
  return peaks


def synthetic(seed: int, size: float) -> Iterator[bytes]:
  """Records of an image and a text, until they hold `size` bytes."""
  rng = np.random.default_rng(seed)
  images = [png_bytes(rng.random((SIDE, SIDE, 3), np.float32)) for _ in range(VARIANTS)]
  made = number = 0
  while made < size:
    content = [
      {'type': 'image', 'data': images[number % VARIANTS]},
      {'type': 'text', 'text': f'noise {number}'},
    ]
    record = pack_example({'id': f'{seed}/{number}', 'content': content})
    made, number = made + len(record), number + 1
    yield record
