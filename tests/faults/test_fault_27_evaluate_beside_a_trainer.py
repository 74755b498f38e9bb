"""Fault 27: an evaluation reads a step while the trainer removes it: another step or a clean failure, never half a tree."""

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
from faults.toy import fresh, same, saved, states
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from samples import frozen_values, omni_optimizer, ROOT, tiny_run

from omni_jax.checkpoint import step_folders
from omni_jax.checkpoint.checkpoints import Checkpoints, listed_steps
from omni_jax.errors import UserError
from omni_jax.evaluate.follow import follow
from omni_jax.model import ModelConfig
from omni_jax.train.state import init_model_state

LAST = 200
LIKE = {'params': fresh().params, 'buffers': fresh().buffers}


save = functools.partial(saved, name='omni', keep=1)


def test_fault_27_a_reader_beside_a_fast_trainer_gets_whole_steps_only(tmp_path):
  save(tmp_path, 1)
  trainer = threading.Thread(target=save, args=(tmp_path, *range(2, 40)))
  trainer.start()
  seen, failed = set(), 0
  while trainer.is_alive():
    with Checkpoints(
      str(tmp_path), 'omni', read_only=True, say=lambda text: None
    ) as checkpoints:
      try:
        found, step = checkpoints.restore_model(LIKE)
      except UserError:
        failed += 1
        continue
    assert same(found['params'], states(step)[0].params) and same(
      found['buffers'], states(step)[0].buffers
    )
    seen.add(step)
  trainer.join()
  assert len(seen) > 3, (seen, failed)


@pytest.mark.parametrize(
  'others, expected', [((5, 6), 6), ((), None)], ids=['a_newer_step', 'none']
)
def test_fault_27_a_step_that_goes_between_its_manifest_and_its_arrays(
  tmp_path, monkeypatch, others, expected
):
  save(tmp_path, 4)
  restore = ocp.PyTreeCheckpointHandler.restore

  def removed_first(self, path, *args, **kwargs):
    if epath.Path(path).parent.name == '4':
      step_folders.remove(epath.Path(path).parents[1], 4)
      monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'restore', restore)
      save(tmp_path, *others) if others else None
    return restore(self, path, *args, **kwargs)

  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'restore', removed_first)
  said = []
  with Checkpoints(
    str(tmp_path), 'omni', read_only=True, say=said.append
  ) as checkpoints:
    if expected is None:
      with pytest.raises(UserError, match=r'no step  in .*; there are \[\]'):
        checkpoints.restore_model(LIKE)
    else:
      found, step = checkpoints.restore_model(LIKE)
      assert step == expected and same(found['params'], states(step)[0].params)
  assert 'step 4 in' in said[0] and 'was removed while it was read' in said[0]


@pytest.mark.parametrize(
  'gone', ['4', '4/model/d', '4/model/manifest.ocdbt', '4/model/_METADATA']
)
@pytest.mark.parametrize('step', [4, None], ids=['named', 'last'])
def test_fault_27_a_step_that_goes_between_its_manifest_and_its_metadata(
  tmp_path, monkeypatch, gone, step
):
  """Be it as a whole or in part, and step 5 come instead: one that was named is refused in a line, else 5 is taken."""
  save(tmp_path, 4)
  metadata = ocp.StandardCheckpointHandler.metadata

  def removed_first(self, path, *rest):
    if epath.Path(path).parent.name == '4':
      part = tmp_path / 'checkpoints' / 'omni' / gone
      shutil.rmtree(part) if part.is_dir() else part.unlink()
      monkeypatch.setattr(ocp.StandardCheckpointHandler, 'metadata', metadata)
      saved(tmp_path, 5, name='omni')
    return metadata(self, path, *rest)

  monkeypatch.setattr(ocp.StandardCheckpointHandler, 'metadata', removed_first)
  with Checkpoints(str(tmp_path), 'omni', read_only=True) as checkpoints:
    if step is None:
      assert checkpoints.shapes()['params']['scale'].shape == (64,)
    else:
      with pytest.raises(
        UserError, match=r'omni/4 is damaged: its metadata cannot be read: '
      ):
        checkpoints.shapes(step)


