"""The ready sets of the shared data are as docs/ready_sources.md describes them."""

import pathlib

from data.sources.ready_sets import HOSTS, open_set, prompt_and_answer, WORDS
import numpy as np
import pytest
from samples import hosts_of

from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.sequence.example import parts_of

SHARED = pathlib.Path(__file__).parents[4] / 'shared' / 'data'
# (set, selection) -> number of examples of train and test, as in docs/ready_sources.md.
COUNTS = {
  ('fsdd', ()): (2250, 250),
  ('mnist', ()): (59400, 10000),
  ('emoji', ()): (60300, 5501),
  ('emoji', (('languages', ('en',)),)): (3015, 276),
  ('barista', ()): (459, 100),
  ('text20', ()): (88185, 8160),
  ('text20', (('read', 'en'),)): (26353, 7752),
}

pytestmark = pytest.mark.skipif(
  not SHARED.is_dir(), reason='the shared data are not here'
)


@pytest.mark.parametrize('name, selection', COUNTS, ids=str)
def test_the_shared_data_have_the_documented_counts(name, selection):
  hosts = hosts_of(
    image=ImageConfig(64, 64, 3, 8), audio=AudioConfig(rate=8000, seconds=15.04)
  )
  train = open_set(SHARED, name, 'train', hosts, **dict(selection))
  test = open_set(SHARED, name, 'test', hosts, **dict(selection))
  assert (len(train), len(test)) == COUNTS[name, selection]
  if name not in ('mnist', 'text20'):  # there, numbers of images and lines start again
    assert not names_of(train) & names_of(test)
  for examples in (train, test):
    for k in range(0, len(examples), len(examples) // 20):
      for part in parts_of(examples[k]):
        assert_content(part)


def names_of(examples) -> set[str]:
  """Returns the ids without set and split."""
  ids = [examples.encoded(k)['id'] for k in range(len(examples))]
  return {id.split('/', 2)[2] for id in ids}


def assert_content(part):
  if part['type'] == 'audio':
    assert len(part['wave']) > 800
    assert np.abs(part['wave']).max() > 0.01
  if part['type'] == 'image':
    assert part['pixels'].std() > 0.01
  if part['type'] == 'text':
    assert part['text'].strip()


def test_labels_of_the_shared_data_are_those_of_the_files():
  """The name of a recording has its digit; the nearest image mostly has the digit."""
  examples = open_set(SHARED, 'fsdd', 'test', HOSTS)
  for k in range(len(examples)):
    example = examples.encoded(k)
    digit, speaker, _ = example['id'].rpartition('/')[2].split('_')
    clip, word, _ = prompt_and_answer(example)
    assert word['text'] == clip['label'] == WORDS[int(digit)]
    assert clip['voice'] == speaker
  hosts = hosts_of(image=ImageConfig(7, 7, 1, 7))
  train = open_set(SHARED, 'mnist', 'train', hosts)
  test = open_set(SHARED, 'mnist', 'test', hosts)
  images_and_words = [prompt_and_answer(train[k])[:2] for k in range(3000)]
  pixels = np.stack([image['pixels'] for image, _ in images_and_words])
  correct = 0
  for k in range(200):
    image, word, _ = prompt_and_answer(test[k])
    distances = np.abs(pixels - image['pixels']).sum((1, 2, 3))
    _, nearest = images_and_words[int(distances.argmin())]
    correct += nearest == word
  assert correct / 200 > 0.8
