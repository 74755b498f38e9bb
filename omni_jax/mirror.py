"""Local copies of files and folders in buckets, for readers that need a file system.

Such readers (ArrayRecord, Parquet, tar) open files by name or jump around in them. A
copy is made once and kept in the cache; it is made again when the object changes.
"""

from collections.abc import Iterator, Sequence
import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import sys
from typing import Any

from omni_jax.paths import is_remote
from omni_jax.retry import with_retries

CACHE = '~/.cache/omni_jax/buckets'
STREAMS = 8  # objects that are copied at a time
STATES = '.states.json'  # of a copied folder: the state of every object when copied


def local_copy(path: str) -> str:
  """Returns the path of a local copy of a file or folder; a local path as it is.

  Raises:
    FileNotFoundError: if there is no such object.
  """
  if not is_remote(path):
    return path
  import fsspec

  system, key = fsspec.core.url_to_fs(path)
  objects = {name: info for name, info in _find(system, key).items() if info['size']}
  if not objects:
    raise FileNotFoundError(f'{path}: no such object')
  folder = _folder_of(path)
  with _states(folder) as states:
    stale = [name for name in sorted(objects) if _is_stale(name, objects, states)]
    _report(path, [objects[name]['size'] for name in stale])

    def copy(name: str) -> None:
      target = folder / (pathlib.PurePosixPath(name).relative_to(_parent(key)))
      target.parent.mkdir(parents=True, exist_ok=True)
      part = target.with_name(f'{target.name}.{os.getpid()}.part')
      with_retries(lambda: system.get_file(name, str(part)), name)
      part.replace(target)
      states[name] = _state(objects[name])

    with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
      list(pool.map(copy, stale))
  return str(folder / pathlib.PurePosixPath(key).name)


def _find(system: Any, key: str) -> dict[str, Any]:
  """Returns the objects at or below a key, by name."""
  return system.find(key, detail=True)


def _parent(key: str) -> pathlib.PurePosixPath:
  return pathlib.PurePosixPath(key).parent


def _folder_of(path: str) -> pathlib.Path:
  """Returns the folder of the cache for a path."""
  digest = hashlib.blake2b(path.encode(), digest_size=8).hexdigest()
  return pathlib.Path(os.path.expanduser(CACHE)) / digest


def _state(info: dict[str, Any]) -> list[Any]:
  """Returns what changes when an object is written again."""
  keys = ('size', 'etag', 'ETag', 'generation', 'updated', 'LastModified')
  return [str(info.get(key, '')) for key in keys]


def _is_stale(name: str, objects: dict[str, Any], states: dict[str, Any]) -> bool:
  return states.get(name) != _state(objects[name])


@contextlib.contextmanager
def _states(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Yields the states of the objects in a folder of the cache, and saves them."""
  path = folder / STATES
  states = json.loads(path.read_text()) if path.exists() else {}
  try:
    yield states
  finally:
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{STATES}.{os.getpid()}.part')
    part.write_text(json.dumps(states))
    part.replace(path)


def _report(path: str, sizes: Sequence[int]) -> None:
  """Says that a copy is made, which may take a while."""
  if sizes:
    megabytes = sum(sizes) / 1e6
    text = f'{path}: copying {len(sizes)} objects, {megabytes:.1f} MB, to {CACHE}'
    print(text, file=sys.stderr, flush=True)
