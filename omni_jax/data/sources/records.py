"""Examples as msgpack records with their media inside, and ArrayRecord files of them: the form for large data sets.

A record is the example of a JSON line with the encoded bytes of each medium under 'data' in place of its 'path'. It is
data, never code: only msgpack's plain types are read, and every type is checked. Beside the bytes of a medium stands
their digest (BLAKE2b): it finds flipped bits that decoders accept. Beside it may stand its codes, uint16 piece by
piece.
"""

import bisect
from collections.abc import Callable, Iterable, Sequence
import hashlib
import itertools
import math
import os
import re
import threading
from typing import Any, SupportsIndex

from etils import epath
import msgpack
import numpy as np

from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.hosts import Hosts
from omni_jax.retry import LASTING, patiently
from omni_jax.sequence.example import (
  check_example,
  decoded_part,
  Example,
  map_media,
  Stored,
)
from omni_jax.types import Span

MAX_RECORD = 256 << 20  # bytes
DIGEST_BYTES = 16
READER_OPTIONS = (
  'readahead_buffer_size:0,max_parallelism:0'  # for access in random order
)
WRITER_OPTIONS = (
  'group_size:1'  # one record a group: random access reads nothing in vain
)
SYSTEM_CALL = re.compile(
  r'\b(?:open|p?read|l?seek|fstat|mmap)\w*\(\) failed: ([^;]+)'
)  # as the reader says it


def encode_example(example: Example, read_file: Callable[[str], bytes]) -> bytes:
  """The record of a chat or plain example whose media parts have paths; `read_file` turns a path into bytes.

  With JSON lines: `encode_example(lines.encoded(i), lines.read_file)`.
  """
  return pack_example(
    map_media(
      check_example(example, 'path'),
      lambda part: {'type': part['type'], 'data': read_file(part['path'])},
    )
  )


def pack_example(example: Example) -> bytes:
  """The record of a checked example whose media parts hold their bytes; each medium gets its digest."""
  return msgpack.packb(
    map_media(
      example,
      lambda part: {
        'type': part['type'],
        'data': part['data'],
        'digest': digest_of(part['data']),
        **({'codes': part['codes']} if 'codes' in part else {}),
      },
    )
  )


def digest_of(data: bytes) -> bytes:
  return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def unpack_example(record: bytes) -> Example:
  """The example of a record, its structure checked, its media as bytes."""
  if len(record) > MAX_RECORD:
    raise BadRecord(
      f'record of {len(record):,} bytes, more than the {MAX_RECORD:,} allowed'
    )
  try:
    raw = msgpack.unpackb(record)
  except (ValueError, msgpack.UnpackException) as error:
    raise BadRecord(
      f'not a msgpack record ({type(error).__name__}: {error})'
    ) from error
  return check_example(raw, 'data')


def decode_example(record: bytes, hosts: Hosts) -> Example:
  """The example of a record, its media as arrays of the run's size."""
  example = unpack_example(record)
  try:
    return map_media(example, lambda part: _decoded(part, hosts))
  except BadRecord as error:
    raise error.of(example['id']) from error


def _decoded(part: Example, hosts: Hosts) -> Example:
  kind = part['type']
  if 'digest' in part and part['digest'] != digest_of(part['data']):
    raise BadRecord(
      f'{kind} of {len(part["data"]):,} bytes has changed since the conversion: digests differ'
    )
  decoded = decoded_part(kind, part['data'], hosts)
  host = hosts[kind]
  if 'codes' in part and host.stored:
    _, codes = host.stored[0]
    (pieces_M,) = host.pieces(Span(kind, payload=decoded[host.key]))
    decoded['code'] = _code_of(part['codes'], len(pieces_M), codes.shape)
  return decoded


def _code_of(data: bytes, pieces: int, shape: tuple[int, ...]) -> np.ndarray:
  size = 2 * pieces * math.prod(shape)
  if len(data) != size:
    raise BadRecord(
      f'codes of {len(data)} bytes are not those of {pieces} pieces of {shape} codes'
    )
  return np.frombuffer(data, '<u2').reshape(pieces, *shape)


