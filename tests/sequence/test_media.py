"""Media files become arrays of the run's size, or raise BadRecord and nothing else."""

import contextlib
import dataclasses
from functools import partial
import io
import json
import pathlib
import pickle
import struct

import numpy as np
from PIL import Image
import pytest
import soundfile

from omni_jax.errors import BadRecord
from omni_jax.modalities import files
from omni_jax.modalities.audio import files as audio_files
from omni_jax.modalities.audio.files import decode_audio, wav_bytes
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.image import files as image_files
from omni_jax.modalities.image.files import bytes_of, decode_image, fitted, png_bytes
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.sequence.read_media import read_media

SHARED = pathlib.Path(__file__).parents[3] / 'shared' / 'data'
MALFORMED = SHARED / 'malformed'
GRAY = ImageConfig(height=8, width=8, channels=1)
COLOUR = ImageConfig(height=4, width=6, channels=3)
AUDIO = AudioConfig(rate=8000, seconds=0.96)
# The malformed files that can be read all the same.
USABLE = {'really_a_jpg.png', 'really_a_wav.flac', 'loud_float.wav', 'silence.wav'}


def image_file(image: Image.Image, format: str = 'PNG', **options) -> bytes:
  """Returns the contents of a file with this image."""
  out = io.BytesIO()
  image.save(out, format=format, **options)
  return out.getvalue()


def sound_file(
  wave, rate: int = 8000, format: str = 'WAV', subtype: str | None = None
) -> bytes:
  """Returns the contents of a file with this sound."""
  out = io.BytesIO()
  soundfile.write(out, wave, rate, format=format, subtype=subtype)
  return out.getvalue()


def tone(rate: int, seconds: float = 0.5) -> np.ndarray:
  time = np.arange(round(rate * seconds)) / rate
  wave = 0.5 * np.sin(2 * np.pi * 440 * time)
  return wave.astype(np.float32)


def shape_of(config: ImageConfig) -> tuple[int, int, int]:
  return (config.height, config.width, config.channels)


@pytest.mark.parametrize('config', [GRAY, COLOUR], ids=str)
def test_png_round_trip_is_exact(config):
  values = np.random.default_rng(0).integers(0, 256, shape_of(config))
  pixels = (values / 255).astype(np.float32)
  np.testing.assert_array_equal(decode_image(png_bytes(pixels), config), pixels)
  assert png_bytes(values.astype(np.uint8)) == png_bytes(pixels)


def test_a_picture_file_holds_the_bytes_that_the_model_gets():
  levels = np.arange(64, dtype=np.float32).reshape(8, 8, 1) + 0.5
  for pixels in (levels / 255, np.random.default_rng(0).random((8, 8, 1), np.float32)):
    decoded = decode_image(png_bytes(pixels), GRAY)
    np.testing.assert_array_equal(bytes_of(decoded), bytes_of(pixels))


def test_wav_round_trip_is_exact():
  values = np.random.default_rng(0).integers(-32768, 32768, 1000)
  wave = (values / 32768).astype(np.float32)
  np.testing.assert_array_equal(decode_audio(wav_bytes(wave, 8000), AUDIO), wave)
  assert wav_bytes(values.astype(np.int16), 8000) == wav_bytes(wave, 8000)


def test_media_to_be_encoded_must_be_finite():
  with pytest.raises(ValueError, match='NaN'):
    png_bytes(np.full((2, 2, 1), np.nan, np.float32))
  with pytest.raises(ValueError, match='NaN'):
    wav_bytes(np.full(4, np.inf, np.float32), 8000)


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM'])
@pytest.mark.parametrize('config', [GRAY, COLOUR], ids=str)
def test_images_of_every_format_and_size_get_the_size_of_the_run(format, config):
  data = image_file(Image.new('RGB', (37, 21), (204, 204, 204)), format)
  pixels = decode_image(data, config)
  assert pixels.shape == shape_of(config)
  assert pixels.dtype == np.float32
  np.testing.assert_allclose(pixels, 0.8, atol=0.02)


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'WEBP', 'TIFF'])
def test_exif_rotation_is_applied(format):
  image = Image.new('RGB', (6, 4), 0)
  image.paste((255,) * 3, (0, 0, 3, 4))  # the left half is white
  exif = Image.Exif()
  exif[0x0112] = 6  # show rotated by 90 degrees clockwise: left becomes top
  data = image_file(image, format, exif=exif)
  pixels = decode_image(data, ImageConfig(height=6, width=4, channels=1))
  assert pixels[:3].min() > 0.9
  assert pixels[3:].max() < 0.1


