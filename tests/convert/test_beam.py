"""An Apache Beam pipeline writes the same bytes as the conversion on one machine.

Beam needs its own environment, without jax, in which this file runs alone:
`python -m pytest --noconftest tests/convert/test_beam.py`
"""

import importlib.util
import io
import json
import pathlib
import sys

import numpy as np
import pytest

from omni_jax.convert import __main__ as command
from omni_jax.convert import beam, beam_files
from omni_jax.convert.formats.chat_lines import JsonLinesReader
from omni_jax.convert.formats.reader import InputExample
from omni_jax.convert.local import convert
from omni_jax.errors import UserError
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.image.files import png_bytes

CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'own_data.py'
# DirectRunner ends up with this one, after trying to download Prism.
LOCAL_RUNNER = '--runner=FnApiRunner'
with_beam = pytest.mark.skipif(
  importlib.util.find_spec('apache_beam') is None,
  reason='apache_beam is not installed: it needs its own environment',
)


class SmallPieces(JsonLinesReader):
  """Reads a small file in many pieces."""

  chunk = 4


@pytest.fixture
def lines(tmp_path):
  """Returns a JSON lines file with good and bad examples.

  It has text, images and sounds, ids that occur twice in one piece and in two, damaged
  media and lines, and a long example.
  """
  rng = np.random.default_rng(0)
  folder = tmp_path / 'in'
  folder.mkdir()
  rows = []
  for n in range(14):
    (folder / f'{n}.png').write_bytes(png_bytes(rng.random((8, 8, 1))))
    (folder / f'{n}.wav').write_bytes(wav_bytes(rng.uniform(-1, 1, 700 + n), 8000))
    parts = [
      {'type': 'text', 'text': f'text {n}'},
      {'type': 'image', 'path': f'{n}.png'},
      {'type': 'audio', 'path': f'{n}.wav'},
    ]
    rows.append({'id': f'row {n}', 'content': [parts[n % 3]]})
  (folder / 'cut.png').write_bytes(png_bytes(rng.random((8, 8, 1)))[:40])
  rows[5:5] = [
    {'id': 'row 4', 'content': 'in the same piece'},
    {'id': 'cut', 'content': [{'type': 'image', 'path': 'cut.png'}]},
    {'id': 'cut', 'content': [{'type': 'image', 'path': 'none.png'}]},
  ]
  rows += [
    {'id': 'row 1', 'content': 'in another piece'},
    {'id': 'cut', 'content': 'the first that is good'},
    {'content': 'x' * 300},
    {'id': 'odd', 'contents': []},
  ]
  path = folder / 'data.jsonl'
  path.write_text('\n'.join([*map(json.dumps, rows), '{"id": ']))
  return path


def files_in(folder) -> dict[str, bytes]:
  """Returns the contents of the files in a folder, by name."""
  return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


def convert_by_beam(reader, output, options=LOCAL_RUNNER, shards=3):
  return beam.convert(
    reader, str(output), shards=shards, input_name='it', options=options
  )


def convert_locally(reader, output, shards=3):
  return convert(
    reader,
    output,
    shards=shards,
    workers=1,
    input_name='it',
    timeout=60,
    log=lambda line: None,
  )


@with_beam
@pytest.mark.parametrize('shards', [1, 3, 40], ids='{} shards'.format)
def test_the_bytes_are_those_of_one_machine(lines, tmp_path, shards):
  reader = JsonLinesReader(str(lines))
  local = convert_locally(reader, tmp_path / 'local', shards)
  manifest = convert_by_beam(SmallPieces(str(lines)), tmp_path / 'beam', shards=shards)
  assert manifest == local
  assert files_in(tmp_path / 'local') == files_in(tmp_path / 'beam')
  assert manifest['records'] == 16
  assert sum(manifest['refused'].values()) == 6
  assert manifest['refused']['its id occurs earlier'] == 2
  assert sorted(path.name for path in tmp_path.iterdir()) == ['beam', 'in', 'local']


