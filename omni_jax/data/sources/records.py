"""Reads and writes large data sets as msgpack records in ArrayRecord files.

A record is the example of a JSON line that holds the encoded bytes of each medium under
'data' instead of its 'path'. It is data, never code: only msgpack's plain types are
read, and every type is checked. Each medium is stored with the BLAKE2b digest of its
bytes, which finds flipped bits that decoders accept, and possibly with its codes,
uint16, piece by piece.
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

from omni_jax.errors import BadRecord, one_line, UserError
from omni_jax.modalities.hosts import Hosts
from omni_jax.retry import LASTING, with_retries
from omni_jax.sequence.example import (
  check_example,
  decoded_part,
  Example,
  map_media,
  Part,
  StoredExamplesBase,
)
from omni_jax.types import Span

MAX_RECORD = 256 << 20  # bytes
DIGEST_BYTES = 16
CODE = np.dtype('<u2')  # a stored code
# Nothing is read ahead, for random access.
READER_OPTIONS = 'readahead_buffer_size:0,max_parallelism:0'
# One record per group, so that random access reads nothing else.
WRITER_OPTIONS = 'group_size:1'
# A failed system call in a message of the ArrayRecord reader.
SYSTEM_CALL = re.compile(r'\b(?:open|p?read|l?seek|fstat|mmap)\w*\(\) failed: ([^;]+)')


def encode_example(example: Example, read_file: Callable[[str], bytes]) -> bytes:
  """Returns the record of a chat or plain example whose media parts have paths.

  With JSON lines: `encode_example(lines.encoded(i), lines.read_file)`.

  Args:
    example: example as a JSON line holds it.
    read_file: returns the bytes of the file at a path.

  Raises:
    BadRecord: if the example has mistakes, or `read_file` raises it.
  """

  def with_data(part: Part) -> Part:
    return {'type': part['type'], 'data': read_file(part['path'])}

  return pack_example(map_media(check_example(example, 'path'), with_data))


def pack_example(example: Example) -> bytes:
  """Returns the record of a checked example whose media parts hold their bytes.

  Each medium gets its digest.

  Raises:
    BadRecord: if the record is too large.
  """

  def with_digest(part: Part) -> Part:
    data = part['data']
    packed = {'type': part['type'], 'data': data, 'digest': digest_of(data)}
    if 'codes' in part:
      packed['codes'] = part['codes']
    return packed

  record = msgpack.packb(map_media(example, with_digest))
  _check_size(record)
  return record


def _check_size(record: bytes) -> None:
  if len(record) > MAX_RECORD:
    raise BadRecord(
      f'record of {len(record):,} bytes, more than the {MAX_RECORD:,} allowed'
    )


def digest_of(data: bytes) -> bytes:
  """Returns the digest of an encoded medium, DIGEST_BYTES long."""
  return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def unpack_example(record: bytes) -> Example:
  """Returns the example of a record with its structure checked and its media as bytes.

  Raises:
    BadRecord: if the record is too large, or not an example.
  """
  _check_size(record)
  try:
    raw = msgpack.unpackb(record)
  except (ValueError, msgpack.UnpackException) as error:
    raise BadRecord(
      f'not a msgpack record ({type(error).__name__}: {error})'
    ) from error
  return check_example(raw, 'data')


def decode_example(record: bytes, hosts: Hosts) -> Example:
  """Returns the example of a record with its media as arrays of the run's size.

  Raises:
    BadRecord: if the record or one of its media cannot be used.
  """
  example = unpack_example(record)
  try:
    return map_media(example, lambda part: _decoded(part, hosts))
  except BadRecord as error:
    raise error.of(example['id']) from error


def _decoded(part: Part, hosts: Hosts) -> Part:
  """Returns a part with its medium decoded, and its codes where the run uses them."""
  kind = part['type']
  data = part['data']
  if 'digest' in part and part['digest'] != digest_of(data):
    raise BadRecord(
      f'{kind} of {len(data):,} bytes has changed since the conversion: digests differ'
    )
  decoded = decoded_part(kind, data, hosts)
  host = hosts[kind]
  if 'codes' in part and host.stored:
    _, codes = host.stored[0]
    span = Span(kind, payload=decoded[host.key])
    (pieces_M,) = host.pieces(span)
    decoded['code'] = _code_of(part['codes'], len(pieces_M), codes.shape)
  return decoded


def _code_of(data: bytes, pieces: int, shape: tuple[int, ...]) -> np.ndarray:
  """Returns the codes of a medium, uint16 (pieces, *shape)."""
  if len(data) != CODE.itemsize * pieces * math.prod(shape):
    raise BadRecord(
      f'codes of {len(data)} bytes are not those of {pieces} pieces of {shape} codes'
    )
  return np.frombuffer(data, CODE).reshape(pieces, *shape)


def write_array_record(path: epath.PathLike, examples: Iterable[bytes]) -> int:
  """Writes an ArrayRecord file, which appears only when it is complete.

  Returns the number of records.

  Raises:
    UserError: if the file cannot be written.
  """
  # This loads a large C++ library, so only where it is needed.
  from array_record.python import array_record_module

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
    raise UserError(f'{os.fspath(path)} cannot be written ({error})') from error
  finally:
    if os.path.exists(partial):
      os.remove(partial)
  return count


class ArrayRecordExamples(StoredExamplesBase):
  """The examples of one or more ArrayRecord files, with random access.

  Many threads may read them, and worker processes get them by pickling; files are
  opened at the first read.

  Raises:
    UserError: if there is no file, or one cannot be read or holds no examples.
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
    state = dict(self.__dict__)
    del state['_readers']
    del state['_lock']
    return state

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._start_readers()

  def __len__(self) -> int:
    return self._ends[-1]

  def identity(self) -> str:
    """Returns a digest of the names and sizes of the files."""
    sizes = [f'{os.path.basename(path)} {os.path.getsize(path)}' for path in self.paths]
    text = '\n'.join(sizes)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

  @property
  def path(self) -> str:
    """Name of the data in messages: the file, or the folder of the first of several."""
    first = self.paths[0]
    return first if len(self.paths) == 1 else os.path.dirname(first)

  def encoded(self, index: SupportsIndex) -> Example:
    """Returns an example with the bytes of its media, nothing decoded."""
    index = self.checked_index(index)
    file = bisect.bisect_right(self._ends, index)
    start = self._ends[file - 1] if file else 0
    position = index - start
    name = f'{os.path.basename(self.paths[file])}:{position}'
    try:
      example = unpack_example(self._read(file, position))
    except BadRecord as error:
      raise error.of(name) from error
    example['id'] = example['id'] or name
    return example

  def decode(self, part: Part) -> Part:
    """Returns a part with its medium as an array of the run's size."""
    return _decoded(part, self.hosts)

  def _read(self, file: int, position: int) -> bytes:
    """Returns a record; transient errors are retried."""
    try:
      return with_retries(
        lambda: self._read_once(file, position),
        self.paths[file],
        retryable=is_transient,
      )
    except RuntimeError as error:  # the reader raises nothing else
      raise BadRecord(f'cannot be read ({one_line(error)})') from error

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
          del self._readers[file]  # after an error it may fail forever
      raise


