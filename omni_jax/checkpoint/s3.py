"""Lets Orbax keep arrays in s3:// buckets, for which it has no paths of its own.

Orbax hands gs:// paths to TensorStore's driver for Google Cloud Storage, and takes
every other path for a local file. TensorStore has a driver for S3 as well: it is used
here in the same three places. `tests/buckets` trains, resumes and restores with it, so
that a release of Orbax that moves these places is noticed.
"""

import os
from typing import Any

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

S3 = 's3://'


def allow_s3() -> None:
  """Makes Orbax accept s3:// paths in this process; a second call does nothing."""
  if getattr(gcs_utils.get_kvstore_for_gcs, 'takes_s3', False):
    return
  gcs_spec = gcs_utils.get_kvstore_for_gcs
  is_gcs = tensorstore_utils._use_gcs_driver
  normalized = tensorstore_utils._normalize_path

  def object_store_spec(path: str) -> dict[str, Any]:
    return s3_spec(path) if path.startswith(S3) else gcs_spec(path)

  def normalize_path(path: str) -> str:
    if not path.startswith(S3):
      return normalized(path)
    return S3 + os.path.normpath(path.removeprefix(S3))

  object_store_spec.takes_s3 = True  # type: ignore[attr-defined]  # marks this function
  gcs_utils.get_kvstore_for_gcs = object_store_spec
  tensorstore_utils._normalize_path = normalize_path
  tensorstore_utils._use_gcs_driver = lambda path: path.startswith(S3) or is_gcs(path)


def s3_spec(path: str) -> dict[str, Any]:
  """Returns TensorStore's spec of an s3:// path.

  The endpoint and the region are those of AWS_ENDPOINT_URL and AWS_REGION, which other
  S3 clients read as well; without them TensorStore asks Amazon for the bucket's region.
  """
  bucket, _, key = path.removeprefix(S3).partition('/')
  spec: dict[str, Any] = {'driver': 's3', 'bucket': bucket, 'path': key}
  endpoint = os.environ.get('AWS_ENDPOINT_URL')
  region = os.environ.get('AWS_REGION') or os.environ.get('AWS_DEFAULT_REGION')
  if endpoint:
    spec['endpoint'] = endpoint
  if region:
    spec['aws_region'] = region
  if 'AWS_ACCESS_KEY_ID' in os.environ:
    spec['aws_credentials'] = {'type': 'environment'}
  return spec
