"""The codec's attention, plain and in chunks, equals a formula over all keys.

Values and gradients are compared, with and without a past.
"""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import part

from omni_jax.modalities.audio import codec as codec_module
from omni_jax.modalities.audio.codec import (
  chunked_attention,
  Layer,
  LayerCache,
  near_attention,
)

ROWS = 3
HEADS = 2
WIDTH = 4  # of a head
LENGTHS = [1, 2, 7, 12, 13, 24, 25, 40]
WINDOWS = [1, 2, 5, 12, 64]


def reference(q_NLHA, clip_NL, keys, bias_HW):
  """Returns attention of every query to every key, with a mask of L x S."""
  length = q_NLHA.shape[1]
  past = keys.clip_NL.shape[1] - length
  window = bias_HW.shape[1]
  distance = jnp.arange(length)[:, None] + past - jnp.arange(past + length)[None]
  same = clip_NL[:, :, None] == keys.clip_NL[:, None]
  near = (distance >= 0) & (distance < window)
  bias = bias_HW[:, jnp.clip(distance, 0, window - 1)]
  score = jnp.einsum('nqha,nkha->nhqk', q_NLHA, keys.key_NLHA) / WIDTH**0.5
  score = jnp.where((near[None] & same)[:, None], score + bias[None], -1e30)
  return jnp.einsum('nhqk,nkha->nqha', jax.nn.softmax(score), keys.value_NLHA)


def clips(length: int, past: int) -> jax.Array:
  """Returns clip numbers of the past and of the patches of three rows.

  The rows hold one clip, many clips that start within a stream, and many clips with
  padding behind them.
  """
  rng = np.random.default_rng(length)
  borders = np.sort(rng.random((ROWS, past + length)) < 0.2).astype(np.int32)
  clip = 1 + np.cumsum(rng.permuted(borders, axis=1), axis=1, dtype=np.int32)
  clip[0] = 1
  clip[2, past + (length + 1) // 2 :] = 0
  clip[1, : past // 2] = 0  # before the start of a stream
  return jnp.asarray(clip)


def inputs(length: int, window: int, past: int):
  keys = jax.random.split(jax.random.key(0), 4)
  shape = (ROWS, past + length, HEADS, WIDTH)
  q, k, v = (jax.random.normal(key, shape) for key in keys[:3])
  clip_NL = clips(length, past)
  bias_HW = jax.random.normal(keys[3], (HEADS, window))
  return q[:, past:], clip_NL[:, past:], LayerCache(k, v, clip_NL), bias_HW


def with_gradients(attention, q, clip, keys, bias):
  """Returns the output, and gradients of a weighted sum of it.

  The gradients are with respect to queries, keys, values and bias.
  """
  weight = jax.random.normal(jax.random.key(9), q.shape)

  def loss(q, key, value, bias):
    y = attention(q, clip, LayerCache(key, value, keys.clip_NL), bias)
    return (y * weight).sum(), y

  gradients = jax.jit(jax.value_and_grad(loss, argnums=range(4), has_aux=True))
  (_, y), grads = gradients(q, keys.key_NLHA, keys.value_NLHA, bias)
  return y, *grads


@pytest.mark.parametrize('streamed', [False, True], ids=['whole', 'streamed'])
@pytest.mark.parametrize('window', WINDOWS)
@pytest.mark.parametrize('attention', [near_attention, chunked_attention])
def test_near_and_chunked_attention_equal_the_reference(attention, window, streamed):
  """Covers lengths that the window divides or not, several clips and padding."""
  names = ('y', 'q', 'k', 'v', 'bias')
  past = window - 1 if streamed else 0
  for length in LENGTHS:
    case = inputs(length, window, past)
    actual = with_gradients(attention, *case)
    expected = with_gradients(reference, *case)
    for name, a, b in zip(names, actual, expected, strict=True):
      assert np.isfinite(a).all()
      np.testing.assert_allclose(
        a, b, rtol=2e-5, atol=2e-5, err_msg=f'{name} of {length}'
      )


@pytest.mark.parametrize('length, chunked', [(1, False), (12, False), (13, True)])
def test_short_rows_use_plain_attention_and_long_ones_chunks(
  monkeypatch, length, chunked
):
  """Either way a layer of window 6 returns the same patches and the same past."""
  config = part('model.codec', width=8, heads=2, hidden=8, window=6)
  layer = Layer(config, rngs=nnx.Rngs(0))
  layer.bias_HW[...] = jax.random.normal(jax.random.key(1), (2, 6))
  x_NLD = jax.random.normal(jax.random.key(2), (ROWS, length, 8))
  clip_NL = clips(length, 0)
  empty = jnp.zeros((ROWS, 0, 2, 4))
  start = LayerCache(empty, empty, jnp.zeros((ROWS, 0), jnp.int32))
  calls = []

  def count_call(*args):
    calls.append(1)
    return chunked_attention(*args)

  monkeypatch.setattr(codec_module, 'chunked_attention', count_call)
  actual = layer(x_NLD, clip_NL, start)
  assert bool(calls) == chunked
  monkeypatch.setattr(codec_module, 'chunked_attention', reference)
  monkeypatch.setattr(codec_module, 'near_attention', reference)
  expected = layer(x_NLD, clip_NL, start)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  _, past = expected
  assert past.clip_NL.shape[1] == min(length, config.window - 1)


def test_the_logits_of_a_long_row_are_never_stored_at_once():
  """The logits of 4096 patches and two heads would take 134 MB in fp32.

  Those of pairs of chunks take 1 MB.
  """
  length, window = 4096, 16
  shape = jax.ShapeDtypeStruct((1, length, HEADS, WIDTH), jnp.float32)
  clip = jax.ShapeDtypeStruct((1, length), jnp.int32)
  bias = jax.ShapeDtypeStruct((HEADS, window), jnp.float32)

  def total(q, k, v, clip, bias):
    return chunked_attention(q, clip, LayerCache(k, v, clip), bias).sum()

  gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
  program = gradient.lower(shape, shape, shape, clip, bias).compile()
  assert program.memory_analysis().temp_size_in_bytes < 20 * 2**20
