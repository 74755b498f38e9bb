"""Fixtures that several fault tests share."""

from faults.toy import saved
import pytest


@pytest.fixture(scope='session')
def two_steps(tmp_path_factory):
  """Returns a folder with steps 1 and 2 of the toy stage; tests damage copies of it."""
  return saved(tmp_path_factory.mktemp('saved'), 1, 2)
