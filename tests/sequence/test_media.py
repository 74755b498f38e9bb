"""Media files become arrays of the run's size, or one BadRecord; nothing else ever comes out."""

import contextlib
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
from omni_jax.modalities.image.files import decode_image, fitted, png_bytes
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.sequence.media import read_media

SHARED = pathlib.Path(__file__).parents[3] / 'shared' / 'data'
MALFORMED = SHARED / 'malformed'
GRAY = ImageConfig(height=8, width=8, channels=1)
COLOUR = ImageConfig(height=4, width=6, channels=3)
AUDIO = AudioConfig(rate=8000, seconds=0.96)
USABLE = {'really_a_jpg.png', 'really_a_wav.flac', 'loud_float.wav', 'silence.wav'}


def image_file(image: Image.Image, format: str = 'PNG', **options) -> bytes:
  out = io.BytesIO()
  image.save(out, format=format, **options)
  return out.getvalue()


def sound_file(
  wave, rate: int = 8000, format: str = 'WAV', subtype: str | None = None
) -> bytes:
  out = io.BytesIO()
  soundfile.write(out, wave, rate, format=format, subtype=subtype)
  return out.getvalue()


def tone(rate: int, seconds: float = 0.5) -> np.ndarray:
  return (
    0.5 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)
  ).astype(np.float32)


@pytest.mark.parametrize('config', [GRAY, COLOUR], ids=str)
def test_png_round_trip_is_exact(config):
  values = np.random.default_rng(0).integers(
    0, 256, (config.height, config.width, config.channels)
  )
  pixels = (values / 255).astype(np.float32)
  np.testing.assert_array_equal(decode_image(png_bytes(pixels), config), pixels)


def test_wav_round_trip_is_exact():
  wave = (np.random.default_rng(0).integers(-32768, 32768, 1000) / 32768).astype(
    np.float32
  )
  np.testing.assert_array_equal(decode_audio(wav_bytes(wave, 8000), AUDIO), wave)


def test_what_is_written_must_be_finite():
  with pytest.raises(ValueError, match='NaN'):
    png_bytes(np.full((2, 2, 1), np.nan, np.float32))
  with pytest.raises(ValueError, match='NaN'):
    wav_bytes(np.full(4, np.inf, np.float32), 8000)


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM'])
@pytest.mark.parametrize('config', [GRAY, COLOUR], ids=str)
def test_every_format_and_size_becomes_the_run_s(format, config):
  pixels = decode_image(
    image_file(Image.new('RGB', (37, 21), (204, 204, 204)), format), config
  )
  assert (
    pixels.shape == (config.height, config.width, config.channels)
    and pixels.dtype == np.float32
  )
  np.testing.assert_allclose(pixels, 0.8, atol=0.02)


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'WEBP', 'TIFF'])
def test_exif_rotation_is_applied(format):
  image = Image.new('RGB', (6, 4), 0)
  image.paste((255,) * 3, (0, 0, 3, 4))  # the left half is white
  exif = Image.Exif()
  exif[0x0112] = 6  # show rotated by 90 degrees clockwise: left becomes top
  pixels = decode_image(
    image_file(image, format, exif=exif), ImageConfig(height=6, width=4, channels=1)
  )[..., 0]
  assert pixels[:3].min() > 0.9 and pixels[3:].max() < 0.1


def test_transparency_lies_over_white():
  for image in (
    Image.new('RGBA', (4, 4), (0, 0, 0, 0)),
    Image.new('LA', (4, 4), (0, 0)),
  ):
    np.testing.assert_array_equal(decode_image(image_file(image), COLOUR), 1)
  palette = Image.new('P', (4, 4), 0)
  np.testing.assert_array_equal(
    decode_image(image_file(palette, transparency=0), GRAY), 1
  )
  half = decode_image(image_file(Image.new('RGBA', (4, 4), (0, 0, 0, 128))), GRAY)
  np.testing.assert_allclose(half, 127 / 255, atol=0.005)


def test_sixteen_bits_are_scaled_not_clipped():
  values = np.array([[0, 1000], [32768, 65535]], np.uint16)
  pixels = decode_image(
    image_file(Image.fromarray(values)), ImageConfig(height=2, width=2, channels=3)
  )
  np.testing.assert_allclose(
    pixels, np.repeat(values[..., None] / 65535, 3, -1), atol=1e-6
  )


def test_of_an_animation_the_first_frame_is_used():
  frames = [Image.new('L', (8, 8), value) for value in (255, 0)]
  np.testing.assert_array_equal(
    decode_image(
      image_file(frames[0], 'GIF', save_all=True, append_images=frames[1:]), GRAY
    ),
    1,
  )


