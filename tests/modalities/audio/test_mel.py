"""Log-mel columns equal those of numpy's FFT and do not see the future."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.modalities.audio.mel import (
  FLOOR,
  log_mel_columns,
  log_mel_patches,
  mel_filterbank,
  overlap,
  power_columns,
  synthesis_matrix,
)
from omni_jax.modalities.audio.sizes import AudioConfig

AUDIO = AudioConfig()


def wave_of(frames: int, clips: int = 2) -> np.ndarray:
  """Returns noise, (clips, samples)."""
  shape = (clips, frames * AUDIO.frame)
  noise = np.random.default_rng(0).standard_normal(shape)
  return 0.1 * noise.astype(np.float32)


def patches_of(wave, audio: AudioConfig = AUDIO) -> jax.Array:
  """Returns the log-mel patches of clips, one clip per row."""
  frames = jnp.asarray(wave).reshape(len(wave), -1, audio.frame)
  return log_mel_patches(frames, jnp.ones(frames.shape[:2], jnp.int32), audio)


def filterbank_reference(mels: int, window: int, rate: int) -> np.ndarray:
  """Returns the filterbank by a loop over bands and bins."""
  edge_mel = np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), mels + 2)
  edge_hz = 700 * (10 ** (edge_mel / 2595) - 1)
  weight = np.zeros((window // 2 + 1, mels))
  for band in range(mels):
    low, mid, high = edge_hz[band : band + 3]
    for b in range(window // 2 + 1):
      hz = b * rate / window
      if low < hz <= mid:
        weight[b, band] = (hz - low) / (mid - low)
      elif mid < hz < high:
        weight[b, band] = (high - hz) / (high - mid)
    if not weight[:, band].any():
      weight[round(mid * window / rate), band] = 1
    weight[:, band] /= weight[:, band].sum()
  return weight


@pytest.mark.parametrize(
  ('mels', 'window', 'rate'), [(32, 256, 8000), (10, 64, 8000), (80, 1024, 24000)]
)
def test_filterbank_equals_a_slow_reference(mels, window, rate):
  expected = filterbank_reference(mels, window, rate)
  np.testing.assert_allclose(mel_filterbank(mels, window, rate), expected, atol=1e-6)


@pytest.mark.parametrize(('window', 'hop'), [(256, 80), (256, 64), (64, 16)])
def test_power_equals_fft(window, hop):
  wave = wave_of(2)
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
  scale = hann / hann.sum()
  padded = np.pad(wave, ((0, 0), (window, 0)))
  with_context = jnp.pad(wave, ((0, 0), (overlap(window, hop), 0)))
  power_NCX = np.asarray(power_columns(with_context, window, hop))
  for column in range(power_NCX.shape[1]):
    end = (column + 1) * hop
    expected = np.abs(np.fft.rfft(padded[:, end : end + window] * scale)) ** 2
    np.testing.assert_allclose(power_NCX[:, column], expected, rtol=1e-3, atol=1e-8)


def test_power_of_a_sine_is_a_quarter_of_its_square():
  n = np.arange(1280, dtype=np.float32)
  wave = 0.5 * np.sin(2 * np.pi * 1000 / 8000 * n)
  power = power_columns(jnp.asarray(wave)[None], 256, 64)[0, -1]
  frequency_bin = 1000 * 256 // 8000
  assert power.argmax() == frequency_bin
  np.testing.assert_allclose(power[frequency_bin], 0.5**2 / 4, rtol=1e-3)


def test_patches_lie_around_zero_and_silence_is_constant():
  patches = patches_of(wave_of(3))
  assert patches.shape == (2, 3, AUDIO.mel_values)
  assert abs(float(patches[:, 1:].mean())) < 2
  silence = patches_of(np.zeros((1, AUDIO.frame), np.float32))
  assert np.ptp(np.asarray(silence)) == 0
  assert -3 < float(silence[0, 0, 0]) < -1


@pytest.mark.parametrize('rate', [8000, 16000, 24000])
def test_patches_have_the_same_size_at_any_rate(rate):
  audio = AudioConfig(rate=rate, mel_window=rate * 32 // 1000)
  patches = patches_of(np.zeros((1, 2 * audio.frame), np.float32), audio)
  assert patches.shape == (1, 2, audio.mel_values)


def test_a_frame_does_not_see_the_future():
  wave = jnp.asarray(wave_of(4, clips=1))
  gradient = jax.grad(lambda wave: patches_of(wave)[0, 1].sum())(wave)[0]
  size = np.abs(gradient)
  assert size[: 2 * AUDIO.frame].sum() > 0
  np.testing.assert_array_equal(gradient[2 * AUDIO.frame :], 0)


def test_silence_has_finite_gradients():
  def total(wave_NS):
    return log_mel_columns(wave_NS, rate=8000, mels=10, window=64, hop=16).sum()

  columns = 40
  silence = jnp.zeros((1, overlap(64, 16) + columns * 16))
  value, gradient = jax.value_and_grad(total)(silence)
  np.testing.assert_allclose(value, columns * 10 * np.log(FLOOR), rtol=1e-5)
  assert np.isfinite(gradient).all()


def test_synthesis_windows_sum_to_one():
  constant = synthesis_matrix(80, 40)[0]  # bin 0: the window itself
  np.testing.assert_allclose(constant[:40] + constant[80:], 1, atol=1e-6)
  np.testing.assert_allclose(constant[40:80], 1, atol=1e-6)
