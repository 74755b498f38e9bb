"""Loads examples in packed batches through Grain, and resumes exactly.

The rows of a batch are cut into lanes. Each lane has a packer of its own and takes
every N-th example of the order, where N is the number of lanes. A process fills some of
the lanes, so the global batches are the same for any number of processes and workers.
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
from omni_jax.data.example_maker import ExampleMaker, InProcess, Place, Workers
from omni_jax.data.sources.mixture import Draw, ENDLESS, Mixture, Schedule
from omni_jax.errors import BadRecord, UserError
from omni_jax.sequence.example import Example
from omni_jax.sequence.pack import check_budget, concatenated, LaidOut, Packer
from omni_jax.types import Batch, RowBudget

# Number of examples that may wait for a later batch before the current one is full.
WAITING = 24
DEFAULT = LoaderConfig()
BAD_SHARE = 0.01  # a larger share of bad records stops the run
FEW_BAD = 10  # so many bad records never stop it


def lanes_of(rows: int, config: LoaderConfig, count: int) -> int:
  """Returns the number of lanes that the rows of a batch are cut into.

  Args:
    rows: number of rows of the global batch.
    config: its `lanes` is the number of lanes; 0 means one lane per process.
    count: number of processes that share the lanes.

  Raises:
    UserError: if the lanes do not divide the rows, or the processes the lanes.
  """
  lanes = config.lanes or count
  if rows % lanes or lanes % count:
    nearest = math.gcd(rows, lanes) // count * count or count
    raise UserError(
      f'config.loader.lanes={lanes} must divide the {rows} rows of a batch and be a '
      f'multiple of the number of processes, {count}; nearest: {nearest}'
    )
  return lanes


class ShuffledRange:
  """An endless sequence over a range of numbers, in a new order in every epoch.

  It gives the order of Grain's shuffle without the layers that Grain puts around it.
  """

  def __init__(self, start: int, count: int, seed: int):
    self._start = start
    self._count = count
    # Grain derives the seed of its shuffle in the same way.
    sequence = np.random.SeedSequence([seed, 1])
    self._seed = int(sequence.generate_state(1)[0])

  def __getitem__(self, number: int) -> int:
    epoch, index = divmod(number, self._count)
    seed = (self._seed + epoch) % 2**32
    shuffled = index_shuffle(index, max_index=self._count - 1, seed=seed, rounds=4)
    return self._start + shuffled


class Order:
  """The endless order of a mixture's examples.

  Sources are drawn by their shares, and each epoch of a source has a new order. It
  depends only on the seed and on the sizes and weights of the sources.
  """

  def __init__(self, mixture: Mixture, seed: int):
    self._schedule = Schedule(mixture.shares(), mixture.uses())
    self._single = mixture.uses() == [ENDLESS]
    self._sources: list[ShuffledRange] = []
    for start, source in zip(mixture.starts, mixture.sources, strict=True):
      source_seed = seed + len(self._sources)
      self._sources.append(ShuffledRange(start, len(source), source_seed))

  def __getitem__(self, position: int) -> Place:
    draw = Draw(0, position) if self._single else self._schedule[position]
    return Place(position, self._sources[draw.source][draw.number])


class _Lane:
  """An iterator over batches of some rows, filled in the order of the examples.

  Args:
    place_of: returns the place of the lane's k-th example; IndexError after the last.
    preparer: prepares examples, in this process or in workers.
    new_packer: returns an empty packer of the lane's rows.
  """

  def __init__(
    self,
    place_of: Callable[[int], Place],
    preparer: InProcess | Workers,
    new_packer: Callable[[], Packer],
  ):
    self._place_of = place_of
    self._preparer = preparer
    self._new_packer = new_packer
    self.restore({'next': 0, 'waiting': [], 'bad': {}, 'such_as': {}})

  def state(self) -> dict[str, Any]:
    return {
      'next': self._next,
      'waiting': list(self._waiting),
      'bad': dict(self._bad),
      'such_as': dict(self._first_bad),
    }

  def restore(self, state: dict[str, Any]) -> None:
    self._next: int = state['next']
    self._waiting: list[int] = list(state['waiting'])
    self._bad = collections.Counter(state['bad'])  # by kind of reason
    # The first message of each kind; states of older versions have none.
    self._first_bad: dict[str, str] = dict(state.get('such_as', {}))
    self._requests: dict[int, Any] = {}  # by the first index of a block
    self._results: dict[int, LaidOut | BadRecord] = {}
    # Examples that were fetched and are not packed yet; None for bad records.
    self._laid: dict[int, LaidOut | None] = {}

  def __next__(self) -> Batch:
    packer = self._new_packer()
    waiting: list[int] = []
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

  def _get(self, index: int) -> LaidOut | None:
    """Returns an example, or None for a bad record, which is counted."""
    if index in self._laid:
      return self._laid[index]
    if index not in self._results:
      self._fetch(index)
    result = self._results.pop(index)
    laid = None if isinstance(result, BadRecord) else result
    if isinstance(result, BadRecord):
      self._count(result)
    self._laid[index] = laid
    return laid

  def _fetch(self, index: int) -> None:
    """Gets the results of an index's block, and requests the blocks that come next.

    Examples are requested in blocks, since each request takes time.

    Raises:
      IndexError: if the order ends before the index.
    """
    size = self._preparer.block
    first = index - index % size
    next_block = self._next - self._next % size + size
    self._request(first)
    for start in range(next_block, self._next + size * self._preparer.ahead, size):
      self._request(start)
    if first not in self._requests:
      raise IndexError(f'after {index} examples')
    results = self._preparer.result(self._requests.pop(first))
    if index - first >= len(results):
      raise IndexError(f'after {first + len(results)} examples')
    # Those before the index are packed already.
    for k in range(index, first + len(results)):
      self._results[k] = results[k - first]

  def _request(self, start: int) -> None:
    """Requests the block that begins at an index, unless it is requested or empty."""
    if start in self._requests or start in self._results:
      return
    places = self._places(start, self._preparer.block)
    if places:
      self._requests[start] = self._preparer.submit(places)

  def _places(self, start: int, size: int) -> list[Place]:
    """Returns the places of a block; fewer, or none, where the order ends."""
    places = []
    for k in range(start, start + size):
      try:
        places.append(self._place_of(k))
      except IndexError:
        break
    return places

  def _count(self, bad: BadRecord) -> None:
    """Counts a bad record.

    Raises:
      UserError: if there are too many of them.
    """
    self._bad[bad.kind] += 1
    self._first_bad.setdefault(bad.kind, str(bad))
    total = sum(self._bad.values())
    if total <= max(FEW_BAD, BAD_SHARE * self._next):
      return
    kinds = []
    for kind, count in self._bad.most_common():
      text = f'{count} x {kind}'
      if kind in self._first_bad:
        text += f', such as {self._first_bad[kind]}'
      kinds.append(text)
    reasons = '; '.join(kinds)
    raise UserError(
      f'{total} of {self._next + 1} records are bad: {reasons}; fix the data'
    )


class _Lanes(grain.DatasetIterator):
  """An iterator over the batches of this process: those of its lanes, concatenated."""

  def __init__(self, lanes: dict[int, _Lane]):
    super().__init__()
    self._lanes = lanes

  def __next__(self) -> Batch:
    batches = [next(lane) for lane in self._lanes.values()]
    return concatenated(batches) if len(batches) > 1 else batches[0]

  def get_state(self) -> dict[str, Any]:
    return {str(number): lane.state() for number, lane in self._lanes.items()}

  def set_state(self, state: dict[str, Any]) -> None:
    for number, lane in self._lanes.items():
      lane.restore(state[str(number)])


class _LanesDataset(grain.IterDataset):
  """The data set that Grain's prefetching needs around the iterator."""

  def __init__(self, new_lanes: Callable[[], _Lanes]):
    super().__init__()
    self._new_lanes = new_lanes

  def __iter__(self) -> _Lanes:
    return self._new_lanes()


