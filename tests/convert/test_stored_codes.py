"""Tests `omni_jax.convert --codes=RUN`, and training with config.data.codes='stored'.

The codes in the records are those that the training step would compute.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import pytest
import samples
import soundfile

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.convert import __main__ as command
from omni_jax.convert.codes import Coder, coders_of
from omni_jax.convert.formats.chat_lines import JsonLinesReader
from omni_jax.convert.run_check import RunCheck
from omni_jax.data.example_maker import prepare
from omni_jax.data.sources.records import (
  ArrayRecordExamples,
  pack_example,
  write_array_record,
)
from omni_jax.errors import UserError
from omni_jax.modalities.contract import Codes
from omni_jax.model import ModelConfig
from omni_jax.sequence.example import parts_of
from omni_jax.train import stages
from omni_jax.train.state import init_autoencoder_state
from omni_jax.types import Batch, RowBudget

FRAMES = (1, 4, 2, 6, 3, 5)  # of the sound of each example
CODEBOOK_ENTRIES = 32  # of the codec of configs/tiny.py


def tiny(**data) -> ConfigDict:
  """Returns the config of a tiny omni stage, with some values of `config.data`."""
  config = samples.tiny_run()
  config.model.audio.seconds = 0.48
  config.stages = ('omni',)
  config.mesh.data = 1
  config.data.update(data)
  return config


def run_folder(
  folder: pathlib.Path, seed: int, steps: int | None = None
) -> pathlib.Path:
  """Writes a run with a codec of random weights and codebooks; returns its folder.

  Args:
    steps: number of steps of the stage; None if it is finished.
  """
  config = tiny()
  model_config = ModelConfig.from_config(config.model)
  values = samples.codec_values(model_config, seed)
  state = init_autoencoder_state(model_config, 'codec', optax.adam(1e-3), seed=0)
  step = config.codec.steps if steps is None else steps
  state = state._replace(
    params=values['params'], buffers=values['buffers'], step=jnp.int32(step)
  )
  folder.mkdir(exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config.to_dict(), default=list))
  with Checkpoints(str(folder), 'codec') as checkpoints:
    checkpoints.save(jax.tree.map(jnp.asarray, state), b'{}')
  return folder


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> pathlib.Path:
  """Returns a folder with two runs, JSON lines, and their conversion for the first run.

  The folders are `run`, `other`, `in` and `data`.
  """
  root = tmp_path_factory.mktemp('codes')
  run_folder(root / 'run', seed=0)
  run_folder(root / 'other', seed=1)
  folder = root / 'in'
  folder.mkdir()
  lines = []
  for n, frames in enumerate(FRAMES):
    sound = samples.sound(np.random.default_rng(n), frames)
    soundfile.write(folder / f'{n}.wav', sound['wave'], 8000)
    part = {'type': 'audio', 'path': f'{n}.wav'}
    messages = [
      {'role': 'user', 'content': [part] if n % 2 else 'a?'},
      {'role': 'assistant', 'content': [part, {'type': 'text', 'text': 'b'}]},
    ]
    lines.append({'id': f'{n}', 'messages': messages})
  (folder / 'data.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  convert(root, 'data')
  return root


def coder_of(folder: pathlib.Path) -> Coder:
  """Returns the coder of a run's codec."""
  return coders_of(str(folder), tiny())['audio']


def convert(root: pathlib.Path, output: str, *words: str, codes: str = 'run') -> None:
  """Converts the JSON lines with the codec of a run."""
  command.main(
    [
      f'--input={root}/in/data.jsonl',
      f'--output={root / output}',
      '--shards=2',
      '--workers=1',
      f'--codes={root / codes}',
      *words,
    ]
  )


def config_with_stored_codes(root: pathlib.Path, **values) -> ConfigDict:
  """Returns the config of a run that trains on the converted data."""
  config = tiny(
    source='array_record', root=str(root), train_file='data', codes='stored'
  )
  config.codec.init_from = str(root / 'run')
  config.data.update(values)
  return config