def is_transient(error: Exception) -> bool:
  """Returns whether an error of an ArrayRecord reader may be gone at the next attempt.

  These are errors of system calls, which its messages name; damage is "Corrupted".
  """
  if not isinstance(error, RuntimeError):
    return False
  match = SYSTEM_CALL.search(str(error))
  if match is None:
    return False
  return not any(match[1].startswith(os.strerror(number)) for number in LASTING)


def _reader(path: str) -> Any:
  # This loads a large C++ library, so only where it is needed.
  from array_record.python import array_record_module

  return array_record_module.ArrayRecordReader(
    path, READER_OPTIONS, file_reader_buffer_size=32 << 10
  )


def _count(path: str) -> int:
  """Returns the number of records of a file; raises UserError if there are none."""
  if not os.path.isfile(path):
    raise UserError(f'{path}: no such file: name an ArrayRecord file')

  def count_once() -> int:
    reader = _reader(path)
    try:
      # It may also be 0 where the file is something else: some readers raise nothing.
      return reader.num_records()
    finally:
      reader.close()

  try:
    count = with_retries(count_once, path, retryable=is_transient)
  except RuntimeError as error:
    raise UserError(
      f'{path} is not an ArrayRecord file, or is damaged ({error})'
    ) from error
  if not count:
    raise UserError(f'{path} holds no examples, or is not an ArrayRecord file')
  return count