@with_beam
def test_workers_in_separate_processes_write_the_same_bytes(lines, tmp_path):
  convert_locally(JsonLinesReader(str(lines)), tmp_path / 'local')
  processes = '--direct_num_workers=2 --direct_running_mode=multi_processing'
  output = tmp_path / 'beam'
  words = [f'--input={lines}', f'--output={output}', '--shards=3']
  command.main([*words, f'--beam={LOCAL_RUNNER} {processes}'])
  expected = files_in(tmp_path / 'local')
  actual = files_in(tmp_path / 'beam')
  # The manifests name different inputs.
  expected_manifest = json.loads(expected.pop('manifest.json'))
  manifest = json.loads(actual.pop('manifest.json'))
  assert manifest['shards'] == expected_manifest['shards']
  assert actual == expected


@with_beam
def test_the_command_checks_against_a_run(lines, tmp_path, capsys):
  words = [f'--input={lines}', f'--config={CONFIG}', '--config.data.budget.length=128']
  command.main([*words, f'--output={tmp_path / "local"}', '--workers=1'])
  command.main([*words, f'--output={tmp_path / "beam"}', f'--beam={LOCAL_RUNNER}'])
  assert files_in(tmp_path / 'local') == files_in(tmp_path / 'beam')
  assert json.loads((tmp_path / 'beam' / 'manifest.json').read_text())['tokenizer']
  assert f'convert: wrote {tmp_path}/beam: 15 records in ' in capsys.readouterr().out


class FailingReader(SmallPieces):
  """Fails at its third piece."""

  def read(self, items):
    if items.start == 2 * self.chunk:
      raise RuntimeError('no more tape')
    return super().read(items)


