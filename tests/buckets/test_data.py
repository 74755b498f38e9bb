"""Data in buckets: converted from there, to there, and read again."""

import io
import json

from etils import epath
import numpy as np
from PIL import Image
import pytest
from samples import config

from omni_jax import mirror
from omni_jax.convert import __main__ as command
from omni_jax.convert import bucket as convert_bucket
from omni_jax.data.sources.table import training_examples
from omni_jax.errors import UserError
from omni_jax.modalities.hosts import Hosts


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
  monkeypatch.setattr(mirror, 'CACHE', str(tmp_path / 'copies'))
  monkeypatch.setattr(convert_bucket, 'STAGING', str(tmp_path / 'converting'))


def png(number):
  """Returns a picture whose first pixel has this value."""
  file = io.BytesIO()
  Image.fromarray(np.full((8, 8), number, np.uint8)).save(file, 'png')
  return file.getvalue()


@pytest.fixture
def lines(folder):
  """Returns the URL of JSON lines of five examples with their pictures beside them."""
  rows = []
  for number in range(5):
    (epath.Path(folder) / 'in' / f'{number}.png').write_bytes(png(number))
    content = [{'type': 'image', 'path': f'{number}.png'}]
    messages = [
      {'role': 'user', 'content': content},
      {'role': 'assistant', 'content': str(number)},
    ]
    rows.append(json.dumps({'id': f'number {number}', 'messages': messages}))
  path = epath.Path(folder) / 'in' / 'data.jsonl'
  path.write_text('\n'.join(rows))
  return str(path)


def examples_of(root, source, file):
  """Returns the training examples of a config by id."""
  c = config('own_data')
  c.data.update(dict(source=source, root=root, train_file=file))
  return {
    example['id']: example for example in training_examples(c.data, Hosts.lenient())
  }


def test_json_lines_of_a_bucket_become_shards_of_a_bucket_that_train(lines, folder):
  command.main(
    [f'--input={lines}', f'--output={folder}/out', '--shards=2', '--workers=1']
  )
  names = {path.name for path in (epath.Path(folder) / 'out').iterdir()}
  assert {'manifest.json', 'refused.jsonl'} < names
  assert len([name for name in names if name.endswith('.array_record')]) == 2
  converted = examples_of(folder, 'array_record', 'out')
  direct = examples_of(f'{folder}/in', 'jsonl', 'data.jsonl')
  assert converted.keys() == direct.keys() == {f'number {n}' for n in range(5)}
  for id, example in converted.items():
    pixels = example['messages'][0]['content'][0]['pixels']
    expected = direct[id]['messages'][0]['content'][0]['pixels']
    np.testing.assert_array_equal(pixels, expected)


def test_a_conversion_never_overwrites_another(lines, folder):
  arguments = [f'--input={lines}', f'--output={folder}/out', '--workers=1']
  command.main(arguments)
  with pytest.raises(UserError, match='already exists'):
    command.main(arguments)


def test_a_missing_input_is_refused_in_one_line(folder, bucket):
  with pytest.raises(UserError, match=r'^--input=.*nothing\.jsonl: no such file'):
    command.main([f'--input={folder}/nothing.jsonl', f'--output={folder}/out'])
