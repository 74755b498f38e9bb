"""What several faults are injected into."""

from faults.toy import saved
import pytest


@pytest.fixture(scope='session')
def two_steps(tmp_path_factory):
  """A folder with steps 1 and 2 of the small stage; copied before it is harmed."""
  return saved(tmp_path_factory.mktemp('saved'), 1, 2)
