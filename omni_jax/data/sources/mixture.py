"""Mixes several sources by weight; a source may have a limited number of epochs."""

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

ENDLESS = 1 << 62  # number of draws from a source without a limit
UNIT = 1_000_000  # shares are rounded to multiples of 1 / UNIT
BLOCK = 128  # draws of a schedule that are computed at once
BLOCKS = 8  # blocks of draws that are kept
# Keys of config.data that a part never inherits from its mixture, and their defaults.
OWN = dict(source='', sources={}, temperature=1.0, eval_file='')
UNREAD = ('budget', 'augment')  # keys that no source reads


@dataclasses.dataclass(frozen=True)
class Drawing:
  """The weight and the limits of a source in a mixture.

  Attributes:
    weight: weight relative to the other sources; 0 for the number of its examples.
    cap: upper limit of the weight where it is the number of examples (Raffel et al.
      2020); 0 for no limit.
    epochs: epochs after which the source is used up and only the others are drawn; 0
      for no limit.
  """

  weight: float = 0.0
  cap: int = 0
  epochs: float = 0.0

  def __post_init__(self):
    if min(self.weight, self.cap, self.epochs) < 0:
      raise ValueError(
        f'weight={self.weight} cap={self.cap} epochs={self.epochs}: none may be below 0'
      )


class Draw(NamedTuple):
  """One draw of a schedule.

  Attributes:
    source: index of the source.
    number: number of earlier draws from this source.
  """

  source: int
  number: int


class Schedule:
  """The endless sequence of draws from several sources, with random access.

  This is stride scheduling, without randomness. The draws of a source are evenly spaced
  in time, 1 / share apart, and the sequence is in the order of time. A source that is
  used up has no more draws, so that the others divide its share by their weights.

  Args:
    shares: share of each source.
    uses: number of draws after which each source is used up.
  """

  def __init__(self, shares: Sequence[float], uses: Sequence[int]):
    # Integers, so that the order does not depend on rounding.
    self._weights = [max(1, round(share * UNIT)) for share in shares]
    self._total = sum(self._weights)
    self._uses = list(uses)
    common = math.lcm(*self._weights)
    # Half of the time between two draws of each source, exact.
    self._halves = [common // weight for weight in self._weights]
    self._block = functools.lru_cache(maxsize=BLOCKS)(self._block_from)

  def __getitem__(self, place: int) -> Draw:
    """Returns the draw at a place. Raises IndexError when all sources are used up."""
    if place >= sum(self._uses):
      raise IndexError(f'place {place} of {sum(self._uses)}')
    offset = place % BLOCK
    return self._block(place - offset)[offset]

  def _block_from(self, place: int) -> list[Draw]:
    """Returns the next BLOCK draws from a place on, fewer where the schedule ends.

    Finding the place takes as long as a hundred draws.
    """
    counts = self._draw_counts(self._moment_before(place))
    heap: list[tuple[int, int, int]] = []  # (time, source, number) of the next draws
    for source, number in enumerate(counts):
      if number < self._uses[source]:
        time = (2 * number + 1) * self._halves[source]
        heap.append((time, source, number))
    heapq.heapify(heap)
    earlier = place - sum(counts)
    draws: list[Draw] = []
    while heap and len(draws) < earlier + BLOCK:
      time, source, number = heap[0]
      draws.append(Draw(source, number))
      if number + 1 < self._uses[source]:
        later = time + 2 * self._halves[source]
        heapq.heapreplace(heap, (later, source, number + 1))
      else:
        heapq.heappop(heap)
    return draws[earlier:]

  def _moment_before(self, place: int) -> int:
    """Returns the last integer moment with at most `place` draws before it."""
    low = 0
    high = 1
    while sum(self._draw_counts(high)) <= place:
      low = high
      high *= 2
    while high - low > 1:
      middle = (low + high) // 2
      if sum(self._draw_counts(middle)) <= place:
        low = middle
      else:
        high = middle
    return low

  def _draw_counts(self, moment: int) -> list[int]:
    """Returns the number of draws from each source up to a moment.

    Draw n of a source is at the moment (n + 1/2) / share.
    """
    counts: list[int] = []
    for weight, use in zip(self._weights, self._uses, strict=True):
      count = (2 * moment * weight + self._total) // (2 * self._total)
      counts.append(min(use, count))
    return counts


class Mixture(Sequence):
  """The examples of several sources, one source after another, with random access.

  Args:
    sources: examples of each source, by name.
    drawings: weight and limits of each source, by name.
    temperature: above 1 it evens out the shares.

  Raises:
    UserError: if there is no source, or the temperature is not above 0.
  """

  def __init__(
    self,
    sources: dict[str, Sequence[Example]],
    drawings: dict[str, Drawing],
    temperature: float = 1.0,
  ):
    if not sources or temperature <= 0:
      raise UserError(
        'a mixture needs at least one source and a temperature above 0: '
        f'config.data.sources has {len(sources)} sources, config.data.temperature='
        f'{temperature}'
      )
    self.names = tuple(sources)
    self.sources = tuple(sources.values())
    self.drawings = tuple(drawings[name] for name in sources)
    self.temperature = temperature
    sizes = [len(source) for source in self.sources]
    self._ends = tuple(itertools.accumulate(sizes))

  @classmethod
  def of(cls, examples: Sequence[Example]) -> 'Mixture':
    """Returns the examples if they are a mixture, else a mixture of this one source."""
    if isinstance(examples, cls):
      return examples
    return cls({'': examples}, {'': Drawing()})

  @property
  def path(self) -> str:
    """Name of the data in messages: the names of all sources."""
    return ', '.join(self.names)

  @property
  def starts(self) -> tuple[int, ...]:
    """Index of the first example of each source."""
    return (0, *self._ends[:-1])

  def shares(self) -> list[float]:
    """Returns the shares of the sources, in their order; they sum to 1."""
    weights: list[float] = []
    for source, drawing in zip(self.sources, self.drawings, strict=True):
      size = len(source)
      weights.append(drawing.weight or min(size, drawing.cap or size))
    scaled = np.array(weights, np.float64) ** (1 / self.temperature)
    return (scaled / scaled.sum()).tolist()

  def uses(self) -> list[int]:
    """Returns how many draws use up each source."""
    uses: list[int] = []
    for source, drawing in zip(self.sources, self.drawings, strict=True):
      limit = max(1, round(drawing.epochs * len(source)))
      uses.append(limit if drawing.epochs else ENDLESS)
    return uses

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: SupportsIndex) -> Example:  # type: ignore[override]  # no slices
    source, position = self.find(index)
    example = self.sources[source][position]
    name = self.names[source]
    if not name:
      return example
    return {**example, 'id': f'{name}/{example.get("id", "")}'}

  def encoded(self, index: SupportsIndex) -> Example:
    """Returns an example as its source's `encoded` does: nothing is decoded."""
    source, position = self.find(index)
    stored: Any = self.sources[source]
    return stored.encoded(position)

  def find(self, index: SupportsIndex) -> tuple[int, int]:
    """Returns the number of the source of an example, and its index in the source.

    Raises:
      IndexError: if there is no such example.
    """
    index = operator.index(index)
    if not 0 <= index < len(self):
      raise IndexError(f'example {index} of {len(self)}')
    source = bisect.bisect_right(self._ends, index)
    return source, index - self.starts[source]


