"""A conversion as a pipeline of Apache Beam (Flink, Spark, Dataflow), for a corpus that outgrows a machine.

The functions are those of the conversion on one machine, and so are the bytes of what they write. What differs: nothing
is kept of a pipeline that fails; a shard is sorted in the memory of one worker, media included, and so is the list of
all that is refused: take so many shards that one is a fraction of a worker's memory (some hundred MB). The reader
travels with the pipeline: an input of very many lines or pictures is better given as Parquet or tar files.
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
  Converted,
  converted,
  pieces_of,
  shard_name,
  shard_of,
  write_shard,
)
from omni_jax.convert.formats.reader import Reader
from omni_jax.convert.run_check import RunCheck
from omni_jax.data.sources.shards import (
  check_useful,
  lists_of,
  MANIFEST,
  manifest_of,
  REFUSED,
  ShardStats,
)
from omni_jax.errors import UserError
from omni_jax.sequence.media import is_remote

Facts = tuple[
  str, int, int, tuple[Any, ...]
]  # id, piece, number in the piece, Converted: plain tuples travel well


def convert(
  reader: Reader,
  output: str,
  *,
  shards: int,
  said: str,
  options: str,
  check: RunCheck | None = None,
) -> dict[str, Any]:
  """Writes the folder `output`; returns its manifest.

  Args:
    output: where this process and all workers see it.
    said: what the input is, for the manifest.
    options: of Beam, as on its command line.
    check: the run that every example is checked against; its fingerprints go into the manifest.

  Raises:
    UserError: if Beam is missing or takes no such options, if the output exists, if no record is good, or if the
      pipeline fails.
  """
  beam, settings = _library(), _settings(options)
  output = output.rstrip('/') if is_remote(output) else os.path.abspath(output)
  if beam_files.is_there(output):
    raise UserError(
      f'--output={output} exists already: remove it or name another folder'
    )
  partial = f'{output}.partial-beam'
  beam_files.remove(partial)
  pieces = [(k, items.start, items.stop) for k, items in enumerate(pieces_of(reader))]
  try:
    with beam.Pipeline(options=settings) as pipeline:
      (
        pipeline
        | 'Pieces' >> beam.Create(pieces)
        | 'Spread' >> beam.Reshuffle()
        | 'Convert'
        >> beam.FlatMap(
          functools.partial(convert_piece, reader=reader, shards=shards, check=check)
        )
        | 'Group' >> beam.GroupByKey()
        | 'Write'
        >> beam.Map(functools.partial(write_group, folder=partial, shards=shards))
        | 'Gather' >> beam.combiners.ToList()
        | 'List'
        >> beam.Map(
          functools.partial(
            write_lists,
            folder=partial,
            said=said,
            fingerprints=check.fingerprints if check else (None,),
          )
        )
      )
  except (
    Exception
  ) as error:  # each runner has errors of its own; Beam has logged where it was
    raise UserError(
      f'--beam={options!r}: the pipeline failed: {_last_line(error)}'
    ) from error
  return _published(partial, output)


def _published(partial: str, output: str) -> dict[str, Any]:
  try:
    manifest = json.loads(beam_files.read(partial, MANIFEST))
    if not manifest['records']:
      beam_files.remove(partial)
    check_useful(manifest)
    beam_files.publish(
      partial,
      output,
      [MANIFEST, REFUSED, *(shard['file'] for shard in manifest['shards'])],
    )
  except OSError as error:
    raise UserError(
      f'{partial}: cannot be read or renamed here ({_last_line(error)}): name a folder of --output that '
      'this machine and all workers see'
    ) from error
  return manifest


def convert_piece(
  piece: tuple[int, int, int], *, reader: Reader, shards: int, check: RunCheck | None
) -> Iterator[tuple[int, Facts]]:
  """What a piece of the input becomes, each with its shard."""
  k, start, stop = piece
  for n, found in enumerate(reader.read(range(start, stop))):
    made = converted(found, check)
    yield shard_of(made.id, shards), (made.id, k, n, tuple(made))


def write_group(
  group: tuple[int, Iterable[Facts]], *, folder: str, shards: int
) -> tuple[Any, ...]:
  """One shard, written here and copied whole to the folder; returns its ShardStats."""
  number, facts = group
  made = [Converted(*values) for *_, values in sorted(facts, key=lambda fact: fact[:3])]
  with tempfile.TemporaryDirectory() as scratch:
    path = pathlib.Path(scratch) / shard_name(number, shards)
    stats = write_shard(path, [(each, each.record) for each in made], iter)
    if stats.records:
      with open(path, 'rb') as file:
        beam_files.write(folder, path.name, file)
  return tuple(stats)


def write_lists(
  stats: list[tuple[Any, ...]], *, folder: str, said: str, fingerprints: tuple[Any, ...]
) -> None:
  """The manifest and the refused, when all shards are there."""
  shards = sorted(
    (ShardStats(*values) for values in stats), key=lambda shard: shard.file
  )
  for name, text in lists_of(manifest_of(shards, said, *fingerprints), shards).items():
    beam_files.write(folder, name, io.BytesIO(text.encode()))


def _library() -> Any:
  try:
    import apache_beam  # only for those who use it: extra [beam]
  except ImportError as error:
    raise UserError(
      "--beam needs the package 'apache_beam', best in an environment of its own (it lowers pyarrow, "
      f"protobuf and pillow): pip install 'omni_jax[beam]' ({error})"
    ) from error
  return apache_beam


def _settings(options: str) -> Any:
  """Beam's PipelineOptions of the text of --beam."""
  from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

  try:
    words = shlex.split(options)
  except ValueError as error:
    raise UserError(f'--beam={options!r}: {error}') from error
  if not any(word.partition('=')[0] == '--runner' for word in words) or not words[
    0
  ].startswith('--'):
    raise UserError(
      f"--beam={options!r}: give Beam's options and among them the runner, such as "
      "--beam='--runner=FlinkRunner --parallelism=8'; --runner=DirectRunner runs here"
    )
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):  # Beam leaves by argparse's way out
      settings = PipelineOptions(words)
      settings.get_all_options()
      settings.view_as(StandardOptions)
  except SystemExit as error:
    raise UserError(f'--beam={options!r}: {_last_line(said.getvalue())}') from error
  return settings


def _last_line(said: object) -> str:
  lines = [line.strip() for line in str(said).splitlines() if line.strip()]
  return lines[-1] if lines else type(said).__name__
