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
from omni_jax.modalities.hosts import Hosts, TEXT

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
    functools.partial(transform, os.path.dirname(os.fspath(lines.path)), making.hosts)
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
  folder: str, hosts: Hosts, rows: dict[str, list[Any]]
) -> dict[str, list[Any]]:
  """Returns the tokens of all texts and the arrays of all media of each row."""
  columns: dict[str, list[Any]] = {kind: [] for kind in (TEXT, *DECODERS)}
  for messages in rows['messages']:
    values: dict[str, list[Any]] = {kind: [] for kind in columns}
    for part in (part for message in messages for part in message['content']):
      kind = part['type']
      if kind == TEXT:
        values[TEXT].append(np.frombuffer(part['text'].encode(), np.uint8))
        continue
      with open(os.path.join(folder, part['path']), 'rb') as file:
        values[kind].append(DECODERS[kind](file.read(), hosts[kind].config))
    texts = values.pop(TEXT) or [np.zeros(0, np.uint8)]
    columns[TEXT].append(np.concatenate(texts))
    for kind, arrays in values.items():
      columns[kind].append(arrays)
  return columns


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
  """Returns a batch in which everything is padded to the largest of its kind."""
  batch = {'length': np.array([len(row[TEXT]) for row in rows])}
  batch[TEXT] = _padded([row[TEXT] for row in rows])
  for kind in DECODERS:
    batch[kind] = _padded([array for row in rows for array in row[kind]])
  return batch


def _padded(arrays: Sequence[np.ndarray]) -> np.ndarray:
  """Returns arrays of one rank as one."""
  if not arrays:
    return np.zeros(0)
  largest = np.max([array.shape for array in arrays], axis=0)
  whole = np.zeros((len(arrays), *largest), arrays[0].dtype)
  for target, array in zip(whole, arrays, strict=True):
    target[tuple(slice(n) for n in array.shape)] = array
  return whole
