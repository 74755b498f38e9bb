"""Tests the metrics and effects of train steps; both depend on state and batch alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from samples import LOSSES

from omni_jax.modalities.head_loss import HeadLoss
from omni_jax.nn.moe_router import RouterStats
from omni_jax.objective import LossConfig, text_weights, total_loss
from omni_jax.train.state import init_autoencoder_state
from omni_jax.types import NONE

HEADS = ('text', 'image', 'audio')


@pytest.fixture(scope='module')
def first_step(kit, batch):
  """Returns the state and the metrics after a step."""
  return kit.step(kit.state, batch)


def test_every_metric_is_reported_and_finite(first_step):
  _, metrics = first_step
  metrics = jax.device_get(metrics)
  expected = {
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
  }
  for head in HEADS:
    expected |= {f'loss/{head}', f'weight/{head}'}
    expected |= {f'grad_norm/heads.{head}', f'grad_norm/embeds.{head}'}
  assert set(metrics) == expected
  assert all(np.isfinite(value).all() for value in metrics.values())


def test_metrics_are_what_their_names_say(kit, batch, first_step):
  _, metrics = first_step
  metrics = jax.device_get(metrics)
  filled = batch.segment_BL > 0
  assert metrics['tokens'] == filled.sum()
  assert metrics['filled'] == pytest.approx(filled.mean())
  losses = LOSSES
  total = losses.balance * metrics['loss/balance'] + losses.z * metrics['loss/z']
  for head in HEADS:
    total += losses.heads.get(head, 1.0) * metrics[f'loss/{head}']
  assert metrics['loss/total'] == pytest.approx(total, rel=1e-5)
  others = dict(metrics)
  norm = others.pop('grad_norm/total')
  norms = [others[name] for name in others if name.startswith('grad_norm/')]
  assert norm == pytest.approx(np.sqrt(np.square(norms).sum()), rel=1e-4)
  decoder = kit.config.decoder
  positions = np.bincount(batch.modality_BL[filled], minlength=4)
  choices = positions * decoder.layers * decoder.top_k
  table = metrics['routing/expert_by_modality']
  np.testing.assert_array_equal(table.sum(axis=1), choices)
  drawn = batch.streams['image.drawn']
  spoken = batch.streams['audio.spoken']
  items = drawn.item_BM * (drawn.write_at_BM >= 0)
  images = sum(len(set(row) - {0}) for row in items)
  assert metrics['weight/image'] == pytest.approx(images, rel=1e-6)  # sums of 1/pieces
  assert metrics['weight/audio'] == (spoken.write_at_BM >= 0).sum()
  assert metrics['weight/text'] == batch.weight_BL.sum()
  vocab_size, _ = kit.model.embeds['text'].tokens.table.shape
  assert metrics['loss/text'] == pytest.approx(np.log(vocab_size), rel=0.3)
  entries = kit.config.autoencoders['codec'].entries
  assert metrics['loss/audio'] == pytest.approx(np.log(entries), rel=0.3)


def test_the_step_counts_itself_and_leaves_the_codec_and_the_seed_alone(
  kit, first_step
):
  after, _ = first_step
  assert int(after.step) == 1
  np.testing.assert_array_equal(after.rng, kit.state.rng)
  assert_same(after.buffers['frozen']['codec'], kit.state.buffers['frozen']['codec'])


def assert_same(actual, expected):
  """Checks that two trees have equal leaves."""
  leaves = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
  for a, b in leaves:
    np.testing.assert_array_equal(a, b)


def test_the_router_bias_changes_by_its_rate_towards_idle_experts(kit, first_step):
  after, _ = first_step
  before = kit.state.buffers['router_bias']
  change = np.asarray(after.buffers['router_bias'] - before)
  np.testing.assert_allclose(np.abs(change[change != 0]), 1e-3, rtol=1e-4)
  assert change.min() < 0 < change.max()


def test_the_same_state_and_batch_give_the_same_result(kit, batch, first_step):
  """Another step has other noise."""
  assert_same(kit.step(kit.state, batch), first_step)
  _, metrics = first_step
  _, later = kit.step(kit.state._replace(step=kit.state.step + 1), batch)
  assert later['loss/image'] != metrics['loss/image']
  assert later['loss/text'] == metrics['loss/text']


def test_the_loss_of_a_head_without_its_modality_is_zero(kit, batch):
  streams = dict(batch.streams)
  for name in ('image.drawn', 'audio.spoken'):
    stream = streams[name]
    nowhere_BM = np.full_like(stream.write_at_BM, NONE)
    streams[name] = stream._replace(write_at_BM=nowhere_BM)
  drawn = streams['image.drawn']
  no_query_BL = np.full_like(drawn.query_at_BL, NONE)
  streams['image.drawn'] = drawn._replace(query_at_BL=no_query_BL)
  state, metrics = kit.step(kit.state, batch._replace(streams=streams))
  assert metrics['loss/image'] == 0
  assert metrics['loss/audio'] == 0
  assert metrics['loss/text'] > 0
  assert metrics['grad_norm/heads.image'] == 0
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_the_total_loss_weights_the_mean_loss_of_each_head_and_of_the_routers():
  zeros = jnp.zeros(2)
  stats = RouterStats(
    balance=jnp.asarray([1.0, 3.0]),
    z=jnp.asarray([10.0, 30.0]),
    entropy=zeros,
    load_E=zeros,
    load_mE=zeros,
    dropped=zeros,
  )
  heads = {
    'text': HeadLoss(jnp.float32(6), jnp.float32(3)),
    'image': HeadLoss(jnp.float32(5), jnp.float32(1)),
    'audio': HeadLoss(jnp.float32(0), jnp.float32(0)),
  }
  weights = dict(text=1.0, image=2.0, audio=7.0)
  config = LossConfig(weights, balance=0.1, z=0.01)
  text = 6 / 3
  image = 2 * 5
  audio = 0  # no position has one
  balance = 0.1 * 2
  z = 0.01 * 20
  total = float(total_loss(heads, stats, config))
  assert total == pytest.approx(text + image + audio + balance + z)


def test_frames_of_long_sounds_can_weigh_less_than_words(kit, batch):
  numbers = kit.config.hosts().numbers
  batch = jax.tree.map(jnp.asarray, batch)
  # The text head predicts <frame> or <eoa> at these positions.
  within = np.asarray(batch.modality_BL) == numbers['audio']
  assert batch.weight_BL[within].sum() > 0
  assert batch.weight_BL[~within].sum() > 0
  plain = text_weights(batch, LOSSES, numbers)
  np.testing.assert_array_equal(plain, batch.weight_BL)
  config = dataclasses.replace(LOSSES, inside={'audio': 0.25})
  lighter = text_weights(batch, config, numbers)
  lighter = np.asarray(lighter)
  np.testing.assert_array_equal(lighter[within], 0.25 * batch.weight_BL[within])
  np.testing.assert_array_equal(lighter[~within], batch.weight_BL[~within])


def test_the_omni_state_holds_an_autoencoder_as_it_is_trained(kit):
  frozen = kit.state.buffers['frozen']
  tx = optax.sgd(0.1)
  trained = init_autoencoder_state(kit.config, 'codec', tx, seed=0)
  values = {'params': trained.params, 'buffers': trained.buffers}
  assert jax.tree.structure({'codec': values}) == jax.tree.structure(frozen)
