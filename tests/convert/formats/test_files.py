"""Folders, tar files and Parquet files become records; damaged ones are refused."""

import collections
import gzip
import io
import json
import pathlib
import tarfile

from convert.converting import convert, examples_in, image, refused_in, sound
import pytest

from omni_jax.convert.formats.folder import FolderReader
from omni_jax.convert.formats.parquet import ParquetReader
from omni_jax.convert.formats.tar import TarReader
from omni_jax.errors import UserError

SHARED = pathlib.Path(__file__).parents[4] / 'shared' / 'data'


def test_pictures_of_a_folder_have_their_label_or_caption_as_answer(tmp_path):
  root = tmp_path / 'in'
  (root / 'cat').mkdir(parents=True)
  for name in ('cat/1.png', 'cat/2.PNG', 'lone.png', 'captioned.png'):
    (root / name).write_bytes(image())
  (root / 'captioned.txt').write_text('a grey square\n')
  (root / 'notes.md').write_text('not a medium')
  (root / 'link.png').symlink_to('/etc/passwd')
  convert(FolderReader(str(root), language='en'), tmp_path / 'out')
  examples = examples_in(tmp_path / 'out')
  assert examples.keys() == {'cat/1.png', 'cat/2.PNG', 'lone.png', 'captioned.png'}
  user, assistant = examples['cat/2.PNG']['messages']
  assert user['content'][0]['label'] == 'cat'
  assert assistant['content'] == [{'type': 'text', 'text': 'cat'}]
  assert assistant['task'] == 'write'
  assert assistant['language'] == 'en'
  caption = examples['captioned.png']['messages'][1]['content'][0]
  assert caption['text'] == 'a grey square'
  assert examples['lone.png']['content'][0]['type'] == 'image'


def tar_of(path, members: dict[str, bytes], mode='w') -> str:
  """Writes a tar file of these members and returns its path as text."""
  with tarfile.open(path, mode) as archive:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return str(path)


def test_files_of_a_tar_file_with_the_same_stem_are_one_example(tmp_path):
  chat = {
    'messages': [
      {'role': 'user', 'content': 'draw'},
      {'role': 'assistant', 'content': [{'type': 'image', 'path': '3.png'}]},
    ]
  }
  members = {
    'a/1.png': image(1),
    'a/1.txt': b'one',
    'a/2.wav': sound(2),
    'a/3.json': json.dumps(chat).encode(),
    'a/3.png': image(3),
    '4.txt': b'words',
    '5.xml': b'?',
    '6.json': b'{"content": [{"type": "image", "path": "no.png"}]}',
  }
  path = tar_of(tmp_path / 'set.tar.gz', members, 'w:gz')
  convert(TarReader([path]), tmp_path / 'out')
  examples = examples_in(tmp_path / 'out')
  assert examples.keys() == {'set/a/1', 'set/a/2', 'set/a/3', 'set/4'}
  assert examples['set/a/1']['messages'][1]['content'][0]['text'] == 'one'
  assert examples['set/a/2']['content'][0]['type'] == 'audio'
  assert examples['set/4']['content'][0]['text'] == 'words'
  assert examples['set/a/3']['messages'][1]['content'][0]['type'] == 'image'
  reason = 'no.png: not in the sample, which has 6.json'
  assert refused_in(tmp_path / 'out') == {'set/6': reason}


def test_a_tar_file_reads_nothing_outside_of_it(tmp_path):
  path = tmp_path / 'evil.tar'
  with tarfile.open(path, 'w') as archive:
    for name, kind in (
      ('../up.png', tarfile.REGTYPE),
      ('/root.png', tarfile.REGTYPE),
      ('link.png', tarfile.SYMTYPE),
      ('hard.png', tarfile.LNKTYPE),
      ('pipe.png', tarfile.FIFOTYPE),
      ('ok.png', tarfile.REGTYPE),
    ):
      info = tarfile.TarInfo(name)
      info.type = kind
      info.linkname = '/etc/passwd'
      data = image() if kind == tarfile.REGTYPE else b''
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  convert(TarReader([str(path)]), tmp_path / 'out')
  assert examples_in(tmp_path / 'out').keys() == {'evil/ok'}
  reasons = refused_in(tmp_path / 'out').values()
  assert len(reasons) == 5
  assert sum('leaves the archive' in reason for reason in reasons) == 2


def test_members_of_a_bomb_and_of_a_cut_archive_are_refused(tmp_path):
  bomb = tmp_path / 'bomb.tar.gz'
  with gzip.open(bomb, 'wb') as file:
    info = tarfile.TarInfo('a.png')
    info.size = 200 << 20
    file.write(info.tobuf() + bytes(1 << 20))  # declares 200 MiB and has only one
  cut = tmp_path / 'cut.tar'
  tar_of(cut, {'1.png': image(1), '2.png': image(2) * 50})
  cut.write_bytes(cut.read_bytes()[:3000])
  manifest = convert(TarReader([str(bomb), str(cut)]), tmp_path / 'out')
  assert manifest['records'] == 1
  assert any('has 209,715,200 bytes' in reason for reason in manifest['refused'])
  assert any('cannot be read further' in reason for reason in manifest['refused'])


def test_parquet_files_as_the_hub_writes_them_are_converted(tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  parquet = pytest.importorskip('pyarrow.parquet')
  features = {
    'image': {'_type': 'Image'},
    'label': {'_type': 'ClassLabel', 'names': ['cat', 'dog']},
  }
  metadata = {'info': {'features': features}}
  images = [{'bytes': image(n), 'path': None} for n in range(3)]
  images.append({'bytes': None, 'path': 'x'})
  table = pyarrow.table({'image': images, 'label': [0, 1, 1, 0]})
  table = table.replace_schema_metadata({'huggingface': json.dumps(metadata)})
  path = tmp_path / 'part-0.parquet'
  parquet.write_table(table, path, row_group_size=2)
  convert(ParquetReader([str(path)]), tmp_path / 'out')
  examples = examples_in(tmp_path / 'out')
  for name, label in (('0/0', 'cat'), ('0/1', 'dog'), ('1/0', 'dog')):
    answer = examples[f'part-0/{name}']['messages'][1]
    assert answer['content'][0]['text'] == label
  assert 'holds no bytes' in (tmp_path / 'out' / 'refused.jsonl').read_text()
  with pytest.raises(
    UserError,
    match=r"has image \(image\), label \(text\): name the prompt .*\(now 'image' and 'x'\)",
  ):
    ParquetReader([str(path)], write='x')
  reversed_reader = ParquetReader([str(path)], read='label', write='image')
  convert(reversed_reader, tmp_path / 'reversed')
  examples = examples_in(tmp_path / 'reversed')
  assert examples['part-0/0/0']['messages'][1]['task'] == 'draw'


@pytest.mark.skipif(not SHARED.is_dir(), reason='there are no shared data')
def test_malformed_files_are_refused_or_read_correctly(tmp_path):
  manifest = convert(FolderReader(str(SHARED / 'malformed')), tmp_path / 'out')
  readable = {'silence.wav', 'loud_float.wav', 'really_a_jpg.png', 'really_a_wav.flac'}
  assert examples_in(tmp_path / 'out').keys() == readable
  entries = json.loads((SHARED / 'malformed' / 'malformed.json').read_text())
  names = [entry['file'] for entry in entries]
  media = [name for name in names if not name.endswith('.txt')]
  refused = collections.Counter(manifest['refused'])
  assert sum(refused.values()) == len(media) - len(readable) == 30
  assert refused["content[0]: type 'video' is not one of text, image, audio"] == 6
  assert refused['file is empty'] == 2
