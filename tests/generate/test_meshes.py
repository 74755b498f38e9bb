"""Ids, codes and pictures of replies on every mesh equal those of one device."""

import numpy as np
import pytest
import samples
from samples import same_parts

from omni_jax.generate.api import load

GREEDY = dict(temperature=0.0, speech_temperature=0.0, max_new=12)
MESHES = [
  None,
  dict(data=4),
  dict(expert=4),
  dict(tensor=8),
  dict(context=8),
  dict(data=2, tensor=4),
  dict(data=2, expert=2, tensor=2),
  dict(tensor=2, context=2),
]


def replies_of(model):
  """Returns replies to one prompt alone and to three together, with sound as codes.

  The row of a single prompt cannot be split over any axis of a mesh.
  """
  rng = np.random.default_rng(0)
  contents = [
    [samples.picture(rng), samples.text('q')],
    [samples.sound(rng)],
    [samples.text('a longer question')],
  ]
  prompts = []
  for content in contents:
    example = samples.chat('x', content, [], task='reply')
    prompts.append({'messages': example['messages']})
  # Codes are compared; the codec has its own tests.
  model.decode_items = lambda name, codes: codes
  return [
    model.generate_batch([prompts[0]], 'any', **GREEDY),
    model.generate_batch(prompts, 'any', **GREEDY),
    model.generate_batch(prompts[:1], 'audio', **GREEDY),
    model.generate_batch(prompts[:1], 'image', **GREEDY),
  ]


def losses_of(model):
  """Returns the losses of more examples than fit one row of each device."""
  return model.loss(samples.examples())


@pytest.fixture(scope='module')
def losses_of_one_device(workdir):
  return losses_of(load(str(workdir), mesh={}))


@pytest.mark.parametrize(
  'sizes',
  samples.mark_long_except([None, dict(data=2, expert=2, tensor=2)], 0),
  ids=str,
)
def test_losses_are_the_same_on_every_mesh(workdir, losses_of_one_device, sizes):
  """Rows that are added so that every device has one do not count."""
  losses = losses_of(load(str(workdir), mesh=sizes))
  assert losses == pytest.approx(losses_of_one_device, rel=1e-5)
  assert losses.keys() >= {'text', 'image', 'audio'}


@pytest.fixture(scope='module')
def replies_of_one_device(workdir):
  return replies_of(load(str(workdir), mesh={}))


@pytest.mark.parametrize('sizes', samples.mark_long_except(MESHES, 0, 3, 6), ids=str)
def test_greedy_replies_are_the_same_on_every_mesh(
  workdir, replies_of_one_device, sizes
):
  """Ids and codes are equal, although logits differ in their last digits.

  Pixels are bytes, denoised in eight steps: some are rounded to the next level.
  """
  kinds = set()
  replies_of_mesh = replies_of(load(str(workdir), mesh=sizes))
  batches = zip(replies_of_mesh, replies_of_one_device, strict=True)
  for replies, expected_replies in batches:
    for parts, expected in zip(replies, expected_replies, strict=True):
      assert same_parts(parts, expected)
      kinds |= {part.type for part in parts}
  assert kinds >= {'text', 'audio', 'image'}
