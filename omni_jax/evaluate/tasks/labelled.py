"""Makes judges for JSON lines with labelled media.

They are fitted to the real training media and measured on the real test media.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from omni_jax.data.sources.digits import Digits
from omni_jax.data.sources.espeak import Clip
from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.errors import BadRecord
from omni_jax.evaluate.judges import fit_judges, Judges

MAX_IMAGES = 20_000  # most images that are fitted to: the cost grows with their square
NO_LANGUAGE = '-'


class Classes(NamedTuple):
  """Classes that the model can draw or say, and judges that tell them apart.

  Attributes:
    names: the labels, in the order of the judges' numbers.
    judges: the judges.
    media: the media that the judges were fitted to and measured on.
  """

  names: tuple[str, ...]
  judges: Judges
  media: Digits


class LabelledMedium(NamedTuple):
  """A labelled medium, and whether an assistant ever writes it."""

  part: Mapping[str, str]
  written: bool


class _LabelledFile(NamedTuple):
  """The labelled media of a file by their paths, and the labels that are classes."""

  lines: JsonLines
  media: Mapping[str, LabelledMedium]
  names: Sequence[str]


def classes_of(
  train: JsonLines, test: JsonLines, *, rate: int, seed: int = 0
) -> Classes | None:
  """Returns the classes that assistants draw or say in `train`, with their judges.

  The result is None if nothing there is labelled, or if images or clips of the classes
  are missing from either file.

  Args:
    train: the file that judges are fitted to.
    test: the file that judges are measured on.
    rate: samples per second of sounds.
    seed: seed of the choice among many images, and of the fit.
  """
  train_media = labelled_media(train)
  test_media = labelled_media(test)
  labels = {medium.part['label'] for medium in train_media.values() if medium.written}
  names = tuple(sorted(labels))
  if not names:
    return None
  train_file = _LabelledFile(train, train_media, names)
  test_file = _LabelledFile(test, test_media, names)
  train_images, train_labels = _labelled_images(train_file, seed)
  test_images, test_labels = _labelled_images(test_file, seed)
  train_clips = _labelled_clips(train_file)
  test_clips = _labelled_clips(test_file)
  parts = (train_images, test_images, train_clips, test_clips)
  if not all(len(part) for part in parts):
    return None
  media = Digits(
    train_images=train_images,
    train_labels=train_labels,
    test_images=test_images,
    test_labels=test_labels,
    train_clips=train_clips,
    take_clips=test_clips,
    test_clips=test_clips,
  )
  judges = fit_judges(media, rate=rate, seed=seed)
  real = dict(judges.real)
  del real['language']  # the labels do not give it
  return Classes(names, judges._replace(real=real), media)


def labelled_media(lines: JsonLines) -> dict[str, LabelledMedium]:
  """Returns every labelled medium of a file by its path."""
  media: dict[str, LabelledMedium] = {}
  for index in range(len(lines)):
    for message in lines.encoded(index).get('messages', []):
      for part in message['content']:
        if not part.get('label'):
          continue
        before = media.get(part['path'])
        written = message['role'] == 'assistant' or bool(before and before.written)
        media[part['path']] = LabelledMedium(part, written)
  return media


class _DecodedMedium(NamedTuple):
  """A medium of one of the classes: its class number, its part, and the decoded part."""

  number: int
  part: Mapping[str, str]
  decoded: Mapping[str, Any]


def _decoded(
  file: _LabelledFile, kind: str, paths: Sequence[str]
) -> list[_DecodedMedium]:
  """Returns the media of a type that show a class and can be decoded."""
  decoded: list[_DecodedMedium] = []
  for path in paths:
    part = file.media[path].part
    if part['type'] != kind or part['label'] not in file.names:
      continue
    try:
      number = file.names.index(part['label'])
      decoded.append(_DecodedMedium(number, part, file.lines.decode(dict(part))))
    except BadRecord:
      continue  # the training loader counts them
  return decoded


def _labelled_images(file: _LabelledFile, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns images and their labels, of at most MAX_IMAGES files chosen at random."""
  media = file.media.items()
  paths = [path for path, medium in media if medium.part['type'] == 'image']
  order = np.random.default_rng(seed).permutation(len(paths))
  chosen = [paths[k] for k in order[:MAX_IMAGES]]
  images = _decoded(file, 'image', chosen)
  pixels = [image.decoded['pixels'] for image in images]
  labels = [image.number for image in images]
  return np.array(pixels, np.float32), np.array(labels, np.int64)


def _labelled_clips(file: _LabelledFile) -> list[Clip]:
  clips: list[Clip] = []
  for sound in _decoded(file, 'audio', list(file.media)):
    clip = Clip(
      wave=sound.decoded['wave'],
      digit=sound.number,
      language=NO_LANGUAGE,
      voice=sound.part.get('voice', ''),
      rate_wpm=0,
      pitch=0,
    )
    clips.append(clip)
  return clips
