"""Examples in the chat form <-> spans, by Whisper's grammar; the host table of modalities."""

from collections.abc import Sequence
import functools
from typing import Any

from omni_jax.errors import UserError
from omni_jax.modalities.audio import host as audio
from omni_jax.modalities.image import host as image
from omni_jax.modalities.text import host as text
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.sequence.example import Example
from omni_jax.types import Modality, Span

HOSTS = {Modality.TEXT: text, Modality.IMAGE: image, Modality.AUDIO: audio}
CONTROLS = {
  'language': 'lang',
  'task': 'task',
  'voice': 'voice',
}  # key of a message -> kind of its token


def interleave(example: Example, tokenizer: Tokenizer) -> list[Span]:
  """An example with decoded media -> its spans.

  Chat form: `<bos> (<user> content | <sot> <lang> <task> <voice> content <eot>)*`, where loss falls on what follows
  an assistant's control tokens. Plain form: `<bos> content <eot>`, loss on everything after `<bos>`; a plain example
  that is `open` was cut from something that goes on, and has no `<eot>`.
  """
  spans = [_special(tokenizer, 'bos')]
  if 'content' in example:
    spans += _content(example['content'], tokenizer, written=True)
    return _joined(
      spans
      if example.get('open')
      else [*spans, _special(tokenizer, 'eot', written=True)]
    )
  for message in example['messages']:
    if message['role'] == 'user':
      spans += [
        _special(tokenizer, 'user'),
        *_content(message['content'], tokenizer, written=False),
      ]
    else:
      spans += [
        _special(tokenizer, *_controls(message)),
        *_content(message['content'], tokenizer, written=True),
        _special(tokenizer, 'eot', written=True),
      ]
  return _joined(spans)


def prompt_spans(example: Example, tokenizer: Tokenizer) -> list[Span]:
  """The spans up to where the assistant begins to write: the last message is an assistant's, its content empty."""
  *earlier, last = example['messages']
  assert last['role'] == 'assistant' and not last['content'], last
  spans = interleave({'messages': earlier}, tokenizer) + [
    _special(tokenizer, *_controls(last))
  ]
  return _joined(spans)


def parse(spans: Sequence[Span], tokenizer: Tokenizer) -> Example:
  """The inverse of `interleave`."""
  special = tokenizer.special
  messages: list[dict[str, Any]] = []
  plain: list[dict[str, Any]] = []
  content = plain
  kinds = {kind: key for key, kind in CONTROLS.items()}
  for span in spans:
    if span.modality != Modality.TEXT:
      content.append(
        {'type': 'image', 'pixels': span.pixels}
        if span.modality == Modality.IMAGE
        else {'type': 'audio', 'wave': span.wave}
      )
      continue
    run: list[int] = []
    for token in span.tokens + (special('pad'),):
      name = tokenizer.name(token)
      if name is None:
        run.append(token)
        continue
      if run:
        content.append({'type': 'text', 'text': tokenizer.decode(tuple(run))})
        run = []
      if name in ('user', 'sot'):
        content = []
        messages.append(
          {'role': 'user' if name == 'user' else 'assistant', 'content': content}
        )
      elif name.partition(':')[0] in kinds:
        kind, _, value = name.partition(':')
        messages[-1][kinds[kind]] = value
  return {'messages': messages} if messages else {'content': plain}


def _controls(message: dict[str, Any]) -> list[str]:
  return ['sot'] + [
    f'{kind}:{message[key]}' for key, kind in CONTROLS.items() if message.get(key)
  ]


@functools.lru_cache(maxsize=1024)
def _special(tokenizer: Tokenizer, *names: str, written: bool = False) -> Span:
  return Span(
    Modality.TEXT, written, tokens=tuple(tokenizer.special(name) for name in names)
  )


def _content(
  parts: Sequence[dict[str, Any]], tokenizer: Tokenizer, *, written: bool
) -> list[Span]:
  spans = []
  for part in parts:
    if part['type'] == 'text':
      spans.append(Span(Modality.TEXT, written, tokens=tokenizer.encode(part['text'])))
    elif part['type'] == 'image':
      spans.append(Span(Modality.IMAGE, written, pixels=part['pixels']))
    elif part['type'] == 'audio':
      spans.append(
        Span(Modality.AUDIO, written, wave=part['wave'], code=part.get('code'))
      )
    else:
      raise UserError(
        f'content of type {part["type"]!r} is unknown; it is one of text, image, audio'
      )
  return spans


def _joined(spans: Sequence[Span]) -> list[Span]:
  """Neighbouring text spans of the same kind as one: fewer, longer pieces for the packer."""
  joined: list[Span] = []
  for span in spans:
    last = joined[-1] if joined else None
    if (
      last
      and last.modality == span.modality == Modality.TEXT
      and last.written == span.written
    ):
      joined[-1] = Span(Modality.TEXT, span.written, tokens=last.tokens + span.tokens)
    elif span.modality != Modality.TEXT or span.tokens:
      joined.append(span)
  return joined
