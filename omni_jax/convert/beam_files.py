"""The folder that a pipeline of Beam writes: on a disk that all its workers see, or in a bucket (gs://…, s3://…).

Buckets are known to Beam's own file systems: with gs:// by `apache-beam[gcp]`, with s3:// by `apache-beam[aws]`.
"""

from collections.abc import Iterable
import os
import pathlib
import shutil
from typing import Any, BinaryIO
import uuid

from omni_jax.sequence.media import is_remote

UPLOADS = 'uploads'  # below the folder: what is not yet whole


def _systems() -> Any:
  from apache_beam.io.filesystems import (
    FileSystems,
  )  # only for those who use it: extra [beam]

  return FileSystems


def is_there(folder: str) -> bool:
  return bool(_files(folder)) if is_remote(folder) else os.path.exists(folder)


def remove(folder: str) -> None:
  """With all that is in it; nothing happens where it is not there."""
  if not is_remote(folder):
    shutil.rmtree(folder, ignore_errors=True)
  elif files := _files(folder):
    _systems().delete(files)


def write(folder: str, name: str, source: BinaryIO) -> None:
  """A file that appears under its name only when it is whole, also when two workers write the same one."""
  there = f'{folder}/{UPLOADS}/{uuid.uuid4().hex}'
  with _systems().create(there) as target:
    shutil.copyfileobj(source, target, 1 << 20)
  _systems().rename([there], [f'{folder}/{name}'])


def read(folder: str, name: str) -> bytes:
  with _systems().open(f'{folder}/{name}') as file:
    return file.read()


def publish(partial: str, folder: str, names: Iterable[str]) -> None:
  """Renames a folder, of which only these files are kept.

  At once on a disk. A bucket renames file by file, in the order of `names`: with the manifest first, a run that opens
  the folder in between is told which shards are missing.
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
  """Everything below a folder of a bucket."""
  return [file.path for file in _systems().match([f'{folder}/**'])[0].metadata_list]
