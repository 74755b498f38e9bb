"""Whole evaluations with a stand-in for the model: right, wrong and silent ones, digits and JSON lines."""

import json
import re
from types import SimpleNamespace
import wave
import zipfile

import ml_collections
import numpy as np
import pytest

from omni_jax.convert.formats.chat_lines import JsonLinesReader
from omni_jax.convert.local import convert
from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.data.sources.table import SOURCES
from omni_jax.errors import UserError
from omni_jax.evaluate import cascade, judges
from omni_jax.evaluate import run as run_lib
from omni_jax.evaluate.limits import Limits
from omni_jax.evaluate.metrics.targets import checks, TARGETS
from omni_jax.evaluate.tasks.prompts import DIRECTIONS
from omni_jax.evaluate.tasks.table import TASKS
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.image.files import png_bytes

LIMITS = Limits(n=40, n_images=60, n_any=4, n_codec=30)
LOG = [
  {'stage': 'codec', 'step': 1, 'seconds': 1, 'codec/mel': 2.0},
  {'stage': 'codec', 'step': 2, 'seconds': 3, 'codec/mel': 1},
  {'stage': 'omni', 'step': 1, 'seconds': 60, 'loss/text': 3.0, 'routing/entropy': 1.5},
  {
    'stage': 'omni',
    'step': 2,
    'seconds': 90,
    'loss/text': 0.02,
    'routing/expert_by_modality': [[0, 0], [3, 1], [2, 2], [0, 5]],
  },
]


@pytest.fixture(scope='module')
def perfect(fake, tmp_path_factory):
  folder = tmp_path_factory.mktemp('perfect')
  (folder / 'metrics.jsonl').write_text(
    '\n'.join(map(json.dumps, LOG)) + '\n{"stage": "om'
  )
  return folder, run_lib.run(fake(), folder, limits=LIMITS, log=lambda line: None)


def test_a_perfect_model_scores_one_in_all_nine_directions(perfect):
  directions = perfect[1]['directions']
  assert list(directions) == [direction.name for direction in DIRECTIONS] and set(
    directions
  ) == set(TARGETS)
  for name, entry in directions.items():
    assert entry['accuracy'] >= 0.95, name
    assert entry['n'] == (60 if name == 'text_to_image' else 40)
    assert entry['interval'][0] < entry['accuracy'] <= entry['interval'][1] + 1e-9
    if not name.endswith('image'):
      assert entry['language_accuracy'] >= 0.95
  assert directions['speech_to_speech']['voice_accuracy'] >= 0.95
  assert (
    directions['text_to_image']['copying_ratio'] > 0.8
    and directions['text_to_image']['diversity'] > 0.7
  )
  assert perfect[1]['any']['accuracy'] >= 0.75 and perfect[1]['any']['complete'] == 1


def test_metrics_file_is_the_returned_metrics(perfect):
  folder, metrics = perfect
  assert json.loads((folder / 'eval/7/metrics.json').read_text()) == metrics
  assert metrics['version'] == 1 and metrics['step'] == 7 and metrics['seconds'] > 0
  assert metrics['routing']['expert_by_modality'] == {
    'text': [0.75, 0.25],
    'image': [0.5, 0.5],
    'audio': [0, 1],
  }
  assert metrics['routing']['entropy'] == 1.5
  assert 0.9 < metrics['codec']['perplexity_ratio'] <= 1
  assert (
    metrics['codec']['judge_accuracy_reconstructed'] < 0.5
  )  # the fake codec returns noise
  assert not list((folder / 'eval/7').glob('*.part'))


def test_report_needs_nothing_outside_itself(perfect):
  page = (perfect[0] / 'eval/7/report.html').read_text()
  assert 'http' not in page and '<script' not in page and '<link' not in page
  assert all(
    source.startswith('data:') for source in re.findall(r'src="([^"]*)"', page)
  )
  for text in (
    'Directions',
    'Drawings',
    'Spoken words',
    'omni: loss/text',
    'taken for what',
    'image → speech',
  ):
    assert text in page


