"""The codec treats chunks like whole clips, never looks ahead and ignores padding.

It also overfits one batch.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from samples import part

from omni_jax.modalities.audio import codec_loss, quantizer
from omni_jax.modalities.audio.codec import Codec
from omni_jax.modalities.audio.codec_loss import codec_forward, quantizer_dropout
from omni_jax.modalities.audio.quantizer import init_buffers
from omni_jax.modalities.audio.sizes import AudioConfig

encode = nnx.jit(Codec.encode)
decode = nnx.jit(Codec.decode)
encode_stream = nnx.jit(Codec.encode_stream)
decode_stream = nnx.jit(Codec.decode_stream)
quantize = jax.jit(quantizer.quantize)
update_buffers = jax.jit(quantizer.update_buffers, static_argnums=0)
mel_distance = jax.jit(codec_loss.mel_distance, static_argnums=3)
wave_distance = jax.jit(codec_loss.wave_distance, static_argnums=3)
AUDIO = AudioConfig()
CONFIG = part(
  'model.codec',
  latent=8,
  codebooks=2,
  entries=16,
  width=32,
  layers=2,
  heads=2,
  hidden=48,
  window=6,
)


def make_codec(**changes) -> Codec:
  config = dataclasses.replace(CONFIG, **changes)
  codec = Codec(config, AUDIO, rngs=nnx.Rngs(0))
  # The bias of distances is zero at the start, where it would have no effect.
  for layer in (*codec.encoder, *codec.decoder):
    layer.bias_HW[...] = jax.random.normal(jax.random.key(1), layer.bias_HW.shape)
  return codec


def waves(frames=6, clips=2, seed=0):
  """Returns chirps of different pitch with a little noise."""
  rng = np.random.default_rng(seed)
  seconds = np.arange(frames * AUDIO.frame) / AUDIO.rate
  hz = rng.uniform(150, 900, (clips, 1)) * (1 + seconds)[None]
  chirps = 0.2 * np.sin(2 * np.pi * hz * seconds)
  return jnp.asarray(chirps + 0.01 * rng.standard_normal(hz.shape), jnp.float32)


def fitted_buffers(codec: Codec, latent_NRZ):
  """Returns codebooks after six updates by these latents."""
  buffers = init_buffers(codec.config)
  mask_NR = jnp.ones(latent_NRZ.shape[:2])
  for i in range(6):
    stats = quantize(latent_NRZ, buffers, mask_NR).stats
    buffers = update_buffers(codec.config, buffers, stats, jax.random.key(i))
  return buffers


def test_chunks_equal_the_whole_clip():
  codec = make_codec()
  wave = waves()
  latent = encode(codec, wave)
  buffers = fitted_buffers(codec, latent)
  encoder_cache = codec.init_cache(2)
  decoder_cache = codec.init_cache(2)
  latents = []
  sounds = []
  start = 0
  for frames in (2, 1, 1, 2):
    chunk = wave[:, start * AUDIO.frame : (start + frames) * AUDIO.frame]
    encoder_cache, chunk_latent = encode_stream(codec, encoder_cache, chunk)
    chunk_coded = quantize(chunk_latent, buffers, jnp.ones((2, frames)))
    decoder_cache, sound = decode_stream(codec, decoder_cache, chunk_coded.latent_NRZ)
    latents.append(chunk_latent)
    sounds.append(sound)
    start += frames
  streamed = jnp.concatenate(latents, axis=1)
  np.testing.assert_allclose(streamed, latent, atol=1e-5)

  whole = quantize(latent, buffers, jnp.ones((2, 6)))
  chunked = quantize(streamed, buffers, jnp.ones((2, 6)))
  clear = clear_choice(latent, buffers)
  assert clear.mean() > 0.5
  np.testing.assert_array_equal(
    np.asarray(whole.code_NRJ)[clear], np.asarray(chunked.code_NRJ)[clear]
  )
  if (whole.code_NRJ == chunked.code_NRJ).all():
    decoded = decode(codec, whole.latent_NRZ)
    np.testing.assert_allclose(jnp.concatenate(sounds, axis=1), decoded, atol=1e-5)


def clear_choice(latent_NRZ, buffers, margin=1e-4):
  """Returns which frames have codes that rounding cannot change.

  For each of their codebooks the two nearest entries differ in distance by more than
  the margin.
  """
  residual = np.asarray(latent_NRZ)
  clear = np.ones(latent_NRZ.shape[:2], bool)
  for entries in np.asarray(buffers.codebook_JEZ):
    distance = np.square(residual[:, :, None] - entries[None, None]).sum(-1)
    nearest = np.sort(distance, axis=-1)
    clear &= nearest[..., 1] - nearest[..., 0] > margin
    residual = residual - entries[distance.argmin(-1)]
  return clear


def test_a_latent_sees_no_later_sample():
  codec = make_codec()
  wave = waves(5, clips=1)
  frame = AUDIO.frame

  def third_latent(wave):
    return codec.encode(wave)[0, 2].sum()

  gradient = jax.jit(jax.grad(third_latent))(wave)[0]
  assert np.abs(gradient[2 * frame : 3 * frame]).max() > 0
  np.testing.assert_array_equal(gradient[3 * frame :], 0)


def test_a_sample_sees_no_later_latent():
  codec = make_codec()
  latent = jax.random.normal(jax.random.key(0), (1, 5, 8))
  frame = AUDIO.frame

  def third_frame(latent):
    return codec.decode(latent)[0, 2 * frame : 3 * frame].sum()

  gradient = jax.jit(jax.grad(third_frame))(latent)[0]
  assert np.abs(gradient[2]).max() > 0
  np.testing.assert_array_equal(gradient[3:], 0)


def test_padding_does_not_change_the_loss():
  codec = make_codec(unquantized=0.0)
  wave = waves(4)
  buffers = fitted_buffers(codec, encode(codec, wave))
  padding = waves(3, seed=5)  # not silence: its content must not matter
  padded = jnp.concatenate([wave, padding], axis=1)
  mask = jnp.ones((2, 7)).at[:, 4:].set(0)
  forward = nnx.jit(codec_forward)
  key = jax.random.key(0)
  short, short_out = forward(codec, buffers, wave, jnp.ones((2, 4)), key)
  long, long_out = forward(codec, buffers, padded, mask, key)
  np.testing.assert_allclose(short, long, rtol=1e-5)
  np.testing.assert_allclose(short_out.stats.count_JE, long_out.stats.count_JE)
  np.testing.assert_allclose(short_out.metrics.wave, long_out.metrics.wave, rtol=1e-5)


def test_distances_are_zero_only_for_the_same_sound():
  wave = waves()
  mask = jnp.ones((2, 6))
  assert float(mel_distance(wave, wave, mask, AUDIO)) == 0
  assert float(wave_distance(wave, wave, mask, AUDIO)) == 0
  # Half the amplitude is a quarter of the power in every band above the floor.
  distance = float(mel_distance(wave, wave / 2, mask, AUDIO))
  assert 0.7 < distance / np.log(4) <= 1
  np.testing.assert_allclose(wave_distance(wave, wave / 2, mask, AUDIO), 0.5, rtol=1e-5)


def test_dropout_keeps_the_first_codebooks():
  key = jax.random.key(0)
  keep = np.asarray(quantizer_dropout(make_codec(dropout=1.0), 200, key))
  assert {tuple(row) for row in keep} == {(1.0, 0.0), (1.0, 1.0)}
  np.testing.assert_array_equal(
    quantizer_dropout(make_codec(), 3, key), np.ones((3, 2))
  )


def test_overfits_one_batch():
  codec = make_codec()
  wave = waves(4)
  mask = jnp.ones((2, 4))
  graph, params = nnx.split(codec)
  tx = optax.adam(3e-3)

  @jax.jit
  def step(params, buffers, opt_state, key):
    def loss(params):
      return codec_forward(nnx.merge(graph, params), buffers, wave, mask, key)

    (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = tx.update(gradients, opt_state)
    params = optax.apply_updates(params, updates)
    buffers = update_buffers(codec.config, buffers, out.stats, key)
    return params, buffers, opt_state, out.metrics

  buffers = init_buffers(codec.config)
  opt_state = tx.init(params)
  mel = []
  for i in range(60):
    params, buffers, opt_state, metrics = step(
      params, buffers, opt_state, jax.random.key(i)
    )
    mel.append(float(metrics.mel))
  assert mel[-1] < 0.5 * mel[0], mel[::10]


@pytest.mark.parametrize('rate', [16000, 24000])
def test_other_sample_rates_have_the_same_number_of_frames(rate):
  audio = AudioConfig(rate=rate, mel_window=rate * 32 // 1000)
  codec = Codec(CONFIG, audio, rngs=nnx.Rngs(0))
  wave = jax.ShapeDtypeStruct((2, 3 * audio.frame), jnp.float32)
  latent = jax.eval_shape(lambda wave: codec.encode(wave), wave)
  assert latent.shape == (2, 3, CONFIG.latent)
  decoded = jax.eval_shape(lambda latent: codec.decode(latent), latent)
  assert decoded.shape == wave.shape
