"""Payloads come back from the pieces of their hosts, and hosts can be pickled.

A run has the media that it names.
"""

import pickle

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from samples import examples, hosts_of, tiny_model

from omni_jax.data.example_maker import prepare
from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.contract import Codes
from omni_jax.modalities.hosts import HOSTS, Hosts, TEXT
from omni_jax.modalities.image.files import png_bytes
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.modalities.text.tokenizer import TokenizerConfig
from omni_jax.sequence.example import decoded_part
from omni_jax.sequence.interleave import interleave, parse
from omni_jax.sequence.pack import pack_rows
from omni_jax.types import RowBudget, Span

MODEL = tiny_model()
AUDIO = AudioConfig(rate=200, seconds=0.8)  # 10 frames of 16 samples
written = pytest.mark.parametrize('written', [False, True])


def only_item(host, span):
  """Returns the pieces of a span's only item, and its form."""
  (item,) = host.layout(host.form(span), span.written).items
  (pieces,) = host.pieces(span)
  assert len(pieces) == len(item.place_M3) == np.prod(item.form)
  return pieces, item.form


@written
@pytest.mark.parametrize('channels', [1, 3])
@given(rows=st.integers(1, 4), columns=st.integers(1, 6), seed=st.integers(0, 99))
def test_images_of_eight_bits_come_back_exactly(written, channels, rows, columns, seed):
  """Images of any size in whole patches, rectangles too."""
  config = ImageConfig(height=8, width=12, channels=channels, patch=2)
  host = hosts_of(image=config, tokenizer=TokenizerConfig(max_grid=6))['image']
  rng = np.random.default_rng(seed)
  values = rng.integers(0, 256, (2 * rows, 2 * columns, channels), np.uint8)
  pixels = values / np.float32(255)
  for payload in (pixels, values):
    pieces, form = only_item(host, Span('image', written, payload=payload))
    assert pieces.dtype == np.uint8
    assert pieces.shape == (rows * columns, 4 * channels)
    assert form == (1, rows, columns)
    joined = host.join_pieces(pieces, form)
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined, pixels)


def test_other_pixels_are_rounded_to_eight_bits():
  host = hosts_of()['image']
  pixels = np.random.default_rng(0).random((8, 8, 1), np.float32)
  pixels[0, :2, 0] = (0, 1)
  pieces, form = only_item(host, Span('image', payload=pixels))
  joined = host.join_pieces(pieces, form)
  assert np.abs(joined - pixels).max() <= 0.5 / 255 + 1e-6
  assert joined[0, 0, 0] == 0
  assert joined[0, 1, 0] == 1


