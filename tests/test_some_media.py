"""Models with fewer media than there are: they train a step and write, and refuse by name what they do not have."""

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest
import samples
from samples import chat, picture, text

from omni_jax import sharding
from omni_jax.checkpoint.init_values import init_frozen
from omni_jax.config import config_file
from omni_jax.data.loader import Loader
from omni_jax.data.making import Making
from omni_jax.errors import UserError
from omni_jax.generate.api import TrainedModel
from omni_jax.train.plan import omni_program, Plan

TEXT_CONFIG = config_file(str(samples.ROOT / 'configs' / 'base.py'), 'text')


def text_only() -> ConfigDict:
  c = samples.tiny_run()
  TEXT_CONFIG['without_media'](c)
  c.stages = ('omni',)
  return c


def image_only() -> ConfigDict:
  c = samples.tiny_run()
  del c.model.audio
  del c.model.codec
  del c.data.budget.streams.audio
  del c.data.augment.audio
  del c.omni.losses.audio
  c.omni.losses.inside = ConfigDict()
  c.stages = ('omni',)
  return c


def questions(*parts) -> list[dict]:
  """Examples that ask for a part and answer with text, and the other way round."""
  examples = []
  for k, part in enumerate(parts):
    write = chat(f'{k}/write', [part], [text('one')], task='write')
    task = {'image': 'draw'}.get(part['type'], 'reply')
    examples += [write, chat(f'{k}/show', [text('one')], [part], task=task)]
  return examples


MEDIA = {
  'text': (text_only, lambda rng: text('?')),
  'image': (image_only, lambda rng: picture(rng)),
}


@pytest.fixture(scope='module', params=MEDIA)
def trained(request):
  """(name, plan, losses of forty steps, the model that generates), by the programs of every run."""
  make_config, part = MEDIA[request.param]
  config = make_config()
  config.mesh.data = 1
  config.omni.optim.warmup = 1
  plan = Plan(config)
  rng = np.random.default_rng(0)
  examples = questions(*(part(rng) for _ in range(8)))
  loader = Loader(Making(examples, plan.hosts, 0), plan.budget, prefetch=0)
  losses = []
  with jax.set_mesh(plan.mesh):
    frozen = init_frozen(plan.model_config, seed=0)
    program = omni_program(plan, frozen)
    state = program.init(frozen)
    for _ in range(40):
      batch = sharding.place(next(loader), plan.mesh)
      state, metrics = program.step(state, batch)
      losses.append(jax.device_get(metrics))
  model = TrainedModel(plan.config, 40, state.params, state.buffers)
  return request.param, plan, losses, model


def test_it_has_the_parts_of_its_media_and_no_others(trained):
  name, plan, _, model = trained
  media = {'text'} if name == 'text' else {'text', 'image'}
  assert set(plan.hosts) == media and not plan.model_config.autoencoders
  assert set(model.params['embeds']) == set(model.params['heads']) == media
  assert {spec.medium for spec in plan.hosts.streams} == media - {'text'}
  assert not model.frozen
  # Numbers are places in the table, whatever the run has.
  assert plan.hosts.numbers == {'text': 1, 'image': 2, 'audio': 3}


def test_it_trains(trained):
  name, _, losses, _ = trained
  first, last = losses[0], losses[-1]
  assert last['loss/text'] < first['loss/text']
  assert not any(metrics['skipped'] for metrics in losses)
  assert ('loss/image' in first) == (name == 'image') and 'loss/audio' not in first
  if name == 'image':
    assert first['weight/image'] > 0 and first['grad_norm/heads.image'] > 0
    images = [metrics['loss/image'] for metrics in losses]
    assert np.mean(images[-10:]) < 0.95 * np.mean(images[:5])


def test_it_writes_what_it_has_and_refuses_the_rest(trained):
  name, _, _, model = trained
  (part,) = model.generate('one', want='text', max_new=8)
  assert part.type == 'text' and part.text
  for part in model.generate('one', want='any', max_new=8):
    assert part.type in model.hosts
  if name == 'image':
    (drawn,) = model.generate('one', want='image')
    assert drawn.pixels.shape[2] == 1
    shown = picture(np.random.default_rng(1))
    assert model.generate([shown], want='text', max_new=8)[0].type == 'text'
  else:
    with pytest.raises(UserError, match="want='image' is unknown.*'text', 'any'"):
      model.generate('one', want='image')
    with pytest.raises(UserError, match="type 'image' is unknown; it is one of text"):
      model.generate([picture(np.random.default_rng(1))], want='text')
  with pytest.raises(UserError, match="want='audio' is unknown"):
    model.generate('one', want='audio')
  with pytest.raises(UserError, match="type 'audio' is unknown"):
    model.generate([samples.sound(np.random.default_rng(1))], want='text')


def test_it_scores_examples(trained):
  name, _, _, model = trained
  part = text('?') if name == 'text' else picture(np.random.default_rng(0))
  losses = model.loss(questions(part))
  assert set(losses) == ({'text'} if name == 'text' else {'text', 'image'})
  assert all(np.isfinite(loss) and loss > 0 for loss in losses.values())
