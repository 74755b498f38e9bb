"""Evaluates a stand-in for the model on digits, on JSON lines and on ready sets.

The stand-in answers right, wrong, or not at all.
"""

import json
import pathlib
import re
from typing import Any, NamedTuple
import wave
import zipfile

import numpy as np
import pytest

from omni_jax.convert.formats.chat_lines import JsonLinesReader
from omni_jax.convert.local import convert
from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.data.sources.table import SOURCES
from omni_jax.errors import UserError
from omni_jax.evaluate import run as run_lib
from omni_jax.evaluate.limits import Limits
from omni_jax.evaluate.metrics.targets import checks, TARGETS
from omni_jax.evaluate.tasks.prompts import DIRECTIONS
from omni_jax.evaluate.tasks.table import TASKS
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.audio.host import AudioPart
from omni_jax.modalities.image.files import png_bytes
from omni_jax.modalities.image.host import ImagePart
from omni_jax.modalities.text.host import TextPart

LIMITS = Limits(n=40, n_images=60, n_any=4, n_codec=30)
LOG = [
  {'stage': 'codec', 'step': 1, 'seconds': 1, 'codec/mel': 2.0},
  {'stage': 'codec', 'step': 2, 'seconds': 3, 'codec/mel': 1},
  {'stage': 'cells', 'step': 1, 'seconds': 4, 'cells/loss': 2.0},
  {'stage': 'cells', 'step': 2, 'seconds': 5, 'cells/loss': 1.0},
  {'stage': 'omni', 'step': 1, 'seconds': 60, 'loss/text': 3.0, 'routing/entropy': 1.5},
  {
    'stage': 'omni',
    'step': 2,
    'seconds': 90,
    'loss/text': 0.02,
    'routing/expert_by_modality': [[0, 0], [3, 1], [2, 2], [0, 5]],
  },
]
CUT_OFF = '{"stage": "om'  # a last line whose writer was killed
QUIET = dict(limits=LIMITS, log=lambda line: None)


def json_lines(rows):
  """Returns the text of a file of JSON lines."""
  return '\n'.join(json.dumps(row) for row in rows)


def chat(user, assistant, **requested):
  """Returns an example of one question and one answer."""
  answer = {'role': 'assistant', **requested, 'content': assistant}
  return {'messages': [{'role': 'user', 'content': user}, answer]}


def report_of(folder):
  return (folder / 'eval/7/report.html').read_text()


class Evaluation(NamedTuple):
  """The folder of a run, and the metrics of its evaluation."""

  folder: pathlib.Path
  metrics: dict[str, Any]


@pytest.fixture(scope='module')
def perfect(make_fake, tmp_path_factory):
  """Returns the evaluation of a model that always answers right."""
  folder = tmp_path_factory.mktemp('perfect')
  (folder / 'metrics.jsonl').write_text(f'{json_lines(LOG)}\n{CUT_OFF}')
  return Evaluation(folder, run_lib.run(make_fake(), folder, **QUIET))


def test_a_perfect_model_scores_nearly_one_in_all_nine_directions(perfect):
  metrics = perfect.metrics
  directions = metrics['directions']
  assert list(directions) == [direction.name for direction in DIRECTIONS]
  assert set(directions) == set(TARGETS)
  for name, entry in directions.items():
    assert entry['accuracy'] >= 0.95, name
    assert entry['n'] == (60 if name == 'text_to_image' else 40)
    low, high = entry['interval']
    assert low < entry['accuracy'] <= high + 1e-9
    if not name.endswith('image'):
      assert entry['language_accuracy'] >= 0.95
  assert directions['speech_to_speech']['voice_accuracy'] >= 0.95
  assert directions['text_to_image']['copying_ratio'] > 0.8
  assert directions['text_to_image']['diversity'] > 0.7
  assert metrics['any']['accuracy'] >= 0.75
  assert metrics['any']['complete'] == 1


def test_the_metrics_file_holds_the_returned_metrics(perfect):
  folder, metrics = perfect
  assert json.loads((folder / 'eval/7/metrics.json').read_text()) == metrics
  assert metrics['version'] == 1
  assert metrics['step'] == 7
  assert metrics['seconds'] > 0
  assert metrics['routing']['expert_by_modality'] == {
    'text': [0.75, 0.25],
    'image': [0.5, 0.5],
    'audio': [0, 1],
  }
  assert metrics['routing']['entropy'] == 1.5
  assert 0.9 < metrics['codec']['perplexity_ratio'] <= 1
  # The codec of the stand-in returns noise.
  assert metrics['codec']['judge_accuracy_reconstructed'] < 0.5
  assert not list((folder / 'eval/7').glob('*.part'))