@written
@given(samples=st.integers(1, 160), seed=st.integers(0, 99))
def test_sounds_of_sixteen_bits_come_back_exactly(written, samples, seed):
  """They are followed by silence up to the end of their last frame."""
  host = hosts_of(audio=AUDIO)['audio']
  rng = np.random.default_rng(seed)
  values = rng.integers(-32768, 32768, samples).astype(np.int16)
  wave = values / np.float32(32768)
  for payload in (wave, values):
    pieces, form = only_item(host, Span('audio', written, payload=payload))
    assert pieces.dtype == np.int16
    assert pieces.shape == (-(-samples // 16), 16)
    joined = host.join_pieces(pieces, form)
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined[:samples], wave)
    assert not joined[samples:].any()
    assert len(joined) == 16 * form[0]


def test_other_samples_are_rounded_to_sixteen_bits():
  host = hosts_of(audio=AUDIO)['audio']
  wave = np.random.default_rng(0).uniform(-1, 1, 160).astype(np.float32)
  wave[:2] = (-1, 1)
  pieces, form = only_item(host, Span('audio', payload=wave))
  joined = host.join_pieces(pieces, form)
  assert np.abs(joined - wave).max() <= 1 / 32768
  assert joined[0] == -1
  assert joined[1] == 32767 / 32768


@pytest.mark.parametrize('size', [0, 161])
def test_a_sound_that_does_not_fit_is_refused(size):
  host = hosts_of(audio=AUDIO)['audio']
  with pytest.raises(
    ValueError, match=f'clip of {size / 200:.2f} s is empty or longer'
  ):
    host.form(Span('audio', payload=np.zeros(size, np.float32)))


@pytest.mark.parametrize('shape', [(3, 4, 1), (4, 10, 1), (10, 4, 1), (4, 4, 3)])
def test_an_image_that_does_not_fit_is_refused(shape):
  host = hosts_of()['image']
  h, w, c = shape
  with pytest.raises(ValueError, match=f'{h}x{w}x{c} does not fit .* 8x8x1'):
    host.form(Span('image', payload=np.zeros(shape, np.float32)))


def test_pickled_hosts_are_the_same():
  """A worker process builds the same batches as the process that trains."""
  stored = {'audio.spoken': Codes((4,), 256)}
  for hosts in (MODEL.hosts(), Hosts.lenient(), MODEL.hosts(stored)):
    copy = pickle.loads(pickle.dumps(hosts))
    assert list(copy) == list(hosts) == ['text', 'image', 'audio']
    assert copy.streams == hosts.streams
    assert copy.numbers == hosts.numbers
    assert copy.tokenizer.fingerprint() == hosts.tokenizer.fingerprint()
    for name, host in hosts.items():
      assert type(copy[name]) is type(host)
      assert copy[name].config == host.config
      assert copy[name].stored == host.stored
  hosts = MODEL.hosts()
  copy = pickle.loads(pickle.dumps(hosts))
  streams = {'image.drawn': (16, 1), 'audio.heard': (3, 1)}
  budget = RowBudget(rows=1, length=96, streams=streams)
  (example,) = [example for example in examples() if example['id'] == 'draw']
  batch = pack_rows([prepare(example, hosts)], budget, hosts)
  batch_of_copy = pack_rows([prepare(example, copy)], budget, copy)
  np.testing.assert_equal(batch._asdict(), batch_of_copy._asdict())


def test_stored_codes_change_their_own_stream_only():
  plain = MODEL.hosts()
  coded = MODEL.hosts({'audio.spoken': Codes((4,), 256)})
  pairs = zip(plain.streams, coded.streams, strict=True)
  (spec,) = [after for before, after in pairs if before != after]
  assert (spec.name, spec.shape, spec.dtype) == ('audio.spoken', (4,), 'uint16')
  assert spec.entries == 256
  assert coded['audio'].codes_in('heard') is None


@pytest.mark.parametrize('names', [(), ('image',), ('audio',), ('audio', 'image')])
def test_a_run_has_the_media_that_it_names(names):
  """They keep the order of the table and the numbers that they have in every run."""
  sizes = {'image': ImageConfig(), 'audio': AudioConfig()}
  hosts = Hosts({name: sizes[name] for name in names}, MODEL.hosts().tokenizer)
  assert list(hosts) == [name for name in HOSTS if name == TEXT or name in names]
  assert hosts.numbers == {'text': 1, 'image': 2, 'audio': 3}
  assert {spec.medium for spec in hosts.streams} == set(names)
  for name, host in hosts.items():
    assert (host.name, host.number, host.text) == (name, hosts.numbers[name], 1)
    assert hosts.of_part(name) is host
  known = ', '.join(hosts)
  message = f"type 'smell' is unknown; it is one of {known}$"
  with pytest.raises(UserError, match=message):
    hosts.of_part('smell')


@pytest.mark.parametrize('fit, blocks', [('stretch', 1), ('keep', 2)])
def test_blocks_have_room_for_two_images_unless_all_have_one_size(fit, blocks):
  host = hosts_of(image=ImageConfig(8, 12, 1, 2, fit=fit))['image']
  for spec in host.streams():
    assert (spec.longest, spec.block) == (24, 24 * blocks)


def test_lenient_hosts_decode_files_of_any_size():
  """They find damaged files without the sizes of a run."""
  hosts = Hosts.lenient()
  rng = np.random.default_rng(0)
  for size in ((3, 3, 1), (40, 5, 3), (64, 64, 3)):
    part = decoded_part('image', png_bytes(rng.random(size)), hosts)
    assert part['type'] == 'image'
    assert part['pixels'].shape == (8, 8, 1)
  for rate, seconds in ((8000, 0.01), (44100, 2.0), (16000, 30.0)):
    data = wav_bytes(rng.uniform(-1, 1, round(rate * seconds)), rate)
    wave = decoded_part('audio', data, hosts)['wave']
    assert abs(len(wave) - 8000 * seconds) <= 1
  for kind in ('image', 'audio'):
    with pytest.raises(BadRecord):
      decoded_part(kind, b'nothing of the kind', hosts)


@pytest.mark.parametrize('example', examples()[:4], ids=lambda example: example['id'])
def test_the_file_that_shows_a_payload_decodes_to_it(example):
  hosts = MODEL.hosts()
  for span in interleave(example, hosts):
    if span.medium == TEXT:
      continue
    host = hosts[span.medium]
    pieces, form = only_item(host, span)
    joined = host.join_pieces(pieces, form)
    file = host.show(joined)
    decoded = decoded_part(span.medium, file.data, hosts)[host.key]
    assert f'.{file.suffix}' in host.suffixes
    assert '/' in file.mime
    if span.medium == 'audio' or joined.shape == (8, 8, 1):
      np.testing.assert_array_equal(decoded, joined)
    assert host.part(joined).type == span.medium
    parsed = parse([span], hosts)['content']
    assert parsed == [{'type': span.medium, host.key: span.payload}]


def test_hosts_count_their_payloads():
  hosts = hosts_of(audio=AUDIO)
  assert hosts['image'].count(np.zeros((8, 8, 1), np.float32)) == {'images': 1}
  counts = hosts['audio'].count(np.zeros(50, np.float32))
  assert counts == {'sounds': 1, 'seconds': 0.25}
  assert hosts['text'].count('words') == {}