def test_pixel_limit_is_read_from_the_header(monkeypatch):
  data = image_file(Image.new('1', (300, 200)))
  monkeypatch.setattr(image_files, 'MAX_PIXELS', 300 * 200)
  assert decode_image(data, GRAY).shape == (8, 8, 1)
  monkeypatch.setattr(image_files, 'MAX_PIXELS', 300 * 200 - 1)
  monkeypatch.setattr(
    image_files,
    '_pixels',
    lambda *_: pytest.fail('decoded before the limit was checked'),
  )
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
def test_every_format_and_rate_becomes_the_run_s(format, subtype, rate):
  wave = decode_audio(
    sound_file(np.stack([tone(rate)] * 2, 1), rate, format, subtype), AUDIO
  )
  assert wave.dtype == np.float32 and abs(len(wave) - 4000) <= 1
  n = min(len(wave), 3800)
  assert np.corrcoef(wave[200:n], tone(8000)[200:n])[0, 1] > 0.98


def test_big_endian_wav_is_read():
  values = np.array([0, 16384, -16384], '>i2')
  chunks = (
    b'WAVEfmt '
    + struct.pack('>IHHIIHH', 16, 1, 1, 8000, 16000, 2, 16)
    + b'data'
    + struct.pack('>I', 6)
  )
  data = b'RIFX' + struct.pack('>I', len(chunks) + 6) + chunks + values.tobytes()
  np.testing.assert_array_equal(decode_audio(data, AUDIO), [0, 0.5, -0.5])
  with pytest.raises(BadRecord, match='cut off'):
    decode_audio(data[:-2], AUDIO)