@with_beam
def test_a_failed_pipeline_leaves_no_output_and_starts_over(lines, tmp_path):
  with pytest.raises(UserError, match='the pipeline failed: .*no more tape'):
    convert_by_beam(FailingReader(str(lines)), tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
  partial = tmp_path / 'out.partial-beam'
  partial.mkdir(exist_ok=True)
  old_shard = partial / 'data-00000-of-00009.array_record'
  old_shard.write_bytes(b'of an earlier one')
  convert_by_beam(SmallPieces(str(lines)), tmp_path / 'out')
  convert_locally(SmallPieces(str(lines)), tmp_path / 'local')
  assert files_in(tmp_path / 'local') == files_in(tmp_path / 'out')


class UnusableReader:
  """Reads two examples that cannot be used."""

  chunk = 1
  files = ()

  def __len__(self):
    return 2

  def read(self, items):
    for k in items:
      yield InputExample(f'{k}', lambda: {'content': []})


@with_beam
def test_an_input_without_usable_examples_and_an_existing_output_are_refused(tmp_path):
  with pytest.raises(
    UserError, match='no example of it can be used: 2 x content is neither'
  ):
    convert_by_beam(UnusableReader(), tmp_path / 'out')
  assert not list(tmp_path.iterdir())
  with pytest.raises(UserError, match='already exists'):
    convert_by_beam(UnusableReader(), tmp_path)


@with_beam
@pytest.mark.parametrize(
  'options, message',
  [
    ('--runner="Direct', 'No closing quotation'),
    ('', 'including the runner'),
    ('runner=X', 'including the runner'),
    ('--runners=X', 'including the runner'),
    ('--runner=NoSuch', 'Unexpected pipeline runner: NoSuch'),
    ('--runner=DirectRunner --direct_num_workers=two', "invalid int value: 'two'"),
  ],
)
def test_invalid_options_are_refused(lines, tmp_path, options, message):
  with pytest.raises(UserError, match=message):
    convert_by_beam(SmallPieces(str(lines)), tmp_path / 'out', options)
  assert not (tmp_path / 'out').exists()


@with_beam
def test_a_folder_that_only_the_workers_see_is_an_error(lines, tmp_path, monkeypatch):
  monkeypatch.setattr(beam, 'write_lists', lambda stats, **_: None)
  with pytest.raises(
    UserError,
    match='out.partial-beam cannot be read .* this machine and all workers see',
  ):
    convert_by_beam(SmallPieces(str(lines)), tmp_path / 'out')


def bucket():
  """Returns a Beam file system without folders, its objects, and the renamed paths.

  An object appears when its writer is closed.
  """
  from apache_beam.io.filesystem import FileMetadata, FileSystem

  objects: dict[str, bytes] = {}
  renamed: list[str] = []

  class Object(io.BytesIO):
    def __init__(self, path):
      super().__init__()
      self.path = path

    def close(self):
      if not self.closed:
        objects[self.path] = self.getvalue()
      super().close()

  class Bucket(FileSystem):
    scheme = classmethod(lambda cls: 'bucket')
    has_dirs = lambda self: False
    join = lambda self, path, *more: '/'.join([path, *more])
    split = lambda self, path: tuple(path.rpartition('/')[::2])
    mkdirs = lambda self, path: None
    exists = lambda self, path: path in objects
    create = lambda self, path, *_: Object(path)
    open = lambda self, path, *_: io.BytesIO(objects[path])
    size = lambda self, path: len(objects[path])
    last_updated = checksum = copy = metadata = None

    def _list(self, prefix):
      paths = [path for path in sorted(objects) if path.startswith(prefix)]
      return [FileMetadata(path, len(objects[path])) for path in paths]

    def rename(self, sources, targets):
      for source, target in zip(sources, targets, strict=True):
        objects[target] = objects.pop(source)
        renamed.append(target)

    def delete(self, paths):
      for path in paths:
        del objects[path]

  return Bucket, objects, renamed


@with_beam
def test_a_bucket_gets_the_manifest_first(lines, tmp_path):
  # Beam finds the class among the subclasses of FileSystem while it is referenced.
  file_system, objects, renamed = bucket()
  objects['bucket://b/out.partial-beam/data-00000-of-00003.array_record'] = b'old'
  objects['bucket://b/output'] = b'of another output'
  manifest = convert_by_beam(SmallPieces(str(lines)), 'bucket://b/out/')
  convert_locally(SmallPieces(str(lines)), tmp_path / 'local')
  assert objects.pop('bucket://b/output') == b'of another output'
  actual = {}
  for path, data in objects.items():
    actual[path.removeprefix('bucket://b/out/')] = data
  assert actual == files_in(tmp_path / 'local')
  first, *others = [path for path in renamed if 'partial' not in path]
  assert first == 'bucket://b/out/manifest.json'
  assert len(others) == len(manifest['shards']) + 1, 'shards and refused.jsonl'
  with pytest.raises(UserError, match='already exists'):
    convert_by_beam(SmallPieces(str(lines)), 'bucket://b/out')
  assert file_system.scheme() == 'bucket'


def test_without_beam_the_message_names_the_package(lines, tmp_path, monkeypatch):
  """The import is made to fail, so that the test also works where Beam is installed."""
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  with pytest.raises(
    UserError, match=r"needs the package 'apache_beam'.* pip install 'omni_jax\[beam\]'"
  ):
    command.main(
      [
        f'--input={lines}',
        f'--output={tmp_path / "out"}',
        '--beam=--runner=DirectRunner',
      ]
    )
  assert not list(tmp_path.glob('out*'))


def test_an_interrupted_write_leaves_no_file(tmp_path, monkeypatch):
  class InterruptedFile(io.BytesIO):
    def read(self, *_):
      raise OSError('connection lost')

  pytest.importorskip('apache_beam', reason='its file systems write')
  with pytest.raises(OSError, match='connection lost'):
    beam_files.write(str(tmp_path), 'a', InterruptedFile(b'data'))
  assert not (tmp_path / 'a').exists()
