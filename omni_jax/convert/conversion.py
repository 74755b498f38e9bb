"""Converts examples of any reader into ArrayRecord shards, in pure functions.

Workers convert pieces of the input into spill files (`write_spill`), then spill files
into shards (`shard_of_spills`). The shard of a record is a hash of its id, and a shard
is sorted by id, so the bytes do not depend on the number of workers. A spill file whose
index exists is complete, so a killed conversion resumes with the missing ones.

A pipeline of Apache Beam needs no spill files; it shares `convert_example`, `shard_of`
and `write_shard`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import hashlib
import os
import pathlib
from typing import Any, BinaryIO, NamedTuple

import msgpack

from omni_jax.convert.formats.reader import InputExample, Reader
from omni_jax.convert.run_check import RunCheck
from omni_jax.data.sources.records import CODE, pack_example, write_array_record
from omni_jax.data.sources.shards import SHARD_SUFFIX, ShardStats, sum_counts
from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.hosts import Hosts, TEXT
from omni_jax.sequence.example import (
  check_example,
  decoded_part,
  Example,
  Part,
  parts_of,
)

LENIENT = Hosts.lenient()


class Converted(NamedTuple):
  """A record, or the reason why there is none.

  Attributes:
    id: id of the example.
    record: its bytes; empty if the example is refused.
    refusal: why the example is refused, or ''.
    counts: amounts of its media for the manifest, by name.
  """

  id: str
  record: bytes
  refusal: str
  counts: dict[str, float]


class Entry(NamedTuple):
  """The place of a record in a spill file, with some fields of `Converted`."""

  id: str
  refusal: str
  counts: dict[str, float]
  offset: int
  length: int


def output_exists(output: str | os.PathLike) -> UserError:
  """Returns the error about an output that already exists."""
  return UserError(
    f'--output={output} already exists: remove it or name another folder'
  )


def convert_example(source: InputExample, check: RunCheck | None = None) -> Converted:
  """Returns the record of an example, or the reason for refusing it.

  An example is refused if it is damaged, or if the run of `check` cannot take it.
  """
  hosts = LENIENT if check is None else check.hosts
  try:
    example = check_example({**source.make(), 'id': source.id}, 'data')
    parts = parts_of(example)
    decoded = [_decoded(part, hosts) for part in parts]
    if check is not None:
      check(_with_parts(example, decoded))
      example = _with_parts(example, _with_codes(parts, decoded, check))
    record = pack_example(example)
  except BadRecord as error:
    return Converted(source.id, b'', error.reason, {})
  counts = []
  for part in decoded:
    if part['type'] != TEXT:
      host = hosts[part['type']]
      counts.append(host.count(part[host.key]))
  return Converted(source.id, record, '', sum_counts(counts))


def _decoded(part: Part, hosts: Hosts) -> Part:
  """Returns a part with its payload added."""
  if part['type'] == TEXT:
    return part
  return {**part, **decoded_part(part['type'], part['data'], hosts)}


def _with_codes(
  parts: Sequence[Part], decoded: Sequence[Part], check: RunCheck
) -> list[Part]:
  """Returns the parts with codes added to the media that have a coder."""
  coded = []
  for part, decoded_medium in zip(parts, decoded, strict=True):
    coder = check.coders.get(part['type'])
    if coder:
      payload = decoded_medium[check.hosts[part['type']].key]
      part = {**part, 'codes': coder(payload).astype(CODE).tobytes()}
    coded.append(part)
  return coded


def _with_parts(example: Example, parts: Sequence[Part]) -> Example:
  """Returns the example with all its parts replaced, in order."""
  if 'content' in example:
    return {**example, 'content': list(parts)}
  messages = []
  start = 0
  for message in example['messages']:
    stop = start + len(message['content'])
    messages.append({**message, 'content': list(parts[start:stop])})
    start = stop
  return {**example, 'messages': messages}


def pieces_of(reader: Reader) -> list[range]:
  """Returns the items of each piece of the input, which depend on the input only."""
  pieces = []
  for start in range(0, len(reader), reader.chunk):
    stop = min(start + reader.chunk, len(reader))
    pieces.append(range(start, stop))
  return pieces


def shard_of(id: str, shards: int) -> int:
  """Returns the number of a record's shard, which depends on its id only."""
  digest = hashlib.blake2b(id.encode(), digest_size=8).digest()
  return int.from_bytes(digest, 'little') % shards


