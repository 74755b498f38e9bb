"""Paths as users give them: with `~`, on a file system, or in a bucket."""

from collections.abc import Mapping
import os

from etils import epath
import fsspec

from omni_jax.errors import one_line, UserError

# The package that opens the buckets of a scheme; the extra has the scheme's name.
PACKAGES = {'gs': 'gcsfs', 's3': 's3fs'}
# Every listing of a bucket is a fresh one, since other processes write there, too.
for scheme in PACKAGES:
  fsspec.config.conf.setdefault(scheme, {})['use_listings_cache'] = False
# TensorFlow, where it is installed, would open buckets in a way of its own.
os.environ['EPATH_USE_TF'] = 'false'


def is_remote(path: epath.PathLike) -> bool:
  """Returns whether a path is in a bucket (gs://…), which has no links or locks."""
  return '://' in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
  """Returns a path as an absolute one; one in a bucket is absolute already."""
  return epath.Path(path if is_remote(path) else os.path.abspath(path))


def checked(path: epath.PathLike, setting: str) -> str:
  """Returns a path of the user with `~` expanded; a bucket is opened for a look.

  Args:
    path: a file or folder, which need not exist.
    setting: where the path comes from, such as '--workdir', for messages.

  Raises:
    UserError: if it is in a bucket that cannot be opened.
  """
  if not is_remote(path):
    return os.path.expanduser(path)
  path = os.fspath(path)
  scheme = path.partition('://')[0]
  if scheme not in PACKAGES:
    known = ', '.join(f'{name}://' for name in PACKAGES)
    raise UserError(f'{setting}={path}: {scheme}:// is not known, but {known} are')
  try:
    fsspec.get_filesystem_class(scheme)
    epath.Path(path).exists()
  except ImportError as error:
    raise UserError(
      f'{setting}={path} needs the package {PACKAGES[scheme]}: '
      f"pip install 'omni_jax[{scheme}]'"
    ) from error
  except Exception as error:
    raise UserError(
      f'{setting}={path} cannot be opened: {one_line(error)}; check the name of the '
      'bucket and your credentials'
    ) from error
  return path


def move(source: epath.Path, target: epath.Path) -> None:
  """Moves a file; in a bucket, which cannot rename, by a copy.

  A process that is killed meanwhile leaves the file in at least one of the places.
  """
  if not is_remote(source):
    source.replace(target)
    return
  source.copy(target, overwrite=True)
  source.unlink()


def write_files(folder: epath.Path, files: Mapping[str, bytes]) -> None:
  """Writes files into a folder, in their order; each appears only when it is whole.

  On a file system all are complete before the first one appears.
  """
  if is_remote(folder):
    for name, data in files.items():
      (folder / name).write_bytes(data)
    return
  partial = folder.with_name(f'{folder.name}.partial')
  if partial.exists():
    partial.rmtree()
  partial.mkdir(parents=True)
  for name, data in files.items():
    (partial / name).write_bytes(data)
  folder.mkdir(exist_ok=True)
  for name in files:
    (partial / name).replace(folder / name)
  partial.rmdir()
