"""Implements the task 'examples': answers and scores the prompts of held-out examples."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.data.sources.table import check_tokenizers, held_out, labelled_examples
from omni_jax.errors import BadRecord, UserError
from omni_jax.evaluate.limits import Limits, Log, subset
from omni_jax.evaluate.page import gallery
from omni_jax.evaluate.scores import numbers_in
from omni_jax.evaluate.tasks import answers, predictions
from omni_jax.evaluate.tasks.codec_scores import codec_scores
from omni_jax.evaluate.tasks.labelled import Classes, classes_of
from omni_jax.evaluate.tasks.task_result import TaskResult
from omni_jax.generate.api import TrainedModel
from omni_jax.sequence.example import Example, parts_of, StoredExamples


def measure(
  trained: TrainedModel, limits: Limits, *, seed: int, log: Log
) -> TaskResult:
  """Returns the scores on what the run's own data hold out."""
  data = trained.config.data
  check_tokenizers(data, trained.tokenizer, 'eval_file')
  examples: Any = held_out(data, trained.hosts)
  return measure_on(trained, examples, limits, seed=seed, log=log)


def measure_on_file(
  trained: TrainedModel, path: epath.PathLike, limits: Limits, *, seed: int, log: Log
) -> TaskResult:
  """Returns the scores on a file of JSON lines."""
  lines = JsonLines(path, trained.hosts)
  return measure_on(trained, lines, limits, seed=seed, log=log)


def measure_on(
  trained: TrainedModel, source: StoredExamples, limits: Limits, *, seed: int, log: Log
) -> TaskResult:
  """Returns the scores on some examples of each group of a source.

  Judges of labelled media are fitted to the run's training examples.

  Args:
    trained: the restored run.
    source: the examples.
    limits: how many examples are taken.
    seed: seed of the choice of examples, of judges and sampling.
    log: reports progress.

  Raises:
    UserError: if no example can be read.
  """
  audio = trained.model_config.media.get('audio')
  rate = audio.rate if audio else 0  # not used where there is no audio
  chosen = _choose_examples(source, limits.n_data, seed)
  examples, refused = _read_examples(source, chosen)
  if not examples:
    raise UserError(
      f'{source.path}: none of the {len(refused)} examples can be read; the first: '
      f'{refused[0]}'
    )
  unread = f'; {len(refused)} cannot be read: {refused[0]}' if refused else ''
  log(f'evaluate: {len(examples)} examples of {source.path}{unread}')
  classes = _classes(trained, source, rate=rate, seed=seed)
  if classes:
    log(f'evaluate: judge accuracy on real test data: {classes.judges.summary()}')
  answered = answers.answer_all(
    trained, examples, seed=seed, sampling=limits.sampling, log=log
  )
  groups: dict[str, Any] = {}
  for group, items in answered.items():
    scores = answers.answer_metrics(trained, items, rate=rate, classes=classes)
    groups[group] = scores
    log(f'evaluate: {group}: {_in_words(scores)}')
  metrics: dict[str, Any] = {
    'directions': {},
    'data': {
      'file': str(source.path),
      'n': len(examples),
      'bad': len(refused),
      'groups': groups,
      'targets': _targets(trained.config),
    },
    'codec': {},
  }
  if classes:
    metrics['judges'] = classes.judges.real
  clips = classes.media.test_clips if classes else _clips_in(examples)
  if clips:
    metrics['codec'] = codec_scores(
      trained,
      subset(clips, limits.n_codec, seed),
      rate=rate,
      judge=classes.judges.speech if classes else None,
    )
  shown = gallery.data_gallery(answered, rate)
  return TaskResult(metrics, shown, predictions.of_examples(answered))


def _in_words(scores: Mapping[str, Any]) -> str:
  """Returns the scores of a group as a line of text."""
  numbers = numbers_in(scores)
  return ', '.join(f'{name} {value:.4g}' for name, value in numbers.items())


def _choose_examples(source: StoredExamples, n: int, seed: int) -> list[int]:
  """Returns the indices of n examples of each group, or of the whole group."""
  members: dict[str, list[int]] = {}
  for index in range(len(source)):
    group = answers.case_of(source.encoded(index)).group
    members.setdefault(group, []).append(index)
  chosen: list[int] = []
  for indices in members.values():
    chosen += subset(indices, n, seed)
  return sorted(chosen)


def _read_examples(
  source: StoredExamples, indices: Sequence[int]
) -> tuple[list[Example], list[str]]:
  """Returns the examples that can be read, and what is wrong with the others."""
  examples: list[Example] = []
  refused: list[str] = []
  for index in indices:
    try:
      examples.append(source[index])
    except BadRecord as error:
      refused.append(str(error))
  return examples, refused


def _classes(
  trained: TrainedModel, source: StoredExamples, *, rate: int, seed: int
) -> Classes | None:
  """Returns the classes with their judges; None if the training data have no labels."""
  training = labelled_examples(trained.config.data, trained.hosts)
  if training is None:
    return None
  lines: Any = source
  return classes_of(training, lines, rate=rate, seed=seed)


def _targets(config: ConfigDict) -> dict[str, Any]:
  targets = config.get('evaluate', {}).get('targets')
  return targets.to_dict() if targets else {}


def _clips_in(examples: Sequence[Example]) -> list[SimpleNamespace]:
  """Returns the sounds in the examples, as clips without a digit."""
  clips: list[SimpleNamespace] = []
  for example in examples:
    for part in parts_of(example):
      if part['type'] == 'audio':
        clips.append(SimpleNamespace(wave=part['wave']))
  return clips
