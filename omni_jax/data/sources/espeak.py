"""Spoken digits in four languages and many voices, synthesised by eSpeak NG: the demonstration's speech data.

The library (GPL-3.0) is reached through the optional wheel `espeakng-loader`, by ctypes: no program, no network.
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

import numpy as np
import soxr

from omni_jax.errors import UserError

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
# Voices of eSpeak's `!v` folder. No robots, whispers or croaks; both lists mix low and high voices.
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
TAKES = (
  (125, 50),
  (140, 40),
  (165, 60),
  (135, 65),
  (155, 35),
)  # (words per minute, pitch 0…99)

# Values of speak_lib.h.
_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: no sound device, no thread; the callback has it all when Synth returns
_RATE, _PITCH = 1, 3
_FASTEST = 450  # words per minute
_UTF8 = 1
_CALLBACK = ctypes.CFUNCTYPE(
  ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)

_LOCK = threading.Lock()  # the library's state is global

_LOUDNESS = 0.1  # root mean square of a clip
_PEAK = 0.95  # never exceeded; louder clips are scaled down
_QUIET = 10 ** (-45 / 20)  # of the peak: what lies below at both ends is silence
_MARGIN = 0.01  # seconds kept around the speech


@dataclasses.dataclass(frozen=True)
class Clip:
  """One spoken digit.

  Attributes:
    wave: float32 in [-1, 1], shape (samples,).
    digit: 0…9.
    language: key of `DIGIT_WORDS`.
    voice: eSpeak variant.
    rate_wpm, pitch: as asked of eSpeak (words per minute; 0…99).
  """

  wave: np.ndarray
  digit: int
  language: str
  voice: str
  rate_wpm: int
  pitch: int


@contextlib.contextmanager
def _fresh_library() -> Iterator[tuple[ctypes.CDLL, int]]:
  """The library just loaded, and its sample rate; unloaded afterwards.

  What eSpeak says depends on everything it said before (its oscillators' phases survive even espeak_Terminate).
  Loading the library anew costs 2 ms; with the seeds of its breath noise, which it takes from the clock (voices f2, f3
  and f5) and from C's rand (Reed, caleb), it makes a clip a function of its arguments.
  """
  try:
    import espeakng_loader
  except ImportError as error:
    raise UserError(
      "speech synthesis needs the wheel espeakng-loader: pip install 'omni_jax[demo]'"
    ) from error
  data = espeakng_loader.get_data_path()
  lib = ctypes.CDLL(espeakng_loader.get_library_path())
  try:
    rate = lib.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), 0)
    if rate <= 0:
      raise UserError(f'eSpeak NG does not start with the data of {data}: code {rate}')
    lib.espeak_ng_SetRandSeed(ctypes.c_long(0))
    if os.name == 'posix':
      ctypes.CDLL(None).srand(1)
    yield lib, rate
    lib.espeak_Terminate()
  finally:
    getattr(_ctypes, 'dlclose', getattr(_ctypes, 'FreeLibrary', None))(lib._handle)


def variants() -> tuple[str, ...]:
  """Names of all voice variants of the installed eSpeak NG. (The library takes an unknown one for the default.)"""
  try:
    import espeakng_loader
  except ImportError as error:
    raise UserError(
      "speech synthesis needs the wheel espeakng-loader: pip install 'omni_jax[demo]'"
    ) from error
  return tuple(
    sorted(
      p.name
      for p in (
        pathlib.Path(espeakng_loader.get_data_path()) / 'voices' / '!v'
      ).iterdir()
    )
  )


def _speak(text: str, voice: str, rate_wpm: int, pitch: int) -> tuple[np.ndarray, int]:
  """Float samples as eSpeak gives them, its own silences included, and their rate."""
  pieces = []

  def receive(samples, count, _):
    if samples and count > 0:
      pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
    return 0  # go on

  callback = _CALLBACK(
    receive
  )  # a name of its own: the library holds a bare pointer to it
  with _LOCK, _fresh_library() as (lib, rate):
    lib.espeak_SetSynthCallback(callback)
    if lib.espeak_SetVoiceByName(voice.encode()):
      raise UserError(f'eSpeak NG has no voice {voice!r}')
    lib.espeak_SetParameter(_RATE, rate_wpm, 0)
    lib.espeak_SetParameter(_PITCH, pitch, 0)
    raw = text.encode()
    code = lib.espeak_Synth(
      raw, ctypes.c_size_t(len(raw) + 1), 0, 0, 0, _UTF8, None, None
    )
  if code or not pieces:
    raise UserError(
      f'eSpeak NG said nothing for {text!r} with voice {voice!r}: code {code}'
    )
  return np.concatenate(pieces) / np.float32(2**15), rate


def _trimmed(wave_S: np.ndarray, rate: int) -> np.ndarray:
  loud = np.flatnonzero(np.abs(wave_S) > _QUIET * np.abs(wave_S).max())
  margin = round(_MARGIN * rate)
  return wave_S[max(0, loud[0] - margin) : loud[-1] + 1 + margin]


def synthesize(
  text: str,
  *,
  language: str,
  variant: str,
  rate_wpm: int,
  pitch: int,
  sample_rate: int = 8000,
) -> np.ndarray:
  """Says the text: float32 in [-1, 1], shape (samples,), trimmed, of one loudness; the same for the same arguments.

  Args:
    language: eSpeak's code, e.g. 'en'.
    variant: one of `variants()`.
    rate_wpm: words per minute, 80…450.
    pitch: 0…99.
    sample_rate: samples per second of the result.
  """
  if variant not in (known := variants()):
    raise UserError(f'eSpeak NG has no voice variant {variant!r}; there are {known}')
  wave_S, rate = _speak(text, f'{language}+{variant}', rate_wpm, pitch)
  wave_S = _trimmed(soxr.resample(wave_S, rate, sample_rate), sample_rate)
  wave_S = wave_S * (_LOUDNESS / np.sqrt(np.mean(np.square(wave_S))))
  return (wave_S * min(1.0, _PEAK / np.abs(wave_S).max())).astype(np.float32)


def corpus(
  voices: Sequence[str] = TRAIN_VARIANTS,
  takes: Sequence[tuple[int, int]] = TAKES,
  languages: Sequence[str] = tuple(DIGIT_WORDS),
  *,
  sample_rate: int = 8000,
  seconds: float = 0.96,
) -> list[Clip]:
  """Every digit of every language by every voice in every take (words per minute, pitch): 4 ms a clip.

  A clip longer than `seconds` is said again, faster by the ratio and 5 %.
  """
  clips = []
  for voice, (rate_wpm, pitch), language in itertools.product(voices, takes, languages):
    for digit, word in enumerate(DIGIT_WORDS[language]):
      rate = rate_wpm
      wave = synthesize(
        word,
        language=language,
        variant=voice,
        rate_wpm=rate,
        pitch=pitch,
        sample_rate=sample_rate,
      )
      while len(wave) > seconds * sample_rate:
        rate = round(1.05 * rate * len(wave) / (seconds * sample_rate))
        if rate > _FASTEST:
          raise UserError(
            f'{word!r} by {voice!r} does not fit into {seconds} s at {_FASTEST} words per minute'
          )
        wave = synthesize(
          word,
          language=language,
          variant=voice,
          rate_wpm=rate,
          pitch=pitch,
          sample_rate=sample_rate,
        )
      clips.append(Clip(wave, digit, language, voice, rate, pitch))
  return clips
