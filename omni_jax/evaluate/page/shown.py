"""Pieces of the report that are seen or heard: each a file in media/ and a part of the page itself."""

import base64
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

SHADES = (
  np.array(
    [[250, 250, 252], [190, 215, 235], [90, 150, 205], [35, 80, 150], [12, 25, 60]],
    np.float32,
  )
  / 255
)


class Shown(NamedTuple):
  """A part of a prompt or a reply in one form; the fields of other kinds are None."""

  kind: str  # 'text', 'image', 'audio'
  text: str | None = None
  pixels: np.ndarray | None = None
  wave: np.ndarray | None = None
  rate: int | None = None


def shown(part: Any, rate: int) -> Shown:
  """From a part of an example (a dict; audio at the run's rate) or of a reply (an object)."""
  get = (
    part.get if isinstance(part, Mapping) else lambda name: getattr(part, name, None)
  )
  kind = get('type')
  if kind == 'image':
    return Shown(kind, pixels=np.nan_to_num(np.asarray(get('pixels'), np.float32)))
  if kind == 'audio':
    wave = np.clip(np.nan_to_num(np.asarray(get('wave'), np.float32)), -1, 1)
    return Shown(kind, wave=wave, rate=get('rate') or rate)
  return Shown('text', text=str(get('text')))


def spectrogram(wave: np.ndarray, rate: int) -> np.ndarray:
  """Pixels (mels, columns, 3) of the log-mel, low tones at the bottom, the loudest 60 dB of the clip."""
  mel = log_mel(wave, rate=rate, mels=40)
  level = np.clip((mel - mel.max()) / 6.9 + 1, 0, 1).T[::-1]  # 6.9 nepers = 60 dB
  return np.stack(
    [np.interp(level, np.linspace(0, 1, len(SHADES)), SHADES[:, c]) for c in range(3)],
    axis=-1,
  )


def grid(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
  """Images of one size in rows, with a line of gray one pixel wide between them."""

  def joined(images, axis):
    shape = list(images[0].shape)
    shape[axis] = 1
    line = np.full(shape, 0.35, np.float32)
    pieces = [piece for image in images for piece in (image, line)][:-1]
    return np.concatenate(pieces, axis=axis)

  return joined([joined(row, 1) for row in rows], 0)


class Media:
  """Writes media files into a folder (None: nowhere) and returns the HTML that shows them without the folder."""

  def __init__(self, folder: epath.Path | None):
    self._folder = folder
    self._counts: dict[str, int] = {}

  def html(self, item: Shown, name: str) -> str:
    """HTML of one piece; picture and sound are saved under `name` and a number."""
    if item.kind == 'text':
      return f'<span class="word">{html.escape(item.text) or "∅"}</span>'
    if item.kind == 'image':
      return self.picture(item.pixels, name, css='digit')
    return self.player(item.wave, item.rate, name)

  def embedded(self, file: contract.Shown, name: str) -> str:
    """Returns HTML of a file that a medium's host made: a picture, or a sound to see and to hear."""
    if file.suffix == 'wav':
      wave, rate = soundfile.read(io.BytesIO(file.data), dtype='float32')
      return self.player(wave, rate, name)
    self._save(file.data, name, file.suffix)
    url = _data_url(file.data, file.mime)
    return f'<img class="digit" alt="{html.escape(name)}" src="{url}">'

  def picture(self, pixels: np.ndarray, name: str, *, css: str) -> str:
    raw = png_bytes(pixels)
    self._save(raw, name, 'png')
    return f'<img class="{css}" alt="{html.escape(name)}" src="{_data_url(raw, "image/png")}">'

  def player(self, wave: np.ndarray, rate: int, name: str) -> str:
    if not len(wave):
      return '<span class="word">∅</span>'
    raw = wav_bytes(wave, rate)
    file = self._save(raw, name, 'wav')
    picture = _data_url(png_bytes(spectrogram(wave, rate)), 'image/png')
    return (
      f'<span class="sound"><img class="spectrogram" alt="spectrogram" src="{picture}">'
      f'<audio controls preload="metadata" src="{_data_url(raw, "audio/wav")}"></audio>'
      f'<small class="file">{html.escape(file)}</small></span>'
    )  # on paper, in the player's place

  def _save(self, raw: bytes, name: str, suffix: str) -> str:
    """The file's name, which is new each time."""
    count = self._counts[name] = self._counts.get(name, -1) + 1
    file = f'{name}_{count:02d}.{suffix}'
    if self._folder is not None:
      (self._folder / file).write_bytes(raw)
    return file


def _data_url(raw: bytes, mime: str) -> str:
  return f'data:{mime};base64,{base64.b64encode(raw).decode()}'
