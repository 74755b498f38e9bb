"""Is the text right: exact match, character error rate, and which digit in which languages a word names."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple
import unicodedata

from omni_jax.evaluate.metrics.extras import needs_extra


def tidy(text: str) -> str:
  """Canonical form for comparing: NFC, lower case, single spaces."""
  return ' '.join(unicodedata.normalize('NFC', text).lower().split())


def exact_match(references: Sequence[str], texts: Sequence[str]) -> list[bool]:
  return [tidy(a) == tidy(b) for a, b in zip(references, texts, strict=True)]


def cer(references: Sequence[str], texts: Sequence[str]) -> float | None:
  """Character error rate: edits over characters of the references, all texts together; may exceed 1."""
  return _error_rate('cer', references, texts)


def wer(references: Sequence[str], texts: Sequence[str]) -> float | None:
  """Word error rate: edits over words of the references, all texts together; may exceed 1."""
  return _error_rate('wer', references, texts)


def _error_rate(
  name: str, references: Sequence[str], texts: Sequence[str]
) -> float | None:
  with needs_extra():
    import jiwer
  pairs = [(tidy(a), tidy(b)) for a, b in zip(references, texts, strict=True)]
  pairs = [(a, b) for a, b in pairs if a]  # jiwer refuses empty references
  return (
    float(getattr(jiwer, name)([a for a, _ in pairs], [b for _, b in pairs]))
    if pairs
    else None
  )


class Named(NamedTuple):
  digit: int  # -1 where the text is no digit word
  languages: frozenset[str]  # every language that spells this digit so


def name_of(text: str, words: Mapping[str, Sequence[str]]) -> Named:
  """The digit that a text names and the languages it may be in: 'six' is both English and French."""
  found = {
    (digit, language)
    for language in words
    for digit, word in enumerate(words[language])
    if tidy(word) == tidy(text)
  }
  digits = {digit for digit, _ in found}
  if len(digits) != 1:
    return Named(-1, frozenset())
  return Named(digits.pop(), frozenset(language for _, language in found))
