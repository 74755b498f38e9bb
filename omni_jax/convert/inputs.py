"""The input of a conversion: which reader takes it, by its scheme, its kind or what its name looks like."""

from collections.abc import Callable
import glob
import os
from typing import Any

from omni_jax.convert.formats.chat_lines import JsonLinesReader
from omni_jax.convert.formats.folder import FolderReader
from omni_jax.convert.formats.parquet import ParquetReader
from omni_jax.convert.formats.reader import Reader
from omni_jax.convert.formats.ready import ReadyReader
from omni_jax.convert.formats.seqio import SeqioReader
from omni_jax.convert.formats.tar import TarReader
from omni_jax.convert.formats.tensorflow_set import TfdsReader
from omni_jax.data.sources.ready.sets import READY
from omni_jax.errors import UserError

TARS = ('.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tar.xz')
READERS: dict[str, Callable[[list[str], Any], Reader]] = {
  'jsonl': lambda paths, f: JsonLinesReader(_one(paths)),
  'folder': lambda paths, f: FolderReader(_one(paths), language=f.language),
  'tar': lambda paths, f: TarReader(paths, language=f.language),
  'parquet': lambda paths, f: ParquetReader(
    paths, read=f.read, write=f.write, language=f.language
  ),
  'tfds': lambda paths, f: TfdsReader(
    _one(paths),
    root=f.root,
    rate=f.rate,
    read=f.read,
    write=f.write,
    language=f.language,
  ),
  'seqio': lambda paths, f: SeqioReader(
    _one(paths), module=f.module, language=f.language
  ),
}


def reader_of(flags: Any) -> Reader:
  """The reader of --input, by --kind or by what its name looks like."""
  scheme, colon, rest = flags.input.partition(':')
  if colon and scheme in ('tfds', 'seqio'):
    return READERS[scheme]([rest], flags)
  if colon and scheme in READY:
    return ReadyReader(
      scheme,
      rest or 'train',
      root=flags.root,
      read=flags.read,
      write=flags.write,
      language=flags.language,
    )
  named = os.path.abspath(flags.input)  # workers of a pipeline are elsewhere
  paths = sorted(glob.glob(named)) if glob.has_magic(flags.input) else [named]
  if not paths or not all(map(os.path.exists, paths)):
    raise UserError(f'--input={flags.input}: no such file or folder')
  kind = flags.kind or _kind_of(paths[0])
  if kind in ('tar', 'parquet') and os.path.isdir(paths[0]):
    ends = TARS if kind == 'tar' else ('.parquet',)
    paths = sorted(
      entry.path for entry in os.scandir(paths[0]) if entry.name.endswith(ends)
    )
  if not kind or not paths:
    raise UserError(f'--input={flags.input}: what is it? --kind={"|".join(READERS)}')
  return READERS[kind](paths, flags)


def _kind_of(path: str) -> str:
  if os.path.isdir(path):
    names = [entry.name for entry in os.scandir(path)]
    return next(
      (
        kind
        for kind, ends in (('parquet', ('.parquet',)), ('tar', TARS))
        if names and all(name.endswith(ends) for name in names)
      ),
      'folder',
    )
  return next(
    (
      kind
      for kind, ends in (
        ('jsonl', ('.jsonl', '.json')),
        ('tar', TARS),
        ('parquet', ('.parquet',)),
      )
      if path.endswith(ends)
    ),
    '',
  )


def _one(paths: list[str]) -> str:
  if len(paths) > 1:
    raise UserError(
      f'--input names {len(paths)} inputs ({paths[0]}, {paths[1]}, …): convert them one by one'
    )
  return paths[0]
