"""Faults 16, 17, 18: damaged and hostile sounds, images and archives, through the real readers, as records with an id."""

import io
import os
import struct
import tarfile
import zipfile
import zlib

from faults.records import HOSTS, image, lines, refusal, sound
import hypothesis
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest
import soundfile

from omni_jax.convert.formats.tar import TarReader
from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.data.sources.ready.files import Archive
from omni_jax.data.sources.records import decode_example, pack_example
from omni_jax.errors import BadRecord
from omni_jax.modalities.audio.files import decode_audio
from omni_jax.modalities.files import MAX_BYTES
from omni_jax.modalities.image.files import decode_image


def encoded(wave, rate=8000, format='WAV', subtype='PCM_16'):
  out = io.BytesIO()
  soundfile.write(out, wave, rate, format=format, subtype=subtype)
  return out.getvalue()


def saved(picture, format='PNG', **options):
  out = io.BytesIO()
  picture.save(out, format=format, **options)
  return out.getvalue()


def png_of(width, height):
  """A header that promises this size."""
  head = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
  chunk = lambda name, data: (
    struct.pack('>I', len(data))
    + name
    + data
    + struct.pack('>I', zlib.crc32(name + data))
  )
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', head)
    + chunk(b'IDAT', zlib.compress(b'\0' * 99))
    + chunk(b'IEND', b'')
  )


SOUND = HOSTS['audio'].config
TONE = 0.5 * np.sin(np.arange(1200) / 5)
BAD_SOUNDS = {
  'truncated.wav': (sound()[:-900], 'cut off'),
  'lying.wav': (sound()[:40] + struct.pack('<I', 1 << 30) + sound()[44:], 'promises'),
  'nan.wav': (
    encoded(np.where(np.arange(1200) == 7, np.nan, TONE), subtype='FLOAT'),
    'NaN',
  ),
  'none.wav': (encoded(TONE[:0]), 'without samples'),
  'hour.flac': (
    encoded(np.zeros(8000 * 3600), format='FLAC'),
    'longer than the 0.48 s',
  ),
  'empty.wav': (b'', 'is empty'),
}
GOOD_SOUNDS = {
  'eight.wav': encoded(TONE, subtype='PCM_U8'),
  'surround.wav': encoded(np.stack([k * TONE for k in (0, 2, 1, 1, 1, 1)], 1)),
  'fast.wav': encoded(0.5 * np.sin(np.arange(14400) / 60), rate=96000),
  'good.wav': encoded(TONE),
}


def test_fault_16_bad_sounds_are_named_with_a_reason_and_odd_ones_become_the_run_s(
  tmp_path,
):
  path = lines(
    tmp_path, {name: data for name, (data, _) in BAD_SOUNDS.items()} | GOOD_SOUNDS
  )
  found = refusal(path)
  assert found.keys() == BAD_SOUNDS.keys()
  for name, (_, said) in BAD_SOUNDS.items():
    assert said in found[name], (name, found[name])
  waves = {
    example['id']: example['content'][1]['wave']
    for example in map(JsonLines(path, HOSTS).__getitem__, range(6, 10))
  }
  for name in GOOD_SOUNDS:
    assert abs(len(waves[name]) - 1200) <= 1 and waves[name].dtype == np.float32
    np.testing.assert_allclose(
      waves[name][50:1100], waves['good.wav'][50:1100], atol=0.02, err_msg=name
    )


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 16, 3), np.uint8))
LARGE = 'pixels, more than the 50,000,000 allowed'
BAD_IMAGES = {
  'cut.png': (saved(PHOTO)[:200], 'damaged image'),
  'cut.jpg': (saved(PHOTO, 'JPEG')[:300], 'damaged image'),
  'cut.webp': (saved(PHOTO, 'WEBP')[:60], 'damaged image'),
  'flipped.png': (
    saved(PHOTO)[:60] + bytes([saved(PHOTO)[60] ^ 4]) + saved(PHOTO)[61:],
    'damaged image',
  ),
  'none.png': (b'a text', 'not an image'),
  'large.png': (
    png_of(8000, 8000),
    f'image of 8000 x 8000 {LARGE}',
  ),  # below the limit that Pillow has of its own
  'huge.png': (
    png_of(60_000, 60_000),
    'image of more than the 50,000,000 pixels allowed',
  ),
  'wide.png': (
    png_of(2**31 - 1, 1),
    'image of more than the 50,000,000 pixels allowed',
  ),
}
ODD_IMAGES = {
  'cmyk.jpg': saved(PHOTO.convert('CMYK'), 'JPEG'),
  'deep.png': saved(Image.fromarray(np.full((8, 8), 40000, np.uint16))),
  'moving.gif': saved(PHOTO, 'GIF', save_all=True, append_images=[PHOTO.rotate(90)]),
  'turned.jpg': saved(
    PHOTO,
    'JPEG',
    exif=b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0',
  ),
}