def test_every_reply_is_in_the_predictions(perfect):
  text = (perfect.folder / 'eval/7/predictions.jsonl').read_text()
  predictions = [json.loads(line) for line in text.splitlines()]
  for name, entry in perfect.metrics['directions'].items():
    own = [line for line in predictions if line['group'] == name]
    assert len(own) >= entry['n']
    assert all(line['right'] == (line['digit'] == line['expected']) for line in own)
  drawn = [line for line in predictions if line['group'] == 'text_to_image']
  assert drawn[0]['reply'] == [{'type': 'image'}]
  right = [line['right'] for line in drawn]
  accuracy = perfect.metrics['directions']['text_to_image']['accuracy']
  assert sum(right) / len(right) == pytest.approx(accuracy)


def test_tensorboard_has_scores_drawings_and_words(perfect):
  files = list((perfect.folder / 'tensorboard' / 'evaluate').iterdir())
  data = b''.join(path.read_bytes() for path in files)
  for name in (b'directions.text_to_image.accuracy', b'drawn', b'RIFF'):
    assert name in data


def test_the_report_is_complete_and_needs_no_other_file(perfect):
  page = report_of(perfect.folder)
  assert 'http' not in page
  assert '<script' not in page
  assert '<link' not in page
  for source in re.findall(r'src="([^"]*)"', page):
    assert source.startswith('data:')
  for text in (
    'Directions',
    'Drawings',
    'Spoken words',
    'codec: codec/mel',
    'cells: cells/loss',
    'omni: loss/text',
    'Confusion tables',
    'image → speech',
  ):
    assert text in page


def test_the_media_of_the_report_are_files(perfect):
  folder = perfect.folder / 'eval/7/media'
  names = {path.name for path in folder.iterdir()}
  assert {'drawn_00.png', 'real_00.png'} <= names
  assert {'spoken_00.wav', 'speech_to_text_prompt_00.wav'} <= names
  with wave.open(str(folder / 'spoken_00.wav')) as file:
    assert file.getframerate() == 8000
    assert file.getnframes() > 1000


@pytest.mark.parametrize(
  'options', [{'shift': 1}, {'silent': True}], ids=['wrong', 'silent']
)
def test_a_wrong_or_silent_model_scores_nearly_zero(make_fake, tmp_path, options):
  metrics = run_lib.run(make_fake(**options), tmp_path, tmp_path / 'out', **QUIET)
  directions = metrics['directions']
  for name, entry in directions.items():
    assert entry['accuracy'] <= 0.05, name
  assert metrics['any']['accuracy'] <= 0.25
  if options.get('silent'):
    assert directions['text_to_image']['diversity'] is None
    assert directions['text_to_speech']['language_accuracy'] == 0
    assert directions['speech_to_speech']['voice_accuracy'] == 0


def write_data(folder):
  """Writes three chats and a plain example, and returns their path."""
  image = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8, 1)
  tone = np.sin(np.arange(4000) / 5).astype(np.float32)
  (folder / 'a.png').write_bytes(png_bytes(image))
  (folder / 'a.wav').write_bytes(wav_bytes(tone, 8000))
  picture = {'type': 'image', 'path': 'a.png'}
  sound = {'type': 'audio', 'path': 'a.wav'}
  text = {'type': 'text', 'text': 'seven'}
  lines = [
    chat([picture], [text]),
    chat([picture], [text]),
    chat([text], [picture, sound]),
    {'content': [text, sound]},
  ]
  path = folder / 'data.jsonl'
  path.write_text(json_lines(lines))
  return path


@pytest.mark.parametrize('source', ['jsonl', 'array_record'])
def test_unknown_data_is_grouped_by_what_goes_in_and_out(make_fake, tmp_path, source):
  path = write_data(tmp_path)
  eval_file = path.name
  if source == 'array_record':
    eval_file = 'test'
    convert(
      JsonLinesReader(str(path)),
      tmp_path / eval_file,
      shards=2,
      workers=1,
      input_name='it',
      timeout=60,
      log=lambda line: None,
    )
  trained = make_fake(source=source, root=str(tmp_path), eval_file=eval_file)
  black = ImagePart(np.zeros((8, 8, 1)))
  tone = AudioPart(np.sin(np.arange(8000) / 5), rate=8000)
  replies = {'text': [TextPart('seven')], 'any': [black, tone]}
  trained.generate_batch = lambda prompts, *, want, seed: [replies[want]] * len(prompts)
  metrics = run_lib.run(trained, tmp_path, **QUIET)
  groups = metrics['data']['groups']
  assert set(groups) == {'image_to_text', 'text_to_image+speech', 'plain'}
  assert metrics['directions'] == {}
  assert groups['image_to_text'] | {'exact_match_interval': None} == {
    'n': 2,
    'loss': {'text': 0.5, 'total': 1.25},
    'exact_match': 1,
    'cer': 0,
    'wer': 0,
    'exact_match_interval': None,
  }
  both = groups['text_to_image+speech']
  assert both['speech_present'] == both['image_present'] == 1
  assert both['length_ratio'] == 2
  assert both['mel_distance'] < 0.1
  error = np.sqrt(np.mean(np.linspace(0, 1, 64) ** 2))
  assert both['image_rmse'] == pytest.approx(error, abs=0.01)
  page = report_of(tmp_path)
  assert 'image → text' in page
  assert 'http' not in page


