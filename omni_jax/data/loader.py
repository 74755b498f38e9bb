"""Examples -> packed batches through Grain, with an iterator state of bytes that resumes exactly.

The rows of a batch are cut into lanes, each with a packer and an even share of the order of its own. A process makes
some of the lanes: whatever the number of processes and of workers, the global batches are the same.
"""

import collections
from collections.abc import Callable, Sequence
import dataclasses
import json
import math
from typing import Any

import grain
from grain.experimental import index_shuffle, ThreadPrefetchIterDataset
import numpy as np

from omni_jax.config import LoaderConfig
from omni_jax.data.making import Here, Making, Place, Workers
from omni_jax.data.sources.mixture import Draw, ENDLESS, Mixture, Schedule
from omni_jax.errors import BadRecord, UserError
from omni_jax.sequence.example import Example
from omni_jax.sequence.pack import check_budget, concatenated, Laid, Packer
from omni_jax.types import Batch, RowBudget

WAITING = (
  24  # examples that may wait for a later batch before the present one is called full
)
DEFAULT = LoaderConfig()
BAD_SHARE = 0.01  # more bad records than this stop the run


def lanes_of(rows: int, config: LoaderConfig, count: int) -> int:
  """How many lanes the rows of a batch are cut into, where `count` processes make them.

  Raises:
    UserError: if rows do not divide by lanes, or lanes by processes.
  """
  lanes = config.lanes or count
  if rows % lanes or lanes % count:
    raise UserError(
      f'config.loader.lanes={lanes}: {rows} rows are cut into as many lanes, and the lanes '
      f'shared by {count} processes; nearest: {math.gcd(rows, lanes) // count * count or count}'
    )
  return lanes


class Shuffled:
  """A range of numbers endlessly, in every pass in a new order; Grain's shuffle, without its layers around it."""

  def __init__(self, start: int, count: int, seed: int):
    self._start, self._count = start, count
    self._seed = int(
      np.random.SeedSequence([seed, 1]).generate_state(1)[0]
    )  # as Grain derives it

  def __getitem__(self, number: int) -> int:
    turn, at = divmod(number, self._count)
    return self._start + index_shuffle(
      at, max_index=self._count - 1, seed=(self._seed + turn) % 2**32, rounds=4
    )


class Order:
  """The endless order of a mixture's examples: its shares, and in every pass over a source a new order of it.

  It depends on the seed and on the sizes and weights of the sources only.
  """

  def __init__(self, mixture: Mixture, seed: int):
    self._schedule = Schedule(mixture.shares(), mixture.uses())
    self._plain = mixture.uses() == [ENDLESS]
    self._sources = [
      Shuffled(start, len(source), seed + k)
      for k, (start, source) in enumerate(
        zip(mixture.starts, mixture.sources, strict=True)
      )
    ]

  def __getitem__(self, position: int) -> Place:
    drawn = Draw(0, position) if self._plain else self._schedule[position]
    return Place(position, self._sources[drawn.source][drawn.number])


