"""Defines a stage so small that tests see only the loop and its checkpoints.

It is also a script:

  python tests/faults/toy.py WORKDIR [--steps=N] [--save_every=N] [--size=N] \\
    [--pause=SECONDS] [--after=raise]
"""

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import optax

ROOT = pathlib.Path(__file__).parents[2]
TX = optax.adam(1e-2)


class Numbers:
  """Batches of equal numbers that depend on the batch's number, split between processes.

  Args:
    pause: seconds that each batch takes.
    processes: number of processes that share the 8 rows of a batch.
    replace: values that replace those of some batches, by the batch's number.
  """

  def __init__(self, pause=0.0, processes=1, replace=None):
    self.closed = False
    self._next = 0
    self._pause = pause
    self._rows = 8 // processes
    self._replace = dict(replace or {})

  def __next__(self):
    self._next += 1
    time.sleep(self._pause)
    value = self._replace.get(self._next, self._next % 7)
    return np.full((self._rows,), value, np.float32)

  def merged(self, states):
    return states[0]

  def state(self):
    return json.dumps({'next': self._next}).encode()

  def restore(self, state):
    self._next = json.loads(state)['next']

  def close(self):
    self.closed = True


def initial_state(size=64):
  """Returns the state that the toy stage starts with."""
  from omni_jax.checkpoint.train_state import TrainState

  params = {
    'decoder': {'w': jnp.linspace(-1, 1, size * size).reshape(size, size)},
    'scale': jnp.ones(size),
  }
  return TrainState(
    params=params,
    buffers={'bias': jnp.zeros(4)},
    opt_state=TX.init(params),
    step=jnp.int32(0),
    rng=jax.random.key_data(jax.random.key(1)),
  )


def model_of(state):
  """Returns the part of a state that `Checkpoints.restore_model` restores."""
  return {'params': state.params, 'buffers': state.buffers}


def state_at(step, size=64):
  """Returns a state that differs from those of other steps in all arrays.

  Only the constants of the optimizer are the same.
  """
  key = jax.random.key(step)
  params = {
    'decoder': {'w': jax.random.normal(key, (size, size))},
    'scale': jnp.full(size, float(step)),
  }
  return initial_state(size)._replace(
    params=params,
    buffers={'bias': jnp.full(4, -float(step))},
    opt_state=jax.tree.map(lambda x: x + step, TX.init(params)),
    step=jnp.int32(step),
    rng=jax.random.key_data(key),
  )


@jax.jit
def update(state, batch):
  """Returns the state after a step of Adam, and metrics.

  The loss is a bowl whose center depends on the batch, plus noise from the run's key.
  """
  key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
  noise = 0.1 * jax.random.normal(key, state.params['decoder']['w'].shape)

  def loss_of(params):
    product = params['decoder']['w'] * params['scale']
    return jnp.mean((product - batch.mean() + noise) ** 2)

  loss, grads = jax.value_and_grad(loss_of)(state.params)
  updates, moments = TX.update(grads, state.opt_state, state.params)
  after = state._replace(
    params=optax.apply_updates(state.params, updates),
    opt_state=moments,
    step=state.step + 1,
    buffers={'bias': state.buffers['bias'] + loss},
  )
  return after, {'loss/total': loss, 'tokens': jnp.float32(8), 'batch': batch.mean()}


def stage(steps=8, size=64, batches=None, step_fn=update, **options):
  """Returns the toy stage; `options` are further fields of `loop.Stage`."""
  from omni_jax.train.loop import Stage

  defaults = dict(log_every=1, save_every=2, bad_steps=0, repeat_every=0, about={})
  options = defaults | options
  batches = batches or Numbers()
  return Stage('toy', steps, step_fn, initial_state(size), batches, **options)


def same(actual, expected):
  """Returns whether two trees are equal bit for bit, with the same types."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    if a.dtype != b.dtype or np.asarray(a).tobytes() != np.asarray(b).tobytes():
      return False
  return True


def stage_folder(workdir, stage='toy'):
  """Returns the folder of the steps of a stage."""
  return epath.Path(workdir) / 'checkpoints' / stage


def save_steps(workdir, *steps, stage='toy', keep=2):
  """Saves steps of a stage one after another, and returns the folder of the run.

  Only the last `keep` of them remain.
  """
  from omni_jax.checkpoint.checkpoints import Checkpoints

  with Checkpoints(str(workdir), stage, keep=keep) as checkpoints:
    for step in steps:
      checkpoints.save(state_at(step), json.dumps({'next': step}).encode())
  return workdir


def resume(workdir):
  """Resumes like a trainer; returns what it restores, and the lines that it logs."""
  from omni_jax.checkpoint.checkpoints import Checkpoints

  lines = []
  with Checkpoints(str(workdir), 'toy', say=lines.append) as checkpoints:
    return checkpoints.resume(initial_state()), lines


def logged_metrics(workdir):
  """Returns the complete lines of metrics.jsonl, without values that depend on time."""
  from omni_jax.run_folder import read_json_lines

  lines = read_json_lines(epath.Path(workdir) / 'metrics.jsonl')
  return [_without_times(line) for line in lines]


def _without_times(metrics):
  timeless = {}
  for name, value in metrics.items():
    if name != 'seconds' and not name.startswith('speed/'):
      timeless[name] = value
  return timeless


def start(workdir, *arguments, script=__file__, **variables):
  """Returns a process that runs the toy stage, with these environment variables."""
  environment = dict(os.environ)
  environment['PYTHONPATH'] = f'{ROOT}:{ROOT}/tests'
  environment['JAX_PLATFORMS'] = 'cpu'
  environment.update(variables)
  return subprocess.Popen(
    [sys.executable, str(script), str(workdir), *arguments],
    env=environment,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def wait_for(process, seconds=120):
  """Waits for a process; returns its exit code, standard output and standard error.

  It raises an error if the process does not end in time.
  """
  try:
    out, err = process.communicate(timeout=seconds)
  finally:
    process.kill()
  return process.returncode, out, err


def run(workdir, *arguments, seconds=120, **options):
  """Runs the toy stage in a process; returns what `wait_for` returns."""
  return wait_for(start(workdir, *arguments, **options), seconds)


def wait_until(condition, process):
  """Waits until a condition holds or the process has ended."""
  while not condition() and process.poll() is None:
    time.sleep(0.01)


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

  def train():
    if flags.after == 'save_and_raise':
      with Checkpoints(flags.workdir, 'toy') as checkpoints:
        checkpoints.save(initial_state(flags.size)._replace(step=jnp.int32(1)), b'{}')
        raise RuntimeError('crashed right after the save')
    if 'JAX_NUM_PROCESSES' in os.environ:
      processes.join()
    mesh = make_mesh({'data': -1})
    batches = Numbers(flags.pause, jax.process_count())
    toy = stage(flags.steps, flags.size, batches, save_every=flags.save_every)
    state = jax.device_put(toy.state, replicated(mesh))
    loop.run(dataclasses.replace(toy, state=state), flags.workdir, mesh)
    if flags.after == 'raise':
      raise RuntimeError('crashed at the end')

  run_command(train)


if __name__ == '__main__':
  main()
