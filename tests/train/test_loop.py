"""Four steps of the loop equal two, a save and two, bit for bit, and SIGTERM saves.

Losses that are not finite stop the run; finished stages are not run again.
"""

import dataclasses
import functools
import json
import os
import re
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from samples import BUDGET, examples, part, sound, STAGE_OPTIONS

from omni_jax.checkpoint.train_state import TrainState
from omni_jax.data.crops import CropLoader
from omni_jax.data.example_maker import ExampleMaker
from omni_jax.data.loader import Loader
from omni_jax.errors import INTERRUPTED, PREEMPTED, UserError
from omni_jax.model import abstract_autoencoder
from omni_jax.objective import Autoencoding
from omni_jax.sharding import make_mesh, param_roles
from omni_jax.train import loop
from omni_jax.train.optim import make_optimizer
from omni_jax.train.state import init_autoencoder_state
from omni_jax.train.step import make_step, Update


class BatchesWithSignal:
  """Batches during the n-th of which the process gets a signal, SIGTERM by default."""

  def __init__(self, batches, n, sent=signal.SIGTERM):
    self._batches = batches
    self._left = n
    self._signal = sent
    self.state = batches.state
    self.merged = batches.merged
    self.restore = batches.restore
    self.close = batches.close
    if isinstance(batches, loop.CountedBatches):
      self.examples_before = batches.examples_before

  def __next__(self):
    self._left -= 1
    if not self._left:
      os.kill(os.getpid(), self._signal)
    return next(self._batches)


@pytest.fixture(scope='module')
def omni_stage(kit):
  """Returns a function that builds the omni stage as every new process does."""

  def make():
    items = []
    for seed in range(4):
      for i, example in enumerate(examples(seed)):
        items.append(dict(example, id=f'{seed}/{i}'))
    batches = Loader(ExampleMaker(items, kit.config.hosts(), 0), BUDGET)
    return loop.Stage('omni', 4, kit.step, kit.state, batches, **STAGE_OPTIONS)

  return make


@pytest.fixture(scope='module')
def codec_stage(kit):
  """Returns a function that builds the codec's stage as every new process does."""
  codec = abstract_autoencoder(kit.config, 'codec')
  _, row = kit.config.tables.autoencoders()['codec']
  objective = Autoencoding(row, kit.config.autoencoders['codec'])
  tx = make_optimizer(part('omni.optim', kind='adamw', warmup=1), 4, param_roles(codec))
  step = jax.jit(make_step(objective, codec, tx, Update(refresh=objective.refresh)))
  init = functools.partial(init_autoencoder_state, kit.config, 'codec', tx, seed=0)
  fresh = jax.jit(init)()
  waves = [sound(np.random.default_rng(seed), 4)['wave'] for seed in range(6)]

  def make():
    host = kit.config.hosts()['audio']
    batches = CropLoader(waves, host, batch=4, pieces=3, seed=0)
    return loop.Stage('codec', 4, step, fresh, batches, **STAGE_OPTIONS)

  return make


def assert_same(actual, expected):
  """Checks that two trees have equal leaves."""
  leaves = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
  for a, b in leaves:
    np.testing.assert_array_equal(a, b)


