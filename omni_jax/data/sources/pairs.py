"""Builds examples of two columns: one is the prompt, the other the answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from omni_jax.modalities.text.tokenizer import TASKS


def pair_example(
  shown: Sequence[dict[str, Any]],
  answer: dict[str, Any],
  language: str = '',
  voice: str = '',
) -> dict[str, Any]:
  """Returns an example in the chat form, without an id.

  Args:
    shown: parts of the user's message.
    answer: the one part of the assistant's message.
    language: language of the answer; '' to leave it open.
    voice: voice of the answer; '' to leave it open.
  """
  task = TASKS[answer['type']]
  message: dict[str, Any] = {'role': 'assistant', 'task': task}
  if language:
    message['language'] = language
  if voice:
    message['voice'] = voice
  message['content'] = [answer]
  question = {'role': 'user', 'content': list(shown)}
  return {'messages': [question, message]}


def infer_columns(kinds: Mapping[str, str]) -> tuple[str, str]:
  """Returns the names of the only medium column and of the only text column.

  A name is '' if there is no such column, or more than one.

  Args:
    kinds: type of each column, 'text' or a medium, by column name.
  """
  media: list[str] = []
  texts: list[str] = []
  for name, kind in kinds.items():
    names = texts if kind == 'text' else media
    names.append(name)
  medium = media[0] if len(media) == 1 else ''
  text = texts[0] if len(texts) == 1 else ''
  return medium, text
