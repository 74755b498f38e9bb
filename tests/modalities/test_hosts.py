"""The table of hosts: payloads come back from their pieces, hosts pickle, a run has the media that it names."""

import pickle

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from samples import examples, hosts_of, tiny_model

from omni_jax.data.making import prepare
from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.contract import Codes
from omni_jax.modalities.hosts import HOSTS, Hosts, TEXT
from omni_jax.modalities.image.files import png_bytes
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.sequence.example import decoded_part
from omni_jax.sequence.interleave import interleave, parse
from omni_jax.sequence.pack import pack_rows
from omni_jax.types import RowBudget, Span

MODEL = tiny_model()
AUDIO = AudioConfig(rate=200, seconds=0.8)  # 10 frames of 16 samples
written = pytest.mark.parametrize('written', [False, True])


def only_item(host, span):
  """The pieces of a span's one item, and its form."""
  (item,) = host.layout(host.form(span), span.written).items
  (pieces,) = host.pieces(span)
  assert len(pieces) == len(item.place_M3) == np.prod(item.form)
  return pieces, item.form


@written
@pytest.mark.parametrize('channels', [1, 3])
@given(rows=st.integers(1, 4), columns=st.integers(1, 6), seed=st.integers(0, 99))
def test_images_of_eight_bits_come_back_exactly(written, channels, rows, columns, seed):
  """Rectangles too: whatever lies in whole patches."""
  config = ImageConfig(height=8, width=12, channels=channels, patch=2)
  host = hosts_of(image=config)['image']
  rng = np.random.default_rng(seed)
  values = rng.integers(0, 256, (2 * rows, 2 * columns, channels), np.uint8)
  pixels = values / np.float32(255)
  for payload in (pixels, values):
    pieces, form = only_item(host, Span('image', written, payload=payload))
    assert pieces.dtype == np.uint8 and pieces.shape == (rows * columns, 4 * channels)
    assert form == (1, rows, columns)
    again = host.joined(pieces, form)
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, pixels)


def test_other_pixels_come_back_to_the_nearest_of_eight_bits():
  host = hosts_of()['image']
  pixels = np.random.default_rng(0).random((8, 8, 1), np.float32)
  pixels[0, :2, 0] = 0, 1
  again = host.joined(*only_item(host, Span('image', payload=pixels)))
  assert np.abs(again - pixels).max() <= 0.5 / 255 + 1e-6
  assert again[0, 0, 0] == 0 and again[0, 1, 0] == 1


