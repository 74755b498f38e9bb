"""What the audio codec keeps: signal scores, use of its codebooks, and whether the judge still hears the word."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from omni_jax.evaluate.judges import SpeechJudge
from omni_jax.evaluate.metrics import speech_metrics
from omni_jax.evaluate.metrics.scores import share


def perplexity(codes_RJ: np.ndarray) -> list[float]:
  """Effective number of codes in use, per codebook: exp of the entropy of the counts over all frames."""
  found = []
  for codes_R in np.asarray(codes_RJ).T:
    counts = np.unique(codes_R, return_counts=True)[1]
    p = counts / counts.sum()
    found.append(float(np.exp(-(p * np.log(p)).sum())))
  return found


def codec_scores(
  trained: Any,
  clips: Sequence[Any],
  *,
  rate: int,
  entries: int | None,
  judge: SpeechJudge | None,
) -> dict:
  """Scores of clips (with `wave`, `digit`) against their reconstruction.

  Args:
    entries: codes in a codebook, for the ratio; None: unknown.
    judge: hears the digits; None where the clips are no digits.
  """
  waves = [clip.wave for clip in clips]
  codes = trained.encode_payloads('codec', waves)
  decoded = [
    np.nan_to_num(np.asarray(wave, np.float32))[: len(original)]
    for original, wave in zip(
      waves, trained.decode_payloads('codec', codes), strict=True
    )
  ]
  pairs = list(zip(waves, decoded, strict=True))
  used = perplexity(np.concatenate([np.asarray(c) for c in codes]))
  scores = {
    'n': len(waves),
    'mel_distance': float(
      np.mean([speech_metrics.mel_distance(a, b, rate=rate) for a, b in pairs])
    ),
    'si_snr': float(np.mean([speech_metrics.si_snr(a, b) for a, b in pairs])),
    'stoi': speech_metrics.stoi(waves, decoded, rate=rate),
    'perplexity': used,
    'codebook_size': entries,
    'perplexity_ratio': min(used) / entries if entries else None,
  }
  if judge is not None:
    digits = [clip.digit for clip in clips]
    scores['judge_accuracy_original'] = share(np.equal(judge(waves).digit, digits))
    scores['judge_accuracy_reconstructed'] = share(
      np.equal(judge(decoded).digit, digits)
    )
  return scores
