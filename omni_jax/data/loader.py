"""Examples -> packed batches through Grain, with an iterator state of bytes that resumes exactly."""

import collections
from collections.abc import Callable, Sequence
import json
from typing import Any

import grain
from grain.experimental import ThreadPrefetchIterDataset
import numpy as np

from omni_jax.data.augment import Augment
from omni_jax.data.interleave import Example, interleave
from omni_jax.data.media import BadRecord
from omni_jax.data.pack import Laid, lay_out, Packer
from omni_jax.errors import UserError
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.types import Batch, MediaConfig, RowBudget

WAITING = 16  # examples that may wait for a later batch before the present one is called full
BAD_SHARE = 0.01  # more bad records than this stop the run


class _PackIterator(grain.DatasetIterator):
  """Fills a batch in the order of the examples; its whole state is where it stands and who waits."""

  def __init__(self, examples: grain.MapDataset, new_packer: Callable[[], Packer]):
    super().__init__()
    self._examples, self._new_packer = examples, new_packer
    self._next, self._waiting, self._bad = 0, [], collections.Counter()
    self._laid: dict[int, Laid | None] = {}

  def _get(self, index: int) -> Laid | None:
    if index not in self._laid:
      made = self._examples[index]
      if isinstance(made, BadRecord):
        self._count(made)
        made = None
      self._laid[index] = made
    return self._laid[index]

  def _count(self, bad: BadRecord) -> None:
    self._bad[bad.reason] += 1
    total = sum(self._bad.values())
    if total > max(10, BAD_SHARE * self._next):
      reasons = ', '.join(f'{reason}: {n}' for reason, n in self._bad.most_common())
      raise UserError(f'{total} of {self._next + 1} records are bad ({reasons}), last {bad}; mend the data')

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

  def get_state(self) -> dict[str, Any]:
    return {'next': self._next, 'waiting': list(self._waiting), 'bad': dict(self._bad)}

  def set_state(self, state: dict[str, Any]) -> None:
    self._next, self._waiting = state['next'], list(state['waiting'])
    self._bad, self._laid = collections.Counter(state['bad']), {}


class _PackDataset(grain.IterDataset):
  def __init__(self, examples: grain.MapDataset, new_packer: Callable[[], Packer]):
    super().__init__()
    self._examples, self._new_packer = examples, new_packer

  def __iter__(self) -> _PackIterator:
    return _PackIterator(self._examples, self._new_packer)


def prepare(example: Example, tokenizer: Tokenizer, media: MediaConfig) -> Laid:
  """An example with decoded media -> its positions."""
  return lay_out(interleave(example, tokenizer), tokenizer, media, str(example.get('id', '')))


class Loader:
  """Endless batches of this process's rows. Same seed, same batches, wherever they are resumed.

  Args:
    examples: random access, as `DigitExamples`, `JsonLines` or `ArrayRecordExamples`.
    seed: of the order and of the augmentation; each pass over the examples has an order of its own.
    augment: changes what is only read.
    shard: (index, count) of this process.

  Raises:
    UserError: if there is no example, or one that no row can hold.
  """

  def __init__(self, examples: Sequence[Example], tokenizer: Tokenizer, media: MediaConfig, budget: RowBudget, *,
               seed: int, augment: Augment | None = None, shard: tuple[int, int] = (0, 1), prefetch: int = 2):
    if not len(examples):
      raise UserError('the data set is empty; check config.data')

    def made(index: int, rng: np.random.Generator) -> Laid | BadRecord:
      try:
        example = examples[index]
        if augment:
          example = augment(example, rng, rate=media.audio.rate, limit=media.audio.samples)
        return prepare(example, tokenizer, media)
      except BadRecord as bad:  # raised out of Grain's workers it would end the stream
        return bad

    # Grain's generator is one of its place in the endless order: another one in every pass, the same after a restart.
    order = grain.MapDataset.range(len(examples)).seed(seed).shuffle().repeat().random_map(made)
    dataset = _PackDataset(order[shard[0]::shard[1]], lambda: Packer(budget, media))
    if prefetch:
      dataset = ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=prefetch)
    self._iterator = iter(dataset)

  def __iter__(self) -> 'Loader':
    return self

  def __next__(self) -> Batch:
    try:
      return next(self._iterator)
    except ValueError as error:
      if isinstance(error, UserError):
        raise
      raise UserError(f'{error}; raise config.data.budget.length or what stands beside it') from error

  def state(self) -> bytes:
    return json.dumps(self._iterator.get_state()).encode()

  def restore(self, state: bytes) -> None:
    self._iterator.set_state(json.loads(state))

  def close(self) -> None:
    self._iterator.close()
