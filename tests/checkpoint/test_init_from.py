"""A run that starts from another's weights: what agrees is taken, what does not is named, mistakes leave nothing behind."""

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

TX = optax.adam(1e-3)  # any will do: no update is made


def state(model=None, *, seed=0, average=False):
  model = model or tiny_model()
  init = lambda frozen: init_model_state(model, TX, frozen, seed=seed, average=average)
  return jax.jit(init)(frozen_values(model, seed))


def one_device_run():
  config = tiny_run()
  config.mesh.data = 1
  return config


@pytest.fixture(scope='module')
def other(tmp_path_factory):
  """A run of seed 1 with an average and router biases of its own, at steps 2 and 3."""
  folder = tmp_path_factory.mktemp('other')
  made = state(seed=1, average=True)
  average = jax.tree.map(lambda x: x + 1, made.params)
  made = made._replace(
    buffers=made.buffers
    | {'ema': average, 'router_bias': made.buffers['router_bias'] + 0.5}
  )
  with Checkpoints(str(folder), 'omni') as checkpoints:
    for step, less in ((2, 7.0), (3, 0.0)):
      buffers = made.buffers | {
        'ema': jax.tree.map(lambda x, less=less: x - less, average)
      }
      checkpoints.save(made._replace(step=jnp.int32(step), buffers=buffers), b'{}')
  (folder / 'config.json').write_text(json.dumps(tiny_run().to_dict(), default=list))
  return folder, made


def assert_same(ours, theirs):
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_array_equal(a, b)


def test_the_step_may_be_named():
  assert named_run('runs/a@12') == ('runs/a', 12) and named_run('runs/a') == (
    'runs/a',
    None,
  )
  assert named_run('gs://b/me@home/a') == ('gs://b/me@home/a', None)


@pytest.mark.parametrize('step, less', [('', 0.0), ('@2', 7.0)])
def test_all_that_agrees_is_taken_and_the_rest_starts_anew(kit, other, step, less):
  folder, made = other
  ours = state(average=True)
  got, said = start_from(f'{folder}{step}', ours, own=[])
  assert_same(got.params, jax.tree.map(lambda x: x - less, made.buffers['ema']))
  assert_same(got.buffers['ema'], got.params)
  assert_same(got.buffers['router_bias'], made.buffers['router_bias'])
  assert_same(got.buffers['frozen'], made.buffers['frozen'])
  assert_same((got.opt_state, got.step, got.rng), (ours.opt_state, ours.step, ours.rng))
  assert 'fresh' not in said and f'at step {step[1:] or 3}' in said
  mine = start_from(f'{folder}{step}', ours, own=['codec'])[0]
  assert_same(mine.buffers['frozen'], ours.buffers['frozen'])
  assert_same(mine.params, got.params)


def test_what_differs_stays_fresh_and_is_named_in_one_line(kit, other):
  folder, made = other
  ours = state(tiny_model(experts=8))
  got, said = start_from(str(folder), ours, own=[])
  assert_same(
    got.params['decoder']['blocks']['moe']['up'],
    ours.params['decoder']['blocks']['moe']['up'],
  )
  assert_same(got.params['decoder']['norm'], made.buffers['ema']['decoder']['norm'])
  assert 'ema' not in got.buffers
  assert said.count('\n') == 0 and said.endswith(
    '; fresh: buffers.router_bias, params.decoder.blocks.moe.down, params.decoder.blocks.moe.gate, '
    'params.decoder.blocks.moe.router.w, params.decoder.blocks.moe.up'
  )


def test_nothing_that_agrees_and_half_a_codec_are_mistakes(other):
  folder, _ = other
  ours = state()
  alien = ours._replace(params={'w': jnp.ones(3)})
  with pytest.raises(UserError, match='none of its parameters has the name and shape'):
    fresh_names(str(folder), alien, own=['codec'])
  codec = ours.buffers['frozen']['codec']
  books = codec['buffers']['codebooks'] | {'count_JE': jnp.ones((9, 9))}
  other_books = codec | {'buffers': {'codebooks': books}}
  half = ours._replace(buffers=ours.buffers | {'frozen': {'codec': other_books}})
  with pytest.raises(
    UserError,
    match=r'its codec is another \(buffers.frozen.codec.buffers.codebooks.count_JE\); '
    r"put 'codec' into",
  ):
    fresh_names(str(folder), half, own=[])
  assert fresh_names(str(folder), half, own=['codec']) == []


def test_mistakes_are_found_before_anything_is_written(tmp_path, other):
  config = one_device_run()
  workdir = tmp_path / 'run'
  for init_from, said in (
    (str(tmp_path / 'nowhere'), 'no checkpoint of stage'),
    (f'{other[0]}@77', r'no step 77 .* \[2, 3\]'),
  ):
    config.init_from = init_from
    with pytest.raises(UserError, match=f'config.init_from={init_from}: .*{said}'):
      stages.run_all(config, str(workdir))
  config.init_from = ''
  for key, value, said in (
    (
      'freeze',
      ('haeds.*',),
      "no parameter matches 'haeds.*'; there are .*heads.text.out.w",
    ),
    ('ema', 1.0, r'config\.omni: ema=1\.0: a decay is'),
  ):
    part = one_device_run()
    part.omni[key] = value
    with pytest.raises(UserError, match=said):
      stages.run_all(part, str(workdir))
  assert not list(tmp_path.iterdir())


def test_the_codec_of_another_run(tmp_path):
  config, donor = one_device_run(), str(tmp_path / 'donor')
  run = stages.Run(config, donor)
  values = codec_values(run.model_config, seed=5)
  with Checkpoints(donor, 'codec') as checkpoints:
    made = init_autoencoder_state(run.model_config, 'codec', TX, seed=0)
    checkpoints.save(made._replace(**values), b'{}')
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


def test_a_run_with_a_checkpoint_of_its_own_does_not_look(tmp_path, other):
  with Checkpoints(str(tmp_path), 'omni') as checkpoints:
    checkpoints.save(state()._replace(step=jnp.int32(1)), b'{}')
  config = one_device_run()
  config.init_from = str(tmp_path / 'gone')
  assert not stages.Run(config, str(tmp_path)).starts
  config.init_from = str(other[0])
  config.model.audio.seconds = 0.48
  assert stages.Run(config, str(tmp_path / 'new')).starts


def test_evaluation_takes_the_average_unless_asked_for_the_raw_weights(other):
  folder, made = other
  _, model, step = restore_run(str(folder), None)
  assert_same(model['params'], made.buffers['ema'])
  assert 'ema' not in model['buffers'] and step == 3
  assert_same(restore_run(str(folder), None, 'raw')[1]['params'], made.params)
  with pytest.raises(UserError, match="'mean' is unknown"):
    restore_run(str(folder), None, 'mean')


def test_runs_without_an_average_and_of_older_configs_are_restored(tmp_path):
  made = state()._replace(step=jnp.int32(1))
  assert 'ema' not in made.buffers
  config = tiny_run()
  del config.omni.ema, config.omni.freeze, config.init_from
  (tmp_path / 'config.json').write_text(json.dumps(config.to_dict(), default=list))
  with Checkpoints(str(tmp_path), 'omni') as checkpoints:
    checkpoints.save(made, b'{}')
  assert_same(restore_run(str(tmp_path), None)[1]['params'], made.params)