def header_of(channels=1, rate=8000, bits=16, size=400, **other):
  values = (
    dict(
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
    | other
  )
  return audio_files.PLAIN_WAV.pack(*values.values())


SAMPLES = np.random.default_rng(0).integers(-32768, 32768, 200).astype('<i2').tobytes()


def sound_or_reason(decode, data):
  try:
    sound = decode(data, AUDIO)
    return sound and (sound.wave_sc.tobytes(), sound.wave_sc.shape, sound.rate)
  except BadRecord as error:
    return error.reason


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
  data = header_of(channels, rate, size=len(samples)) + samples
  fast = sound_or_reason(audio_files._plain_wav, data)
  assert fast is not None and fast == sound_or_reason(audio_files._any_sound, data)
  too_long = header_of(size=2 * AUDIO.samples + 2) + bytes(2 * AUDIO.samples + 2)
  assert (
    'longer than'
    in sound_or_reason(audio_files._plain_wav, too_long)
    == sound_or_reason(audio_files._any_sound, too_long)
  )


def test_a_damaged_header_is_read_as_libsndfile_reads_it():
  """Whatever `_plain_wav` takes upon itself: sizes that do not fit, other codes, chunks behind the samples."""
  rng, whole, taken = np.random.default_rng(0), header_of() + SAMPLES, 0
  for k in range(600):
    data = bytearray(whole)
    at = k % audio_files.PLAIN_WAV.size
    data[at] = rng.integers(256) if k % 3 else data[at] ^ 1 << rng.integers(8)
    fast = sound_or_reason(audio_files._plain_wav, bytes(data))
    taken += fast is not None
    slow = sound_or_reason(
      audio_files._any_sound, bytes(data)
    )  # its reason may be libsndfile's own
    assert fast in (None, slow) or (isinstance(fast, str) and isinstance(slow, str)), (
      bytes(data[:44]).hex(' ')
    )
  assert 100 < taken < 500
  for other in (
    whole + b'x',
    whole + b'LIST\0\0\0\0',
    whole[:-1],
    whole[:44],
    whole[:20],
    header_of(bits=8) + SAMPLES,
  ):
    assert audio_files._plain_wav(other, AUDIO) is None


def test_channels_are_averaged_and_loud_sounds_scaled():
  stereo = np.array([[0.5, 0.0], [0.25, 0.25]], np.float32)
  np.testing.assert_allclose(
    decode_audio(sound_file(stereo, subtype='FLOAT'), AUDIO), [0.25, 0.25]
  )
  loud = np.array([0, 500, -1000], np.float32)
  np.testing.assert_allclose(
    decode_audio(sound_file(loud, subtype='FLOAT'), AUDIO), [0, 0.5, -1]
  )
  huge = np.array([3e38, 3e38], np.float32)
  np.testing.assert_allclose(
    decode_audio(sound_file(np.stack([huge] * 2, 1), subtype='FLOAT'), AUDIO), 1
  )


@pytest.mark.parametrize('rate', [8000, 11025, 44100])
def test_a_clip_of_the_longest_length_fits_and_one_longer_is_refused(rate):
  longest = AUDIO.samples * rate // AUDIO.rate
  assert len(decode_audio(sound_file(np.zeros(longest), rate), AUDIO)) <= AUDIO.samples
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
def test_a_sound_cut_off_is_never_read_short(format, subtype):
  wave = np.random.default_rng(0).uniform(-0.5, 0.5, 7000)
  data = sound_file(wave, 8000, format, subtype)
  for share in (0.3, 0.6, 0.9):
    with pytest.raises(BadRecord):
      decode_audio(data[: int(len(data) * share)], AUDIO)


def test_read_media_refuses_what_is_no_sensible_file(tmp_path, monkeypatch):
  (tmp_path / 'a.wav').write_bytes(b'12345')
  assert read_media(tmp_path / 'a.wav') == b'12345'
  for path, reason in (
    (tmp_path, 'not a regular file'),
    (tmp_path / 'none', 'no such file'),
    (tmp_path / ('x' * 300), 'cannot be read|no such file'),
  ):
    with pytest.raises(BadRecord, match=reason):
      read_media(path)
  monkeypatch.setattr(files, 'MAX_BYTES', 4)
  with pytest.raises(BadRecord, match='5 bytes'):
    read_media(tmp_path / 'a.wav')


def test_bad_record_survives_pickling():
  error = pickle.loads(pickle.dumps(BadRecord('sound without samples', 'a:3')))
  assert (error.reason, error.id, str(error)) == (
    'sound without samples',
    'a:3',
    'a:3: sound without samples',
  )


@pytest.mark.parametrize(
  'make',
  [
    lambda: image_file(Image.radial_gradient('L').resize((20, 20))),
    lambda: image_file(Image.radial_gradient('L').resize((20, 20)), 'GIF'),
    lambda: image_file(Image.radial_gradient('L').resize((20, 20)), 'TIFF'),
    lambda: sound_file(tone(8000)),
    lambda: sound_file(tone(8000), format='FLAC'),
  ],
)
@pytest.mark.filterwarnings('ignore')  # Pillow remarks on broken metadata
def test_random_damage_is_either_read_or_refused(make):
  rng, whole = np.random.default_rng(0), make()
  decode, config = (
    (decode_audio, AUDIO) if whole[:4] in (b'RIFF', b'fLaC') else (decode_image, GRAY)
  )
  for _ in range(60):
    data = bytearray(whole)
    for at in rng.integers(
      min(len(data), 200), size=3
    ):  # the headers, where the damage hurts
      data[at] = rng.integers(256)
    with contextlib.suppress(BadRecord):
      assert np.isfinite(decode(bytes(data), config)).all()


def test_malformed_files_are_read_right_or_refused():
  if not MALFORMED.is_dir():
    pytest.skip(
      f'{MALFORMED} is not here: it holds the broken files of the project, not part of the repository'
    )
  usable = set()
  for entry in json.loads((MALFORMED / 'malformed.json').read_text()):
    data = (MALFORMED / entry['file']).read_bytes()
    for decode, config in (
      (decode_image, COLOUR),
      (decode_audio, AudioConfig(seconds=60)),
    ):
      try:
        array = decode(data, config)
      except BadRecord as error:
        assert error.reason and '\n' not in error.reason
        continue
      assert np.isfinite(array).all() and np.abs(array).max() <= 1
      usable.add(entry['file'])
  assert usable == USABLE


@pytest.mark.parametrize(
  'size, wanted',
  [
    ((64, 64), (16, 16)),
    ((64, 32), (16, 8)),
    ((30, 64), (8, 16)),
    ((500, 10), (16, 2)),
    ((3, 3), (16, 16)),
    ((64, 47), (16, 12)),
  ],
)
def test_shapes_are_kept_in_whole_patches(size, wanted):
  config = ImageConfig(height=16, width=16, channels=1, patch=2, fit='keep')
  assert fitted(*size, config) == wanted
  pixels = decode_image(
    png_bytes(np.random.default_rng(0).random((size[1], size[0], 1))), config
  )
  assert pixels.shape == (wanted[1], wanted[0], 1)
  assert decode_image(
    png_bytes(pixels), ImageConfig(height=16, width=16, channels=1, patch=2)
  ).shape == (16, 16, 1)


def test_an_unknown_fit_is_refused():
  with pytest.raises(ValueError, match="'crop' is not a valid Fit"):
    ImageConfig(fit='crop')
