"""Where the time of a run went, over a kill and a restart."""

import json
import signal
import time

from faults.toy import finished, start
import pytest

from omni_jax.train import goodput


def test_every_second_has_its_kind_and_lost_steps_are_counted(tmp_path):
  workdir = tmp_path / 'run'
  process = start(workdir, '--steps=4000', '--save_every=30', '--pause=0.02')
  while (
    not any(line['step'] > 40 for line in goodput.read(workdir))
    and process.poll() is None
  ):
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  finished(process)
  first = goodput.read(workdir)[-1]
  with (workdir / goodput.FILE).open('a') as file:
    file.write('{"session": "half a li')
    file.write('\n')
  code, _, err = finished(
    start(workdir, f'--steps={first["step"] + 5}', '--save_every=30', '--pause=0.02')
  )
  assert code == 0, err
  last = goodput.read(workdir)[-1]
  lost = first['step'] - last['first']
  assert last['session'] != first['session'] and last['first'] % 30 == 0 and lost > 0
  assert last['lost']['steps'] == lost and last['lost']['seconds'] == pytest.approx(
    first['seconds']['step'] * lost / first['step'], abs=0.002
  )
  for line in (first, last):
    assert line['seconds'].keys() == set(goodput.KINDS) and all(
      value >= 0 for value in line['seconds'].values()
    )
  steps = last['step'] - last['first']
  assert 0.02 * steps <= last['seconds']['data'] < 0.02 * steps + 2
  assert (
    last['seconds']['restore'] > 0
    and last['seconds']['save'] > 0
    and last['seconds']['start'] > 0.3
  )
  total = goodput.summary(goodput.read(workdir))
  seconds = sum(
    line['seconds'][kind] for line in (first, last) for kind in goodput.KINDS
  )
  assert sum(total[kind] for kind in (*goodput.KINDS, 'lost')) == pytest.approx(seconds)
  assert 0 < total['goodput'] < 1 and json.dumps(total)


def test_steps_of_this_process_are_not_lost_when_it_opens_a_stage_again(tmp_path):
  """As `train` does when it is called twice in a notebook: what it made after the step is not made once more by another."""
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
