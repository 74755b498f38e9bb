"""Tests of the grammar of replies, of reading replies, and of sampling under a mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.errors import UserError
from omni_jax.generate.grammar import DONE, grammar, reply_kinds, START
from omni_jax.generate.prompt import chat
from omni_jax.generate.reply import as_parts, items_of, Written
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.hosts import Hosts
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.modalities.text.head import sample_token
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig

TOKENIZER = Tokenizer(TokenizerConfig(languages=('en',), voices=('a',), max_grid=2))
SIZES = {'image': ImageConfig(patch=4), 'audio': AudioConfig()}  # a grid of 2 x 2
HOSTS = Hosts(SIZES, TOKENIZER)
WANTS = reply_kinds(HOSTS)


def parts(tokens, codes, blocks):
  """Returns the parts of a reply; codes serve as pieces without being decoded."""
  items = items_of(tokens, {'audio': codes}, blocks, HOSTS)
  return as_parts([items], {'audio': lambda codes: codes}, HOSTS)[0]


def drawn(rows: int, columns: int, level: int = 0) -> Written:
  """Returns an image of one grey level, as the model writes it."""
  pieces = np.full((rows * columns, SIZES['image'].values), level, np.uint8)
  return Written('image', pieces, (1, rows, columns))


def test_wants_are_the_media_that_can_be_written():
  assert WANTS == ('text', 'image', 'audio', 'any')
  assert reply_kinds(Hosts({}, TOKENIZER)) == ('text', 'any')
  without_sound = Hosts({'image': SIZES['image']}, TOKENIZER)
  assert reply_kinds(without_sound) == ('text', 'image', 'any')
  with pytest.raises(UserError, match="want='audio' .*'text', 'image', 'any'"):
    grammar(without_sound, 'audio')


@pytest.mark.parametrize('want', WANTS)
def test_every_reachable_mode_continues_and_can_end(want):
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
  """Returns the modes that a reply can reach from a mode."""
  reached: set[int] = set()
  todo = [start]
  while todo:
    mode = todo.pop()
    if mode in reached:
      continue
    reached.add(mode)
    allowed = rules.allowed_MV[mode]
    todo += np.unique(rules.next_MV[mode][allowed]).tolist()
    if rules.block_M[mode]:
      todo.append(int(rules.after))
  return reached


@pytest.mark.parametrize('want', WANTS)
def test_random_walks_parse_into_what_was_wanted(want):
  rng = np.random.default_rng(0)
  rules = grammar(HOSTS, want)
  for _ in range(50):
    mode = START
    tokens = []
    pictures = []
    while mode != DONE and len(tokens) < 60:
      if rules.block_M[mode]:
        sizes = [token - TOKENIZER.special('size:1') + 1 for token in tokens[-2:]]
        pictures.append(drawn(*sizes))
        mode = int(rules.after)
        continue
      token = int(rng.choice(np.flatnonzero(rules.allowed_MV[mode])))
      tokens.append(token)
      mode = int(rules.next_MV[mode, token])
    reply = parts(tokens, np.zeros((len(tokens), 2), np.int32), pictures)
    kinds = {part.type for part in reply}
    assert reply
    if want == 'any':
      assert kinds <= {'text', 'image', 'audio'}
    else:
      assert kinds == {want}
    if want in ('image', 'audio'):
      assert len(reply) == 1
    images = [part for part in reply if part.type == 'image']
    assert len(images) == len(pictures)
    for part, picture in zip(images, pictures, strict=True):
      height, width = part.pixels.shape[:2]
      assert height in (4, 8)
      assert width in (4, 8)
      assert (height, width) == (4 * picture.form[1], 4 * picture.form[2])


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
  reply = parts([*tokens, 0, 0], after_the_end, [drawn(2, 1, 255)])
  assert [part.type for part in reply] == ['text', 'image', 'audio', 'text']
  assert reply[0].text == 'hé'
  assert reply[3].text == 'z'
  pixels = reply[1].pixels
  assert pixels.shape == (8, 4, 1)
  assert (pixels == 1).all()
  first = tokens.index(special('frame'))
  np.testing.assert_array_equal(reply[2].wave, codes[first : first + 2].reshape(-1))


def test_sampling_obeys_the_mask_and_the_nucleus():
  logits = jnp.array([[3.0, 2.0, 1.0, 5.0]])
  allowed = jnp.array([[True, True, True, False]])

  def sampled(temperature: float, top_p: float) -> set[int]:
    """Returns the ids that 100 keys give."""
    settings = dict(temperature=jnp.float32(temperature), top_p=jnp.float32(top_p))
    ids = set()
    for key in jax.random.split(jax.random.key(0), 100):
      ids.add(int(sample_token(logits, allowed, key, **settings)[0]))
    return ids

  assert sampled(temperature=1.0, top_p=1.0) == {0, 1, 2}
  assert sampled(temperature=1.0, top_p=0.5) == {0}
  assert sampled(temperature=0.0, top_p=1.0) == {0}


def test_prompts_end_with_an_empty_message_of_the_assistant():
  answer = {'role': 'assistant', 'task': 'draw', 'content': [], 'language': 'en'}
  assert chat('hi', 'image', language='en', voice='')['messages'][-1] == answer
  example = {
    'messages': [
      {'role': 'user', 'content': [{'type': 'text', 'text': 'a'}]},
      {'role': 'assistant', 'task': 'speak', 'voice': 'a', 'content': []},
    ]
  }
  assert chat(example, 'image', language='en')['messages'][-1] == {
    'role': 'assistant',
    'task': 'speak',
    'voice': 'a',
    'language': 'en',
    'content': [],
  }