def test_media_files_are_whole(perfect):
  folder = perfect[0] / 'eval/7/media'
  assert {
    'drawn_00.png',
    'real_00.png',
    'spoken_00.wav',
    'speech_to_text_prompt_00.wav',
  } <= {path.name for path in folder.iterdir()}
  with wave.open(str(folder / 'spoken_00.wav')) as file:
    assert file.getframerate() == 8000 and file.getnframes() > 1000


@pytest.mark.parametrize(
  'kwargs', [{'shift': 1}, {'silent': True}], ids=['wrong', 'silent']
)
def test_a_wrong_model_scores_zero(fake, tmp_path, kwargs):
  metrics = run_lib.run(
    fake(**kwargs), tmp_path, tmp_path / 'out', limits=LIMITS, log=lambda line: None
  )
  for name, entry in metrics['directions'].items():
    assert entry['accuracy'] <= 0.05, name
  assert metrics['any']['accuracy'] <= 0.25
  if kwargs.get('silent'):
    assert metrics['directions']['text_to_image']['diversity'] is None
    assert metrics['directions']['text_to_speech']['language_accuracy'] == 0
    assert metrics['directions']['speech_to_speech']['voice_accuracy'] == 0


def write_data(folder):
  image = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8, 1)
  (folder / 'a.png').write_bytes(png_bytes(image))
  (folder / 'a.wav').write_bytes(
    wav_bytes(np.sin(np.arange(4000) / 5).astype(np.float32), 8000)
  )
  picture, sound = (
    {'type': 'image', 'path': 'a.png'},
    {'type': 'audio', 'path': 'a.wav'},
  )
  text = {'type': 'text', 'text': 'seven'}
  chats = [([picture], [text]), ([picture], [text]), ([text], [picture, sound])]
  lines = [
    {
      'messages': [
        {'role': 'user', 'content': user},
        {'role': 'assistant', 'content': assistant},
      ]
    }
    for user, assistant in chats
  ] + [{'content': [text, sound]}]
  (folder / 'data.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  return folder / 'data.jsonl'


@pytest.mark.parametrize('source', ['jsonl', 'array_record'])
def test_unknown_data_is_grouped_by_what_goes_in_and_out(fake, tmp_path, source):
  path = write_data(tmp_path)
  if source == 'array_record':
    convert(
      JsonLinesReader(str(path)),
      tmp_path / 'test',
      shards=2,
      workers=1,
      said='it',
      timeout=60,
      log=lambda line: None,
    )
  trained = fake(
    source=source,
    root=str(tmp_path),
    eval_file={'jsonl': path.name, 'array_record': 'test'}[source],
  )
  replies = {
    'text': [SimpleNamespace(type='text', text='seven')],
    'any': [
      SimpleNamespace(type='image', pixels=np.zeros((8, 8, 1))),
      SimpleNamespace(type='audio', wave=np.sin(np.arange(8000) / 5), rate=8000),
    ],
  }
  trained.generate_batch = lambda prompts, *, want, seed: [replies[want]] * len(prompts)
  metrics = run_lib.run(trained, tmp_path, limits=LIMITS, log=lambda line: None)
  groups = metrics['data']['groups']
  assert (
    set(groups) == {'image_to_text', 'text_to_image+speech', 'plain'}
    and metrics['directions'] == {}
  )
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
  assert both['length_ratio'] == 2 and both['mel_distance'] < 0.1
  assert both['image_rmse'] == pytest.approx(
    np.sqrt(np.mean(np.linspace(0, 1, 64) ** 2)), abs=0.01
  )
  page = (tmp_path / 'eval/7/report.html').read_text()
  assert 'image → text' in page and 'http' not in page


def test_a_ready_set_is_evaluated_on_its_test_split(fake, tmp_path):
  """The model writes the first order twice: all of one is right, of the other intent and size."""
  (tmp_path / 'barista_speech').mkdir()
  rows = [
    {
      'file': f'{k}.wav',
      'intent': 'order',
      'slots': {'drink': drink, 'size': 'small'},
      'split': split,
    }
    for k, (drink, split) in enumerate(
      [('tea', 'train'), ('latte', 'test'), ('mocha', 'test')]
    )
  ]
  (tmp_path / 'barista_speech/labels.jsonl').write_text(
    '\n'.join(map(json.dumps, rows))
  )
  with zipfile.ZipFile(tmp_path / 'barista_speech/audio.zip', 'w') as archive:
    for row in rows:
      archive.writestr(row['file'], wav_bytes(np.sin(np.arange(4000) / 5), 8000))
  trained = fake(
    source='barista', root=str(tmp_path), train_split='train', eval_split='test'
  )
  trained.generate_batch = lambda prompts, *, want, seed: (
    [[SimpleNamespace(type='text', text='Order;  size: small; drink: latte')]]
    * len(prompts)
  )
  metrics = run_lib.run(trained, tmp_path, limits=LIMITS, log=lambda line: None)
  assert metrics['data']['file'] == 'barista/test'
  scores = metrics['data']['groups']['barista_speech_to_text']
  assert (
    scores['n'],
    scores['exact_match'],
    scores['intent_accuracy'],
    scores['order_accuracy'],
    scores['slot_f1'],
  ) == (2, 0, 1, 0.5, 0.75)
  assert 'slot_f1' in (tmp_path / 'eval/7/report.html').read_text().replace(' ', '_')


def test_data_that_cannot_be_read_is_refused_and_nothing_written(fake, tmp_path):
  (tmp_path / 'data.jsonl').write_text(
    json.dumps({'content': [{'type': 'image', 'path': 'missing.png'}]})
  )
  with pytest.raises(UserError, match=r'missing\.png'):
    run_lib.run(
      fake(),
      tmp_path,
      data=tmp_path / 'data.jsonl',
      limits=LIMITS,
      log=lambda line: None,
    )
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


def test_a_text_is_evaluated_by_the_loss_on_its_end(fake, tmp_path):
  (tmp_path / 'a.txt').write_text('abcdefghij' * 10)
  trained = fake(source='text', root=str(tmp_path), train_file='a.txt', piece=4)
  metrics = run_lib.run(trained, tmp_path, log=lambda line: None)
  assert metrics['data'] == {
    'file': str(tmp_path / 'a.txt'),
    'n': 2,
    'bad': 0,
    'groups': {'text': {'n': 2, 'loss': {'text': 0.5, 'total': 1.25}}},
    'targets': {},
  }


@pytest.mark.parametrize('missing', ['image', 'audio'])
def test_a_run_without_a_medium(fake, tmp_path, missing):
  """Text is scored where a medium is not in the model; the digits need them all."""
  chat = {
    'messages': [
      {'role': 'user', 'content': 'seven'},
      {'role': 'assistant', 'content': 'sieben'},
    ]
  }
  (tmp_path / 'data.jsonl').write_text(json.dumps(chat))
  trained = fake()
  del trained.config.model[missing]
  trained.restored()
  trained.generate_batch = lambda prompts, *, want, seed: (
    [[SimpleNamespace(type='text', text='sieben')]] * len(prompts)
  )
  options = dict(limits=LIMITS, log=lambda line: None)
  with pytest.raises(UserError, match=f'no {missing}: evaluate with --data'):
    run_lib.run(trained, tmp_path, **options)
  metrics = run_lib.run(trained, tmp_path, data=tmp_path / 'data.jsonl', **options)
  assert metrics['data']['groups']['text_to_text']['exact_match'] == 1


def test_limits_come_from_the_config_and_typos_are_named(fake):
  config = fake().config
  config.evaluate = {'n': 3, 'sampling': {'temperature': 0.5}}
  assert run_lib.limits_of(config) == Limits(n=3, sampling={'temperature': 0.5})
  config.evaluate = {'n_image': 3}
  with pytest.raises(UserError, match='n_image'):
    run_lib.limits_of(config)


def test_image_judge_is_right_on_real_test_digits(digits):
  judge = judges.ImageJudge(digits.train_images, digits.train_labels)
  right = np.equal(judge(digits.test_images), digits.test_labels)
  assert right.mean() >= 0.98
  assert judge([np.zeros((9, 9, 1))]) == [-1]


def test_speech_judge_hears_words_and_voices_of_another_take(digits):
  judge = judges.SpeechJudge(digits.train_clips, rate=8000)
  heard = judge([clip.wave for clip in digits.take_clips])
  for name, found in heard._asdict().items():
    assert (
      np.mean(
        [
          value == getattr(clip, name)
          for value, clip in zip(found, digits.take_clips, strict=True)
        ]
      )
      > 0.95
    )
  assert (
    len(judge([np.zeros(0), np.full(50, np.nan)]).digit) == 2
  )  # silence and rubbish are judged, not fatal


def test_a_cascade_keeps_the_word_and_loses_the_voice(fake):
  """The fake answers speech in the voice that it hears, and text in the voice that is named."""
  trained = fake()
  # A codec that loses nothing.
  trained.encode_payloads = trained.decode_payloads = lambda name, items: list(items)
  scores = cascade.compare(trained, n=40)
  assert scores['codec alone']['pitch correlation'] == pytest.approx(1)
  assert scores['direct']['digit'] == scores['cascade']['digit'] == 1
  assert scores['direct']['voice'] == 1 > scores['cascade']['voice']


def test_labelled_data_is_judged_by_what_was_fitted_to_the_training_file(
  digits, fake, tmp_path
):
  """A fake that answers right is judged right; one that is off by one is judged wrong; voices are told apart."""
  (tmp_path / 'media').mkdir()

  def save(name, data):
    (tmp_path / 'media' / name).write_bytes(data)
    return f'media/{name}'

  def rows(images, labels, clips, split):
    for k, (image, label, clip) in enumerate(zip(images, labels, clips, strict=True)):
      picture = {
        'type': 'image',
        'path': save(f'{split}{k}.png', png_bytes(image)),
        'label': str(label),
      }
      sound = {
        'type': 'audio',
        'path': save(f'{split}{k}.wav', wav_bytes(clip.wave, 8000)),
        'label': str(clip.digit),
        'voice': clip.voice,
      }
      for task, part in (('draw', picture), ('speak', sound)):
        answer = {
          'role': 'assistant',
          'language': clip.language,
          'task': task,
          'voice': clip.voice,
          'content': [part],
        }
        text = {'type': 'text', 'text': DIGIT_WORDS[clip.language][int(part['label'])]}
        yield {
          'meta': {'group': task},
          'messages': [{'role': 'user', 'content': [text]}, answer],
        }

  english = [clip for clip in digits.train_clips if clip.language == 'en']
  test = [clip for clip in digits.take_clips if clip.language == 'en']
  for name, parts in (
    (
      'train',
      (
        digits.train_images[: len(english)],
        digits.train_labels[: len(english)],
        english,
      ),
    ),
    ('test', (digits.test_images[: len(test)], digits.test_labels[: len(test)], test)),
  ):
    (tmp_path / f'{name}.jsonl').write_text(
      '\n'.join(map(json.dumps, rows(*parts, name)))
    )
  found = {}
  for shift in (0, 1):
    trained = fake(
      shift=shift,
      source='jsonl',
      root=str(tmp_path),
      train_file='train.jsonl',
      eval_file='test.jsonl',
    )
    trained.config.evaluate = ml_collections.ConfigDict(
      dict(targets=dict(draw=dict(image_accuracy=0.5)))
    )
    metrics = run_lib.run(trained, tmp_path, limits=LIMITS, log=lambda line: None)
    found[shift] = metrics['data']['groups']
    (check,) = (check for check in checks(metrics) if check.direction == 'draw')
    assert check.passed == (shift == 0)
    assert (
      '≥ 0.5' in (tmp_path / 'eval' / '7' / 'report.html').read_text()
    )  # the target stands beside its value
  assert (
    found[0]['draw']['image_accuracy'] > 0.5 > 0.3 > found[1]['draw']['image_accuracy']
  )
  assert (
    found[0]['speak']['speech_accuracy']
    > 0.8
    > 0.3
    > found[1]['speak']['speech_accuracy']
  )
  assert (
    found[0]['speak']['voice_accuracy'] > 0.8 and found[0]['draw']['diversity'] > 0.5
  )
