"""Runs a conversion as a pipeline of Apache Beam, for data too large for one machine.

It shares its functions with the conversion on one machine and writes the same bytes.
Two things differ: a pipeline that fails keeps nothing, and a shard, media included, is
sorted in the memory of one worker, as is the list of all refused examples. Request so
many shards that each is a fraction of a worker's memory (some hundred MB).

The reader travels with the pipeline, so an input of very many lines or pictures is
better given as Parquet or tar files.
"""

from collections.abc import Iterable, Iterator
import contextlib
import functools
import io
import json
import os
import pathlib
import shlex
import tempfile
from typing import Any

from omni_jax.convert import beam_files
from omni_jax.convert.conversion import (
  convert_example,
  Converted,
  output_exists,
  pieces_of,
  shard_name,
  shard_of,
  write_shard,
)
from omni_jax.convert.formats.reader import Reader
from omni_jax.convert.run_check import Fingerprints, fingerprints_of, RunCheck
from omni_jax.data.sources.shards import (
  check_not_empty,
  MANIFEST,
  manifest_of,
  REFUSED,
  ShardStats,
  summary_files,
)
from omni_jax.errors import UserError
from omni_jax.paths import is_remote

# Number of a piece of the input, its first item, and the item after its last.
Piece = tuple[int, int, int]
# Id of an example, number of its piece, its number in the piece, fields of `Converted`.
# Plain tuples: Beam encodes them compactly.
KeyedResult = tuple[str, int, int, tuple[Any, ...]]


def convert(
  reader: Reader,
  output: str,
  *,
  shards: int,
  input_name: str,
  options: str,
  check: RunCheck | None = None,
) -> dict[str, Any]:
  """Writes the folder `output` and returns its manifest.

  Args:
    output: folder that this process and all workers see, on a disk or in a bucket.
    shards: number of shards.
    input_name: name of the input, for the manifest.
    options: options of Beam, as on its command line.
    check: the run that every example is checked against; its fingerprints go into the
      manifest.

  Raises:
    UserError: if Beam is not installed or does not accept the options, if the output
      exists, if no example can be used, or if the pipeline fails.
  """
  beam = _library()
  settings = _settings(options)
  output = output.rstrip('/') if is_remote(output) else os.path.abspath(output)
  if beam_files.exists(output):
    raise output_exists(output)
  partial = f'{output}.partial-beam'
  beam_files.remove(partial)
  pieces = [(k, items.start, items.stop) for k, items in enumerate(pieces_of(reader))]
  convert_one = functools.partial(
    convert_piece, reader=reader, shards=shards, check=check
  )
  write_one = functools.partial(write_group, folder=partial, shards=shards)
  write_all = functools.partial(
    write_lists,
    folder=partial,
    input_name=input_name,
    fingerprints=fingerprints_of(check),
  )
  try:
    with beam.Pipeline(options=settings) as pipeline:
      inputs = pipeline | 'Pieces' >> beam.Create(pieces)
      spread = inputs | 'Spread' >> beam.Reshuffle()
      results = spread | 'Convert' >> beam.FlatMap(convert_one)
      groups = results | 'Group' >> beam.GroupByKey()
      stats = groups | 'Write' >> beam.Map(write_one)
      all_stats = stats | 'Gather' >> beam.combiners.ToList()
      _ = all_stats | 'List' >> beam.Map(write_all)
  except Exception as error:  # each runner has its own errors; Beam logs the details
    raise UserError(
      f'--beam={options!r}: the pipeline failed: {_last_line(error)}'
    ) from error
  return _publish(partial, output)


def _publish(partial: str, output: str) -> dict[str, Any]:
  """Renames the finished folder; returns its manifest."""
  try:
    manifest = json.loads(beam_files.read(partial, MANIFEST))
    if not manifest['records']:
      beam_files.remove(partial)
    check_not_empty(manifest)
    shards = [shard['file'] for shard in manifest['shards']]
    beam_files.publish(partial, output, [MANIFEST, REFUSED, *shards])
  except OSError as error:
    raise UserError(
      f'{partial} cannot be read or renamed here ({_last_line(error)}): '
      'name a folder of --output that this machine and all workers see'
    ) from error
  return manifest


def convert_piece(
  piece: Piece, *, reader: Reader, shards: int, check: RunCheck | None
) -> Iterator[tuple[int, KeyedResult]]:
  """Yields the shard and the result of each example in a piece of the input."""
  k, start, stop = piece
  for n, source in enumerate(reader.read(range(start, stop))):
    result = convert_example(source, check)
    yield shard_of(result.id, shards), (result.id, k, n, tuple(result))


def _input_order(result: KeyedResult) -> tuple[str, int, int]:
  return result[:3]


def write_group(
  group: tuple[int, Iterable[KeyedResult]], *, folder: str, shards: int
) -> tuple[Any, ...]:
  """Writes one shard to a local disk, then copies it to the folder.

  Returns:
    The fields of its `ShardStats`.
  """
  number, results = group
  entries = []
  for *_, fields in sorted(results, key=_input_order):
    converted = Converted(*fields)
    entries.append((converted, converted.record))
  with tempfile.TemporaryDirectory() as scratch:
    path = pathlib.Path(scratch) / shard_name(number, shards)
    stats = write_shard(path, entries, iter)
    if stats.records:
      with open(path, 'rb') as file:
        beam_files.write(folder, path.name, file)
  return tuple(stats)


def write_lists(
  stats: list[tuple[Any, ...]],
  *,
  folder: str,
  input_name: str,
  fingerprints: Fingerprints,
) -> None:
  """Writes the manifest and the list of refused examples.

  Args:
    stats: fields of the `ShardStats` of all shards, in any order.
  """
  shards = [ShardStats(*fields) for fields in stats]
  shards.sort(key=lambda shard: shard.file)
  manifest = manifest_of(shards, input_name, *fingerprints)
  for name, text in summary_files(manifest, shards).items():
    beam_files.write(folder, name, io.BytesIO(text.encode()))


def _library() -> Any:
  try:
    import apache_beam  # an optional dependency: extra [beam]
  except ImportError as error:
    raise UserError(
      "--beam needs the package 'apache_beam', best in its own environment (it lowers "
      f"pyarrow, protobuf and pillow): pip install 'omni_jax[beam]' ({error})"
    ) from error
  return apache_beam


def _settings(options: str) -> Any:
  """Returns Beam's PipelineOptions for the value of --beam."""
  from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

  try:
    words = shlex.split(options)
  except ValueError as error:
    raise UserError(f'--beam={options!r}: {error}') from error
  names = [word.partition('=')[0] for word in words]
  if '--runner' not in names or not words[0].startswith('--'):
    raise UserError(
      f"--beam={options!r}: give Beam's options, including the runner, such as "
      "--beam='--runner=FlinkRunner --parallelism=8'; --runner=DirectRunner runs on "
      'this machine'
    )
  messages = io.StringIO()
  try:
    # Beam parses options with argparse, which prints its message and exits.
    with contextlib.redirect_stderr(messages):
      settings = PipelineOptions(words)
      settings.get_all_options()
      settings.view_as(StandardOptions)
  except SystemExit as error:
    raise UserError(f'--beam={options!r}: {_last_line(messages.getvalue())}') from error
  return settings


def _last_line(message: object) -> str:
  """Returns the last line of a message or an error, or the type of an empty one."""
  lines = [line.strip() for line in str(message).splitlines() if line.strip()]
  return lines[-1] if lines else type(message).__name__
