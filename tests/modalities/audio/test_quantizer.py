"""Codes of residual quantization are the nearest entries, and the codebooks learn.

Codebooks are initialised one per update, and entries that nobody uses restart.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.modalities.audio import quantizer
from omni_jax.modalities.audio.quantizer import (
  CodecBuffers,
  dequantize,
  init_buffers,
  perplexity,
  QuantizerConfig,
)

quantize = jax.jit(quantizer.quantize)
update_buffers = jax.jit(quantizer.update_buffers, static_argnums=0)
CONFIG = QuantizerConfig(latent=4, codebooks=3, entries=16, decay=0.9)
ALL = jnp.ones((4, 8))  # mask in which all frames count


def latents(seed=0, clips=4, frames=8):
  return jax.random.normal(jax.random.key(seed), (clips, frames, CONFIG.latent))


@pytest.fixture(scope='module')
def buffers() -> CodecBuffers:
  """Codebooks after 40 updates."""
  buffers = init_buffers(CONFIG)
  for seed in range(40):
    stats = quantize(latents(seed), buffers, ALL).stats
    buffers = update_buffers(CONFIG, buffers, stats, jax.random.key(seed))
  return buffers


def test_codes_are_the_nearest_entries_of_the_residuals(buffers):
  x = latents(99)
  coded = quantize(x, buffers, ALL)
  residual = np.asarray(x)
  commitment = 0.0
  for level, entries in enumerate(np.asarray(buffers.codebook_JEZ)):
    distance = np.square(residual[:, :, None] - entries[None, None]).sum(-1)
    code = distance.argmin(-1)
    np.testing.assert_array_equal(coded.code_NRJ[..., level], code)
    residual = residual - entries[code]
    commitment += np.square(residual).mean()
  np.testing.assert_allclose(coded.latent_NRZ, np.asarray(x) - residual, atol=1e-5)
  np.testing.assert_allclose(coded.commitment, commitment, rtol=1e-5)


def test_dequantize_returns_the_quantized_latents(buffers):
  coded = quantize(latents(99), buffers, ALL)
  latent = dequantize(coded.code_NRJ, buffers)
  np.testing.assert_allclose(latent, coded.latent_NRZ, atol=1e-5)
  keep_first = jnp.eye(3)[jnp.zeros(4, int)]  # of each clip only the first codebook
  first = quantize(latents(99), buffers, ALL, keep_NJ=keep_first)
  latent = dequantize(coded.code_NRJ[..., :1], buffers)
  np.testing.assert_allclose(latent, first.latent_NRZ, atol=1e-5)


def test_each_codebook_reduces_the_error(buffers):
  x = latents(99)
  code = quantize(x, buffers, ALL).code_NRJ
  errors = []
  for j in (1, 2, 3):
    latent = dequantize(code[..., :j], buffers)
    errors.append(float(jnp.square(x - latent).mean()))
  assert 1 > errors[0] > errors[1] > errors[2], errors


def test_gradient_passes_straight_through(buffers):
  weight = jnp.arange(4.0)[None, None]

  def total(x):
    return (quantize(x, buffers, ALL).latent_NRZ * weight).sum()

  expected = jnp.broadcast_to(weight, (4, 8, 4))
  np.testing.assert_allclose(jax.grad(total)(latents()), expected, atol=1e-6)


def test_codebooks_are_initialised_one_per_update():
  buffers = init_buffers(CONFIG)
  for update in range(4):
    initialised = (np.asarray(buffers.count_JE).sum(-1) > 0).sum()
    assert initialised == min(update, CONFIG.codebooks)
    stats = quantize(latents(update), buffers, ALL).stats
    buffers = update_buffers(CONFIG, buffers, stats, jax.random.key(update))
  assert (np.asarray(perplexity(stats.count_JE)) > 4).all()


def test_dead_entry_restarts_near_a_latent_of_the_batch(buffers):
  # Entry 5 of the first codebook lies far from every latent.
  with_far_entry = buffers._replace(
    codebook_JEZ=buffers.codebook_JEZ.at[0, 5].set(1e3),
    count_JE=buffers.count_JE.at[0, 5].set(1e-3),
    sum_JEZ=buffers.sum_JEZ.at[0, 5].set(1.0),
  )
  x = latents(7)
  stats = quantize(x, with_far_entry, ALL).stats
  after = update_buffers(CONFIG, with_far_entry, stats, jax.random.key(0))
  entry = np.asarray(after.codebook_JEZ[0, 5])
  distance = np.linalg.norm(np.asarray(x).reshape(-1, 4) - entry, axis=-1)
  assert distance.min() < 0.1
  assert float(after.count_JE[0, 5]) > 0.1


def test_padding_is_not_counted_and_never_revives_an_entry(buffers):
  mask = jnp.ones((4, 8)).at[:, 5:].set(0)
  x = latents(3)
  corrupted_x = jnp.where(mask[..., None] > 0, x, 1e3)
  clean = quantize(x, buffers, mask)
  corrupted = quantize(corrupted_x, buffers, mask)
  np.testing.assert_allclose(clean.commitment, corrupted.commitment, rtol=1e-6)
  np.testing.assert_allclose(clean.stats.count_JE, corrupted.stats.count_JE)
  # Codebooks, clips, and frames of a clip that count.
  assert float(clean.stats.count_JE.sum()) == 3 * 4 * 5
  # All entries but the first are dead.
  with_dead_entries = buffers._replace(
    count_JE=jnp.zeros_like(buffers.count_JE).at[:, 0].set(1.0),
    sum_JEZ=jnp.zeros_like(buffers.sum_JEZ).at[:, 0].set(1.0),
  )
  after = update_buffers(CONFIG, with_dead_entries, corrupted.stats, jax.random.key(0))
  assert np.abs(np.asarray(after.codebook_JEZ[0, 1:])).max() < 10


def test_averages_follow_the_latents():
  """The only entry moves to the latents, which lie around 3."""
  config = QuantizerConfig(latent=2, codebooks=1, entries=1, decay=0.5)
  buffers = init_buffers(config)
  for seed in range(20):
    x = 3 + 0.1 * jax.random.normal(jax.random.key(seed), (4, 16, 2))
    stats = quantize(x, buffers, jnp.ones((4, 16))).stats
    buffers = update_buffers(config, buffers, stats, jax.random.key(seed))
  np.testing.assert_allclose(buffers.codebook_JEZ[0, 0], 3, atol=0.05)


def test_perplexity_counts_entries_in_use():
  count = jnp.asarray([[1.0, 1, 1, 1], [4, 0, 0, 0], [0, 0, 0, 0]])
  np.testing.assert_allclose(perplexity(count), [4, 1, 1], rtol=1e-5)
