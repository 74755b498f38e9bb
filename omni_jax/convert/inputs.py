"""Chooses the reader of a conversion's input: by scheme, by --kind or by file name."""

from collections.abc import Callable
import glob
import os
from typing import Protocol, runtime_checkable

from etils import epath

from omni_jax.convert.formats.chat_lines import JsonLinesReader
from omni_jax.convert.formats.folder import FolderReader
from omni_jax.convert.formats.parquet import ParquetReader
from omni_jax.convert.formats.reader import DEFAULT_SPLIT, Reader
from omni_jax.convert.formats.ready import ReadyReader
from omni_jax.convert.formats.seqio import SeqioReader
from omni_jax.convert.formats.tar import TarReader
from omni_jax.convert.formats.tensorflow_set import TfdsReader
from omni_jax.data.sources.ready.sets import READY
from omni_jax.errors import UserError
from omni_jax.mirror import local_copy
from omni_jax.paths import checked, is_remote

SUFFIXES = {
  'jsonl': ('.jsonl', '.json'),
  'tar': ('.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tar.xz'),
  'parquet': ('.parquet',),
}
SHARDED = ('parquet', 'tar')  # a folder of such files is one input


@runtime_checkable
class InputFlags(Protocol):
  """The flags of the command that describe its input; see the command's --help."""

  input: str
  kind: str | None
  root: str
  read: str
  write: str
  language: str
  rate: int
  module: str


def _jsonl(paths: list[str], flags: InputFlags) -> Reader:
  return JsonLinesReader(_only(paths))


def _folder(paths: list[str], flags: InputFlags) -> Reader:
  return FolderReader(_only(paths), language=flags.language)


def _tar(paths: list[str], flags: InputFlags) -> Reader:
  return TarReader(paths, language=flags.language)


def _parquet(paths: list[str], flags: InputFlags) -> Reader:
  return ParquetReader(
    paths, read=flags.read, write=flags.write, language=flags.language
  )


def _tfds(paths: list[str], flags: InputFlags) -> Reader:
  return TfdsReader(
    _only(paths),
    root=flags.root,
    rate=flags.rate,
    read=flags.read,
    write=flags.write,
    language=flags.language,
  )


def _seqio(paths: list[str], flags: InputFlags) -> Reader:
  return SeqioReader(_only(paths), module=flags.module, language=flags.language)


# Kind of an input -> function (paths, flags) that returns its reader.
READERS: dict[str, Callable[[list[str], InputFlags], Reader]] = {
  'jsonl': _jsonl,
  'folder': _folder,
  'tar': _tar,
  'parquet': _parquet,
  'tfds': _tfds,
  'seqio': _seqio,
}


def reader_of(flags: InputFlags) -> Reader:
  """Returns the reader of --input.

  Raises:
    UserError: if the input does not exist, if its kind is unclear, or if its reader
      refuses it.
  """
  scheme, colon, rest = flags.input.partition(':')
  if colon and scheme in ('tfds', 'seqio'):
    return READERS[scheme]([rest], flags)
  if colon and scheme in READY:
    return ReadyReader(
      scheme,
      rest or DEFAULT_SPLIT,
      root=flags.root,
      read=flags.read,
      write=flags.write,
      language=flags.language,
    )
  paths = _paths_of(flags.input)
  kind = flags.kind or _kind_of(paths[0])
  if not kind:
    raise UserError(
      f'--input={flags.input}: its kind is unclear; give --kind={"|".join(READERS)}'
    )
  if kind in SHARDED and os.path.isdir(paths[0]):
    files = [entry.path for entry in os.scandir(paths[0])]
    paths = sorted(path for path in files if path.endswith(SUFFIXES[kind]))
    if not paths:
      raise UserError(f'--input={flags.input}: the folder holds no {kind} files')
  return READERS[kind](paths, flags)


def _paths_of(pattern: str) -> list[str]:
  """Returns the absolute paths that --input names, at least one.

  They are absolute because the workers of a pipeline run in other folders.
  """
  if is_remote(pattern):
    return _remote_paths(pattern)
  path = os.path.abspath(os.path.expanduser(pattern))
  paths = sorted(glob.glob(path)) if glob.has_magic(pattern) else [path]
  if not paths or not all(os.path.exists(path) for path in paths):
    raise UserError(f'--input={pattern}: no such file or folder')
  return paths


def _remote_paths(pattern: str) -> list[str]:
  """Returns the paths in a bucket that --input names.

  JSON lines are read where they are, since their media lie beside them; everything else
  is copied to the local cache.
  """
  pattern = checked(pattern, '--input')
  paths = [pattern]
  if glob.has_magic(pattern):
    parent, _, name = pattern.rpartition('/')
    paths = sorted(os.fspath(path) for path in epath.Path(parent).glob(name))
  if not paths or not all(epath.Path(path).exists() for path in paths):
    raise UserError(f'--input={pattern}: no such file or folder')
  lines = SUFFIXES['jsonl']
  return [path if path.endswith(lines) else local_copy(path) for path in paths]


def _kind_of(path: str) -> str:
  """Returns the kind of a file or folder by its name, or '' if that is unclear."""
  if not os.path.isdir(path):
    for kind, suffixes in SUFFIXES.items():
      if path.endswith(suffixes):
        return kind
    return ''
  names = os.listdir(path)
  for kind in SHARDED:
    if names and all(name.endswith(SUFFIXES[kind]) for name in names):
      return kind
  return 'folder'


def _only(paths: list[str]) -> str:
  if len(paths) > 1:
    raise UserError(
      f'--input names {len(paths)} inputs ({paths[0]}, {paths[1]}, …): '
      'convert them one by one'
    )
  return paths[0]
