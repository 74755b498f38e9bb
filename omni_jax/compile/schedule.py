"""Estimates how long a scheduled program takes, from the events of its schedule."""

from collections.abc import Callable
from typing import NamedTuple


class Work(NamedTuple):
  """An instruction that the core executes.

  Attributes:
    name: name of the instruction.
    times: how often it runs in one run of the program.
    flops: FLOPs of running it once.
    bytes: bytes of main memory that are read and written by running it once.
    source: where in the program it comes from, as JAX's path of names.
  """

  name: str
  times: int
  flops: float
  bytes: float
  source: str


class Transfer(NamedTuple):
  """A collective.

  Attributes:
    name: name of the instruction.
    kind: opcode, without -start.
    times: how often it runs in one run of the program.
    payload: bytes that one device contributes each time.
    groups: XLA's text of the groups of devices, or `collectives.SLICES`.
    source: where in the program it comes from, as JAX's path of names.
    wait_name: name of the Wait that ends it; '' if the core stops until it is done.
  """

  name: str
  kind: str
  times: int
  payload: float
  groups: str
  source: str
  wait_name: str


class Wait(NamedTuple):
  """A point at which the core waits until the transfer of this name is done."""

  name: str


class Loop(NamedTuple):
  """A loop.

  Attributes:
    count: number of iterations.
    body: schedule of one iteration, of Work, Transfer, Wait and Loop.
  """

  count: int  # type: ignore[assignment]  # hides tuple.count
  body: list


def scheduled_seconds(
  order: list,
  core_seconds: Callable[[Work], float],
  network_seconds: Callable[[Transfer], tuple[str, float]],
) -> float:
  """Returns the seconds that a schedule takes.

  Each network carries out one transfer at a time. An iteration of a loop ends when its
  last transfer is done.

  Args:
    order: Work, Transfer, Wait and Loop in the order of the schedule.
    core_seconds: returns the seconds of running an instruction once.
    network_seconds: returns the network of a transfer and the seconds of one time.
  """
  now = 0.0
  busy_until: dict[str, float] = {}
  done_at: dict[str, float] = {}
  for event in order:
    if isinstance(event, Work):
      now += core_seconds(event)
    elif isinstance(event, Loop):
      iteration = scheduled_seconds(event.body, core_seconds, network_seconds)
      now += event.count * iteration
    elif isinstance(event, Wait):
      now = max(now, done_at.pop(event.name, 0.0))
    else:
      network, seconds = network_seconds(event)
      busy_until[network] = max(now, busy_until.get(network, 0.0)) + seconds
      if event.wait_name:
        done_at[event.wait_name] = busy_until[network]
      else:
        now = busy_until[network]
  return max(now, *done_at.values(), 0.0)
