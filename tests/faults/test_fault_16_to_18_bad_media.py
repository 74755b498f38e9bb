"""Faults 16, 17 and 18: damaged and hostile sounds, images and archives.

The real readers refuse them as bad records with an id.
"""

import io
import os
import struct
import tarfile
import zipfile
import zlib

from faults.records import HOSTS, image, refusals, sound, write_lines
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


def sound_file(wave, rate=8000, format='WAV', subtype='PCM_16'):
  """Returns the bytes of a sound file."""
  out = io.BytesIO()
  soundfile.write(out, wave, rate, format=format, subtype=subtype)
  return out.getvalue()


def image_file(picture, format='PNG', **options):
  """Returns the bytes of an image file."""
  out = io.BytesIO()
  picture.save(out, format=format, **options)
  return out.getvalue()


def chunk_of_png(name, data):
  """Returns a chunk of a PNG file."""
  size = struct.pack('>I', len(data))
  checksum = struct.pack('>I', zlib.crc32(name + data))
  return size + name + data + checksum


def png_of(width, height):
  """Returns a PNG file whose header declares this size."""
  head = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
  chunks = [
    chunk_of_png(b'IHDR', head),
    chunk_of_png(b'IDAT', zlib.compress(b'\0' * 99)),
    chunk_of_png(b'IEND', b''),
  ]
  return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)


def with_flipped_bit(data, index):
  """Returns bytes with one bit of the byte at an index flipped."""
  return data[:index] + bytes([data[index] ^ 4]) + data[index + 1 :]


def data_of(media):
  """Returns the bytes of media, {file name: (bytes, message)}, by file name."""
  return {name: data for name, (data, _) in media.items()}


def check_refused(path, media):
  """Checks that exactly these examples of a file are refused, with their messages."""
  reasons = refusals(path)
  assert reasons.keys() == media.keys()
  for name, (_, message) in media.items():
    assert message in reasons[name], (name, reasons[name])


AUDIO_CONFIG = HOSTS['audio'].config
TONE = 0.5 * np.sin(np.arange(1200) / 5)
MIDDLE = slice(50, 1100)  # samples of TONE that are not near its ends
BAD_SOUNDS = {
  'truncated.wav': (sound()[:-900], 'cut off'),
  # A header that declares 1 GiB of samples.
  'lying.wav': (sound()[:40] + struct.pack('<I', 1 << 30) + sound()[44:], 'promises'),
  'nan.wav': (
    sound_file(np.where(np.arange(1200) == 7, np.nan, TONE), subtype='FLOAT'),
    'NaN',
  ),
  'none.wav': (sound_file(TONE[:0]), 'without samples'),
  'hour.flac': (
    sound_file(np.zeros(8000 * 3600), format='FLAC'),
    'longer than the 0.48 s',
  ),
  'empty.wav': (b'', 'is empty'),
}
GOOD_SOUNDS = {
  'eight.wav': sound_file(TONE, subtype='PCM_U8'),
  'surround.wav': sound_file(np.outer(TONE, [0, 2, 1, 1, 1, 1])),
  'fast.wav': sound_file(0.5 * np.sin(np.arange(14400) / 60), rate=96000),
  'good.wav': sound_file(TONE),
}


def test_fault_16_bad_sounds_are_named_with_a_reason_and_odd_ones_are_converted(
  tmp_path,
):
  path = write_lines(tmp_path, data_of(BAD_SOUNDS) | GOOD_SOUNDS)
  check_refused(path, BAD_SOUNDS)
  examples = JsonLines(path, HOSTS)
  waves = {}
  for k in range(len(BAD_SOUNDS), len(examples)):
    waves[examples[k]['id']] = examples[k]['content'][1]['wave']
  expected = waves['good.wav'][MIDDLE]
  for name in GOOD_SOUNDS:
    wave = waves[name]
    assert abs(len(wave) - len(TONE)) <= 1
    assert wave.dtype == np.float32
    np.testing.assert_allclose(wave[MIDDLE], expected, atol=0.02, err_msg=name)


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 16, 3), np.uint8))
TOO_LARGE = 'pixels, more than the 50,000,000 allowed'
BAD_IMAGES = {
  'cut.png': (image_file(PHOTO)[:200], 'damaged image'),
  'cut.jpg': (image_file(PHOTO, 'JPEG')[:300], 'damaged image'),
  'cut.webp': (image_file(PHOTO, 'WEBP')[:60], 'damaged image'),
  'flipped.png': (with_flipped_bit(image_file(PHOTO), 60), 'damaged image'),
  'none.png': (b'a text', 'not an image'),
  # Below Pillow's own limit.
  'large.png': (png_of(8000, 8000), f'image of 8000 x 8000 {TOO_LARGE}'),
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
  'cmyk.jpg': image_file(PHOTO.convert('CMYK'), 'JPEG'),
  'deep.png': image_file(Image.fromarray(np.full((8, 8), 40000, np.uint16))),
  'moving.gif': image_file(
    PHOTO, 'GIF', save_all=True, append_images=[PHOTO.rotate(90)]
  ),
  # Its EXIF data say that it is to be turned by 90 degrees.
  'turned.jpg': image_file(
    PHOTO,
    'JPEG',
    exif=b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0',
  ),
}


