"""Every mistake in a config is one line with the key, its value and what to do."""

from collections.abc import Callable, Sequence
import itertools

from absl import flags
from ml_collections import config_flags, ConfigDict
import pytest
import samples
from samples import config, tiny_run

from omni_jax.command_line import own_config
from omni_jax.config import (
  AutoencoderStage,
  EVALUATE,
  ModelStage,
  OMNI,
  read_config,
  RunConfig,
)
from omni_jax.errors import UserError
from omni_jax.modalities.audio.augment import AudioAugment
from omni_jax.modalities.image.augment import ImageAugment

Change = Callable[[ConfigDict], None]


def run_config(run: ConfigDict) -> RunConfig:
  """Returns the checked config of a run with a codec."""
  return RunConfig.of(run, ('codec',))


def without(key: str) -> Change:
  """Returns a function that deletes a key of a config."""

  def change(run: ConfigDict) -> None:
    *parts, name = key.split('.')
    del part_of(run, parts)[name]

  return change


def setting(key: str, value: object) -> Change:
  """Returns a function that sets a key of a config."""

  def change(run: ConfigDict) -> None:
    *parts, name = key.split('.')
    part_of(run, parts)[name] = value

  return change


def part_of(run: ConfigDict, names: Sequence[str]) -> ConfigDict:
  """Returns an inner part of a config, given the names on the way to it."""
  part = run
  for name in names:
    part = part[name]
  return part


def groups_of_two_in_four_parts(run: ConfigDict) -> None:
  """Asks for more parts of a batch than it has groups of rows."""
  run.data.budget.group = 2
  run.omni.accumulate = 4


PARTS = ('model', 'data', 'loader', 'omni', 'generate', 'evaluate', 'stages', 'mesh')
DATA_KEYS = ('data.source', 'data.codes', 'data.budget', 'data.augment')
SPOKEN = 'data.budget.streams.audio.spoken'
PAIR = r': give \(pieces, items\), two whole numbers$'
COUNTS = ('steps', 'log_every', 'save_every')
# Name of the case -> (function that makes the mistake, pattern of the whole message).
MISTAKES = {
  'unknown stage': (
    setting('stages', ('codec', 'omny')),
    r"^config\.stages: \['omny'\] is unknown; a stage is one of "
    r"\('codec', 'omni', 'evaluate'\)$",
  ),
  'bad_steps': (
    setting('omni.bad_steps', -1),
    r'^config\.omni: bad_steps=-1 must be 0 or more$',
  ),
  'accumulate': (
    setting('omni.accumulate', 3),
    r'^config\.omni\.accumulate=3 must be 1 or more and divide '
    r'config\.data\.budget\.rows=4$',
  ),
  'parts of groups': (
    groups_of_two_in_four_parts,
    r'^config\.omni\.accumulate=4 must be 1 or more and divide '
    r'config\.data\.budget\.rows=4 in groups of 2$',
  ),
  'no parts': (
    setting('omni.accumulate', 0),
    r'^config\.omni: accumulate=0 must be 1 or more$',
  ),
  'decay': (
    setting('omni.ema', 1.0),
    r'^config\.omni: ema=1\.0 must be at least 0 \(off\) and below 1$',
  ),
  'one number': (
    setting('data.budget.streams.audio', ConfigDict(dict(spoken=12))),
    rf'^config\.{SPOKEN}=12{PAIR}',
  ),
  'three numbers': (
    setting(SPOKEN, (12, 4, 1)),
    rf'^config\.{SPOKEN}=\(12, 4, 1\){PAIR}',
  ),
  'below 0': (setting(SPOKEN, (12, -4)), rf'^config\.{SPOKEN}=\(12, -4\){PAIR}'),
  'half a piece': (
    setting('data.budget.streams.audio', ConfigDict(dict(spoken=(1.5, 4)))),
    rf'^config\.{SPOKEN}=\(1\.5, 4\){PAIR}',
  ),
  'unknown size': (setting('data.budget.rwos', 4), r'^config\.data\.budget: .*rwos'),
  'unknown medium': (
    setting('data.augment.smell', ConfigDict(dict(turn=1.0))),
    r"^config\.data\.augment: 'smell' cannot be augmented; choose from "
    r"\['image', 'audio'\]$",
  ),
  'text is not augmented': (
    setting('data.augment.text', ConfigDict(dict(turn=1.0))),
    r"^config\.data\.augment: 'text' cannot be augmented; choose from ",
  ),
  'unknown setting of an augmentation': (
    setting('data.augment.image.trun', 1.0),
    r'^config\.data\.augment\.image: .*trun',
  ),
  'codes': (
    setting('data.codes', 'guessed'),
    r"^config\.data\.codes='guessed' is unknown; it is one of "
    r"\('computed', 'stored'\)$",
  ),
  'profile': (
    setting('profile', '10-15'),
    r"^config\.profile='10-15': give the first and the last step, such as '10:15'$",
  ),
  'unknown key of a stage': (setting('omni.stepz', 3), r'^config\.omni: .*stepz'),
  'unknown key of the loader': (
    setting('loader.worker', 3),
    r'^config\.loader: .*worker',
  ),
}
for key in PARTS + DATA_KEYS:
  MISTAKES[f'without {key}'] = (
    without(key),
    rf'^config\.{key} is missing \({key}.*\): start from configs/base\.py, ',
  )