def logged_metrics(folder):
  """Returns the lines of metrics.jsonl."""
  text = (folder / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def without_time(line):
  """Returns a line of metrics without the values that depend on the clock."""
  return {k: v for k, v in line.items() if not k.startswith(('seconds', 'speed/'))}


@pytest.mark.parametrize('name', ['omni_stage', 'codec_stage'])
def test_four_steps_equal_two_a_restart_and_two(name, request, kit, tmp_path):
  make = request.getfixturevalue(name)
  whole_folder = tmp_path / 'whole'
  parts_folder = tmp_path / 'parts'
  whole = loop.run(make(), str(whole_folder), kit.mesh)
  stage = make()
  killed = dataclasses.replace(stage, batches=BatchesWithSignal(stage.batches, 2))
  with pytest.raises(loop.Preempted) as stopped:
    loop.run(killed, str(parts_folder), kit.mesh)
  assert stopped.value.code == PREEMPTED == 75
  assert [line['step'] for line in logged_metrics(parts_folder)] == [1, 2]
  parts = loop.run(make(), str(parts_folder), kit.mesh)
  assert int(parts.step) == 4
  assert_same(parts, whole)
  trained = jax.tree.leaves(whole.params)
  initial = jax.tree.leaves(make().state.params)
  for after, before in zip(trained, initial, strict=True):
    assert after.ndim <= 1 or not np.array_equal(after, before)
  lines = logged_metrics(parts_folder)
  for actual, expected in zip(lines, logged_metrics(whole_folder), strict=True):
    assert without_time(actual) == without_time(expected)


# A stage so small that only the loop itself is tested.


class Numbers:
  """Batches of one number: `values[n]` in the n-th batch, or 1."""

  def __init__(self, values=()):
    self._next = 0
    self._values = dict(values)
    self.closed = False

  def __next__(self):
    self._next += 1
    return np.full((8,), self._values.get(self._next, 1.0), np.float32)

  def merged(self, states):
    return states[0]

  def state(self):
    return str(self._next).encode()

  def restore(self, state):
    self._next = int(state)

  def close(self):
    self.closed = True


def toy(steps=6, batches=None, **options):
  """Returns a stage that subtracts the mean of each batch from its two weights."""

  def step(state, batch):
    params = {'w': state.params['w'] - batch.mean()}
    metrics = {'loss/total': params['w'].sum(), 'tokens': jnp.float32(8)}
    return state._replace(params=params, step=state.step + 1), metrics

  params = {'w': jnp.zeros(2)}
  opt_state = optax.sgd(0.1).init(params)
  key_data = jax.random.key_data(jax.random.key(0))
  fresh = TrainState(params, {}, opt_state, jnp.int32(0), key_data)
  options = STAGE_OPTIONS | dict(log_every=2, save_every=3) | options
  return loop.Stage('toy', steps, jax.jit(step), fresh, batches or Numbers(), **options)


def test_metrics_are_logged_on_time_and_always_at_the_end(tmp_path):
  loop.run(toy(steps=5, flops=1e6, peak=1e9), str(tmp_path), make_mesh())
  lines = logged_metrics(tmp_path)
  assert [line['step'] for line in lines] == [2, 4, 5]
  for line in lines:
    assert {'speed/data_wait', 'speed/mfu'} <= line.keys()
    tokens = line['speed/tokens_per_second']
    assert tokens == pytest.approx(8 * line['speed/steps_per_second'])


def test_checkpoints_are_written_on_time_and_at_the_end(tmp_path):
  loop.run(toy(steps=7), str(tmp_path), make_mesh())
  names = [path.name for path in (tmp_path / 'checkpoints' / 'toy').iterdir()]
  assert sorted(name for name in names if name.isdigit()) == ['6', '7']


def test_the_host_is_one_step_ahead_of_the_devices_and_no_further(
  tmp_path, monkeypatch
):
  stage = toy(steps=4, log_every=10)
  all_metrics = []
  events = []

  def step(state, batch):
    state, metrics = stage.step(state, batch)
    all_metrics.append(metrics)
    events.append(f'step {len(all_metrics)}')
    return state, metrics

  def wait(metrics):
    if not metrics:
      events.append('wait')
    for number, earlier in enumerate(all_metrics, start=1):
      if metrics is earlier:
        events.append(f'wait {number}')

  monkeypatch.setattr(jax, 'block_until_ready', wait)
  loop.run(dataclasses.replace(stage, step=step), str(tmp_path), make_mesh())
  # The run waits for its first step: until then it starts and compiles.
  first = ['step 1', 'wait', 'wait 1']
  assert events == [*first, 'step 2', 'wait 1', 'step 3', 'wait 2', 'step 4', 'wait 3']


def test_a_finished_stage_is_restored_and_not_run(tmp_path):
  final = loop.run(toy(), str(tmp_path), make_mesh())
  batches = Numbers({n: np.nan for n in range(20)})
  restored = loop.run(toy(batches=batches), str(tmp_path), make_mesh())
  assert_same(restored, final)
  assert batches.closed


@pytest.mark.parametrize(
  'bad_step, saved_step', [(4, 3), (3, None)], ids=['at_a_log', 'at_a_save']
)
def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(
  tmp_path, bad_step, saved_step
):
  batches = Numbers({bad_step: np.nan})
  message = (
    f'toy: loss/total is not finite at step {bad_step}; the last checkpoint is step '
    f'{saved_step}; try a smaller config.toy.optim.lr'
  )
  with pytest.raises(UserError, match=re.escape(message)):
    loop.run(toy(batches=batches), str(tmp_path), make_mesh())
  assert batches.closed


def test_sigterm_saves_the_current_step_and_the_signal_handler_is_restored(tmp_path):
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(loop.Preempted):
    loop.run(toy(batches=BatchesWithSignal(Numbers(), 5)), str(tmp_path), make_mesh())
  assert signal.getsignal(signal.SIGTERM) is before
  assert (tmp_path / 'checkpoints' / 'toy' / '5').exists()
  state = loop.run(toy(), str(tmp_path), make_mesh())
  np.testing.assert_array_equal(state.params['w'], -6)


def test_ctrl_c_saves_the_current_step_and_ends_with_130(tmp_path):
  before = signal.getsignal(signal.SIGINT)
  batches = BatchesWithSignal(Numbers(), 5, signal.SIGINT)
  with pytest.raises(loop.Preempted) as stopped:
    loop.run(toy(batches=batches), str(tmp_path), make_mesh())
  assert stopped.value.code == INTERRUPTED == 130
  assert signal.getsignal(signal.SIGINT) is before
  assert (tmp_path / 'checkpoints' / 'toy' / '5').exists()


def test_a_second_ctrl_c_ends_the_run_at_once(tmp_path):
  batches = BatchesWithSignal(Numbers(), 5, signal.SIGINT)
  batches = BatchesWithSignal(batches, 5, signal.SIGINT)
  with pytest.raises(KeyboardInterrupt):
    loop.run(toy(batches=batches), str(tmp_path), make_mesh())


def test_the_log_says_what_compiles_and_how_far_the_run_is(tmp_path, monkeypatch):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)  # a bar is shown instead
  loop.run(toy(rate=lambda count: 0.5), str(tmp_path), make_mesh())
  text = (tmp_path / 'log.txt').read_text()
  assert re.search(r'toy: compiling a step of [\d,]+ parameters\n', text)
  assert re.search(r'toy: first step done [\d.]+ s later\n', text)
  last = text.splitlines()[-1]
  assert re.search(
    r'toy step 6: .*\(learning rate 5.00e-01, .* steps/s, 0 s left\)', last
  )


