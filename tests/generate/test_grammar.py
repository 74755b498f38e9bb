"""Tests the grammar of replies, the reading of replies, and sampling under a mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.errors import UserError
from omni_jax.generate.grammar import build_grammar, DONE, reply_kinds, START
from omni_jax.generate.prompt import chat
from omni_jax.generate.reply import as_parts, items_of, WrittenItem
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


def written_image(rows: int, columns: int, level: int = 0) -> WrittenItem:
  """Returns an image of one grey level, as the model writes it."""
  pieces = np.full((rows * columns, SIZES['image'].values), level, np.uint8)
  return WrittenItem('image', pieces, (1, rows, columns))


def test_the_kinds_of_reply_are_the_media_that_can_be_written():
  assert WANTS == ('text', 'image', 'audio', 'any')
  assert reply_kinds(Hosts({}, TOKENIZER)) == ('text', 'any')
  without_sound = Hosts({'image': SIZES['image']}, TOKENIZER)
  assert reply_kinds(without_sound) == ('text', 'image', 'any')
  with pytest.raises(UserError, match="want='audio' .*'text', 'image', 'any'"):
    build_grammar(without_sound, 'audio')


@pytest.mark.parametrize('want', WANTS)
def test_every_reachable_mode_continues_and_can_end(want):
  rules = build_grammar(HOSTS, want)
  reachable = _reachable_modes(rules, START)
  for mode in reachable:
    stops = rules.block_C[mode] > 0 or mode == DONE
    assert rules.allowed_CV[mode].any() != stops, mode
    assert DONE in _reachable_modes(rules, mode), mode
  blocks = {int(rules.block_C[mode]) for mode in reachable} - {0}
  inside = {int(rules.inside_C[mode]) for mode in reachable} - {0}
  image, audio = HOSTS.numbers['image'], HOSTS.numbers['audio']
  assert blocks == ({image} if want in ('image', 'any') else set())
  assert inside == ({audio} if want in ('audio', 'any') else set())


def _reachable_modes(rules, start: int) -> set[int]:
  """Returns the modes that a reply can reach from a mode."""
  reachable: set[int] = set()
  todo = [start]
  while todo:
    mode = todo.pop()
    if mode in reachable:
      continue
    reachable.add(mode)
    allowed = rules.allowed_CV[mode]
    todo += np.unique(rules.next_CV[mode][allowed]).tolist()
    if rules.block_C[mode]:
      todo.append(int(rules.after))
  return reachable


@pytest.mark.parametrize('want', WANTS)
def test_random_walks_parse_into_the_wanted_media(want):
  rng = np.random.default_rng(0)
  rules = build_grammar(HOSTS, want)
  for _ in range(50):
    mode = START
    tokens = []
    pictures = []
    while mode != DONE and len(tokens) < 60:
      if rules.block_C[mode]:
        sizes = [token - TOKENIZER.special('size:1') + 1 for token in tokens[-2:]]
        pictures.append(written_image(*sizes))
        mode = int(rules.after)
        continue
      token = int(rng.choice(np.flatnonzero(rules.allowed_CV[mode])))
      tokens.append(token)
      mode = int(rules.next_CV[mode, token])
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
      _, rows, columns = picture.form
      assert rows in (1, 2)
      assert columns in (1, 2)
      assert (height, width) == (4 * rows, 4 * columns)


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
  # As in a batch, in which another reply is longer by two ids.
  padded_tokens = [*tokens, 0, 0]
  padded_codes = np.concatenate([codes, codes[:2]])
  reply = parts(padded_tokens, padded_codes, [written_image(2, 1, 255)])
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
