"""Measures what verified checkpoints cost.

  python -m omni_jax.bench.checkpoint [--gb=1 --rounds=7 --folder=DIR]

Ours and Orbax's own manager, which verifies nothing, write and read the same arrays in
turn. Printed are medians of seconds on the clock and of the processor, and their
ratios: the clock tells little on a machine that is busy.
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

# By name of what was timed: seconds on the clock and of the processor.
Seconds = dict[str, list[tuple[float, float]]]


def _time(seconds: Seconds, name: str, function: Callable[[], Any]) -> Any:
  """Calls a function and adds to its seconds."""
  clock_start = time.perf_counter()
  processor_start = time.process_time()
  result = function()
  clock = time.perf_counter() - clock_start
  processor = time.process_time() - processor_start
  seconds.setdefault(name, []).append((clock, processor))
  return result


def _state(gigabytes: float) -> Any:
  import jax
  import jax.numpy as jnp

  from omni_jax.train.state import TrainState

  side = 4096
  count = max(1, round(gigabytes * 2**30 / side**2 / 4))
  params = {
    f'w{k}': jax.random.normal(jax.random.key(k), (side, side)) for k in range(count)
  }
  return TrainState(
    jax.block_until_ready(params),
    {},
    {},
    jnp.int32(1),
    jax.random.key_data(jax.random.key(0)),
  )


def _ours(folder: str, state: Any, like: Any, seconds: Seconds) -> None:
  from omni_jax.checkpoint.checkpoint import Checkpoints

  with Checkpoints(folder, 'omni') as checkpoints:

    def save():
      _time(seconds, 'ours: stall of a save', lambda: checkpoints.save(state, b'{}'))
      checkpoints.latest()

    _time(seconds, 'ours: save', save)
    _time(seconds, 'ours: restore', lambda: checkpoints.restore(like))


def _orbax(folder: str, state: Any, like: Any, seconds: Seconds) -> None:
  import orbax.checkpoint as ocp

  save_args = {
    'model': ocp.args.StandardSave({'params': state.params}),
    'train': ocp.args.StandardSave({'step': state.step, 'rng': state.rng}),
    'iterator': ocp.args.JsonSave({}),
  }
  restore_args = {
    'model': ocp.args.StandardRestore({'params': like.params}),
    'iterator': ocp.args.JsonRestore(),
    'train': ocp.args.StandardRestore({'step': like.step, 'rng': like.rng}),
  }
  with ocp.CheckpointManager(epath.Path(folder).absolute()) as manager:

    def save():
      _time(
        seconds,
        'orbax: stall of a save',
        lambda: manager.save(1, args=ocp.args.Composite(**save_args)),
      )
      manager.wait_until_finished()

    _time(seconds, 'orbax: save', save)
    _time(
      seconds,
      'orbax: restore',
      lambda: manager.restore(1, args=ocp.args.Composite(**restore_args)),
    )


def main() -> None:
  parser = argparse.ArgumentParser(
    prog='python -m omni_jax.bench.checkpoint', description=__doc__, allow_abbrev=False
  )
  parser.add_argument('--gb', type=float, default=1.0)
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--folder', help='where to write; default: a temporary one')
  flags = parser.parse_args()
  logging.set_verbosity(logging.ERROR)
  import jax

  state = _state(flags.gb)
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  seconds: Seconds = {}
  for k in range(flags.rounds + 1):
    for save_and_restore in (_ours, _orbax)[:: 1 if k % 2 else -1]:
      folder = tempfile.mkdtemp(dir=flags.folder, prefix='omni_jax_bench_')
      try:
        save_and_restore(folder, state, like, seconds)
      finally:
        shutil.rmtree(folder)
    if not k:  # compiles
      seconds.clear()
  folder = epath.Path(flags.folder or tempfile.gettempdir())
  print(f'{flags.gb} GB, {flags.rounds} rounds in turn, in {folder}')
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
