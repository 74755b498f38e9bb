"""Faults 19 to 24: too many bad records, tokens that are none, samples that are too long, no data, torn files, dead workers."""

import json
import multiprocessing
import os
import time

from faults.records import HOSTS, image, lines, loader, sound
import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest
from samples import BUDGET, chat, examples, rows, text, tiny_run

from omni_jax.data import making
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
  assert jax.tree.structure(a) == jax.tree.structure(b)
  leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in leaves)


def run(tmp_path, **values):
  config = tiny_run()
  with config.unlocked():
    for name, value in (DATA | values).items():
      config.update_from_flattened_dict({name: value})
  config.stages = ('omni',)
  config.data.budget.streams.audio.spoken = (0, 0)
  stages.run_all(config, str(tmp_path / 'run'))


def test_fault_19_a_few_bad_records_are_counted_and_resumed_alike(tmp_path):
  """One in 120 is bad; the count is part of the state."""
  media = {f'{k}.png': b'torn' if k == 40 else image(k) for k in range(120)}
  batches = loader(JsonLines(lines(tmp_path, media), HOSTS))
  for _ in range(60):
    next(batches)
    if json.loads(state := batches.state())['lanes']['0']['bad']:
      break
  assert sum(json.loads(state)['lanes']['0']['bad'].values()) == 1
  again = loader(JsonLines(tmp_path / 'train.jsonl', HOSTS))
  again.restore(state)
  assert (
    all(same(next(batches), next(again)) for _ in range(3))
    and batches.state() == again.state()
  )


def test_fault_19_less_than_one_in_a_hundred_never_stops_a_run_however_many_they_become(
  tmp_path,
):
  media = {f'{k}.png': b'torn' if k == 40 else image(k) for k in range(150)}
  batches = loader(JsonLines(lines(tmp_path, media), HOSTS), budget=rows(BUDGET, 16))
  for _ in range(400):
    next(batches)
    if (count := sum(json.loads(batches.state())['lanes']['0']['bad'].values())) > 13:
      break
  assert count > 13, 'three more than stop a short run'


def test_fault_19_too_many_stop_the_run_with_a_summary(tmp_path):
  media = {f'{k}.png': b'torn' if k % 3 else image(k) for k in range(30)}
  batches = loader(JsonLines(lines(tmp_path, media), HOSTS))
  with pytest.raises(
    UserError,
    match=r'11 of \d+ records are bad: 11 x not an image, .*, such as .*\.png: .*; fix the data',
  ):
    for _ in range(30):
      next(batches)


def test_fault_19_the_summary_groups_by_kind_whatever_path_or_number_a_reason_names(
  tmp_path,
):
  """With one example each; by the count, and alike after a restart from the middle, also from a state of older code."""
  kinds = {'torn.png': b'torn', 'cut.wav': sound()[:-900], 'empty.png': b''}
  media = {
    f'{k}.{name}': (sound(k, 1200 + 8 * k)[:-900] if name == 'cut.wav' else data)
    for name, data in kinds.items()
    for k in range(7)
  }
  path = lines(tmp_path, media)
  (tmp_path / '3.empty.png').unlink()
  batches, states = loader(JsonLines(path, HOSTS), budget=rows(BUDGET, 1)), []
  with pytest.raises(UserError) as raised:
    while True:
      states.append(batches.state())
      next(batches)
  said, *groups = (
    str(raised.value)
    .removesuffix('; fix the data')
    .replace(' are bad: ', '; ')
    .split('; ')
  )
  found = {
    group.partition(' x ')[2].partition(', such as ')[0]: int(group.partition(' x ')[0])
    for group in groups
  }
  assert said.startswith('11 of') and sum(found.values()) == 11 and len(found) <= 4
  known = ('not an image', 'WAV cut off', 'file is empty', 'no such file')
  assert all(
    kind.startswith(known) and not any(letter.isdigit() for letter in kind)
    for kind in found
  ), found
  assert list(found.values()) == sorted(found.values(), reverse=True)
  for group in groups:
    kind, name = group.partition(' x ')[2].partition(', such as ')[::2]
    assert name.partition(': ')[0] in media and kind[:12] in name, group
  old = json.loads(states[-1])
  for older in (False, True):
    if older:
      for lane in old['lanes'].values():
        del lane['such_as']
    again = loader(JsonLines(path, HOSTS), budget=rows(BUDGET, 1))
    again.restore(json.dumps(old).encode())
    with pytest.raises(UserError, match=r'11 of \d+ records are bad'):
      while True:
        next(again)


@pytest.mark.parametrize(
  'example, said',
  [
    (chat('a', [text('x')], [text('y')], language='tlh'), 'tlh'),
    (chat('a', [text('x')], [text('y')], voice='nobody'), 'nobody'),
  ],
  ids=['language', 'voice'],
)
def test_fault_20_what_has_no_token_is_refused_at_the_first_batch(example, said):
  with pytest.raises(UserError, match=said):
    next(loader([example]))


def test_fault_20_every_token_is_inside_the_vocabulary():
  """A gather in JAX would clamp the id silently: no text leads out, whatever its characters."""
  batch = next(
    loader(
      [
        chat(str(k), [text(words)], [text(words)])
        for k, words in enumerate(('\0', '\uffff', '𝄞é', '<boi>'))
      ]
    )
  )
  for ids in (batch.token_BL, batch.target_BL):
    assert ids.min() >= 0 and ids.max() < HOSTS.tokenizer.vocab_size