def test_codes_are_those_of_the_codec(root):
  codec = ModelConfig.from_config(tiny().model).autoencoders['codec']
  coder = coder_of(root / 'run')
  manifest = json.loads((root / 'data' / 'manifest.json').read_text())
  assert manifest['codecs'] == {'codec': coder.fingerprint}
  hosts = stages.Run(config_with_stored_codes(root), str(root / 'new')).hosts
  spoken = hosts['audio'].codes_in('spoken')
  assert spoken == Codes((codec.codebooks,), codec.entries)
  assert hosts['audio'].codes_in('heard') is None
  examples = ArrayRecordExamples(sorted((root / 'data').glob('*.array_record')), hosts)
  for example in examples:
    frames = FRAMES[int(example['id'])]
    for part in parts_of(example):
      if part['type'] == 'audio':
        assert part['code'].shape == (frames, codec.codebooks)
        np.testing.assert_array_equal(part['code'], coder(part['wave']))


class SmallPieces(JsonLinesReader):
  """Reads a small file in many pieces."""

  chunk = 2


def test_the_number_of_workers_changes_nothing(root):
  """Sounds are encoded in other processes, together with other sounds."""
  check = RunCheck.of(tiny())._replace(coders={'audio': coder_of(root / 'run')})
  lines = str(root / 'in' / 'data.jsonl')
  command.convert(
    SmallPieces(lines),
    root / 'again',
    shards=2,
    workers=2,
    input_name=lines,
    timeout=300,
    check=check,
  )
  for path in (root / 'data').iterdir():
    assert (root / 'again' / path.name).read_bytes() == path.read_bytes(), path.name


def batch_of(run: stages.Run) -> Batch:
  """Returns all examples of a run as one batch."""
  maker = stages.maker_of(run)
  items = [prepare(example, maker.hosts) for example in maker.examples]
  streams = {'audio.heard': (24, 8), 'audio.spoken': (24, 8)}
  return samples.packed_batch(items, maker.hosts, RowBudget(2, 96, streams))


def bytes_of(batch: Batch) -> int:
  """Returns the number of bytes of all arrays of a batch."""
  return sum(array.nbytes for array in jax.tree.leaves(batch))


def batch_and_metrics(root: pathlib.Path, hearing: str, codes: str):
  """Returns the batch of a run, and the metrics of a step on it."""
  config = config_with_stored_codes(root, codes=codes)
  config.model.audio.embed.hearing = hearing
  if hearing == 'codes':
    del config.data.augment['audio']
  run = stages.Run(config, str(root / 'new'))
  batch = batch_of(run)
  optimizer = samples.omni_optimizer(run.model_config, 10)
  kit = samples.make_kit(run.model_config, optimizer)
  frozen = jax.device_get(stages.restore_frozen(run))
  state = kit.state._replace(buffers=kit.state.buffers | {'frozen': frozen})
  _, metrics = kit.step(state, batch)
  return batch, jax.device_get(metrics)


@pytest.mark.parametrize('hearing', ['mel', 'codes'])
def test_metrics_are_exactly_those_of_codes_computed_in_the_step(root, hearing):
  stored_batch, stored_metrics = batch_and_metrics(root, hearing, 'stored')
  computed_batch, computed_metrics = batch_and_metrics(root, hearing, 'computed')
  codes = stored_batch.streams['audio.spoken'].value_BM
  assert codes.dtype == np.uint16
  assert codes.any()
  waves = computed_batch.streams['audio.spoken'].value_BM
  assert waves.dtype == np.int16
  assert waves.any()
  heard = stored_batch.streams['audio.heard'].value_BM
  assert (heard.dtype == np.uint16) == (hearing == 'codes')
  assert bytes_of(stored_batch) < bytes_of(computed_batch)
  assert stored_metrics.keys() == computed_metrics.keys()
  assert stored_metrics['weight/audio'] == sum(FRAMES)
  for name, value in stored_metrics.items():
    np.testing.assert_array_equal(value, computed_metrics[name], name)


