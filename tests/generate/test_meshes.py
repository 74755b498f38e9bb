"""Replies on every mesh are those of one device: the same ids and codes, and the same pictures."""

import numpy as np
import pytest
import samples
from samples import same_parts

from omni_jax.generate.api import load

GREEDY = dict(temperature=0.0, speech_temperature=0.0, max_new=12)
MESHES = [
  dict(data=8),
  dict(fsdp=8),
  dict(expert=4),
  dict(tensor=8),
  dict(context=8),
  dict(data=2, expert=2, tensor=2),
  dict(fsdp=2, tensor=2, context=2),
]


def written(model):
  """What is said to one prompt alone, in which rows do not divide by anything, and to three together; sound as codes."""
  rng = np.random.default_rng(0)
  prompts = [
    samples.chat('a', [samples.picture(rng), samples.text('q')], [], task='reply')[
      'messages'
    ],
    samples.chat('b', [samples.sound(rng)], [], task='reply')['messages'],
    samples.chat('c', [samples.text('a longer question')], [], task='reply')[
      'messages'
    ],
  ]
  prompts = [{'messages': messages} for messages in prompts]
  # Codes are compared, and the codec is tested elsewhere.
  model.decode_items = lambda name, codes: codes
  return [
    model.generate_batch([prompts[0]], 'any', **GREEDY),
    model.generate_batch(prompts, 'any', **GREEDY),
    model.generate_batch(prompts[:1], 'audio', **GREEDY),
    model.generate_batch(prompts[:1], 'image', **GREEDY),
  ]


@pytest.fixture(scope='module')
def on_one_device(workdir):
  return written(load(str(workdir)))


@pytest.mark.parametrize('sizes', samples.mostly_long(MESHES, 5, 6), ids=str)
def test_greedy_replies_are_the_same_on_every_mesh(workdir, on_one_device, sizes):
  """Ids and codes are equal, not close: they are the best of logits whose sums differ in the last places only.

  Pixels are bytes, denoised in eight steps: some are rounded to the next level.
  """
  kinds = set()
  ours = written(load(str(workdir), mesh=sizes))
  for mine, other in zip(ours, on_one_device, strict=True):
    for my_parts, other_parts in zip(mine, other, strict=True):
      assert same_parts(my_parts, other_parts)
      kinds |= {part.type for part in my_parts}
  assert kinds >= {'text', 'audio', 'image'}