def test_fault_21_a_sample_longer_than_a_row_is_named_and_no_span_is_cut():
  with pytest.raises(
    UserError,
    match=r'example needs more than a row has room for: length \d{3} of 96.*raise config\.data\.budget',
  ):
    next(loader([chat('long', [text('x' * 200)], [text('y')])]))
  batch = next(loader(examples(0), budget=rows(BUDGET, 4)))
  drawn = batch.streams['image.drawn']
  images = 0
  for row, item_M in enumerate(drawn.item_BM):
    for item in range(1, item_M.max() + 1):
      at = drawn.write_at_BM[row, item_M == item]
      assert len(at) == drawn.form_BN3[row, item - 1].prod()
      assert (at >= 0).all() and (np.diff(at) == 1).all(), 'all patches side by side'
      images += 1
  assert images >= 4


@pytest.mark.parametrize(
  'content, said',
  [('', 'holds no examples'), ('\n\n', 'holds no examples'), (None, 'cannot be read')],
  ids=['empty', 'blank', 'missing'],
)
def test_fault_22_no_data_are_refused_before_compilation(tmp_path, content, said):
  if content is not None:
    (tmp_path / 'train.jsonl').write_text(content)
  with pytest.raises(UserError, match=said):
    run(tmp_path, **{'data.root': str(tmp_path), 'data.train_file': 'train.jsonl'})


def test_fault_22_fewer_examples_than_a_batch_are_repeated_and_an_empty_shard_is_refused(
  tmp_path,
):
  (one,) = (lines(tmp_path, {'a.png': image()}),)
  assert next(loader(JsonLines(one, HOSTS))).segment_BL.max() > 1
  write_array_record(tmp_path / 'empty.array_record', [])
  with pytest.raises(UserError, match='holds no examples'):
    ArrayRecordExamples(tmp_path / 'empty.array_record', HOSTS)


def test_fault_23_a_torn_block_is_named_by_shard_and_index_and_the_others_are_read(
  tmp_path,
):
  path = lines(tmp_path, {f'{k}.png': image(k) for k in range(40)})
  source = JsonLines(path, HOSTS)
  target = tmp_path / 'a.array_record'
  write_array_record(
    target, [encode_example(source.encoded(k), source.read_file) for k in range(40)]
  )
  data = bytearray(target.read_bytes())
  at = data.index(image(20)) + 30
  data[at] ^= 1
  target.write_bytes(data)
  records, bad = ArrayRecordExamples(target, HOSTS), []
  for k in range(40):
    try:
      records[k]
    except BadRecord as error:
      bad.append((k, str(error)))
  assert [k for k, _ in bad] == [20] and (
    'a.array_record:20' in bad[0][1] or '20.png' in bad[0][1]
  ), bad
  batches = loader(records)
  assert all(next(batches).segment_BL.any() for _ in range(4)), 'the stream goes on'


class Dies(list):
  def __getitem__(self, index):
    os._exit(9)


class Hangs(list):
  def __getitem__(self, index):
    time.sleep(300)


@pytest.mark.parametrize(
  'kind, said, timeout',
  [
    (Dies, 'a data worker has died', 120.0),
    (Hangs, 'has returned nothing for 3 s: it hangs', 3.0),
  ],
  ids=['dies', 'hangs'],
)
def test_fault_24_a_data_worker_that_dies_or_hangs_is_an_error_in_time(
  monkeypatch, kind, said, timeout
):
  """The one that dies has to start first, which takes more than 3 s on a busy machine."""
  monkeypatch.setattr(making, 'TIMEOUT', timeout)
  batches = loader(kind(examples(0)), workers=1)
  try:
    with pytest.raises(UserError, match=said):
      next(batches)
    until = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < until:
      time.sleep(0.1)
    assert not multiprocessing.active_children(), (
      'the end of the command would wait for it'
    )
  finally:
    batches.close()
    for process in multiprocessing.active_children():
      process.kill()


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(
      st.sampled_from(
        [
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
      ),
      inner,
      max_size=4,
    )
  ),
  max_leaves=20,
)


@hypothesis.settings(max_examples=200)
@hypothesis.given(
  st.one_of(JSON.map(lambda x: json.dumps(x).encode()), st.binary(max_size=80))
)
def test_fault_20_any_line_and_any_record_is_an_example_or_a_bad_record(line):
  for read in (parse_line, unpack_example):
    try:
      found = read(line)
    except BadRecord as error:
      assert error.reason
      continue
    assert isinstance(found['id'], str) and ('messages' in found) != (
      'content' in found
    )


def test_fault_25_paths_and_links_out_of_the_folder_of_the_records_are_refused(
  tmp_path,
):
  (tmp_path / 'secret.png').write_bytes(image())
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'link.png').symlink_to(tmp_path / 'secret.png')
  (tmp_path / 'in' / 'sound.wav').write_bytes(sound())
  file = tmp_path / 'in' / 'train.jsonl'
  for path, error, said in (
    ('../secret.png', UserError, 'leaves the folder'),
    (str(tmp_path / 'secret.png'), UserError, 'leaves the folder'),
    ('link.png', BadRecord, 'a link that leaves the folder'),
  ):
    file.write_text(json.dumps({'content': [{'type': 'image', 'path': path}]}) + '\n')
    with pytest.raises(error, match=said):
      JsonLines(file, HOSTS)[0]
