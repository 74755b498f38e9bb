"""The baseline whose decoder sees the noise: open inside a drawing, causal elsewhere, and it learns to draw."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from samples import laid, make_kit, packed, tiny_model

from omni_jax.modalities.image.flow import noise_images
from omni_jax.modalities.image.head import DiTConfig
from omni_jax.modalities.image.noise_in_decoder import open_blocks
from omni_jax.model import encode_media, merge
from omni_jax.train.state import codebooks_of

KEY = jax.random.key(5)


@pytest.fixture(scope='module')
def kit():
  config = tiny_model()
  config = dataclasses.replace(
    config, dit=dataclasses.replace(config.dit, denoiser='decoder', noises=1)
  )
  return make_kit(config, optax.adam(3e-3))


@pytest.fixture(scope='module')
def batch(kit):
  return packed(laid(kit.config), kit.config.media)


def test_the_decoder_sees_one_sample():
  with pytest.raises(ValueError, match='noises=2'):
    DiTConfig(denoiser='decoder', noises=2)


def test_a_block_is_the_queries_of_one_image(batch):
  block_BL = np.asarray(open_blocks(jax.tree.map(jnp.asarray, batch)))
  np.testing.assert_array_equal(block_BL > 0, batch.query_BL >= 0)
  for row, at_NP in enumerate(batch.draw_at_BNP):
    for n, at_P in enumerate(at_NP):
      assert (block_BL[row, at_P[at_P >= 0]] == n + 1).all()


def test_a_drawing_sees_itself_whole_and_nothing_else_of_the_future(kit, batch):
  """Which states move when one embedding is pushed."""
  batch = jax.tree.map(lambda x: jnp.asarray(x[:1]), batch)
  model, frozen = merge(kit.model, kit.state.params), kit.state.buffers['codec']

  def moved(push_LD):
    encoded = encode_media(
      kit.config, merge(kit.codec, frozen['params']), codebooks_of(frozen), batch, KEY
    )
    x_BLD = model.embed(batch, encoded) + push_LD[None]
    return model.decoder(
      x_BLD,
      batch.segment_BL,
      batch.modality_BL,
      batch.position_BL3,
      kit.state.buffers['router_bias'],
      kit.mesh,
      open_blocks(batch),
    ).hidden_BLD[0]

  length, width = batch.token_BL.shape[1], kit.config.decoder.width
  run = kit.meshed(
    lambda: (
      jax.lax.map(
        lambda at: moved(jax.nn.one_hot(at, length)[:, None] * jnp.ones(width)),
        jnp.arange(length),
      )
      - moved(jnp.zeros((length, width)))
    )
  )
  found_LL = (np.abs(np.asarray(run())) > 1e-6).any(axis=-1).T  # state, pushed
  segment_L, block_L = (
    np.asarray(batch.segment_BL[0]),
    np.asarray(open_blocks(batch)[0]),
  )
  place = np.arange(length)
  allowed = place[:, None] >= place[None]
  allowed |= (block_L[:, None] == block_L[None]) & (block_L > 0)[None]
  allowed &= segment_L[:, None] == segment_L[None]
  real = segment_L > 0
  assert block_L.any()
  np.testing.assert_array_equal(found_LL[real][:, real], allowed[real][:, real])


def test_packed_losses_are_the_ones_of_the_examples_alone(kit, batch):
  together, _ = kit.forward(kit.state.params, kit.state.buffers, batch, KEY)
  alone = [
    kit.forward(
      kit.state.params, kit.state.buffers, packed([item], kit.config.media), KEY
    )[0]
    for item in laid(kit.config)
  ]
  for name, loss in together.items():
    np.testing.assert_allclose(
      loss.total,
      sum(part[name].total for part in alone),
      rtol=2e-4,
      atol=1e-5,
      err_msg=name,
    )


def test_it_learns_one_batch(kit, batch):
  """The image loss of a batch, over ten draws of noise, falls far below that of a model that predicts nothing."""

  def image_loss(state):
    return np.mean(
      [
        kit.forward(state.params, state.buffers, batch, jax.random.key(k))[0][
          'image'
        ].mean
        for k in range(10)
      ]
    )

  state, before = kit.state, image_loss(kit.state)
  for _ in range(150):
    state, metrics = kit.step(state, batch)
  assert metrics['grad_norm/image_head'] > 0
  assert image_loss(state) < 0.5 * before


def test_noise_of_an_image_is_its_own(kit, batch):
  batch = jax.tree.map(jnp.asarray, batch)
  image = kit.config.media.image
  made = noise_images(
    batch.drawn_BNhwc, batch.draw_key_BN, KEY, image, samples=1, shift=1.0
  )
  turned = noise_images(
    batch.drawn_BNhwc[::-1], batch.draw_key_BN[::-1], KEY, image, samples=1, shift=1.0
  )
  np.testing.assert_array_equal(made.x_BNKPY[::-1], turned.x_BNKPY)