def test_fault_27_follow_evaluates_new_steps_and_survives_that_one_is_removed(tmp_path):
  """The trainer removes step 2 while it is evaluated, and later saves 6, its last; 3 and 4 came and went."""
  save(tmp_path, 1)
  evaluated, said, waited = [], [], []

  def evaluate(step):
    if step == 2:
      save(tmp_path, 3, 4)
    with Checkpoints(
      str(tmp_path), 'omni', read_only=True, say=said.append
    ) as checkpoints:
      found, got = checkpoints.restore_model(LIKE, step)
    assert got == step and same(found['params'], states(step)[0].params)
    evaluated.append(step)

  def wait():
    waited.append(True)
    assert len(waited) < 9
    if len(waited) == 2:
      save(tmp_path, 2)
    if len(waited) == 4:
      save(tmp_path, 6)

  follow(
    evaluate,
    lambda: listed_steps(str(tmp_path), 'omni'),
    lambda: 6,
    log=said.append,
    wait=wait,
  )
  assert evaluated == [1, 4, 6]
  assert len(said) == 1 and 'step 2 was removed while it was read' in said[0]


def test_fault_27_follow_does_not_hide_a_step_that_is_damaged(tmp_path):
  save(tmp_path, 1)

  def evaluate(step):
    raise UserError('bad')

  with pytest.raises(UserError, match='bad'):
    follow(
      evaluate,
      lambda: listed_steps(str(tmp_path), 'omni'),
      lambda: 6,
      log=print,
      wait=lambda: None,
    )


TEXT = {'data.source': 'text', 'data.train_file': 'a.txt', 'omni.steps': LAST}


def run_on_text(folder):
  """The folder of a run on a text file, evaluated by its loss alone; and a function of a step that gives its state."""
  (folder / 'a.txt').write_text('to be or not to be ' * 60)
  config = tiny_run()
  with config.unlocked():
    config.update_from_flattened_dict(TEXT | {'data.root': str(folder)})
    config.data.piece = 64
  (folder / 'config.json').write_text(json.dumps(config.to_dict(), default=list))
  model = ModelConfig.from_config(config.model)
  frozen = frozen_values(model)
  state = init_model_state(model, omni_optimizer(model), frozen, seed=0)
  return lambda step: state._replace(
    params=jax.tree.map(lambda x: x * (1 + 0.001 * step), state.params),
    step=jnp.int32(step),
  )


def test_fault_27_the_real_command_follows_a_busy_trainer_to_its_last_step(tmp_path):
  """Steps come every half second and only the newest is kept: most are gone before the command has read them."""
  state_of, evaluated = run_on_text(tmp_path), tmp_path / 'eval'
  environment = os.environ | {
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(CACHE / 'xla'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.3',
  }
  with Checkpoints(str(tmp_path), 'omni', keep=1) as checkpoints:
    checkpoints.save(state_of(1), b'{}')
    checkpoints.latest()
    process = subprocess.Popen(
      [sys.executable, '-m', 'omni_jax.evaluate', f'--workdir={tmp_path}', '--follow'],
      text=True,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )
    step = 1
    while (
      not list(evaluated.glob('*/metrics.json'))
      and process.poll() is None
      and step < LAST - 1
    ):
      step += 1
      checkpoints.save(state_of(step), b'{}')
      time.sleep(0.5)
    checkpoints.save(state_of(LAST), b'{}')
  out, err = process.communicate(timeout=100)
  # TensorStore may tell stderr of reads that nobody waits for any more; nothing comes up through our code.
  assert process.returncode == 0 and 'omni_jax/' not in err, err
  figures = {
    int(path.parent.name): json.loads(path.read_text())
    for path in evaluated.glob('*/metrics.json')
  }
  assert max(figures) == LAST and 2 <= len(figures) < step, (sorted(figures), out)
  losses = [
    figures[k]['data']['groups']['text']['loss']['text'] for k in sorted(figures)
  ]
  assert all(figures[k]['step'] == k for k in figures) and len(set(losses)) == len(
    losses
  )
  assert listed_steps(str(tmp_path), 'omni') == [LAST]
