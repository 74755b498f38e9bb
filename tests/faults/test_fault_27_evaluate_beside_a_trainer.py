"""Fault 27: an evaluation reads a step while the trainer removes it.

It gets another step or fails cleanly, but never gets a part of a step.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
import time

from conftest import CACHE
from etils import epath
from faults.toy import initial_state, model_of, same, save_steps, state_at
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from samples import frozen_values, omni_optimizer, ROOT, tiny_run

from omni_jax.checkpoint import step_folders
from omni_jax.checkpoint.checkpoints import Checkpoints, complete_steps
from omni_jax.errors import UserError
from omni_jax.evaluate.follow import follow
from omni_jax.model import ModelConfig
from omni_jax.train.state import init_model_state

LAST_STEP = 200
LIKE = model_of(initial_state())


save = functools.partial(save_steps, stage='omni', keep=1)


def reader(workdir, lines):
  """Returns checkpoints to read; what they log is appended to `lines`."""
  return Checkpoints(str(workdir), 'omni', read_only=True, say=lines.append)


def test_fault_27_a_reader_beside_a_fast_trainer_gets_complete_steps_only(tmp_path):
  save(tmp_path, 1)
  trainer = threading.Thread(target=save, args=(tmp_path, *range(2, 40)))
  trainer.start()
  steps = set()
  failures = 0
  while trainer.is_alive():
    with reader(tmp_path, []) as checkpoints:
      try:
        model, step = checkpoints.restore_model(LIKE)
      except UserError:
        failures += 1
        continue
    assert same(model, model_of(state_at(step)))
    steps.add(step)
  trainer.join()
  assert len(steps) > 3, (steps, failures)


@pytest.mark.parametrize(
  'later_steps, expected', [((5, 6), 6), ((), None)], ids=['a_newer_step', 'none']
)
def test_fault_27_a_step_removed_between_its_manifest_and_its_arrays_is_not_used(
  tmp_path, monkeypatch, later_steps, expected
):
  save(tmp_path, 4)
  restore = ocp.PyTreeCheckpointHandler.restore

  def remove_then_restore(self, path, *args, **kwargs):
    if epath.Path(path).parent.name == '4':
      step_folders.remove(epath.Path(path).parents[1], 4)
      monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'restore', restore)
      if later_steps:
        save(tmp_path, *later_steps)
    return restore(self, path, *args, **kwargs)

  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'restore', remove_then_restore)
  lines = []
  with reader(tmp_path, lines) as checkpoints:
    if expected is None:
      with pytest.raises(UserError, match=r'no step in .*; there are \[\]'):
        checkpoints.restore_model(LIKE)
    else:
      model, step = checkpoints.restore_model(LIKE)
      assert step == expected
      assert same(model['params'], state_at(step).params)
  assert 'step 4 in' in lines[0]
  assert 'was removed while it was read' in lines[0]


@pytest.mark.parametrize(
  'removed', ['4', '4/model/d', '4/model/manifest.ocdbt', '4/model/_METADATA']
)
@pytest.mark.parametrize('step', [4, None], ids=['requested', 'last'])
def test_fault_27_a_step_removed_between_its_manifest_and_its_metadata_is_not_used(
  tmp_path, monkeypatch, removed, step
):
  """Step 4, or a part of it, is removed, and step 5 is saved.

  If step 4 was requested, one line refuses it; otherwise step 5 is read.
  """
  save(tmp_path, 4)
  metadata = ocp.StandardCheckpointHandler.metadata

  def remove_then_read(self, path, *rest):
    if epath.Path(path).parent.name == '4':
      part = tmp_path / 'checkpoints' / 'omni' / removed
      if part.is_dir():
        shutil.rmtree(part)
      else:
        part.unlink()
      monkeypatch.setattr(ocp.StandardCheckpointHandler, 'metadata', metadata)
      save_steps(tmp_path, 5, stage='omni')
    return metadata(self, path, *rest)

  monkeypatch.setattr(ocp.StandardCheckpointHandler, 'metadata', remove_then_read)
  with Checkpoints(str(tmp_path), 'omni', read_only=True) as checkpoints:
    if step is None:
      assert checkpoints.shapes()['params']['scale'].shape == (64,)
    else:
      message = 'omni/4 is damaged: its metadata cannot be read: '
      with pytest.raises(UserError, match=message):
        checkpoints.shapes(step)


def test_fault_27_follow_evaluates_new_steps_and_survives_a_removed_one(tmp_path):
  """The trainer removes step 2 while it is evaluated, and saves 3 and 4.

  Later it saves 6, its last step.
  """
  save(tmp_path, 1)
  evaluated_steps = []
  lines = []
  waits = 0

  def evaluate(step):
    if step == 2:
      save(tmp_path, 3, 4)
    with reader(tmp_path, lines) as checkpoints:
      model, restored_step = checkpoints.restore_model(LIKE, step)
    assert restored_step == step
    assert same(model['params'], state_at(step).params)
    evaluated_steps.append(step)

  def wait():
    nonlocal waits
    waits += 1
    assert waits < 9
    if waits == 2:
      save(tmp_path, 2)
    if waits == 4:
      save(tmp_path, 6)

  follow(
    evaluate,
    lambda: complete_steps(str(tmp_path), 'omni'),
    lambda: 6,  # last step of the run
    log=lines.append,
    wait=wait,
  )
  assert evaluated_steps == [1, 4, 6]
  assert len(lines) == 1
  assert 'step 2 was removed while it was read' in lines[0]


def test_fault_27_follow_does_not_hide_a_step_that_is_damaged(tmp_path):
  save(tmp_path, 1)

  def evaluate(step):
    raise UserError('bad')

  with pytest.raises(UserError, match='bad'):
    follow(
      evaluate,
      lambda: complete_steps(str(tmp_path), 'omni'),
      lambda: 6,  # last step of the run
      log=print,
      wait=lambda: None,
    )


TEXT = {'data.source': 'text', 'data.train_file': 'a.txt', 'omni.steps': LAST_STEP}


def run_on_text(folder):
  """Writes the folder of a run on a text file, which is evaluated by its loss alone.

  Returns:
    A function that returns the state of the run at a step.
  """
  (folder / 'a.txt').write_text('to be or not to be ' * 60)
  config = tiny_run()
  with config.unlocked():
    config.update_from_flattened_dict(TEXT | {'data.root': str(folder)})
    config.data.piece = 64
  (folder / 'config.json').write_text(json.dumps(config.to_dict(), default=list))
  model = ModelConfig.from_config(config.model)
  frozen = frozen_values(model)
  state = init_model_state(model, omni_optimizer(model), frozen, seed=0)

  def state_of(step):
    params = jax.tree.map(lambda x: x * (1 + 0.001 * step), state.params)
    return state._replace(params=params, step=jnp.int32(step))

  return state_of


def start_following(workdir):
  """Returns a process that evaluates the steps of a run as they appear."""
  environment = os.environ | {
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(CACHE / 'xla'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.3',
  }
  return subprocess.Popen(
    [sys.executable, '-m', 'omni_jax.evaluate', f'--workdir={workdir}', '--follow'],
    text=True,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def evaluations_in(workdir):
  """Returns the metrics.json of the evaluations of a run by step."""
  files = (workdir / 'eval').glob('*/metrics.json')
  return {int(file.parent.name): json.loads(file.read_text()) for file in files}


def test_fault_27_the_real_command_follows_a_busy_trainer_to_its_last_step(tmp_path):
  """A step is saved every half second, and only the newest is kept.

  Most of them are gone before the command has read them.
  """
  state_of = run_on_text(tmp_path)
  with Checkpoints(str(tmp_path), 'omni', keep=1) as checkpoints:
    checkpoints.save(state_of(1), b'{}')
    checkpoints.latest()
    process = start_following(tmp_path)
    step = 1
    while process.poll() is None and step < LAST_STEP - 1:
      if list(tmp_path.glob('eval/*/metrics.json')):
        break
      step += 1
      checkpoints.save(state_of(step), b'{}')
      time.sleep(0.5)
    checkpoints.save(state_of(LAST_STEP), b'{}')
  out, err = process.communicate(timeout=100)
  assert process.returncode == 0, err
  # TensorStore may write to stderr about reads that nobody waits for any more, but no
  # error comes up through our code.
  assert 'omni_jax/' not in err, err
  evaluations = evaluations_in(tmp_path)
  assert max(evaluations) == LAST_STEP, out
  assert 2 <= len(evaluations) < step, (sorted(evaluations), out)
  losses = set()
  for step_evaluated, metrics in evaluations.items():
    assert metrics['step'] == step_evaluated
    losses.add(metrics['data']['groups']['text']['loss']['text'])
  assert len(losses) == len(evaluations)
  assert complete_steps(str(tmp_path), 'omni') == [LAST_STEP]
