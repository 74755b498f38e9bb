"""Synthesises spoken digits in four languages and many voices with eSpeak NG.

They are the speech of the embedded default data. The library (GPL-3.0) comes with the
optional wheel `espeakng-loader` and is called through ctypes: no program is started and
no network is used.
"""

import _ctypes
from collections.abc import Iterator, Sequence
import contextlib
import ctypes
import dataclasses
import itertools
import os
import pathlib
import threading
from types import ModuleType
from typing import Any

import numpy as np
import soxr

from omni_jax.errors import UserError
from omni_jax.modalities.audio.sizes import FULL_SCALE

# The words of the digits 0 to 9, by language.
DIGIT_WORDS = {
  'en': (
    'zero',
    'one',
    'two',
    'three',
    'four',
    'five',
    'six',
    'seven',
    'eight',
    'nine',
  ),
  'de': (
    'null',
    'eins',
    'zwei',
    'drei',
    'vier',
    'fünf',
    'sechs',
    'sieben',
    'acht',
    'neun',
  ),
  'fr': (
    'zéro',
    'un',
    'deux',
    'trois',
    'quatre',
    'cinq',
    'six',
    'sept',
    'huit',
    'neuf',
  ),
  'es': (
    'cero',
    'uno',
    'dos',
    'tres',
    'cuatro',
    'cinco',
    'seis',
    'siete',
    'ocho',
    'nueve',
  ),
}
# Variants in eSpeak's folder `!v`, without robots, whispers and croaks. Both lists have
# low and high voices.
TRAIN_VARIANTS = (
  'f1',
  'f2',
  'f4',
  'f5',
  'm1',
  'm2',
  'm3',
  'm5',
  'm7',
  'Alex',
  'Andrea',
  'linda',
  'steph',
  'Denis',
)
HELDOUT_VARIANTS = ('f3', 'm4', 'Annie', 'Michael')
# The takes of a voice: (words per minute, pitch from 0 to 99).
TAKES = ((125, 50), (140, 40), (165, 60), (135, 65), (155, 35))

# Values of speak_lib.h. The first is AUDIO_OUTPUT_SYNCHRONOUS: no sound device and no
# thread; when Synth returns, the callback has received everything.
_SYNCHRONOUS = 2
_RATE = 1
_PITCH = 3
_UTF8 = 1
_FASTEST = 450  # words per minute
_CALLBACK = ctypes.CFUNCTYPE(
  ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)

_LOCK = threading.Lock()  # the library's state is global

_LOUDNESS = 0.1  # root mean square of a clip
_PEAK = 0.95  # largest amplitude; louder clips are scaled down
_QUIET = 10 ** (-45 / 20)  # share of the peak below which both ends are silence
_MARGIN = 0.01  # seconds kept around the speech


@dataclasses.dataclass(frozen=True)
class Clip:
  """One spoken digit.

  Attributes:
    wave: float32 in [-1, 1], shape (samples,).
    digit: digit that is spoken, 0…9.
    language: key of `DIGIT_WORDS`.
    voice: eSpeak variant.
    rate_wpm: words per minute that eSpeak was asked for.
    pitch: pitch that eSpeak was asked for, 0…99.
  """

  wave: np.ndarray
  digit: int
  language: str
  voice: str
  rate_wpm: int
  pitch: int


def _loader() -> ModuleType:
  """Returns the optional package that contains the library. Raises UserError."""
  try:
    import espeakng_loader
  except ImportError as error:
    raise UserError(
      "speech synthesis needs the wheel espeakng-loader: pip install 'omni_jax[demo]'"
    ) from error
  return espeakng_loader


@contextlib.contextmanager
def _fresh_library() -> Iterator[tuple[ctypes.CDLL, int]]:
  """Yields the library, newly loaded, and its sample rate; unloads it afterwards.

  eSpeak's output depends on everything that it spoke before (the phases of its
  oscillators survive even espeak_Terminate). Loading the library anew costs 2 ms. Its
  breath noise is seeded here, since it takes the seed from the clock (voices f2, f3 and
  f5) or from C's rand (Reed, caleb). Both together make a clip a function of its
  arguments.
  """
  loader = _loader()
  data = loader.get_data_path()
  lib = ctypes.CDLL(loader.get_library_path())
  try:
    rate = lib.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), 0)
    if rate <= 0:
      raise UserError(f'eSpeak NG does not start with the data in {data}: code {rate}')
    lib.espeak_ng_SetRandSeed(ctypes.c_long(0))
    if os.name == 'posix':
      ctypes.CDLL(None).srand(1)
    yield lib, rate
    lib.espeak_Terminate()
  finally:
    unload: Any = getattr(_ctypes, 'dlclose', getattr(_ctypes, 'FreeLibrary', None))
    unload(lib._handle)


