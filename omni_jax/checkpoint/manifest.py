"""Writes and checks the manifest that makes a folder a checkpoint.

It is written last, and holds the digests of the arrays and the sizes of the files.
"""

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
# Length of an array's digest by version; the first eight digits are the same in both.
DIGITS = {1: 8, 2: 16}
# Files up to this many bytes are digested as a whole. Larger ones hold arrays, which
# have digests of their own.
SMALL = 1 << 20
# Not listed in the manifest: Orbax writes its own files even later.
OWN_FILES = (NAME, '_CHECKPOINT_METADATA', 'commit_success.txt')

T = TypeVar('T')


class Damaged(Exception):
  """A step is not what was saved; the message names the file or array and both values."""


class Leaf(NamedTuple):
  """An array as it was saved; `digest` has hexadecimal digits."""

  shape: tuple[int, ...]
  dtype: str
  digest: str


class Manifest(NamedTuple):
  """The content of a manifest file.

  Attributes:
    step: number of the step.
    leaves: arrays by name.
    files: size in bytes and digest of every file by its path in the step's folder; the
      digest of a large file is ''.
    about: further plain values of the writer, such as the config of the run.
  """

  step: int
  leaves: Mapping[str, Leaf]
  files: Mapping[str, tuple[int, str]]
  about: Mapping[str, Any]


def _digest(data: bytes) -> str:
  return hashlib.blake2b(data, digest_size=16).hexdigest()


def with_retries(read: Callable[[], T], what: Any) -> T:
  """Returns what `read` returns, trying a few times if the storage fails.

  A step is not damaged because its storage fails for a moment.

  Raises:
    UserError: if it cannot be read, although it exists.
  """
  try:
    return retry.with_retries(read, what)
  except (FileNotFoundError, NotADirectoryError):
    raise
  except OSError as error:
    raise UserError(
      f'{what} cannot be read: {error}; start again when it can be read'
    ) from error


def files_in(folder: epath.Path, prefix: str = '') -> Iterator[str]:
  """Yields the paths of all files below a folder, relative to it."""
  for path in sorted(folder.iterdir()):
    name = f'{prefix}{path.name}'
    if path.is_dir():
      yield from files_in(path, f'{name}/')
    else:
      yield name


def _size_and_digest(path: epath.Path) -> tuple[int, str]:
  """Returns the size in bytes of a file, and its digest if it is small."""
  size = path.stat().length
  if size > SMALL:
    return size, ''
  return size, _digest(path.read_bytes())


def write(
  folder: epath.Path, step: int, leaves: Mapping[str, Leaf], about: Mapping[str, Any]
) -> None:
  """Writes the manifest of a step, once everything else in its folder is written.

  The step counts as soon as this file is complete. The first line holds the digest of
  the second line, which shows whether that is complete.
  """
  files = {}
  for name in files_in(folder):
    if name not in OWN_FILES:
      files[name] = _size_and_digest(folder / name)
  manifest = Manifest(step, leaves, files, about)
  body = json.dumps({'version': VERSION, **manifest._asdict()}, default=list)
  head = json.dumps({'blake2b': _digest(body.encode())})
  (folder / NAME).write_text(f'{head}\n{body}\n')


def read(folder: epath.Path) -> Manifest:
  """Returns the manifest of a step.

  Raises:
    Damaged: if there is none, or if it is not as it was written.
    UserError: if newer code wrote it.
  """
  path = folder / NAME
  try:
    data = with_retries(path.read_bytes, path)
  except FileNotFoundError as error:
    raise Damaged(f'{NAME} is missing') from error
  head, _, body = data.partition(b'\n')
  body = body.removesuffix(b'\n')
  try:
    expected = json.loads(head)['blake2b']
    fields = json.loads(body)
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise Damaged(f'{NAME} is incomplete') from error
  digest = _digest(body)
  if expected != digest:
    raise Damaged(f'{NAME} has digest {digest}, but {expected} was written')
  return _parse(fields)


