"""Scores a model on examples of any kind, grouped by modalities of prompt and answer."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from omni_jax.data.sources.pairs import WORD_OF_MEDIUM
from omni_jax.data.sources.ready.barista import SLOTS
from omni_jax.errors import UserError
from omni_jax.evaluate.limits import Log
from omni_jax.evaluate.metrics import (
  image_metrics,
  slot_metrics,
  speech_metrics,
  text_metrics,
)
from omni_jax.evaluate.metrics.scores import accuracy, share
from omni_jax.evaluate.tasks.labelled import Classes
from omni_jax.evaluate.tasks.scoring import text_of, wave_of
from omni_jax.generate.api import TrainedModel
from omni_jax.modalities.contract import Part
from omni_jax.modalities.text.tokenizer import ANY

# Most examples of a group whose loss is computed: it is a mean, and takes as long as the
# answers.
MAX_LOSS_EXAMPLES = 512
# Scores of texts in a certain form, by the name of the form in `meta.form`.
FORMS = {SLOTS: slot_metrics.slot_scores}

Scores = dict[str, Any]


class Case(NamedTuple):
  """An example, split into its prompt and its answer.

  Attributes:
    example: the example.
    prompt: the example without its last answer; None where nothing is asked.
    answer: the parts of that answer.
    group: the group in the example's meta, or its modalities as in
      'image+text_to_speech', or 'plain' for an example without messages.
  """

  example: Mapping[str, Any]
  prompt: dict[str, Any] | None
  answer: list[Mapping[str, Any]]
  group: str


class AnsweredCase(NamedTuple):
  """A case and the model's reply, which is empty where nothing is asked."""

  case: Case
  reply: list[Part]


class AlignedPart(NamedTuple):
  """A part of an answer, and what the model generated in its place.

  Attributes:
    expected: the part of the answer.
    generated: the generated part, or None where the reply has too few of this type.
    voice: the requested voice, if any.
  """

  expected: Mapping[str, Any]
  generated: Part | None
  voice: str | None


def case_of(example: Mapping[str, Any]) -> Case:
  """Splits an example into a prompt and its answer, the last assistant message."""
  messages = example.get('messages')
  group = _meta(example).get('group')
  if not messages:
    return Case(example, None, [], str(group or 'plain'))
  last = None
  for index, message in enumerate(messages):
    if message['role'] == 'assistant':
      last = index
  if last is None or not messages[last]['content']:
    return Case(example, None, [], 'unanswered')
  before = messages[:last]
  answer = list(messages[last]['content'])
  unanswered = {**messages[last], 'content': []}
  prompt = {**example, 'messages': [*before, unanswered]}
  if not group:
    prompt_parts: list[Mapping[str, Any]] = []
    for message in before:
      prompt_parts += message['content']
    group = f'{_kinds(prompt_parts)}_to_{_kinds(answer)}'
  return Case(example, prompt, answer, str(group))


def _meta(example: Mapping[str, Any]) -> Mapping[str, Any]:
  return example.get('meta') or {}


def _kinds(parts: Sequence[Mapping[str, Any]]) -> str:
  """Returns the modalities of parts, such as 'image+text'."""
  present = {part['type'] for part in parts}
  words = [word for medium, word in WORD_OF_MEDIUM.items() if medium in present]
  return '+'.join(words) or 'nothing'


def expected_text(case: Case) -> str:
  """Returns the texts of the answer, joined by spaces."""
  return ' '.join(part['text'] for part in case.answer if part['type'] == 'text')


def answer_all(
  trained: TrainedModel,
  examples: Sequence[Mapping[str, Any]],
  *,
  seed: int,
  sampling: Mapping[str, float],
  log: Log = print,
) -> dict[str, list[AnsweredCase]]:
  """Returns the replies to all examples by group.

  Raises:
    UserError: if there are no examples.
  """
  groups: dict[str, list[Case]] = {}
  for example in examples:
    case = case_of(example)
    groups.setdefault(case.group, []).append(case)
  answered: dict[str, list[AnsweredCase]] = {}
  for group, cases in sorted(groups.items()):
    answered[group] = _answer_group(trained, cases, seed, sampling)
    log(f'evaluate: {group}, {len(cases)} examples')
  if not answered:
    raise UserError('the file to evaluate on holds no examples')
  return answered


