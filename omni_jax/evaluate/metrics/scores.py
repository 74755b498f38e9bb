"""Computes shares with their confidence intervals, and confusion tables."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Z95 = 1.959964  # two-sided 95 % quantile of the normal distribution


def wilson(hits: int, n: int) -> tuple[float, float]:
  """Returns the 95 % interval of a share (Wilson 1927).

  Unlike the normal approximation it also holds near 0 and 1, where our shares lie.
  """
  if not n:
    return 0.0, 1.0
  share = hits / n
  middle = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
  half = Z95 / (1 + Z95**2 / n) * np.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
  return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def share(correct: Sequence[bool] | np.ndarray) -> float | None:
  """Returns the share of true values, or None (JSON has no NaN) if there are none."""
  return float(np.mean(correct)) if len(correct) else None


def accuracy(correct: Sequence[bool]) -> dict[str, Any]:
  """Returns an accuracy as in metrics.json: accuracy, its 95 % interval, and n."""
  hits = sum(bool(value) for value in correct)
  n = len(correct)
  return {'accuracy': share(correct), 'interval': list(wilson(hits, n)), 'n': n}


def confusion(
  requested: Sequence[int], judged: Sequence[int], classes: int
) -> list[list[int]]:
  """Returns counts [requested][judged], (classes, classes + 1).

  The last column counts replies that show no class at all (judged -1).
  """
  table = np.zeros((classes, classes + 1), int)
  for row, column in zip(requested, judged, strict=True):
    table[row, column if column >= 0 else classes] += 1
  return table.tolist()
