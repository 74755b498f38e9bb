"""Builds examples from two columns: one is the question, the other the answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from omni_jax.modalities.text.tokenizer import TASKS

# Names of the media in directions and groups, such as 'image_to_speech'.
WORD_OF_MEDIUM = {'text': 'text', 'image': 'image', 'audio': 'speech'}


def pair_example(
  question_parts: Sequence[dict[str, Any]],
  answer: dict[str, Any],
  language: str = '',
  voice: str = '',
) -> dict[str, Any]:
  """Returns an example in the chat form, without an id.

  Args:
    question_parts: parts of the user's message.
    answer: the only part of the assistant's message.
    language: language of the answer; '' to leave it open.
    voice: voice of the answer; '' to leave it open.
  """
  task = TASKS[answer['type']]
  question = {'role': 'user', 'content': list(question_parts)}
  reply: dict[str, Any] = {'role': 'assistant', 'task': task}
  if language:
    reply['language'] = language
  if voice:
    reply['voice'] = voice
  reply['content'] = [answer]
  return {'messages': [question, reply]}


def infer_columns(kinds: Mapping[str, str]) -> tuple[str, str]:
  """Returns the names of the only medium column and of the only text column.

  A name is '' if there is no such column, or more than one.

  Args:
    kinds: type of each column, 'text' or a medium, by column name.
  """
  media: list[str] = []
  texts: list[str] = []
  for name, kind in kinds.items():
    if kind == 'text':
      texts.append(name)
    else:
      media.append(name)
  medium = media[0] if len(media) == 1 else ''
  text = texts[0] if len(texts) == 1 else ''
  return medium, text