def test_fault_17_bad_images_are_named_with_a_reason_and_odd_ones_become_the_run_s(
  tmp_path,
):
  path = lines(
    tmp_path, {name: data for name, (data, _) in BAD_IMAGES.items()} | ODD_IMAGES
  )
  found = refusal(path)
  assert found.keys() == BAD_IMAGES.keys()
  for name, (_, said) in BAD_IMAGES.items():
    assert said in found[name], (name, found[name])
  shown = {}
  for example in map(
    JsonLines(path, HOSTS).__getitem__,
    range(len(BAD_IMAGES), len(BAD_IMAGES) + len(ODD_IMAGES)),
  ):
    shown[example['id']] = pixels = example['content'][1]['pixels']
    assert (
      pixels.shape == (8, 8, 1)
      and pixels.dtype == np.float32
      and 0 <= pixels.min() <= pixels.max() <= 1
    ), example['id']
  np.testing.assert_allclose(shown['deep.png'], 40000 / 65535, atol=0.005)
  for name, picture in {
    'cmyk.jpg': PHOTO,
    'moving.gif': PHOTO,
    'turned.jpg': PHOTO.transpose(Image.Transpose.ROTATE_270),
  }.items():
    right = decode_image(saved(picture), HOSTS['image'].config)
    assert np.corrcoef(shown[name].ravel(), right.ravel())[0, 1] > 0.8, name


def test_fault_17_a_flip_that_decoders_miss_is_found_by_the_converter_s_digest():
  data = sound()
  record = bytearray(
    pack_example({'id': 'a', 'content': [{'type': 'audio', 'data': data}]})
  )
  record[record.index(data) + 700] ^= 1
  HOSTS['audio'].decode(bytes(record[record.index(b'RIFF') :][: len(data)]))
  with pytest.raises(
    BadRecord, match='a: audio of .* has changed since the conversion'
  ):
    decode_example(bytes(record), HOSTS)


def test_fault_18_sizes_are_checked_from_headers_before_anything_is_decoded(
  tmp_path, monkeypatch
):
  def decoded(*_, **__):
    raise AssertionError('decoded')

  monkeypatch.setattr(Image.Image, 'load', decoded)
  monkeypatch.setattr(soundfile.SoundFile, 'read', decoded)
  bad = {name: BAD_IMAGES[name] for name in ('large.png', 'huge.png', 'wide.png')} | {
    'hour.flac': BAD_SOUNDS['hour.flac']
  }
  found = refusal(lines(tmp_path, {name: data for name, (data, _) in bad.items()}))
  assert found.keys() == bad.keys()
  for name, (_, said) in bad.items():
    assert said in found[name], (name, found[name])


class Zeros(io.RawIOBase):
  """So many of them, made as they are read."""

  def __init__(self, size):
    super().__init__()
    self._left = size

  def readable(self):
    return True

  def readinto(self, buffer):
    n = min(len(buffer), self._left)
    buffer[:n] = bytes(n)
    self._left -= n
    return n