def write_spill(
  reader: Reader,
  items: range,
  path: pathlib.Path,
  shards: int,
  check: RunCheck | None = None,
) -> int:
  """Converts a piece of the input into a spill file, and writes its index last.

  Returns:
    The number of examples in the piece, including those that are refused.
  """
  index: list[list[Entry]] = [[] for _ in range(shards)]
  offset = 0
  with open(path, 'wb') as file:
    for source in reader.read(items):
      result = convert_example(source, check)
      size = len(result.record)
      entry = Entry(result.id, result.refusal, result.counts, offset, size)
      index[shard_of(result.id, shards)].append(entry)
      offset += file.write(result.record)
  _write_atomically(index_of(path), msgpack.packb(index))
  return sum(len(entries) for entries in index)


def index_of(spill: pathlib.Path) -> pathlib.Path:
  """Returns the path of a spill file's index."""
  return spill.with_suffix('.index')


def shard_name(number: int, shards: int) -> str:
  """Returns the file name of a shard."""
  return f'data-{number:05d}-of-{shards:05d}{SHARD_SUFFIX}'


def write_shard(
  path: pathlib.Path,
  entries: Iterable[tuple[Converted | Entry, Any]],
  read: Callable[[Sequence[Any]], Iterable[bytes]],
) -> ShardStats:
  """Writes one shard; of several records with the same id it keeps the first.

  Args:
    entries: (facts about a record, its place) of each record, sorted by id and then in
      the order of the input.
    read: returns the records at the given places, in order.
  """
  kept: list[Converted | Entry] = []
  places: list[Any] = []
  refused: list[tuple[str, str]] = []
  for entry, place in entries:
    if entry.refusal:
      refused.append((entry.id, entry.refusal))
    elif kept and kept[-1].id == entry.id:
      refused.append((entry.id, 'its id occurs earlier'))
    else:
      kept.append(entry)
      places.append(place)
  size = 0
  digest = ''
  if kept:  # a shard without records gets no file: there would be nothing to read
    write_array_record(path, read(places))
    size = path.stat().st_size
    with open(path, 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
  counts = sum_counts(entry.counts for entry in kept)
  return ShardStats(path.name, len(kept), size, digest, counts, refused)


def shard_of_spills(
  spills: Sequence[pathlib.Path], shard: int, path: pathlib.Path
) -> ShardStats:
  """Writes one shard of the records that all spill files hold for it."""
  entries: list[tuple[Entry, tuple[pathlib.Path, Entry]]] = []
  for spill in spills:
    index = msgpack.unpackb(index_of(spill).read_bytes())
    for fields in index[shard]:
      entry = Entry(*fields)
      entries.append((entry, (spill, entry)))
  # Stable: records of the same id stay in the order of the input.
  entries.sort(key=lambda pair: pair[0].id)
  return write_shard(path, entries, _records)


def _records(places: Sequence[tuple[pathlib.Path, Entry]]) -> Iterator[bytes]:
  """Yields the records at the given places of spill files."""
  files: dict[pathlib.Path, BinaryIO] = {}
  try:
    for spill, entry in places:
      if spill not in files:
        files[spill] = open(spill, 'rb')  # noqa: SIM115  all are closed below
      files[spill].seek(entry.offset)
      yield files[spill].read(entry.length)
  finally:
    for file in files.values():
      file.close()


def _write_atomically(path: pathlib.Path, data: bytes) -> None:
  partial = path.with_name(f'{path.name}.partial')
  partial.write_bytes(data)
  os.replace(partial, path)
