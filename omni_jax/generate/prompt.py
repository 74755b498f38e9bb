"""What a user gives as prompt -> the chat form with an empty last message of the assistant."""

from typing import Any

from omni_jax.errors import UserError
from omni_jax.generate.grammar import WANTS
from omni_jax.sequence.example import Example

TASK = {'text': 'write', 'image': 'draw', 'audio': 'speak', 'any': 'reply'}


def chat(content: Any, want: str, **control: str) -> Example:
  """Text, a list of parts, or an example -> an example that ends where the assistant is to begin.

  Args:
    control: language and voice of the answer, where the prompt does not already say so.
  """
  if want not in WANTS:
    raise UserError(f'--want={want!r} is unknown; it is one of {WANTS}')
  answer = {'role': 'assistant', 'task': TASK[want], 'content': []} | {
    k: v for k, v in control.items() if v
  }
  if isinstance(content, str):
    content = [{'type': 'text', 'text': content}]
  if isinstance(content, list):
    if not content:
      raise UserError('the prompt is empty; give text, --image or --audio')
    return {'messages': [{'role': 'user', 'content': content}, answer]}
  messages = list(
    content.get('messages') or [{'role': 'user', 'content': content['content']}]
  )
  last = messages[-1]
  if last['role'] == 'assistant' and not any(
    part.get('text', True) for part in last['content']
  ):
    messages[-1] = answer | last | {'content': []}
  else:
    messages.append(answer)
  return {'messages': messages}