def write_array_record(path: epath.PathLike, examples: Iterable[bytes]) -> int:
  """Writes encoded examples to one ArrayRecord file, which appears only when it is whole; returns how many."""
  from array_record.python import (
    array_record_module,
  )  # loads a large C++ library: only when it is needed

  partial = f'{os.fspath(path)}.partial-{os.getpid()}'
  count = 0
  try:
    writer = array_record_module.ArrayRecordWriter(partial, WRITER_OPTIONS)
    try:
      for record in examples:
        writer.write(record)
        count += 1
    finally:
      writer.close()
    os.replace(partial, path)
  except (RuntimeError, OSError) as error:
    raise UserError(f'{os.fspath(path)}: cannot be written ({error})') from error
  finally:
    if os.path.exists(partial):
      os.remove(partial)
  return count


class ArrayRecordExamples(Stored):
  """The examples of one or more ArrayRecord files, one after another, in random order of access.

  May be read by many threads, and pickled into worker processes; files are opened when first read.
  """

  def __init__(self, paths: epath.PathLike | Sequence[epath.PathLike], hosts: Hosts):
    paths = [paths] if isinstance(paths, str | os.PathLike) else paths
    self.paths = tuple(os.fspath(path) for path in paths)
    self.hosts = hosts
    if not self.paths:
      raise UserError('no ArrayRecord files: the list of paths is empty')
    self._ends = tuple(itertools.accumulate(_count(path) for path in self.paths))
    self._start_readers()

  def _start_readers(self) -> None:
    self._readers: dict[int, Any] = {}
    self._lock = threading.Lock()

  def __getstate__(self) -> dict[str, Any]:
    return {
      key: value
      for key, value in self.__dict__.items()
      if key not in ('_readers', '_lock')
    }

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._start_readers()

  def __len__(self) -> int:
    return self._ends[-1]

  def identity(self) -> str:
    """Digest of the names and sizes of the files."""
    sizes = [f'{os.path.basename(path)} {os.path.getsize(path)}' for path in self.paths]
    return hashlib.blake2b('\n'.join(sizes).encode(), digest_size=8).hexdigest()

  @property
  def path(self) -> str:
    """What stands for all files in messages."""
    return self.paths[0] if len(self.paths) == 1 else os.path.dirname(self.paths[0])

  def encoded(self, index: SupportsIndex) -> Example:
    """The example with the bytes of its media, nothing decoded."""
    index = self.place(index)
    file = bisect.bisect_right(self._ends, index)
    position = index - (self._ends[file - 1] if file else 0)
    name = f'{os.path.basename(self.paths[file])}:{position}'
    try:
      example = unpack_example(self._read(file, position))
    except BadRecord as error:
      raise error.of(name) from error
    return example | {'id': example['id'] or name}

  def decode(self, part: Example) -> Example:
    return _decoded(part, self.hosts)

  def _read(self, file: int, position: int) -> bytes:
    try:
      return patiently(
        lambda: self._read_once(file, position), self.paths[file], passes=may_pass
      )
    except RuntimeError as error:  # the reader's only exception
      raise BadRecord(f'cannot be read ({" ".join(str(error).split())})') from error

  def _read_once(self, file: int, position: int) -> bytes:
    with self._lock:
      if file not in self._readers:
        self._readers[file] = _reader(self.paths[file])
      reader = self._readers[file]
    try:
      return reader.read([position])[0]
    except RuntimeError:
      with self._lock:
        if self._readers.get(file) is reader:
          del self._readers[file]  # once it has failed it may fail for ever
      raise


def may_pass(error: Exception) -> bool:
  """Of what an ArrayRecord reader raises, the errors of system calls; it calls damage "Corrupted"."""
  said = SYSTEM_CALL.search(str(error)) if isinstance(error, RuntimeError) else None
  return said is not None and not any(
    said[1].startswith(os.strerror(lasting)) for lasting in LASTING
  )


def _reader(path: str) -> Any:
  from array_record.python import (
    array_record_module,
  )  # loads a large C++ library: only when it is needed

  return array_record_module.ArrayRecordReader(
    path, READER_OPTIONS, file_reader_buffer_size=32 << 10
  )


def _count(path: str) -> int:
  if not os.path.isfile(path):
    raise UserError(f'{path}: no such file: name an ArrayRecord file')

  def count_once() -> int:
    reader = _reader(path)
    try:
      return (
        reader.num_records()
      )  # 0 also where the file is something else: not every reader complains
    finally:
      reader.close()

  try:
    count = patiently(count_once, path, passes=may_pass)
  except RuntimeError as error:
    raise UserError(
      f'{path}: is not an ArrayRecord file, or a damaged one ({error})'
    ) from error
  if not count:
    raise UserError(f'{path}: holds no examples, or is not an ArrayRecord file')
  return count