def test_a_ready_set_is_evaluated_on_its_test_split(make_fake, tmp_path):
  """The model writes the first order twice: the other one has its intent and size."""
  folder = tmp_path / 'barista_speech'
  folder.mkdir()
  orders = [('tea', 'train'), ('latte', 'test'), ('mocha', 'test')]
  rows = []
  with zipfile.ZipFile(folder / 'audio.zip', 'w') as archive:
    for k, (drink, split) in enumerate(orders):
      slots = {'drink': drink, 'size': 'small'}
      row = {'file': f'{k}.wav', 'intent': 'order', 'slots': slots, 'split': split}
      rows.append(row)
      archive.writestr(row['file'], wav_bytes(np.sin(np.arange(4000) / 5), 8000))
  (folder / 'labels.jsonl').write_text(json_lines(rows))
  trained = make_fake(
    source='barista', root=str(tmp_path), train_split='train', eval_split='test'
  )
  reply = [TextPart('Order;  size: small; drink: latte')]
  trained.generate_batch = lambda prompts, *, want, seed: [reply] * len(prompts)
  metrics = run_lib.run(trained, tmp_path, **QUIET)
  assert metrics['data']['file'] == 'barista/test'
  scores = metrics['data']['groups']['barista_speech_to_text']
  assert scores['n'] == 2
  assert scores['exact_match'] == 0
  assert scores['intent_accuracy'] == 1
  assert scores['order_accuracy'] == 0.5
  assert scores['slot_f1'] == 0.75
  assert 'slot_f1' in report_of(tmp_path).replace(' ', '_')


def test_data_that_cannot_be_read_is_refused_and_nothing_written(make_fake, tmp_path):
  path = tmp_path / 'data.jsonl'
  example = {'content': [{'type': 'image', 'path': 'missing.png'}]}
  path.write_text(json.dumps(example))
  with pytest.raises(UserError, match=r'missing\.png'):
    run_lib.run(make_fake(), tmp_path, data=path, **QUIET)
  assert not (tmp_path / 'eval').exists()


def test_metrics_are_json_whatever_the_model_returns():
  value = {
    'a': np.float32(0.5),
    'b': [float('nan'), np.int64(3)],
    'c': None,
    'd': {'e': np.inf},
  }
  assert run_lib.plain(value) == {'a': 0.5, 'b': [None, 3], 'c': None, 'd': {'e': None}}


@pytest.mark.parametrize('name', SOURCES)
def test_every_source_names_a_task_of_evaluation(name):
  assert SOURCES[name].evaluation in TASKS


def test_a_text_is_evaluated_by_the_loss_on_its_end(make_fake, tmp_path):
  (tmp_path / 'a.txt').write_text('abcdefghij' * 10)
  trained = make_fake(source='text', root=str(tmp_path), train_file='a.txt', piece=4)
  metrics = run_lib.run(trained, tmp_path, log=lambda line: None)
  assert metrics['data'] == {
    'file': str(tmp_path / 'a.txt'),
    'n': 2,
    'bad': 0,
    'groups': {'text': {'n': 2, 'loss': {'text': 0.5, 'total': 1.25}}},
    'targets': {},
  }


@pytest.mark.parametrize('missing', ['image', 'audio'])
def test_a_run_without_a_medium_is_evaluated_on_text_only(make_fake, tmp_path, missing):
  """The digits need all media, so they are refused."""
  path = tmp_path / 'data.jsonl'
  path.write_text(json.dumps(chat('seven', 'sieben')))
  trained = make_fake()
  del trained.config.model[missing]
  trained.set_media()
  reply = [TextPart('sieben')]
  trained.generate_batch = lambda prompts, *, want, seed: [reply] * len(prompts)
  with pytest.raises(UserError, match=f'no {missing}: evaluate with --data'):
    run_lib.run(trained, tmp_path, **QUIET)
  metrics = run_lib.run(trained, tmp_path, data=path, **QUIET)
  assert metrics['data']['groups']['text_to_text']['exact_match'] == 1


