"""Scores texts: exact match, character and word error rate, and named digits."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple
import unicodedata

from omni_jax.evaluate.metrics.extras import needs_extra


def tidy(text: str) -> str:
  """Returns the canonical form for comparing: NFC, lower case, single spaces."""
  return ' '.join(unicodedata.normalize('NFC', text).lower().split())


def exact_match(references: Sequence[str], texts: Sequence[str]) -> list[bool]:
  """Returns, for each text, whether it equals its reference in canonical form."""
  return [tidy(a) == tidy(b) for a, b in zip(references, texts, strict=True)]


def cer(references: Sequence[str], texts: Sequence[str]) -> float | None:
  """Returns the character error rate of all texts together; it may exceed 1.

  It counts edits per character of the references, and is None if those are empty.
  """
  return _error_rate('cer', references, texts)


def wer(references: Sequence[str], texts: Sequence[str]) -> float | None:
  """Returns the word error rate of all texts together; it may exceed 1.

  It counts edits per word of the references, and is None if those are empty.
  """
  return _error_rate('wer', references, texts)


def _error_rate(
  name: str, references: Sequence[str], texts: Sequence[str]
) -> float | None:
  with needs_extra():
    import jiwer
  rate = {'cer': jiwer.cer, 'wer': jiwer.wer}[name]
  expected: list[str] = []
  written: list[str] = []
  for reference, text in zip(references, texts, strict=True):
    if tidy(reference):  # jiwer refuses empty references
      expected.append(tidy(reference))
      written.append(tidy(text))
  return float(rate(expected, written)) if expected else None


class NamedDigit(NamedTuple):
  """The digit that a text names.

  Attributes:
    digit: 0…9, or -1 where the text is no digit word.
    languages: every language that spells this digit so.
  """

  digit: int
  languages: frozenset[str]


def named_digit(text: str, words: Mapping[str, Sequence[str]]) -> NamedDigit:
  """Returns the digit that a text names, and the languages that the word belongs to.

  'six' is both English and French. A word of two different digits names none.

  Args:
    text: a reply.
    words: language -> the ten digit words.
  """
  digits: set[int] = set()
  languages: set[str] = set()
  for language, names in words.items():
    for digit, word in enumerate(names):
      if tidy(word) == tidy(text):
        digits.add(digit)
        languages.add(language)
  if len(digits) != 1:
    return NamedDigit(-1, frozenset())
  return NamedDigit(digits.pop(), frozenset(languages))
