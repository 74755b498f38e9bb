"""A run may have no autoencoder or two; each is restored by its name."""

import functools
import json

import jax
import jax.numpy as jnp
from modalities.test_toy_medium import run_config, TABLES
import numpy as np
import optax
import pytest
from samples import config, tiny_run

import omni_jax
from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.checkpoint.init_from import start_from
from omni_jax.checkpoint.init_values import init_frozen
from omni_jax.checkpoint.restore import restore_run
from omni_jax.errors import UserError
from omni_jax.model import ModelConfig
from omni_jax.train import stages
from omni_jax.train.state import init_autoencoder_state, init_model_state

TX = optax.adam(1e-3)  # any optimizer will do: no update is computed


def assert_same(actual, expected):
  """Checks that two trees are equal."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(a, b)


# Without an autoencoder: rows of text alone.


def text_run(folder, steps, stage_names):
  """Returns the config of a short run of text, at a rate independent of its steps."""
  (folder / 'a.txt').write_text('to be or not to be ' * 60)
  c = config('text')
  c.stages = stage_names
  c.mesh.data = 2
  c.model.decoder.update(tiny_run().model.decoder.to_dict())
  c.data.update(dict(source='text', root=str(folder), train_file='a.txt', piece=32))
  c.data.budget.update(dict(rows=4, length=66))
  c.omni.optim.update(dict(kind='adamw', warmup=1, final=1.0))
  c.omni.update(dict(steps=steps, log_every=1, save_every=2))
  c.generate.max_new = 8
  return c


@pytest.fixture(scope='module')
def text_runs(tmp_path_factory):
  """Returns the folder of a run of four steps, and that of a run of two and two.

  The last one also evaluates.
  """
  folder = tmp_path_factory.mktemp('text')
  whole = folder / 'whole'
  parts = folder / 'parts'
  stages.run_all(text_run(folder, 4, ('omni',)), str(whole))
  stages.run_all(text_run(folder, 2, ('omni',)), str(parts))
  stages.run_all(text_run(folder, 4, ('omni', 'evaluate')), str(parts))
  return whole, parts


def logged_metrics(workdir):
  """Returns the lines of metrics.jsonl without the values that depend on the clock."""
  lines = []
  for text in (workdir / 'metrics.jsonl').read_text().splitlines():
    line = {}
    for name, value in json.loads(text).items():
      if not name.startswith(('seconds', 'speed/')):
        line[name] = value
    lines.append(line)
  return lines


def test_a_run_of_text_alone_resumes_bit_exactly(text_runs):
  whole, parts = text_runs
  assert [line['step'] for line in logged_metrics(parts)] == [1, 2, 3, 4]
  assert logged_metrics(parts) == logged_metrics(whole)
  actual = restore_run(str(parts), None)
  expected = restore_run(str(whole), None)
  assert_same(actual.params, expected.params)
  assert_same(actual.buffers, expected.buffers)


def test_a_run_of_text_alone_has_one_head_and_nothing_frozen(text_runs):
  _, parts = text_runs
  line = logged_metrics(parts)[-1]
  heads = {name for name in line if name.startswith(('weight/', 'grad_norm/heads'))}
  assert heads == {'weight/text', 'grad_norm/heads.text'}
  trained = omni_jax.load(str(parts))
  assert trained.step == 4 and trained.frozen == {}
  assert set(trained.params['embeds']) == set(trained.params['heads']) == {'text'}


def test_a_run_of_text_alone_is_evaluated_and_writes(text_runs):
  _, parts = text_runs
  folder = parts / 'eval' / '4'
  metrics = json.loads((folder / 'metrics.json').read_text())
  assert metrics['data']['groups']['text']['loss']['text'] > 0
  assert (folder / 'report.html').exists()
  trained = omni_jax.load(str(parts))
  assert [part.type for part in trained.generate('to be')] in (['text'], [])
  with pytest.raises(UserError, match='image'):
    trained.generate('to be', want='image')


# With two autoencoders: the codec, and that of a medium which only the tests have.


def save_autoencoder(workdir, run, name, step, seed=0):
  """Saves a checkpoint of an autoencoder's stage, and returns its values."""
  state = init_autoencoder_state(run.model_config, name, TX, seed=seed)
  with Checkpoints(str(workdir), name) as checkpoints:
    checkpoints.save(state._replace(step=jnp.int32(step)), b'{}')
  return {'params': state.params, 'buffers': state.buffers}


