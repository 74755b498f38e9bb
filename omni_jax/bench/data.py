"""Measures the cost of data loading: a loader's speed and its CPU time.

CPU time is compared with that of decoding the same media in a bare loop. Both are
measured several times in turn and their medians compared, so that other work on the
machine matters little.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
import statistics
import time
from typing import Any, NamedTuple

from omni_jax.bench import bare
from omni_jax.config import LoaderConfig
from omni_jax.data.example_maker import ExampleMaker
from omni_jax.data.loader import Loader, Order
from omni_jax.data.sources.mixture import Mixture
from omni_jax.types import Batch, RowBudget

ROUNDS = 5


class Counts(NamedTuple):
  """Contents of some batches, as counts.

  Attributes:
    examples: number of examples.
    tokens: number of positions that carry something.
    positions: number of all positions.
    pieces: number of real pieces by stream.
    room: number of pieces that there is room for by stream.
  """

  examples: int
  tokens: int
  positions: int
  pieces: collections.Counter
  room: collections.Counter

  @classmethod
  def none(cls) -> 'Counts':
    """Returns the counts of no batches."""
    return cls(0, 0, 0, collections.Counter(), collections.Counter())

  @classmethod
  def of(cls, batch: Batch) -> 'Counts':
    """Returns the counts of a batch."""
    pieces: collections.Counter[str] = collections.Counter()
    room: collections.Counter[str] = collections.Counter()
    for name, stream in batch.streams.items():
      pieces[name] = int((stream.item_BM > 0).sum())
      room[name] = stream.item_BM.size
    return cls(
      examples=int(batch.segment_BL.max(axis=1).sum()),
      tokens=int((batch.segment_BL > 0).sum()),
      positions=batch.segment_BL.size,
      pieces=pieces,
      room=room,
    )

  def __add__(  # type: ignore[override]  # adds field by field
    self, other: 'Counts'
  ) -> 'Counts':
    pairs: Any = zip(self, other, strict=True)
    return Counts._make(a + b for a, b in pairs)


@dataclasses.dataclass(frozen=True)
class Rate:
  """Wall-clock speed of a loader, once it runs.

  Attributes:
    workers: number of worker processes.
    examples: examples per second.
    tokens: packed tokens per second.
  """

  workers: int
  examples: float
  tokens: float


@dataclasses.dataclass(frozen=True)
class Overhead:
  """CPU time per example, as medians in microseconds.

  Attributes:
    loader: time from the stored bytes to the packed row, without augmentation.
    bare: time to decode the example's media, and nothing else.
    augment: time that augmentation adds, if the config has one.
    ratio: loader / bare; 0 if no media are stored.
    filled: share of the packed rows' positions that carry something.
    streams: share of the pieces that are real, by stream that has room for some.
  """

  loader: float
  bare: float
  augment: float
  ratio: float
  filled: float
  streams: Mapping[str, float]


def take(loader: Loader, examples: int) -> Counts:
  """Takes batches until they hold this many examples, and returns their counts."""
  counts = Counts.none()
  while counts.examples < examples:
    counts += Counts.of(next(loader))
  return counts


def measure_rate(
  maker: ExampleMaker, budget: RowBudget, *, workers: int, examples: int
) -> Rate:
  """Returns the wall-clock speed of a loader.

  The first batches are left out, since they wait for the worker processes to start.

  Args:
    maker: how examples are made.
    budget: sizes of a batch.
    workers: number of worker processes.
    examples: number of examples to measure with.
  """
  loader = Loader(maker, budget, LoaderConfig(workers=workers))
  try:
    take(loader, max(1, examples // 4))
    start = time.perf_counter()
    counts = take(loader, examples)
    seconds = time.perf_counter() - start
  finally:
    loader.close()
  return Rate(workers, counts.examples / seconds, counts.tokens / seconds)


def measure_overhead(
  fresh_maker: Callable[[], ExampleMaker], budget: RowBudget, examples: int
) -> Overhead:
  """Returns the CPU time of a loader and of the bare loop.

  Both take the same examples in the same order, one after another in this process.

  Args:
    fresh_maker: function that returns sources without cached media.
    budget: sizes of a batch.
    examples: number of examples to measure with.
  """
  maker = fresh_maker()
  mixture = Mixture.of(maker.examples)
  order = Order(mixture, maker.seed)
  each = max(10, examples // ROUNDS)
  media = [bare.encoded_media(mixture, order[k].example) for k in range(ROUNDS * each)]
  unaugmented = Loader(maker._replace(augment=None), budget, prefetch=0)
  augmented = Loader(fresh_maker(), budget, prefetch=0) if maker.augment else None
  times: dict[str, list[float]] = {'loader': [], 'bare': [], 'augment': []}
  total = Counts.none()
  for k in range(ROUNDS):
    round_media = list(itertools.chain(*media[k * each : (k + 1) * each]))
    decode = functools.partial(bare.decode_media, round_media, maker.hosts)
    seconds, _ = processor_seconds(decode)
    times['bare'].append(seconds / each)
    seconds, counts = processor_seconds(lambda: take(unaugmented, each))
    total += counts
    times['loader'].append(seconds / counts.examples)
    if augmented:
      seconds, counts = processor_seconds(lambda: take(augmented, each))
      times['augment'].append(seconds / counts.examples - times['loader'][-1])
  medians = {}
  for name, seconds_per_example in times.items():
    medians[name] = 0.0
    if seconds_per_example:
      medians[name] = 1e6 * statistics.median(seconds_per_example)
  return Overhead(
    **medians,
    ratio=medians['loader'] / medians['bare'] if medians['bare'] else 0.0,
    filled=total.tokens / total.positions,
    streams={name: total.pieces[name] / n for name, n in total.room.items() if n},
  )


def processor_seconds(function: Callable[[], Any]) -> tuple[float, Any]:
  """Returns the CPU seconds of this process for a call, and the call's result."""
  start = time.process_time()
  result = function()
  return time.process_time() - start, result


def log_costs(
  overhead: Overhead, rates: Sequence[Rate], log: Callable[[str], None] = print
) -> None:
  """Logs the cost of loading, one fact per line."""
  comparison = 'no media are stored'
  if overhead.bare:
    comparison = (
      f'{overhead.ratio:.2f} times the bare {overhead.bare:.0f} us of decoding'
    )
  log(
    f'an example takes {overhead.loader:.0f} us of CPU time, {comparison}; augmentation '
    f'adds {overhead.augment:.0f} us'
  )
  log(f'rows are {overhead.filled:.1%} full')
  for name, share in overhead.streams.items():
    log(f'{name}: {share:.1%} of the pieces are real')
  log_rates(rates, log)


def log_rates(rates: Sequence[Rate], log: Callable[[str], None] = print) -> None:
  """Logs the speeds of loaders, one per line."""
  for rate in rates:
    log(
      f'{rate.workers} workers: {rate.examples:.0f} examples/s, '
      f'{rate.tokens:.0f} packed tokens/s'
    )
