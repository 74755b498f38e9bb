"""Classifiers that recognise what was drawn or spoken.

They are fitted to real training data only, never to anything generated.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from omni_jax.data.sources.digits import Digits
from omni_jax.data.sources.espeak import Clip
from omni_jax.evaluate.metrics.extras import needs_extra
from omni_jax.evaluate.metrics.features import log_mel, stretch, trim

# Principal components of speech features: as accurate as all 769, in half the time.
COMPONENTS = 120
IMAGE_COMPONENTS = 64  # principal components of pixels, where there are more pixels
COLUMNS = 24  # columns of a word's time-normalised log-mel
LEVEL = 0.1  # root mean square that every clip is scaled to
# Added to mel magnitudes, because sounds 30 dB below speech carry no information.
NOISE_FLOOR = 0.003
MAX_CLIPS = 4000  # most clips that are fitted to: the cost grows with their square
LENGTH_WEIGHT = 3  # weight of a word's log length beside its log-mel


class SpeechVerdict(NamedTuple):
  """The digit, language and voice recognised in each clip; a voice of '' is unknown."""

  digit: list[int]
  language: list[str]
  voice: list[str]


class ImageJudge:
  """Reads a drawn digit: an RBF support vector machine on pixels.

  Where there are many pixels, it works on their principal components.
  """

  def __init__(self, images: np.ndarray, labels: np.ndarray):
    with needs_extra():
      from sklearn.decomposition import PCA
      from sklearn.pipeline import make_pipeline
      from sklearn.svm import SVC
    self._shape = images.shape[1:]
    raw = images.reshape(len(images), -1)
    steps = [SVC(C=10)]
    components = min(IMAGE_COMPONENTS, len(raw))
    if raw.shape[1] > components:
      steps.insert(0, PCA(components, svd_solver='randomized', random_state=0))
    self._model = make_pipeline(*steps).fit(raw, labels)

  def __call__(self, images: Sequence[np.ndarray] | np.ndarray) -> list[int]:
    """Returns digits 0…9, or -1 for an image whose size is not that of real images."""
    digits = [-1] * len(images)
    fitting = [k for k, image in enumerate(images) if image.shape == self._shape]
    if not fitting:
      return digits
    predicted = self._model.predict([images[k].ravel() for k in fitting])
    for k, digit in zip(fitting, predicted, strict=True):
      digits[k] = int(digit)
    return digits


class SpeechJudge:
  """Recognises the digit, language and voice of a spoken digit.

  It is fitted to each clip twice, once as it is and once distorted. One support vector
  machine knows the words (language and digit together, which is far more accurate than
  either alone), another one the voices.
  """

  def __init__(self, clips: Sequence[Clip], *, rate: int, seed: int = 0):
    with needs_extra():
      from sklearn.decomposition import PCA
      from sklearn.pipeline import make_pipeline
      from sklearn.preprocessing import StandardScaler
      from sklearn.svm import SVC
    rng = np.random.default_rng(seed)
    if len(clips) > MAX_CLIPS:
      clips = [clips[k] for k in rng.permutation(len(clips))[:MAX_CLIPS]]
    self._rate = rate
    waves = [clip.wave for clip in clips]
    noisy = [distort(wave, rng) for wave in waves]
    raw = self._raw(waves + noisy)
    components = min(COMPONENTS, len(raw))
    pca = PCA(components, svd_solver='randomized', random_state=seed)
    self._reduce = make_pipeline(StandardScaler(), pca).fit(raw)
    features = self._reduce.transform(raw)
    words = [f'{clip.language} {clip.digit}' for clip in clips]
    voices = [clip.voice for clip in clips]
    self._words = SVC(C=10).fit(features, words * 2)
    self._voices = None
    if len(set(voices)) > 1:
      self._voices = SVC(C=10).fit(features, voices * 2)

  def __call__(self, waves: Sequence[np.ndarray]) -> SpeechVerdict:
    """Returns what is heard in each wave."""
    if not len(waves):
      return SpeechVerdict([], [], [])
    features = self._reduce.transform(self._raw(waves))
    digits: list[int] = []
    languages: list[str] = []
    for word in self._words.predict(features):
      language, digit = word.split()
      languages.append(language)
      digits.append(int(digit))
    voices = [''] * len(waves)
    if self._voices:
      voices = self._voices.predict(features).tolist()
    return SpeechVerdict(digits, languages, voices)

  def _raw(self, waves: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([word_features(wave, rate=self._rate) for wave in waves])


def word_features(wave: np.ndarray, *, rate: int) -> np.ndarray:
  """Returns the features of a spoken word as one vector.

  They are its time-normalised log-mel at one loudness, and the logarithm of its length.
  """
  wave = np.nan_to_num(np.asarray(wave, np.float32))
  wave = trim(wave if len(wave) else np.zeros(1, np.float32), rate=rate)
  wave = wave * (LEVEL / (np.sqrt(np.mean(np.square(wave))) + 1e-6))
  mel = np.log(np.exp(log_mel(wave, rate=rate)) + NOISE_FLOOR)
  length = LENGTH_WEIGHT * np.log(len(wave) / rate + 1e-3)
  return np.append(stretch(mel - mel.mean(), COLUMNS).ravel(), length)


def distort(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Returns real speech as it sounds over a bad line.

  The speed changes by up to 8 %, the spectrum by a few dB, the band is sometimes
  limited, and noise is added at a signal-to-noise ratio of 10 to 40 dB. Without this, a
  judge that is perfect on clean takes falls to 80 % at 15 dB, and would measure the
  codec's hiss instead of the word.
  """
  position = np.arange(0, len(wave) - 1, rng.uniform(0.92, 1.08))
  wave = np.interp(position, np.arange(len(wave)), wave)
  # A power of two is many times faster than a prime.
  spectrum = np.fft.rfft(wave, 1 << len(wave).bit_length())
  frequency = np.linspace(0, 1, len(spectrum))
  decibels = np.interp(frequency, (0, 0.3, 0.6, 1), rng.normal(0, 3, 4))
  decibels -= 20 * np.clip((frequency - rng.uniform(0.65, 1.3)) / 0.1, 0, 1)
  wave = np.fft.irfft(spectrum * 10 ** (decibels / 20))[: len(wave)]
  noise = rng.normal(size=len(wave)) * np.sqrt(np.mean(np.square(wave)))
  return (wave + noise * 10 ** (-rng.uniform(10, 40) / 20)).astype(np.float32)


