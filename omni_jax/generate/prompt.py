"""What a user gives as prompt -> the chat form with an empty last message of the assistant."""

from typing import Any

from omni_jax.errors import UserError
from omni_jax.modalities.hosts import TEXT
from omni_jax.modalities.text.tokenizer import TASKS
from omni_jax.sequence.example import Example


def chat(content: Any, want: str, **control: str) -> Example:
  """Returns an example that ends where the assistant is to begin.

  Args:
    content: text, a list of parts, or an example.
    want: what the answer is to hold; it decides on the task.
    control: language and voice of the answer, where the prompt does not already say so.
  """
  task = {'task': TASKS[want]} if want in TASKS else {}
  given = {key: value for key, value in control.items() if value}
  answer = {'role': 'assistant', **task, 'content': [], **given}
  if isinstance(content, str):
    content = [{'type': TEXT, 'text': content}]
  if isinstance(content, list):
    if not content:
      raise UserError('the prompt is empty; give text or a file to read')
    return {'messages': [{'role': 'user', 'content': content}, answer]}
  plain = [{'role': 'user', 'content': content.get('content')}]
  messages = list(content.get('messages') or plain)
  last = messages[-1]
  unanswered = not any(part.get('text', True) for part in last['content'])
  if last['role'] == 'assistant' and unanswered:
    messages[-1] = answer | last | {'content': []}
  else:
    messages.append(answer)
  return {'messages': messages}
