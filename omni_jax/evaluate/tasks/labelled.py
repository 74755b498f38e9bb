"""Judges for JSON lines with labelled media: fitted to the real training media, measured on the real test media."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from omni_jax.data.sources.digits import Digits
from omni_jax.data.sources.espeak import Clip
from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.errors import BadRecord
from omni_jax.evaluate import judges
from omni_jax.evaluate.judges import Judges

MOST_IMAGES = 20_000  # that the judge is fitted to: its cost grows with the square
NO_LANGUAGE = '-'


class Classes(NamedTuple):
  """What the model can be asked to draw or say, and the judges that tell it apart."""

  names: tuple[str, ...]  # the labels, by the judges' numbers
  judges: Judges
  media: Digits  # what the judges were fitted to and measured on


def classes_of(
  train: JsonLines, test: JsonLines, *, rate: int, seed: int = 0
) -> Classes | None:
  """Judges of the classes that assistants draw or say in `train`; None where nothing there is labelled."""
  train_media, test_media = labelled_media(train), labelled_media(test)
  names = tuple(
    sorted({part['label'] for part, written in train_media.values() if written})
  )
  images = [
    _labelled_images(train, train_media, names, seed),
    _labelled_images(test, test_media, names, seed),
  ]
  clips = [
    _labelled_clips(train, train_media, names),
    _labelled_clips(test, test_media, names),
  ]
  if not names or not all(len(images) for images, _ in images) or not all(clips):
    return None
  media = Digits(*images[0], *images[1], clips[0], clips[1], clips[1])
  fitted = judges.fit(media, rate=rate, seed=seed)
  return Classes(
    names,
    fitted._replace(
      real={key: value for key, value in fitted.real.items() if key != 'language'}
    ),
    media,
  )


def labelled_media(lines: JsonLines) -> dict[str, tuple[Mapping[str, str], bool]]:
  """Every labelled medium of a file by its path, and whether an assistant ever writes it."""
  found: dict[str, tuple[Mapping[str, str], bool]] = {}
  for k in range(len(lines)):
    for message in lines.encoded(k).get('messages', []):
      for part in message['content']:
        if part.get('label'):
          written = (
            message['role'] == 'assistant' or found.get(part['path'], (part, False))[1]
          )
          found[part['path']] = part, written
  return found


def _decoded_media(
  lines: JsonLines,
  media: Mapping,
  kind: str,
  names: Sequence[str],
  paths: Sequence[str],
) -> list[tuple[Mapping[str, str], dict[str, Any]]]:
  """The media of a kind that show a class, decoded; what cannot be decoded is left out."""
  found = []
  for path in paths:
    part = media[path][0]
    if part['type'] == kind and part['label'] in names:
      try:
        found.append((part, lines.decode(part)))
      except BadRecord:
        continue  # the loader of training counts them
  return found


def _labelled_images(
  lines: JsonLines, media: Mapping, names: Sequence[str], seed: int
) -> tuple[np.ndarray, np.ndarray]:
  paths = [path for path, (part, _) in media.items() if part['type'] == 'image']
  paths = [
    paths[k] for k in np.random.default_rng(seed).permutation(len(paths))[:MOST_IMAGES]
  ]
  found = _decoded_media(lines, media, 'image', names, paths)
  return (
    np.array([decoded['pixels'] for _, decoded in found], np.float32),
    np.array([names.index(part['label']) for part, _ in found], np.int64),
  )


def _labelled_clips(
  lines: JsonLines, media: Mapping, names: Sequence[str]
) -> list[Clip]:
  return [
    Clip(
      decoded['wave'],
      names.index(part['label']),
      NO_LANGUAGE,
      part.get('voice', ''),
      0,
      0,
    )
    for part, decoded in _decoded_media(lines, media, 'audio', names, list(media))
  ]