def variants() -> tuple[str, ...]:
  """Returns the names of all voice variants of the installed eSpeak NG.

  eSpeak itself silently replaces an unknown variant by its default.
  """
  folder = pathlib.Path(_loader().get_data_path()) / 'voices' / '!v'
  return tuple(sorted(path.name for path in folder.iterdir()))


def _speak(text: str, voice: str, rate_wpm: int, pitch: int) -> tuple[np.ndarray, int]:
  """Returns eSpeak's float32 samples, its silences included, and their rate."""
  pieces: list[np.ndarray] = []

  def receive(samples, count, _):
    if samples and count > 0:
      pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
    return 0  # continue

  callback = _CALLBACK(receive)  # kept in a name: the library holds only a bare pointer
  with _LOCK, _fresh_library() as (lib, rate):
    lib.espeak_SetSynthCallback(callback)
    if lib.espeak_SetVoiceByName(voice.encode()):
      raise UserError(f'eSpeak NG has no voice {voice!r}')
    lib.espeak_SetParameter(_RATE, rate_wpm, 0)
    lib.espeak_SetParameter(_PITCH, pitch, 0)
    raw = text.encode()
    size = ctypes.c_size_t(len(raw) + 1)
    code = lib.espeak_Synth(raw, size, 0, 0, 0, _UTF8, None, None)
  if code or not pieces:
    raise UserError(
      f'eSpeak NG produced no sound for {text!r} with voice {voice!r}: code {code}'
    )
  return np.concatenate(pieces) / np.float32(FULL_SCALE), rate


def _trimmed(wave_S: np.ndarray, rate: int) -> np.ndarray:
  """Returns the wave without the silence at both ends, except for a margin."""
  loudness_S = np.abs(wave_S)
  loud = np.flatnonzero(loudness_S > _QUIET * loudness_S.max())
  margin = round(_MARGIN * rate)
  start = max(0, loud[0] - margin)
  end = loud[-1] + 1 + margin
  return wave_S[start:end]


def synthesize(
  text: str,
  *,
  language: str,
  variant: str,
  rate_wpm: int,
  pitch: int,
  sample_rate: int = 8000,
) -> np.ndarray:
  """Returns the spoken text: float32 in [-1, 1], shape (samples,).

  It is trimmed, has the same loudness for all texts, and depends only on the arguments.

  Args:
    text: text to speak.
    language: eSpeak's code, e.g. 'en'.
    variant: one of `variants()`.
    rate_wpm: words per minute, 80…450.
    pitch: 0…99.
    sample_rate: samples per second of the result.

  Raises:
    UserError: if the synthesis is not installed, or has no such voice.
  """
  known = variants()
  if variant not in known:
    raise UserError(f'eSpeak NG has no voice variant {variant!r}; there are {known}')
  raw_S, rate = _speak(text, f'{language}+{variant}', rate_wpm, pitch)
  wave_S = _trimmed(soxr.resample(raw_S, rate, sample_rate), sample_rate)
  loudness = np.sqrt(np.mean(np.square(wave_S)))
  wave_S = wave_S * (_LOUDNESS / loudness)
  scale = min(1.0, _PEAK / np.abs(wave_S).max())
  return (wave_S * scale).astype(np.float32)


def corpus(
  voices: Sequence[str] = TRAIN_VARIANTS,
  takes: Sequence[tuple[int, int]] = TAKES,
  languages: Sequence[str] = tuple(DIGIT_WORDS),
  *,
  sample_rate: int,
  seconds: float,
) -> list[Clip]:
  """Returns every digit in every language by every voice in every take: 4 ms per clip.

  They are ordered by voice, take, language and digit. A clip longer than `seconds` is
  spoken again, faster by the ratio and 5 %.

  Raises:
    UserError: if a word does not fit into `seconds` even at the highest rate.
  """
  clips = []
  for voice, take, language in itertools.product(voices, takes, languages):
    for digit in range(10):
      clips.append(_clip(digit, language, voice, take, sample_rate, seconds))
  return clips


def _clip(
  digit: int,
  language: str,
  voice: str,
  take: tuple[int, int],
  sample_rate: int,
  seconds: float,
) -> Clip:
  """Returns a spoken digit that is no longer than `seconds`."""
  word = DIGIT_WORDS[language][digit]
  rate_wpm, pitch = take

  def speak() -> np.ndarray:
    return synthesize(
      word,
      language=language,
      variant=voice,
      rate_wpm=rate_wpm,
      pitch=pitch,
      sample_rate=sample_rate,
    )

  wave_S = speak()
  while len(wave_S) > seconds * sample_rate:
    rate_wpm = round(1.05 * rate_wpm * len(wave_S) / (seconds * sample_rate))
    if rate_wpm > _FASTEST:
      raise UserError(
        f'{word!r} by {voice!r} does not fit into {seconds} s at {_FASTEST} words per '
        'minute'
      )
    wave_S = speak()
  return Clip(wave_S, digit, language, voice, rate_wpm, pitch)