def part_of(config: ConfigDict, name: str) -> ConfigDict:
  """Returns a part of a mixture with every key that a source reads.

  The part in `config.sources` holds only what differs; it inherits all other keys from
  the mixture, except weight, cap, epochs and the keys of OWN.
  """
  own = OWN | dataclasses.asdict(Drawing())
  values: dict[str, Any] = dict(own)
  for key in config:
    if key not in own and key not in UNREAD:
      values[key] = config[key]
  values.update(config.sources[name])
  return ConfigDict(values)


def mixture_of(
  config: ConfigDict, open_source: Callable[[ConfigDict], Sequence[Example]]
) -> Mixture:
  """Returns the mixture of `config.sources`.

  Args:
    config: `config.data`.
    open_source: opens the examples of a part, given by its config.

  Raises:
    UserError: if a part cannot be used; it is named.
  """
  sources: dict[str, Sequence[Example]] = {}
  drawings: dict[str, Drawing] = {}
  fields = [field.name for field in dataclasses.fields(Drawing)]
  for name in sorted(config.sources):
    part = part_of(config, name)
    drawing = {field: part[field] for field in fields}
    try:
      drawings[name] = Drawing(**drawing)
      sources[name] = open_source(part)
    except ValueError as error:
      raise UserError(f'config.data.sources.{name}: {error}') from error
    if not len(sources[name]):
      raise UserError(f'config.data.sources.{name} holds no examples')
  return Mixture(sources, drawings, config.temperature)
