"""Tests of the record of where the time of a run went, over a kill and a restart."""

import json
import signal

from faults.toy import finished, run, start, wait_until
import pytest

from omni_jax.train import goodput


def test_every_second_has_a_kind_and_lost_steps_are_counted(tmp_path):
  workdir = tmp_path / 'run'
  options = ('--save_every=30', '--pause=0.02')
  process = start(workdir, '--steps=4000', *options)
  wait_until(lambda: any(line['step'] > 40 for line in goodput.read(workdir)), process)
  process.send_signal(signal.SIGKILL)
  finished(process)
  first = goodput.read(workdir)[-1]
  with (workdir / goodput.FILE).open('a') as file:
    file.write('{"session": "half a li')
    file.write('\n')
  code, _, err = run(workdir, f'--steps={first["step"] + 5}', *options)
  assert code == 0, err
  last = goodput.read(workdir)[-1]
  assert last['session'] != first['session']
  assert last['first'] % 30 == 0
  lost = first['step'] - last['first']
  assert lost > 0
  assert last['lost']['steps'] == lost
  lost_seconds = first['seconds']['step'] * lost / first['step']
  assert last['lost']['seconds'] == pytest.approx(lost_seconds, abs=0.002)
  for line in (first, last):
    assert line['seconds'].keys() == set(goodput.KINDS)
    assert all(value >= 0 for value in line['seconds'].values())
  steps = last['step'] - last['first']
  assert 0.02 * steps <= last['seconds']['data'] < 0.02 * steps + 2
  assert last['seconds']['restore'] > 0
  assert last['seconds']['save'] > 0
  assert last['seconds']['start'] > 0.3
  total = goodput.summary(goodput.read(workdir))
  seconds = sum(first['seconds'].values()) + sum(last['seconds'].values())
  kinds = (*goodput.KINDS, 'lost')
  assert sum(total[kind] for kind in kinds) == pytest.approx(seconds)
  assert 0 < total['goodput'] < 1
  assert json.dumps(total)


def test_steps_of_this_process_are_not_lost_when_it_opens_a_stage_again(tmp_path):
  """As when `train` is called twice in a notebook.

  What this process did after the step is not repeated by another process.
  """
  for session, lost in ((None, 0), ('another', 4)):
    first = goodput.Goodput(str(tmp_path), 'toy')
    first.write(0, 10)
    if session:
      file = tmp_path / goodput.FILE
      file.write_text(file.read_text().replace(first._session, session))
    again = goodput.Goodput(str(tmp_path), 'toy')
    again.resumed(6)
    again.write(6, 11)
    assert goodput.read(tmp_path)[-1]['lost']['steps'] == lost, session
