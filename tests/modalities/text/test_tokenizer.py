"""Any text comes back from the tokenizer; unknown special tokens are user errors."""

from hypothesis import given
from hypothesis import strategies as st
import pytest

from omni_jax.errors import UserError
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig


def tokenizer(languages=('en', 'de'), size=0) -> Tokenizer:
  return Tokenizer(TokenizerConfig(languages, voices=('f1',), max_grid=4, size=size))


TOKENIZER = tokenizer()


@given(st.text(st.characters(codec='utf-8')))
def test_text_comes_back(text):
  ids = TOKENIZER.encode(text)
  assert TOKENIZER.decode(ids) == text
  for i in ids:
    assert TOKENIZER.first_byte <= i < TOKENIZER.vocab_size
    assert TOKENIZER.name(i) is None


def test_specials_have_one_id_each_and_padding_is_zero():
  ids = [TOKENIZER.special(name) for name in TOKENIZER.names]
  assert ids == list(range(TOKENIZER.first_byte))
  assert TOKENIZER.vocab_size == len(ids) + 256
  assert TOKENIZER.special('pad') == 0
  assert [TOKENIZER.name(i) for i in ids] == list(TOKENIZER.names)
  expected = {'lang:de', 'voice:f1', 'size:4', 'task:speak', 'boi', 'eoa', 'frame'}
  assert expected <= set(TOKENIZER.names)


def test_decode_leaves_out_specials_and_survives_broken_utf_8():
  end = TOKENIZER.special('eot')
  ids = (*TOKENIZER.encode('a'), end, *TOKENIZER.encode('ü'))
  assert TOKENIZER.decode(ids) == 'aü'
  assert TOKENIZER.decode(TOKENIZER.encode('ü')[:1]) == '\ufffd'


@pytest.mark.parametrize(
  'name, known',
  [('lang:xx', "['en', 'de']"), ('voice:nobody', "['f1']"), ('size:9', "'4'")],
)
def test_an_unknown_special_is_a_user_error_that_names_the_known_ones(name, known):
  with pytest.raises(UserError) as error:
    TOKENIZER.special(name)
  message = str(error.value)
  assert name in message
  assert known in message


def test_fingerprint_changes_with_the_meaning_of_any_id():
  other = tokenizer(languages=('de', 'en'))
  assert tokenizer().fingerprint() == TOKENIZER.fingerprint() != other.fingerprint()


def test_room_for_a_larger_vocabulary_changes_no_id_and_is_never_text():
  roomy = tokenizer(size=1000)
  assert roomy.vocab_size == 1000
  assert roomy.names == TOKENIZER.names
  assert roomy.encode('ü') == TOKENIZER.encode('ü')
  assert roomy.decode((999, *roomy.encode('a'), roomy.used)) == 'a'
  assert roomy.fingerprint() != TOKENIZER.fingerprint()


def test_the_error_of_a_small_vocabulary_says_how_many_ids_are_needed():
  used = TOKENIZER.used
  assert tokenizer(size=used).vocab_size == used
  with pytest.raises(ValueError, match=f'size={used - 1}: .* need {used} ids'):
    tokenizer(size=used - 1)
