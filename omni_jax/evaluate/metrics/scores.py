"""Shares with their uncertainty, and confusion tables."""

from collections.abc import Sequence

import numpy as np

Z95 = 1.959964  # two-sided 95 % of the normal distribution


def wilson(hits: int, n: int) -> tuple[float, float]:
  """The 95 % interval of a share (Wilson 1927): honest also near 0 and 1, where our shares lie."""
  if not n:
    return 0.0, 1.0
  share = hits / n
  middle = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
  half = Z95 / (1 + Z95**2 / n) * np.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
  return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def share(right: Sequence | np.ndarray) -> float | None:
  """Mean of a list of truths; None of an empty one, which JSON can say and NaN cannot."""
  return float(np.mean(right)) if len(right) else None


def accuracy(right: Sequence | np.ndarray) -> dict:
  """The keys that every accuracy of metrics.json has: accuracy, its 95 % interval, n."""
  right = list(map(bool, right))
  return {
    'accuracy': share(right),
    'interval': list(wilson(sum(right), len(right))),
    'n': len(right),
  }


def confusion(
  asked: Sequence[int], judged: Sequence[int], classes: int
) -> list[list[int]]:
  """Counts [asked][judged]; the last column holds replies that are no class at all (judged -1)."""
  table = np.zeros((classes, classes + 1), int)
  for row, column in zip(asked, judged, strict=True):
    table[row, column if column >= 0 else classes] += 1
  return table.tolist()