def test_the_seed_of_the_config_chooses_the_prompts(make_fake, tmp_path):
  path = tmp_path / 'data.jsonl'
  path.write_text(json_lines([chat(str(k), str(k)) for k in range(50)]))
  trained = make_fake()
  calls = []

  def generate_batch(prompts, *, want, seed):
    questions = [prompt['messages'][0]['content'][0]['text'] for prompt in prompts]
    calls.append((seed, questions))
    return [[TextPart('')] for _ in prompts]

  trained.generate_batch = generate_batch
  options = dict(limits=Limits(n_data=5), data=path, log=lambda line: None)
  run_lib.run(trained, tmp_path, **options)
  run_lib.run(trained, tmp_path, seed=3, **options)
  trained.config.evaluate.seed = 3
  run_lib.run(trained, tmp_path, **options)
  of_config, of_caller, of_changed_config = calls
  assert of_config[0] == 0
  assert of_changed_config == of_caller != of_config
  assert of_changed_config[1] != of_config[1]
  del trained.config.evaluate.seed
  with pytest.raises(UserError, match=r'config\.evaluate\.seed is missing'):
    run_lib.run(trained, tmp_path, **options)


def test_limits_come_from_the_config_and_typos_are_named(make_fake):
  config = make_fake().config
  config.evaluate = {'n': 3, 'sampling': {'temperature': 0.5}}
  assert run_lib.limits_of(config) == Limits(n=3, sampling={'temperature': 0.5})
  config.evaluate = {'n_image': 3}
  with pytest.raises(UserError, match='n_image'):
    run_lib.limits_of(config)


def write_labelled(folder, split, images, labels, clips):
  """Writes SPLIT.jsonl: a request to draw each image, and one to speak each clip."""
  rows = []
  for k, (image, label, clip) in enumerate(zip(images, labels, clips, strict=True)):
    picture = {'type': 'image', 'path': f'media/{split}{k}.png', 'label': str(label)}
    sound = {
      'type': 'audio',
      'path': f'media/{split}{k}.wav',
      'label': str(clip.digit),
      'voice': clip.voice,
    }
    (folder / picture['path']).write_bytes(png_bytes(image))
    (folder / sound['path']).write_bytes(wav_bytes(clip.wave, 8000))
    for task, part in (('draw', picture), ('speak', sound)):
      word = DIGIT_WORDS[clip.language][int(part['label'])]
      text = {'type': 'text', 'text': word}
      requested = dict(language=clip.language, task=task, voice=clip.voice)
      row = {'meta': {'group': task}, **chat([text], [part], **requested)}
      rows.append(row)
  (folder / f'{split}.jsonl').write_text(json_lines(rows))


@pytest.fixture
def labelled(digits, tmp_path):
  """Returns a folder with train.jsonl and test.jsonl of labelled English digits."""
  (tmp_path / 'media').mkdir()
  train = [clip for clip in digits.train_clips if clip.language == 'en']
  test = [clip for clip in digits.take_clips if clip.language == 'en']
  train_images = digits.train_images[: len(train)]
  train_labels = digits.train_labels[: len(train)]
  write_labelled(tmp_path, 'train', train_images, train_labels, train)
  test_images = digits.test_images[: len(test)]
  test_labels = digits.test_labels[: len(test)]
  write_labelled(tmp_path, 'test', test_images, test_labels, test)
  return tmp_path


def test_labelled_data_is_judged_by_what_was_fitted_to_the_training_file(
  make_fake, labelled
):
  """Right answers are judged right, those off by one wrong; voices are told apart."""
  groups = {}
  for shift in (0, 1):
    trained = make_fake(
      shift=shift,
      source='jsonl',
      root=str(labelled),
      train_file='train.jsonl',
      eval_file='test.jsonl',
    )
    trained.config.evaluate.targets = {'draw': {'image_accuracy': 0.5}}
    metrics = run_lib.run(trained, labelled, **QUIET)
    groups[shift] = metrics['data']['groups']
    (check,) = (check for check in checks(metrics) if check.direction == 'draw')
    assert check.passed == (shift == 0)
    assert '≥ 0.5' in report_of(labelled)  # the target is shown beside its value
  right = groups[0]
  wrong = groups[1]
  assert right['draw']['image_accuracy'] > 0.5
  assert wrong['draw']['image_accuracy'] < 0.3
  assert right['speak']['speech_accuracy'] > 0.8
  assert wrong['speak']['speech_accuracy'] < 0.3
  assert right['speak']['voice_accuracy'] > 0.8
  assert right['draw']['diversity'] > 0.5