for stage, name in itertools.product(('codec', 'omni'), COUNTS):
  MISTAKES[f'{stage}.{name}=0'] = (
    setting(f'{stage}.{name}', 0),
    rf'^config\.{stage}: {name}=0 must be 1 or more$',
  )


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_is_one_line_with_the_key_and_what_to_do(mistake):
  change, message = MISTAKES[mistake]
  run = tiny_run()
  with run.unlocked():
    change(run)
  with pytest.raises(UserError, match=message) as raised:
    run_config(run)
  assert '\n' not in str(raised.value)


def test_all_missing_parts_are_named_at_once():
  run = tiny_run()
  del run.loader
  del run.data.seed
  message = r'config\.loader is missing \(loader, data\.seed'
  with pytest.raises(UserError, match=message):
    run_config(run)


def test_a_config_becomes_dataclasses():
  run = run_config(tiny_run())
  assert run.stages == ('codec', OMNI, EVALUATE)
  assert isinstance(run.omni, ModelStage)
  assert run.omni.steps == 30
  assert isinstance(run.autoencoders['codec'], AutoencoderStage)
  assert (run.budget.rows, run.budget.length) == (4, 96)
  assert run.budget.streams == {
    'image.seen': (32, 2),
    'image.drawn': (32, 2),
    'audio.heard': (24, 8),
    'audio.spoken': (12, 4),
  }
  image = ImageAugment(turn=0.2, scale=0.12, shear=0.15, shift=0.075)
  audio = AudioAugment(speed=0.11, gain=3.0, noise=0.01, delay=0.05)
  assert run.augment == {'image': image, 'audio': audio}


def test_a_medium_whose_augmentation_is_zero_is_left_out():
  run = tiny_run()
  run.data.augment.audio = ConfigDict(dict.fromkeys(run.data.augment.audio, 0.0))
  assert set(run_config(run).augment) == {'image'}


def test_a_stage_is_unknown_if_the_run_lacks_its_autoencoder():
  run = config('text')
  assert not RunConfig.of(run, ()).autoencoders
  run.stages = ('codec', 'omni')
  message = r"\['codec'\] is unknown; .* \('omni', 'evaluate'\)"
  with pytest.raises(UserError, match=message):
    RunConfig.of(run, ())


def test_the_packages_own_configs_are_found_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  own = samples.ROOT / 'configs' / 'omni_1b.py'
  assert own_config('configs/omni_1b.py:text') == f'{own}:text'
  assert own_config('configs/other.py') == 'configs/other.py'  # no such file anywhere
  assert own_config('omni_1b.py') == 'omni_1b.py'  # only configs/ can be the package's
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'omni_1b.py').touch()
  assert own_config('configs/omni_1b.py') == 'configs/omni_1b.py'  # the user's own


@pytest.mark.parametrize(
  'given', [['--config=configs/tiny.py'], ['--config', 'configs/tiny.py']]
)
def test_read_config_takes_the_packages_own_config(tmp_path, monkeypatch, given):
  monkeypatch.chdir(tmp_path)
  values = flags.FlagValues()
  line = ['train', *given, '--config.seed=5']
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=line)
  assert read_config(values, line).seed == 5
