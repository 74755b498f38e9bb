"""Checks which digits words name, error rates, and confidence intervals."""

import pytest

from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.evaluate.metrics import scores, text_metrics


def test_words_spelt_alike_count_for_both_languages():
  assert text_metrics.named_digit('six', DIGIT_WORDS) == (6, {'en', 'fr'})
  assert text_metrics.named_digit(' Sechs ', DIGIT_WORDS) == (6, {'de'})


@pytest.mark.parametrize('text', ['', 'sixx', 'six six', '6'])
def test_other_texts_name_no_digit(text):
  assert text_metrics.named_digit(text, DIGIT_WORDS) == (-1, frozenset())


def test_decomposed_accents_are_the_same_word():
  assert text_metrics.named_digit('ze\u0301ro', DIGIT_WORDS).digit == 0


def test_a_word_of_two_digits_names_none():
  words = {'x': ['a', 'b'], 'y': ['b', 'a']}
  assert text_metrics.named_digit('a', words).digit == -1


def test_cer_counts_edits_over_reference_characters():
  assert text_metrics.cer(['seven', 'one'], ['sevem', '']) == pytest.approx(4 / 8)
  assert text_metrics.cer(['abc'], ['abc']) == 0
  assert text_metrics.cer([''], ['x']) is None


def test_exact_match_ignores_case_and_spaces_only():
  references = ['One  two', 'one']
  assert text_metrics.exact_match(references, ['one two', 'on']) == [True, False]


def test_wilson_interval_of_known_cases():
  assert scores.wilson(0, 0) == (0, 1)
  assert scores.wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
  low, high = scores.wilson(200, 200)
  assert low == pytest.approx(200 / (200 + 1.959964**2))
  assert high == pytest.approx(1)


def test_confusion_keeps_replies_without_a_class_in_the_last_column():
  assert scores.confusion([0, 0, 1], [0, -1, 0], 2) == [[1, 0, 1], [1, 0, 0]]
