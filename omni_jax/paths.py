"""Paths as users give them: with `~`, on a file system, or in a bucket."""

import importlib.util
import os

from etils import epath

from omni_jax.errors import one_line, UserError

# The package that opens the buckets of a scheme, and what installs it here.
PACKAGES = {'gs': ('gcsfs', 'gs'), 's3': ('s3fs', 's3')}


def is_remote(path: epath.PathLike) -> bool:
  """Returns whether a path is in a bucket (gs://…), which has no links or locks."""
  return '://' in os.fspath(path)


def expanded(path: epath.PathLike) -> epath.Path:
  """Returns a path without `~`, absolute unless it is in a bucket."""
  if is_remote(path):
    return epath.Path(path)
  return epath.Path(os.path.abspath(os.path.expanduser(path)))


def checked(path: epath.PathLike, setting: str) -> str:
  """Returns a path of the user as text, expanded; a bucket is opened for a look.

  Args:
    path: a file or folder, which need not exist.
    setting: where the path comes from, such as '--workdir', for messages.

  Raises:
    UserError: if it is in a bucket that cannot be opened.
  """
  if not is_remote(path):
    return os.fspath(expanded(path))
  path = os.fspath(path)
  scheme = path.partition('://')[0]
  if scheme not in PACKAGES:
    known = ', '.join(f'{name}://' for name in PACKAGES)
    raise UserError(f'{setting}={path}: {scheme}:// is not known, but {known} are')
  package, extra = PACKAGES[scheme]
  if not importlib.util.find_spec(package):
    raise UserError(
      f"{setting}={path} needs the package {package}: pip install 'omni_jax[{extra}]'"
    )
  _without_caches(scheme)
  try:
    epath.Path(path).exists()
  except Exception as error:
    raise UserError(
      f'{setting}={path} cannot be opened: {one_line(error)}; check the name of the '
      'bucket and your credentials'
    ) from error
  return path


def _without_caches(scheme: str) -> None:
  """Makes every listing of a bucket a fresh one: other processes write there, too."""
  import fsspec

  # TensorFlow, where it is installed, would open the bucket in its own way.
  os.environ['EPATH_USE_TF'] = 'false'
  fsspec.config.conf.setdefault(scheme, {})['use_listings_cache'] = False