def _answer_group(
  trained: TrainedModel, cases: Sequence[Case], seed: int, sampling: Mapping[str, float]
) -> list[AnsweredCase]:
  """Returns the replies of a group: to its prompts, or empty ones if it has none."""
  prompted = [case for case in cases if case.prompt is not None]
  if not prompted:
    return [AnsweredCase(case, []) for case in cases]
  kinds = _answer_kinds(prompted)
  want = kinds.pop() if len(kinds) == 1 else ANY
  prompts = [case.prompt for case in cases if case.prompt is not None]
  replies = trained.generate_batch(prompts, want=want, seed=seed, **sampling)
  pairs = zip(prompted, replies, strict=True)
  return [AnsweredCase(case, list(reply)) for case, reply in pairs]


def _answer_kinds(cases: Sequence[Case]) -> set[str]:
  """Returns the types of the parts in the answers."""
  kinds: set[str] = set()
  for case in cases:
    kinds.update(part['type'] for part in case.answer)
  return kinds


def answer_metrics(
  trained: TrainedModel,
  answered: Sequence[AnsweredCase],
  *,
  rate: int,
  classes: Classes | None = None,
) -> Scores:
  """Returns the loss of a group, then the scores of each medium of its answers.

  Args:
    trained: the restored run.
    answered: cases and replies of the group.
    rate: samples per second of sounds.
    classes: labelled classes, whose judges score the replies as well.
  """
  examples = [dict(item.case.example) for item in answered[:MAX_LOSS_EXAMPLES]]
  scores: Scores = {'n': len(answered), 'loss': trained.loss(examples)}
  kinds = _answer_kinds([item.case for item in answered])
  if 'text' in kinds:
    scores |= _text_scores(answered)
  if 'audio' in kinds:
    scores |= _speech_scores(answered, rate)
  if 'image' in kinds:
    scores |= _image_scores(answered)
  if classes is not None:
    scores |= _judged_images(answered, classes)
    scores |= _judged_speech(answered, classes, rate)
  return scores


def _aligned(answered: Sequence[AnsweredCase], kind: str) -> list[AlignedPart]:
  """Returns the parts of a type in all answers, beside the generated ones."""
  aligned: list[AlignedPart] = []
  for item in answered:
    generated = iter([part for part in item.reply if part.type == kind])
    for part in item.case.answer:
      if part['type'] == kind:
        prompt = item.case.prompt or {'messages': [{}]}
        voice = prompt['messages'][-1].get('voice')
        aligned.append(AlignedPart(part, next(generated, None), voice))
  return aligned


def _labelled(
  answered: Sequence[AnsweredCase], kind: str, classes: Classes
) -> tuple[list[AlignedPart], list[int]]:
  """Returns the parts of a type that show a class, and the numbers of their classes."""
  labelled: list[AlignedPart] = []
  numbers: list[int] = []
  for pair in _aligned(answered, kind):
    label = pair.expected.get('label')
    if label in classes.names:
      labelled.append(pair)
      numbers.append(classes.names.index(label))
  return labelled, numbers


