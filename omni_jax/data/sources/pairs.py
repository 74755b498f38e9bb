"""Tables of two columns as examples: one column is shown by the user, the other is the assistant's answer."""

from collections.abc import Mapping, Sequence
from typing import Any

TASKS = {
  'text': 'write',
  'image': 'draw',
  'audio': 'speak',
}  # by the kind of the answer


def pair(
  shown: Sequence[dict[str, Any]],
  answer: dict[str, Any],
  language: str = '',
  voice: str = '',
) -> dict[str, Any]:
  """An example in the chat form, without an id."""
  controls = {
    key: value for key, value in (('language', language), ('voice', voice)) if value
  }
  return {
    'messages': [
      {'role': 'user', 'content': list(shown)},
      {
        'role': 'assistant',
        'task': TASKS[answer['type']],
        **controls,
        'content': [answer],
      },
    ]
  }


def only_medium_and_text(kinds: Mapping[str, str]) -> tuple[str, str]:
  """Names of the one column that is a medium and of the one that is text; '' where there is none or a choice."""
  media = [name for name, kind in kinds.items() if kind != 'text']
  texts = [name for name, kind in kinds.items() if kind == 'text']
  return media[0] if len(media) == 1 else '', texts[0] if len(texts) == 1 else ''