def test_transparent_pixels_are_blended_with_white():
  rgba = Image.new('RGBA', (4, 4), (0, 0, 0, 0))
  np.testing.assert_array_equal(decode_image(image_file(rgba), COLOUR), 1)
  gray_alpha = Image.new('LA', (4, 4), (0, 0))
  np.testing.assert_array_equal(decode_image(image_file(gray_alpha), COLOUR), 1)
  palette = image_file(Image.new('P', (4, 4), 0), transparency=0)
  np.testing.assert_array_equal(decode_image(palette, GRAY), 1)
  half = image_file(Image.new('RGBA', (4, 4), (0, 0, 0, 128)))
  np.testing.assert_allclose(decode_image(half, GRAY), 127 / 255, atol=0.005)


def test_sixteen_bits_are_scaled_not_clipped():
  values = np.array([[0, 1000], [32768, 65535]], np.uint16)
  data = image_file(Image.fromarray(values))
  pixels = decode_image(data, ImageConfig(height=2, width=2, channels=3))
  expected = np.repeat(values[..., None] / 65535, 3, -1)
  np.testing.assert_allclose(pixels, expected, atol=1e-6)


def test_the_first_frame_of_an_animation_is_used():
  white = Image.new('L', (8, 8), 255)
  black = Image.new('L', (8, 8), 0)
  data = image_file(white, 'GIF', save_all=True, append_images=[black])
  np.testing.assert_array_equal(decode_image(data, GRAY), 1)


def test_pixel_limit_is_checked_by_the_header(monkeypatch):
  def fail(*_):
    pytest.fail('decoded before the limit was checked')

  data = image_file(Image.new('1', (300, 200)))
  monkeypatch.setattr(image_files, 'MAX_PIXELS', 300 * 200)
  assert decode_image(data, GRAY).shape == (8, 8, 1)
  monkeypatch.setattr(image_files, 'MAX_PIXELS', 300 * 200 - 1)
  monkeypatch.setattr(image_files, '_pixels', fail)
  with pytest.raises(BadRecord, match='300 x 200 pixels'):
    decode_image(data, GRAY)


def test_floating_point_pixels_are_refused():
  with pytest.raises(BadRecord, match='floating-point'):
    decode_image(image_file(Image.new('F', (4, 4)), 'TIFF'), GRAY)


@pytest.mark.parametrize(
  'format, subtype',
  [
    ('WAV', 'PCM_16'),
    ('WAV', 'PCM_24'),
    ('WAV', 'FLOAT'),
    ('WAV', 'ULAW'),
    ('RF64', 'PCM_16'),
    ('FLAC', None),
    ('OGG', 'VORBIS'),
    ('MP3', None),
  ],
)
@pytest.mark.parametrize('rate', [8000, 44100])
def test_sounds_of_every_format_and_rate_get_the_rate_of_the_run(format, subtype, rate):
  stereo = np.stack([tone(rate)] * 2, 1)
  wave = decode_audio(sound_file(stereo, rate, format, subtype), AUDIO)
  expected = tone(AUDIO.rate)
  assert wave.dtype == np.float32
  assert abs(len(wave) - len(expected)) <= 1
  # Without the ends, where codecs and resampling differ.
  middle = slice(200, len(expected) - 200)
  assert np.corrcoef(wave[middle], expected[middle])[0, 1] > 0.98


def test_big_endian_wav_is_read():
  values = np.array([0, 16384, -16384], '>i2')
  chunks = b'WAVEfmt ' + struct.pack('>IHHIIHH', 16, 1, 1, 8000, 16000, 2, 16)
  chunks += b'data' + struct.pack('>I', 6)
  data = b'RIFX' + struct.pack('>I', len(chunks) + 6) + chunks + values.tobytes()
  np.testing.assert_array_equal(decode_audio(data, AUDIO), [0, 0.5, -0.5])
  with pytest.raises(BadRecord, match='cut off'):
    decode_audio(data[:-2], AUDIO)


def wav_header(channels=1, rate=8000, bits=16, size=400):
  values = dict(
    riff=b'RIFF',
    whole=size + 36,
    wave=b'WAVE',
    fmt=b'fmt ',
    fmt_size=16,
    code=1,
    channels=channels,
    rate=rate,
    bytes=rate * 2 * channels,
    block=2 * channels,
    bits=bits,
    data=b'data',
    size=size,
  )
  return audio_files.PLAIN_WAV.pack(*values.values())


