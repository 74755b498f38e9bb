"""Decodes picture files into pixels and encodes pixels as PNG.

Limits are checked in the header, before anything is decoded. Whatever is wrong with the
bytes becomes one `BadRecord` with a reason, and decoded pixels have exactly the shape
and the range that the run's configuration asks for.
"""

import io

from jaxtyping import Float32, Num, UInt8
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from omni_jax.errors import BadRecord
from omni_jax.modalities.files import check_size
from omni_jax.modalities.image.sizes import Fit, ImageConfig

MAX_PIXELS = 50_000_000  # in one decoded image
# The suffixes of each format. Not all that Pillow supports: EPS, for one, runs an
# interpreter on the file.
FORMATS = {
  'PNG': ('.png',),
  'JPEG': ('.jpg', '.jpeg'),
  'WEBP': ('.webp',),
  'GIF': ('.gif',),
  'BMP': ('.bmp',),
  'TIFF': ('.tif', '.tiff'),
  'PPM': ('.ppm',),
}


def decode_image(
  data: bytes, config: ImageConfig
) -> Float32[np.ndarray, 'height width channels']:
  """Returns pixels in [0, 1], at the run's size for this image (see `fitted`).

  EXIF rotation is applied, transparent pixels are laid over white, and only the first
  frame of an animation is used. The image becomes gray if the run has one channel.

  Raises:
    BadRecord: if the file is too large, damaged or not an image.
  """
  check_size(data)
  try:
    with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
      return _decode(image, config)
  except BadRecord:
    raise
  except Image.DecompressionBombError as error:
    # Pillow's own limit, which may be met before ours.
    raise BadRecord(f'image of more than the {MAX_PIXELS:,} pixels allowed') from error
  except UnidentifiedImageError as error:
    formats = ' '.join(FORMATS)
    raise BadRecord(
      f'not an image, or a damaged one; known formats are {formats}'
    ) from error
  except Exception as error:
    # Pillow's parsers raise all kinds of errors: OSError, SyntaxError, struct.error, …
    raise BadRecord(f'damaged image ({type(error).__name__}: {error})') from error


def fitted(width: int, height: int, config: ImageConfig) -> tuple[int, int]:
  """Returns the (width, height) to which an image of this size is resized."""
  if config.fit == Fit.STRETCH:
    return config.width, config.height
  scale = min(config.width / width, config.height / height) / config.patch
  columns = max(1, round(width * scale))
  rows = max(1, round(height * scale))
  return columns * config.patch, rows * config.patch


def _decode(
  image: Image.Image, config: ImageConfig
) -> Float32[np.ndarray, 'height width channels']:
  """Returns the pixels of an opened image once its header has been checked."""
  width, height = image.size
  if width * height > MAX_PIXELS:
    raise BadRecord(
      f'image of {width} x {height} pixels, more than the {MAX_PIXELS:,} allowed'
    )
  # Lets JPEG decode a large photograph at a fraction of its size.
  side = 4 * max(config.height, config.width)
  image.draft(None, (side, side))
  image.load()
  if image.info:  # holds the EXIF rotation, whatever the format
    ImageOps.exif_transpose(image, in_place=True)
  return _pixels(image, config)


def _pixels(
  image: Image.Image, config: ImageConfig
) -> Float32[np.ndarray, 'height width channels']:
  """Returns the pixels of a decoded image, resized for the run."""
  size = fitted(*image.size, config)
  if image.mode == 'F':
    raise BadRecord(
      'image of floating-point pixels, whose range is unknown; save it with 8 or 16 '
      'bits per channel'
    )
  if image.mode.startswith('I'):
    pixels_hwc = _gray_of_16_bits(image, size, config.channels)
  else:
    pixels_hwc = _pixels_of_8_bits(image, size, config.channels)
  return pixels_hwc.reshape(size[1], size[0], config.channels)


def _gray_of_16_bits(
  image: Image.Image, size: tuple[int, int], channels: int
) -> Float32[np.ndarray, 'height width channels']:
  """Returns the pixels of a 16-bit gray image, resized to (width, height).

  Pillow's own conversion to 8 bits would clip instead of scaling.
  """
  gray_hw = np.asarray(image).astype(np.float32) / 65535
  if gray_hw.min() < 0 or gray_hw.max() > 1:
    raise BadRecord('image of more than 16 bits per channel')
  resized = Image.fromarray(gray_hw).resize(size, Image.Resampling.BICUBIC)
  gray_hw = np.clip(np.asarray(resized), 0, 1)  # bicubic overshoots
  return np.repeat(gray_hw[..., None], channels, axis=-1)


def _pixels_of_8_bits(
  image: Image.Image, size: tuple[int, int], channels: int
) -> Float32[np.ndarray, ' values']:
  """Returns the flat pixel values of an image, resized to (width, height)."""
  image = _over_white(image)
  mode = {1: 'L', 3: 'RGB'}[channels]
  if image.mode != mode:
    image = image.convert(mode)
  if image.size != size:
    image = image.resize(size, Image.Resampling.BICUBIC)
  return np.frombuffer(image.tobytes(), np.uint8) / np.float32(255)


def _over_white(image: Image.Image) -> Image.Image:
  """Returns the image without transparency, laid over white."""
  if image.getbands()[-1] not in ('A', 'a') and 'transparency' not in image.info:
    return image
  image = image.convert('RGBA')
  return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)


def bytes_of(pixels: Num[np.ndarray, '*shape']) -> UInt8[np.ndarray, '*shape']:
  """Returns pixels in [0, 1] as uint8, rounded; uint8 stays as it is."""
  if pixels.dtype == np.uint8:
    return pixels
  return (pixels * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def png_bytes(pixels_hwc: Num[np.ndarray, 'height width channels']) -> bytes:
  """Returns a PNG file, 8 bits per channel, of gray or RGB pixels.

  Args:
    pixels_hwc: floats, which are clipped to [0, 1], or uint8.

  Raises:
    ValueError: if pixels are NaN or infinite.
  """
  if not np.isfinite(pixels_hwc).all():
    raise ValueError('pixels hold NaN or infinite values')
  if pixels_hwc.dtype != np.uint8:
    pixels_hwc = np.clip(pixels_hwc, 0, 1)
  values_hwc = bytes_of(pixels_hwc)
  is_gray = values_hwc.shape[-1] == 1
  image = Image.fromarray(values_hwc[..., 0] if is_gray else values_hwc)
  out = io.BytesIO()
  image.save(out, format='PNG')
  return out.getvalue()
