"""Measures Hugging Face datasets with a PyTorch DataLoader on the same files.

The code is what their users would write.
"""

from collections.abc import Callable, Sequence
import functools
import itertools
import os
import time
from typing import Any

import numpy as np

from omni_jax.bench.bare import DECODERS
from omni_jax.data.example_maker import ExampleMaker
from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.errors import UserError
from omni_jax.modalities.hosts import Hosts, TEXT

BATCH = 64


def measure_peers(
  maker: ExampleMaker, workers: Sequence[int], examples: int, log: Callable[[str], None]
) -> dict[str, float]:
  """Returns examples per second by number of worker processes.

  The first quarter of the examples is left out. Tokens are bytes, and rows are padded
  instead of packed.

  Raises:
    UserError: if the source is not JSON lines, or if a package is missing.
  """
  lines = getattr(maker.examples, 'lines', maker.examples)
  if not isinstance(lines, JsonLines):
    raise UserError('--peers reads JSON lines: use a config with data.source jsonl')
  try:
    import datasets
    import torch.utils.data
  except ImportError as error:
    raise UserError(
      f'--peers needs the package {error.name!r}: pip install datasets torch'
    ) from error
  path = os.fspath(lines.path)
  rows = datasets.load_dataset('json', data_files=path, split='train')
  decode = functools.partial(transform, os.path.dirname(path), maker.hosts)
  rows = rows.with_transform(decode)
  rates = {}
  for count in workers:
    loader = torch.utils.data.DataLoader(
      rows,
      BATCH,
      shuffle=True,
      num_workers=count,
      collate_fn=collate,
      generator=torch.Generator().manual_seed(maker.seed),
    )
    rate = _examples_per_second(loader, examples)
    rates[str(count)] = rate
    log(f'datasets + DataLoader, {count} workers: {rate:.0f} examples/s')
  return rates


def _examples_per_second(loader: Any, examples: int) -> float:
  """Returns the speed of a DataLoader, without the first quarter of the examples."""
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
  """Returns, for each row, the tokens of its texts and the arrays of its media."""
  columns: dict[str, list[Any]] = {kind: [] for kind in (TEXT, *DECODERS)}
  for messages in rows['messages']:
    values: dict[str, list[Any]] = {kind: [] for kind in columns}
    parts = itertools.chain.from_iterable(message['content'] for message in messages)
    for part in parts:
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
  """Returns a batch in which every array is padded to the largest of its kind."""
  texts = [row[TEXT] for row in rows]
  batch = {'length': np.array([len(text) for text in texts]), TEXT: _padded(texts)}
  for kind in DECODERS:
    arrays = []
    for row in rows:
      arrays += row[kind]
    batch[kind] = _padded(arrays)
  return batch


def _padded(arrays: Sequence[np.ndarray]) -> np.ndarray:
  """Returns arrays of one rank stacked along a new first axis, padded with zeros."""
  if not arrays:
    return np.zeros(0)
  largest = np.max([array.shape for array in arrays], axis=0)
  padded = np.zeros((len(arrays), *largest), arrays[0].dtype)
  for target, array in zip(padded, arrays, strict=True):
    corner = tuple(slice(n) for n in array.shape)
    target[corner] = array
  return padded
