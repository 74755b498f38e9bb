"""Tests reading replica groups in every form that XLA writes."""

import numpy as np
import pytest

from omni_jax.compile.groups import parse_groups


@pytest.mark.parametrize(
  'text, groups',
  [
    ('{{0,1},{2,3}}', [[0, 1], [2, 3]]),
    ('{{0,2,1,3}}', [[0, 2, 1, 3]]),
    ('{}', [[0, 1, 2, 3]]),
    ('[2,2]<=[4]', [[0, 1], [2, 3]]),
    ('[2,2]<=[2,2]T(1,0)', [[0, 2], [1, 3]]),
    ('[1,4]<=[4]', [[0, 1, 2, 3]]),
    ("mesh['axis_0'=2,'axis_1'=2] {'axis_1'}", [[0, 1], [2, 3]]),
    ("mesh['axis_0'=2,'axis_1'=2] {'axis_0'}", [[0, 2], [1, 3]]),
    ("mesh['axis_0'=2,'axis_1'=2] {'axis_0','axis_1'}", [[0, 1, 2, 3]]),
    ("mesh['a'=4,'b'=1] {'a':(1)2}", [[0, 2], [1, 3]]),
    ("mesh['a'=4,'b'=1] {'a':(2)2}", [[0, 1], [2, 3]]),
  ],
)
def test_every_form_is_read(text, groups):
  np.testing.assert_array_equal(parse_groups(text, 4), groups)


def test_an_iota_of_a_large_mesh_is_read():
  groups = parse_groups('[64,8]<=[8,8,8]T(2,0,1)', 512)
  expected = np.arange(512).reshape(8, 8, 8).transpose(2, 0, 1).reshape(64, 8)
  np.testing.assert_array_equal(groups, expected)