class _Lane:
  """Batches of some rows, filled in the order of the examples; its whole state is where it stands and who waits."""

  def __init__(
    self,
    places: Callable[[int], Place],
    maker: Here | Workers,
    new_packer: Callable[[], Packer],
  ):
    self._places, self._maker, self._new_packer = places, maker, new_packer
    self.restore({'next': 0, 'waiting': [], 'bad': {}, 'such_as': {}})

  def state(self) -> dict[str, Any]:
    return {
      'next': self._next,
      'waiting': list(self._waiting),
      'bad': dict(self._bad),
      'such_as': dict(self._such_as),
    }

  def restore(self, state: dict[str, Any]) -> None:
    self._next, self._waiting = state['next'], list(state['waiting'])
    self._bad = collections.Counter(state['bad'])  # by kind of reason
    self._such_as: dict[str, str] = dict(
      state.get('such_as', {})
    )  # one of each; states of older code have none
    self._asked: dict[int, Any] = {}  # by the first index of a block
    self._made: dict[int, Laid | BadRecord] = {}
    self._laid: dict[
      int, Laid | None
    ] = {}  # of those that have been looked at and not packed

  def __next__(self) -> Batch:
    packer, waiting = self._new_packer(), []
    queue = collections.deque(self._waiting)
    while len(waiting) < WAITING:
      index = queue.popleft() if queue else self._next
      if index == self._next:
        self._next += 1
      laid = self._get(index)
      if laid is not None and not packer.add(laid):
        waiting.append(index)
        continue
      del self._laid[index]
    self._waiting = waiting + list(queue)
    return packer.batch()

  def _get(self, index: int) -> Laid | None:
    if index not in self._laid:
      if index not in self._made:
        self._make(index)
      made = self._made.pop(index)
      if isinstance(made, BadRecord):
        self._count(made)
        made = None
      self._laid[index] = made
    return self._laid[index]

  def _make(self, index: int) -> None:
    """The block of this index, and those after the next example are asked for: blocks, since asking costs time, too."""
    size, ahead = self._maker.block, self._maker.ahead
    first = index - index % size
    for start in (
      first,
      *range(self._next - self._next % size + size, self._next + size * ahead, size),
    ):
      if (
        start not in self._asked
        and start not in self._made
        and (places := self._block(start, size))
      ):
        self._asked[start] = self._maker.ask(places)
    if first not in self._asked:
      raise IndexError(f'after {index} examples')
    made = self._maker.get(self._asked.pop(first))
    if index - first >= len(made):
      raise IndexError(f'after {first + len(made)} examples')
    self._made |= {
      k: one for k, one in enumerate(made, start=first) if k >= index
    }  # earlier ones are packed by now

  def _block(self, start: int, size: int) -> list[Place]:
    """The order may end within a block, or before it."""
    places = []
    for k in range(start, start + size):
      try:
        places.append(self._places(k))
      except IndexError:
        break
    return places

  def _count(self, bad: BadRecord) -> None:
    self._bad[bad.kind] += 1
    self._such_as.setdefault(bad.kind, str(bad))
    total = sum(self._bad.values())
    if total > max(10, BAD_SHARE * self._next):
      kinds = '; '.join(
        f'{n} x {kind}'
        + (f', such as {self._such_as[kind]}' if kind in self._such_as else '')
        for kind, n in self._bad.most_common()
      )
      raise UserError(
        f'{total} of {self._next + 1} records are bad: {kinds}; mend the data'
      )


class _Lanes(grain.DatasetIterator):
  """The lanes of this process side by side."""

  def __init__(self, lanes: dict[int, _Lane]):
    super().__init__()
    self._lanes = lanes

  def __next__(self) -> Batch:
    batches = [next(lane) for lane in self._lanes.values()]
    return concatenated(batches) if len(batches) > 1 else batches[0]

  def get_state(self) -> dict[str, Any]:
    return {str(k): lane.state() for k, lane in self._lanes.items()}

  def set_state(self, state: dict[str, Any]) -> None:
    for k, lane in self._lanes.items():
      lane.restore(state[str(k)])


class _LanesDataset(grain.IterDataset):
  """What Grain's prefetching wants around an iterator."""

  def __init__(self, new_lanes: Callable[[], _Lanes]):
    super().__init__()
    self._new_lanes = new_lanes

  def __iter__(self) -> _Lanes:
    return self._new_lanes()