def test_fault_17_bad_images_are_named_with_a_reason_and_odd_ones_are_converted(
  tmp_path,
):
  path = write_lines(tmp_path, data_of(BAD_IMAGES) | ODD_IMAGES)
  check_refused(path, BAD_IMAGES)
  examples = JsonLines(path, HOSTS)
  images = {}
  for k in range(len(BAD_IMAGES), len(examples)):
    images[examples[k]['id']] = examples[k]['content'][1]['pixels']
  assert images.keys() == ODD_IMAGES.keys()
  for name, pixels in images.items():
    assert pixels.shape == (8, 8, 1), name
    assert pixels.dtype == np.float32, name
    assert 0 <= pixels.min() <= pixels.max() <= 1, name
  np.testing.assert_allclose(images['deep.png'], 40000 / 65535, atol=0.005)
  pictures = {
    'cmyk.jpg': PHOTO,
    'moving.gif': PHOTO,
    'turned.jpg': PHOTO.transpose(Image.Transpose.ROTATE_270),
  }
  for name, picture in pictures.items():
    expected = decode_image(image_file(picture), HOSTS['image'].config)
    correlation = np.corrcoef(images[name].ravel(), expected.ravel())[0, 1]
    assert correlation > 0.8, name


def test_fault_17_a_flip_that_decoders_miss_is_found_by_the_digest_of_the_converter():
  data = sound()
  record = bytearray(
    pack_example({'id': 'a', 'content': [{'type': 'audio', 'data': data}]})
  )
  start = record.index(data)
  record[start + 700] ^= 1
  HOSTS['audio'].decode(bytes(record[start : start + len(data)]))
  message = 'a: audio of .* has changed since the conversion'
  with pytest.raises(BadRecord, match=message):
    decode_example(bytes(record), HOSTS)


def test_fault_18_sizes_are_checked_from_headers_before_anything_is_decoded(
  tmp_path, monkeypatch
):
  def fail(*_, **__):
    raise AssertionError('a file was decoded')

  monkeypatch.setattr(Image.Image, 'load', fail)
  monkeypatch.setattr(soundfile.SoundFile, 'read', fail)
  large = {name: BAD_IMAGES[name] for name in ('large.png', 'huge.png', 'wide.png')}
  large['hour.flac'] = BAD_SOUNDS['hour.flac']
  check_refused(write_lines(tmp_path, data_of(large)), large)


class Zeros(io.RawIOBase):
  """A file of this many zero bytes, which are created as they are read."""

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


def add_to_tar(tar, name, data=b'', **fields):
  """Adds a member to a tar file; `fields` are attributes of its TarInfo."""
  info = tarfile.TarInfo(name)
  info.size = len(data)
  for field, value in fields.items():
    setattr(info, field, value)
  tar.addfile(info, io.BytesIO(data))


def tar_with_bomb(path, size):
  """Writes a tar.gz file with a member of this size and a good one."""
  with tarfile.open(path, 'w:gz') as tar:
    info = tarfile.TarInfo('a.png')
    info.size = size
    tar.addfile(info, Zeros(size))
    add_to_tar(tar, 'b.png', image())
  return path


def zip_with_bomb(path, size):
  """Writes a zip file with a member of this size and a good one."""
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
    with file.open('bomb', 'w') as out:
      for _ in range(size >> 20):
        out.write(bytes(1 << 20))
    file.writestr('good', b'abc')
  return path


