"""Routing: weights, bias, padding, the losses that balance it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import config

from omni_jax.model import ModelConfig
from omni_jax.nn.moe_router import (
  balance_loss,
  mutual_information,
  route,
  stats,
  updated_bias,
  z_loss,
)

pytestmark = pytest.mark.usefixtures('strict_ranks')
TOKENS, EXPERTS = 40, 6
MODALITIES = 4  # padding and three media
VALID = jnp.arange(TOKENS) % 5 > 0


def logits(seed=0):
  return 2 * jax.random.normal(jax.random.key(seed), (TOKENS, EXPERTS))


@pytest.mark.parametrize('top_k', [1, 2, 6])
def test_weights_sum_to_one_and_choices_differ(top_k):
  routing = route(logits(), jnp.zeros(EXPERTS), VALID, top_k=top_k)
  np.testing.assert_allclose(routing.weight_TK.sum(axis=1)[VALID], 1, rtol=1e-6)
  assert all(
    len(set(chosen)) == top_k for chosen in np.asarray(routing.expert_TK)[VALID]
  )
  np.testing.assert_allclose(routing.load_E.sum(), 1, rtol=1e-6)
  np.testing.assert_allclose(routing.importance_E.sum(), 1, rtol=1e-6)


def test_the_most_probable_experts_are_chosen_in_proportion():
  routing = route(logits(), jnp.zeros(EXPERTS), VALID, top_k=2)
  p = np.asarray(jax.nn.softmax(logits()))
  for t in np.flatnonzero(VALID):
    best = np.argsort(-p[t])[:2]
    np.testing.assert_array_equal(routing.expert_TK[t], best)
    np.testing.assert_allclose(
      routing.weight_TK[t], p[t, best] / p[t, best].sum(), rtol=1e-5
    )


def test_padding_is_of_no_expert_and_has_no_weight_and_no_load():
  routing = route(logits(), jnp.zeros(EXPERTS), VALID, top_k=2)
  assert (routing.expert_TK[~VALID] == EXPERTS).all() and (
    routing.weight_TK[~VALID] == 0
  ).all()
  spoiled = jnp.where(VALID[:, None], logits(), 100.0 * jnp.eye(EXPERTS)[:1])
  for clean, dirty in zip(
    routing, route(spoiled, jnp.zeros(EXPERTS), VALID, top_k=2), strict=True
  ):
    np.testing.assert_array_equal(clean, dirty)


def test_nothing_but_padding_gives_numbers_all_the_same():
  routing = route(logits(), jnp.zeros(EXPERTS), jnp.zeros(TOKENS, bool), top_k=2)
  padding = jnp.zeros(TOKENS, jnp.int32)
  told = stats(logits(), routing, padding, jnp.zeros(()), modalities=MODALITIES)
  assert all(np.isfinite(x).all() and not np.any(x) for x in (*told, routing.weight_TK))


def test_bias_steers_the_selection_only():
  bias = jnp.zeros(EXPERTS).at[3].set(10.0)
  routing = route(logits(), bias, VALID, top_k=2)
  assert (routing.expert_TK[VALID] == 3).any(axis=1).all()
  p = jax.nn.softmax(logits())
  chosen = jnp.take_along_axis(p, jnp.minimum(routing.expert_TK, EXPERTS - 1), axis=1)
  np.testing.assert_allclose(
    routing.weight_TK[VALID],
    (chosen / chosen.sum(axis=1, keepdims=True))[VALID],
    rtol=1e-5,
  )
  gradient = jax.grad(
    lambda b: (route(logits(), b, VALID, top_k=2).weight_TK ** 2).sum()
  )(bias)
  assert not gradient.any()


def test_balance_loss_is_one_when_uniform_and_the_number_of_experts_when_collapsed():
  even = jnp.tile(20.0 * jnp.eye(EXPERTS), (5, 1))
  everyone = jnp.ones(len(even), bool)
  np.testing.assert_allclose(
    balance_loss(route(even, jnp.zeros(EXPERTS), everyone, top_k=1)), 1, rtol=1e-5
  )
  one = 20.0 * jnp.tile(jnp.eye(EXPERTS)[:1], (30, 1))
  np.testing.assert_allclose(
    balance_loss(route(one, jnp.zeros(EXPERTS), everyone, top_k=1)), EXPERTS, rtol=1e-5
  )


def test_balance_loss_pushes_the_favoured_expert_down():
  favoured = logits() + 2.0 * jnp.eye(EXPERTS)[:1]
  push = jax.grad(lambda x: balance_loss(route(x, jnp.zeros(EXPERTS), VALID, top_k=2)))(
    favoured
  ).sum(axis=0)
  assert push.argmax() == 0 and push[0] > 0


def test_z_loss_is_the_mean_square_of_the_partition():
  np.testing.assert_allclose(
    z_loss(jnp.full((8, EXPERTS), 3.0), jnp.arange(8) < 5),
    (3 + np.log(EXPERTS)) ** 2,
    rtol=1e-6,
  )


def test_the_table_counts_choices_by_modality():
  modality = jnp.where(VALID, 1 + jnp.arange(TOKENS) % 3, 0)
  routing = route(logits(), jnp.zeros(EXPERTS), modality > 0, top_k=2)
  told = stats(logits(), routing, modality, jnp.zeros(()), modalities=MODALITIES)
  assert told.load_ME.shape == (MODALITIES, EXPERTS)
  media = ModelConfig.from_config(config('tiny').model)
  assert media.decoder.modalities == 1 + max(media.hosts().numbers.values())
  counted = np.zeros((MODALITIES, EXPERTS))
  for t, kind in enumerate(np.asarray(modality)):
    if kind:
      counted[kind, np.asarray(routing.expert_TK)[t]] += 1
  np.testing.assert_array_equal(told.load_ME, counted)
  np.testing.assert_allclose(
    told.load_ME.sum(axis=0) / told.load_ME.sum(), routing.load_E, rtol=1e-5
  )
  assert 0 < told.entropy < np.log(EXPERTS)


def test_loss_free_balancing_evens_the_load():
  skewed = logits() + 3.0 * jnp.eye(EXPERTS)[:1]
  load = jax.jit(lambda bias: route(skewed, bias[0], VALID, top_k=2).load_E[None])
  bias = jnp.zeros((1, EXPERTS))
  before = load(bias).max()
  for _ in range(100):
    bias = updated_bias(bias, load(bias), 0.02)
  assert before > 2 / EXPERTS and load(bias).max() < 0.7 * before


@pytest.mark.parametrize(
  'load, nats',
  [
    (np.outer([1, 2, 3], [4, 1, 5]), 0.0),  # every modality spreads alike
    (np.diag([7, 7, 7]), np.log(3)),  # one expert each
    (np.array([[5, 5, 0, 0], [0, 0, 5, 5]]), np.log(2)),
    (np.zeros((2, 3)), 0.0),
  ],
  ids=['independent', 'own expert', 'own pair', 'empty'],
)
def test_mutual_information_of_expert_and_modality(load, nats):
  assert float(mutual_information(jnp.asarray(load, jnp.float32))) == pytest.approx(
    nats, abs=1e-5
  )