def test_fault_18_a_bomb_in_an_archive_is_refused_by_its_size_and_not_unpacked(
  tmp_path, monkeypatch
):
  """A member of 65 MiB that takes less than 128 KiB in a tar.gz and in a zip: refused before it is read; the others are good."""
  size = MAX_BYTES + 2**20
  with tarfile.open(tmp_path / 'a.tar.gz', 'w:gz') as tar:
    for name, data in {'a.png': None, 'b.png': image()}.items():
      info = tarfile.TarInfo(name)
      info.size = len(data) if data else size
      tar.addfile(info, io.BytesIO(data) if data else Zeros(size))
  with zipfile.ZipFile(tmp_path / 'a.zip', 'w', zipfile.ZIP_DEFLATED) as file:
    with file.open('bomb', 'w') as out:
      for _ in range(size >> 20):
        out.write(bytes(1 << 20))
    file.writestr('good', b'abc')
  assert (
    max((tmp_path / name).stat().st_size for name in ('a.tar.gz', 'a.zip')) < 1 << 17
  )
  unpacked, read, extract = [], zipfile.ZipFile.read, tarfile.TarFile.extractfile
  monkeypatch.setattr(
    zipfile.ZipFile,
    'read',
    lambda self, name, *rest: unpacked.append(name) or read(self, name, *rest),
  )
  monkeypatch.setattr(
    tarfile.TarFile,
    'extractfile',
    lambda self, info: unpacked.append(info.name) or extract(self, info),
  )
  bomb, good = TarReader([str(tmp_path / 'a.tar.gz')]).read(range(1))
  with pytest.raises(
    BadRecord, match=r'a\.png: has 68,157,440 bytes, more than the 67,108,864 allowed'
  ):
    bomb.make()
  assert good.make()['content'][0]['data'] == image()
  archive = Archive(str(tmp_path / 'a.zip'))
  with pytest.raises(
    BadRecord, match='has 68,157,440 bytes, more than the 67,108,864 allowed'
  ):
    archive.read('bomb')
  assert archive.read('good') == b'abc' and unpacked == ['b.png', 'good']


def test_fault_18_an_archive_leads_nowhere(tmp_path):
  """A `..`, an absolute path and a link in a tar file, as `omni_jax.convert` reads it: nothing is written, nothing followed."""
  secret = tmp_path / 'secret.png'
  secret.write_bytes(image())
  with tarfile.open(tmp_path / 'a.tar', 'w') as tar:

    def add(name, data=b'', **fields):
      info = tarfile.TarInfo(name)
      info.size = len(data)
      for key, value in fields.items():
        setattr(info, key, value)
      tar.addfile(info, io.BytesIO(data))

    add('good.png', image())
    add('good.txt', b'a')
    add('../up.png', image())
    add(str(tmp_path / 'absolute.png'), image())
    add('link.png', type=tarfile.SYMTYPE, linkname=str(secret))
  before = sorted(os.listdir(tmp_path))
  good, refused = [], []
  for found in TarReader([str(tmp_path / 'a.tar')]).read(range(1)):
    try:
      good.append(found.make()['messages'][0]['content'][0]['data'])
    except BadRecord as error:
      refused.append((found.id, error.reason))
  assert sorted(os.listdir(tmp_path)) == before
  assert good == [image()] and len(refused) == 3, refused
  for (_, reason), said in zip(
    refused,
    (
      'a path that leaves the archive',
      'a path that leaves the archive',
      'link.png: a link or a device',
    ),
    strict=True,
  ):
    assert said in reason, refused


@hypothesis.settings(max_examples=150)
@hypothesis.given(
  st.sampled_from(
    [
      image(),
      sound(),
      saved(PHOTO, 'JPEG'),
      saved(PHOTO, 'WEBP'),
      BAD_SOUNDS['hour.flac'][0][:2000],
    ]
  ),
  st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
  st.integers(0, 2000),
)
def test_fault_16_17_any_bytes_are_read_right_or_refused(data, changes, cut):
  damaged = bytearray(data[:cut] if cut % 3 == 0 else data)
  for at, value in changes:
    if damaged:
      damaged[at % len(damaged)] = value
  for decode, config, good in (
    (decode_image, HOSTS['image'].config, lambda x: x.shape == (8, 8, 1)),
    (decode_audio, SOUND, lambda x: 0 < len(x) <= SOUND.samples),
  ):
    try:
      found = decode(bytes(damaged), config)
    except BadRecord:
      continue
    assert good(found) and np.isfinite(found).all() and np.abs(found).max() <= 1
