"""A SeqIO task or mixture, as an input of a conversion. Importing SeqIO imports TensorFlow: only when asked for."""

from collections.abc import Iterator, Mapping
from typing import Any

from omni_jax.convert.formats.reader import captioned, Example, Found
from omni_jax.errors import BadRecord, UserError


class SeqioReader:
  """One item: the whole split, in the task's own order (SeqIO has no random access).

  A task's `inputs` are shown, its `targets` answered, both as text: SeqIO's `*_pretokenized` where they are kept, else
  decoded by the task's vocabulary. A task without inputs gives plain examples.
  """

  chunk = 1

  def __init__(self, name: str, *, module: str = '', language: str = ''):
    """`name` is TASK/SPLIT; `module` is imported first: the one that registers the task."""
    self.files = ()
    self._name, _, split = name.partition('/')
    self._split, self._module, self._language = split or 'train', module, language
    self._task()

  def __len__(self) -> int:
    return 1

  def _task(self) -> Any:
    try:
      import seqio

      if self._module:
        import importlib

        importlib.import_module(self._module)
    except ImportError as error:
      raise UserError(
        f"a SeqIO task needs the package {error.name!r}: pip install 'omni_jax[tf]', or --module=… names "
        'what registers the task'
      ) from error
    try:
      task = seqio.get_mixture_or_task(self._name)
    except ValueError as error:
      raise UserError(
        f'SeqIO knows no task or mixture {self._name!r}: name the module that registers it by '
        '--module'
      ) from error
    if self._split not in task.splits:
      raise UserError(
        f'{self._name}: no split {self._split!r}; there are {", ".join(sorted(task.splits))}'
      )
    return task

  def read(self, items: range) -> Iterator[Found]:
    if not items:
      return
    task = self._task()
    rows = task.get_dataset(
      sequence_length=None, split=self._split, shuffle=False
    ).as_numpy_iterator()
    for number, row in enumerate(rows):
      yield Found(
        f'{self._name}/{self._split}:{number}', lambda row=row: self._example(task, row)
      )

  def _example(self, task: Any, row: Mapping[str, Any]) -> Example:
    shown, answered = (_text(task, row, name) for name in ('inputs', 'targets'))
    if answered is None:
      raise BadRecord(f'has no targets, but {", ".join(sorted(row))}')
    part = {'type': 'text', 'text': answered}
    return (
      {'content': [part]}
      if not shown
      else captioned([{'type': 'text', 'text': shown}], answered, self._language)
    )


def _text(task: Any, row: Mapping[str, Any], name: str) -> str | None:
  if isinstance(row.get(f'{name}_pretokenized'), bytes):
    return row[f'{name}_pretokenized'].decode()
  if name not in row:
    return None
  value = row[name]
  return (
    value.decode()
    if isinstance(value, bytes)
    else task.output_features[name].vocabulary.decode(value.tolist())
  )
