"""Faults 19 to 24: faults of records and of the processes that load them.

They are too many bad records, text without a token, examples that are too long, no
data, damaged files and dead workers.
"""

import json
import multiprocessing
import os
import re
import time
from typing import NamedTuple

from faults.records import bad_records, HOSTS, image, loader, sound, write_lines
import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest
from samples import BUDGET, chat, examples, text, tiny_run, with_rows

from omni_jax.data import example_maker
from omni_jax.data.sources.jsonl import JsonLines, parse_line
from omni_jax.data.sources.records import (
  ArrayRecordExamples,
  encode_example,
  unpack_example,
  write_array_record,
)
from omni_jax.errors import BadRecord, UserError
from omni_jax.train import stages

DATA = {'data.source': 'jsonl', 'data.budget.rows': 8}


def same(a, b):
  """Returns whether two batches are equal."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in leaves)


def bad_count(state):
  """Returns the number of bad records in the state of a loader with one lane."""
  return sum(json.loads(state)['lanes']['0']['bad'].values())


def images_with_a_damaged_one(count):
  """Returns images by file name, of which one is damaged."""
  media = {f'{k}.png': image(k) for k in range(count)}
  media['40.png'] = b'damaged'
  return media


def run(tmp_path, values):
  """Starts a run on JSON lines, with these values in its config."""
  config = tiny_run()
  with config.unlocked():
    for name, value in (DATA | values).items():
      config.update_from_flattened_dict({name: value})
  config.stages = ('omni',)
  config.data.budget.streams.audio.spoken = (0, 0)
  stages.run_all(config, str(tmp_path / 'run'))


def test_fault_19_a_few_bad_records_are_counted_and_the_count_is_restored(tmp_path):
  """One in 120 is bad; the count is part of the state."""
  path = write_lines(tmp_path, images_with_a_damaged_one(120))
  batches = loader(JsonLines(path, HOSTS))
  for _ in range(60):
    next(batches)
    state = batches.state()
    if bad_count(state):
      break
  assert bad_count(state) == 1
  resumed = loader(JsonLines(path, HOSTS))
  resumed.restore(state)
  for _ in range(3):
    assert same(next(batches), next(resumed))
  assert batches.state() == resumed.state()


def test_fault_19_less_than_one_bad_record_in_a_hundred_never_stops_a_run(tmp_path):
  path = write_lines(tmp_path, images_with_a_damaged_one(150))
  batches = loader(JsonLines(path, HOSTS), budget=with_rows(BUDGET, 16))
  for _ in range(400):
    next(batches)
    count = bad_count(batches.state())
    if count > 13:
      break
  assert count > 13, 'too few to show anything: 11 stop a short run'


def test_fault_19_too_many_bad_records_stop_the_run_with_a_summary(tmp_path):
  media = {f'{k}.png': b'damaged' if k % 3 else image(k) for k in range(30)}
  batches = loader(JsonLines(write_lines(tmp_path, media), HOSTS))
  message = (
    r'11 of \d+ records are bad: 11 x not an image, .*, such as .*\.png: .*; '
    'fix the data'
  )
  with pytest.raises(UserError, match=message):
    for _ in range(30):
      next(batches)


class Group(NamedTuple):
  """A group of bad records in the summary 'COUNT x KIND, such as EXAMPLE; ...'."""

  count: int
  kind: str
  example: str


def groups_in(summary):
  """Returns the groups that the message of an error lists."""
  text = summary.removesuffix('; fix the data').partition(' are bad: ')[2]
  groups = []
  # A kind may have a semicolon of its own, but no digits.
  for group in re.split(r'; (?=\d+ x )', text):
    count, _, rest = group.partition(' x ')
    kind, _, example = rest.partition(', such as ')
    groups.append(Group(int(count), kind, example))
  return groups


def test_fault_19_the_summary_groups_by_kind_whatever_path_or_number_a_reason_names(
  tmp_path,
):
  """The groups have one example each and are sorted by their counts.

  The run is stopped alike after a restart, also from a state that older code saved.
  """
  media = {}
  for k in range(7):
    media[f'{k}.damaged.png'] = b'damaged'
  for k in range(7):
    media[f'{k}.cut.wav'] = sound(k, 1200 + 8 * k)[:-900]
  for k in range(7):
    media[f'{k}.empty.png'] = b''
  path = write_lines(tmp_path, media)
  (tmp_path / '3.empty.png').unlink()
  batches = loader(JsonLines(path, HOSTS), budget=with_rows(BUDGET, 1))
  with pytest.raises(UserError) as raised:
    while True:
      state = batches.state()
      next(batches)
  summary = str(raised.value)
  assert summary.startswith('11 of')
  groups = groups_in(summary)
  kinds = [group.kind for group in groups]
  known_kinds = ('not an image', 'WAV cut off', 'file is empty', 'no such file')
  assert len(kinds) == len(set(kinds)) <= len(known_kinds)
  for group in groups:
    assert group.kind.startswith(known_kinds), groups
    assert not any(letter.isdigit() for letter in group.kind), groups
    assert group.example.partition(': ')[0] in media, group
    assert group.kind[:12] in group.example, group
  counts = [group.count for group in groups]
  assert sum(counts) == 11
  assert counts == sorted(counts, reverse=True)
  check_stops_again(path, state)
  older = json.loads(state)
  for lane in older['lanes'].values():
    del lane['such_as']
  check_stops_again(path, json.dumps(older).encode())


def check_stops_again(path, state):
  """Checks that a loader restored from a state also stops at 11 bad records."""
  batches = loader(JsonLines(path, HOSTS), budget=with_rows(BUDGET, 1))
  batches.restore(state)
  with pytest.raises(UserError, match=r'11 of \d+ records are bad'):
    while True:
      next(batches)


@pytest.mark.parametrize(
  'example, message',
  [
    (chat('a', [text('x')], [text('y')], language='tlh'), 'tlh'),
    (chat('a', [text('x')], [text('y')], voice='nobody'), 'nobody'),
  ],
  ids=['language', 'voice'],
)
def test_fault_20_a_name_without_a_token_is_refused_at_the_first_batch(
  example, message
):
  with pytest.raises(UserError, match=message):
    next(loader([example]))


def test_fault_20_every_token_is_inside_the_vocabulary():
  """No text leads to an id outside, which a gather in JAX would clamp silently."""
  examples = []
  for k, words in enumerate(('\0', '\uffff', '𝄞é', '<boi>')):
    examples.append(chat(str(k), [text(words)], [text(words)]))
  batch = next(loader(examples))
  for ids in (batch.token_BL, batch.target_BL):
    assert ids.min() >= 0 and ids.max() < HOSTS.tokenizer.vocab_size


def test_fault_21_an_example_longer_than_a_row_is_named_and_no_span_is_cut():
  message = (
    r'example needs more than a row has room for: length \d{3} of 96.*'
    r'raise config\.data\.budget'
  )
  with pytest.raises(UserError, match=message):
    next(loader([chat('long', [text('x' * 200)], [text('y')])]))
  batch = next(loader(examples(0), budget=with_rows(BUDGET, 4)))
  drawn = batch.streams['image.drawn']
  images = 0
  for row, item_M in enumerate(drawn.item_BM):
    for item in range(1, item_M.max() + 1):
      positions = drawn.write_at_BM[row, item_M == item]
      assert len(positions) == drawn.form_BN3[row, item - 1].prod()
      assert (positions >= 0).all()
      assert (np.diff(positions) == 1).all(), 'patches must be side by side'
      images += 1
  assert images >= 4


@pytest.mark.parametrize(
  'content, message',
  [('', 'holds no examples'), ('\n\n', 'holds no examples'), (None, 'cannot be read')],
  ids=['empty', 'blank', 'missing'],
)
def test_fault_22_no_data_are_refused_before_compilation(tmp_path, content, message):
  if content is not None:
    (tmp_path / 'train.jsonl').write_text(content)
  values = {'data.root': str(tmp_path), 'data.train_file': 'train.jsonl'}
  with pytest.raises(UserError, match=message):
    run(tmp_path, values)


def test_fault_22_fewer_examples_than_a_batch_are_repeated_and_an_empty_shard_is_refused(
  tmp_path,
):
  path = write_lines(tmp_path, {'a.png': image()})
  assert next(loader(JsonLines(path, HOSTS))).segment_BL.max() > 1
  write_array_record(tmp_path / 'empty.array_record', [])
  with pytest.raises(UserError, match='holds no examples'):
    ArrayRecordExamples(tmp_path / 'empty.array_record', HOSTS)


def test_fault_23_a_damaged_block_is_named_by_shard_and_index_and_the_others_are_read(
  tmp_path,
):
  path = write_lines(tmp_path, {f'{k}.png': image(k) for k in range(40)})
  source = JsonLines(path, HOSTS)
  target = tmp_path / 'a.array_record'
  encoded = [encode_example(source.encoded(k), source.read_file) for k in range(40)]
  write_array_record(target, encoded)
  data = bytearray(target.read_bytes())
  inside_image = data.index(image(20)) + 30
  data[inside_image] ^= 1
  target.write_bytes(data)
  records = ArrayRecordExamples(target, HOSTS)
  errors = bad_records(records)
  assert list(errors) == [20], errors
  assert 'a.array_record:20' in str(errors[20]) or '20.png' in str(errors[20])
  batches = loader(records)
  for _ in range(4):
    assert next(batches).segment_BL.any(), 'the stream continues'


class DyingExamples(list):
  """Ends the process that reads an example."""

  def __getitem__(self, index):
    os._exit(9)


class HangingExamples(list):
  """Hangs when an example is read."""

  def __getitem__(self, index):
    time.sleep(300)


@pytest.mark.parametrize(
  'kind, message, timeout',
  [
    (DyingExamples, 'a data worker has died', 120.0),
    (HangingExamples, 'has returned nothing for 3 s: it hangs', 3.0),
  ],
  ids=['dies', 'hangs'],
)
def test_fault_24_a_data_worker_that_dies_or_hangs_is_an_error_in_time(
  monkeypatch, kind, message, timeout
):
  """A worker has to start before it dies; that takes over 3 s on a busy machine."""
  monkeypatch.setattr(example_maker, 'TIMEOUT', timeout)
  batches = loader(kind(examples(0)), workers=1)
  try:
    with pytest.raises(UserError, match=message):
      next(batches)
    deadline = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < deadline:
      time.sleep(0.1)
    children = multiprocessing.active_children()
    assert not children, 'the command would wait for its workers'
  finally:
    batches.close()
    for process in multiprocessing.active_children():
      process.kill()


KEYS = [
  'id',
  'messages',
  'content',
  'role',
  'type',
  'text',
  'path',
  'data',
  'image',
  'meta',
]
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)


def lists_and_dicts(inner):
  dicts = st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
  return st.lists(inner, max_size=3) | dicts


JSON = st.recursive(VALUES, lists_and_dicts, max_leaves=20)
JSON_LINE = JSON.map(lambda value: json.dumps(value).encode())


@hypothesis.settings(max_examples=200)
@hypothesis.given(st.one_of(JSON_LINE, st.binary(max_size=80)))
def test_fault_20_any_line_and_any_record_is_an_example_or_a_bad_record(line):
  for read in (parse_line, unpack_example):
    try:
      example = read(line)
    except BadRecord as error:
      assert error.reason
      continue
    assert isinstance(example['id'], str)
    assert ('messages' in example) != ('content' in example)


def test_fault_25_paths_and_links_out_of_the_folder_of_the_records_are_refused(
  tmp_path,
):
  (tmp_path / 'secret.png').write_bytes(image())
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'link.png').symlink_to(tmp_path / 'secret.png')
  (tmp_path / 'in' / 'sound.wav').write_bytes(sound())
  file = tmp_path / 'in' / 'train.jsonl'
  for path, error, message in (
    ('../secret.png', UserError, 'leaves the folder'),
    (str(tmp_path / 'secret.png'), UserError, 'leaves the folder'),
    ('link.png', BadRecord, 'a link that leaves the folder'),
  ):
    part = {'type': 'image', 'path': path}
    file.write_text(json.dumps({'content': [part]}) + '\n')
    with pytest.raises(error, match=message):
      JsonLines(file, HOSTS)[0]
