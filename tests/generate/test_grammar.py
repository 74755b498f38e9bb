"""The automaton of replies, and sampling under it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.errors import UserError
from omni_jax.generate.grammar import DONE, grammar, START, wants_of
from omni_jax.generate.prompt import chat
from omni_jax.generate.reply import as_parts, items_of, Written
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.hosts import Hosts
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.modalities.text.head import sample_token
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig

TOKENIZER = Tokenizer(TokenizerConfig(languages=('en',), voices=('a',), max_grid=2))
SIZES = {'image': ImageConfig(patch=4), 'audio': AudioConfig()}  # a grid of 2 by 2
HOSTS = Hosts(SIZES, TOKENIZER)
WANTS = wants_of(HOSTS)


def parts(tokens, codes, blocks):
  """The parts of a reply whose codes stay as they are."""
  items = items_of(tokens, {'audio': codes}, blocks, HOSTS)
  return as_parts([items], {'audio': lambda codes: codes}, HOSTS)[0]


def drawn(rows: int, columns: int, level: int = 0) -> Written:
  pieces = np.full((rows * columns, SIZES['image'].values), level, np.uint8)
  return Written('image', pieces, (1, rows, columns))


def test_wants_are_the_media_that_can_be_written():
  assert WANTS == ('text', 'image', 'audio', 'any')
  assert wants_of(Hosts({}, TOKENIZER)) == ('text', 'any')
  without_sound = Hosts({'image': SIZES['image']}, TOKENIZER)
  assert wants_of(without_sound) == ('text', 'image', 'any')
  with pytest.raises(UserError, match="want='audio' .*'text', 'image', 'any'"):
    grammar(without_sound, 'audio')


@pytest.mark.parametrize('want', WANTS)
def test_every_walk_can_go_on_and_end(want):
  rules = grammar(HOSTS, want)
  reached = _reached(rules, START)
  for mode in reached:
    stops = rules.block_M[mode] > 0 or mode == DONE
    assert rules.allowed_MV[mode].any() != stops, mode
    assert DONE in _reached(rules, mode), mode
  blocks = {int(rules.block_M[mode]) for mode in reached} - {0}
  inside = {int(rules.inside_M[mode]) for mode in reached} - {0}
  image, audio = HOSTS.numbers['image'], HOSTS.numbers['audio']
  assert blocks == ({image} if want in ('image', 'any') else set())
  assert inside == ({audio} if want in ('audio', 'any') else set())


def _reached(rules, start: int) -> set[int]:
  """The modes that a reply can come to."""
  reached: set[int] = set()
  todo = [start]
  while todo:
    mode = todo.pop()
    if mode not in reached:
      reached.add(mode)
      todo += np.unique(rules.next_MV[mode][rules.allowed_MV[mode]]).tolist()
      todo += [int(rules.after)] if rules.block_M[mode] else []
  return reached


@pytest.mark.parametrize('want', WANTS)
def test_random_walks_parse_into_what_was_wanted(want):
  rng, rules = np.random.default_rng(0), grammar(HOSTS, want)
  for _ in range(50):
    mode, tokens, pictures = START, [], []
    while mode != DONE and len(tokens) < 60:
      if rules.block_M[mode]:
        sizes = [token - TOKENIZER.special('size:1') + 1 for token in tokens[-2:]]
        pictures.append(drawn(*sizes))
        mode = int(rules.after)
        continue
      token = int(rng.choice(np.flatnonzero(rules.allowed_MV[mode])))
      tokens.append(token)
      mode = int(rules.next_MV[mode, token])
    found = parts(tokens, np.zeros((len(tokens), 2), np.int32), pictures)
    kinds = {part.type for part in found}
    assert found and (
      kinds == {want} if want != 'any' else kinds <= {'text', 'image', 'audio'}
    )
    if want in ('image', 'audio'):
      assert len(found) == 1
    images = [part for part in found if part.type == 'image']
    assert len(images) == len(pictures)
    for part, picture in zip(images, pictures, strict=True):
      assert part.pixels.shape[0] in (4, 8) and part.pixels.shape[1] in (4, 8)
      assert part.pixels.shape[:2] == (4 * picture.form[1], 4 * picture.form[2])


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
  after_the_end = np.concatenate([codes, codes[:2]])
  found = parts([*tokens, 0, 0], after_the_end, [drawn(2, 1, 255)])
  assert [part.type for part in found] == ['text', 'image', 'audio', 'text']
  assert found[0].text == 'hé' and found[3].text == 'z'
  assert found[1].pixels.shape == (8, 4, 1) and (found[1].pixels == 1).all()
  first = tokens.index(special('frame'))
  np.testing.assert_array_equal(found[2].wave, codes[first : first + 2].reshape(-1))


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
