"""Reads tar files of samples (the WebDataset format) without unpacking them to disk."""

from collections.abc import Iterator, Sequence
import functools
import itertools
import json
import os
import pathlib
import tarfile
from typing import NamedTuple

from omni_jax.convert.formats.reader import (
  captioned,
  InputExample,
  MEDIUM_OF_SUFFIX,
  raising,
)
from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.files import check_bytes
from omni_jax.retry import RetryingFile
from omni_jax.sequence.example import check_example, Example, map_media, Part, text_part

CHAT_SUFFIX = '.json'
TEXT_SUFFIXES = ('.txt', '.cls')
USED_SUFFIXES = {*MEDIUM_OF_SUFFIX, *TEXT_SUFFIXES, CHAT_SUFFIX}
DAMAGE = (tarfile.TarError, OSError, EOFError)  # also what gzip, bz2 and lzma raise


class Member(NamedTuple):
  """A file inside an archive.

  Attributes:
    data: its contents; empty if it cannot be used.
    problem: why it cannot be used, or ''.
  """

  name: str
  data: bytes
  problem: str = ''

  @property
  def suffix(self) -> str:
    return pathlib.PurePosixPath(self.name).suffix.lower()


class TarReader:
  """Reads one item per tar file (also .tar.gz, .tar.bz2, .tar.xz).

  The files of a sample follow each other, and their names agree up to the first dot:
  `000.png 000.txt`, or `000.json` with an example in the chat form whose paths are
  names of the other files.
  """

  chunk = 1

  def __init__(self, paths: Sequence[str], *, language: str = ''):
    self.files = tuple(paths)
    self._language = language
    for path in paths:
      try:
        with RetryingFile(path) as file, tarfile.open(fileobj=file, mode='r|*'):
          pass
      except DAMAGE as error:
        raise UserError(f'{path} is not a tar file ({error})') from error

  def __len__(self) -> int:
    return len(self.files)

  def read(self, items: range) -> Iterator[InputExample]:
    for path in self.files[items.start : items.stop]:
      base = os.path.basename(path).split('.')[0]
      for key, members in itertools.groupby(_members(path), key=_sample_name):
        sample = list(members)
        example_id = f'{base}/{key}'
        problems = [member.problem for member in sample if member.problem]
        if problems:
          yield InputExample(example_id, raising(BadRecord(problems[0])))
        elif any(member.suffix in USED_SUFFIXES for member in sample):
          yield InputExample(example_id, functools.partial(self._example, sample))

  def _example(self, sample: list[Member]) -> Example:
    chats = [member for member in sample if member.suffix == CHAT_SUFFIX]
    if chats:
      files = {os.path.basename(member.name): member.data for member in sample}
      return _chat(chats[0], files)
    media = []
    texts = []
    for member in sample:
      if member.suffix in MEDIUM_OF_SUFFIX:
        kind = MEDIUM_OF_SUFFIX[member.suffix]
        media.append({'type': kind, 'data': member.data})
      elif member.suffix in TEXT_SUFFIXES:
        texts.append(_text(member))
    if not media:
      return {'content': [text_part(text) for text in texts]}
    return captioned(media, '\n'.join(texts), self._language)


def _chat(chat: Member, files: dict[str, bytes]) -> Example:
  """Returns the example of a .json file.

  Args:
    files: contents of the files of the sample, by name.
  """
  try:
    example = check_example(json.loads(_text(chat)), 'path')
  except BadRecord:
    raise
  except ValueError as error:
    raise BadRecord(f'{chat.name}: not usable JSON ({error})') from error

  def medium(part: Part) -> Part:
    path = part['path']
    if path not in files:
      names = ', '.join(sorted(files))
      raise BadRecord(f'{path}: not in the sample, which has {names}')
    return {'type': part['type'], 'data': files[path]}

  return map_media(example, medium)


def _members(path: str) -> Iterator[Member]:
  """Yields the files of an archive from front to back.

  Files that are too large are not read. A damaged archive ends with a member that has a
  problem.
  """
  try:
    with RetryingFile(path) as file, tarfile.open(fileobj=file, mode='r|*') as archive:
      for info in archive:
        if info.isdir():
          continue
        problem = _problem(info)
        content = None if problem else archive.extractfile(info)
        data = content.read() if content else b''
        yield Member(info.name, data, problem)
  except DAMAGE as error:
    yield Member('(damaged)', b'', f'the archive cannot be read further ({error})')


def _problem(info: tarfile.TarInfo) -> str:
  """Returns why a file of an archive cannot be used, or ''."""
  parts = pathlib.PurePosixPath(info.name).parts
  if info.name.startswith('/') or '..' in parts:
    return f'{info.name}: a path that leaves the archive'
  if not info.isreg():
    return f'{info.name}: a link or a device'
  try:
    check_bytes(info.size)
  except BadRecord as error:
    return error.at(info.name).reason
  return ''


def _sample_name(member: Member) -> str:
  """Returns the name of the sample: the path up to the first dot of the file name."""
  path = pathlib.PurePosixPath(member.name)
  return str(path.with_name(path.name.split('.')[0] or path.name))


def _text(member: Member) -> str:
  try:
    return member.data.decode().strip()
  except UnicodeDecodeError as error:
    raise BadRecord(
      f'{member.name}: text is not UTF-8 at byte {error.start}'
    ) from error
