"""Text <-> ids: any text comes back, specials have names, and an unknown name is the user's mistake."""

from hypothesis import given
from hypothesis import strategies as st
import pytest

from omni_jax.errors import UserError
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig

TOKENIZER = Tokenizer(
  TokenizerConfig(languages=('en', 'de'), voices=('f1',), max_grid=4)
)


@given(st.text(st.characters(codec='utf-8')))
def test_text_comes_back(words):
  ids = TOKENIZER.encode(words)
  assert TOKENIZER.decode(ids) == words
  assert all(
    TOKENIZER.first_byte <= i < TOKENIZER.vocab_size and TOKENIZER.name(i) is None
    for i in ids
  )


def test_specials_have_one_id_each_and_padding_is_zero():
  ids = [TOKENIZER.special(name) for name in TOKENIZER.names]
  assert (
    ids == list(range(TOKENIZER.first_byte)) and TOKENIZER.vocab_size == len(ids) + 256
  )
  assert TOKENIZER.special('pad') == 0
  assert [TOKENIZER.name(i) for i in ids] == list(TOKENIZER.names)
  assert {'lang:de', 'voice:f1', 'size:4', 'task:speak', 'boi', 'eoa', 'frame'} <= set(
    TOKENIZER.names
  )


def test_decode_leaves_specials_out_and_survives_broken_bytes():
  end = TOKENIZER.special('eot')
  assert TOKENIZER.decode((*TOKENIZER.encode('a'), end, *TOKENIZER.encode('ü'))) == 'aü'
  assert TOKENIZER.decode(TOKENIZER.encode('ü')[:1]) == '\ufffd'


@pytest.mark.parametrize(
  'name, known',
  [('lang:xx', "['en', 'de']"), ('voice:nobody', "['f1']"), ('size:9', "'4'")],
)
def test_unknown_special_is_a_user_error_that_names_the_known_ones(name, known):
  with pytest.raises(UserError) as error:
    TOKENIZER.special(name)
  assert name in str(error.value) and known in str(error.value)


def test_fingerprint_changes_with_the_meaning_of_any_id():
  other = Tokenizer(TokenizerConfig(languages=('de', 'en'), voices=('f1',), max_grid=4))
  same = Tokenizer(TokenizerConfig(languages=('en', 'de'), voices=('f1',), max_grid=4))
  assert same.fingerprint() == TOKENIZER.fingerprint() != other.fingerprint()


def test_room_for_a_larger_vocabulary_changes_no_id_and_is_never_text():
  roomy = Tokenizer(
    TokenizerConfig(languages=('en', 'de'), voices=('f1',), max_grid=4, size=1000)
  )
  assert (
    roomy.vocab_size == 1000
    and roomy.names == TOKENIZER.names
    and roomy.encode('ü') == TOKENIZER.encode('ü')
  )
  assert roomy.decode((999, *roomy.encode('a'), roomy.used)) == 'a'
  assert roomy.fingerprint() != TOKENIZER.fingerprint()


def test_a_vocabulary_that_is_too_small_says_what_is_needed():
  used = TOKENIZER.used
  assert (
    Tokenizer(TokenizerConfig(('en', 'de'), ('f1',), 4, size=used)).vocab_size == used
  )
  with pytest.raises(ValueError, match=f'size={used - 1}: .* need {used} ids'):
    TokenizerConfig(('en', 'de'), ('f1',), 4, size=used - 1)
