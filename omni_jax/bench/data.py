"""What loading costs: a loader's rate, and its processor time beside that of decoding the same media in a bare loop.

Processor time is measured in turns, several times, and medians are compared: that stands a busy machine.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import statistics
import time
from typing import Any, NamedTuple

from omni_jax.bench import bare
from omni_jax.config import LoaderConfig
from omni_jax.data.loader import Loader, Order
from omni_jax.data.making import Making
from omni_jax.data.sources.mixture import Mixture
from omni_jax.sequence.pack import stream_fill
from omni_jax.types import Batch, RowBudget

ROUNDS = 5


class Counted(NamedTuple):
  """What some batches hold."""

  examples: int
  tokens: int  # positions that carry something
  room: int  # all positions
  batches: int = 0
  fill: Mapping[str, float] = {}  # by stream, sums of its share of real pieces

  @classmethod
  def of(cls, batch: Batch) -> 'Counted':
    return cls(
      int(batch.segment_BL.max(axis=1).sum()),
      int((batch.segment_BL > 0).sum()),
      batch.segment_BL.size,
      1,
      stream_fill(batch),
    )

  def __add__(self, other: 'Counted') -> 'Counted':
    fill = {
      name: self.fill.get(name, 0.0) + share for name, share in other.fill.items()
    }
    sums = (a + b for a, b in zip(self[:4], other[:4], strict=True))
    return Counted(*sums, {**self.fill, **fill})


NOTHING = Counted(0, 0, 0)


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
    streams: share of real pieces of each stream.
  """

  loader: float
  bare: float
  augment: float
  ratio: float
  filled: float
  streams: Mapping[str, float]


def take(loader: Loader, examples: int) -> Counted:
  """Batches that hold as many examples at least."""
  counted = NOTHING
  while counted.examples < examples:
    counted += Counted.of(next(loader))
  return counted


def rate(making: Making, budget: RowBudget, *, workers: int, examples: int) -> Rate:
  """By the clock, without the first batches: those wait for the processes to start."""
  loader = Loader(making, budget, LoaderConfig(workers=workers))
  try:
    take(loader, max(1, examples // 4))
    start = time.perf_counter()
    counted = take(loader, examples)
    seconds = time.perf_counter() - start
  finally:
    loader.close()
  return Rate(workers, counted.examples / seconds, counted.tokens / seconds)


def overhead(fresh: Callable[[], Making], budget: RowBudget, examples: int) -> Overhead:
  """Against the bare loop, on the same examples in the same order, one after another in this process.

  Args:
    fresh: gives sources that remember no decoded media.
  """
  making = fresh()
  mixture = Mixture.of(making.examples)
  order = Order(mixture, making.seed)
  each = max(10, examples // ROUNDS)
  media = [bare.stored(mixture, order[k].example) for k in range(ROUNDS * each)]
  plain = Loader(making._replace(augment=None), budget, prefetch=0)
  changed = Loader(fresh(), budget, prefetch=0) if making.augment else None
  times: dict[str, list[float]] = {'loader': [], 'bare': [], 'augment': []}
  counted = NOTHING
  for k in range(ROUNDS):
    here = [
      medium for example in media[k * each : (k + 1) * each] for medium in example
    ]
    times['bare'].append(
      processor_time(lambda here=here: bare.decode(here, making.hosts)) / each
    )
    seconds, found = processor_time_of(lambda: take(plain, each))
    counted += found
    times['loader'].append(seconds / found.examples)
    if changed:
      seconds, found = processor_time_of(lambda: take(changed, each))
      times['augment'].append(seconds / found.examples - times['loader'][-1])
  medians = {
    name: 1e6 * statistics.median(values) if values else 0.0
    for name, values in times.items()
  }
  return Overhead(
    **medians,
    ratio=medians['loader'] / medians['bare'] if medians['bare'] else 0.0,
    filled=counted.tokens / counted.room,
    streams={name: sums / counted.batches for name, sums in counted.fill.items()},
  )


def processor_time_of(function: Callable[[], Any]) -> tuple[float, Any]:
  """Seconds of all threads of this process, and the result."""
  start = time.process_time()
  result = function()
  return time.process_time() - start, result


def processor_time(function: Callable[[], Any]) -> float:
  return processor_time_of(function)[0]


def describe(
  cost: Overhead, rates: Sequence[Rate], log: Callable[[str], None] = print
) -> None:
  against = (
    f'{cost.ratio:.2f} times the bare {cost.bare:.0f} us of decoding'
    if cost.bare
    else 'no media are stored'
  )
  log(
    f'an example takes {cost.loader:.0f} us of processor time, {against}; augmentation adds {cost.augment:.0f} us'
  )
  log(f'rows are {cost.filled:.1%} full')
  for name, share in cost.streams.items():
    log(f'{name}: {share:.1%} of its pieces are real')
  describe_rates(rates, log)


def describe_rates(rates: Sequence[Rate], log: Callable[[str], None] = print) -> None:
  for one in rates:
    log(
      f'{one.workers} workers: {one.examples:.0f} examples/s, {one.tokens:.0f} packed tokens/s'
    )
