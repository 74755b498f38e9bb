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
  """Numbers of examples, positions and pieces in some batches.

  Attributes:
    examples: number of examples.
    tokens: number of positions that carry something.
    positions: number of all positions.
    pieces: number of pieces of each stream.
    capacity: capacity of each stream, in pieces.
  """

  examples: int
  tokens: int
  positions: int
  pieces: collections.Counter
  capacity: collections.Counter

  @classmethod
  def zero(cls) -> 'Counts':
    """Returns the counts of no batches."""
    return cls(0, 0, 0, collections.Counter(), collections.Counter())

  @classmethod
  def of(cls, batch: Batch) -> 'Counts':
    """Returns the counts of a batch."""
    pieces: collections.Counter[str] = collections.Counter()
    capacity: collections.Counter[str] = collections.Counter()
    for name, stream in batch.streams.items():
      pieces[name] = int((stream.item_BM > 0).sum())
      capacity[name] = stream.item_BM.size
    return cls(
      examples=batch.examples,
      tokens=int((batch.segment_BL > 0).sum()),
      positions=batch.segment_BL.size,
      pieces=pieces,
      capacity=capacity,
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
    used_capacity: used share of the capacity of each stream that has any.
  """

  loader: float
  bare: float
  augment: float
  ratio: float
  filled: float
  used_capacity: Mapping[str, float]


def take(loader: Loader, examples: int) -> Counts:
  """Takes batches until they hold this many examples, and returns their counts."""
  counts = Counts.zero()
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
  """Measures the CPU time per example of a loader and of the bare loop.

  Both take the same examples in the same order, one after another in this process.

  Args:
    fresh_maker: function that returns a new maker, whose sources have cached no media.
    budget: sizes of a batch.
    examples: number of examples to measure with.
  """
  maker = fresh_maker()
  mixture = Mixture.of(maker.examples)
  order = Order(mixture, maker.seed)
  per_round = max(10, examples // ROUNDS)
  media = []
  for k in range(ROUNDS * per_round):
    media.append(bare.encoded_media(mixture, order[k].example))
  unaugmented = Loader(maker._replace(augment=None), budget, prefetch=0)
  augmented = Loader(fresh_maker(), budget, prefetch=0) if maker.augment else None
  bare_times: list[float] = []
  loader_times: list[float] = []
  augment_times: list[float] = []
  total = Counts.zero()
  for k in range(ROUNDS):
    examples_of_round = media[k * per_round : (k + 1) * per_round]
    media_of_round = list(itertools.chain.from_iterable(examples_of_round))
    decode = functools.partial(bare.decode_media, media_of_round, maker.hosts)
    bare_seconds, _ = cpu_seconds(decode)
    bare_times.append(bare_seconds / per_round)
    loader_seconds, counts = cpu_seconds(lambda: take(unaugmented, per_round))
    loader_times.append(loader_seconds / counts.examples)
    total += counts
    if augmented:
      augmented_seconds, counts = cpu_seconds(lambda: take(augmented, per_round))
      augment_times.append(augmented_seconds / counts.examples - loader_times[-1])
  loader_time = _median_microseconds(loader_times)
  bare_time = _median_microseconds(bare_times)
  used_capacity = {}
  for name, capacity in total.capacity.items():
    if capacity:
      used_capacity[name] = total.pieces[name] / capacity
  return Overhead(
    loader=loader_time,
    bare=bare_time,
    augment=_median_microseconds(augment_times),
    ratio=loader_time / bare_time if bare_time else 0.0,
    filled=total.tokens / total.positions,
    used_capacity=used_capacity,
  )


def _median_microseconds(seconds: Sequence[float]) -> float:
  """Returns the median in microseconds; 0 if nothing was measured."""
  return 1e6 * statistics.median(seconds) if seconds else 0.0


def cpu_seconds(function: Callable[[], Any]) -> tuple[float, Any]:
  """Returns the CPU seconds of this process for a call, and the call's result."""
  start = time.process_time()
  result = function()
  return time.process_time() - start, result


def log_costs(
  overhead: Overhead, rates: Sequence[Rate], log: Callable[[str], None] = print
) -> None:
  """Logs the cost of loading, one fact per line."""
  decoding = 'no media are stored'
  if overhead.bare:
    decoding = (
      f'of which decoding alone takes {overhead.bare:.0f} us '
      f'(ratio {overhead.ratio:.2f})'
    )
  log(
    f'CPU time per example: {overhead.loader:.0f} us, {decoding}; augmentation adds '
    f'{overhead.augment:.0f} us'
  )
  log(f'rows are {overhead.filled:.1%} full')
  for name, share in overhead.used_capacity.items():
    log(f'{name}: {share:.1%} of its capacity is used')
  log_rates(rates, log)


def log_rates(rates: Sequence[Rate], log: Callable[[str], None] = print) -> None:
  """Logs the speeds of loaders, one per line."""
  for rate in rates:
    log(
      f'{rate.workers} workers: {rate.examples:.0f} examples/s, '
      f'{rate.tokens:.0f} packed tokens/s'
    )
