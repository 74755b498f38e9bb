"""The codec: streams as it codes whole clips, never looks ahead, ignores padding, learns a batch."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from omni_jax.modalities.audio import codec_loss, quantizer
from omni_jax.modalities.audio.codec import Codec, CodecConfig
from omni_jax.modalities.audio.codec_loss import codec_forward, quantizer_dropout
from omni_jax.modalities.audio.quantizer import init_buffers
from omni_jax.modalities.audio.sizes import AudioConfig

encode, decode = nnx.jit(Codec.encode), nnx.jit(Codec.decode)
quantize, update_buffers = (
  jax.jit(quantizer.quantize),
  jax.jit(quantizer.update_buffers, static_argnums=0),
)
mel_distance = jax.jit(codec_loss.mel_distance, static_argnums=3)
wave_distance = jax.jit(codec_loss.wave_distance, static_argnums=3)
AUDIO = AudioConfig()
CONFIG = CodecConfig(
  latent=8, codebooks=2, entries=16, width=32, layers=2, heads=2, hidden=48, window=6
)


def make_codec(**changes) -> Codec:
  codec = Codec(CodecConfig(**(CONFIG.__dict__ | changes)), AUDIO, rngs=nnx.Rngs(0))
  for layer in (
    *codec.encoder,
    *codec.decoder,
  ):  # zero at the start: give the distances something to say
    layer.bias_HW[...] = jax.random.normal(jax.random.key(1), layer.bias_HW.shape)
  return codec


def waves(frames=6, clips=2, seed=0):
  """Chirps of different pitch with a little noise."""
  rng = np.random.default_rng(seed)
  seconds = np.arange(frames * AUDIO.frame) / AUDIO.rate
  hz = rng.uniform(150, 900, (clips, 1)) * (1 + seconds)[None]
  return jnp.asarray(
    0.2 * np.sin(2 * np.pi * hz * seconds) + 0.01 * rng.standard_normal(hz.shape),
    jnp.float32,
  )


def born_buffers(codec: Codec, latent_NRZ):
  buffers, mask_NR = init_buffers(codec.config), jnp.ones(latent_NRZ.shape[:2])
  for i in range(6):
    stats = quantize(latent_NRZ, buffers, mask_NR).stats
    buffers = update_buffers(codec.config, buffers, stats, jax.random.key(i))
  return buffers


def test_chunks_equal_the_whole_clip():
  codec, wave = make_codec(), waves()
  encode_stream, decode_stream = (
    nnx.jit(Codec.encode_stream),
    nnx.jit(Codec.decode_stream),
  )
  latent = encode(codec, wave)
  buffers = born_buffers(codec, latent)
  hear, say = codec.init_cache(2), codec.init_cache(2)
  latents, made, at = [], [], 0
  for frames in (2, 1, 1, 2):
    hear, piece = encode_stream(
      codec, hear, wave[:, at * AUDIO.frame : (at + frames) * AUDIO.frame]
    )
    say, sound = decode_stream(
      codec, say, quantize(piece, buffers, jnp.ones((2, frames))).latent_NRZ
    )
    latents.append(piece)
    made.append(sound)
    at += frames
  streamed = jnp.concatenate(latents, axis=1)
  np.testing.assert_allclose(streamed, latent, atol=1e-5)

  whole, parts = (quantize(x, buffers, jnp.ones((2, 6))) for x in (latent, streamed))
  clear = clear_choice(latent, buffers)
  assert clear.mean() > 0.5
  np.testing.assert_array_equal(
    np.asarray(whole.code_NRJ)[clear], np.asarray(parts.code_NRJ)[clear]
  )
  if (whole.code_NRJ == parts.code_NRJ).all():
    np.testing.assert_allclose(
      jnp.concatenate(made, axis=1), decode(codec, whole.latent_NRZ), atol=1e-5
    )


def clear_choice(latent_NRZ, buffers, margin=1e-4):
  """Frames none of whose choices hangs on less than the margin between the two nearest entries."""
  residual, clear = np.asarray(latent_NRZ), np.ones(latent_NRZ.shape[:2], bool)
  for entries in np.asarray(buffers.codebook_JEZ):
    distance = np.square(residual[:, :, None] - entries[None, None]).sum(-1)
    nearest = np.sort(distance, axis=-1)
    clear &= nearest[..., 1] - nearest[..., 0] > margin
    residual = residual - entries[distance.argmin(-1)]
  return clear


def test_a_latent_sees_no_later_sample():
  codec, wave = make_codec(), waves(5, clips=1)
  grad = jax.jit(jax.grad(lambda w: codec.encode(w)[0, 2].sum()))(wave)[0]
  assert np.abs(grad[2 * AUDIO.frame : 3 * AUDIO.frame]).max() > 0
  np.testing.assert_array_equal(grad[3 * AUDIO.frame :], 0)


def test_a_sample_sees_no_later_latent():
  codec, latent = make_codec(), jax.random.normal(jax.random.key(0), (1, 5, 8))
  grad = jax.jit(
    jax.grad(lambda z: codec.decode(z)[0, 2 * AUDIO.frame : 3 * AUDIO.frame].sum())
  )(latent)[0]
  assert np.abs(grad[2]).max() > 0
  np.testing.assert_array_equal(grad[3:], 0)


def test_padding_does_not_change_the_loss():
  codec, wave = make_codec(unquantized=0.0), waves(4)
  buffers = born_buffers(codec, encode(codec, wave))
  rest = waves(3, seed=5)  # not even silence: whatever stands there is not looked at
  padded, mask = (
    jnp.concatenate([wave, rest], axis=1),
    jnp.ones((2, 7)).at[:, 4:].set(0),
  )
  forward = nnx.jit(codec_forward)
  short, short_out = forward(codec, buffers, wave, jnp.ones((2, 4)), jax.random.key(0))
  long, long_out = forward(codec, buffers, padded, mask, jax.random.key(0))
  np.testing.assert_allclose(short, long, rtol=1e-5)
  np.testing.assert_allclose(short_out.stats.count_JE, long_out.stats.count_JE)
  np.testing.assert_allclose(short_out.metrics.wave, long_out.metrics.wave, rtol=1e-5)


def test_distances_are_zero_only_for_the_same_sound():
  wave, mask = waves(), jnp.ones((2, 6))
  assert (
    float(mel_distance(wave, wave, mask, AUDIO)) == 0
    and float(wave_distance(wave, wave, mask, AUDIO)) == 0
  )
  # Half the amplitude is a quarter of the power in every band above the floor.
  assert 0.7 < float(mel_distance(wave, wave / 2, mask, AUDIO)) / np.log(4) <= 1
  np.testing.assert_allclose(wave_distance(wave, wave / 2, mask, AUDIO), 0.5, rtol=1e-5)


def test_dropout_keeps_the_first_codebooks():
  codec = make_codec(dropout=1.0)
  keep = np.asarray(quantizer_dropout(codec, 200, jax.random.key(0)))
  assert set(map(tuple, keep)) == {(1.0, 0.0), (1.0, 1.0)}
  np.testing.assert_array_equal(
    quantizer_dropout(make_codec(), 3, jax.random.key(0)), np.ones((3, 2))
  )


def test_overfits_one_batch():
  codec, wave, mask = make_codec(), waves(4), jnp.ones((2, 4))
  graph, params = nnx.split(codec)
  tx = optax.adam(3e-3)

  @jax.jit
  def step(params, buffers, opt, key):
    def loss(params):
      return codec_forward(nnx.merge(graph, params), buffers, wave, mask, key)

    (_, out), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt = tx.update(grads, opt)
    return (
      optax.apply_updates(params, updates),
      update_buffers(codec.config, buffers, out.stats, key),
      opt,
      out.metrics,
    )

  buffers, opt, mel = init_buffers(codec.config), tx.init(params), []
  for i in range(60):
    params, buffers, opt, metrics = step(params, buffers, opt, jax.random.key(i))
    mel.append(float(metrics.mel))
  assert mel[-1] < 0.5 * mel[0], mel[::10]


@pytest.mark.parametrize('rate', [16000, 24000])
def test_other_rates(rate):
  audio = AudioConfig(rate=rate, mel_window=rate * 32 // 1000)
  codec = Codec(CONFIG, audio, rngs=nnx.Rngs(0))
  latent = jax.eval_shape(
    lambda w: codec.encode(w), jax.ShapeDtypeStruct((2, 3 * audio.frame), jnp.float32)
  )
  assert latent.shape == (2, 3, CONFIG.latent)
  assert jax.eval_shape(lambda z: codec.decode(z), latent).shape == (2, 3 * audio.frame)
