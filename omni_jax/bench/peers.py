"""Measures the same files through Hugging Face datasets and a PyTorch DataLoader.

The code is as their users would write it.
"""

from collections.abc import Callable, Sequence
import functools
import os
import time
from typing import Any

import numpy as np

from omni_jax.bench.bare import DECODERS
from omni_jax.data.making import Making
from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.errors import UserError
from omni_jax.types import MediaConfig

BATCH = 64


def measure_peers(
  making: Making, workers: Sequence[int], examples: int, log: Callable[[str], None]
) -> dict[str, float]:
  """Returns examples a second by number of worker processes.

  The first quarter is left out. Bytes are tokens, and rows are padded, not packed.
  """
  lines = getattr(making.examples, 'lines', making.examples)
  if not isinstance(lines, JsonLines):
    raise UserError('--peers reads JSON lines: take a config of source jsonl')
  try:
    import datasets
    import torch.utils.data
  except ImportError as error:
    raise UserError(
      f'--peers needs the package {error.name!r}: pip install datasets torch'
    ) from error
  rows = datasets.load_dataset('json', data_files=os.fspath(lines.path), split='train')
  rows = rows.with_transform(
    functools.partial(transform, os.path.dirname(os.fspath(lines.path)), making.media)
  )
  rates = {}
  for count in workers:
    loader = torch.utils.data.DataLoader(
      rows,
      BATCH,
      shuffle=True,
      num_workers=count,
      collate_fn=collate,
      generator=torch.Generator().manual_seed(making.seed),
    )
    rates[str(count)] = _examples_per_second(loader, examples)
    log(f'datasets + DataLoader, {count} workers: {rates[str(count)]:.0f} examples/s')
  return rates


def _examples_per_second(loader: Any, examples: int) -> float:
  count = 0
  start = 0.0
  count_at_start = 0
  for batch in loader:
    count += len(batch['length'])
    if not start and count >= examples // 4:
      start = time.perf_counter()
      count_at_start = count
    if count - count_at_start >= examples:
      break
  return (count - count_at_start) / (time.perf_counter() - start)


def transform(
  folder: str, media: MediaConfig, rows: dict[str, list[Any]]
) -> dict[str, list[Any]]:
  """Returns the tokens of all texts and the arrays of all media of each row."""
  configs = {'image': media.image, 'audio': media.audio}
  columns: dict[str, list[Any]] = {'tokens': [], 'image': [], 'audio': []}
  for messages in rows['messages']:
    values: dict[str, list[Any]] = {'text': [], 'image': [], 'audio': []}
    for part in (part for message in messages for part in message['content']):
      if part['type'] == 'text':
        values['text'].append(np.frombuffer(part['text'].encode(), np.uint8))
      else:
        with open(os.path.join(folder, part['path']), 'rb') as file:
          kind = part['type']
          values[kind].append(DECODERS[kind](file.read(), configs[kind]))
    texts = values.pop('text') or [np.zeros(0, np.uint8)]
    columns['tokens'].append(np.concatenate(texts))
    for kind, arrays in values.items():
      columns[kind].append(arrays)
  return columns


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
  """Returns a batch of rows, padded to the longest."""
  longest = max(len(row['tokens']) for row in rows)
  tokens_BL = np.zeros((len(rows), longest), np.int32)
  for row_L, row in zip(tokens_BL, rows, strict=True):
    row_L[: len(row['tokens'])] = row['tokens']
  images = [image for row in rows for image in row['image']]
  waves = [wave for row in rows for wave in row['audio']]
  waves_NS = np.zeros((len(waves), max(map(len, waves), default=0)), np.float32)
  for wave_S, wave in zip(waves_NS, waves, strict=True):
    wave_S[: len(wave)] = wave
  return {
    'length': np.array([len(row['tokens']) for row in rows]),
    'tokens': tokens_BL,
    'images': np.stack(images) if images else np.zeros(0),
    'waves': waves_NS,
  }
