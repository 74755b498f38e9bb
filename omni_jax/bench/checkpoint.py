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
  clock_start = time.perf_counter()
  processor_start = time.process_time()
  result = function()
  clock = time.perf_counter() - clock_start
  processor = time.process_time() - processor_start
  seconds.setdefault(name, []).append((clock, processor))
  return result


def _state(gigabytes: float) -> Any:
  """Returns a TrainState with float32 parameters of about this size."""
  import jax
  import jax.numpy as jnp

  from omni_jax.checkpoint.train_state import TrainState

  side = 4096
  count = max(1, round(gigabytes * 2**30 / side**2 / 4))
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


def _ours(folder: str, state: Any, like: Any, seconds: Seconds) -> None:
  """Saves and restores a state with our checkpoints."""
  from omni_jax.checkpoint.checkpoints import Checkpoints

  with Checkpoints(folder, 'omni') as checkpoints:

    def save():
      _time(seconds, 'ours: stall of a save', lambda: checkpoints.save(state, b'{}'))
      checkpoints.latest()

    _time(seconds, 'ours: save', save)
    _time(seconds, 'ours: restore', lambda: checkpoints.restore(like))


def _orbax(folder: str, state: Any, like: Any, seconds: Seconds) -> None:
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
      _time(seconds, 'orbax: stall of a save', start)
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
    order = (_ours, _orbax) if k % 2 else (_orbax, _ours)
    for save_and_restore in order:
      folder = tempfile.mkdtemp(dir=flags.folder, prefix='omni_jax_bench_')
      try:
        save_and_restore(folder, state, like, seconds)
      finally:
        shutil.rmtree(folder)
    if not k:  # the first round compiles
      seconds.clear()
  _print_medians(flags, seconds)


def _print_medians(flags: argparse.Namespace, seconds: Seconds) -> None:
  folder = epath.Path(flags.folder or tempfile.gettempdir())
  print(f'{flags.gb} GB, {flags.rounds} alternating rounds, in {folder}')
  for name in ('stall of a save', 'save', 'restore'):
    ours = seconds[f'ours: {name}']
    theirs = seconds[f'orbax: {name}']
    for k, unit in enumerate(('clock', 'processor')):
      our_median = statistics.median(times[k] for times in ours)
      their_median = statistics.median(times[k] for times in theirs)
      ratio = our_median / their_median
      print(
        f'{name}, {unit}: ours {our_median:.3f} s, Orbax {their_median:.3f} s, '
        f'ratio {ratio:.3f}',
        flush=True,
      )


if __name__ == '__main__':
  main()
