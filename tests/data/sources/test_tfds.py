"""Tests sets of TensorFlow Datasets, which are prepared here.

Images, sounds and labels become examples; what is missing is reported in one clear
line.
"""

import json
import pickle
import sys
import types

import numpy as np
import pytest
from samples import config as run_config
from samples import data_config, hosts_of

from omni_jax.convert.formats.tensorflow_set import TfdsReader
from omni_jax.convert.local import convert
from omni_jax.data.sources import table as sources
from omni_jax.data.sources.records import ArrayRecordExamples
from omni_jax.data.sources.tfds import open_tfds
from omni_jax.errors import BadRecord, UserError
from omni_jax.evaluate.tasks.answers import case_of
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.image.files import png_bytes
from omni_jax.modalities.image.sizes import ImageConfig

HOSTS = hosts_of(
  image=ImageConfig(height=4, width=4, channels=1),
  audio=AudioConfig(rate=8000, seconds=0.96),
)
NAMES = ('zero', 'one', 'two')
LEVELS = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1))
PIXELS = LEVELS.astype(np.float32) / 255
WAVES = []
for k in range(3):
  samples = np.random.default_rng(k).integers(-32768, 32768, 200 + k)
  WAVES.append(samples.astype(np.int16))


@pytest.fixture(scope='session')
def tfds():
  return pytest.importorskip(
    'tensorflow_datasets',
    reason='TensorFlow Datasets is not installed: extra [dev] or [tf]',
  )


def write_set(tfds, root, name, features, rows, supervised=None):
  """Writes a set of two equal splits to `root`.

  Its code is unknown afterwards, as with files from another machine.
  """

  def info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      supervised_keys=supervised,
    )

  def splits(self, manager):
    return {'train': enumerate(rows), 'test': enumerate(rows)}

  with tfds.core.registered.skip_registration():
    builder = type(
      name,
      (tfds.core.GeneratorBasedBuilder,),
      {
        'VERSION': tfds.core.Version('1.0.0'),
        'name': name,
        '_info': info,
        '_split_generators': splits,
        '_generate_examples': None,
        '__module__': __name__,
      },
    )
  builder(data_dir=str(root), file_format='array_record').download_and_prepare()


@pytest.fixture(scope='session')
def root(tfds, tmp_path_factory):
  """Returns a folder with four sets: pictures, sounds, broken images and numbers."""
  root = tmp_path_factory.mktemp('tfds')
  f = tfds.features
  label = f.ClassLabel(names=NAMES)
  box = f.BBox(0.0, 0.0, 1.0, 1.0)
  pictures = []
  sounds = []
  for k in range(3):
    pictures.append({'image': png_bytes(PIXELS[k]), 'label': k, 'box': box})
    sounds.append({'audio': WAVES[k], 'label': k, 'speaker': 'jürgen'})

  features = {'image': f.Image(shape=(4, 4, 1)), 'label': label, 'box': f.BBoxFeature()}
  write_set(tfds, root, 'pictures', features, pictures, ('image', 'label'))
  wave = f.Tensor(shape=(None,), dtype=np.int16)
  features = {'audio': wave, 'label': label, 'speaker': f.Text()}
  write_set(tfds, root, 'sounds', features, sounds)
  features = {'image': f.Image(), 'label': label}
  write_set(tfds, root, 'broken', features, [{'image': b'no image', 'label': 0}])
  features = {'x': f.Tensor(shape=(2,), dtype=np.float32)}
  write_set(tfds, root, 'numbers', features, [{'x': np.zeros(2, np.float32)}])
  return root


def config(root, name, **values):
  values = {'language': 'en', 'rate': 8000} | values
  return data_config(source='tfds', name=name, root=str(root), **values)


def parts(example):
  """Returns the parts of prompt and answer, and the task."""
  user, assistant = example['messages']
  assert (user['role'], assistant['role']) == ('user', 'assistant')
  assert assistant['language'] == 'en'
  return user['content'][0], assistant['content'][0], assistant['task']


def test_a_set_is_converted_without_reading_its_media_twice(root, tmp_path):
  reader = TfdsReader('pictures/train', root=str(root), language='en')
  copy = pickle.loads(pickle.dumps(reader))
  records = convert_examples(copy, tmp_path / 'out', shards=2)
  by_id = {record['id']: record for record in records}
  for example in sources.training_examples(config(root, 'pictures'), HOSTS):
    picture, answer, task = parts(by_id[example['id']])
    original, original_answer, _ = parts(example)
    np.testing.assert_array_equal(picture['pixels'], original['pixels'])
    assert answer == original_answer
    assert task == 'write'
  reader = TfdsReader(
    'sounds/train', root=str(root), rate=8000, read='audio', write='label'
  )
  lengths = []
  for record in convert_examples(reader, tmp_path / 'heard', shards=1):
    lengths.append(len(record['messages'][0]['content'][0]['wave']))
  assert sorted(lengths) == [200, 201, 202]
  remedy = 'name the prompt by --read and the answer by --write'
  message = f'--input=tfds:sounds/train: .*{remedy}'
  with pytest.raises(UserError, match=message):
    TfdsReader('sounds/train', root=str(root))


def convert_examples(reader, folder, shards) -> ArrayRecordExamples:
  """Converts an input and returns the examples of the shards."""
  convert(
    reader,
    folder,
    shards=shards,
    workers=1,
    input_name='it',
    timeout=60,
    log=lambda line: None,
  )
  return ArrayRecordExamples(sorted(folder.glob('*.array_record')), HOSTS)