class Loader:
  """An endless iterator over batches of this process's rows.

  The same seed gives the same batches, wherever the loader is resumed.

  Args:
    maker: the examples and how they are prepared; its seed also decides the order,
      which differs between epochs. The examples have random access, as `JsonLines`,
      `ArrayRecordExamples` or a `Mixture` of such sources do.
    budget: budget of the global batch.
    config: numbers of lanes and workers.
    shard: (index, count) of this process.
    prefetch: number of batches to prepare ahead, in a thread; 0 for none.

  Raises:
    UserError: if there is no example, or one that no row can hold.
  """

  def __init__(
    self,
    maker: ExampleMaker,
    budget: RowBudget,
    config: LoaderConfig = DEFAULT,
    *,
    shard: tuple[int, int] = (0, 1),
    prefetch: int = 2,
  ):
    if not len(maker.examples):
      raise UserError('the data set is empty; check config.data')
    index, count = shard
    lanes = lanes_of(budget.rows, config, count)
    mixture = Mixture.of(maker.examples)
    maker = maker._replace(examples=mixture)
    order = Order(mixture, maker.seed)
    if config.workers:
      preparer: InProcess | Workers = Workers(maker, config.workers)
    else:
      preparer = InProcess(maker)
    lane_budget = dataclasses.replace(budget, rows=budget.rows // lanes)
    own_lanes = range(index * lanes // count, (index + 1) * lanes // count)

    def new_packer() -> Packer:
      return Packer(lane_budget, maker.hosts)

    def new_lane(lane: int) -> _Lane:
      return _Lane(lambda k: order[lane + k * lanes], preparer, new_packer)

    def new_lanes() -> _Lanes:
      return _Lanes({lane: new_lane(lane) for lane in own_lanes})

    check_budget(lane_budget, maker.hosts)
    dataset = _LanesDataset(new_lanes)
    if prefetch:
      dataset = ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=prefetch)
    self._iterator = iter(dataset)
    self._preparer = preparer
    self._order = order
    self._lane_count = lanes
    self._examples = mixture
    self._strict = config.strict
    self._facts = _facts(maker, mixture, budget, lanes)

  def __iter__(self) -> 'Loader':
    return self

  def __next__(self) -> Batch:
    try:
      return next(self._iterator)
    except IndexError as error:
      raise UserError(
        f'all sources of the mixture are used up ({error}): set epochs=0 (no limit) '
        'for one of config.data.sources, or train for fewer steps'
      ) from error
    except ValueError as error:
      if isinstance(error, UserError):
        raise
      raise UserError(
        f'{error}; raise config.data.budget.length or config.data.budget.streams'
      ) from error

  def state(self) -> bytes:
    """Returns the iterator state of this process; `merged` joins several."""
    state = {'lanes': self._iterator.get_state(), 'of': self._facts}
    return json.dumps(state).encode()

  def restore(self, state: bytes) -> None:
    """Continues where `state` was taken.

    Raises:
      UserError: if the data do not match the state; it names the differences.
    """
    saved = json.loads(state)
    differences = []
    for name, value in self._facts.items():
      before = saved['of'].get(name)
      if before != value:
        differences.append(f'{name} was {before} and is now {value}')
    if differences and self._strict:
      raise UserError(
        f'the data do not match the checkpoint: {"; ".join(differences)}; start in a '
        'new --workdir, or continue anyway with --config.loader.strict=False'
      )
    missing = self._iterator.get_state().keys() - saved['lanes'].keys()
    if missing:
      raise UserError(
        f'the checkpoint has the lanes {sorted(saved["lanes"])} of the data, but not '
        f'{sorted(missing)}: set config.loader.lanes to its earlier value'
      )
    self._iterator.set_state(saved['lanes'])

  def ids(self, before: bytes, after: bytes) -> list[str]:
    """Returns the ids of this process's examples that were packed between two states.

    An example without an id is named by its index, a bad record by its message.
    """
    old_lanes = json.loads(before)['lanes']
    new_lanes = json.loads(after)['lanes']
    names = []
    for lane, old in old_lanes.items():
      new = new_lanes[lane]
      packed = set(old['waiting'])
      packed.update(range(old['next'], new['next']))
      packed -= set(new['waiting'])
      for k in sorted(packed):
        example = self._order[int(lane) + k * self._lane_count].example
        try:
          names.append(str(self._examples[example].get('id') or example))
        except BadRecord as error:  # it was left out
          names.append(str(error))
    return names

  @staticmethod
  def merged(states: Sequence[bytes]) -> bytes:
    """Returns the state of all processes from the states of each.

    `restore` takes it in any number of processes.
    """
    merged = json.loads(states[0])
    for state in states[1:]:
      merged['lanes'].update(json.loads(state)['lanes'])
    return json.dumps(merged).encode()

  @staticmethod
  def examples_before(state: bytes) -> int:
    """Returns the number of examples used up to a merged state, bad ones included."""
    lanes = json.loads(state)['lanes'].values()
    return sum(lane['next'] - len(lane['waiting']) for lane in lanes)

  def close(self) -> None:
    """Ends the prefetching thread and the workers."""
    self._iterator.close()
    self._preparer.close()


def _facts(
  maker: ExampleMaker, mixture: Mixture, budget: RowBudget, lanes: int
) -> dict[str, Any]:
  """Returns everything that the batches depend on, as it comes back from a state."""
  sources = {}
  for name, source in zip(mixture.names, mixture.sources, strict=True):
    sources[name] = [len(source), identity_of(source)]
  augment = maker.augment or {}
  facts = {
    'examples': sources,
    'shares': [round(share, 6) for share in mixture.shares()],
    'uses': mixture.uses(),
    'seed': maker.seed,
    'lanes': lanes,
    'budget': dataclasses.asdict(budget),
    'tokenizer': maker.hosts.tokenizer.fingerprint(),
    'augment': {name: dataclasses.asdict(value) for name, value in augment.items()},
  }
  return json.loads(json.dumps(facts))


def identity_of(source: Sequence[Example]) -> str:
  """Returns a digest that changes when a source's records change; '' if it has none.

  A source may have a method `identity` that returns it.
  """
  return source.identity() if hasattr(source, 'identity') else ''
