"""The train steps: what they report, what they touch, and that they depend on state and batch only."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from omni_jax.modalities.head_loss import HeadLoss
from omni_jax.nn.moe_router import RouterStats
from omni_jax.objective import LossConfig, text_weights, total_loss
from omni_jax.train.state import init_autoencoder_state
from omni_jax.types import NONE

HEADS = ('text', 'image', 'audio')


@pytest.fixture(scope='module')
def stepped(kit, batch):
  return kit.step(kit.state, batch)


def test_every_figure_is_reported_and_finite(stepped):
  figures = jax.device_get(stepped[1])
  wanted = {f'{kind}/{head}' for kind in ('loss', 'weight') for head in HEADS}
  wanted |= {
    'loss/total',
    'loss/balance',
    'loss/z',
    'routing/entropy',
    'routing/load_max',
    'routing/load_min',
    'routing/dropped',
    'routing/expert_by_modality',
    'routing/mutual_information',
    'tokens',
    'filled',
    'skipped',
    'grad_norm/total',
    'grad_norm/decoder',
    *(f'grad_norm/heads.{head}' for head in HEADS),
    *(f'grad_norm/embeds.{head}' for head in HEADS),
  }
  assert set(figures) == wanted
  assert all(np.isfinite(value).all() for value in figures.values())


def test_figures_say_what_they_are_called(kit, batch, stepped):
  figures = jax.device_get(stepped[1])
  assert figures['tokens'] == (batch.segment_BL > 0).sum()
  assert figures['filled'] == pytest.approx((batch.segment_BL > 0).mean())
  losses = LossConfig()
  total = sum(losses.heads.get(head, 1.0) * figures[f'loss/{head}'] for head in HEADS)
  total += losses.balance * figures['loss/balance'] + losses.z * figures['loss/z']
  assert figures['loss/total'] == pytest.approx(total, rel=1e-5)
  parts = [
    value
    for name, value in figures.items()
    if name.startswith('grad_norm/') and name != 'grad_norm/total'
  ]
  assert figures['grad_norm/total'] == pytest.approx(
    np.sqrt(np.square(parts).sum()), rel=1e-4
  )
  decoder = kit.config.decoder
  counted = (
    np.bincount(batch.modality_BL[batch.segment_BL > 0], minlength=4)
    * decoder.layers
    * decoder.top_k
  )
  np.testing.assert_array_equal(
    figures['routing/expert_by_modality'].sum(axis=1), counted
  )
  drawn, spoken = (batch.streams[name] for name in ('image.drawn', 'audio.spoken'))
  items = drawn.item_BM * (drawn.write_at_BM >= 0)
  images = sum(len(set(row) - {0}) for row in items)
  assert figures['weight/image'] == pytest.approx(images, rel=1e-6)  # sums of 1/pieces
  assert figures['weight/audio'] == (spoken.write_at_BM >= 0).sum()
  assert figures['weight/text'] == batch.weight_BL.sum()
  words = kit.model.embeds['text'].tokens.table.shape[0]
  assert figures['loss/text'] == pytest.approx(np.log(words), rel=0.3)
  entries = kit.config.autoencoders['codec'].entries
  assert figures['loss/audio'] == pytest.approx(np.log(entries), rel=0.3)


def test_the_step_counts_itself_and_leaves_the_codec_and_the_seed_alone(kit, stepped):
  after = stepped[0]
  assert int(after.step) == 1
  np.testing.assert_array_equal(after.rng, kit.state.rng)
  for a, b in zip(
    jax.tree.leaves(after.buffers['frozen']['codec']),
    jax.tree.leaves(kit.state.buffers['frozen']['codec']),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def test_the_router_bias_moves_by_its_step_towards_the_idle(kit, stepped):
  moved = np.asarray(
    stepped[0].buffers['router_bias'] - kit.state.buffers['router_bias']
  )
  np.testing.assert_allclose(np.abs(moved[moved != 0]), 1e-3, rtol=1e-4)
  assert moved.min() < 0 < moved.max()


def test_the_same_state_and_batch_give_the_same_and_another_step_other_noise(
  kit, batch, stepped
):
  again = kit.step(kit.state, batch)
  for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(stepped), strict=True):
    np.testing.assert_array_equal(a, b)
  _, later = kit.step(kit.state._replace(step=kit.state.step + 1), batch)
  assert (
    later['loss/image'] != again[1]['loss/image']
    and later['loss/text'] == again[1]['loss/text']
  )


def test_a_head_without_its_modality_is_no_number_out_of_range(kit, batch):
  streams = dict(batch.streams)
  for name in ('image.drawn', 'audio.spoken'):
    stream = streams[name]
    none = np.full_like(stream.write_at_BM, NONE)
    streams[name] = stream._replace(write_at_BM=none)
  drawn = streams['image.drawn']
  no_query = np.full_like(drawn.query_at_BL, NONE)
  streams['image.drawn'] = drawn._replace(query_at_BL=no_query)
  state, figures = kit.step(kit.state, batch._replace(streams=streams))
  assert figures['loss/image'] == figures['loss/audio'] == 0 < figures['loss/text']
  assert figures['grad_norm/heads.image'] == 0
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_losses_are_means_over_all_their_positions_before_they_are_weighed():
  stats = RouterStats(
    jnp.asarray([1.0, 3.0]),
    jnp.asarray([10.0, 30.0]),
    *(jnp.zeros(2) for _ in range(4)),
  )
  heads = {
    'text': HeadLoss(jnp.float32(6), jnp.float32(3)),
    'image': HeadLoss(jnp.float32(5), jnp.float32(1)),
    'audio': HeadLoss(jnp.float32(0), jnp.float32(0)),
  }
  weights = dict(text=1.0, image=2.0, audio=7.0)
  config = LossConfig(weights, balance=0.1, z=0.01)
  assert float(total_loss(heads, stats, config)) == pytest.approx(
    2 + 10 + 0 + 0.2 + 0.2
  )


def test_frames_of_long_sounds_can_weigh_less_than_words(kit, batch):
  numbers = kit.config.hosts().numbers
  batch = jax.tree.map(jnp.asarray, batch)
  within = (
    np.asarray(batch.modality_BL) == numbers['audio']
  )  # say <frame> or <eoa> next
  assert batch.weight_BL[within].sum() > 0 and batch.weight_BL[~within].sum() > 0
  plain = text_weights(batch, LossConfig(), numbers)
  np.testing.assert_array_equal(plain, batch.weight_BL)
  lighter = text_weights(batch, LossConfig(inside={'audio': 0.25}), numbers)
  lighter = np.asarray(lighter)
  np.testing.assert_array_equal(lighter[within], 0.25 * batch.weight_BL[within])
  np.testing.assert_array_equal(lighter[~within], batch.weight_BL[~within])


def test_a_trained_autoencoder_is_what_the_omni_state_holds(kit):
  frozen = kit.state.buffers['frozen']
  tx = optax.sgd(0.1)
  trained = init_autoencoder_state(kit.config, 'codec', tx, seed=0)
  values = {'params': trained.params, 'buffers': trained.buffers}
  assert jax.tree.structure({'codec': values}) == jax.tree.structure(frozen)
