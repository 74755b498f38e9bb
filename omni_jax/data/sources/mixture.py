"""Several sources drawn from by weight; some of them only so many times."""

import bisect
from collections.abc import Callable, Sequence
import dataclasses
import functools
import heapq
import itertools
import math
import operator
from typing import Any, NamedTuple, SupportsIndex

from ml_collections import ConfigDict
import numpy as np

from omni_jax.errors import UserError
from omni_jax.sequence.example import Example

ENDLESS = 1 << 62
UNIT = 1_000_000  # shares are rounded to parts of it
BLOCK = 128  # draws of a schedule that are worked out at once
# Keys of config.data that a part of a mixture does not take from it: the part's own, or these.
OWN = dict(source='', sources={}, temperature=1.0, eval_file='')
UNREAD = ('budget', 'augment')  # keys that no source reads


@dataclasses.dataclass(frozen=True)
class Drawing:
  """How a source is drawn from.

  Attributes:
    weight: relative; 0 for the number of its examples.
    cap: its examples count as this many at most, where the weight is their number (Raffel et al. 2020); 0 for all.
    epochs: passes after which it is used up and the others go on; 0 for no end.
  """

  weight: float = 0.0
  cap: int = 0
  epochs: float = 0.0

  def __post_init__(self):
    if min(self.weight, self.cap, self.epochs) < 0:
      raise ValueError(
        f'weight={self.weight} cap={self.cap} epochs={self.epochs}: none is below 0'
      )


class Draw(NamedTuple):
  source: int
  number: int  # the how manieth draw from this source, from 0


