"""Replies on every mesh are those of one device: the same ids and codes, and the same pictures."""

import numpy as np
import pytest
import samples

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


def written(omni):
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
  omni.codec_decode = lambda codes: (
    codes
  )  # codes are compared, and the codec is tested elsewhere
  return [
    omni.generate_batch([prompts[0]], 'any', **GREEDY),
    omni.generate_batch(prompts, 'any', **GREEDY),
    omni.generate_batch(prompts[:1], 'audio', **GREEDY),
    omni.generate_batch(prompts[:1], 'image', **GREEDY),
  ]


@pytest.fixture(scope='module')
def on_one_device(workdir):
  return written(load(str(workdir)))


@pytest.mark.parametrize('sizes', samples.mostly_long(MESHES, 5, 6), ids=str)
def test_greedy_replies_are_the_same_on_every_mesh(workdir, on_one_device, sizes):
  """Ids and codes are equal, not close: they are the best of logits whose sums differ in the last places only.

  Pixels are numbers, denoised in eight steps: 1e-4 of their range.
  """
  kinds = set()
  for ours, theirs in zip(
    written(load(str(workdir), mesh=sizes)), on_one_device, strict=True
  ):
    for mine, other in zip(ours, theirs, strict=True):
      assert [(part.type, part.text) for part in mine] == [
        (part.type, part.text) for part in other
      ]
      for a, b in zip(mine, other, strict=True):
        kinds.add(a.type)
        if a.type == 'audio':
          np.testing.assert_array_equal(a.wave, b.wave)
        elif a.type == 'image':
          np.testing.assert_allclose(a.pixels, b.pixels, atol=1e-4)
  assert kinds >= {'text', 'audio', 'image'}
