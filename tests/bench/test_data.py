"""The loading benchmarks count correctly, on files and on records."""

import collections
import json
import subprocess
import sys

import numpy as np
import pytest
import samples

from omni_jax.bench import bare, corpus
from omni_jax.bench.data import Counts, measure_overhead, measure_rate, take
from omni_jax.data.example_maker import ExampleMaker
from omni_jax.data.loader import Loader
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
EXAMPLES = 40


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Returns a folder with JSON lines, each a question with an image and a sound."""
  root = tmp_path_factory.mktemp('bench')
  rng = np.random.default_rng(0)
  lines = []
  for k in range(EXAMPLES):
    (root / f'{k}.png').write_bytes(png_bytes(rng.random((12, 10, 3), np.float32)))
    (root / f'{k}.wav').write_bytes(wav_bytes(rng.uniform(-0.5, 0.5, 3000 + k), 16_000))
    image = {'type': 'image', 'path': f'{k}.png'}
    sound = {'type': 'audio', 'path': f'{k}.wav'}
    question = {'role': 'user', 'content': [image, sound]}
    answer = {'role': 'assistant', 'content': 'yes'}
    lines.append(json.dumps({'messages': [question, answer]}) + '\n')
  (root / 'train.jsonl').write_text(''.join(lines))
  return root


@pytest.fixture(scope='module')
def maker(folder):
  """Returns the maker of the examples of the folder."""
  return ExampleMaker(JsonLines(folder / 'train.jsonl', HOSTS), HOSTS, seed=0)


def test_the_bare_loop_decodes_the_same_media(folder, maker):
  lines = maker.examples
  media = bare.encoded_media(lines, 3)
  assert [medium.kind for medium in media] == ['image', 'audio']
  pixels, wave = bare.decode_media(media, HOSTS)
  image = decode_image((folder / '3.png').read_bytes(), HOSTS['image'].config)
  np.testing.assert_allclose(pixels, image, atol=1e-6)
  sound = decode_audio((folder / '3.wav').read_bytes(), HOSTS['audio'].config)
  np.testing.assert_allclose(wave, sound, atol=2e-3)
  encoded = [encode_example(lines.encoded(k), lines.read_file) for k in range(EXAMPLES)]
  write_array_record(folder / 'x.array_record', encoded)
  records = ArrayRecordExamples(folder / 'x.array_record', HOSTS)
  from_records = bare.decode_media(bare.encoded_media(records, 3), HOSTS)
  np.testing.assert_array_equal(from_records[0], pixels)
  assert bare.encoded_media(range(5), 3) == []


def test_counts_are_those_of_the_batches(maker):
  counts = take(Loader(maker, BUDGET, prefetch=0), 30)
  loader = Loader(maker, BUDGET, prefetch=0)
  total = Counts.zero()
  while total.examples < 30:
    total += count_slowly(next(loader))
  assert counts == total
  # Every example shows an image of 16 patches and a sound of three frames.
  assert counts.pieces['image.seen'] == 16 * counts.examples
  assert counts.pieces['audio.heard'] == 3 * counts.examples
  assert counts.pieces['image.drawn'] == 0 < counts.capacity['image.drawn']


def count_slowly(batch):
  """Returns the counts of a batch, computed in another way than by `Counts.of`."""
  pieces = collections.Counter()
  for name, stream in batch.streams.items():
    pieces[name] = np.count_nonzero(stream.item_BM)
  capacity = collections.Counter()
  for name, (pieces_per_row, _) in STREAMS.items():
    capacity[name] = len(batch.streams[name].item_BM) * pieces_per_row
  examples = 0
  for segments_L in batch.segment_BL:
    examples += len(set(segments_L) - {0})
  tokens = np.count_nonzero(batch.segment_BL)
  return Counts(examples, tokens, batch.token_BL.size, pieces, capacity)


def test_overhead_and_rates_are_measured(maker):
  cost = measure_overhead(lambda: maker, BUDGET, 100)
  assert cost.loader > 0
  assert cost.bare > 0
  assert cost.augment == 0
  assert 0.5 < cost.filled <= 1
  assert set(cost.used_capacity) == set(STREAMS)
  assert cost.used_capacity['image.drawn'] == 0
  assert 0.5 < cost.used_capacity['image.seen'] <= 1
  assert 0 < cost.used_capacity['audio.heard'] < 1
  assert cost.ratio == pytest.approx(cost.loader / cost.bare)
  assert measure_rate(maker, BUDGET, workers=0, examples=30).examples > 0


def test_a_corpus_is_read_once_and_its_peak_memory_reported(tmp_path, maker):
  lines = []
  peaks = corpus.measure_peaks(str(tmp_path), 0.002, maker, BUDGET, lines.append)
  assert set(peaks) == {'tenth', 'whole'}
  assert all(50 < peak < 4000 for peak in peaks.values())
  shards = tmp_path.glob('*.array_record')
  records = sum(len(ArrayRecordExamples(path, HOSTS)) for path in shards)
  assert lines[0].startswith(f'corpus: {records} records, 0.00 GB')
  bytes_of_a_record = 12_000
  assert records * bytes_of_a_record > 0.9 * 2e6


def run_bench(folder, *arguments):
  """Runs a benchmark in a process of its own and returns its result."""
  command = [sys.executable, '-m', 'omni_jax.bench', *arguments]
  return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_the_command_prints_and_writes_figures_and_refuses_mistakes(folder, tmp_path):
  config = [
    f'--config={samples.ROOT}/configs/own_data.py',
    f'--config.data.root={folder}',
  ]
  out = tmp_path / 'figures.json'
  result = run_bench(
    tmp_path, 'data', *config, '--workers=0', '--examples=100', f'--out={out}'
  )
  assert result.returncode == 0, result.stderr
  assert 'image.seen: ' in result.stdout
  assert 'of its capacity is used' in result.stdout
  assert 'of which decoding alone takes' in result.stdout
  assert '0 workers:' in result.stdout
  figures = json.loads(out.read_text())
  assert [rate['workers'] for rate in figures['rates']] == [0]
  assert figures['overhead']['ratio'] > 1
  mistakes = {
    'unknown benchmark': ['speed'],
    'numbers of processes': ['data', *config, '--workers=-1'],
  }
  for message, arguments in mistakes.items():
    result = run_bench(tmp_path, *arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
