"""Tar files of samples (the form of WebDataset), as an input of a conversion. Nothing is unpacked, nothing is run."""

from collections.abc import Iterator, Sequence
import itertools
import json
import os
import pathlib
import tarfile
from typing import NamedTuple

from omni_jax.convert.formats.reader import captioned, Example, Found, KIND, refused
from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.files import MAX_BYTES
from omni_jax.retry import PatientFile
from omni_jax.sequence.example import check_example, map_media

TEXTS = ('.txt', '.cls')
DAMAGE = (tarfile.TarError, OSError, EOFError)  # also what gzip, bz2 and lzma raise


class Member(NamedTuple):
  name: str
  data: bytes
  problem: str = ''  # why it cannot be used


class TarReader:
  """One item a tar file (also .tar.gz, .bz2, .xz). Files of one sample follow each other and are called alike up to the
  first dot: `000.png 000.txt`, or `000.json` with an example in the chat form whose paths are names of the others.
  """

  chunk = 1

  def __init__(self, paths: Sequence[str], *, language: str = ''):
    self.files, self._language = tuple(paths), language
    for path in paths:
      try:
        with PatientFile(path) as file, tarfile.open(fileobj=file, mode='r|*'):
          pass
      except DAMAGE as error:
        raise UserError(f'{path}: is not a tar file ({error})') from error

  def __len__(self) -> int:
    return len(self.files)

  def read(self, items: range) -> Iterator[Found]:
    for path in self.files[items.start : items.stop]:
      base = os.path.basename(path).split('.')[0]
      for key, members in itertools.groupby(_members(path), key=_key):
        sample = list(members)
        problem = next((member.problem for member in sample if member.problem), '')
        if problem:
          yield Found(f'{base}/{key}', refused(BadRecord(problem)))
        elif any(_end(member) in (*KIND, *TEXTS, '.json') for member in sample):
          yield Found(f'{base}/{key}', lambda sample=sample: self._example(sample))

  def _example(self, sample: list[Member]) -> Example:
    files = {os.path.basename(member.name): member.data for member in sample}
    chat = next((member for member in sample if _end(member) == '.json'), None)
    if chat is not None:
      return _chat(chat, files)
    media = [
      {'type': KIND[_end(member)], 'data': member.data}
      for member in sample
      if _end(member) in KIND
    ]
    texts = [_text(member) for member in sample if _end(member) in TEXTS]
    if not media:
      return {'content': [{'type': 'text', 'text': text} for text in texts]}
    return captioned(media, '\n'.join(texts), self._language)


def _chat(chat: Member, files: dict[str, bytes]) -> Example:
  try:
    example = check_example(json.loads(_text(chat)), 'path')
  except ValueError as error:
    if isinstance(error, BadRecord):
      raise
    raise BadRecord(f'{chat.name}: not usable JSON ({error})') from error

  def medium(part: Example) -> Example:
    if part['path'] not in files:
      raise BadRecord(
        f'{part["path"]}: not in the sample, which has {", ".join(sorted(files))}'
      )
    return {'type': part['type'], 'data': files[part['path']]}

  return map_media(example, medium)


def _members(path: str) -> Iterator[Member]:
  """Regular files, read from front to back; what is too large is not read, a damaged archive ends with a problem."""
  try:
    with (
      PatientFile(path) as opened,
      tarfile.open(fileobj=opened, mode='r|*') as archive,
    ):
      for info in archive:
        if info.isdir():
          continue
        problem = _problem(info)
        file = None if problem else archive.extractfile(info)
        yield Member(info.name, file.read() if file else b'', problem)
  except DAMAGE as error:
    yield Member('(damaged)', b'', f'the archive cannot be read further ({error})')


def _problem(info: tarfile.TarInfo) -> str:
  parts = pathlib.PurePosixPath(info.name).parts
  if info.name.startswith('/') or '..' in parts:
    return f'{info.name}: a path that leaves the archive'
  if not info.isreg():
    return f'{info.name}: a link or a device'
  if info.size > MAX_BYTES:
    return f'{info.name}: has {info.size:,} bytes, more than the {MAX_BYTES:,} allowed'
  return ''


def _key(member: Member) -> str:
  path = pathlib.PurePosixPath(member.name)
  return str(path.with_name(path.name.split('.')[0] or path.name))


def _end(member: Member) -> str:
  return pathlib.PurePosixPath(member.name).suffix.lower()


def _text(member: Member) -> str:
  try:
    return member.data.decode().strip()
  except UnicodeDecodeError as error:
    raise BadRecord(
      f'{member.name}: text is not UTF-8 at byte {error.start}'
    ) from error