class Schedule:
  """Which source is drawn from at every place of the endless order, in random access; no chance is involved.

  Stride scheduling: the draws of a source are evenly spaced in time, 1 / share apart, and the order is that of time.
  A source that is used up has no more draws, so that the others share its part as their weights say.
  """

  def __init__(self, shares: Sequence[float], uses: Sequence[int]):
    self._weights = [
      max(1, round(share * UNIT)) for share in shares
    ]  # integers: the order does not hang on rounding
    self._total, self._uses = sum(self._weights), list(uses)
    common = math.lcm(*self._weights)
    self._halves = [
      common // weight for weight in self._weights
    ]  # of the time between two draws, exact
    self._block = functools.lru_cache(maxsize=8)(self._block_from)

  def __getitem__(self, place: int) -> Draw:
    """Raises IndexError when all sources are used up."""
    if place >= sum(self._uses):
      raise IndexError(f'place {place} of {sum(self._uses)}')
    at = place % BLOCK
    return self._block(place - at)[at]

  def _block_from(self, place: int) -> list[Draw]:
    """The draws from a place on: finding the place takes as long as a hundred draws."""
    drawn = self._drawn(self._moment_before(place))
    heap = [
      ((2 * n + 1) * self._halves[k], k, n)
      for k, n in enumerate(drawn)
      if n < self._uses[k]
    ]
    heapq.heapify(heap)
    draws, earlier = [], place - sum(drawn)
    while heap and len(draws) < earlier + BLOCK:
      time, k, n = heap[0]
      draws.append(Draw(k, n))
      if n + 1 < self._uses[k]:
        heapq.heapreplace(heap, (time + 2 * self._halves[k], k, n + 1))
      else:
        heapq.heappop(heap)
    return draws[earlier:]

  def _moment_before(self, place: int) -> int:
    """The last whole moment with no more draws than `place` before it."""
    low, high = 0, 1
    while sum(self._drawn(high)) <= place:
      low, high = high, 2 * high
    while high - low > 1:
      middle = (low + high) // 2
      low, high = (middle, high) if sum(self._drawn(middle)) <= place else (low, middle)
    return low

  def _drawn(self, moment: int) -> list[int]:
    """Draws from each source up to a moment; draw n is at (n + 1/2) / share."""
    return [
      min(use, (2 * moment * weight + self._total) // (2 * self._total))
      for weight, use in zip(self._weights, self._uses, strict=True)
    ]


class Mixture(Sequence):
  """The examples of all sources, one source after another; `shares` says how often each is drawn."""

  def __init__(
    self,
    sources: dict[str, Sequence[Example]],
    drawings: dict[str, Drawing],
    temperature: float = 1.0,
  ):
    if not sources or temperature <= 0:
      raise UserError(
        f'a mixture of {len(sources)} sources at temperature {temperature}: it needs one source at '
        'least, and a temperature above 0'
      )
    self.names = tuple(sources)
    self.sources = tuple(sources.values())
    self.drawings = tuple(drawings[name] for name in sources)
    self.temperature = temperature
    self._ends = tuple(itertools.accumulate(map(len, self.sources)))

  @classmethod
  def of(cls, examples: Sequence[Example]) -> 'Mixture':
    """Itself, or a mixture of one source."""
    return (
      examples if isinstance(examples, cls) else cls({'': examples}, {'': Drawing()})
    )

  @property
  def path(self) -> str:
    """What stands for all sources in messages."""
    return ', '.join(self.names)

  @property
  def starts(self) -> tuple[int, ...]:
    """Where each source begins."""
    return (0, *self._ends[:-1])

  def shares(self) -> list[float]:
    """Of the sources, in order; they sum to 1. A temperature above 1 evens them out."""
    sizes = [
      drawing.weight or min(len(source), drawing.cap or len(source))
      for source, drawing in zip(self.sources, self.drawings, strict=True)
    ]
    scaled = np.array(sizes, np.float64) ** (1 / self.temperature)
    return (scaled / scaled.sum()).tolist()

  def uses(self) -> list[int]:
    """How many examples each source gives before it is used up."""
    return [
      max(1, round(drawing.epochs * len(source))) if drawing.epochs else ENDLESS
      for source, drawing in zip(self.sources, self.drawings, strict=True)
    ]

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: SupportsIndex) -> Example:
    k, at = self.find(index)
    example = self.sources[k][at]
    return (
      example | {'id': f'{self.names[k]}/{example.get("id", "")}'}
      if self.names[k]
      else example
    )

  def encoded(self, index: SupportsIndex) -> Example:
    """As the source's own `encoded`: nothing is decoded."""
    k, at = self.find(index)
    return self.sources[k].encoded(at)

  def find(self, index: SupportsIndex) -> tuple[int, int]:
    index = operator.index(index)
    if not 0 <= index < len(self):
      raise IndexError(f'example {index} of {len(self)}')
    k = bisect.bisect_right(self._ends, index)
    return k, index - self.starts[k]


def part_of(config: Any, name: str) -> ConfigDict:
  """Returns a part of a mixture with every key that a source reads.

  The part in `config.sources` holds only what differs: a key that it lacks is the mixture's own. A weight, a cap,
  epochs and the keys of OWN are never the mixture's.
  """
  own = OWN | dataclasses.asdict(Drawing())
  values = dict(own)
  for key in config:
    if key not in own and key not in UNREAD:
      values[key] = config[key]
  values.update(config.sources[name])
  return ConfigDict(values)


def mixture_of(config: Any, open_source: Callable[[Any], Sequence[Example]]) -> Mixture:
  """Returns the mixture of `config.sources`; `open_source(part)` opens one of them."""
  sources, drawings = {}, {}
  for name in sorted(config.sources):
    part = part_of(config, name)
    own = {field.name: part[field.name] for field in dataclasses.fields(Drawing)}
    try:
      drawings[name] = Drawing(**own)
      sources[name] = open_source(part)
    except ValueError as error:
      raise UserError(f'config.data.sources.{name}: {error}') from error
    if not len(sources[name]):
      raise UserError(f'config.data.sources.{name}: holds no examples')
  return Mixture(sources, drawings, config.temperature)