def test_sigterm_at_the_last_step_still_stops_the_run(tmp_path):
  with pytest.raises(loop.Preempted):
    loop.run(toy(batches=BatchesWithSignal(Numbers(), 6)), str(tmp_path), make_mesh())
  state = loop.run(toy(), str(tmp_path), make_mesh())
  np.testing.assert_array_equal(state.params['w'], -6)


def test_an_error_in_the_data_closes_everything_and_keeps_the_last_checkpoint(tmp_path):
  class FailingNumbers(Numbers):
    def __next__(self):
      if self._next == 4:
        raise UserError('damaged')
      return super().__next__()

  batches = FailingNumbers()
  with pytest.raises(UserError, match='damaged'):
    loop.run(toy(batches=batches), str(tmp_path), make_mesh())
  assert batches.closed
  assert (tmp_path / 'checkpoints' / 'toy' / '3').exists()


def test_the_profiler_runs_over_the_named_steps(tmp_path):
  loop.run(toy(profile='2:3'), str(tmp_path), make_mesh())
  assert list((tmp_path / 'tensorboard' / 'toy').rglob('*.xplane.pb'))


def test_a_restart_in_the_middle_of_the_profiled_steps_profiles_nothing(tmp_path):
  with pytest.raises(loop.Preempted):
    loop.run(toy(batches=BatchesWithSignal(Numbers(), 3)), str(tmp_path), make_mesh())
  loop.run(toy(profile='2:5'), str(tmp_path), make_mesh())
  assert not list((tmp_path / 'tensorboard' / 'toy').rglob('*.xplane.pb'))
