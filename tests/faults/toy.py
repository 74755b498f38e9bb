"""A stage so small that the loop and its checkpoints are what is tested; also as a process that can be killed.

python tests/faults/toy.py WORKDIR [--steps=N] [--save_every=N] [--size=N] [--pause=SECONDS] [--after=raise]
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

ROOT = pathlib.Path(__file__).parents[2]
TX = optax.adam(1e-2)


class Numbers:
  """Batches that depend on their number, split between processes; `pause` seconds each."""

  def __init__(self, pause=0.0, processes=1, replace=None):
    self._next, self._pause, self._replace, self.closed = (
      0,
      pause,
      dict(replace or {}),
      False,
    )
    self._rows = 8 // processes

  def __next__(self):
    self._next += 1
    time.sleep(self._pause)
    return np.full(
      (self._rows,), self._replace.get(self._next, self._next % 7), np.float32
    )

  def merged(self, states):
    return states[0]

  def state(self):
    return json.dumps({'next': self._next}).encode()

  def restore(self, state):
    self._next = json.loads(state)['next']

  def close(self):
    self.closed = True


def fresh(size=64):
  from omni_jax.checkpoint.train_state import TrainState

  params = {
    'decoder': {'w': jnp.linspace(-1, 1, size * size).reshape(size, size)},
    'scale': jnp.ones(size),
  }
  return TrainState(
    params,
    {'bias': jnp.zeros(4)},
    TX.init(params),
    jnp.int32(0),
    jax.random.key_data(jax.random.key(1)),
  )


def states(*steps, size=64):
  """One state for each step, all different in all arrays but the constants of the optimizer."""
  made = []
  for k in steps:
    key = jax.random.key(k)
    params = {
      'decoder': {'w': jax.random.normal(key, (size, size))},
      'scale': jnp.full(size, float(k)),
    }
    moments = jax.tree.map(lambda x, k=k: x + k, TX.init(params))
    made.append(
      fresh(size)._replace(
        params=params,
        buffers={'bias': jnp.full(4, -float(k))},
        opt_state=moments,
        step=jnp.int32(k),
        rng=jax.random.key_data(key),
      )
    )
  return made


@jax.jit
def update(state, batch):
  """Adam on a bowl whose middle depends on the batch, with noise of the run's generator."""
  key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
  noise = 0.1 * jax.random.normal(key, state.params['decoder']['w'].shape)
  loss = lambda p: jnp.mean(
    (p['decoder']['w'] * p['scale'] - batch.mean() + noise) ** 2
  )
  value, grads = jax.value_and_grad(loss)(state.params)
  updates, moments = TX.update(grads, state.opt_state, state.params)
  after = state._replace(
    params=optax.apply_updates(state.params, updates),
    opt_state=moments,
    step=state.step + 1,
    buffers={'bias': state.buffers['bias'] + value},
  )
  return after, {'loss/total': value, 'tokens': jnp.float32(8), 'batch': batch.mean()}


def stage(steps=8, size=64, batches=None, step_fn=update, **options):
  from omni_jax.train.loop import Stage

  return Stage(
    'toy',
    steps,
    step_fn,
    fresh(size),
    batches or Numbers(),
    **dict(log_every=1, save_every=2) | options,
  )


def same(ours, theirs):
  """Whether two trees are equal bit for bit, with the same types."""
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  return all(
    a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
  )


def saved(workdir, *wanted, name='toy', keep=2):
  """The folder, with these steps of a stage saved one after another; of all but the last `keep` nothing is left."""
  from omni_jax.checkpoint.checkpoints import Checkpoints

  with Checkpoints(str(workdir), name, keep=keep) as checkpoints:
    for one in states(*wanted):
      checkpoints.save(one, f'{{"next": {int(one.step)}}}'.encode())
  return workdir


def resumed(workdir):
  """(what a trainer goes on from, what it says about that)."""
  from omni_jax.checkpoint.checkpoints import Checkpoints

  said = []
  with Checkpoints(str(workdir), 'toy', say=said.append) as checkpoints:
    return checkpoints.resume(fresh()), said


def logged(workdir):
  """Whole lines of metrics.jsonl without what depends on the clock."""
  file = pathlib.Path(workdir) / 'metrics.jsonl'
  found = []
  for line in file.read_text().splitlines() if file.exists() else []:
    with contextlib.suppress(json.JSONDecodeError):
      found.append(
        {
          k: v
          for k, v in json.loads(line).items()
          if k != 'seconds' and not k.startswith('speed/')
        }
      )
  return found


def start(workdir, *arguments, script=__file__, **variables):
  """The process."""
  environment = (
    os.environ
    | {'PYTHONPATH': f'{ROOT}:{ROOT}/tests', 'JAX_PLATFORMS': 'cpu'}
    | variables
  )
  return subprocess.Popen(
    [sys.executable, str(script), str(workdir), *arguments],
    env=environment,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def finished(process, seconds=120):
  """(exit code, standard output, standard error); to hang is to fail."""
  try:
    out, err = process.communicate(timeout=seconds)
  finally:
    process.kill()
  return process.returncode, out, err


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('workdir')
  parser.add_argument('--steps', type=int, default=8)
  parser.add_argument('--save_every', type=int, default=2)
  parser.add_argument('--size', type=int, default=64)
  parser.add_argument('--pause', type=float, default=0.0)
  parser.add_argument(
    '--after', choices=('return', 'raise', 'save_and_raise'), default='return'
  )
  flags = parser.parse_args()
  from absl import logging

  logging.set_verbosity(logging.FATAL)
  from omni_jax.checkpoint.checkpoints import Checkpoints
  from omni_jax.errors import run_command
  from omni_jax.sharding import make_mesh, replicated
  from omni_jax.train import loop, processes

  signal.signal(signal.SIGTERM, signal.SIG_DFL)

  def run():
    if flags.after == 'save_and_raise':
      with Checkpoints(flags.workdir, 'toy') as checkpoints:
        checkpoints.save(fresh(flags.size)._replace(step=jnp.int32(1)), b'{}')
        raise RuntimeError('torn right after the save')
    if 'JAX_NUM_PROCESSES' in os.environ:
      processes.join()
    mesh = make_mesh({'data': -1})
    made = stage(
      flags.steps,
      flags.size,
      Numbers(flags.pause, jax.process_count()),
      save_every=flags.save_every,
    )
    made = dataclasses.replace(made, state=jax.device_put(made.state, replicated(mesh)))
    loop.run(made, flags.workdir, mesh)
    if flags.after == 'raise':
      raise RuntimeError('torn at the end')

  run_command(functools.partial(run))


if __name__ == '__main__':
  main()