@written
@given(samples=st.integers(1, 160), seed=st.integers(0, 99))
def test_sounds_of_sixteen_bits_come_back_exactly(written, samples, seed):
  """With silence up to the end of their last frame."""
  host = hosts_of(audio=AUDIO)['audio']
  rng = np.random.default_rng(seed)
  values = rng.integers(-32768, 32768, samples).astype(np.int16)
  wave = values / np.float32(32768)
  for payload in (wave, values):
    pieces, form = only_item(host, Span('audio', written, payload=payload))
    assert pieces.dtype == np.int16 and pieces.shape == (-(-samples // 16), 16)
    again = host.joined(pieces, form)
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again[:samples], wave)
    assert not again[samples:].any() and len(again) == 16 * form[0]


def test_other_samples_come_back_to_the_nearest_of_sixteen_bits():
  host = hosts_of(audio=AUDIO)['audio']
  wave = np.random.default_rng(0).uniform(-1, 1, 160).astype(np.float32)
  wave[:2] = -1, 1
  again = host.joined(*only_item(host, Span('audio', payload=wave)))
  assert np.abs(again - wave).max() <= 1 / 32768
  assert again[0] == -1 and again[1] == 32767 / 32768


@pytest.mark.parametrize('size', [0, 161])
def test_a_sound_that_does_not_fit_is_refused(size):
  host = hosts_of(audio=AUDIO)['audio']
  with pytest.raises(ValueError, match=f'clip of {size / 200:.2f} s does not fit'):
    host.form(Span('audio', payload=np.zeros(size, np.float32)))


@pytest.mark.parametrize('shape', [(3, 4, 1), (4, 10, 1), (10, 4, 1), (4, 4, 3)])
def test_an_image_that_does_not_fit_is_refused(shape):
  host = hosts_of()['image']
  h, w, c = shape
  with pytest.raises(ValueError, match=f'{h}x{w}x{c} does not fit .* 8x8x1'):
    host.form(Span('image', payload=np.zeros(shape, np.float32)))


def test_hosts_pickle():
  """Workers lay out what the process that trains would."""
  stored = {'audio.spoken': Codes((4,), 256)}
  for hosts in (MODEL.hosts(), Hosts.lenient(), MODEL.hosts(stored)):
    again = pickle.loads(pickle.dumps(hosts))
    assert list(again) == list(hosts) == ['text', 'image', 'audio']
    assert again.streams == hosts.streams and again.numbers == hosts.numbers
    assert again.tokenizer.fingerprint() == hosts.tokenizer.fingerprint()
    for name, host in hosts.items():
      assert type(again[name]) is type(host) and again[name].config == host.config
      assert again[name].stored == host.stored
  hosts = MODEL.hosts()
  again = pickle.loads(pickle.dumps(hosts))
  budget = RowBudget(
    rows=1, length=96, streams={'image.drawn': (16, 1), 'audio.heard': (3, 1)}
  )
  (example,) = [example for example in examples() if example['id'] == 'draw']
  batches = [
    pack_rows([prepare(example, each)], budget, each) for each in (hosts, again)
  ]
  np.testing.assert_equal(batches[0]._asdict(), batches[1]._asdict())


def test_what_is_stored_changes_its_stream_only():
  plain = MODEL.hosts()
  coded = MODEL.hosts({'audio.spoken': Codes((4,), 256)})
  changed = [b for a, b in zip(plain.streams, coded.streams, strict=True) if a != b]
  (spec,) = changed
  assert (spec.name, spec.shape, spec.dtype) == ('audio.spoken', (4,), 'uint16')
  assert spec.entries == 256 and coded['audio'].codes_in('heard') is None


@pytest.mark.parametrize('named', [(), ('image',), ('audio',), ('audio', 'image')])
def test_a_run_has_the_media_that_it_names(named):
  """In the order of the table, with the numbers that they have in every run."""
  sizes = {'image': ImageConfig(), 'audio': AudioConfig()}
  hosts = Hosts({name: sizes[name] for name in named}, MODEL.hosts().tokenizer)
  assert list(hosts) == [name for name in HOSTS if name == TEXT or name in named]
  assert hosts.numbers == {'text': 1, 'image': 2, 'audio': 3}
  assert {spec.medium for spec in hosts.streams} == set(named)
  for name, host in hosts.items():
    assert (host.name, host.number, host.text) == (name, hosts.numbers[name], 1)
    assert hosts.of_part(name) is host
  known = ', '.join(hosts)
  with pytest.raises(
    UserError, match=f"type 'smell' is unknown; it is one of {known}$"
  ):
    hosts.of_part('smell')


@pytest.mark.parametrize('fit, blocks', [('stretch', 1), ('keep', 2)])
def test_blocks_of_images_are_as_the_fit_asks(fit, blocks):
  host = hosts_of(image=ImageConfig(8, 12, 1, 2, fit=fit))['image']
  for spec in host.streams():
    assert (spec.longest, spec.block) == (24, 24 * blocks)


def test_lenient_hosts_decode_files_of_any_size():
  """They find damage where no run says how large media are."""
  hosts = Hosts.lenient()
  rng = np.random.default_rng(0)
  for size in ((3, 3, 1), (40, 5, 3), (64, 64, 3)):
    part = decoded_part('image', png_bytes(rng.random(size)), hosts)
    assert part['type'] == 'image' and part['pixels'].shape == (8, 8, 1)
  for rate, seconds in ((8000, 0.01), (44100, 2.0), (16000, 30.0)):
    data = wav_bytes(rng.uniform(-1, 1, round(rate * seconds)), rate)
    wave = decoded_part('audio', data, hosts)['wave']
    assert abs(len(wave) - 8000 * seconds) <= 1
  for kind in ('image', 'audio'):
    with pytest.raises(BadRecord):
      decoded_part(kind, b'nothing of the kind', hosts)


@pytest.mark.parametrize('example', examples()[:4], ids=lambda example: example['id'])
def test_files_of_what_a_host_shows_decode_to_it_again(example):
  hosts = MODEL.hosts()
  for span in interleave(example, hosts):
    if span.medium == TEXT:
      continue
    host = hosts[span.medium]
    joined = host.joined(*only_item(host, span))
    shown = host.show(joined)
    again = decoded_part(span.medium, shown.data, hosts)[host.key]
    assert f'.{shown.suffix}' in host.suffixes and '/' in shown.mime
    if span.medium == 'audio' or joined.shape == (8, 8, 1):
      np.testing.assert_array_equal(again, joined)
    assert host.part(joined).type == span.medium
    parsed = parse([span], hosts)['content']
    assert parsed == [{'type': span.medium, host.key: span.payload}]


def test_counts_of_a_manifest_are_the_hosts():
  hosts = hosts_of(audio=AUDIO)
  assert hosts['image'].counted(np.zeros((8, 8, 1), np.float32)) == {'images': 1}
  counted = hosts['audio'].counted(np.zeros(50, np.float32))
  assert counted == {'sounds': 1, 'seconds': 0.25}
  assert hosts['text'].counted('words') == {}
