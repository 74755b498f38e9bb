"""Measures the cost of verified checkpoints.

  python -m omni_jax.bench.checkpoint [--gb=1 --rounds=7 --folder=DIR]

Our checkpoints and Orbax's own manager, which verifies nothing, write and read the same
arrays in turn. It prints the medians of wall-clock and CPU seconds and their ratios;
wall-clock times say little on a busy machine.
"""

import argparse
from collections.abc import Callable
import shutil
import statistics
import tempfile
import time
from typing import Any

from absl import logging
from etils import epath

# Wall-clock and CPU seconds of every call, by the name of what was timed.
Seconds = dict[str, list[tuple[float, float]]]


def _time(seconds: Seconds, name: str, function: Callable[[], Any]) -> Any:
  """Returns the result of a function, and appends the seconds that it took."""
  wall_start = time.perf_counter()
  cpu_start = time.process_time()
  result = function()
  wall = time.perf_counter() - wall_start
  cpu = time.process_time() - cpu_start
  seconds.setdefault(name, []).append((wall, cpu))
  return result


def _state(gigabytes: float) -> Any:
  """Returns a TrainState with float32 parameters of about this size."""
  import jax
  import jax.numpy as jnp

  from omni_jax.checkpoint.train_state import TrainState

  side = 4096
  matrix_bytes = 4 * side**2
  count = max(1, round(gigabytes * 2**30 / matrix_bytes))
  params = {}
  for k in range(count):
    params[f'w{k}'] = jax.random.normal(jax.random.key(k), (side, side))
  return TrainState(
    params=jax.block_until_ready(params),
    buffers={},
    opt_state={},
    step=jnp.int32(1),
    rng=jax.random.key_data(jax.random.key(0)),
  )


def _run_ours(folder: str, state: Any, like: Any, seconds: Seconds) -> None:
  """Saves and restores a state with our checkpoints."""
  from omni_jax.checkpoint.checkpoints import Checkpoints

  with Checkpoints(folder, 'omni') as checkpoints:

    def save():
      start = lambda: checkpoints.save(state, b'{}')
      _time(seconds, 'ours: blocking part of a save', start)
      checkpoints.latest()  # waits until everything is written

    _time(seconds, 'ours: save', save)
    _time(seconds, 'ours: restore', lambda: checkpoints.restore(like))


def _run_orbax(folder: str, state: Any, like: Any, seconds: Seconds) -> None:
  """Saves and restores a state with the manager of Orbax."""
  import orbax.checkpoint as ocp

  save_args = ocp.args.Composite(
    model=ocp.args.StandardSave({'params': state.params}),
    train=ocp.args.StandardSave({'step': state.step, 'rng': state.rng}),
    iterator=ocp.args.JsonSave({}),
  )
  restore_args = ocp.args.Composite(
    model=ocp.args.StandardRestore({'params': like.params}),
    iterator=ocp.args.JsonRestore(),
    train=ocp.args.StandardRestore({'step': like.step, 'rng': like.rng}),
  )
  with ocp.CheckpointManager(epath.Path(folder).absolute()) as manager:

    def save():
      start = lambda: manager.save(1, args=save_args)
      _time(seconds, 'orbax: blocking part of a save', start)
      manager.wait_until_finished()

    _time(seconds, 'orbax: save', save)
    restore = lambda: manager.restore(1, args=restore_args)
    _time(seconds, 'orbax: restore', restore)


def main() -> None:
  parser = argparse.ArgumentParser(
    prog='python -m omni_jax.bench.checkpoint', description=__doc__, allow_abbrev=False
  )
  parser.add_argument('--gb', type=float, default=1.0, help='GB of parameters')
  parser.add_argument('--rounds', type=int, default=7, help='number of rounds to time')
  parser.add_argument('--folder', help='folder to write to; default: a temporary one')
  flags = parser.parse_args()
  logging.set_verbosity(logging.ERROR)
  import jax

  state = _state(flags.gb)
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  seconds: Seconds = {}
  for k in range(flags.rounds + 1):
    # Each goes first every other time, so that neither always meets a busier disk.
    order = (_run_ours, _run_orbax) if k % 2 else (_run_orbax, _run_ours)
    for save_and_restore in order:
      folder = tempfile.mkdtemp(dir=flags.folder, prefix='omni_jax_bench_')
      try:
        save_and_restore(folder, state, like, seconds)
      finally:
        shutil.rmtree(folder)
    if k == 0:  # the first round compiles
      seconds.clear()
  _print_medians(flags, seconds)


def _print_medians(flags: argparse.Namespace, seconds: Seconds) -> None:
  folder = epath.Path(flags.folder or tempfile.gettempdir())
  print(f'{flags.gb} GB, {flags.rounds} alternating rounds, in {folder}')
  for name in ('blocking part of a save', 'save', 'restore'):
    ours = seconds[f'ours: {name}']
    theirs = seconds[f'orbax: {name}']
    for k, kind in enumerate(('wall', 'CPU')):
      our_median = statistics.median(times[k] for times in ours)
      their_median = statistics.median(times[k] for times in theirs)
      ratio = our_median / their_median
      print(
        f'{name}, {kind} time: ours {our_median:.3f} s, Orbax {their_median:.3f} s, '
        f'ratio {ratio:.3f}',
        flush=True,
      )


if __name__ == '__main__':
  main()
