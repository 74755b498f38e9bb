"""Reads a SeqIO task or mixture.

SeqIO imports TensorFlow, so it is imported only when such an input is requested.
"""

from collections.abc import Iterator, Mapping
import functools
from typing import Any

from omni_jax.convert.formats.reader import captioned, DEFAULT_SPLIT, InputExample
from omni_jax.errors import BadRecord, UserError
from omni_jax.sequence.example import Example, text_part


class SeqioReader:
  """Reads a whole split as one item, in the task's order: SeqIO has no random access.

  The user shows the `inputs` of a task and the assistant answers with its `targets`,
  both as text: SeqIO's `*_pretokenized` features where they are kept, else decoded by
  the vocabulary of the task. A task without inputs gives plain examples.

  Args:
    name: TASK or TASK/SPLIT; the split is `train` by default.
    module: the module that registers the task, imported first.
    language: language of the answers.
  """

  chunk = 1

  def __init__(self, name: str, *, module: str = '', language: str = ''):
    self.files = ()
    self._name, _, split = name.partition('/')
    self._split = split or DEFAULT_SPLIT
    self._module = module
    self._language = language
    self._task()

  def __len__(self) -> int:
    return 1

  def _task(self) -> Any:
    """Returns the `seqio.Task` or `seqio.Mixture`."""
    try:
      import seqio

      if self._module:
        import importlib

        importlib.import_module(self._module)
    except ImportError as error:
      raise UserError(
        f'a SeqIO task needs the package {error.name!r}: '
        "pip install 'omni_jax[tf]', or name the module that registers the task by "
        '--module'
      ) from error
    try:
      task = seqio.get_mixture_or_task(self._name)
    except ValueError as error:
      raise UserError(
        f'SeqIO has no task or mixture {self._name!r}: name the module that registers '
        'it by --module'
      ) from error
    if self._split not in task.splits:
      known = ', '.join(sorted(task.splits))
      raise UserError(f'{self._name}: no split {self._split!r}; there are {known}')
    return task

  def read(self, items: range) -> Iterator[InputExample]:
    if not items:
      return
    task = self._task()
    dataset = task.get_dataset(sequence_length=None, split=self._split, shuffle=False)
    for number, row in enumerate(dataset.as_numpy_iterator()):
      make = functools.partial(self._example, task, row)
      yield InputExample(f'{self._name}/{self._split}:{number}', make)

  def _example(self, task: Any, row: Mapping[str, Any]) -> Example:
    prompt = _text(task, row, 'inputs')
    answer = _text(task, row, 'targets')
    if answer is None:
      raise BadRecord(f'has no targets, but {", ".join(sorted(row))}')
    if not prompt:
      return {'content': [text_part(answer)]}
    return captioned([text_part(prompt)], answer, self._language)


def _text(task: Any, row: Mapping[str, Any], name: str) -> str | None:
  """Returns a feature of a row as text, or None if the row does not have it."""
  pretokenized = row.get(f'{name}_pretokenized')
  if isinstance(pretokenized, bytes):
    return pretokenized.decode()
  if name not in row:
    return None
  value = row[name]
  if isinstance(value, bytes):
    return value.decode()
  return task.output_features[name].vocabulary.decode(value.tolist())
