"""Provides the small ready sets."""

from data.sources.ready_sets import write_sets
import pytest


@pytest.fixture
def root(tmp_path):
  """Returns a folder with all ready sets in small."""
  write_sets(tmp_path)
  return tmp_path
