"""Turns texts, pictures and sounds into HTML, and writes them as files into media/."""

from collections.abc import Mapping, Sequence
import html
import io
from typing import Any, NamedTuple

from etils import epath
import numpy as np
import soundfile

from omni_jax.evaluate.metrics.features import log_mel
from omni_jax.modalities import contract
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.image.files import png_bytes

# Colours of a spectrogram from quiet to loud.
SHADES = (
  np.array(
    [[250, 250, 252], [190, 215, 235], [90, 150, 205], [35, 80, 150], [12, 25, 60]],
    np.float32,
  )
  / 255
)
DEPTH = 6.9  # nepers (60 dB) below the loudest point that a spectrogram shows
LINE = 0.35  # gray level of the lines between images
NOTHING = '<span class="word">∅</span>'


class PagePart(NamedTuple):
  """A part of a prompt or of a reply; the fields of other kinds are None."""

  kind: str  # 'text', 'image', 'audio'
  text: str | None = None
  pixels: np.ndarray | None = None
  wave: np.ndarray | None = None
  rate: int | None = None


def page_part(part: Mapping[str, Any] | contract.Part, rate: int) -> PagePart:
  """Returns a part of an example (a mapping) or of a reply in the form of the report.

  Args:
    part: the part.
    rate: samples per second of a sound that does not state its own rate.
  """
  kind = _field(part, 'type')
  if kind == 'image':
    pixels = np.asarray(_field(part, 'pixels'), np.float32)
    return PagePart(kind, pixels=np.nan_to_num(pixels))
  if kind == 'audio':
    wave = np.nan_to_num(np.asarray(_field(part, 'wave'), np.float32))
    wave = np.clip(wave, -1, 1)
    return PagePart(kind, wave=wave, rate=_field(part, 'rate') or rate)
  return PagePart('text', text=str(_field(part, 'text')))


def _field(part: Mapping[str, Any] | contract.Part, name: str) -> Any:
  """Returns a field of a part, or None if it has no such field."""
  if isinstance(part, Mapping):
    return part.get(name)
  return getattr(part, name, None)


def spectrogram(wave: np.ndarray, rate: int) -> np.ndarray:
  """Returns pixels (mels, columns, 3) of the log-mel: the loudest 60 dB of the clip.

  Low tones are at the bottom.
  """
  mel = log_mel(wave, rate=rate, mels=40)
  level = np.clip((mel - mel.max()) / DEPTH + 1, 0, 1).T[::-1]
  levels = np.linspace(0, 1, len(SHADES))
  channels = [np.interp(level, levels, shades) for shades in SHADES.T]
  return np.stack(channels, axis=-1)


def grid(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
  """Returns images of one size in rows, with gray lines of one pixel between them."""
  strips = [_join(row, 1) for row in rows]
  return _join(strips, 0)


def _join(images: Sequence[np.ndarray], axis: int) -> np.ndarray:
  shape = list(images[0].shape)
  shape[axis] = 1
  line = np.full(shape, LINE, np.float32)
  pieces = [images[0]]
  for image in images[1:]:
    pieces += [line, image]
  return np.concatenate(pieces, axis=axis)


class Media:
  """Writes media files into a folder, and returns HTML that does not depend on them.

  If the folder is None, nothing is written.
  """

  def __init__(self, folder: epath.Path | None):
    self._folder = folder
    self._counts: dict[str, int] = {}

  def html(self, item: PagePart, name: str) -> str:
    """Returns the HTML of an item; pictures and sounds are saved as `name`_NUMBER."""
    if item.pixels is not None:
      return self.picture(item.pixels, name, css='digit')
    if item.text is not None:
      return f'<span class="word">{html.escape(item.text) or "∅"}</span>'
    assert item.wave is not None and item.rate is not None
    return self.player(item.wave, item.rate, name)

  def embedded(self, file: contract.MediaFile, name: str) -> str:
    """Returns the HTML of a file that a medium's host wrote.

    It is a picture, or the player of a sound with its spectrogram.
    """
    if file.suffix == 'wav':
      wave, rate = soundfile.read(io.BytesIO(file.data), dtype='float32')
      return self.player(wave, rate, name)
    return self._image(file, name, css='digit')

  def picture(self, pixels: np.ndarray, name: str, *, css: str) -> str:
    """Returns the HTML of an image.

    Args:
      pixels: the image in [0, 1], (height, width, channels).
      name: name of the file, without its number.
      css: class of the HTML element.
    """
    return self._image(_png(pixels), name, css=css)

  def _image(self, file: contract.MediaFile, name: str, *, css: str) -> str:
    """Saves a picture and returns its HTML."""
    self._save(file, name)
    return f'<img class="{css}" alt="{html.escape(name)}" src="{file.url}">'

  def player(self, wave: np.ndarray, rate: int, name: str) -> str:
    """Returns the HTML of a sound: its spectrogram and a player.

    On paper the name of its file takes the place of the player.
    """
    if not len(wave):
      return NOTHING
    sound = contract.MediaFile('wav', wav_bytes(wave, rate))
    saved = self._save(sound, name)
    picture = _png(spectrogram(wave, rate))
    return (
      '<span class="sound">'
      f'<img class="spectrogram" alt="spectrogram" src="{picture.url}">'
      f'<audio controls preload="metadata" src="{sound.url}"></audio>'
      f'<small class="file">{html.escape(saved)}</small></span>'
    )

  def _save(self, file: contract.MediaFile, name: str) -> str:
    """Saves a file under a new name, and returns the name."""
    count = self._counts.get(name, -1) + 1
    self._counts[name] = count
    path = f'{name}_{count:02d}.{file.suffix}'
    if self._folder is not None:
      (self._folder / path).write_bytes(file.data)
    return path


def _png(pixels: np.ndarray) -> contract.MediaFile:
  return contract.MediaFile('png', png_bytes(pixels))