def _judged_images(answered: Sequence[AnsweredCase], classes: Classes) -> Scores:
  labelled, numbers = _labelled(answered, 'image', classes)
  if not labelled:
    return {}
  # A missing image has a shape that the judge does not know: it is recognised as none.
  missing = np.zeros((0, 0, 0))
  drawn: list[np.ndarray] = []
  for pair in labelled:
    image = missing if pair.generated is None else np.nan_to_num(pair.generated.pixels)
    drawn.append(image)
  labels = np.array(numbers)
  right = np.equal(classes.judges.image(drawn), labels)
  right_images = [drawn[k] for k in np.flatnonzero(right)]
  images = np.stack(right_images) if right_images else missing[None][:0]
  media = classes.media
  scores = accuracy(right.tolist())
  return {
    'image_accuracy': scores['accuracy'],
    'image_interval': scores['interval'],
    'image_judge_accuracy_real': classes.judges.real['image'],
    'diversity': image_metrics.spread(
      images, labels[right], real=media.test_images, real_labels=media.test_labels
    ),
    'copying_ratio': image_metrics.copying_ratio(
      images, train=media.train_images, real=media.test_images
    ),
  }


def _judged_speech(
  answered: Sequence[AnsweredCase], classes: Classes, rate: int
) -> Scores:
  labelled, numbers = _labelled(answered, 'audio', classes)
  if not labelled:
    return {}
  silence = np.zeros(rate // 10, np.float32)
  waves: list[np.ndarray] = []
  for pair in labelled:
    part = pair.generated
    waves.append(silence if part is None else wave_of(part, rate))
  heard = classes.judges.speech(waves)
  right: list[bool] = []
  voices: list[bool] = []
  for k, pair in enumerate(labelled):
    is_present = pair.generated is not None
    right.append(is_present and heard.digit[k] == numbers[k])
    if pair.voice:
      voices.append(is_present and heard.voice[k] == pair.voice)
  scores = accuracy(right)
  judged: Scores = {
    'speech_accuracy': scores['accuracy'],
    'speech_interval': scores['interval'],
    'speech_judge_accuracy_real': classes.judges.real['digit'],
  }
  if voices:
    judged['voice_accuracy'] = share(voices)
    judged['voice_judge_accuracy_real'] = classes.judges.real['voice']
  return judged


def _text_scores(answered: Sequence[AnsweredCase]) -> Scores:
  """Returns the scores of texts; a reply without text counts as an empty one."""
  expected = [expected_text(item.case) for item in answered]
  written = [text_of(item.reply) for item in answered]
  right = accuracy(text_metrics.exact_match(expected, written))
  scores: Scores = {
    'exact_match': right['accuracy'],
    'exact_match_interval': right['interval'],
    'cer': text_metrics.cer(expected, written),
    'wer': text_metrics.wer(expected, written),
  }
  forms = {_meta(item.case.example).get('form') for item in answered}
  form = forms.pop()
  if not forms and form in FORMS:  # all texts have this form
    scores |= FORMS[form](expected, written)
  return scores


def _speech_scores(answered: Sequence[AnsweredCase], rate: int) -> Scores:
  aligned = _aligned(answered, 'audio')
  present = 0
  distances: list[float] = []
  length_ratios: list[float] = []
  for pair in aligned:
    part = pair.generated
    if part is None or not len(part.wave):
      continue
    present += 1
    reference = pair.expected['wave']
    wave = np.nan_to_num(wave_of(part, rate))
    distance = speech_metrics.warped_mel_distance(reference, wave, rate=rate)
    distances.append(distance)
    if len(reference):
      length_ratios.append(len(wave) / len(reference))
  return {
    'speech_present': present / len(aligned),
    'mel_distance': _mean(distances),
    'length_ratio': _mean(length_ratios),
  }


def _image_scores(answered: Sequence[AnsweredCase]) -> Scores:
  aligned = _aligned(answered, 'image')
  present = 0
  errors: list[float] = []
  for pair in aligned:
    part = pair.generated
    if part is None:
      continue
    present += 1
    reference = pair.expected['pixels']
    if reference.shape == part.pixels.shape:
      squared = np.square(reference - part.pixels)
      errors.append(float(np.sqrt(np.mean(squared))))
  return {'image_present': present / len(aligned), 'image_rmse': _mean(errors)}


def _mean(values: Sequence[float]) -> float | None:
  return float(np.mean(values)) if values else None
