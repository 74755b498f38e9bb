"""Measures what loading costs: a loader's rate and its processor time.

Processor time is compared with that of decoding the same media in a bare loop. It is
measured in turns, several times, and medians are compared: that stands a busy machine.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import itertools
import statistics
import time
from typing import Any, NamedTuple

from omni_jax.bench import bare
from omni_jax.data.loader import Loader, LoaderConfig, Order
from omni_jax.data.making import Making
from omni_jax.data.sources.mixture import Mixture
from omni_jax.types import Batch, RowBudget

ROUNDS = 5


class Counts(NamedTuple):
  """What some batches hold.

  Attributes:
    tokens: positions that carry something.
    positions: all of them.
  """

  examples: int = 0
  tokens: int = 0
  positions: int = 0

  @classmethod
  def of(cls, batch: Batch) -> 'Counts':
    return cls(
      examples=int(batch.segment_BL.max(axis=1).sum()),
      tokens=int((batch.segment_BL > 0).sum()),
      positions=batch.segment_BL.size,
    )

  def __add__(self, other: 'Counts') -> 'Counts':
    return Counts(*(a + b for a, b in zip(self, other, strict=True)))


@dataclasses.dataclass(frozen=True)
class Rate:
  """A loader's speed by the clock, once it runs.

  Attributes:
    workers: processes beside the one that trains.
    examples, tokens: a second.
  """

  workers: int
  examples: float
  tokens: float


@dataclasses.dataclass(frozen=True)
class Overhead:
  """Processor time of an example in microseconds; medians.

  Attributes:
    loader: from the stored bytes to the packed row, without augmentation.
    bare: of decoding its media, and nothing else.
    augment: what augmentation adds, where the config has one.
    ratio: loader / bare.
    filled: share of the packed rows' positions that carry something.
  """

  loader: float
  bare: float
  augment: float
  ratio: float
  filled: float


def take(loader: Loader, examples: int) -> Counts:
  """Takes batches until they hold so many examples, and returns what they hold."""
  counts = Counts()
  while counts.examples < examples:
    counts += Counts.of(next(loader))
  return counts


def measure_rate(
  making: Making, budget: RowBudget, *, workers: int, examples: int
) -> Rate:
  """Measures a loader's speed by the clock.

  The first batches are left out: they wait for the processes to start.
  """
  loader = Loader(making, budget, LoaderConfig(workers=workers))
  try:
    take(loader, max(1, examples // 4))
    start = time.perf_counter()
    counts = take(loader, examples)
    seconds = time.perf_counter() - start
  finally:
    loader.close()
  return Rate(workers, counts.examples / seconds, counts.tokens / seconds)


def measure_overhead(
  fresh_making: Callable[[], Making], budget: RowBudget, examples: int
) -> Overhead:
  """Measures a loader against the bare loop.

  Both take the same examples in the same order, one after another in this process.

  Args:
    fresh_making: gives sources that remember no decoded media.
  """
  making = fresh_making()
  mixture = Mixture.of(making.examples)
  order = Order(mixture, making.seed)
  each = max(10, examples // ROUNDS)
  media = [bare.encoded_media(mixture, order[k].example) for k in range(ROUNDS * each)]
  unaugmented = Loader(making._replace(augment=None), budget, prefetch=0)
  augmented = Loader(fresh_making(), budget, prefetch=0) if making.augment else None
  times: dict[str, list[float]] = {'loader': [], 'bare': [], 'augment': []}
  total = Counts()
  for k in range(ROUNDS):
    round_media = list(itertools.chain(*media[k * each : (k + 1) * each]))
    decode = functools.partial(bare.decode_media, round_media, making.media)
    seconds, _ = processor_seconds(decode)
    times['bare'].append(seconds / each)
    seconds, counts = processor_seconds(lambda: take(unaugmented, each))
    total += counts
    times['loader'].append(seconds / counts.examples)
    if augmented:
      seconds, counts = processor_seconds(lambda: take(augmented, each))
      times['augment'].append(seconds / counts.examples - times['loader'][-1])
  medians = {
    name: 1e6 * statistics.median(values) if values else 0.0
    for name, values in times.items()
  }
  return Overhead(
    **medians,
    ratio=medians['loader'] / medians['bare'] if medians['bare'] else 0.0,
    filled=total.tokens / total.positions,
  )


def processor_seconds(function: Callable[[], Any]) -> tuple[float, Any]:
  """Returns the seconds of all threads of this process, and the function's result."""
  start = time.process_time()
  result = function()
  return time.process_time() - start, result


def log_costs(
  overhead: Overhead, rates: Sequence[Rate], log: Callable[[str], None] = print
) -> None:
  """Logs what loading costs, a fact a line."""
  comparison = 'no media are stored'
  if overhead.bare:
    comparison = (
      f'{overhead.ratio:.2f} times the bare {overhead.bare:.0f} us of decoding'
    )
  log(
    f'an example takes {overhead.loader:.0f} us of processor time, {comparison}; '
    f'augmentation adds {overhead.augment:.0f} us'
  )
  log(f'rows are {overhead.filled:.1%} full')
  log_rates(rates, log)


def log_rates(rates: Sequence[Rate], log: Callable[[str], None] = print) -> None:
  """Logs loaders' speeds, one a line."""
  for rate in rates:
    log(
      f'{rate.workers} workers: {rate.examples:.0f} examples/s, '
      f'{rate.tokens:.0f} packed tokens/s'
    )