def _parse(fields: Any) -> Manifest:
  """Returns the manifest in a JSON value, whose types are checked: anyone may write one."""
  try:
    version = fields['version']
    if version not in DIGITS:
      raise UserError(
        f'{NAME} of step {fields["step"]} has version {version}, but this code reads '
        f'{sorted(DIGITS)}: use the code that wrote it, or another --workdir'
      )
    leaves = {}
    for name, (shape, dtype, digest) in fields['leaves'].items():
      sizes = tuple(int(n) for n in shape)
      leaves[name] = Leaf(sizes, str(dtype), str(digest))
    for name, leaf in leaves.items():
      if not _is_digest(leaf.digest, DIGITS[version]):
        raise Damaged(f'{NAME}: {leaf.digest!r} is not a digest of {name}')
    files = {}
    for name, (size, digest) in fields['files'].items():
      files[name] = (int(size), str(digest))
    return Manifest(int(fields['step']), leaves, files, dict(fields['about']))
  except UserError:
    raise
  except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
    raise Damaged(
      f'{NAME} does not have the form that this code writes: {type(error).__name__}: '
      f'{error}'
    ) from error


def _is_digest(text: str, digits: int) -> bool:
  return len(text) == digits and set(text) <= set('0123456789abcdef')


def is_array_data(name: str) -> bool:
  """Returns whether a file holds arrays: their own digests can name a damaged one."""
  return '/d/' in name


def check_files(
  folder: epath.Path, manifest: Manifest, items: tuple[str, ...], *, arrays: bool
) -> None:
  """Compares the files of some items with the manifest.

  Args:
    folder: folder of the step.
    manifest: manifest of the step.
    items: names of the items.
    arrays: whether to compare the digests of the small files that hold arrays, or else
      those of all other small files.

  Raises:
    Damaged: for a file that is missing or differs, and for a link in its path: a step
      contains all of its data itself.
  """
  prefixes = tuple(f'{item}/' for item in items)
  for name, (size, digest) in manifest.files.items():
    if not name.startswith(prefixes):
      continue
    if _leads_out(folder, name):
      raise Damaged(f'{name} leads out of the folder')
    compared = digest if arrays == is_array_data(name) else ''
    try:
      _check_file(folder / name, name, size, compared)
    except (FileNotFoundError, NotADirectoryError) as error:
      raise Damaged(f'{name} is missing') from error


def _leads_out(folder: epath.Path, name: str) -> bool:
  """Returns whether a path has a `..` or a link in it."""
  parts = name.split('/')
  if '..' in parts:
    return True
  path = folder
  for part in parts:
    path = path / part
    if os.path.islink(path):
      return True
  return False


def _check_file(path: epath.Path, name: str, size: int, digest: str) -> None:
  """Raises Damaged if a file has another size or digest; '' matches every digest."""
  actual_size = with_retries(path.stat, path).length
  if actual_size != size:
    raise Damaged(f'{name} has {actual_size} bytes, but {size} were written')
  if not digest:
    return
  actual_digest = _digest(with_retries(path.read_bytes, path))
  if actual_digest != digest:
    raise Damaged(f'{name} has digest {actual_digest}, but {digest} was written')


def check_leaves(manifest: Manifest, digests: Mapping[str, str]) -> None:
  """Compares the digests of arrays as they were read with those in the manifest.

  Raises:
    Damaged: with the name of the first array that differs, and both digests.
  """
  different = []
  for name, digest in digests.items():
    saved = manifest.leaves[name].digest
    if saved != digest[: len(saved)]:
      different.append(name)
  if not different:
    return
  name = different[0]
  saved = manifest.leaves[name].digest
  message = f'array {name} has digest {digests[name]}, but {saved} was saved'
  if len(different) > 1:
    message += f'; {len(different)} arrays differ'
  raise Damaged(message)
