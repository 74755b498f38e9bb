"""Reads Parquet files as the Hugging Face hub writes them."""

from collections.abc import Iterator, Mapping, Sequence
import functools
import json
import os
from typing import Any, NamedTuple

from omni_jax.convert.formats.reader import InputExample, raising
from omni_jax.data.sources.pairs import infer_columns, pair_example
from omni_jax.errors import BadRecord, one_line, UserError
from omni_jax.retry import is_transient, with_retries
from omni_jax.sequence.example import Example, Part, text_part

DAMAGE = (OSError, ValueError)  # base classes of pyarrow's own errors


class Column(NamedTuple):
  """A column that can be used.

  Attributes:
    kind: 'text', 'image' or 'audio'.
    class_names: names of the classes where the column holds class numbers, else empty.
  """

  name: str
  kind: str
  class_names: tuple[str, ...] = ()


class ParquetReader:
  """Reads one item per row group of a file.

  The user shows the column `read`, the assistant answers with the column `write`. Media
  are structs with a field `bytes`, as the `datasets` library stores images and sounds,
  or binary columns.
  """

  chunk = 1

  def __init__(
    self, paths: Sequence[str], *, read: str = '', write: str = '', language: str = ''
  ):
    self.files = tuple(paths)
    self._language = language
    self._groups: list[tuple[str, int]] = []
    parquet = _library()
    schemas = []
    for path in paths:
      file = _open_file(parquet, path)
      schemas.append(file.schema_arrow)
      for group in range(file.num_row_groups):
        self._groups.append((path, group))
    columns = _columns(schemas[0])
    self._read, self._write = _read_and_write(columns, read, write, paths[0])

  def __len__(self) -> int:
    return len(self._groups)

  def read(self, items: range) -> Iterator[InputExample]:
    parquet = _library()
    for path, group in self._groups[items.start : items.stop]:
      base = os.path.basename(path).removesuffix('.parquet')
      read_rows = functools.partial(self._rows, parquet, path, group)
      try:
        rows = with_retries(read_rows, path, retryable=_is_transient)
      except DAMAGE as error:
        bad = BadRecord(f'row group cannot be read ({one_line(error)})')
        yield InputExample(f'{base}/{group}', raising(bad))
        continue
      for number, row in enumerate(rows):
        make = functools.partial(self._example, row)
        yield InputExample(f'{base}/{group}/{number}', make)

  def _rows(self, parquet: Any, path: str, group: int) -> list[dict[str, Any]]:
    names = [self._read.name, self._write.name]
    with parquet.ParquetFile(path) as file:
      return file.read_row_group(group, columns=names).to_pylist()

  def _example(self, row: Mapping[str, Any]) -> Example:
    question = _part(self._read, row)
    answer = _part(self._write, row)
    return pair_example([question], answer, self._language)


def _open_file(parquet: Any, path: str) -> Any:
  """Returns the `pyarrow.parquet.ParquetFile` of a path."""
  try:
    return with_retries(
      functools.partial(parquet.ParquetFile, path), path, retryable=_is_transient
    )
  except DAMAGE as error:
    raise UserError(f'{path} cannot be read as Parquet ({one_line(error)})') from error


def _is_transient(error: Exception) -> bool:
  """Returns whether another attempt may succeed.

  pyarrow reports damage as an OSError, too, but without an `errno`.
  """
  return is_transient(error) and getattr(error, 'errno', None) is not None


def _library() -> Any:
  try:
    import pyarrow.parquet  # an optional dependency: extra [parquet]
  except ImportError as error:
    raise UserError(
      "Parquet files need the package 'pyarrow': pip install 'omni_jax[parquet]'"
    ) from error
  return pyarrow.parquet


def _columns(schema: Any) -> dict[str, Column]:
  """Returns the columns of a `pyarrow.Schema` that can be used, by name.

  `datasets` notes in the metadata which columns hold class numbers, images or sounds.
  """
  metadata = schema.metadata or {}
  notes = json.loads(metadata.get(b'huggingface', b'{}'))
  features = notes.get('info', {}).get('features', {})
  columns = {}
  for field in schema:
    feature = features.get(field.name)
    if not isinstance(feature, dict):
      feature = {}
    column = _column(field, feature)
    if column is not None:
      columns[field.name] = column
  return columns


def _column(field: Any, feature: Mapping[str, Any]) -> Column | None:
  """Returns the column of a `pyarrow.Field`, or None if it cannot be used.

  Args:
    feature: the note of `datasets` about the column; empty where there is none.
  """
  from pyarrow import types

  kind = str(feature.get('_type', ''))
  if types.is_string(field.type) or types.is_large_string(field.type):
    return Column(field.name, 'text')
  if types.is_integer(field.type) and kind == 'ClassLabel':
    return Column(field.name, 'text', tuple(feature['names']))
  has_bytes = types.is_struct(field.type) and field.type.get_field_index('bytes') >= 0
  if not has_bytes and not types.is_binary(field.type):
    return None
  named_audio = not kind and 'audio' in field.name
  is_audio = kind == 'Audio' or named_audio
  return Column(field.name, 'audio' if is_audio else 'image')


def _read_and_write(
  columns: Mapping[str, Column], read: str, write: str, path: str
) -> tuple[Column, Column]:
  """Returns the columns of the prompt and of the answer."""
  kinds = {name: column.kind for name, column in columns.items()}
  medium, text = infer_columns(kinds)
  read = read or medium
  write = write or text
  if read not in columns or write not in columns:
    known = ', '.join(f'{name} ({kind})' for name, kind in kinds.items())
    raise UserError(
      f'{path} has {known or "no column that can be used"}: name the prompt by --read '
      f'and the answer by --write (now {read!r} and {write!r})'
    )
  return columns[read], columns[write]


def _part(column: Column, row: Mapping[str, Any]) -> Part:
  """Returns the value of a column as a part of an example."""
  value = row[column.name]
  if column.kind == 'text':
    return text_part(_text(column, value))
  data = value.get('bytes') if isinstance(value, dict) else value
  if not isinstance(data, bytes):
    raise BadRecord(f'column {column.name!r} holds no bytes of a medium')
  return {'type': column.kind, 'data': data}


def _text(column: Column, value: Any) -> str:
  """Returns a text, or the name of a class for its number."""
  names = column.class_names
  if names and isinstance(value, int) and 0 <= value < len(names):
    value = names[value]
  if not isinstance(value, str):
    raise BadRecord(f'column {column.name!r} holds {value!r}, not a text')
  return value
