"""The DiT head: one convention for training and sampling, masks that hold, noise that belongs to an image."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.modalities.image.flow import noise_images
from omni_jax.modalities.image.head import DiTConfig, DiTHead
from omni_jax.modalities.image.sizes import ImageConfig

IMAGE = ImageConfig(height=4, width=4, patch=2)  # 4 patches of 4 values
DATA = jax.random.normal(jax.random.key(0), (3, 4, 4))


@pytest.fixture(scope='module')
def head():
  """A head whose weights are all random: adaLN-Zero starts at zero, where nothing could be seen."""
  made = DiTHead(
    DiTConfig(width=16, layers=1, heads=2, hidden=16, noises=2, null=0.5),
    IMAGE,
    8,
    rngs=nnx.Rngs(0),
  )
  state = nnx.state(made, nnx.Param)
  leaves, tree = jax.tree.flatten(state)
  keys = jax.random.split(jax.random.key(7), len(leaves))
  nnx.update(
    made,
    tree.unflatten(
      [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    ),
  )
  return made


def test_a_fresh_head_predicts_nothing():
  fresh = DiTHead(
    DiTConfig(width=16, layers=1, heads=2, hidden=16), IMAGE, 8, rngs=nnx.Rngs(0)
  )
  made = nnx.jit(DiTHead.velocity)(
    fresh, DATA, jnp.full(3, 0.5), jnp.ones((3, 4, 8)), jnp.ones((3, 4), bool)
  )
  np.testing.assert_array_equal(made, 0)


def test_patches_outside_a_small_image_change_nothing_inside(head):
  valid = jnp.asarray(
    [[True, True, True, True], [True, False, True, False], [True, False, False, False]]
  )
  state = jax.random.normal(jax.random.key(1), (3, 4, 8))
  run = nnx.jit(lambda head, x, state: head.velocity(x, jnp.full(3, 0.5), state, valid))
  clean = run(head, DATA, state)
  spoiled = run(
    head,
    jnp.where(valid[..., None], DATA, 50.0),
    jnp.where(valid[..., None], state, -50.0),
  )
  np.testing.assert_allclose(clean[valid], spoiled[valid], rtol=1e-5, atol=1e-6)
  moved = run(head, DATA.at[1, 2].add(1.0), state)
  assert (
    jnp.abs(moved - clean)[1, 0] > 1e-4
  ).any()  # inside the image attention is full
  np.testing.assert_allclose(
    moved[jnp.asarray([0, 2])], clean[jnp.asarray([0, 2])], rtol=1e-5, atol=1e-6
  )


def test_time_and_condition_matter(head):
  valid, state = jnp.ones((3, 4), bool), jax.random.normal(jax.random.key(1), (3, 4, 8))
  run = nnx.jit(
    lambda head, t, state: head.velocity(DATA, jnp.full(3, t), state, valid)
  )
  base = run(head, 0.5, state)
  assert (jnp.abs(run(head, 0.6, state) - base) > 1e-4).any() and (
    jnp.abs(run(head, 0.5, state + 0.1) - base) > 1e-4
  ).any()


def head_loss(head, hidden, pixels, at, names):
  noised = noise_images(
    pixels,
    names,
    jax.random.key(3),
    IMAGE,
    samples=head.config.noises,
    shift=head.config.shift,
  )
  return head.loss(hidden, noised, at)


def image_loss(head, pixels, at, names):
  hidden = jax.random.normal(jax.random.key(2), (2, 10, 8))
  return nnx.jit(head_loss)(
    head, hidden, pixels, jnp.asarray(at), jnp.asarray(names, jnp.uint32)
  )


def test_the_loss_of_an_image_depends_on_its_name_and_not_on_its_place(head):
  pixels = jax.random.uniform(jax.random.key(4), (2, 2, 4, 4, 1))
  at = np.asarray([[[0, 1, 2, 3], [4, 5, 6, 7]], [[2, 3, 4, 5], [-1] * 4]])
  whole = image_loss(head, pixels, at, [[11, 12], [13, 0]])
  assert whole.weight == 3
  swapped = image_loss(head, pixels[:, ::-1], at[:, ::-1], [[12, 11], [0, 13]])
  np.testing.assert_allclose(swapped.total, whole.total, rtol=1e-5)
  renamed = image_loss(head, pixels, at, [[11, 14], [13, 0]])
  assert abs(renamed.total - whole.total) > 1e-3
  empty = image_loss(head, pixels, np.full_like(at, -1), [[11, 12], [13, 0]])
  assert empty.weight == 0 and empty.total == 0


def test_the_fresh_loss_is_the_spread_of_data_and_noise():
  fresh = DiTHead(
    DiTConfig(width=16, layers=1, heads=2, hidden=16, noises=64),
    IMAGE,
    8,
    rngs=nnx.Rngs(0),
  )
  pixels = jnp.full((2, 2, 4, 4, 1), IMAGE.mean + 2 * IMAGE.std)
  at = np.arange(4)[None, None] + np.zeros((2, 2, 1), int)
  loss = image_loss(fresh, pixels, at, [[1, 2], [3, 4]])
  np.testing.assert_allclose(loss.mean, 4 + 1, rtol=0.1)  # E|data - noise|²


def test_guidance_one_follows_the_condition_and_zero_ignores_it(head):
  state, valid = jax.random.normal(jax.random.key(1), (3, 4, 8)), jnp.ones((3, 4), bool)
  keys = jax.random.split(jax.random.key(5), 3)

  def draw(head, state, guidance):
    return head.sample(state, valid, keys, guidance_U=jnp.asarray(guidance), steps=3)

  draw = nnx.jit(draw)
  other = draw(head, state + 1.0, [1.0, 0.0, 3.0])
  images = draw(head, state, [1.0, 0.0, 3.0])
  assert images.shape == (3, 4, 4, 1) and images.min() >= 0 and images.max() <= 1
  np.testing.assert_allclose(images[1], other[1], atol=1e-5)
  assert jnp.abs(images[0] - other[0]).max() > 1e-3
  null = head.null[...]
  head.null[...] = null + 1.0
  changed = draw(head, state, [1.0, 0.0, 3.0])
  head.null[...] = null
  np.testing.assert_allclose(images[0], changed[0], atol=1e-5)
  assert (
    jnp.abs(images[1] - changed[1]).max() > 1e-3
    and jnp.abs(images[2] - changed[2]).max() > 1e-3
  )


def test_rows_that_draw_nothing_cost_nothing(head):
  """`config.data.budget.drawn=0`, as in a run that only reads."""
  loss = head_loss(
    head,
    jnp.ones((2, 5, 8)),
    jnp.zeros((2, 0, 4, 4, 1)),
    jnp.zeros((2, 0, 4), jnp.int32),
    jnp.zeros((2, 0), jnp.uint32),
  )
  assert (loss.total, loss.weight) == (0, 0)
