"""Measures how much of a sound the audio codec preserves.

It scores the signal, the use of the codebooks, and whether the judge still recognises
the word.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from omni_jax.evaluate.judges import SpeechJudge
from omni_jax.evaluate.metrics import speech_metrics
from omni_jax.evaluate.metrics.scores import share
from omni_jax.generate.api import TrainedModel
from omni_jax.modalities.audio.device import CODEC


def perplexity(codes_RJ: np.ndarray) -> list[float]:
  """Returns the effective number of codes in use, per codebook.

  It is exp of the entropy of their counts over all frames (R, codebooks J).
  """
  perplexities: list[float] = []
  for codes_R in np.asarray(codes_RJ).T:
    counts = np.unique(codes_R, return_counts=True)[1]
    p = counts / counts.sum()
    perplexities.append(float(np.exp(-(p * np.log(p)).sum())))
  return perplexities


def codec_scores(
  trained: TrainedModel, clips: Sequence[Any], *, rate: int, judge: SpeechJudge | None
) -> dict[str, Any]:
  """Returns scores of clips against their reconstructions.

  Args:
    trained: the restored run.
    clips: objects with `wave` and, for the judge, `digit`.
    rate: samples per second of the clips.
    judge: recognises the digits; None if the clips are not digits.
  """
  waves = [clip.wave for clip in clips]
  codes = trained.encode_payloads(CODEC.name, waves)
  decoded = _reconstruct(trained, codes, waves)
  mel_distances: list[float] = []
  ratios: list[float] = []
  for original, wave in zip(waves, decoded, strict=True):
    mel_distances.append(speech_metrics.mel_distance(original, wave, rate=rate))
    ratios.append(speech_metrics.si_snr(original, wave))
  entries = trained.model_config.autoencoders[CODEC.name].entries
  perplexities = perplexity(np.concatenate([np.asarray(code) for code in codes]))
  scores = {
    'n': len(waves),
    'mel_distance': float(np.mean(mel_distances)),
    'si_snr': float(np.mean(ratios)),
    'stoi': speech_metrics.stoi(waves, decoded, rate=rate),
    'perplexity': perplexities,
    'codebook_size': entries,
    'perplexity_ratio': min(perplexities) / entries,
  }
  if judge is not None:
    digits = [clip.digit for clip in clips]
    original = np.equal(judge(waves).digit, digits)
    reconstructed = np.equal(judge(decoded).digit, digits)
    scores['judge_accuracy_original'] = share(original)
    scores['judge_accuracy_reconstructed'] = share(reconstructed)
  return scores


def _reconstruct(
  trained: TrainedModel, codes: Sequence[np.ndarray], waves: Sequence[np.ndarray]
) -> list[np.ndarray]:
  """Returns the reconstructions of waves, cut to their lengths."""
  decoded: list[np.ndarray] = []
  payloads = trained.decode_payloads(CODEC.name, codes)
  for original, payload in zip(waves, payloads, strict=True):
    wave = np.nan_to_num(np.asarray(payload, np.float32))
    decoded.append(wave[: len(original)])
  return decoded