SAMPLES = np.random.default_rng(0).integers(-32768, 32768, 200).astype('<i2').tobytes()


def sound_or_reason(decode, data):
  """Returns the decoded sound, the reason of a refusal, or None if left to others."""
  try:
    sound = decode(data, AUDIO)
  except BadRecord as error:
    return error.reason
  return sound and (sound.wave_sc.tobytes(), sound.wave_sc.shape, sound.rate)


def plain_result(data):
  return sound_or_reason(audio_files._plain_wav, data)


def libsndfile_result(data):
  return sound_or_reason(audio_files._any_sound, data)


@pytest.mark.parametrize(
  'channels, rate',
  [
    (1, 8000),
    (2, 8000),
    (1, 44100),
    (4, 11025),
    (17, 8000),
    (1, 999),
    (1, 400_000),
    (1, 10),
  ],
)
def test_a_plain_wav_is_read_as_libsndfile_reads_it(channels, rate):
  samples = SAMPLES[: 400 // (2 * channels) * 2 * channels]
  data = wav_header(channels, rate, size=len(samples)) + samples
  fast = plain_result(data)
  assert fast is not None
  assert fast == libsndfile_result(data)
  too_long = wav_header(size=2 * AUDIO.samples + 2) + bytes(2 * AUDIO.samples + 2)
  assert 'longer than' in plain_result(too_long)
  assert plain_result(too_long) == libsndfile_result(too_long)


def test_a_damaged_header_is_read_as_libsndfile_reads_it():
  """It may be left to libsndfile: other sizes and codes, chunks behind the samples."""
  rng = np.random.default_rng(0)
  whole = wav_header() + SAMPLES
  accepted = 0
  for k in range(600):
    damaged = bytearray(whole)
    at = k % audio_files.PLAIN_WAV.size
    if k % 3:
      damaged[at] = rng.integers(256)
    else:
      damaged[at] ^= 1 << rng.integers(8)
    data = bytes(damaged)
    fast = plain_result(data)
    accepted += fast is not None
    slow = libsndfile_result(data)
    # Both may refuse it, each for a reason of its own.
    both_refuse = isinstance(fast, str) and isinstance(slow, str)
    assert fast in (None, slow) or both_refuse, data[:44].hex(' ')
  assert 100 < accepted < 500
  for data in (
    whole + b'x',
    whole + b'LIST\0\0\0\0',
    whole[:-1],
    whole[:44],
    whole[:20],
    wav_header(bits=8) + SAMPLES,
  ):
    assert audio_files._plain_wav(data, AUDIO) is None


def test_channels_are_averaged_and_loud_sounds_scaled():
  def decoded(wave):
    wave = np.array(wave, np.float32)
    return decode_audio(sound_file(wave, subtype='FLOAT'), AUDIO)

  np.testing.assert_allclose(decoded([[0.5, 0.0], [0.25, 0.25]]), [0.25, 0.25])
  np.testing.assert_allclose(decoded([0, 500, -1000]), [0, 0.5, -1])
  np.testing.assert_allclose(decoded(np.full((2, 2), 3e38)), 1)


@pytest.mark.parametrize('rate', [8000, 11025, 44100])
def test_a_clip_of_the_longest_length_fits_and_a_longer_one_is_refused(rate):
  longest = AUDIO.samples * rate // AUDIO.rate
  wave = decode_audio(sound_file(np.zeros(longest), rate), AUDIO)
  assert len(wave) <= AUDIO.samples
  with pytest.raises(BadRecord, match=r'longer than the 0\.96 s'):
    decode_audio(sound_file(np.zeros(longest + rate // 100), rate), AUDIO)


@pytest.mark.parametrize(
  'wave, rate, reason',
  [
    (np.full(100, np.nan), 8000, 'NaN'),
    (np.full(100, np.inf), 8000, 'infinite'),
    (np.zeros(0), 8000, 'without samples'),
    (np.zeros(1), 48000, 'nothing left'),
    (np.zeros(100), 500, '500 Hz'),
    (np.zeros((10, 17)), 8000, '17 channels'),
  ],
  ids=lambda value: value if isinstance(value, str) else '',
)
def test_unusable_sounds_are_refused(wave, rate, reason):
  with pytest.raises(BadRecord, match=reason):
    decode_audio(sound_file(wave, rate, subtype='FLOAT'), AUDIO)


@pytest.mark.parametrize(
  'format, subtype',
  [
    ('WAV', 'PCM_16'),
    ('RF64', 'PCM_16'),
    ('FLAC', None),
    ('OGG', 'VORBIS'),
    ('OGG', 'OPUS'),
    ('MP3', None),
    ('AIFF', 'PCM_16'),
  ],
)
def test_a_sound_that_is_cut_off_is_refused(format, subtype):
  wave = np.random.default_rng(0).uniform(-0.5, 0.5, 7000)
  data = sound_file(wave, 8000, format, subtype)
  for share in (0.3, 0.6, 0.9):
    with pytest.raises(BadRecord):
      decode_audio(data[: int(len(data) * share)], AUDIO)


def test_read_media_refuses_anything_but_a_file_of_sensible_size(tmp_path, monkeypatch):
  file = tmp_path / 'a.wav'
  file.write_bytes(b'12345')
  assert read_media(file) == b'12345'
  with pytest.raises(BadRecord, match='not a regular file'):
    read_media(tmp_path)
  with pytest.raises(BadRecord, match='no such file'):
    read_media(tmp_path / 'none')
  with pytest.raises(BadRecord, match='cannot be read|no such file'):
    read_media(tmp_path / ('x' * 300))
  monkeypatch.setattr(files, 'MAX_BYTES', 4)
  with pytest.raises(BadRecord, match='5 bytes'):
    read_media(file)


def test_bad_record_survives_pickling():
  error = pickle.loads(pickle.dumps(BadRecord('sound without samples', 'a:3')))
  assert error.reason == 'sound without samples'
  assert error.id == 'a:3'
  assert str(error) == 'a:3: sound without samples'


@pytest.mark.parametrize('format', ['PNG', 'GIF', 'TIFF', 'WAV', 'FLAC'])
@pytest.mark.filterwarnings('ignore')  # Pillow warns about broken metadata
def test_a_file_with_random_damage_is_either_read_or_refused(format):
  if format in ('WAV', 'FLAC'):
    whole = sound_file(tone(8000), format=format)
    decode = partial(decode_audio, config=AUDIO)
  else:
    whole = image_file(Image.radial_gradient('L').resize((20, 20)), format)
    decode = partial(decode_image, config=GRAY)
  rng = np.random.default_rng(0)
  for _ in range(60):
    data = bytearray(whole)
    # In the headers, where damage does harm.
    for at in rng.integers(min(len(data), 200), size=3):
      data[at] = rng.integers(256)
    with contextlib.suppress(BadRecord):
      assert np.isfinite(decode(bytes(data))).all()


def test_malformed_files_are_read_correctly_or_refused():
  if not MALFORMED.is_dir():
    pytest.skip(
      f'{MALFORMED} is missing: the broken files are not part of the repository'
    )
  decoders = (
    partial(decode_image, config=COLOUR),
    partial(decode_audio, config=AudioConfig(seconds=60)),
  )
  usable = set()
  for entry in json.loads((MALFORMED / 'malformed.json').read_text()):
    data = (MALFORMED / entry['file']).read_bytes()
    for decode in decoders:
      try:
        array = decode(data)
      except BadRecord as error:
        assert error.reason and '\n' not in error.reason
        continue
      assert np.isfinite(array).all()
      assert np.abs(array).max() <= 1
      usable.add(entry['file'])
  assert usable == USABLE


@pytest.mark.parametrize(
  'size, expected',
  [
    ((64, 64), (16, 16)),
    ((64, 32), (16, 8)),
    ((30, 64), (8, 16)),
    ((500, 10), (16, 2)),
    ((3, 3), (16, 16)),
    ((64, 47), (16, 12)),
  ],
)
def test_shapes_are_kept_in_whole_patches(size, expected):
  stretch = ImageConfig(height=16, width=16, channels=1, patch=2)
  keep = dataclasses.replace(stretch, fit='keep')
  assert fitted(*size, keep) == expected
  width, height = size
  image = png_bytes(np.random.default_rng(0).random((height, width, 1)))
  pixels = decode_image(image, keep)
  assert pixels.shape == (expected[1], expected[0], 1)
  assert decode_image(png_bytes(pixels), stretch).shape == (16, 16, 1)


def test_an_unknown_fit_is_refused():
  with pytest.raises(ValueError, match="'crop' is not a valid Fit"):
    ImageConfig(fit='crop')