@pytest.fixture
def members_read(monkeypatch):
  """Returns the list to which the names of the members read from archives are added."""
  names = []
  read = zipfile.ZipFile.read
  extract = tarfile.TarFile.extractfile

  def recorded_read(self, name, *rest):
    names.append(name)
    return read(self, name, *rest)

  def recorded_extract(self, info):
    names.append(info.name)
    return extract(self, info)

  monkeypatch.setattr(zipfile.ZipFile, 'read', recorded_read)
  monkeypatch.setattr(tarfile.TarFile, 'extractfile', recorded_extract)
  return names


def test_fault_18_a_bomb_in_an_archive_is_refused_by_its_size_and_not_unpacked(
  tmp_path, members_read
):
  """A member of 65 MiB takes less than 128 KiB in a tar.gz and in a zip.

  It is refused before it is read, and the other members are good.
  """
  size = MAX_BYTES + 2**20
  tar = tar_with_bomb(tmp_path / 'a.tar.gz', size)
  zipped = zip_with_bomb(tmp_path / 'a.zip', size)
  assert tar.stat().st_size < 1 << 17
  assert zipped.stat().st_size < 1 << 17
  message = 'has 68,157,440 bytes, more than the 67,108,864 allowed'
  bomb, good = TarReader([str(tar)]).read(range(1))
  with pytest.raises(BadRecord, match=rf'a\.png: {message}'):
    bomb.make()
  assert good.make()['content'][0]['data'] == image()
  archive = Archive(str(zipped))
  with pytest.raises(BadRecord, match=message):
    archive.read('bomb')
  assert archive.read('good') == b'abc'
  assert members_read == ['b.png', 'good']


def test_fault_18_an_archive_cannot_lead_elsewhere(tmp_path):
  """Tests a `..`, an absolute path and a link in a tar file, read by the converter.

  Nothing is written, and no link is followed.
  """
  secret = tmp_path / 'secret.png'
  secret.write_bytes(image())
  with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
    add_to_tar(tar, 'good.png', image())
    add_to_tar(tar, 'good.txt', b'a')
    add_to_tar(tar, '../up.png', image())
    add_to_tar(tar, str(tmp_path / 'absolute.png'), image())
    add_to_tar(tar, 'link.png', type=tarfile.SYMTYPE, linkname=str(secret))
  before = sorted(os.listdir(tmp_path))
  good = []
  reasons = []
  for record in TarReader([str(tmp_path / 'a.tar')]).read(range(1)):
    try:
      good.append(record.make()['messages'][0]['content'][0]['data'])
    except BadRecord as error:
      reasons.append(error.reason)
  assert sorted(os.listdir(tmp_path)) == before
  assert good == [image()]
  up, absolute, link = reasons
  assert 'a path that leaves the archive' in up
  assert 'a path that leaves the archive' in absolute
  assert 'link.png: a link or a device' in link


FILES = [
  image(),
  sound(),
  image_file(PHOTO, 'JPEG'),
  image_file(PHOTO, 'WEBP'),
  BAD_SOUNDS['hour.flac'][0][:2000],
]


def decoded_or_none(decode, data, config):
  """Returns what `decode` returns; None if it refuses the data."""
  try:
    return decode(data, config)
  except BadRecord:
    return None


@hypothesis.settings(max_examples=150)
@hypothesis.given(
  st.sampled_from(FILES),
  st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
  st.integers(0, 2000),
)
def test_fault_16_17_any_bytes_are_read_correctly_or_refused(data, changes, cut):
  is_cut = cut % 3 == 0  # in about a third of the cases
  damaged = bytearray(data[:cut] if is_cut else data)
  for index, value in changes:
    if damaged:
      damaged[index % len(damaged)] = value
  pixels = decoded_or_none(decode_image, bytes(damaged), HOSTS['image'].config)
  if pixels is not None:
    assert pixels.shape == (8, 8, 1)
    check_values(pixels)
  wave = decoded_or_none(decode_audio, bytes(damaged), AUDIO_CONFIG)
  if wave is not None:
    assert 0 < len(wave) <= AUDIO_CONFIG.samples
    check_values(wave)


def check_values(values):
  """Checks that pixels or samples are finite and at most 1."""
  assert np.isfinite(values).all()
  assert np.abs(values).max() <= 1
