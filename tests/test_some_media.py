"""Models with only some of the media train, write, and refuse the others by name."""

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest
import samples
from samples import chat, picture, text

from omni_jax import sharding
from omni_jax.checkpoint.init_values import init_frozen
from omni_jax.config import config_file
from omni_jax.data.example_maker import ExampleMaker
from omni_jax.data.loader import Loader
from omni_jax.errors import UserError
from omni_jax.generate.api import TrainedModel
from omni_jax.train.plan import omni_program, Plan

TEXT_CONFIG = config_file(str(samples.ROOT / 'configs' / 'base.py'), 'text')


def text_only() -> ConfigDict:
  """Returns the config of a run without media."""
  config = samples.tiny_run()
  TEXT_CONFIG['without_media'](config)
  config.stages = ('omni',)
  return config


def image_only() -> ConfigDict:
  """Returns the config of a run without audio."""
  config = samples.tiny_run()
  del config.model.audio
  del config.model.codec
  del config.data.budget.streams.audio
  del config.data.augment.audio
  del config.omni.losses.audio
  config.omni.losses.inside = ConfigDict()
  config.stages = ('omni',)
  return config


def questions(*parts) -> list[dict]:
  """Returns two examples per part: the part with a text as answer, and the reverse."""
  examples = []
  for k, part in enumerate(parts):
    task = 'draw' if part['type'] == 'image' else 'reply'
    write = chat(f'{k}/write', [part], [text('one')], task='write')
    show = chat(f'{k}/show', [text('one')], [part], task=task)
    examples += [write, show]
  return examples


# Name of the case -> (config, function (rng) -> part of an example).
MEDIA = {'text': (text_only, lambda rng: text('?')), 'image': (image_only, picture)}


@pytest.fixture(scope='module', params=MEDIA)
def short_run(request):
  """Trains for forty steps with the programs of every run.

  Returns:
    The name of the case, the plan, the metrics of each step, and the trained model.
  """
  make_config, part = MEDIA[request.param]
  config = make_config()
  config.mesh.data = 1
  config.omni.optim.warmup = 1
  plan = Plan(config)
  rng = np.random.default_rng(0)
  examples = questions(*(part(rng) for _ in range(8)))
  loader = Loader(ExampleMaker(examples, plan.hosts, 0), plan.budget, prefetch=0)
  history = []
  with jax.set_mesh(plan.mesh):
    frozen = init_frozen(plan.model_config, seed=0)
    program = omni_program(plan, frozen)
    state = program.init(frozen)
    for _ in range(40):
      batch = sharding.place(next(loader), plan.mesh)
      state, metrics = program.step(state, batch)
      history.append(jax.device_get(metrics))
  model = TrainedModel(plan.config, 40, state.params, state.buffers)
  return request.param, plan, history, model


def test_a_model_has_the_parts_of_its_media_and_no_others(short_run):
  name, plan, _, model = short_run
  media = {'text', name}
  assert set(plan.hosts) == media
  assert not plan.model_config.autoencoders
  assert set(model.params['embeds']) == set(model.params['heads']) == media
  assert {spec.medium for spec in plan.hosts.streams} == media - {'text'}
  assert not model.frozen
  # Numbers are places in the table, independent of the media of the run.
  assert plan.hosts.numbers == {'text': 1, 'image': 2, 'audio': 3}


def test_losses_fall_and_only_heads_of_its_media_have_one(short_run):
  name, _, history, _ = short_run
  first = history[0]
  last = history[-1]
  assert last['loss/text'] < first['loss/text']
  assert not any(metrics['skipped'] for metrics in history)
  assert ('loss/image' in first) == (name == 'image')
  assert 'loss/audio' not in first
  if name == 'image':
    assert first['weight/image'] > 0
    assert first['grad_norm/heads.image'] > 0
    images = [metrics['loss/image'] for metrics in history]
    assert np.mean(images[-10:]) < 0.95 * np.mean(images[:5])


def test_a_model_writes_its_media_and_refuses_the_others(short_run):
  name, _, _, model = short_run
  (part,) = model.generate('one', want='text', max_new=8)
  assert part.type == 'text'
  assert part.text
  for part in model.generate('one', want='any', max_new=8):
    assert part.type in model.hosts
  if name == 'image':
    (drawn,) = model.generate('one', want='image')
    assert drawn.pixels.shape[2] == 1
    prompt = [picture(np.random.default_rng(1))]
    answer = model.generate(prompt, want='text', max_new=8)
    assert answer[0].type == 'text'
  else:
    with pytest.raises(UserError, match="want='image' is unknown.*'text', 'any'"):
      model.generate('one', want='image')
    with pytest.raises(UserError, match="type 'image' is unknown; it is one of text"):
      model.generate([picture(np.random.default_rng(1))], want='text')
  with pytest.raises(UserError, match="want='audio' is unknown"):
    model.generate('one', want='audio')
  with pytest.raises(UserError, match="type 'audio' is unknown"):
    model.generate([samples.sound(np.random.default_rng(1))], want='text')


def test_a_model_scores_examples(short_run):
  name, _, _, model = short_run
  part = text('?') if name == 'text' else picture(np.random.default_rng(0))
  losses = model.loss(questions(part))
  assert set(losses) == {'text', name}
  assert all(np.isfinite(loss) and loss > 0 for loss in losses.values())
