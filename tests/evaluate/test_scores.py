"""Scores are found by their path and compared with thresholds."""

import pytest

from omni_jax.errors import UserError
from omni_jax.evaluate.scores import missed, numbers_in, thresholds_of

METRICS = {
  'step': 30,
  'directions': {'text_to_image': {'accuracy': 0.8, 'confusion': [[1]], 'ok': True}},
  'judges': None,
}


def test_numbers_are_named_by_their_path():
  numbers = {'step': 30, 'directions.text_to_image.accuracy': 0.8}
  assert numbers_in(METRICS) == numbers


def test_only_scores_below_their_threshold_are_reported():
  thresholds = {'directions.text_to_image.accuracy': 0.9, 'step': 30}
  line = 'directions.text_to_image.accuracy is 0.8, below 0.9'
  assert missed(METRICS, thresholds) == [line]


def test_a_score_that_does_not_exist_is_refused_with_those_that_do():
  with pytest.raises(UserError, match='smell: no such score; .*text_to_image.accuracy'):
    missed(METRICS, {'smell': 1.0})


@pytest.mark.parametrize('pair', ['accuracy', 'accuracy=high'])
def test_a_threshold_without_a_number_is_refused(pair):
  with pytest.raises(UserError, match='^--fail_under accuracy'):
    thresholds_of([pair])


def test_thresholds_are_numbers_by_path():
  assert thresholds_of(['a.b=0.5', 'c=1']) == {'a.b': 0.5, 'c': 1.0}
