"""Times programs in turn, each in a process of its own, so that they share the noise.

A player is a process that prints one line of JSON when it is ready. For every number on
its standard input, it then runs so many steps and prints the seconds of one.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

from omni_jax.errors import UserError


class Player:
  """A process that runs steps when it is asked to.

  Attributes:
    name: name in the results.
    ready: what it printed when it was ready.
  """

  def __init__(
    self, name: str, command: Sequence[str], variables: Mapping[str, str] = {}
  ):
    """Starts the process and waits until it is ready. Raises UserError if it ends."""
    self.name = name
    self._errors = tempfile.TemporaryFile('w+')  # noqa: SIM115  # closed by `close`
    self._process = subprocess.Popen(
      command,
      env={**os.environ, **variables},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
    )
    self.ready = self._read()

  def seconds(self, steps: int) -> float:
    """Returns the seconds of a step, after running some. Raises UserError if it ends."""
    assert self._process.stdin is not None
    self._process.stdin.write(f'{steps}\n')
    self._process.stdin.flush()
    return self._read()

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.communicate()  # closes its pipes
    self._errors.close()

  def _read(self) -> Any:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if line:
      return json.loads(line)
    code = self._process.wait()
    self._errors.seek(0)
    last = self._errors.read().strip().splitlines()[-3:]
    self.close()
    raise UserError(f'{self.name} ended with exit code {code}: {" | ".join(last)}')


class Comparison(NamedTuple):
  """The times of a player beside those of the first one.

  Attributes:
    median: median seconds of a step.
    ratio: median of the ratios to the first player's step in the same round.
    low, high: bounds of the median ratio, with a confidence of 95 %.
    seconds: seconds of a step in each round.
  """

  median: float
  ratio: float
  low: float
  high: float
  seconds: list[float]


def take_turns(
  players: Sequence[Player], *, rounds: int, steps: int
) -> dict[str, Comparison]:
  """Returns the times of players that run one after the other, round by round."""
  times: dict[str, list[float]] = {player.name: [] for player in players}
  for _ in range(rounds):
    for player in players:
      times[player.name].append(player.seconds(steps))
  first = times[players[0].name]
  return {name: compared(seconds, first) for name, seconds in times.items()}


def compared(seconds: Sequence[float], first: Sequence[float]) -> Comparison:
  """Returns the comparison of times, round by round."""
  ratios = sorted(a / b for a, b in zip(seconds, first, strict=True))
  # The order statistics around the median that a binomial puts 1.96 deviations apart.
  middle = len(ratios) / 2
  reach = 0.98 * len(ratios) ** 0.5
  low = max(0, int(middle - reach))
  high = min(len(ratios) - 1, int(middle + reach))
  return Comparison(
    median=statistics.median(seconds),
    ratio=statistics.median(ratios),
    low=ratios[low],
    high=ratios[high],
    seconds=list(seconds),
  )


def serve(ready: Any, run: Callable[[int], None]) -> None:
  """Plays: reports that it is ready, and runs steps as they are asked for.

  Args:
    ready: plain values for the results.
    run: runs so many steps and waits for the last one.
  """
  print(json.dumps(ready), flush=True)
  for line in sys.stdin:
    steps = int(line)
    start = time.perf_counter()
    run(steps)
    print(json.dumps((time.perf_counter() - start) / steps), flush=True)