def test_images_come_with_their_labels(root):
  examples = sources.training_examples(config(root, 'pictures'), HOSTS)
  assert len(examples) == 3
  names = []
  for example in examples:
    picture, answer, task = parts(example)
    names.append(answer['text'])
    assert task == 'write'
    assert picture['pixels'].dtype == np.float32
    pixels = PIXELS[NAMES.index(answer['text'])]
    np.testing.assert_array_equal(picture['pixels'], pixels)
  assert sorted(names) == sorted(NAMES)
  assert examples[-1]['id'] == 'pictures/train:2'


def test_sounds_come_with_the_text_that_the_config_names(root):
  settings = config(root, 'sounds', read='audio', write='label')
  for example in open_tfds(settings, HOSTS, 'test[:2]'):
    sound, answer, _ = parts(example)
    wave = WAVES[NAMES.index(answer['text'])] / np.float32(32768)
    np.testing.assert_array_equal(sound['wave'], wave)
  settings = config(root, 'sounds', read='speaker', write='audio', rate=4000)
  name, sound, task = parts(open_tfds(settings, HOSTS, 'test')[0])
  assert name == {'type': 'text', 'text': 'jürgen'}
  assert task == 'speak'
  assert 400 <= len(sound['wave']) <= 404
  settings = config(root, 'sounds', read='label', write='audio')
  assert len(sources.training_payloads(settings, HOSTS, 'audio')) == 3


def test_the_config_of_sets_does_not_guess_their_rate():
  """A rate on the command line is the rate of the set, not of the model."""
  c = run_config('tfds')
  assert (c.data.rate, c.model.audio.rate) == (0, 8000)
  c.data.rate = 16000
  assert c.model.audio.rate == 8000


def test_the_group_of_an_example_is_known_without_decoding(root):
  examples = open_tfds(config(root, 'pictures'), HOSTS, 'test')
  assert case_of(examples.encoded(0)).group == 'image_to_text'
  assert case_of(examples[0]).group == 'image_to_text'


def test_damaged_media_are_bad_records(root):
  with pytest.raises(BadRecord, match=r'^broken/train:0: not an image'):
    sources.training_examples(config(root, 'broken'), HOSTS)[0]


@pytest.mark.parametrize(
  'values, message',
  [
    ({'name': ''}, r'--config\.data\.name=mnist'),
    (
      {'name': 'no_such_set'},
      "'no_such_set': neither TensorFlow Datasets nor .* has a set of this name",
    ),
    (
      {'name': 'pictures', 'train_split': 'valid'},
      "no split 'valid'; there are test, train",
    ),
    (
      {'name': 'pictures', 'write': 'lable'},
      r'has image \(image\), label \(text\): name .*lable',
    ),
    (
      {'name': 'sounds'},
      r'has audio \(audio\), label \(text\), speaker \(text\): name the prompt',
    ),
    (
      {'name': 'sounds', 'read': 'audio', 'write': 'label', 'rate': 0},
      r"'audio' does not state its sample rate: set it, .*--config\.data\.rate",
    ),
    ({'name': 'numbers'}, 'has nothing that can be used'),
  ],
  ids=str,
)
def test_mistakes_are_reported_in_one_line(root, values, message):
  with pytest.raises(UserError, match=message) as error:
    sources.training_examples(config(root, **values), HOSTS)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'tensorflow, message',
  [
    (
      types.ModuleType('tensorflow'),
      r'mine cannot be prepared in .* \(ConnectionError: no route\): this needs a network',
    ),
    (None, r'mine cannot be prepared or opened without TensorFlow: .*omni_jax\[tf\]'),
  ],
  ids=['network', 'TensorFlow'],
)
def test_what_is_missing_to_prepare_a_set_is_reported_in_one_line(
  tfds, tmp_path, monkeypatch, tensorflow, message
):
  class Builder:
    def is_prepared(self):
      return False

    def download_and_prepare(self):
      raise ConnectionError('no route\nto host')

  monkeypatch.setitem(sys.modules, 'tensorflow', tensorflow)
  monkeypatch.setattr(tfds, 'builder', lambda name, **kwargs: Builder())
  with pytest.raises(UserError, match=message) as error:
    open_tfds(config(tmp_path, 'mine'), HOSTS, 'train')
  assert '\n' not in str(error.value)


def test_the_error_of_a_missing_package_names_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  with pytest.raises(
    UserError,
    match=r"needs the package 'tensorflow_datasets': pip install 'omni_jax\[tf\]'",
  ):
    open_tfds(config(tmp_path, 'mnist'), HOSTS, 'train')


def test_a_feature_of_type_audio_states_its_rate(tfds, tmp_path):
  pytest.importorskip(
    'tensorflow', reason='features.Audio needs TensorFlow: extra [tf]'
  )
  f = tfds.features
  audio = f.Audio(file_format='wav', sample_rate=8000)
  features = {'audio': audio, 'label': f.ClassLabel(num_classes=10)}
  rows = [{'audio': WAVES[0].astype(np.int64), 'label': 7}]
  write_set(tfds, tmp_path, 'heard', features, rows, ('audio', 'label'))
  examples = open_tfds(config(tmp_path, 'heard', rate=0), HOSTS, 'train')
  sound, answer, _ = parts(examples[0])
  np.testing.assert_array_equal(sound['wave'], WAVES[0] / np.float32(32768))
  assert answer['text'] == '7'
  assert json.dumps(answer)
