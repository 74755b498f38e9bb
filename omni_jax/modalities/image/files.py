"""Picture files to pixels and back: limits are read from the header before anything is decoded.

Whatever is wrong with the bytes ends as one `BadRecord` with a reason, and what comes out has exactly the shape and the
range of the run's configuration.
"""

import io

from jaxtyping import Float, Float32
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from omni_jax.errors import BadRecord
from omni_jax.modalities.files import check_size
from omni_jax.modalities.image.sizes import Fit, ImageConfig

MAX_PIXELS = 50_000_000  # of one decoded image
# Named rather than "all that Pillow knows": EPS, for one, starts an interpreter on the file.
IMAGE_FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM')


def decode_image(
  data: bytes, config: ImageConfig
) -> Float32[np.ndarray, 'height width channels']:
  """Pixels in [0, 1] in a size of the run (`fitted`); gray where the run has one channel.

  EXIF rotation is applied, transparent pixels lie over white, of an animation only the first frame is used.
  """
  check_size(data)
  try:
    with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
      width, height = image.size
      if width * height > MAX_PIXELS:
        raise BadRecord(
          f'image of {width} x {height} pixels, more than the {MAX_PIXELS:,} allowed'
        )
      side = 4 * max(config.height, config.width)
      image.draft(
        None, (side, side)
      )  # lets JPEG decode a large photograph at a fraction of its size
      image.load()
      if image.info:  # where it says in any format how the camera was held
        ImageOps.exif_transpose(image, in_place=True)
      return _pixels(image, config)
  except BadRecord:
    raise
  except Image.DecompressionBombError as error:  # Pillow's own limit, met before ours
    raise BadRecord(f'image of more than the {MAX_PIXELS:,} pixels allowed') from error
  except UnidentifiedImageError as error:
    raise BadRecord(
      f'not an image, or a damaged one (known: {" ".join(IMAGE_FORMATS)})'
    ) from error
  except Exception as error:  # Pillow's parsers raise whatever they stumble over: OSError, SyntaxError, struct.error, …
    raise BadRecord(f'damaged image ({type(error).__name__}: {error})') from error


def fitted(width: int, height: int, config: ImageConfig) -> tuple[int, int]:
  """Width and height that an image of this size gets in the run."""
  if config.fit == Fit.STRETCH:
    return config.width, config.height
  scale = min(config.width / width, config.height / height) / config.patch
  return tuple(max(1, round(side * scale)) * config.patch for side in (width, height))


def _pixels(
  image: Image.Image, config: ImageConfig
) -> Float32[np.ndarray, 'height width channels']:
  size = fitted(*image.size, config)
  if image.mode == 'F':
    raise BadRecord(
      'image of floating-point pixels, whose range is unknown: save it with 8 or 16 bits a channel'
    )
  if image.mode.startswith(
    'I'
  ):  # 16-bit gray: Pillow's own conversion to 8 bits clips instead of scaling
    gray_hw = np.asarray(image).astype(np.float32) / 65535
    if gray_hw.min() < 0 or gray_hw.max() > 1:
      raise BadRecord('image of more than 16 bits a channel')
    gray_hw = np.asarray(
      Image.fromarray(gray_hw).resize(size, Image.Resampling.BICUBIC)
    )
    pixels_hwc = np.repeat(
      np.clip(gray_hw, 0, 1)[..., None], config.channels, axis=-1
    )  # bicubic overshoots
  else:
    image, mode = _over_white(image), {1: 'L', 3: 'RGB'}[config.channels]
    image = image if image.mode == mode else image.convert(mode)
    image = (
      image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
    )
    pixels_hwc = np.frombuffer(image.tobytes(), np.uint8) / np.float32(255)
  return pixels_hwc.reshape(size[1], size[0], config.channels)


def _over_white(image: Image.Image) -> Image.Image:
  if image.getbands()[-1] not in ('A', 'a') and 'transparency' not in image.info:
    return image
  image = image.convert('RGBA')
  return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)


def png_bytes(pixels_hwc: Float[np.ndarray, 'height width channels']) -> bytes:
  """A PNG file, 8 bits a channel, of gray or RGB pixels in [0, 1]."""
  if not np.isfinite(pixels_hwc).all():
    raise ValueError('pixels hold NaN or infinite values')
  values = np.round(np.clip(pixels_hwc, 0, 1) * 255).astype(np.uint8)
  out = io.BytesIO()
  Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values).save(
    out, format='PNG'
  )
  return out.getvalue()