def test_the_codec_of_another_run_is_refused_with_both_fingerprints(root):
  config = config_with_stored_codes(root)
  config.codec.init_from = str(root / 'other')
  run = stages.Run(config, str(root / 'new'))
  stored_codec = coder_of(root / 'run').fingerprint
  other_codec = coder_of(root / 'other').fingerprint
  message = (
    f'codes of the codec {stored_codec}, but this run uses {other_codec}: convert the '
    'data'
  )
  with jax.set_mesh(run.mesh), pytest.raises(UserError, match=message):
    stages.omni_stage(run, stages.restore_frozen(run))


def test_configs_that_do_not_fit_stored_codes_are_refused_before_a_stage(root):
  config = config_with_stored_codes(root)
  config.codec.init_from = ''
  with pytest.raises(UserError, match='does not have the codec'):
    stages.Run(config, str(root / 'new'))
  config = config_with_stored_codes(root)
  config.model.audio.embed.hearing = 'codes'
  with pytest.raises(UserError, match='remove config.data.augment.audio'):
    stages.Run(config, str(root / 'new'))
  with pytest.raises(UserError, match="codes='sorted' is unknown"):
    stages.Run(config_with_stored_codes(root, codes='sorted'), str(root / 'new'))
  config = config_with_stored_codes(root, source='jsonl', train_file='in/data.jsonl')
  maker = stages.maker_of(stages.Run(config, str(root / 'new')))
  with pytest.raises(UserError, match="part of type 'audio' has no codes"):
    prepare(maker.examples[0], maker.hosts)


@pytest.mark.parametrize('role', ['user', 'assistant'])
@pytest.mark.parametrize('code', [31, 32, 65535])
def test_fault_20_a_code_that_no_codebook_has_is_refused_with_its_record_and_value(
  root, tmp_path, role, code
):
  """The last valid code is 31. The refusal comes with the first batch.

  A gather in JAX would clamp a larger one: the loss would silently be that of another
  code.
  """
  config = config_with_stored_codes(root)
  config.model.audio.embed.hearing = 'codes'
  del config.data.augment['audio']
  paths = sorted((root / 'data').glob('*.array_record'))
  source = ArrayRecordExamples(paths, samples.tiny_model().hosts())
  records = []
  for k in range(len(source)):
    example = source.encoded(k)
    if example['id'] == '3':  # user and assistant both have a sound
      contents = {x['role']: x['content'] for x in example['messages']}
      sound, *_ = contents[role]
      codes = np.frombuffer(sound['codes'], '<u2').copy()
      codes[-1] = code
      sound['codes'] = codes.tobytes()
    records.append(pack_example(example))
  write_array_record(tmp_path / 'data.array_record', records)
  config.data.root = str(tmp_path)
  config.data.train_file = 'data.array_record'
  batches = stages.omni_batches(stages.Run(config, str(root / 'new')))
  try:
    if code < CODEBOOK_ENTRIES:
      next(batches)
      return
    message = (
      f'3 has the code {code}, but a codebook has the entries 0 to 31 '
      '.audio.* 32 entries by config.model'
    )
    with pytest.raises(UserError, match=message):
      next(batches)
  finally:
    batches.close()


@pytest.mark.parametrize(
  'codes, message',
  [
    ('nowhere', 'holds no run'),
    ('half', r'codec stage of .*half is at step 3 of \d+; finish it first: config'),
    ('run', r'pieces of AudioConfig\(rate=8000, .*AudioConfig\(rate=16000, '),
  ],
)
def test_mistakes_in_codes_are_refused(root, codes, message):
  words = []
  if codes == 'half':
    run_folder(root / 'half', 0, steps=3)
  if codes == 'run':
    words = [
      f'--config={samples.ROOT}/configs/own_data.py',
      '--config.model.audio.rate=16000',
    ]
  with pytest.raises(UserError, match=message):
    convert(root, 'refused', *words, codes=codes)
  assert not (root / 'refused').exists()
