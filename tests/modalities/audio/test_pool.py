"""Clips that follow each other in a pool are heard and coded as each alone."""

import dataclasses
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import part

from omni_jax.modalities.audio.codec import Codec
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
FRAMES = (3, 1, 5, 2, 4)  # of each clip: shorter and longer than the codec's window
USED = sum(FRAMES)  # frames of the pool that hold a clip
LONGEST = 7  # frames to which each clip is padded where it is alone
ROOM = 18  # frames of the pool: three of them stay empty
CONFIG = part(
  'model.codec',
  latent=8,
  codebooks=3,
  entries=16,
  width=32,
  layers=2,
  heads=2,
  hidden=48,
  window=6,
)


class Pool(NamedTuple):
  """All clips in a pool of one row.

  Attributes:
    frame_BRS: frames of the pool.
    clip_BR: number of each frame's clip, from 1; 0 where there is none.
    index: (clip, frame in the clip) of each frame of the pool, as an index of arrays
      (clips, LONGEST, …).
  """

  frame_BRS: jax.Array
  clip_BR: jax.Array
  index: tuple[np.ndarray, np.ndarray]


def padded_clips(audio: AudioConfig = AUDIO) -> np.ndarray:
  """Returns the clips, one per row, padded: (clips, LONGEST, samples)."""
  frame_NRS = np.zeros((len(FRAMES), LONGEST, audio.frame), np.float32)
  rng = np.random.default_rng(0)
  for frames_RS, n in zip(frame_NRS, FRAMES, strict=True):
    frames_RS[:n] = 0.1 * rng.standard_normal((n, audio.frame))
  return frame_NRS


def pool_of(frame_NRS: np.ndarray) -> Pool:
  """Returns the same clips in a pool."""
  clip_R = np.repeat(np.arange(len(FRAMES)), FRAMES)
  at_R = np.concatenate([np.arange(frames) for frames in FRAMES])
  pool_RS = np.zeros((ROOM, frame_NRS.shape[2]), np.float32)
  pool_RS[:USED] = frame_NRS[clip_R, at_R]
  number_R = np.pad(clip_R + 1, (0, ROOM - USED))
  return Pool(jnp.asarray(pool_RS)[None], jnp.asarray(number_R)[None], (clip_R, at_R))


def one_clip_per_row(frame_NRS) -> jax.Array:
  """Returns the clip number of each frame where a row is one clip."""
  return jnp.ones(frame_NRS.shape[:2], jnp.int32)


def random_weights(values: int) -> jax.Array:
  """Returns random weights (clips, LONGEST, values), 0 behind the end of each clip."""
  shape = (len(FRAMES), LONGEST, values)
  weight_NRX = jax.random.normal(jax.random.key(0), shape)
  inside_NR = jnp.arange(LONGEST)[None] < jnp.asarray(FRAMES)[:, None]
  return weight_NRX * inside_NR[..., None]


# The longest windows reach back more than two frames.
@pytest.mark.parametrize('window', [80, 256, 640, 1000, 1500])
def test_mel_of_a_pool_is_that_of_each_clip_alone(window):
  audio = dataclasses.replace(AUDIO, mel_window=window)
  frame_NRS = padded_clips(audio)
  pool = pool_of(frame_NRS)
  hop = audio.frame // audio.mel_hops
  wave_NS = frame_NRS.reshape(len(FRAMES), -1)
  columns = log_mel_columns(
    jnp.pad(wave_NS, ((0, 0), (overlap(window, hop), 0))),
    rate=audio.rate,
    mels=audio.mels,
    window=window,
    hop=hop,
  )
  expected_NRX = ((columns - MEAN) / 3).reshape(len(FRAMES), LONGEST, -1)
  alone_NRX = log_mel_patches(
    jnp.asarray(frame_NRS), one_clip_per_row(frame_NRS), audio
  )
  np.testing.assert_allclose(alone_NRX, expected_NRX, atol=2e-5)
  pool_RX = log_mel_patches(pool.frame_BRS, pool.clip_BR, audio)[0]
  np.testing.assert_allclose(pool_RX[:USED], expected_NRX[pool.index], atol=2e-5)


