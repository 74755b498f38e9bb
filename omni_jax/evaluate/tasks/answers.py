"""Scores a model on a JSON-lines file of unknown kind, grouped by what goes in and what comes out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from omni_jax.errors import UserError
from omni_jax.evaluate.metrics import (
  image_metrics,
  slot_metrics,
  speech_metrics,
  text_metrics,
)
from omni_jax.evaluate.metrics.scores import accuracy, share
from omni_jax.evaluate.tasks.labelled import Classes
from omni_jax.evaluate.tasks.scoring import wave_of

MOST_LOSSES = 512  # examples of a group whose loss is computed: it is a mean, and takes as long as the answers
FORMS = {
  'slots': slot_metrics.slot_scores
}  # what `meta.form` says of the texts -> scores of their own
NAME = {'text': 'text', 'image': 'image', 'audio': 'speech'}


class Case(NamedTuple):
  """One example, taken apart."""

  example: Mapping[str, Any]
  prompt: (
    dict[str, Any] | None
  )  # the example without its last answer; None where nothing is asked
  answer: list[Mapping[str, Any]]  # the parts of that answer
  group: str  # what the example's meta says, or 'image+text_to_speech', 'plain' for examples without messages


class Answered(NamedTuple):
  case: Case
  reply: list[Any]


def case_of(example: Mapping[str, Any]) -> Case:
  """The last assistant message is the answer; all before it is the prompt."""
  messages, group = example.get('messages'), (example.get('meta') or {}).get('group')
  if not messages:
    return Case(example, None, [], str(group or 'plain'))
  last = max(
    (k for k, message in enumerate(messages) if message['role'] == 'assistant'),
    default=None,
  )
  if last is None or not messages[last]['content']:
    return Case(example, None, [], 'unanswered')
  answer = list(messages[last]['content'])
  prompt = {
    **example,
    'messages': [*messages[:last], {**messages[last], 'content': []}],
  }
  shown = [part for message in messages[:last] for part in message['content']]
  return Case(
    example, prompt, answer, str(group or f'{_kinds(shown)}_to_{_kinds(answer)}')
  )


def _kinds(parts: Sequence[Mapping[str, Any]]) -> str:
  present = {part['type'] for part in parts}
  return '+'.join(NAME[kind] for kind in NAME if kind in present) or 'nothing'


def answer_all(
  trained: Any,
  examples: Sequence[Mapping[str, Any]],
  *,
  seed: int,
  sampling: Mapping[str, Any],
  log: Callable[[str], None] = print,
) -> dict[str, list[Answered]]:
  """Replies of every group; an empty reply where nothing is asked."""
  groups: dict[str, list[Case]] = {}
  for example in examples:
    case = case_of(example)
    groups.setdefault(case.group, []).append(case)
  answered = {}
  for group, cases in sorted(groups.items()):
    asked = [case for case in cases if case.prompt is not None]
    kinds = {part['type'] for case in asked for part in case.answer}
    want = kinds.pop() if len(kinds) == 1 else 'any'
    replies = (
      trained.generate_batch(
        [case.prompt for case in asked], want=want, seed=seed, **sampling
      )
      if asked
      else [[] for _ in cases]
    )
    answered[group] = [
      Answered(case, list(reply))
      for case, reply in zip(asked or cases, replies, strict=True)
    ]
    log(f'evaluate: {group}, {len(cases)} examples')
  if not answered:
    raise UserError('the file to evaluate on holds no examples')
  return answered


def answer_metrics(
  trained: Any,
  answered: Sequence[Answered],
  *,
  rate: int,
  classes: Classes | None = None,
) -> dict:
  """Loss, then the scores of each medium that the answers hold; with `classes` also what judges took them for."""
  scores: dict[str, Any] = {
    'n': len(answered),
    'loss': trained.loss([item.case.example for item in answered[:MOST_LOSSES]]),
  }
  if any(part['type'] == 'text' for item in answered for part in item.case.answer):
    scores |= _text_scores(answered)
  if any(part['type'] == 'audio' for item in answered for part in item.case.answer):
    scores |= _speech_scores(answered, rate)
  if any(part['type'] == 'image' for item in answered for part in item.case.answer):
    scores |= _image_scores(answered)
  if classes is not None:
    scores |= _judged_images(answered, classes) | _judged_speech(
      answered, classes, rate
    )
  return scores


def _labelled(
  answered: Sequence[Answered], kind: str, classes: Classes
) -> list[tuple[int, Any, Any]]:
  """(class asked, the generated part or None, voice asked or None) of every labelled part of a kind."""
  found = []
  for item in answered:
    made = iter([part for part in item.reply if part.type == kind])
    for part in item.case.answer:
      if part['type'] == kind:
        generated = next(made, None)
        if part.get('label') in classes.names:
          found.append(
            (
              classes.names.index(part['label']),
              generated,
              item.case.prompt['messages'][-1].get('voice'),
            )
          )
  return found


def _judged_images(answered: Sequence[Answered], classes: Classes) -> dict:
  asked = _labelled(answered, 'image', classes)
  if not asked:
    return {}
  empty = np.zeros((0, 0, 0))  # of no shape that the judge knows: taken for nothing
  drawn = [
    empty if part is None else np.nan_to_num(part.pixels) for _, part, _ in asked
  ]
  labels = np.array([label for label, _, _ in asked])
  right = np.equal(classes.judges.image(drawn), labels)
  scores = accuracy(right.tolist())
  media = classes.media
  images = (
    np.stack([image for image, ok in zip(drawn, right, strict=True) if ok])
    if right.any()
    else empty[None][:0]
  )
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


def _judged_speech(answered: Sequence[Answered], classes: Classes, rate: int) -> dict:
  asked = _labelled(answered, 'audio', classes)
  if not asked:
    return {}
  waves = [
    np.zeros(rate // 10, np.float32) if part is None else wave_of(part, rate)
    for _, part, _ in asked
  ]
  heard = classes.judges.speech(waves)
  right = [
    part is not None and judged == label
    for judged, (label, part, _) in zip(heard.digit, asked, strict=True)
  ]
  scores = accuracy(right)
  found = {
    'speech_accuracy': scores['accuracy'],
    'speech_interval': scores['interval'],
    'speech_judge_accuracy_real': classes.judges.real['digit'],
  }
  voices = [
    part is not None and judged == voice
    for judged, (_, part, voice) in zip(heard.voice, asked, strict=True)
    if voice
  ]
  if voices:
    found |= {
      'voice_accuracy': share(voices),
      'voice_judge_accuracy_real': classes.judges.real['voice'],
    }
  return found


def _text_scores(answered: Sequence[Answered]) -> dict:
  """Texts of a reply are joined by spaces; a reply without text counts as an empty one."""
  expected = [
    ' '.join(part['text'] for part in item.case.answer if part['type'] == 'text')
    for item in answered
  ]
  written = [
    ' '.join(part.text for part in item.reply if part.type == 'text')
    for item in answered
  ]
  right = accuracy(text_metrics.exact_match(expected, written))
  forms = {(item.case.example.get('meta') or {}).get('form') for item in answered}
  own = FORMS.get(forms.pop(), _no_scores) if len(forms) == 1 else _no_scores
  return {
    'exact_match': right['accuracy'],
    'exact_match_interval': right['interval'],
    'cer': text_metrics.cer(expected, written),
    'wer': text_metrics.wer(expected, written),
    **own(expected, written),
  }


def _no_scores(expected: Sequence[str], written: Sequence[str]) -> dict:
  return {}


def _pairs(
  answered: Sequence[Answered], kind: str
) -> tuple[list[tuple[Any, Any]], int]:
  """Expected and generated parts of a type side by side, and how many were expected."""
  pairs, expected = [], 0
  for item in answered:
    wanted = [part for part in item.case.answer if part['type'] == kind]
    expected += len(wanted)
    pairs += zip(
      wanted, [part for part in item.reply if part.type == kind], strict=False
    )
  return pairs, expected


def _speech_scores(answered: Sequence[Answered], rate: int) -> dict:
  pairs, expected = _pairs(answered, 'audio')
  pairs = [
    (a['wave'], np.nan_to_num(wave_of(b, rate))) for a, b in pairs if len(b.wave)
  ]
  return {
    'speech_present': len(pairs) / expected,
    'mel_distance': _mean(
      [speech_metrics.warped_mel_distance(a, b, rate=rate) for a, b in pairs]
    ),
    'length_ratio': _mean([len(b) / len(a) for a, b in pairs if len(a)]),
  }


def _image_scores(answered: Sequence[Answered]) -> dict:
  pairs, expected = _pairs(answered, 'image')
  same = [
    (a['pixels'], b.pixels) for a, b in pairs if a['pixels'].shape == b.pixels.shape
  ]
  return {
    'image_present': len(pairs) / expected,
    'image_rmse': _mean([float(np.sqrt(np.mean(np.square(a - b)))) for a, b in same]),
  }


def _mean(values: Sequence[float]) -> float | None:
  return float(np.mean(values)) if values else None
