"""Tests the order of codebooks, loss weights and sampling of the codec head."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.modalities.audio.head import CodecHead, CodecHeadConfig
from omni_jax.modalities.head_loss import HeadLoss
from omni_jax.types import Stream

BOOKS = 3
ENTRIES = 7
CONFIG = CodecHeadConfig(width=16, layers=1, heads=2, hidden=16, first_weight=3.0)
STATE = jax.random.normal(jax.random.key(0), (5, 8))
CODES = jax.random.randint(jax.random.key(1), (5, BOOKS), 0, ENTRIES)
logits = nnx.jit(CodecHead.logits)


def draw(head, state, temperature):
  keys = jax.random.split(jax.random.key(2), len(state))
  return nnx.jit(CodecHead.sample)(
    head, state, keys, temperature=jnp.float32(temperature), top_p=jnp.float32(1)
  )


def head_loss(head, hidden_BLD, at_BM, code_BMJ) -> HeadLoss:
  """Returns the loss of frames of these codes.

  Args:
    at_BM: position whose state writes each frame.
  """
  none = jnp.zeros((len(at_BM), 0), jnp.int32)
  one_item = (at_BM >= 0).astype(jnp.int32)
  place_BM3 = jnp.zeros((*at_BM.shape, 3), jnp.int32)
  stream = Stream(code_BMJ, one_item, place_BM3, none, None, at_BM, none, none)
  key = jax.random.key(0)

  @nnx.jit
  def summed(head, hidden_BLD, stream):
    return head.losses(hidden_BLD, stream, key).summed()

  return summed(head, hidden_BLD, stream)


@pytest.fixture(scope='module')
def head():
  return CodecHead(CONFIG, BOOKS, ENTRIES, 8, rngs=nnx.Rngs(0))


@pytest.mark.parametrize('book', range(BOOKS))
def test_a_codebook_knows_only_those_before_it(head, book):
  base = logits(head, STATE, CODES)
  other_codes = CODES.at[:, book].set((CODES[:, book] + 1) % ENTRIES)
  change = jnp.abs(logits(head, STATE, other_codes) - base).max(axis=(0, 2))
  np.testing.assert_array_equal(change > 1e-5, np.arange(BOOKS) > book)


def test_frames_do_not_see_each_other(head):
  base = logits(head, STATE, CODES)
  change = jnp.abs(logits(head, STATE.at[2].add(1.0), CODES) - base)
  has_changed = (change > 1e-5).any(axis=(1, 2))
  np.testing.assert_array_equal(has_changed, np.arange(5) == 2)


def test_loss_weighs_the_first_codebook_and_skips_empty_places(head):
  hidden = STATE.reshape(1, 5, 8)
  at = jnp.asarray([[3, 0, -1]])
  code = CODES[jnp.asarray([[0, 1, 2]])]
  loss = head_loss(head, hidden, at, code)
  states = STATE[jnp.asarray([3, 0])]
  logp = np.asarray(jax.nn.log_softmax(logits(head, states, code[0, :2])))
  written = np.asarray(code[0, :2])
  logp = np.take_along_axis(logp, written[..., None], -1)[..., 0]
  weight_J = np.array([CONFIG.first_weight, 1, 1])
  expected = -(logp @ weight_J / weight_J.sum()).sum()
  np.testing.assert_allclose(loss.total, expected, rtol=1e-5)
  assert loss.weight == 2
  # The last place of the pool is empty.
  with_other_code = head_loss(head, hidden, at, code.at[0, 2].set(0))
  np.testing.assert_array_equal(with_other_code.total, loss.total)


def test_cold_samples_are_the_most_likely_codes_one_after_another(head):
  expected = np.zeros((5, BOOKS), np.int32)
  for book in range(BOOKS):
    logits_UJE = np.asarray(logits(head, STATE, jnp.asarray(expected)))
    expected[:, book] = logits_UJE[:, book].argmax(-1)
  np.testing.assert_array_equal(draw(head, STATE, 0.0), expected)


def test_samples_follow_the_distribution_of_the_first_codebook(head):
  samples = 3000
  state = jnp.broadcast_to(STATE[:1], (samples, 8))
  code = draw(head, state, 1.0)
  shares = np.bincount(code[:, 0], minlength=ENTRIES) / samples
  p = np.asarray(jax.nn.softmax(logits(head, STATE[:1], CODES[:1])))[0, 0]
  np.testing.assert_allclose(shares, p, atol=0.03)


def test_one_codebook_needs_no_table_of_codes():
  head = CodecHead(CONFIG, 1, ENTRIES, 8, rngs=nnx.Rngs(0))
  assert logits(head, STATE, CODES[:, :1]).shape == (5, 1, ENTRIES)


def test_a_frame_does_not_depend_on_the_frames_drawn_beside_it(head):
  expected = draw(head, STATE, 1.0)[:2]
  beside_others = jnp.concatenate([STATE[:2], STATE[:3] + 1])
  np.testing.assert_array_equal(draw(head, beside_others, 1.0)[:2], expected)
