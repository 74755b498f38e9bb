"""What a program does in the order of its schedule, and how long that takes."""

from collections.abc import Callable
from typing import NamedTuple


class Work(NamedTuple):
  """An instruction that the core executes.

  Attributes:
    times: how often in a run.
    flops, bytes: of one time; bytes of main memory, read and written.
    source: where in the program it comes from (jax's path of names).
  """

  name: str
  times: int
  flops: float
  bytes: float
  source: str


class Transfer(NamedTuple):
  """A collective.

  Attributes:
    kind: opcode, without -start.
    payload: bytes that one device puts in.
    groups: XLA's words for who takes part, or `collectives.SLICES`.
    awaited: name of the Wait that ends it; '' if the core stops until it is done.
  """

  name: str
  kind: str
  times: int
  payload: float
  groups: str
  source: str
  awaited: str


class Wait(NamedTuple):
  """The core goes on when the transfer of this name is done."""

  name: str


class Loop(NamedTuple):
  """A loop and the schedule of its body."""

  count: int
  body: list


def scheduled_seconds(
  order: list,
  core_seconds: Callable[[Work], float],
  network_seconds: Callable[[Transfer], tuple[str, float]],
) -> float:
  """Returns the seconds that a schedule takes.

  Each network does one transfer after the other; an iteration of a loop ends when all
  is done.

  Args:
    order: Work, Transfer, Wait and Loop as they are scheduled.
    core_seconds: gives the seconds of an instruction.
    network_seconds: gives the network of a transfer and its seconds.
  """
  now = 0.0
  busy_until: dict[str, float] = {}
  done_at: dict[str, float] = {}
  for event in order:
    if isinstance(event, Work):
      now += core_seconds(event)
    elif isinstance(event, Loop):
      body = scheduled_seconds(event.body, core_seconds, network_seconds)
      now += event.count * body
    elif isinstance(event, Wait):
      now = max(now, done_at.pop(event.name, 0.0))
    else:
      network, seconds = network_seconds(event)
      busy_until[network] = max(now, busy_until.get(network, 0.0)) + seconds
      if event.awaited:
        done_at[event.awaited] = busy_until[network]
      else:
        now = busy_until[network]
  return max(now, *done_at.values(), 0.0)
