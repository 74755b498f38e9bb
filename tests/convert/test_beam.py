"""A pipeline of Apache Beam writes the very bytes of the conversion on one machine, and nothing half-made.

Beam wants an environment of its own, without jax, in which this file runs alone:
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
from omni_jax.convert.formats.reader import Found
from omni_jax.convert.local import convert
from omni_jax.errors import UserError
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.image.files import png_bytes

CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'own_data.py'
HERE = '--runner=FnApiRunner'  # what DirectRunner comes down to, after it has tried to download Prism
with_beam = pytest.mark.skipif(
  importlib.util.find_spec('apache_beam') is None,
  reason='apache_beam is not in this environment: it has one of its own',
)


class Small(JsonLinesReader):
  """Many pieces of a small file."""

  chunk = 4


@pytest.fixture
def lines(tmp_path):
  """Text, images and sounds; ids that occur twice, in one piece and in two; damaged media and lines, a long example."""
  rng = np.random.default_rng(0)
  (tmp_path / 'in').mkdir()
  rows = []
  for n in range(14):
    (tmp_path / 'in' / f'{n}.png').write_bytes(png_bytes(rng.random((8, 8, 1))))
    (tmp_path / 'in' / f'{n}.wav').write_bytes(
      wav_bytes(rng.uniform(-1, 1, 700 + n), 8000)
    )
    part = [
      {'type': 'text', 'text': f'text {n}'},
      {'type': 'image', 'path': f'{n}.png'},
      {'type': 'audio', 'path': f'{n}.wav'},
    ][n % 3]
    rows.append({'id': f'row {n}', 'content': [part]})
  (tmp_path / 'in' / 'cut.png').write_bytes(png_bytes(rng.random((8, 8, 1)))[:40])
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
  path = tmp_path / 'in' / 'data.jsonl'
  path.write_text('\n'.join([*map(json.dumps, rows), '{"id": ']))
  return path


def files_in(folder) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


def by_beam(reader, output, options=HERE, shards=3):
  return beam.convert(reader, str(output), shards=shards, said='it', options=options)


def here(reader, output, shards=3):
  return convert(
    reader,
    output,
    shards=shards,
    workers=1,
    said='it',
    timeout=60,
    log=lambda line: None,
  )


@with_beam
@pytest.mark.parametrize('shards', [1, 3, 40], ids='{} shards'.format)
def test_the_bytes_are_those_of_one_machine(lines, tmp_path, shards):
  manifest = here(JsonLinesReader(str(lines)), tmp_path / 'local', shards)
  assert by_beam(Small(str(lines)), tmp_path / 'beam', shards=shards) == manifest
  assert files_in(tmp_path / 'local') == files_in(tmp_path / 'beam')
  assert manifest['records'] == 16 and sum(manifest['refused'].values()) == 6
  assert manifest['refused']['its id occurs before'] == 2
  assert sorted(path.name for path in tmp_path.iterdir()) == ['beam', 'in', 'local']


@with_beam
def test_workers_in_processes_of_their_own(lines, tmp_path):
  here(JsonLinesReader(str(lines)), tmp_path / 'local')
  command.main(
    [
      f'--input={lines}',
      f'--output={tmp_path / "beam"}',
      '--shards=3',
      f'--beam={HERE} --direct_num_workers=2 --direct_running_mode=multi_processing',
    ]
  )
  local, made = files_in(tmp_path / 'local'), files_in(tmp_path / 'beam')
  assert (
    json.loads(made.pop('manifest.json'))['shards']
    == json.loads(local.pop('manifest.json'))['shards']
  )
  assert made == local


@with_beam
def test_the_command_checks_against_a_run(lines, tmp_path, capsys):
  words = [f'--input={lines}', f'--config={CONFIG}', '--config.data.budget.length=128']
  command.main([*words, f'--output={tmp_path / "local"}', '--workers=1'])
  command.main([*words, f'--output={tmp_path / "beam"}', f'--beam={HERE}'])
  assert files_in(tmp_path / 'local') == files_in(tmp_path / 'beam')
  assert json.loads((tmp_path / 'beam' / 'manifest.json').read_text())['tokenizer']
  assert f'convert: wrote {tmp_path}/beam: 15 records in ' in capsys.readouterr().out


class Fails(Small):
  def read(self, items):
    if items.start == 8:
      raise RuntimeError('no more tape')
    return super().read(items)


@with_beam
def test_a_pipeline_that_fails_leaves_no_output_and_is_begun_anew(lines, tmp_path):
  with pytest.raises(UserError, match='the pipeline failed: .*no more tape'):
    by_beam(Fails(str(lines)), tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
  (tmp_path / 'out.partial-beam').mkdir(exist_ok=True)
  (tmp_path / 'out.partial-beam' / 'data-00000-of-00009.array_record').write_bytes(
    b'of an earlier one'
  )
  by_beam(Small(str(lines)), tmp_path / 'out')
  here(Small(str(lines)), tmp_path / 'local')
  assert files_in(tmp_path / 'local') == files_in(tmp_path / 'out')


class Empty:
  """Nothing that could be used."""

  chunk, files = 1, ()

  def __len__(self):
    return 2

  def read(self, items):
    for k in items:
      yield Found(f'{k}', lambda: {'content': []})


@with_beam
def test_nothing_usable_and_an_output_that_exists(tmp_path):
  with pytest.raises(
    UserError, match='it: no example can be used: 2 x content is neither'
  ):
    by_beam(Empty(), tmp_path / 'out')
  assert not list(tmp_path.iterdir())
  with pytest.raises(UserError, match='exists already'):
    by_beam(Empty(), tmp_path)


@with_beam
@pytest.mark.parametrize(
  'options, said',
  [
    ('--runner="Direct', 'No closing quotation'),
    ('', 'among them the runner'),
    ('runner=X', 'among them the runner'),
    ('--runners=X', 'among them the runner'),
    ('--runner=NoSuch', 'Unexpected pipeline runner: NoSuch'),
    ('--runner=DirectRunner --direct_num_workers=two', "invalid int value: 'two'"),
  ],
)
def test_options_that_are_none(lines, tmp_path, options, said):
  with pytest.raises(UserError, match=said):
    by_beam(Small(str(lines)), tmp_path / 'out', options)
  assert not (tmp_path / 'out').exists()


@with_beam
def test_a_folder_that_only_the_workers_see(lines, tmp_path, monkeypatch):
  monkeypatch.setattr(beam, 'write_lists', lambda stats, **_: None)
  with pytest.raises(
    UserError,
    match='out.partial-beam: cannot be read .* this machine and all workers see',
  ):
    by_beam(Small(str(lines)), tmp_path / 'out')


def bucket():
  """A file system of Beam without folders, in which an object appears when its writer is closed; and its objects."""
  from apache_beam.io.filesystem import FileMetadata, FileSystem

  objects, renamed = {}, []

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
      return [
        FileMetadata(path, len(objects[path]))
        for path in sorted(objects)
        if path.startswith(prefix)
      ]

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
  kept, objects, renamed = bucket()
  objects |= {
    'bucket://b/out.partial-beam/data-00000-of-00003.array_record': b'old',
    'bucket://b/output': b'another',
  }
  manifest = by_beam(Small(str(lines)), 'bucket://b/out/')
  here(Small(str(lines)), tmp_path / 'local')
  assert objects.pop('bucket://b/output') == b'another'
  assert {
    path.removeprefix('bucket://b/out/'): data for path, data in objects.items()
  } == files_in(tmp_path / 'local')
  final = [path for path in renamed if 'partial' not in path]
  assert final[0] == 'bucket://b/out/manifest.json' and len(final) == 2 + len(
    manifest['shards']
  )
  with pytest.raises(UserError, match='exists already'):
    by_beam(Small(str(lines)), 'bucket://b/out')
  assert kept.scheme() == 'bucket'


def test_without_beam_the_package_is_named(lines, tmp_path, monkeypatch):
  """Also where it is installed: the import is made to fail."""
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


def test_a_bucket_is_for_beam(lines):
  with pytest.raises(UserError, match='only --beam writes to a bucket'):
    command.main([f'--input={lines}', '--output=gs://bucket/out'])


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
  class Cut(io.BytesIO):
    def read(self, *_):
      raise OSError('the line is cut')

  pytest.importorskip('apache_beam', reason='its file systems write')
  with pytest.raises(OSError, match='the line is cut'):
    beam_files.write(str(tmp_path), 'a', Cut(b'data'))
  assert not (tmp_path / 'a').exists()