def test_both_are_restored_by_name_and_frozen_in_the_state(tmp_path):
  c = run_config()
  c.stages = ('omni',)
  run = stages.Run(c, str(tmp_path), TABLES)
  values = {
    'codec': save_autoencoder(tmp_path, run, 'codec', c.codec.steps, seed=3),
    'cells': save_autoencoder(tmp_path, run, 'cells', c.cells.steps, seed=4),
  }
  frozen = stages.restore_frozen(run)
  assert_same(frozen, values)
  with jax.set_mesh(run.mesh):
    stage = stages.omni_stage(run, frozen)
  stage.batches.close()
  assert_same(stage.state.buffers['frozen'], values)


@pytest.mark.parametrize('late', ['codec', 'cells'])
def test_an_unfinished_autoencoder_is_named(tmp_path, late):
  c = run_config()
  c.stages = ('omni',)
  run = stages.Run(c, str(tmp_path), TABLES)
  for name in ('codec', 'cells'):
    steps = c[name].steps - (name == late)
    save_autoencoder(tmp_path, run, name, steps)
  message = (
    f'the {late} stage of {tmp_path} is at step 29 of 30; finish it first: '
    f"config.stages must hold '{late}' before 'omni'"
  )
  with pytest.raises(UserError) as raised:
    stages.restore_frozen(run)
  assert str(raised.value) == message


def test_an_autoencoder_may_come_from_another_run(tmp_path):
  c = run_config()
  donor = tmp_path / 'donor'
  workdir = tmp_path / 'run'
  run = stages.Run(c, str(donor), TABLES)
  cells = save_autoencoder(donor, run, 'cells', 12, seed=5)
  c.cells.init_from = str(donor)
  c.stages = ('codec', 'omni')
  run = stages.Run(c, str(workdir), TABLES)
  codec = save_autoencoder(workdir, run, 'codec', c.codec.steps, seed=6)
  assert_same(stages.restore_frozen(run), {'codec': codec, 'cells': cells})
  c.stages = ('codec', 'cells', 'omni')
  with pytest.raises(UserError, match="uses a finished cells: remove 'cells' from"):
    stages.Run(c, str(workdir), TABLES)


def whole_state(model_config, seed):
  """Returns a fresh state of the omni stage."""
  init = functools.partial(init_model_state, model_config, TX, seed=seed)
  return jax.jit(init)(init_frozen(model_config, seed=seed))


@pytest.fixture(scope='module')
def others(tmp_path_factory):
  """Returns a folder with two runs of another seed.

  `both` has both autoencoders, and `one` lacks the second.
  """
  folder = tmp_path_factory.mktemp('others')
  models = {
    'both': ModelConfig.from_config(run_config().model, TABLES),
    'one': ModelConfig.from_config(tiny_run().model),
  }
  for name, model_config in models.items():
    with Checkpoints(str(folder / name), 'omni') as checkpoints:
      checkpoints.save(whole_state(model_config, seed=1), b'{}')
  return folder


def test_weights_start_from_another_run_with_the_autoencoders_that_this_one_lacks(
  tmp_path, others
):
  c = run_config()
  c.stages = ('codec', 'omni')
  c.init_from = str(others / 'both')
  run = stages.Run(c, str(tmp_path), TABLES)
  assert run.starts_from_weights
  assert run.own_autoencoders() == ['codec']
  fresh = whole_state(run.model_config, seed=0)
  other = whole_state(run.model_config, seed=1)
  state, line = start_from(c.init_from, fresh, own=['codec'])
  assert_same(state.params, other.params)
  frozen = state.buffers['frozen']
  assert_same(frozen['cells'], other.buffers['frozen']['cells'])
  assert_same(frozen['codec'], fresh.buffers['frozen']['codec'])
  assert 'fresh' not in line


def test_an_autoencoder_that_the_other_run_lacks_is_refused_before_anything_is_written(
  tmp_path, others
):
  c = run_config()
  c.stages = ('codec', 'omni')
  c.init_from = str(others / 'one')
  message = (
    f"config.init_from={c.init_from}: it has no cells; put 'cells' into config.stages"
  )
  with pytest.raises(UserError) as raised:
    stages.run_all(c, str(tmp_path / 'run'), TABLES)
  assert str(raised.value).startswith(message)
  assert not (tmp_path / 'run').exists()
  c.stages = ('codec', 'cells', 'omni')
  run = stages.Run(c, str(tmp_path / 'run'), TABLES)
  assert run.starts_from_weights
  assert run.own_autoencoders() == ['codec', 'cells']
