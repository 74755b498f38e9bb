"""A run may start from the weights of another run.

Arrays that agree are restored, the others are named, and mistakes leave nothing behind.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from samples import codec_values, frozen_values, tiny_model, tiny_run

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.checkpoint.init_from import fresh_names, named_run, start_from
from omni_jax.checkpoint.restore import restore_run
from omni_jax.errors import UserError
from omni_jax.train import stages
from omni_jax.train.state import init_autoencoder_state, init_model_state

TX = optax.adam(1e-3)  # any optimizer will do: no update is made


def state(model=None, *, seed=0, average=False):
  """Returns a fresh state of the omni stage."""
  model = model or tiny_model()
  init = lambda frozen: init_model_state(model, TX, frozen, seed=seed, average=average)
  return jax.jit(init)(frozen_values(model, seed))


def one_device_run():
  """Returns the config of a tiny run on one device."""
  config = tiny_run()
  config.mesh.data = 1
  return config


@pytest.fixture(scope='module')
def other_run(tmp_path_factory):
  """Returns the folder of a run of seed 1 at steps 2 and 3, and its state.

  It has an average and router biases of its own; at step 2 the average is smaller by 7.
  """
  folder = tmp_path_factory.mktemp('other')
  other_state = state(seed=1, average=True)
  buffers = dict(other_state.buffers)
  buffers['ema'] = jax.tree.map(lambda x: x + 1, other_state.params)
  buffers['router_bias'] += 0.5
  other_state = other_state._replace(buffers=buffers)
  with Checkpoints(str(folder), 'omni') as checkpoints:
    checkpoints.save(with_smaller_average(other_state, 7.0, step=2), b'{}')
    checkpoints.save(with_smaller_average(other_state, 0.0, step=3), b'{}')
  write_config(folder, tiny_run())
  return folder, other_state


def with_smaller_average(state, difference, *, step):
  """Returns a state of another step whose average is smaller by a difference."""
  average = jax.tree.map(lambda x: x - difference, state.buffers['ema'])
  buffers = state.buffers | {'ema': average}
  return state._replace(step=jnp.int32(step), buffers=buffers)


def write_config(folder, config):
  """Writes the config.json of a run."""
  text = json.dumps(config.to_dict(), default=list)
  (folder / 'config.json').write_text(text)


def assert_same(actual, expected):
  """Checks that two trees have equal leaves."""
  leaves = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
  for a, b in leaves:
    np.testing.assert_array_equal(a, b)


def test_a_step_may_be_named_after_the_folder():
  assert named_run('runs/a@12') == ('runs/a', 12)
  assert named_run('runs/a') == ('runs/a', None)
  assert named_run('gs://b/me@home/a') == ('gs://b/me@home/a', None)


@pytest.mark.parametrize('suffix, step, difference', [('', 3, 0.0), ('@2', 2, 7.0)])
def test_arrays_that_agree_are_restored_and_the_rest_is_fresh(
  kit, other_run, suffix, step, difference
):
  folder, other_state = other_run
  fresh = state(average=True)
  initial, message = start_from(f'{folder}{suffix}', fresh, own=[])
  average = jax.tree.map(lambda x: x - difference, other_state.buffers['ema'])
  assert_same(initial.params, average)
  assert_same(initial.buffers['ema'], initial.params)
  assert_same(initial.buffers['router_bias'], other_state.buffers['router_bias'])
  assert_same(initial.buffers['frozen'], other_state.buffers['frozen'])
  assert_same(initial.opt_state, fresh.opt_state)
  assert_same(initial.step, fresh.step)
  assert_same(initial.rng, fresh.rng)
  assert 'fresh' not in message
  assert f'at step {step}' in message
  with_own_codec, _ = start_from(f'{folder}{suffix}', fresh, own=['codec'])
  assert_same(with_own_codec.buffers['frozen'], fresh.buffers['frozen'])
  assert_same(with_own_codec.params, initial.params)


def test_arrays_that_differ_stay_fresh_and_are_named_in_one_line(kit, other_run):
  folder, other_state = other_run
  fresh = state(tiny_model(experts=8))
  initial, message = start_from(str(folder), fresh, own=[])
  assert_same(
    initial.params['decoder']['blocks']['moe']['up'],
    fresh.params['decoder']['blocks']['moe']['up'],
  )
  average = other_state.buffers['ema']
  assert_same(initial.params['decoder']['norm'], average['decoder']['norm'])
  assert 'ema' not in initial.buffers
  assert message.count('\n') == 0
  assert message.endswith(
    '; fresh: buffers.router_bias, params.decoder.blocks.moe.down, '
    'params.decoder.blocks.moe.gate, params.decoder.blocks.moe.router.w, '
    'params.decoder.blocks.moe.up'
  )


def test_a_run_is_refused_if_nothing_agrees_or_if_a_part_of_its_codec_differs(
  other_run,
):
  folder, _ = other_run
  fresh = state()
  nothing_agrees = fresh._replace(params={'w': jnp.ones(3)})
  with pytest.raises(UserError, match='none of its parameters has the name and shape'):
    fresh_names(str(folder), nothing_agrees, own=['codec'])
  codec = fresh.buffers['frozen']['codec']
  codebooks = codec['buffers']['codebooks'] | {'count_JE': jnp.ones((9, 9))}
  other_codec = codec | {'buffers': {'codebooks': codebooks}}
  frozen = {'frozen': {'codec': other_codec}}
  codec_differs = fresh._replace(buffers=fresh.buffers | frozen)
  message = (
    r'its codec differs \(buffers.frozen.codec.buffers.codebooks.count_JE\); '
    r"put 'codec' into"
  )
  with pytest.raises(UserError, match=message):
    fresh_names(str(folder), codec_differs, own=[])
  assert fresh_names(str(folder), codec_differs, own=['codec']) == []


def test_mistakes_are_found_before_anything_is_written(tmp_path, other_run):
  folder, _ = other_run
  workdir = str(tmp_path / 'run')
  config = one_device_run()
  messages = {
    str(tmp_path / 'nowhere'): 'no checkpoint of stage',
    f'{folder}@77': r'no step 77 .* \[2, 3\]',
  }
  for init_from, message in messages.items():
    config.init_from = init_from
    with pytest.raises(UserError, match=f'config.init_from={init_from}: .*{message}'):
      stages.run_all(config, workdir)
  config = one_device_run()
  config.omni.freeze = ('haeds.*',)
  unknown = "no parameter matches 'haeds.*'; there are .*heads.text.out.w"
  with pytest.raises(UserError, match=unknown):
    stages.run_all(config, workdir)
  config = one_device_run()
  config.omni.ema = 1.0
  with pytest.raises(UserError, match=r'config\.omni: ema=1\.0 must be'):
    stages.run_all(config, workdir)
  assert not list(tmp_path.iterdir())


def test_the_codec_of_another_run_is_restored_unless_this_run_trains_one(tmp_path):
  config = one_device_run()
  donor = str(tmp_path / 'donor')
  run = stages.Run(config, donor)
  values = codec_values(run.model_config, seed=5)
  with Checkpoints(donor, 'codec') as checkpoints:
    trained = init_autoencoder_state(run.model_config, 'codec', TX, seed=0)
    checkpoints.save(trained._replace(**values), b'{}')
  config.codec.init_from = donor
  with pytest.raises(
    UserError, match="uses a finished codec: remove 'codec' from config.stages"
  ):
    stages.Run(config, str(tmp_path / 'run'))
  config.stages = ('omni',)
  frozen = stages.restore_frozen(stages.Run(config, str(tmp_path / 'run')))
  assert_same(frozen, {'codec': values})
  config.codec.init_from = str(tmp_path / 'nowhere')
  with pytest.raises(UserError, match="no checkpoint of stage 'codec'"):
    stages.Run(config, str(tmp_path / 'run'))


def test_a_run_with_a_checkpoint_of_its_own_ignores_init_from(tmp_path, other_run):
  with Checkpoints(str(tmp_path), 'omni') as checkpoints:
    checkpoints.save(state()._replace(step=jnp.int32(1)), b'{}')
  config = one_device_run()
  config.init_from = str(tmp_path / 'gone')
  assert not stages.Run(config, str(tmp_path)).starts_from_weights
  folder, _ = other_run
  config.init_from = str(folder)
  config.model.audio.seconds = 0.48
  assert stages.Run(config, str(tmp_path / 'new')).starts_from_weights


def test_the_average_is_restored_unless_the_raw_weights_are_requested(other_run):
  folder, other_state = other_run
  average = restore_run(str(folder), None)
  assert_same(average.params, other_state.buffers['ema'])
  assert 'ema' not in average.buffers
  assert average.step == 3
  raw = restore_run(str(folder), None, 'raw')
  assert_same(raw.params, other_state.params)
  with pytest.raises(UserError, match="'mean' is unknown"):
    restore_run(str(folder), None, 'mean')


def test_runs_without_an_average_and_of_older_configs_are_restored(tmp_path):
  saved_state = state()._replace(step=jnp.int32(1))
  assert 'ema' not in saved_state.buffers
  config = tiny_run()
  del config.omni.ema, config.omni.freeze, config.init_from
  write_config(tmp_path, config)
  with Checkpoints(str(tmp_path), 'omni') as checkpoints:
    checkpoints.save(saved_state, b'{}')
  restored = restore_run(str(tmp_path), None)
  assert_same(restored.params, saved_state.params)
