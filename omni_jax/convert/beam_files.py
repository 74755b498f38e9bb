"""Reads and writes the output folder of a Beam pipeline, on a disk or in a bucket.

All workers must see the disk. Buckets are reached through Beam's own file systems:
gs:// with `apache-beam[gcp]`, s3:// with `apache-beam[aws]`.
"""

from collections.abc import Iterable
import os
import pathlib
import shutil
from typing import Any, BinaryIO
import uuid

from omni_jax.paths import is_remote

UPLOADS = 'uploads'  # folder inside the output, of files that are not complete yet
COPY_BYTES = 1 << 20


def _systems() -> Any:
  # Beam is an optional dependency: extra [beam].
  from apache_beam.io.filesystems import FileSystems

  return FileSystems


def exists(folder: str) -> bool:
  """Returns whether a folder exists; in a bucket, whether it holds anything."""
  if is_remote(folder):
    return bool(_files(folder))
  return os.path.exists(folder)


def remove(folder: str) -> None:
  """Removes a folder with everything in it, if it exists."""
  if not is_remote(folder):
    shutil.rmtree(folder, ignore_errors=True)
    return
  files = _files(folder)
  if files:
    _systems().delete(files)


def write(folder: str, name: str, source: BinaryIO) -> None:
  """Writes a file that appears under its name only when it is complete.

  Two workers may write the same file at the same time.
  """
  upload = f'{folder}/{UPLOADS}/{uuid.uuid4().hex}'
  with _systems().create(upload) as target:
    shutil.copyfileobj(source, target, COPY_BYTES)
  _systems().rename([upload], [f'{folder}/{name}'])


def read(folder: str, name: str) -> bytes:
  """Returns the contents of a file."""
  with _systems().open(f'{folder}/{name}') as file:
    return file.read()


def publish(partial: str, folder: str, names: Iterable[str]) -> None:
  """Renames a folder that holds the named files and drops its unfinished uploads.

  On a disk it is one atomic rename. A bucket renames file by file, in the order of
  `names`: with the manifest first, a run that opens the folder in between learns which
  shards are missing.
  """
  if is_remote(folder):
    for name in names:
      _systems().rename([f'{partial}/{name}'], [f'{folder}/{name}'])
    remove(partial)
    return
  remove(f'{partial}/{UPLOADS}')
  pathlib.Path(folder).parent.mkdir(parents=True, exist_ok=True)
  os.rename(partial, folder)


def _files(folder: str) -> list[str]:
  """Returns the paths of everything below a folder of a bucket."""
  matches = _systems().match([f'{folder}/**'])
  return [file.path for file in matches[0].metadata_list]
