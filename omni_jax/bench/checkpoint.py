"""python -m omni_jax.bench.checkpoint [--gb=1 --rounds=7 --folder=DIR]: what verified checkpoints cost.

Ours and Orbax's own manager, which verifies nothing, write and read the same arrays in turn. Printed are medians of
seconds on the clock and of the processor, and their ratios: the clock tells little on a machine that is busy.
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

Seconds = dict[str, list[tuple[float, float]]]


def _timed(seconds: Seconds, name: str, work: Callable[[], Any]) -> Any:
  clock, processor = time.perf_counter(), time.process_time()
  made = work()
  seconds.setdefault(name, []).append(
    (time.perf_counter() - clock, time.process_time() - processor)
  )
  return made


def _state(gigabytes: float) -> Any:
  import jax
  import jax.numpy as jnp

  from omni_jax.checkpoint.train_state import TrainState

  side, count = 4096, max(1, round(gigabytes * 2**30 / 4096**2 / 4))
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
  from omni_jax.checkpoint.checkpoints import Checkpoints

  with Checkpoints(folder, 'omni') as checkpoints:

    def save():
      _timed(seconds, 'ours: stall of a save', lambda: checkpoints.save(state, b'{}'))
      checkpoints.latest()

    _timed(seconds, 'ours: save', save)
    _timed(seconds, 'ours: restore', lambda: checkpoints.restore(like))


def _orbax(folder: str, state: Any, like: Any, seconds: Seconds) -> None:
  import orbax.checkpoint as ocp

  model, train = {'params': state.params}, {'step': state.step, 'rng': state.rng}
  items = {
    'model': ocp.args.StandardSave(model),
    'train': ocp.args.StandardSave(train),
    'iterator': ocp.args.JsonSave({}),
  }
  wanted = {
    'model': ocp.args.StandardRestore({'params': like.params}),
    'iterator': ocp.args.JsonRestore(),
    'train': ocp.args.StandardRestore({'step': like.step, 'rng': like.rng}),
  }
  with ocp.CheckpointManager(epath.Path(folder).absolute()) as manager:

    def save():
      _timed(
        seconds,
        'orbax: stall of a save',
        lambda: manager.save(1, args=ocp.args.Composite(**items)),
      )
      manager.wait_until_finished()

    _timed(seconds, 'orbax: save', save)
    _timed(
      seconds,
      'orbax: restore',
      lambda: manager.restore(1, args=ocp.args.Composite(**wanted)),
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
    for measure in (_ours, _orbax)[:: 1 if k % 2 else -1]:
      folder = tempfile.mkdtemp(dir=flags.folder, prefix='omni_jax_bench_')
      try:
        measure(folder, state, like, seconds)
      finally:
        shutil.rmtree(folder)
    if not k:  # compiles
      seconds.clear()
  print(
    f'{flags.gb} GB, {flags.rounds} rounds in turn, in {epath.Path(flags.folder or tempfile.gettempdir())}'
  )
  for name in ('stall of a save', 'save', 'restore'):
    ours, theirs = (seconds[f'{who}: {name}'] for who in ('ours', 'orbax'))
    for k, unit in enumerate(('clock', 'processor')):
      a, b = (statistics.median(one[k] for one in times) for times in (ours, theirs))
      print(
        f'{name}, {unit}: ours {a:.3f} s, Orbax {b:.3f} s, ratio {a / b:.3f}',
        flush=True,
      )


if __name__ == '__main__':
  main()
