"""Converts examples in the chat form to spans and back, in the grammar of Whisper."""

from collections.abc import Sequence
import functools
from typing import Any

from omni_jax.modalities.hosts import Hosts, TEXT
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.sequence.example import CONTROLS, Example, Part, text_part
from omni_jax.types import Span


def interleave(example: Example, hosts: Hosts) -> list[Span]:
  """Returns the spans of an example with decoded media.

  Chat form: `<bos> (<user> content | <sot> <lang> <task> <voice> content <eot>)*`, with
  loss on what follows an assistant's control tokens. Plain form: `<bos> content <eot>`,
  with loss on everything after `<bos>`; a plain example that is `open` was cut from a
  longer one and has no `<eot>`.
  """
  tokenizer = hosts.tokenizer
  spans = [_special(tokenizer, 'bos')]
  end = _special(tokenizer, 'eot', written=True)
  if 'content' in example:
    spans += _content(example['content'], hosts, written=True)
    if not example.get('open'):
      spans.append(end)
    return _joined(spans)
  for message in example['messages']:
    if message['role'] == 'user':
      spans.append(_special(tokenizer, 'user'))
      spans += _content(message['content'], hosts, written=False)
    else:
      spans.append(_special(tokenizer, *_controls(message)))
      spans += _content(message['content'], hosts, written=True)
      spans.append(end)
  return _joined(spans)


def prompt_spans(example: Example, hosts: Hosts) -> list[Span]:
  """Returns the spans up to where the assistant begins to write.

  The last message has to be an assistant's, without content.
  """
  *earlier, last = example['messages']
  assert last['role'] == 'assistant' and not last['content'], last
  spans = interleave({'messages': earlier}, hosts)
  return _joined([*spans, _special(hosts.tokenizer, *_controls(last))])


def parse(spans: Sequence[Span], hosts: Hosts) -> Example:
  """Returns the example that spans come from: the inverse of `interleave`."""
  tokenizer = hosts.tokenizer
  messages: list[dict[str, Any]] = []
  plain: list[Part] = []
  content = plain
  kinds = {kind: key for key, kind in CONTROLS.items()}
  for span in spans:
    if span.medium != TEXT:
      content.append({'type': span.medium, hosts[span.medium].key: span.payload})
      continue
    text_ids: list[int] = []
    # A special token ends a run of text: the padding ends the last one.
    for token in (*span.tokens, tokenizer.special('pad')):
      name = tokenizer.name(token)
      if name is None:
        text_ids.append(token)
        continue
      if text_ids:
        content.append(text_part(tokenizer.decode(tuple(text_ids))))
        text_ids = []
      if name in ('user', 'sot'):
        content = []
        role = 'user' if name == 'user' else 'assistant'
        messages.append({'role': role, 'content': content})
        continue
      kind, _, value = name.partition(':')
      if kind in kinds:
        messages[-1][kinds[kind]] = value
  return {'messages': messages} if messages else {'content': plain}


def _controls(message: dict[str, Any]) -> list[str]:
  """Returns the names of the special tokens that open an assistant's message."""
  names = ['sot']
  for key, kind in CONTROLS.items():
    if message.get(key):
      names.append(f'{kind}:{message[key]}')
  return names


@functools.lru_cache(maxsize=1024)
def _special(tokenizer: Tokenizer, *names: str, written: bool = False) -> Span:
  """Returns a span of special tokens."""
  tokens = tuple(tokenizer.special(name) for name in names)
  return Span(TEXT, written, tokens=tokens)


def _content(parts: Sequence[Part], hosts: Hosts, *, written: bool) -> list[Span]:
  """Returns one span per part."""
  spans = []
  for part in parts:
    kind = part['type']
    if kind == TEXT:
      tokens = hosts.tokenizer.encode(part['text'])
      spans.append(Span(TEXT, written, tokens=tokens))
      continue
    payload = part[hosts.of_part(kind).key]
    spans.append(Span(kind, written, payload=payload, stored=part.get('code')))
  return spans


def _joined(spans: Sequence[Span]) -> list[Span]:
  """Returns the spans with neighbouring text spans of the same kind merged.

  The packer then gets fewer, longer spans.
  """
  joined: list[Span] = []
  for span in spans:
    if span.medium != TEXT:
      joined.append(span)
      continue
    last = joined[-1] if joined else None
    if last and last.medium == TEXT and last.written == span.written:
      joined[-1] = Span(TEXT, span.written, tokens=last.tokens + span.tokens)
    elif span.tokens:
      joined.append(span)
  return joined