def test_gradients_of_mel_in_a_pool_are_those_of_each_clip_alone():
  frame_NRS = jnp.asarray(padded_clips())
  pool = pool_of(padded_clips())
  weight_NRX = random_weights(AUDIO.mel_values)
  weight_RX = weight_NRX[pool.index]

  def total_alone(frame_NRS):
    return (
      log_mel_patches(frame_NRS, one_clip_per_row(frame_NRS), AUDIO) * weight_NRX
    ).sum()

  def total_in_pool(frame_BRS):
    mel_RX = log_mel_patches(frame_BRS, pool.clip_BR, AUDIO)[0, :USED]
    return (mel_RX * weight_RX).sum()

  alone = jax.grad(total_alone)(frame_NRS)
  together = jax.grad(total_in_pool)(pool.frame_BRS)[0]
  np.testing.assert_allclose(together[:USED], alone[pool.index], rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(together[USED:], 0)


@pytest.fixture(scope='module')
def codec():
  codec = Codec(CONFIG, AUDIO, rngs=nnx.Rngs(0))
  # The bias of distances is zero at the start, where it would have no effect.
  for layer in codec.encoder:
    layer.bias_HW[...] = jax.random.normal(jax.random.key(1), layer.bias_HW.shape)
  return codec


def test_codes_of_a_pool_are_those_of_each_clip_alone(codec):
  frame_NRS = padded_clips()
  pool = pool_of(frame_NRS)
  wave_NS = frame_NRS.reshape(len(FRAMES), -1)
  codebooks = init_buffers(CONFIG)
  entries = jax.random.normal(jax.random.key(2), codebooks.codebook_JEZ.shape)
  codebooks = codebooks._replace(codebook_JEZ=entries)
  alone_NRZ = jax.jit(lambda waves: codec.encode(waves))(wave_NS)
  encode_pool = jax.jit(lambda frames, clips: codec.encode_pool(frames, clips))
  pool_RZ = encode_pool(pool.frame_BRS, pool.clip_BR)[0]
  np.testing.assert_allclose(pool_RZ[:USED], alone_NRZ[pool.index], atol=1e-5)
  buffers = {'codebooks': codebooks._asdict()}
  code = jax.jit(lambda frames, clips: encode(codec, buffers, frames, clips))
  alone_NRJ = np.asarray(code(frame_NRS, one_clip_per_row(frame_NRS)))
  pool_RJ = np.asarray(code(pool.frame_BRS, pool.clip_BR))[0]
  np.testing.assert_array_equal(pool_RJ[:USED], alone_NRJ[pool.index])
  assert len(np.unique(alone_NRJ)) > CONFIG.entries // 2


def test_gradients_of_latents_in_a_pool_are_those_of_each_clip_alone(codec):
  frame_NRS = padded_clips()
  pool = pool_of(frame_NRS)
  wave_NS = jnp.asarray(frame_NRS.reshape(len(FRAMES), -1))
  weight_NRZ = random_weights(CONFIG.latent)
  weight_RZ = weight_NRZ[pool.index]

  def total_alone(wave_NS):
    return (codec.encode(wave_NS) * weight_NRZ).sum()

  def total_in_pool(frame_BRS, clip_BR):
    return (codec.encode_pool(frame_BRS, clip_BR)[0, :USED] * weight_RZ).sum()

  alone = jax.jit(jax.grad(total_alone))(wave_NS).reshape(frame_NRS.shape)
  together = jax.jit(jax.grad(total_in_pool))(pool.frame_BRS, pool.clip_BR)[0]
  np.testing.assert_allclose(together[:USED], alone[pool.index], rtol=1e-3, atol=1e-4)
  np.testing.assert_array_equal(together[USED:], 0)


def test_a_frame_follows_the_past_of_its_own_clip():
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
