"""Clips that lie one behind the other in a row's pool of frames are heard and coded as each alone, padded."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.modalities.audio.codec import Codec, CodecConfig
from omni_jax.modalities.audio.device import encode
from omni_jax.modalities.audio.mel import (
  log_mel_columns,
  log_mel_patches,
  MEAN,
  overlap,
  with_past,
)
from omni_jax.modalities.audio.quantizer import init_buffers
from omni_jax.modalities.audio.sizes import AudioConfig

AUDIO = AudioConfig()
FRAMES = (
  3,
  1,
  5,
  2,
  4,
)  # of each clip; clips shorter and longer than the codec's window
LONGEST, ROOM = 7, 18  # three frames of the pool stay empty
CONFIG = CodecConfig(
  latent=8, codebooks=3, entries=16, width=32, layers=2, heads=2, hidden=48, window=6
)


def separate(audio: AudioConfig = AUDIO) -> np.ndarray:
  """The clips, one a row, padded: (clips, LONGEST, samples)."""
  frame_NRS = np.zeros((len(FRAMES), LONGEST, audio.frame), np.float32)
  rng = np.random.default_rng(0)
  for frames_RS, n in zip(frame_NRS, FRAMES, strict=True):
    frames_RS[:n] = 0.1 * rng.standard_normal((n, audio.frame))
  return frame_NRS


def pooled(
  frame_NRS: np.ndarray,
) -> tuple[jax.Array, jax.Array, np.ndarray, np.ndarray]:
  """The same in a pool of one row, the clip of each frame, and (clip, frame) of each frame of the pool."""
  clip_R, at_R = np.concatenate(
    [[(i, r) for r in range(n)] for i, n in enumerate(FRAMES)]
  ).T
  pool_RS = np.zeros((ROOM, frame_NRS.shape[2]), np.float32)
  pool_RS[: len(clip_R)] = frame_NRS[clip_R, at_R]
  return (
    jnp.asarray(pool_RS)[None],
    jnp.asarray(np.pad(clip_R + 1, (0, ROOM - len(clip_R))))[None],
    clip_R,
    at_R,
  )


def ones(frame_NRS) -> jax.Array:
  return jnp.ones(frame_NRS.shape[:2], jnp.int32)


@pytest.mark.parametrize(
  'window', [80, 256, 640, 1000, 1500]
)  # up to more than two frames of the past
def test_mel_of_a_pool_is_that_of_each_clip_alone(window):
  audio = dataclasses.replace(AUDIO, mel_window=window)
  frame_NRS = separate(audio)
  pool_BRS, clip_BR, clip_R, at_R = pooled(frame_NRS)
  hop = audio.frame // audio.mel_hops
  columns = log_mel_columns(
    jnp.pad(frame_NRS.reshape(len(FRAMES), -1), ((0, 0), (overlap(window, hop), 0))),
    rate=audio.rate,
    mels=audio.mels,
    window=window,
    hop=hop,
  )  # each clip as one wave
  alone = ((columns - MEAN) / 3).reshape(len(FRAMES), LONGEST, -1)
  np.testing.assert_allclose(
    log_mel_patches(jnp.asarray(frame_NRS), ones(frame_NRS), audio), alone, atol=2e-5
  )
  pool = log_mel_patches(pool_BRS, clip_BR, audio)[0]
  np.testing.assert_allclose(pool[: len(clip_R)], alone[clip_R, at_R], atol=2e-5)


def test_gradients_of_mel_stay_within_the_clip_and_are_those_of_each_alone():
  frame_NRS = jnp.asarray(separate())
  pool_BRS, clip_BR, clip_R, at_R = pooled(separate())
  weight_NRX = jax.random.normal(
    jax.random.key(0), (len(FRAMES), LONGEST, AUDIO.mels * AUDIO.mel_hops)
  )
  weight_NRX = (
    weight_NRX * (jnp.arange(LONGEST)[None] < jnp.asarray(FRAMES)[:, None])[..., None]
  )
  alone = jax.grad(lambda x: (log_mel_patches(x, ones(x), AUDIO) * weight_NRX).sum())(
    frame_NRS
  )
  weight_RX = weight_NRX[clip_R, at_R]
  pool = jax.grad(
    lambda x: (log_mel_patches(x, clip_BR, AUDIO)[0, : len(clip_R)] * weight_RX).sum()
  )(pool_BRS)[0]
  np.testing.assert_allclose(
    pool[: len(clip_R)], alone[clip_R, at_R], rtol=1e-4, atol=1e-4
  )
  np.testing.assert_array_equal(pool[len(clip_R) :], 0)


@pytest.fixture(scope='module')
def codec():
  codec = Codec(CONFIG, AUDIO, rngs=nnx.Rngs(0))
  for layer in codec.encoder:  # zero at the start: give the distances something to say
    layer.bias_HW[...] = jax.random.normal(jax.random.key(1), layer.bias_HW.shape)
  return codec


def test_codes_of_a_pool_are_those_of_each_clip_alone(codec):
  frame_NRS = separate()
  pool_BRS, clip_BR, clip_R, at_R = pooled(frame_NRS)
  books = init_buffers(CONFIG)
  books = books._replace(
    codebook_JEZ=jax.random.normal(jax.random.key(2), books.codebook_JEZ.shape)
  )
  latents = jax.jit(lambda waves: codec.encode(waves))(
    frame_NRS.reshape(len(FRAMES), -1)
  )
  pool = jax.jit(lambda frames, clips: codec.encode_pool(frames, clips))(
    pool_BRS, clip_BR
  )[0]
  np.testing.assert_allclose(pool[: len(clip_R)], latents[clip_R, at_R], atol=1e-5)
  buffers = {'codebooks': books._asdict()}
  code = jax.jit(lambda frames, clips: encode(codec, buffers, frames, clips))
  alone_NRJ = np.asarray(code(frame_NRS, ones(frame_NRS)))
  np.testing.assert_array_equal(
    np.asarray(code(pool_BRS, clip_BR))[0, : len(clip_R)], alone_NRJ[clip_R, at_R]
  )
  assert len(np.unique(alone_NRJ)) > CONFIG.entries // 2


def test_gradients_of_latents_stay_within_the_clip_and_are_those_of_each_alone(codec):
  frame_NRS = separate()
  pool_BRS, clip_BR, clip_R, at_R = pooled(frame_NRS)
  weight_NRZ = jax.random.normal(
    jax.random.key(0), (len(FRAMES), LONGEST, CONFIG.latent)
  )
  weight_NRZ = (
    weight_NRZ * (jnp.arange(LONGEST)[None] < jnp.asarray(FRAMES)[:, None])[..., None]
  )
  waves = jnp.asarray(frame_NRS.reshape(len(FRAMES), -1))
  alone = jax.jit(jax.grad(lambda x: (codec.encode(x) * weight_NRZ).sum()))(
    waves
  ).reshape(frame_NRS.shape)
  weight_RZ = weight_NRZ[clip_R, at_R]
  loss = lambda x, clips: (
    codec.encode_pool(x, clips)[0, : len(clip_R)] * weight_RZ
  ).sum()
  pool = jax.jit(jax.grad(loss))(pool_BRS, clip_BR)[0]
  np.testing.assert_allclose(
    pool[: len(clip_R)], alone[clip_R, at_R], rtol=1e-3, atol=1e-4
  )
  np.testing.assert_array_equal(pool[len(clip_R) :], 0)


def test_a_frame_stands_behind_the_past_of_its_own_clip():
  frame_NRS = jnp.arange(1, 13, dtype=jnp.float32).reshape(1, 6, 2)
  clips = jnp.asarray([[1, 1, 1, 4, 4, 0]])
  np.testing.assert_array_equal(
    with_past(frame_NRS, clips, 3)[0],
    [
      [0, 0, 0, 1, 2],
      [0, 1, 2, 3, 4],
      [2, 3, 4, 5, 6],
      [0, 0, 0, 7, 8],
      [0, 7, 8, 9, 10],
      [0, 0, 0, 11, 12],
    ],
  )
  np.testing.assert_array_equal(with_past(frame_NRS, clips, 0), frame_NRS)
