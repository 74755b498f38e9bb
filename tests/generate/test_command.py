"""Tests the files of the generate command, and its one line for every mistake."""

import json
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
import soundfile

from omni_jax.errors import UserError
from omni_jax.generate import __main__ as command
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.image.files import png_bytes


def call(monkeypatch, *args):
  """Runs the command with these arguments, in this process."""
  command._FLAGS.unparse_flags()
  for name in command._FLAGS:
    command._FLAGS[name].unparse()
  monkeypatch.setattr(sys, 'argv', ['generate', *map(str, args)])
  command.main()


def test_replies_are_written_as_files_that_replies_json_names(
  monkeypatch, workdir, tmp_path
):
  (tmp_path / 'a.png').write_bytes(png_bytes(np.full((8, 8, 1), 0.5, np.float32)))
  for want, suffix in (('image', 'png'), ('audio', 'wav'), ('text', None)):
    out = tmp_path / want
    call(
      monkeypatch,
      f'--workdir={workdir}',
      f'--image={tmp_path}/a.png',
      '--prompt=q',
      f'--want={want}',
      f'--out={out}',
      '--n=2',
      '--temperature=1',
      '--seed=4',
    )
    replies = json.loads((out / 'replies.json').read_text())['replies']
    assert len(replies) == 2
    for reply in replies:
      (part,) = reply['content']
      assert part['type'] == want
      if suffix == 'png':
        # A side is a whole number of patches.
        with Image.open(out / part['path']) as picture:
          assert all(side in (2, 4, 6, 8) for side in picture.size)
      elif suffix == 'wav':
        wave, rate = soundfile.read(out / part['path'])
        assert rate == 8000
        assert len(wave) > 0
        assert len(wave) % 640 == 0


def test_a_prompt_file_may_have_the_chat_form(monkeypatch, workdir, tmp_path):
  (tmp_path / 'a.wav').write_bytes(wav_bytes(np.zeros(1000, np.float32), 8000))
  messages = [
    {'role': 'user', 'content': [{'type': 'audio', 'path': 'a.wav'}]},
    {'role': 'assistant', 'language': 'de', 'content': []},
  ]
  (tmp_path / 'p.json').write_text(json.dumps({'messages': messages}))
  call(
    monkeypatch,
    f'--workdir={workdir}',
    f'--prompt={tmp_path}/p.json',
    '--want=text',
    f'--out={tmp_path}/o',
  )
  replies = json.loads((tmp_path / 'o' / 'replies.json').read_text())['replies']
  assert replies[0]['content'][0]['type'] == 'text'


@pytest.fixture(scope='module')
def other_shape(workdir, tmp_path_factory):
  """Returns the folder of a run whose config does not fit its checkpoint."""
  folder = tmp_path_factory.mktemp('runs') / 'other'
  shutil.copytree(workdir, folder)
  config = json.loads((folder / 'config.json').read_text())
  config['model']['decoder']['width'] = 64
  (folder / 'config.json').write_text(json.dumps(config))
  return folder


# Mistake -> arguments, and part of the message; files in {tmp} have invalid contents.
MISTAKES = {
  'no run there': ('--workdir={tmp} --prompt=a', 'config.json'),
  'no such step': ('--workdir={run} --prompt=a --step=77', '77'),
  'checkpoint of another shape': (
    '--workdir={other} --prompt=a',
    'width|another model',
  ),
  'unknown want': ('--workdir={run} --prompt=a --want=smell', 'smell'),
  'empty prompt': ('--workdir={run}', 'empty'),
  'no such image': ('--workdir={run} --image={tmp}/no.png', 'no.png'),
  'unreadable image': ('--workdir={run} --image={tmp}/a.png', 'a.png'),
  'unreadable sound': ('--workdir={run} --audio={tmp}/a.wav', 'a.wav'),
  'no such prompt file': ('--workdir={run} --prompt={tmp}/no.json', 'no.json'),
  'prompt file that is no JSON': ('--workdir={run} --prompt={tmp}/p.json', 'p.json'),
  'prompt longer than the context': (
    '--workdir={run} --prompt=' + 'x' * 300,
    'context',
  ),
  'video': ('--workdir={run} --prompt=a --video=v.mp4', 'video'),
  'unknown language': ('--workdir={run} --prompt=a --language=tlh', 'tlh'),
  'unknown flag': ('--workdir={run} --prompt=a --colour=red', 'colour'),
  'mesh that is no number': (
    '--workdir={run} --prompt=a --mesh.tensor=x',
    'mesh.AXIS=N',
  ),
  'unknown mesh axis': ('--workdir={run} --prompt=a --mesh.fsdp=2', 'fsdp.* unknown'),
  'mesh of too many devices': (
    '--workdir={run} --prompt=a --mesh.data=9',
    'set --mesh',
  ),
  'wrong type': ('--workdir={run} --prompt=a --seed=one', 'seed'),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_raises_a_user_error_and_leaves_nothing(
  monkeypatch, workdir, other_shape, tmp_path, name
):
  for file in ('a.png', 'a.wav', 'p.json'):
    (tmp_path / file).write_bytes(b'not what its name says')
  words, message = MISTAKES[name]
  arguments = []
  for word in words.split():
    arguments.append(word.format(run=workdir, other=other_shape, tmp=tmp_path))
  with pytest.raises(UserError, match=message):
    call(monkeypatch, *arguments, f'--out={tmp_path}/out')
  assert not (tmp_path / 'out').exists()


def test_a_mistake_prints_one_line_and_exits_with_code_2(tmp_path):
  process = subprocess.run(
    [
      sys.executable,
      '-m',
      'omni_jax.generate',
      f'--workdir={tmp_path}',
      '--prompt=a',
      f'--out={tmp_path}/out',
    ],
    capture_output=True,
    text=True,
  )
  assert process.returncode == 2
  assert process.stderr.startswith('error:'), process.stderr
  assert len(process.stderr.splitlines()) == 1, process.stderr