class Judges(NamedTuple):
  """The judges, and their accuracy on real test data, which is shown with every score.

  Attributes:
    image: the judge of drawings.
    speech: the judge of spoken words.
    real: accuracy of `image`; of `digit` and `language`, on voices that were not fitted
      to; and of `voice`, on other takes of known voices.
  """

  image: ImageJudge
  speech: SpeechJudge
  real: dict[str, float]

  def summary(self) -> str:
    """Returns the accuracies as text for a log."""
    return ', '.join(f'{name} {value:.1%}' for name, value in self.real.items())


def fit_judges(digits: Digits, *, rate: int, seed: int = 0) -> Judges:
  """Returns judges fitted to the training parts, and measured on the test parts.

  Args:
    digits: images and clips.
    rate: samples per second of the clips.
    seed: seed of the distortions.
  """
  image = ImageJudge(digits.train_images, digits.train_labels)
  speech = SpeechJudge(digits.train_clips, rate=rate, seed=seed)
  unseen = speech([clip.wave for clip in digits.test_clips])
  known = speech([clip.wave for clip in digits.take_clips])
  test_digits = [clip.digit for clip in digits.test_clips]
  test_languages = [clip.language for clip in digits.test_clips]
  take_voices = [clip.voice for clip in digits.take_clips]
  real = {
    'image': _agreement(image(digits.test_images), digits.test_labels),
    'digit': _agreement(unseen.digit, test_digits),
    'language': _agreement(unseen.language, test_languages),
    'voice': _agreement(known.voice, take_voices),
  }
  return Judges(image, speech, real)


def _agreement(
  judged: Sequence[int | str], true: Sequence[int | str] | np.ndarray
) -> float:
  """Returns the share of equal elements."""
  return float(np.mean([a == b for a, b in zip(judged, true, strict=True)]))
