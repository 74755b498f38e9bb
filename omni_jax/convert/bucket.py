"""Puts a converted folder into a bucket.

Shards are written to a local folder first, since they grow while they are written. A
conversion that was interrupted continues there; the bucket gets complete files only.
"""

import concurrent.futures
import hashlib
import os
import pathlib
import shutil

from etils import epath

from omni_jax.convert.conversion import output_exists
from omni_jax.data.sources.shards import MANIFEST
from omni_jax.mirror import STREAMS
from omni_jax.retry import with_retries

STAGING = '~/.cache/omni_jax/converting'


def check_is_new(output: str) -> None:
  """Raises UserError if a folder of a bucket holds a complete conversion."""
  if (epath.Path(output) / MANIFEST).exists():
    raise output_exists(output)


def staging_folder(output: str) -> pathlib.Path:
  """Returns the local folder in which a conversion for a bucket is prepared."""
  digest = hashlib.blake2b(output.encode(), digest_size=8).hexdigest()
  folder = pathlib.Path(os.path.expanduser(STAGING)) / digest
  folder.parent.mkdir(parents=True, exist_ok=True)
  if (
    folder.exists()
  ):  # complete, but its upload was interrupted: another may be asked for
    shutil.rmtree(folder)
  return folder


def upload(folder: pathlib.Path, output: str) -> None:
  """Moves a complete conversion to a bucket; its manifest is written last."""
  target = epath.Path(output)
  names = [path.name for path in folder.iterdir() if path.name != MANIFEST]

  def copy(name: str) -> None:
    data = (folder / name).read_bytes()
    with_retries(lambda: (target / name).write_bytes(data), target / name)

  with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
    list(pool.map(copy, names))
  copy(MANIFEST)
  shutil.rmtree(folder)
