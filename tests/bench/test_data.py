"""The measurements of loading: they count what is there, on files as on records."""

import collections
import json
import subprocess
import sys

import numpy as np
import pytest
import samples

from omni_jax.bench import bare, corpus
from omni_jax.bench.data import Counts, measure_overhead, measure_rate, take
from omni_jax.data.loader import Loader
from omni_jax.data.making import Making
from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.data.sources.records import (
  ArrayRecordExamples,
  encode_example,
  write_array_record,
)
from omni_jax.modalities.audio.files import decode_audio, wav_bytes
from omni_jax.modalities.image.files import decode_image, png_bytes
from omni_jax.types import RowBudget

HOSTS = samples.hosts_of()
STREAMS = {'image.seen': (32, 2), 'audio.heard': (20, 4), 'image.drawn': (16, 1)}
BUDGET = RowBudget(rows=2, length=64, streams=STREAMS)
N = 40


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """JSON lines of an image and a sound each, every second with a text."""
  root, rng = tmp_path_factory.mktemp('bench'), np.random.default_rng(0)
  lines = []
  for k in range(N):
    (root / f'{k}.png').write_bytes(png_bytes(rng.random((12, 10, 3), np.float32)))
    (root / f'{k}.wav').write_bytes(wav_bytes(rng.uniform(-0.5, 0.5, 3000 + k), 16_000))
    shown = [
      {'type': 'image', 'path': f'{k}.png'},
      {'type': 'audio', 'path': f'{k}.wav'},
    ]
    lines.append(
      {
        'messages': [
          {'role': 'user', 'content': shown},
          {'role': 'assistant', 'content': 'yes'},
        ]
      }
    )
  (root / 'train.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return root


@pytest.fixture(scope='module')
def making(folder):
  return Making(JsonLines(folder / 'train.jsonl', HOSTS), HOSTS, seed=0)


def test_the_bare_loop_decodes_the_same_media(folder, making):
  lines = making.examples
  media = bare.encoded_media(lines, 3)
  assert [medium.kind for medium in media] == ['image', 'audio']
  pixels, wave = bare.decode_media(media, HOSTS)
  np.testing.assert_allclose(
    pixels,
    decode_image((folder / '3.png').read_bytes(), HOSTS['image'].config),
    atol=1e-6,
  )
  np.testing.assert_allclose(
    wave,
    decode_audio((folder / '3.wav').read_bytes(), HOSTS['audio'].config),
    atol=2e-3,
  )
  write_array_record(
    folder / 'x.array_record',
    [encode_example(lines.encoded(k), lines.read_file) for k in range(N)],
  )
  records = ArrayRecordExamples(folder / 'x.array_record', HOSTS)
  np.testing.assert_array_equal(
    bare.decode_media(bare.encoded_media(records, 3), HOSTS)[0], pixels
  )
  assert bare.encoded_media(range(5), 3) == []


def test_counts_are_of_the_batches(making):
  batches = Loader(making, BUDGET, prefetch=0)
  counts = take(batches, 30)
  again = Loader(making, BUDGET, prefetch=0)
  total = Counts.none()
  while total.examples < 30:
    batch = next(again)
    pieces = {name: np.count_nonzero(s.item_BM) for name, s in batch.streams.items()}
    room = {name: len(s.item_BM) * STREAMS[name][0] for name, s in used(batch)}
    total += Counts(
      sum(len(set(row) - {0}) for row in batch.segment_BL),
      np.count_nonzero(batch.segment_BL),
      batch.token_BL.size,
      collections.Counter(pieces),
      collections.Counter(room),
    )
  assert counts == total
  # Every example shows an image of 16 patches and a sound of three frames.
  assert counts.pieces['image.seen'] == 16 * counts.examples
  assert counts.pieces['audio.heard'] == 3 * counts.examples
  assert counts.pieces['image.drawn'] == 0 < counts.room['image.drawn']


def used(batch):
  """The streams that rows have room for."""
  return [(name, batch.streams[name]) for name in STREAMS]


def test_overhead_and_rates_are_measured(making):
  cost = measure_overhead(lambda: making, BUDGET, 100)
  assert cost.loader > 0 and cost.bare > 0 and cost.augment == 0
  assert 0.5 < cost.filled <= 1
  assert set(cost.streams) == set(STREAMS) and cost.streams['image.drawn'] == 0
  assert 0.5 < cost.streams['image.seen'] <= 1 and 0 < cost.streams['audio.heard'] < 1
  assert cost.ratio == pytest.approx(cost.loader / cost.bare)
  assert measure_rate(making, BUDGET, workers=0, examples=30).examples > 0


def test_a_corpus_is_read_through_and_its_memory_told(tmp_path, making):
  said = []
  peaks = corpus.measure_peaks(str(tmp_path), 0.002, making, BUDGET, said.append)
  assert set(peaks) == {'tenth', 'whole'} and all(
    50 < peak < 4000 for peak in peaks.values()
  )
  records = sum(
    len(ArrayRecordExamples(path, HOSTS)) for path in tmp_path.glob('*.array_record')
  )
  assert (
    said[0].startswith(f'corpus: {records} records, 0.00 GB')
    and records * 12_000 > 0.9 * 2e6
  )


def test_the_command(folder, tmp_path):
  command = [
    sys.executable,
    '-m',
    'omni_jax.bench',
    'data',
    f'--config={samples.ROOT}/configs/own_data.py',
    f'--config.data.root={folder}',
    '--workers=0',
    '--examples=100',
    f'--out={tmp_path}/figures.json',
  ]
  done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert 'image.seen: ' in done.stdout and 'of the pieces are real' in done.stdout
  assert 'times the bare' in done.stdout and '0 workers:' in done.stdout
  figures = json.loads((tmp_path / 'figures.json').read_text())
  assert [one['workers'] for one in figures['rates']] == [0] and figures['overhead'][
    'ratio'
  ] > 1
  for arguments, said in (
    (['speed'], 'measure what?'),
    ([*command[4:6], '--workers=-1'], 'numbers of processes'),
  ):
    done = subprocess.run(
      [
        sys.executable,
        '-m',
        'omni_jax.bench',
        *(['data'] if len(arguments) > 1 else []),
        *arguments,
      ],
      capture_output=True,
      text=True,
      cwd=tmp_path,
    )
    assert (
      done.returncode == 2
      and said in done.stderr
      and len(done.stderr.splitlines()) == 1
    ), done.stderr
