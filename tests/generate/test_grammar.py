"""The automaton of replies, and sampling under it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.generate.grammar import grammar, Mode, WANTS
from omni_jax.generate.prompt import chat
from omni_jax.generate.reply import parts_of
from omni_jax.modalities.text.head import sample_token
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig

TOKENIZER = Tokenizer(TokenizerConfig(languages=('en',), voices=('a',), max_grid=2))


@pytest.mark.parametrize('want', WANTS)
def test_every_walk_can_go_on_and_end(want):
  rules = grammar(TOKENIZER, want)
  for mode in Mode:
    assert rules.allowed_MV[mode].any() == (
      mode not in (Mode.DRAW, Mode.DONE, *_unreachable(rules))
    ), mode


def _unreachable(rules):
  reached, todo = set(), [Mode.START]
  while todo:
    mode = todo.pop()
    if mode not in reached:
      reached.add(mode)
      todo += [Mode(m) for m in np.unique(rules.next_MV[mode][rules.allowed_MV[mode]])]
      todo += [Mode(int(rules.after_draw))] if mode == Mode.DRAW else []
  return {
    mode for mode in Mode if mode not in reached and not rules.allowed_MV[mode].any()
  }


@pytest.mark.parametrize('want', WANTS)
def test_random_walks_parse_into_what_was_wanted(want):
  rng, rules = np.random.default_rng(0), grammar(TOKENIZER, want)
  for _ in range(50):
    mode, tokens, pictures = Mode.START, [], []
    while mode != Mode.DONE and len(tokens) < 60:
      if mode == Mode.DRAW:
        pictures.append(np.zeros((8, 8, 1), np.float32))
        mode = Mode(int(rules.after_draw))
        continue
      token = int(rng.choice(np.flatnonzero(rules.allowed_MV[mode])))
      tokens.append(token)
      mode = Mode(int(rules.next_MV[mode, token]))
    parts = parts_of(
      tokens, np.zeros((len(tokens), 2), np.int32), pictures, TOKENIZER, 2
    )
    kinds = {part.type for part in parts}
    assert parts and (
      kinds == {want} if want != 'any' else kinds <= {'text', 'image', 'audio'}
    )
    if want in ('image', 'audio'):
      assert len(parts) == 1
    for part in parts:
      if part.type == 'image':
        assert part.pixels.shape[0] in (2, 4) and part.pixels.shape[1] in (2, 4)


def test_parts_keep_the_order_in_which_they_were_written():
  special = TOKENIZER.special
  tokens = [
    *TOKENIZER.encode('hé'),
    special('boi'),
    special('size:2'),
    special('size:1'),
    special('boa'),
    special('frame'),
    special('frame'),
    special('eoa'),
    *TOKENIZER.encode('z'),
    special('eot'),
  ]
  codes = np.arange(len(tokens) * 2).reshape(-1, 2)
  parts = parts_of(
    [*tokens, 0, 0],
    np.concatenate([codes, codes[:2]]),
    [np.ones((8, 8, 1), np.float32)],
    TOKENIZER,
    4,
  )
  assert [part.type for part in parts] == ['text', 'image', 'audio', 'text']
  assert parts[0].text == 'hé' and parts[3].text == 'z'
  assert parts[1].pixels.shape == (8, 4, 1)
  first = tokens.index(special('frame'))
  np.testing.assert_array_equal(parts[2].wave, codes[first : first + 2])


def test_sampling_obeys_the_mask_and_the_nucleus():
  logits = jnp.array([[3.0, 2.0, 1.0, 5.0]])
  allowed = jnp.array([[True, True, True, False]])
  draw = lambda key, t, p: int(
    sample_token(
      logits, allowed, key, temperature=jnp.float32(t), top_p=jnp.float32(p)
    )[0]
  )
  keys = jax.random.split(jax.random.key(0), 100)
  assert {draw(key, 1.0, 1.0) for key in keys} == {0, 1, 2}
  assert {draw(key, 1.0, 0.5) for key in keys} == {0}
  assert {draw(key, 0.0, 1.0) for key in keys} == {0}


def test_prompt_forms_end_with_an_empty_assistant():
  want = {'role': 'assistant', 'task': 'draw', 'content': [], 'language': 'en'}
  assert chat('hi', 'image', language='en', voice='')['messages'][-1] == want
  given = {
    'messages': [
      {'role': 'user', 'content': [{'type': 'text', 'text': 'a'}]},
      {'role': 'assistant', 'task': 'speak', 'voice': 'a', 'content': []},
    ]
  }
  assert chat(given, 'image', language='en')['messages'][-1] == {
    'role': 'assistant',
    'task': 'speak',
    'voice': 'a',
    'language': 'en',
    'content': [],
  }
