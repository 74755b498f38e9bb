"""Parquet files as the Hugging Face hub writes them, as an input of a conversion."""

from collections.abc import Iterator, Mapping, Sequence
import json
import os
from typing import Any, NamedTuple

from omni_jax.convert.formats.reader import Example, Found, refused
from omni_jax.data.sources.pairs import only_medium_and_text, pair
from omni_jax.errors import BadRecord, UserError
from omni_jax.retry import may_pass, patiently


class Column(NamedTuple):
  name: str
  kind: str  # 'text', 'image', 'audio'
  names: tuple[str, ...] = ()  # of classes, where the column holds their numbers


class ParquetReader:
  """One item a row group of a file. The user shows column `read`, the assistant answers with column `write`.

  Media are structs with `bytes`, as the `datasets` library stores images and sounds, or binary columns.
  """

  chunk = 1

  def __init__(
    self, paths: Sequence[str], *, read: str = '', write: str = '', language: str = ''
  ):
    self.files, self._language = tuple(paths), language
    parquet = _library()
    try:
      files = [
        patiently(lambda path=path: parquet.ParquetFile(path), path, passes=_may_pass)
        for path in paths
      ]
    except (OSError, ValueError) as error:  # pyarrow's own errors are kinds of these
      raise UserError(
        f'{paths[0]}: cannot be read as Parquet ({" ".join(str(error).split())})'
      ) from error
    self._groups = [
      (path, group)
      for path, file in zip(paths, files, strict=True)
      for group in range(file.num_row_groups)
    ]
    self._read, self._write = _chosen(
      _columns(files[0].schema_arrow), read, write, paths[0]
    )

  def __len__(self) -> int:
    return len(self._groups)

  def read(self, items: range) -> Iterator[Found]:
    parquet = _library()
    for path, group in self._groups[items.start : items.stop]:
      base = os.path.basename(path).removesuffix('.parquet')
      try:
        rows = patiently(
          lambda path=path, group=group: self._rows(parquet, path, group),
          path,
          passes=_may_pass,
        )
      except (OSError, ValueError) as error:  # pyarrow's own errors are kinds of these
        yield Found(
          f'{base}/{group}',
          refused(
            BadRecord(f'row group cannot be read ({" ".join(str(error).split())})')
          ),
        )
        continue
      for number, row in enumerate(rows):
        yield Found(f'{base}/{group}/{number}', lambda row=row: self._example(row))

  def _rows(self, parquet: Any, path: str, group: int) -> list[dict[str, Any]]:
    with parquet.ParquetFile(path) as file:
      return file.read_row_group(
        group, columns=[self._read.name, self._write.name]
      ).to_pylist()

  def _example(self, row: Mapping[str, Any]) -> Example:
    return pair([_part(self._read, row)], _part(self._write, row), self._language)


def _may_pass(error: Exception) -> bool:
  """pyarrow calls damage an OSError, too, but one without a number."""
  return may_pass(error) and error.errno is not None


def _library() -> Any:
  try:
    import pyarrow.parquet  # only for those who read it: extra [parquet]
  except ImportError as error:
    raise UserError(
      "Parquet files need the package 'pyarrow': pip install 'omni_jax[parquet]'"
    ) from error
  return pyarrow.parquet


def _columns(schema: Any) -> dict[str, Column]:
  """What can be used: by the column's type, and for numbers of classes by the note that `datasets` leaves."""
  import pyarrow

  notes = (
    json.loads((schema.metadata or {}).get(b'huggingface', b'{}'))
    .get('info', {})
    .get('features', {})
  )
  found = {}
  for field in schema:
    note = notes.get(field.name) or {}
    kind = str(note.get('_type', '')) if isinstance(note, dict) else ''
    if pyarrow.types.is_string(field.type) or pyarrow.types.is_large_string(field.type):
      found[field.name] = Column(field.name, 'text')
    elif pyarrow.types.is_integer(field.type) and kind == 'ClassLabel':
      found[field.name] = Column(field.name, 'text', tuple(note['names']))
    elif pyarrow.types.is_binary(field.type) or (
      pyarrow.types.is_struct(field.type) and field.type.get_field_index('bytes') >= 0
    ):
      known = (
        'audio' if kind == 'Audio' or (not kind and 'audio' in field.name) else 'image'
      )
      found[field.name] = Column(field.name, known)
  return found


def _chosen(
  columns: Mapping[str, Column], read: str, write: str, path: str
) -> tuple[Column, Column]:
  medium, text = only_medium_and_text(
    {name: column.kind for name, column in columns.items()}
  )
  read, write = read or medium, write or text
  if read not in columns or write not in columns:
    known = (
      ', '.join(f'{column.name} ({column.kind})' for column in columns.values())
      or 'nothing that can be used'
    )
    raise UserError(
      f'{path} has {known}: name the prompt by --read, the answer by --write (now {read!r}, {write!r})'
    )
  return columns[read], columns[write]


def _part(column: Column, row: Mapping[str, Any]) -> Example:
  value = row[column.name]
  if column.kind == 'text':
    if column.names and isinstance(value, int) and 0 <= value < len(column.names):
      value = column.names[value]
    if not isinstance(value, str):
      raise BadRecord(f'column {column.name!r} holds {value!r}, not a text')
    return {'type': 'text', 'text': value}
  data = value.get('bytes') if isinstance(value, dict) else value
  if not isinstance(data, bytes):
    raise BadRecord(f'column {column.name!r} holds no bytes of a medium')
  return {'type': column.kind, 'data': data}
