"""The stage 'evaluate' runs in the trainer's process, once its memory is free."""

import gc
import json
import runpy
import subprocess

import jax
import pytest
from samples import ROOT

from omni_jax.errors import UserError
from omni_jax.evaluate import run as evaluation
from omni_jax.modalities.devices import TABLES
from omni_jax.train import stages

STEPS = 2
SMALL = 1000  # bytes of small arrays such as a step or a key


def text_run(folder):
  """Returns the config of a short run on a text file, evaluated by its loss alone."""
  (folder / 'a.txt').write_text('to be or not to be ' * 60)
  config = runpy.run_path(str(ROOT / 'configs' / 'shakespeare.py'))['get_config']()
  config.data.update(dict(root=str(folder), train_file='a.txt'))
  config.data.budget.rows = 4
  config.mesh.data = 2
  config.omni.optim.kind = 'adamw'
  config.omni.update(dict(steps=STEPS, log_every=1, save_every=STEPS))
  return config


def live_bytes():
  """Returns the number of bytes of all arrays on the devices."""
  return sum(array.nbytes for array in jax.live_arrays())


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('text')


@pytest.fixture(scope='module')
def situation(folder):
  """Returns what is true when a run restores its last checkpoint to evaluate it.

  The run fails if it starts a process.
  """
  situation = {}

  def restore(workdir, **options):
    situation['mesh'] = jax.sharding.get_abstract_mesh()
    situation['live'] = live_bytes()
    situation['tables'] = options['tables']
    trained = real_restore(workdir, **options)
    params = jax.tree.leaves(trained.params)
    situation['parameters'] = sum(x.nbytes for x in params)
    situation['devices'] = set().union(*(x.devices() for x in params))
    return trained

  def fail(*_, **__):
    raise AssertionError('a second process would find no TPU: this one has it')

  real_restore = evaluation.restore
  gc.collect()
  situation['before'] = live_bytes()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(evaluation, 'restore', restore)
    patch.setattr(subprocess, 'Popen', fail)
    stages.run_all(text_run(folder), str(folder / 'run'))
  return situation


def test_the_report_is_written(folder, situation):
  evaluation_folder = folder / 'run' / 'eval' / str(STEPS)
  metrics = json.loads((evaluation_folder / 'metrics.json').read_text())
  assert metrics['step'] == STEPS
  assert metrics['data']['groups']['text']['loss']['text']
  assert (evaluation_folder / 'report.html').exists()
  assert situation['tables'] is TABLES  # of the run's media


def test_the_memory_of_the_trainer_is_free_before_anything_is_restored(situation):
  assert situation['parameters'] > 100 * SMALL
  assert situation['live'] <= situation['before'] + SMALL


def test_all_devices_evaluate_outside_the_trainers_mesh(situation):
  """The trainer's mesh has two of the eight devices."""
  assert situation['mesh'].empty
  assert situation['devices'] == set(jax.local_devices())


def test_a_mistake_in_config_evaluate_is_raised_as_a_user_error(folder, situation):
  """`errors.run_command` then reports it in one line and exits with code 2."""
  config = text_run(folder)
  config.evaluate = {'n_image': 3}
  with pytest.raises(UserError, match=r'config\.evaluate: unknown n_image'):
    stages.run_all(config, str(folder / 'run'))
