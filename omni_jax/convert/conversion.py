"""Examples of any reader -> shards of ArrayRecord and a manifest, the same bytes whatever the number of workers.

Every step is a pure function of what it is given. `converted` turns what was found into a record or a refusal; pieces
of the input become spill files (`write_spill`), side by side; spill files become shards (`shard_of_spills`), side by
side: a record's shard is a hash of its id, and a shard is sorted by id. A spill file that is there is whole, so a
conversion that was killed goes on with what is missing. A pipeline of Apache Beam has no spill files, and the same
`converted`, `shard_of` and `write_shard`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import hashlib
import os
import pathlib
from typing import Any, NamedTuple

import msgpack

from omni_jax.convert.formats.reader import Example, Found, Reader
from omni_jax.convert.run_check import RunCheck
from omni_jax.data.sources.records import MAX_RECORD, pack_example, write_array_record
from omni_jax.data.sources.shards import added, ShardStats
from omni_jax.errors import BadRecord
from omni_jax.modalities.hosts import Hosts, TEXT
from omni_jax.sequence.example import check_example, decoded_part, parts_of

CHECK = Hosts.lenient()


class Converted(NamedTuple):
  """A record, or why there is none."""

  id: str
  record: bytes
  refused: str
  counted: dict[str, float]  # of its media, by what is counted


class Entry(NamedTuple):
  """Where a record lies in its spill file, or why there is none."""

  id: str
  refused: str
  counted: dict[str, float]
  offset: int
  length: int


def converted(found: Found, check: RunCheck | None = None) -> Converted:
  """Returns the record of an example that is sound and that the run can take, or the reason for refusing it."""
  hosts = check.hosts if check else CHECK
  try:
    example = check_example({**found.make(), 'id': found.id}, 'data')
    decoded = [_decoded(part, hosts) for part in parts_of(example)]
    if check:
      check(_with(example, iter(decoded)))
      example = _with(example, iter(_coded(parts_of(example), decoded, check)))
    record = pack_example(example)
    if len(record) > MAX_RECORD:
      raise BadRecord(
        f'record of {len(record):,} bytes, more than the {MAX_RECORD:,} allowed'
      )
  except BadRecord as error:
    return Converted(found.id, b'', error.reason, {})
  counts = []
  for part in decoded:
    if part['type'] != TEXT:
      host = hosts[part['type']]
      counts.append(host.counted(part[host.key]))
  return Converted(found.id, record, '', added(counts))


def _decoded(part: Example, hosts: Hosts) -> Example:
  if part['type'] == TEXT:
    return part
  return {**part, **decoded_part(part['type'], part['data'], hosts)}


def _coded(
  parts: Sequence[Example], decoded: Sequence[Example], check: RunCheck
) -> list[Example]:
  """Returns the parts with codes beside the media for which there is a coder."""
  coded = []
  for part, medium in zip(parts, decoded, strict=True):
    coder = check.coders.get(part['type'])
    if coder:
      payload = medium[check.hosts[part['type']].key]
      part = part | {'codes': coder(payload).astype('<u2').tobytes()}
    coded.append(part)
  return coded


def _with(example: Example, parts: Iterator[Example]) -> Example:
  """The example with other parts, in order."""
  if 'content' in example:
    return {**example, 'content': [next(parts) for _ in example['content']]}
  return {
    **example,
    'messages': [
      {**m, 'content': [next(parts) for _ in m['content']]} for m in example['messages']
    ],
  }


def pieces_of(reader: Reader) -> list[range]:
  """What one worker reads at a time: it depends on the input only."""
  return [
    range(start, min(start + reader.chunk, len(reader)))
    for start in range(0, len(reader), reader.chunk)
  ]


def shard_of(id: str, shards: int) -> int:
  """Depends on the id only."""
  return (
    int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), 'little')
    % shards
  )


def write_spill(
  reader: Reader,
  items: range,
  path: pathlib.Path,
  shards: int,
  check: RunCheck | None = None,
) -> int:
  """Converts a piece of the input into one file and its index, which comes last; returns how many examples it had."""
  index: list[list[Entry]] = [[] for _ in range(shards)]
  at = 0
  with open(path, 'wb') as file:
    for found in reader.read(items):
      made = converted(found, check)
      index[shard_of(made.id, shards)].append(
        Entry(made.id, made.refused, made.counted, at, len(made.record))
      )
      at += file.write(made.record)
  _write_whole(index_of(path), msgpack.packb(index))
  return sum(map(len, index))


def index_of(spill: pathlib.Path) -> pathlib.Path:
  return spill.with_suffix('.index')


def shard_name(number: int, shards: int) -> str:
  return f'data-{number:05d}-of-{shards:05d}.array_record'


def write_shard(
  path: pathlib.Path,
  found: Iterable[tuple[Converted | Entry, Any]],
  read: Callable[[Sequence[Any]], Iterable[bytes]],
) -> ShardStats:
  """One shard of all that belongs to it.

  Args:
    found: in order of id, then of the input: what is known of a record, and where it is.
    read: the records of such places.
  """
  kept: list[tuple[Converted | Entry, Any]] = []
  refused = []
  for entry, place in found:
    if entry.refused:
      refused.append((entry.id, entry.refused))
    elif kept and kept[-1][0].id == entry.id:
      refused.append((entry.id, 'its id occurs before'))
    else:
      kept.append((entry, place))
  size, digest = 0, ''
  if kept:  # a shard without records has no file: it is nothing that could be read
    write_array_record(path, read([place for _, place in kept]))
    size = path.stat().st_size
    with open(path, 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
  return ShardStats(
    path.name,
    len(kept),
    size,
    digest,
    added(entry.counted for entry, _ in kept),
    refused,
  )


def shard_of_spills(
  spills: Sequence[pathlib.Path], shard: int, path: pathlib.Path
) -> ShardStats:
  """One shard of what belongs to it in all spill files."""
  found = [
    (entry.id, k, n, entry)
    for k, spill in enumerate(spills)
    for n, entry in enumerate(_entries(spill, shard))
  ]
  return write_shard(
    path, [(entry, (spills[k], entry)) for _, k, _, entry in sorted(found)], _records
  )


def _entries(spill: pathlib.Path, shard: int) -> list[Entry]:
  return [
    Entry(*entry) for entry in msgpack.unpackb(index_of(spill).read_bytes())[shard]
  ]


def _records(places: Sequence[tuple[pathlib.Path, Entry]]) -> Iterator[bytes]:
  files: dict[pathlib.Path, Any] = {}
  try:
    for spill, entry in places:
      if spill not in files:
        files[spill] = open(spill, 'rb')  # noqa: SIM115  closed below, many at a time
      files[spill].seek(entry.offset)
      yield files[spill].read(entry.length)
  finally:
    for file in files.values():
      file.close()


def _write_whole(path: pathlib.Path, data: bytes) -> None:
  partial = path.with_name(f'{path.name}.partial')
  partial.write_bytes(data)
  os.replace(partial, path)
