"""Turns what a user gives as prompt into the chat form, ending with an empty answer."""

from typing import Any

from omni_jax.errors import UserError
from omni_jax.modalities.text.tokenizer import TASKS
from omni_jax.sequence.example import Example, Part, text_part

Content = str | list[Part] | Example


def chat(content: Content, want: str, **control: str) -> Example:
  """Returns a chat whose last message is an empty one of the assistant.

  Args:
    content: text, a list of parts, or an example.
    want: what the answer is to hold; it determines the task.
    control: language and voice of the answer, where the prompt does not set them.

  Raises:
    UserError: if the prompt is empty.
  """
  answer: dict[str, Any] = {'role': 'assistant'}
  if want in TASKS:
    answer['task'] = TASKS[want]
  answer['content'] = []
  for key, value in control.items():
    if value:
      answer[key] = value
  if isinstance(content, str):
    content = [text_part(content)]
  if isinstance(content, list):
    if not content:
      raise UserError('the prompt is empty; give text or a file to read')
    return {'messages': [{'role': 'user', 'content': content}, answer]}
  messages = list(content.get('messages') or ())
  if not messages:
    messages = [{'role': 'user', 'content': content.get('content')}]
  last = messages[-1]
  is_empty = not any(part.get('text', True) for part in last['content'])
  if last['role'] == 'assistant' and is_empty:
    messages[-1] = {**answer, **last, 'content': []}
  else:
    messages.append(answer)
  return {'messages': messages}