class Loader:
  """Endless batches of this process's rows. Same seed, same batches, wherever they are resumed.

  Args:
    making: what is made, and the seed of the order, too: each pass over the examples has an order of its own. Its
      examples have random access, as `DigitExamples`, `JsonLines`, `ArrayRecordExamples` or a `Mixture` of such.
    budget: of the global batch.
    shard: (index, count) of this process.

  Raises:
    UserError: if there is no example, or one that no row can hold.
  """

  def __init__(
    self,
    making: Making,
    budget: RowBudget,
    config: LoaderConfig = DEFAULT,
    *,
    shard: tuple[int, int] = (0, 1),
    prefetch: int = 2,
  ):
    if not len(making.examples):
      raise UserError('the data set is empty; check config.data')
    index, count = shard
    lanes = lanes_of(budget.rows, config, count)
    mixture = Mixture.of(making.examples)
    making = making._replace(examples=mixture)
    self._maker = Workers(making, config.workers) if config.workers else Here(making)
    self._order, self._lane_count, self._examples = (
      (order := Order(mixture, making.seed)),
      lanes,
      mixture,
    )
    part = dataclasses.replace(budget, rows=budget.rows // lanes)
    own = range(index * lanes // count, (index + 1) * lanes // count)

    def new_lane(lane: int) -> _Lane:
      return _Lane(
        lambda k: order[lane + k * lanes],
        self._maker,
        lambda: Packer(part, making.hosts),
      )

    check_budget(part, making.hosts)
    dataset = _LanesDataset(lambda: _Lanes({lane: new_lane(lane) for lane in own}))
    self._iterator = iter(
      ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=prefetch)
      if prefetch
      else dataset
    )
    self._strict = config.strict
    augment = making.augment or {}
    made_of = {
      'examples': {
        name: [len(source), identity_of(source)]
        for name, source in zip(mixture.names, mixture.sources, strict=True)
      },
      'shares': [round(share, 6) for share in mixture.shares()],
      'uses': mixture.uses(),
      'seed': making.seed,
      'lanes': lanes,
      'budget': dataclasses.asdict(budget),
      'tokenizer': making.hosts.tokenizer.fingerprint(),
      'augment': {name: dataclasses.asdict(change) for name, change in augment.items()},
    }
    self._made_of = json.loads(json.dumps(made_of))  # as it comes back from a state

  def __iter__(self) -> 'Loader':
    return self

  def __next__(self) -> Batch:
    try:
      return next(self._iterator)
    except IndexError as error:
      raise UserError(
        f'all sources of the mixture are used up ({error}): give one of config.data.sources no epochs, '
        'or take fewer steps'
      ) from error
    except ValueError as error:
      if isinstance(error, UserError):
        raise
      raise UserError(
        f'{error}; raise config.data.budget.length or what stands beside it'
      ) from error

  def state(self) -> bytes:
    return json.dumps(
      {'lanes': self._iterator.get_state(), 'of': self._made_of}
    ).encode()

  def restore(self, state: bytes) -> None:
    """Goes on where `state` was taken.

    Raises:
      UserError: if the data are others, with what differs.
    """
    saved = json.loads(state)
    differ = [
      f'{name} was {saved["of"].get(name)}, is {value}'
      for name, value in self._made_of.items()
      if saved['of'].get(name) != value
    ]
    if differ and self._strict:
      raise UserError(
        f'the data are not those of the checkpoint: {"; ".join(differ)}; take a new --workdir, or '
        '--config.loader.strict=False to go on all the same'
      )
    missing = self._iterator.get_state().keys() - saved['lanes'].keys()
    if missing:
      raise UserError(
        f'the checkpoint has lanes {sorted(saved["lanes"])} of the data, not {sorted(missing)}: '
        'config.loader.lanes was another'
      )
    self._iterator.set_state(saved['lanes'])

  def ids(self, before: bytes, after: bytes) -> list[str]:
    """Names of this process's examples that were packed between two states; of one that has none, its number."""
    old, new, names = json.loads(before)['lanes'], json.loads(after)['lanes'], []
    for lane in old:
      taken = {*old[lane]['waiting'], *range(old[lane]['next'], new[lane]['next'])} - {
        *new[lane]['waiting']
      }
      for k in sorted(taken):
        example = self._order[int(lane) + k * self._lane_count].example
        try:
          names.append(str(self._examples[example].get('id') or example))
        except BadRecord as bad:  # it was left out
          names.append(str(bad))
    return names

  @staticmethod
  def merged(states: Sequence[bytes]) -> bytes:
    """The state of all processes from those of each: `restore` takes it in any number of processes."""
    parts = [json.loads(state) for state in states]
    return json.dumps(
      parts[0]
      | {'lanes': {k: lane for part in parts for k, lane in part['lanes'].items()}}
    ).encode()

  def close(self) -> None:
    self._iterator.close()
    self._maker.close()


def identity_of(source: Sequence[Example]) -> str:
  """A digest that changes when a source's records do, as far as it can tell: sources may have an `identity`."""
  return source.identity() if hasattr(source, 'identity') else ''
