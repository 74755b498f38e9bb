"""Tests the loss of the text head, and its sampling of allowed ids in the nucleus."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.modalities.text.head import sample_logits, sample_token, TextHead
from omni_jax.sharding import make_mesh

VOCAB = 6
LOGITS = jnp.log(jnp.asarray([0.4, 0.3, 0.15, 0.1, 0.05, 1e-9]))


def frequencies(temperature, top_p, n=4000):
  """Returns the share of each id among n samples."""
  rows = jnp.broadcast_to(LOGITS, (n, VOCAB))
  ids = jax.jit(sample_logits)(
    rows,
    jax.random.key(0),
    temperature=jnp.float32(temperature),
    top_p=jnp.float32(top_p),
  )
  return np.bincount(ids, minlength=VOCAB) / n


def test_loss_is_weighted_cross_entropy():
  head = TextHead(8, VOCAB, rngs=nnx.Rngs(0))
  hidden = jax.random.normal(jax.random.key(0), (2, 3, 8))
  target = jnp.asarray([[1, 2, 3], [4, 5, 0]])
  weight = jnp.asarray([[1.0, 0.5, 0], [2, 0, 0]])
  loss = head.loss(hidden, target, weight, make_mesh())
  p = np.asarray(jax.nn.softmax(head.logits(hidden)))
  expected = -(np.log(p[0, 0, 1]) + 0.5 * np.log(p[0, 1, 2]) + 2 * np.log(p[1, 0, 4]))
  np.testing.assert_allclose(loss.total, expected, rtol=1e-5)
  np.testing.assert_allclose(loss.weight, 3.5)
  np.testing.assert_allclose(loss.mean, expected / 3.5, rtol=1e-5)


def test_samples_follow_the_distribution_and_the_temperature():
  p = np.array([0.4, 0.3, 0.15, 0.1, 0.05, 0])
  np.testing.assert_allclose(frequencies(1, 1), p, atol=0.03)
  sharper = p**2
  np.testing.assert_allclose(frequencies(0.5, 1), sharper / sharper.sum(), atol=0.03)


@pytest.mark.parametrize(
  'top_p, size', [(0.01, 1), (0.39, 1), (0.5, 2), (0.75, 3), (0.9, 4), (1.0, 5)]
)
def test_the_nucleus_is_the_fewest_ids_that_reach_top_p(top_p, size):
  assert (frequencies(1, top_p) > 0).sum() == size


def test_temperature_zero_takes_the_most_likely_id():
  assert frequencies(0, 1)[0] == 1
  assert frequencies(0, 0.1)[0] == 1


def test_only_allowed_ids_are_drawn():
  allowed = jnp.asarray([False, False, True, False, True, False])
  allowed = jnp.broadcast_to(allowed, (2000, VOCAB))
  rows = jnp.broadcast_to(LOGITS, allowed.shape)
  for temperature in (0.0, 0.7, 3.0):
    ids = sample_token(
      rows,
      allowed,
      jax.random.key(1),
      temperature=jnp.float32(temperature),
      top_p=jnp.float32(0.95),
    )
    assert set(np.unique(ids)) <= {2, 4}
    assert (ids == 2).any()
