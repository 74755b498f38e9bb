"""`omni_jax.convert --codes=RUN` and config.data.codes='stored': codes of the records are those of the step."""

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
from omni_jax.data.making import prepare
from omni_jax.data.sources.records import (
  ArrayRecordExamples,
  pack_example,
  write_array_record,
)
from omni_jax.errors import UserError
from omni_jax.modalities.contract import Codes
from omni_jax.model import ModelConfig
from omni_jax.train import stages
from omni_jax.train.state import init_autoencoder_state
from omni_jax.types import RowBudget

FRAMES = (1, 4, 2, 6, 3, 5)


def tiny(**data) -> ConfigDict:
  config = samples.tiny_run()
  config.model.audio.seconds = 0.48
  config.stages, config.mesh.data = ('omni',), 1
  config.data.update(data)
  return config


def run_folder(
  folder: pathlib.Path, seed: int, steps: int | None = None
) -> pathlib.Path:
  """A run whose codec stage is done: its weights are fresh, its codebooks noise."""
  config = tiny()
  model_config = ModelConfig.from_config(config.model)
  values = samples.codec_values(model_config, seed)
  state = init_autoencoder_state(model_config, 'codec', optax.adam(1e-3), seed=0)
  state = state._replace(
    params=values['params'],
    buffers=values['buffers'],
    step=jnp.int32(config.codec.steps if steps is None else steps),
  )
  folder.mkdir(exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config.to_dict(), default=list))
  with Checkpoints(str(folder), 'codec') as checkpoints:
    checkpoints.save(jax.tree.map(jnp.asarray, state), b'{}')
  return folder


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> pathlib.Path:
  """A run, another run, JSON lines, and the lines converted with the codes of the first."""
  root = tmp_path_factory.mktemp('codes')
  for name, seed in (('run', 0), ('other', 1)):
    run_folder(root / name, seed)
  (root / 'in').mkdir()
  lines = []
  for n, frames in enumerate(FRAMES):
    soundfile.write(
      root / 'in' / f'{n}.wav',
      samples.sound(np.random.default_rng(n), frames)['wave'],
      8000,
    )
    part = {'type': 'audio', 'path': f'{n}.wav'}
    lines.append(
      {
        'id': f'{n}',
        'messages': [
          {'role': 'user', 'content': [part] if n % 2 else 'a?'},
          {'role': 'assistant', 'content': [part, {'type': 'text', 'text': 'b'}]},
        ],
      }
    )
  (root / 'in' / 'data.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  convert(root, 'data')
  return root


def coder_of(folder: pathlib.Path) -> Coder:
  """Returns the coder of a run's codec."""
  return coders_of(str(folder), tiny())['audio']


def convert(root: pathlib.Path, output: str, *words: str, codes: str = 'run') -> None:
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


def stored(root: pathlib.Path, **values) -> ConfigDict:
  config = tiny(
    source='array_record', root=str(root), train_file='data', codes='stored'
  )
  config.codec.init_from = str(root / 'run')
  config.data.update(values)
  return config


def test_codes_are_those_of_the_codec(made):
  codec = ModelConfig.from_config(tiny().model).autoencoders['codec']
  coder = coder_of(made / 'run')
  manifest = json.loads((made / 'data' / 'manifest.json').read_text())
  assert manifest['codecs'] == {'codec': coder.fingerprint}
  hosts = stages.Run(stored(made), str(made / 'new')).hosts
  spoken = hosts['audio'].codes_in('spoken')
  assert spoken == Codes((codec.codebooks,), codec.entries)
  assert hosts['audio'].codes_in('heard') is None
  found = ArrayRecordExamples(sorted((made / 'data').glob('*.array_record')), hosts)
  for example in found:
    for part in [
      part
      for message in example['messages']
      for part in message['content']
      if part['type'] == 'audio'
    ]:
      assert part['code'].shape == (FRAMES[int(example['id'])], codec.codebooks)
      np.testing.assert_array_equal(part['code'], coder(part['wave']))


class Small(JsonLinesReader):
  chunk = 2


def test_the_number_of_workers_changes_nothing(made):
  """Other processes, other company of a sound."""
  check = RunCheck.of(tiny())._replace(coders={'audio': coder_of(made / 'run')})
  lines = str(made / 'in' / 'data.jsonl')
  command.convert(
    Small(lines),
    made / 'again',
    shards=2,
    workers=2,
    said=lines,
    timeout=300,
    check=check,
  )
  for path in (made / 'data').iterdir():
    assert (made / 'again' / path.name).read_bytes() == path.read_bytes(), path.name


def batch_of(run: stages.Run):
  making = stages.making_of(run)
  items = [prepare(example, making.hosts) for example in making.examples]
  streams = {'audio.heard': (24, 8), 'audio.spoken': (24, 8)}
  return samples.packed(items, making.hosts, RowBudget(2, 96, streams))


@pytest.mark.parametrize('hearing', ['mel', 'codes'])
def test_losses_are_exactly_those_of_codes_computed_in_the_step(made, hearing):
  losses, batches = [], []
  for codes in ('stored', 'computed'):
    config = stored(made, codes=codes)
    config.model.audio.embed.hearing = hearing
    if hearing == 'codes':
      del config.data.augment['audio']
    run = stages.Run(config, str(made / 'new'))
    batches.append(batch_of(run))
    tx = samples.omni_optimizer(run.model_config, 10)
    kit = samples.make_kit(run.model_config, tx)
    values = jax.device_get(stages.restore_frozen(run))
    state = kit.state._replace(buffers=kit.state.buffers | {'frozen': values})
    losses.append(jax.device_get(kit.step(state, batches[-1])[1]))
  from_records, computed = batches
  codes, samples_of = (batch.streams['audio.spoken'] for batch in batches)
  assert codes.value_BM.dtype == np.uint16 and codes.value_BM.any()
  assert samples_of.value_BM.dtype == np.int16 and samples_of.value_BM.any()
  heard = from_records.streams['audio.heard'].value_BM
  assert (heard.dtype == np.uint16) == (hearing == 'codes')
  bytes_of = lambda batch: sum(x.nbytes for x in jax.tree.leaves(batch))
  assert bytes_of(from_records) < bytes_of(computed)
  assert losses[0].keys() == losses[1].keys() and losses[0]['weight/audio'] == sum(
    FRAMES
  )
  for name in losses[0]:
    np.testing.assert_array_equal(losses[0][name], losses[1][name], name)


def test_the_codec_of_another_run_is_refused_with_both_fingerprints(made):
  config = stored(made)
  config.codec.init_from = str(made / 'other')
  run = stages.Run(config, str(made / 'new'))
  theirs, ours = (coder_of(made / name).fingerprint for name in ('run', 'other'))
  with (
    jax.set_mesh(run.mesh),
    pytest.raises(
      UserError,
      match=f'codes of the codec {theirs}, this run has {ours}: convert again',
    ),
  ):
    stages.omni_stage(run, stages.restore_frozen(run))


def test_what_cannot_be_stored_is_refused_before_a_stage(made):
  config = stored(made)
  config.codec.init_from = ''
  with pytest.raises(UserError, match='does not have the codec'):
    stages.Run(config, str(made / 'new'))
  config = stored(made)
  config.model.audio.embed.hearing = 'codes'
  with pytest.raises(UserError, match='remove config.data.augment.audio'):
    stages.Run(config, str(made / 'new'))
  with pytest.raises(UserError, match="codes='sorted' is unknown"):
    stages.Run(stored(made, codes='sorted'), str(made / 'new'))
  examples = stages.making_of(
    stages.Run(
      stored(made, source='jsonl', train_file='in/data.jsonl'), str(made / 'new')
    )
  )
  with pytest.raises(UserError, match="part of type 'audio' has no codes"):
    prepare(examples.examples[0], examples.hosts)


@pytest.mark.parametrize('role', ['user', 'assistant'])
@pytest.mark.parametrize('code', [31, 32, 65535])
def test_fault_20_a_code_that_no_codebook_has_is_refused_at_the_first_batch_by_record_and_value(
  made, tmp_path, role, code
):
  """A gather in JAX would clamp it: the loss would be that of another code, and nobody would know. Of 32 entries, 31 is the last."""
  config = stored(made)
  config.model.audio.embed.hearing = 'codes'
  del config.data.augment['audio']
  paths = sorted((made / 'data').glob('*.array_record'))
  source = ArrayRecordExamples(paths, samples.tiny_model().hosts())
  records = []
  for example in map(source.encoded, range(len(source))):
    if example['id'] == '3':  # both hear and speak
      (message,) = (
        message for message in example['messages'] if message['role'] == role
      )
      codes = np.frombuffer(message['content'][0]['codes'], '<u2').copy()
      codes[-1] = code
      message['content'][0]['codes'] = codes.tobytes()
    records.append(pack_example(example))
  write_array_record(tmp_path / 'data.array_record', records)
  config.data.root, config.data.train_file = str(tmp_path), 'data.array_record'
  batches = stages.omni_batches(stages.Run(config, str(made / 'new')))
  try:
    if code < 32:
      next(batches)
      return
    with pytest.raises(
      UserError,
      match=f'3 has the code {code}, but a codebook has the entries 0 to 31 .audio.* 32 entries by config.model',
    ):
      next(batches)
  finally:
    batches.close()


@pytest.mark.parametrize(
  'codes, said',
  [
    ('nowhere', 'holds no run'),
    ('half', 'stands at step 3 of'),
    ('run', r'pieces as AudioConfig\(rate=8000, .*AudioConfig\(rate=16000, '),
  ],
)
def test_mistakes_in_codes_are_one_line(made, codes, said):
  if codes == 'half':
    run_folder(made / 'half', 0, steps=3)
  words = (
    [f'--config={samples.ROOT}/configs/own_data.py', '--config.model.audio.rate=16000']
    if codes == 'run'
    else []
  )
  with pytest.raises(UserError, match=said):
    convert(made, 'refused', *words, codes=codes)
  assert not (made / 'refused').exists()
