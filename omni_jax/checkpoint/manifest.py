"""What makes a folder a checkpoint: a manifest, written last, with digests of the arrays and sizes of the files."""

from collections.abc import Callable, Iterator, Mapping
import hashlib
import json
import os
from typing import Any, NamedTuple, TypeVar

from etils import epath

from omni_jax import retry
from omni_jax.errors import UserError

NAME = 'manifest.json'
VERSION = 2
DIGITS = {
  1: 8,
  2: 16,
}  # of the digest of an array by version: the first eight are the same in both
SMALL = (
  1 << 20
)  # bytes of a file up to which it is digested as a whole; the arrays in larger ones have theirs
OWN_FILES = (
  NAME,
  '_CHECKPOINT_METADATA',
  'commit_success.txt',
)  # not listed: Orbax writes its own later still

T = TypeVar('T')


class Damaged(Exception):
  """A step is not what was saved: the message says which file or array, and both values."""


class Leaf(NamedTuple):
  shape: tuple[int, ...]
  dtype: str
  digest: str


class Manifest(NamedTuple):
  """Attributes:
  step: of the run's stage.
  leaves: by the name of the array.
  files: size by path in the step's folder, and the digest of small ones ('' for others).
  about: what else the writer wants to find again: the config of the run.
  """

  step: int
  leaves: Mapping[str, Leaf]
  files: Mapping[str, tuple[int, str]]
  about: Mapping[str, Any]


def _digest(data: bytes) -> str:
  return hashlib.blake2b(data, digest_size=16).hexdigest()


def patiently(read: Callable[[], T], what: Any) -> T:
  """What `read` returns, by a few attempts: a step is not damaged because the storage fails.

  Raises:
    UserError: if it cannot be read for another reason than that it is not there.
  """
  try:
    return retry.patiently(read, what)
  except (FileNotFoundError, NotADirectoryError):
    raise
  except OSError as error:
    raise UserError(
      f'{what} cannot be read: {error}; start again when it can'
    ) from error


def files_in(folder: epath.Path, inside: str = '') -> Iterator[str]:
  """Paths of all files below a folder, relative to it."""
  for path in sorted(folder.iterdir()):
    name = f'{inside}{path.name}'
    if path.is_dir():
      yield from files_in(path, f'{name}/')
    else:
      yield name


def _measured(path: epath.Path) -> tuple[int, str]:
  size = path.stat().length
  return size, _digest(path.read_bytes()) if size <= SMALL else ''


def write(
  folder: epath.Path, step: int, leaves: Mapping[str, Leaf], about: Mapping[str, Any]
) -> None:
  """Makes a folder a checkpoint, once everything else in it is written: it begins to count when this file is whole.

  Where a file is not written at once, its first line tells: the digest of the second.
  """
  files = {
    name: _measured(folder / name) for name in files_in(folder) if name not in OWN_FILES
  }
  body = json.dumps(
    {'version': VERSION, **Manifest(step, leaves, files, about)._asdict()}, default=list
  )
  (folder / NAME).write_text(
    f'{json.dumps({"blake2b": _digest(body.encode())})}\n{body}\n'
  )


def read(folder: epath.Path) -> Manifest:
  """The manifest of a step.

  Raises:
    Damaged: if there is none, or not the one that was written.
    UserError: if it is of newer code.
  """
  try:
    head, _, body = patiently((folder / NAME).read_bytes, folder / NAME).partition(
      b'\n'
    )
  except FileNotFoundError as error:
    raise Damaged(f'{NAME} is missing') from error
  body = body.removesuffix(b'\n')
  try:
    wanted, made = json.loads(head)['blake2b'], json.loads(body)
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise Damaged(f'{NAME} is not whole') from error
  if wanted != (found := _digest(body)):
    raise Damaged(f'{NAME} has digest {found}, written was {wanted}')
  return _checked(made)


def _checked(made: Any) -> Manifest:
  """What a manifest holds, every type of it checked: it may come from anywhere."""
  try:
    if made['version'] not in DIGITS:
      raise UserError(
        f'{NAME} of step {made["step"]} is of version {made["version"]}, this code reads '
        f'{sorted(DIGITS)}: take the code that wrote it, or another --workdir'
      )
    leaves = {
      name: Leaf(tuple(int(n) for n in shape), str(dtype), str(digest))
      for name, (shape, dtype, digest) in made['leaves'].items()
    }
    if odd := [
      name
      for name, leaf in leaves.items()
      if not _is_digest(leaf.digest, DIGITS[made['version']])
    ]:
      raise Damaged(f'{NAME}: {leaves[odd[0]].digest!r} is not a digest of {odd[0]}')
    files = {
      name: (int(size), str(digest)) for name, (size, digest) in made['files'].items()
    }
    return Manifest(int(made['step']), leaves, files, dict(made['about']))
  except UserError:
    raise
  except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
    raise Damaged(
      f'{NAME} is not of the form that this code writes: {type(error).__name__}: {error}'
    ) from error


def _is_digest(text: str, digits: int) -> bool:
  return len(text) == digits and set(text) <= set('0123456789abcdef')


def is_array_data(name: str) -> bool:
  """Files whose content is digested by array: damage there can be given the name of the array."""
  return '/d/' in name


def check_files(
  folder: epath.Path, manifest: Manifest, items: tuple[str, ...], *, arrays: bool
) -> None:
  """Compares the files of some items with the manifest.

  Args:
    arrays: whether to digest the small files with arrays, too, or everything but these.

  Raises:
    Damaged: for a file that is missing or differs, or that is, or lies behind, a link: a step is data of its own.
  """
  listed = {
    name: file
    for name, file in manifest.files.items()
    if name.startswith(tuple(f'{item}/' for item in items))
  }
  for name, (size, digest) in listed.items():
    parts = name.split('/')
    if '..' in parts or any(
      os.path.islink(folder / '/'.join(parts[: k + 1])) for k in range(len(parts))
    ):
      raise Damaged(f'{name} leads out of the folder')
    try:
      found = patiently((folder / name).stat, folder / name).length
      if found != size:
        raise Damaged(f'{name} has {found} bytes, written were {size}')
      if digest and arrays == is_array_data(name):
        got = _digest(patiently((folder / name).read_bytes, folder / name))
        if got != digest:
          raise Damaged(f'{name} has digest {got}, written was {digest}')
    except (FileNotFoundError, NotADirectoryError) as error:
      raise Damaged(f'{name} is missing') from error


def check_leaves(manifest: Manifest, found: Mapping[str, str]) -> None:
  """Compares the digests of arrays as they were read with those of the arrays as they were saved.

  Raises:
    Damaged: with the name of the first that differs, and both digests.
  """
  saved = {name: manifest.leaves[name].digest for name in found}
  differ = [
    name for name, digest in found.items() if saved[name] != digest[: len(saved[name])]
  ]
  if differ:
    name = differ[0]
    raise Damaged(
      f'array {name} has digest {found[name]}, saved was {saved[name]}'
      + (f'; {len(differ)} arrays differ' if len(differ) > 1 else '')
    )
