"""Tests the weights, bias and padding of routing, and the losses that balance it."""

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

pytestmark = pytest.mark.usefixtures('no_rank_promotion')
TOKENS = 40
EXPERTS = 6
MODALITIES = 4  # padding and three media
VALID = jnp.arange(TOKENS) % 5 > 0
FIRST_EXPERT = jax.nn.one_hot(0, EXPERTS)[None]  # one row, for all tokens


def logits(seed=0):
  return 2 * jax.random.normal(jax.random.key(seed), (TOKENS, EXPERTS))


@pytest.mark.parametrize('top_k', [1, 2, 6])
def test_weights_sum_to_one_and_choices_differ(top_k):
  routing = route(logits(), jnp.zeros(EXPERTS), VALID, top_k=top_k)
  np.testing.assert_allclose(routing.weight_TK.sum(axis=1)[VALID], 1, rtol=1e-6)
  for chosen in np.asarray(routing.expert_TK)[VALID]:
    assert len(set(chosen)) == top_k
  np.testing.assert_allclose(routing.load_E.sum(), 1, rtol=1e-6)
  np.testing.assert_allclose(routing.importance_E.sum(), 1, rtol=1e-6)


def test_the_most_probable_experts_are_chosen_in_proportion():
  routing = route(logits(), jnp.zeros(EXPERTS), VALID, top_k=2)
  p = np.asarray(jax.nn.softmax(logits()))
  for t in np.flatnonzero(VALID):
    best = np.argsort(-p[t])[:2]
    expected = p[t, best] / p[t, best].sum()
    np.testing.assert_array_equal(routing.expert_TK[t], best)
    np.testing.assert_allclose(routing.weight_TK[t], expected, rtol=1e-5)


def test_padding_has_no_expert_no_weight_and_no_load():
  routing = route(logits(), jnp.zeros(EXPERTS), VALID, top_k=2)
  assert (routing.expert_TK[~VALID] == EXPERTS).all()
  assert (routing.weight_TK[~VALID] == 0).all()
  corrupted_logits = jnp.where(VALID[:, None], logits(), 100.0 * FIRST_EXPERT)
  corrupted_routing = route(corrupted_logits, jnp.zeros(EXPERTS), VALID, top_k=2)
  for clean, corrupted in zip(routing, corrupted_routing, strict=True):
    np.testing.assert_array_equal(clean, corrupted)


def test_padding_alone_gives_zeros():
  routing = route(logits(), jnp.zeros(EXPERTS), jnp.zeros(TOKENS, bool), top_k=2)
  padding = jnp.zeros(TOKENS, jnp.int32)
  router_stats = stats(logits(), routing, padding, jnp.zeros(()), modalities=MODALITIES)
  for values in (*router_stats, routing.weight_TK):
    assert not np.any(values)


def test_bias_steers_the_selection_only():
  favoured = 3
  bias = jnp.zeros(EXPERTS).at[favoured].set(10.0)
  routing = route(logits(), bias, VALID, top_k=2)
  assert (routing.expert_TK[VALID] == favoured).any(axis=1).all()
  p = jax.nn.softmax(logits())
  chosen = jnp.take_along_axis(p, jnp.minimum(routing.expert_TK, EXPERTS - 1), axis=1)
  weight = (chosen / chosen.sum(axis=1, keepdims=True))[VALID]
  np.testing.assert_allclose(routing.weight_TK[VALID], weight, rtol=1e-5)

  def squares(bias):
    return (route(logits(), bias, VALID, top_k=2).weight_TK ** 2).sum()

  assert not jax.grad(squares)(bias).any()


def test_balance_loss_is_one_when_uniform_and_the_number_of_experts_when_collapsed():
  tokens = 5 * EXPERTS
  valid = jnp.ones(tokens, bool)
  uniform = jnp.tile(20.0 * jnp.eye(EXPERTS), (5, 1))
  routing = route(uniform, jnp.zeros(EXPERTS), valid, top_k=1)
  np.testing.assert_allclose(balance_loss(routing), 1, rtol=1e-5)
  collapsed = jnp.tile(20.0 * FIRST_EXPERT, (tokens, 1))
  routing = route(collapsed, jnp.zeros(EXPERTS), valid, top_k=1)
  np.testing.assert_allclose(balance_loss(routing), EXPERTS, rtol=1e-5)


def test_balance_loss_lowers_the_logits_of_the_favoured_expert():
  favoured = logits() + 2.0 * FIRST_EXPERT

  def loss(logits_TE):
    return balance_loss(route(logits_TE, jnp.zeros(EXPERTS), VALID, top_k=2))

  gradient_E = jax.grad(loss)(favoured).sum(axis=0)
  assert gradient_E.argmax() == 0 and gradient_E[0] > 0


def test_z_loss_is_the_mean_squared_log_partition():
  loss = z_loss(jnp.full((8, EXPERTS), 3.0), jnp.arange(8) < 5)
  np.testing.assert_allclose(loss, (3 + np.log(EXPERTS)) ** 2, rtol=1e-6)


def test_the_tiny_run_has_a_modality_for_padding_and_for_each_medium():
  model = ModelConfig.from_config(config('tiny').model)
  assert model.decoder.modalities == 1 + max(model.hosts().numbers.values())


def test_the_load_counts_choices_by_modality():
  modality = jnp.where(VALID, 1 + jnp.arange(TOKENS) % 3, 0)
  routing = route(logits(), jnp.zeros(EXPERTS), modality > 0, top_k=2)
  router_stats = stats(
    logits(), routing, modality, jnp.zeros(()), modalities=MODALITIES
  )
  load_mE = router_stats.load_mE
  assert load_mE.shape == (MODALITIES, EXPERTS)
  expected_mE = np.zeros((MODALITIES, EXPERTS))
  for t, medium in enumerate(np.asarray(modality)):
    if medium:
      expected_mE[medium, np.asarray(routing.expert_TK)[t]] += 1
  np.testing.assert_array_equal(load_mE, expected_mE)
  share_E = load_mE.sum(axis=0) / load_mE.sum()
  np.testing.assert_allclose(share_E, routing.load_E, rtol=1e-5)
  assert 0 < router_stats.entropy < np.log(EXPERTS)


def test_loss_free_balancing_evens_the_load():
  skewed = logits() + 3.0 * FIRST_EXPERT

  @jax.jit
  def load(bias_IE):
    return route(skewed, bias_IE[0], VALID, top_k=2).load_E[None]

  bias = jnp.zeros((1, EXPERTS))
  before = load(bias).max()
  for _ in range(100):
    bias = updated_bias(bias, load(bias), 0.02)
  assert before > 2 / EXPERTS
  assert load(bias).max() < 0.7 * before


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
  information = mutual_information(jnp.asarray(load, jnp.float32))
  assert float(information) == pytest.approx(nats, abs=1e-5)
