"""Tests masks, the noise of an image, guidance and sampling of the DiT head."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import BUDGET, chat, packed_batch, part, picture, text

from omni_jax.data.example_maker import prepare
from omni_jax.modalities.head_loss import HeadLoss
from omni_jax.modalities.image.files import bytes_of
from omni_jax.modalities.image.head import DiTHead
from omni_jax.modalities.image.host import cut, patch_places
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.model import encode_streams, merge
from omni_jax.nn.pool import Pool
from omni_jax.types import Stream

IMAGE = ImageConfig(height=4, width=4, patch=2)  # 4 patches of 4 values
DATA = jax.random.normal(jax.random.key(0), (3, 4, 4))
PLACE = jnp.asarray(np.tile(patch_places(2, 2), (3, 1, 1)))
CONFIG = part(
  'model.image.head', width=16, layers=1, heads=2, hidden=16, noises=2, null=0.5
)


def velocity(head, x, t, state, valid=None):
  """Returns the velocity of the valid patches of three images, one per row."""
  if valid is None:
    valid = jnp.ones((3, 4), bool)
  pool = Pool.of(valid.astype(jnp.int32), 1, block=4, longest=4)
  return head.velocity(x, jnp.full((3, 1), t), state, PLACE, pool)


@pytest.fixture(scope='module')
def head():
  """Returns a head with all weights random.

  At its initial zeros adaLN-Zero outputs nothing, so a test could not fail.
  """
  head = DiTHead(CONFIG, IMAGE, 4, 8, rngs=nnx.Rngs(0))
  leaves, tree = jax.tree.flatten(nnx.state(head, nnx.Param))
  keys = jax.random.split(jax.random.key(7), len(leaves))
  noise = [
    0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
  ]
  nnx.update(head, tree.unflatten(noise))
  return head


def test_a_fresh_head_predicts_zero():
  fresh = DiTHead(CONFIG, IMAGE, 4, 8, rngs=nnx.Rngs(0))
  predicted = nnx.jit(velocity)(fresh, DATA, 0.5, jnp.ones((3, 4, 8)))
  np.testing.assert_array_equal(predicted, 0)


def test_patches_outside_a_small_image_change_nothing_inside(head):
  valid = jnp.asarray(
    [[True, True, True, True], [True, False, True, False], [True, False, False, False]]
  )
  state = jax.random.normal(jax.random.key(1), (3, 4, 8))
  run = nnx.jit(lambda head, x, state: velocity(head, x, 0.5, state, valid))
  clean = run(head, DATA, state)
  inside = valid[..., None]
  corrupted_data = jnp.where(inside, DATA, 50.0)
  corrupted_state = jnp.where(inside, state, -50.0)
  corrupted = run(head, corrupted_data, corrupted_state)
  np.testing.assert_allclose(clean[valid], corrupted[valid], rtol=1e-5, atol=1e-6)
  # Patch 2 of image 1 changes its patch 0 as well, but no other image.
  with_other_patch = run(head, DATA.at[1, 2].add(1.0), state)
  assert (jnp.abs(with_other_patch - clean)[1, 0] > 1e-4).any()
  others = jnp.asarray([0, 2])
  np.testing.assert_allclose(
    with_other_patch[others], clean[others], rtol=1e-5, atol=1e-6
  )


def test_time_and_condition_change_the_velocity(head):
  state = jax.random.normal(jax.random.key(1), (3, 4, 8))
  run = nnx.jit(lambda head, t, state: velocity(head, DATA, t, state))
  base = run(head, 0.5, state)
  assert (jnp.abs(run(head, 0.6, state) - base) > 1e-4).any()
  assert (jnp.abs(run(head, 0.5, state + 0.1) - base) > 1e-4).any()


def stream_of(pixels, at, names) -> Stream:
  """Returns two rows of two images, a block each, as the packer builds them.

  Args:
    pixels: (rows, images, height, width, channels).
    at: position that writes each patch, (rows, images, patches); an image without
      positions is left out.
    names: name of each image, (rows, images).
  """
  images = np.asarray(pixels, np.float32).reshape(4, 4, 4, 1)
  value = np.array([cut(bytes_of(image), IMAGE.patch) for image in images])
  at = np.asarray(at, np.int32)
  exists_BN = at[:, :, 0] >= 0
  number_BN = np.arange(1, 3) * exists_BN
  none_BL = np.full((2, 10), -1, np.int32)
  stream = Stream(
    value_BM=value.reshape(2, 8, 4),
    item_BM=np.repeat(number_BN, 4, axis=1).astype(np.int32),
    place_BM3=np.tile(patch_places(2, 2), (2, 2, 1)),
    at_BL=none_BL,
    query_at_BL=none_BL,
    write_at_BM=at.reshape(2, 8),
    form_BN3=exists_BN[..., None] * np.array([1, 2, 2], np.int32),
    key_BN=np.asarray(names, np.uint32),
  )
  return jax.tree.map(jnp.asarray, stream)


def image_loss(head, pixels, at, names) -> HeadLoss:
  """Returns the sum of the losses of images; the arguments are those of `stream_of`."""
  hidden = jax.random.normal(jax.random.key(2), (2, 10, 8))

  @nnx.jit
  def losses(head, hidden, stream):
    return head.losses(hidden, stream, jax.random.key(3))

  return losses(head, hidden, stream_of(pixels, at, names)).summed()


def test_the_loss_of_an_image_depends_on_its_name_and_not_on_its_place(head):
  pixels = jax.random.uniform(jax.random.key(4), (2, 2, 4, 4, 1))
  at = np.asarray([[[0, 1, 2, 3], [4, 5, 6, 7]], [[2, 3, 4, 5], [-1] * 4]])
  base = image_loss(head, pixels, at, [[11, 12], [13, 0]])
  assert base.weight == 3
  swapped = image_loss(head, pixels[:, ::-1], at[:, ::-1], [[12, 11], [0, 13]])
  np.testing.assert_allclose(swapped.total, base.total, rtol=1e-5)
  renamed = image_loss(head, pixels, at, [[11, 14], [13, 0]])
  assert abs(renamed.total - base.total) > 1e-3
  empty = image_loss(head, pixels, np.full_like(at, -1), [[11, 12], [13, 0]])
  assert empty.weight == 0
  assert empty.total == 0


def test_the_fresh_loss_is_the_spread_of_data_and_noise():
  image = dataclasses.replace(IMAGE, mean=0.2, std=0.3)
  many = dataclasses.replace(CONFIG, noises=64)
  fresh = DiTHead(many, image, 4, 8, rngs=nnx.Rngs(0))
  pixels = jnp.full((2, 2, 4, 4, 1), image.mean + 2 * image.std)
  at = np.arange(4)[None, None] + np.zeros((2, 2, 1), int)
  loss = image_loss(fresh, pixels, at, [[1, 2], [3, 4]])
  # E|data - noise|²: all data are 2, and the noise has a variance of 1.
  np.testing.assert_allclose(loss.mean, 2**2 + 1, rtol=0.1)


def test_guidance_one_follows_the_condition_and_zero_ignores_it(head):
  state = jax.random.normal(jax.random.key(1), (3, 4, 8))
  valid = jnp.ones((3, 4), bool)
  keys = jax.random.split(jax.random.key(5), 3)
  guidance = jnp.asarray([1.0, 0.0, 3.0])

  @nnx.jit
  def sample(head, state):
    return head.sample(state, PLACE, valid, keys, guidance_U=guidance, steps=3)

  def draw(state):
    images = sample(head, state)
    assert images.dtype == jnp.uint8
    return np.asarray(images, np.int32)

  other = draw(state + 1.0)
  images = draw(state)
  assert images.shape == (3, 4, 4)
  assert len(np.unique(images)) > 10
  np.testing.assert_array_equal(images[1], other[1])
  assert abs(images[0] - other[0]).max() > 1
  null = head.null[...]
  head.null[...] = null + 1.0
  with_other_null = draw(state)
  head.null[...] = null
  # A byte may be rounded.
  np.testing.assert_allclose(images[0], with_other_null[0], atol=1)
  assert abs(images[1] - with_other_null[1]).max() > 1
  assert abs(images[2] - with_other_null[2]).max() > 1


def test_an_image_drawn_beside_others_is_the_one_drawn_alone(head):
  """The other rows of a batch of replies hold images of other forms, or none."""
  state = jax.random.normal(jax.random.key(1), (3, 4, 8))
  keys = jax.random.split(jax.random.key(5), 3)
  valid = jnp.asarray([[True] * 4, [True, True, False, False], [False] * 4])

  def draw(rows):
    guidance = jnp.full(len(rows), 2.0)

    @nnx.jit
    def run(head):
      return head.sample(
        state[rows], PLACE[rows], valid[rows], keys[rows], guidance_U=guidance, steps=3
      )

    return np.asarray(run(head), np.int32)

  together = draw(np.arange(3))
  for row in (0, 1):
    alone = draw(np.array([row]))[0]
    inside = np.asarray(valid[row])
    np.testing.assert_allclose(together[row][inside], alone[inside], atol=1)


def test_a_run_that_only_reads_images_has_no_image_loss(kit):
  """Its `config.data.budget.streams` lacks image.drawn."""
  hosts = kit.config.hosts()
  streams = dict(BUDGET.streams)
  del streams['image.drawn']
  budget = dataclasses.replace(BUDGET, streams=streams)
  image = picture(np.random.default_rng(0))
  example = chat('x', [image], [text('one')], task='write')
  batch = packed_batch([prepare(example, hosts)], hosts, budget)
  assert not batch.streams['image.drawn'].item_BM.size
  key = jax.random.key(0)
  state = kit.state
  losses = kit.forward(state.params, state.buffers, batch, key).heads
  assert losses['image'] == (0, 0)
  assert losses['text'].weight > 0

  def segment_losses(state, batch):
    coded = encode_streams(kit.config, state.buffers['frozen'], batch)
    network = merge(kit.model, state.params)
    hidden = network(coded, state.buffers['router_bias'], kit.mesh).hidden_BLD
    return network.segment_losses(hidden, coded, key, segments=1)

  assert set(kit.jit(segment_losses)(state, batch)) == {'text', 'audio'}
