"""The record of a run accounts for every second, also over a kill and a restart."""

import json
import signal

from faults.toy import run, start, wait_for, wait_until
import pytest

from omni_jax.train import goodput

SAVE_EVERY = 30
PAUSE = 0.02  # seconds that a step waits for its batch


def test_every_second_has_a_kind_and_lost_steps_are_counted(tmp_path):
  workdir = tmp_path / 'run'
  options = (f'--save_every={SAVE_EVERY}', f'--pause={PAUSE}')
  process = start(workdir, '--steps=4000', *options)
  wait_until(lambda: any(line['step'] > 40 for line in goodput.read(workdir)), process)
  process.send_signal(signal.SIGKILL)
  wait_for(process)
  first = goodput.read(workdir)[-1]
  with (workdir / goodput.FILE).open('a') as file:
    file.write('{"session": "half a li')
    file.write('\n')
  code, _, err = run(workdir, f'--steps={first["step"] + 5}', *options)
  assert code == 0, err
  last = goodput.read(workdir)[-1]
  assert last['session'] != first['session']
  assert last['first'] % SAVE_EVERY == 0
  lost = first['step'] - last['first']
  assert lost > 0
  assert last['lost']['steps'] == lost
  lost_seconds = first['seconds']['step'] * lost / first['step']
  assert last['lost']['seconds'] == pytest.approx(lost_seconds, abs=0.002)
  for line in (first, last):
    assert line['seconds'].keys() == set(goodput.KINDS)
    assert all(value >= 0 for value in line['seconds'].values())
  steps = last['step'] - last['first']
  assert PAUSE * steps <= last['seconds']['data'] < PAUSE * steps + 2
  assert last['seconds']['restore'] > 0
  assert last['seconds']['save'] > 0
  assert last['seconds']['start'] > 0.3
  total = goodput.summary(goodput.read(workdir))
  seconds = sum(first['seconds'].values()) + sum(last['seconds'].values())
  kinds = (*goodput.KINDS, 'lost')
  assert sum(total[kind] for kind in kinds) == pytest.approx(seconds)
  assert 0 < total['goodput'] < 1
  json.dumps(total)  # raises an error for a value that JSON does not have


def test_steps_of_this_process_are_not_lost_when_it_opens_a_stage_again(tmp_path):
  """This happens if `train` is called twice in a notebook.

  Steps that another process made after the checkpoint are lost.
  """
  for session, lost in ((None, 0), ('another', 4)):
    first = goodput.Goodput(str(tmp_path), 'toy')
    first.write(0, 10)
    if session:
      file = tmp_path / goodput.FILE
      file.write_text(file.read_text().replace(first._session, session))
    second = goodput.Goodput(str(tmp_path), 'toy')
    second.resumed(6)
    second.write(6, 11)
    assert goodput.read(tmp_path)[-1]['lost']['steps'] == lost, session
