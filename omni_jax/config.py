"""Reads, checks and freezes the config of a run; loads no jax."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import os
import re
import runpy
import sys
from typing import Any, TypeVar

from absl import flags
from ml_collections import ConfigDict

from omni_jax.command_line import show_help, with_own_config
from omni_jax.errors import UserError
from omni_jax.modalities.hosts import HOSTS, HostTable
from omni_jax.paths import checked
from omni_jax.types import RowBudget, stream_name

T = TypeVar('T')
# Names of stages; an autoencoder's stage has the autoencoder's name.
OMNI = 'omni'
EVALUATE = 'evaluate'
# The weights that are restored: their moving average, or as they were trained.
AVERAGE = 'average'
RAW = 'raw'
WEIGHTS = (AVERAGE, RAW)
# Values of config.data.codes: codes are computed in the step, or stored in the records.
STORED = 'stored'
CODES = ('computed', STORED)
# Keys that every config has, and keys of its `data` part.
REQUIRED = (
  'seed',
  'stages',
  'cpu_devices',
  'mesh',
  'distributed',
  'profile',
  'writers',
  'repeat_every',
  'init_from',
  'compilation_cache',
  'model',
  'data',
  'loader',
  'omni',
  'generate',
  'evaluate',
)
REQUIRED_DATA = ('source', 'seed', 'codes', 'budget', 'augment')
# Keys, at the top or in a part of the config, that hold paths.
PATH_KEYS = ('root', 'init_from')
# Parts of a medium's config that are networks; all others are its sizes.
NETWORKS = ('embed', 'head')
# What reading a mistyped command line or a broken config file may raise.
READ_ERRORS = (
  flags.Error,
  AttributeError,
  ImportError,
  KeyError,
  OSError,
  SyntaxError,
  TypeError,
  ValueError,
)


def dataclass_of(kind: type[T], part: Any, name: str) -> T:
  """Returns a part of the config as a frozen dataclass.

  Args:
    name: name of the part in messages, without the leading 'config.'.

  Raises:
    UserError: if a key is misspelt or missing, or if the dataclass refuses a value.
  """
  values = {}
  for key, value in part.to_dict().items():
    # A config read from config.json has lists where the original had tuples.
    values[key] = tuple(value) if isinstance(value, list) else value
  try:
    return kind(**values)
  except (TypeError, ValueError) as error:
    raise UserError(f'config.{name}: {error}') from error


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
  """Settings of the data loader; only `lanes` affects the contents of a batch.

  Attributes:
    lanes: number of lanes that the rows are divided into, at least the largest number
      of processes that the run will ever have; 0 for the current number of processes.
    workers: number of worker processes that build examples; 0 builds them in the
      loader's own thread.
    strict: whether to refuse a checkpoint whose loader state belongs to other data.
  """

  lanes: int = 0
  workers: int = 0
  strict: bool = True


@dataclasses.dataclass(frozen=True)
class StageConfig:
  """Settings of a stage that trains something.

  Attributes:
    steps: total number of updates.
    log_every, save_every: number of steps between two log lines or checkpoints.
    bad_steps: number of non-finite updates that may be skipped; one more ends the run.
    optim: settings of the optimizer, see train/optim.py.
  """

  steps: int
  log_every: int
  save_every: int
  bad_steps: int
  optim: Mapping[str, Any]

  def __post_init__(self):
    for name in ('steps', 'log_every', 'save_every'):
      value = getattr(self, name)
      if value < 1:
        raise ValueError(f'{name}={value} must be 1 or more')
    if self.bad_steps < 0:
      raise ValueError(f'bad_steps={self.bad_steps} must be 0 or more')


@dataclasses.dataclass(frozen=True)
class AutoencoderStage(StageConfig):
  """Settings of the stage that trains an autoencoder.

  Attributes:
    init_from: folder of a run whose autoencoder is used instead of training one.
    batch: number of crops in a batch.
    pieces: number of pieces in a crop.
  """

  init_from: str
  batch: int
  pieces: int


@dataclasses.dataclass(frozen=True)
class ModelStage(StageConfig):
  """Settings of the stage that trains the whole model.

  Attributes:
    bias_step: step size of the router biases in loss-free balancing.
    accumulate: number of parts of a batch that are computed one after the other.
    ema: decay of the moving average of the weights; 0 keeps no average.
    freeze: patterns of names of parameters that are not trained.
    losses: weights of the losses, see objective.py.
  """

  bias_step: float
  accumulate: int
  ema: float
  freeze: tuple[str, ...]
  losses: Mapping[str, Any]

  def __post_init__(self):
    super().__post_init__()
    if self.accumulate < 1:
      raise ValueError(f'accumulate={self.accumulate} must be 1 or more')
    if not 0 <= self.ema < 1:
      raise ValueError(f'ema={self.ema} must be at least 0 (off) and below 1')


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """A run's config after every check that needs no data, no devices and no network.

  Attributes:
    config: the whole config, as it was read.
    stages: names of the stages, in order.
    autoencoders: settings of the autoencoders' stages, by name.
    omni: settings of the stage of the whole model.
    budget: sizes of a batch.
    loader: settings of the data loader.
    augment: augmentation config of each medium that is augmented, by name.
  """

  config: ConfigDict
  stages: tuple[str, ...]
  autoencoders: Mapping[str, AutoencoderStage]
  omni: ModelStage
  budget: RowBudget
  loader: LoaderConfig
  augment: Mapping[str, Any]

  @classmethod
  def of(
    cls, config: ConfigDict, autoencoders: Collection[str], table: HostTable = HOSTS
  ) -> 'RunConfig':
    """Checks a config and returns it as a RunConfig.

    Args:
      autoencoders: names of the autoencoders of the run's model.
      table: table of the media's hosts.

    Raises:
      UserError: if a key or a value is wrong; the message names the key, its value and
        the values that it can take.
    """
    require(config)
    known = (*autoencoders, OMNI, EVALUATE)
    unknown = [name for name in config.stages if name not in known]
    if unknown:
      raise UserError(f'config.stages: {unknown} is unknown; a stage is one of {known}')
    stages = {}
    for name in autoencoders:
      stages[name] = dataclass_of(AutoencoderStage, config[name], name)
    run = cls(
      config=config,
      stages=tuple(config.stages),
      autoencoders=stages,
      omni=dataclass_of(ModelStage, config.omni, OMNI),
      budget=budget_of(config.data.budget),
      loader=dataclass_of(LoaderConfig, config.loader, 'loader'),
      augment=augment_of(config.data.augment, table),
    )
    run.check()
    return run

  def check(self) -> None:
    """Checks the parts against each other; raises UserError if they do not fit."""
    budget = self.budget
    parts = self.omni.accumulate
    if budget.grouped and budget.pools % parts:
      groups = f' in groups of {budget.group}' if budget.group > 1 else ''
      raise UserError(
        f'config.omni.accumulate={parts} must be 1 or more and divide '
        f'config.data.budget.rows={budget.rows}{groups}'
      )
    codes = self.config.data.codes
    if codes not in CODES:
      raise UserError(f'config.data.codes={codes!r} is unknown; it is one of {CODES}')
    profile = self.config.profile
    if profile and not re.fullmatch(r'\d+:\d+', profile):
      raise UserError(
        f"config.profile={profile!r}: give the first and the last step, such as '10:15'"
      )


def require(config: ConfigDict) -> None:
  """Raises UserError if a config lacks a part, as one for an older version may."""
  missing = [name for name in REQUIRED if name not in config]
  data = config.get('data', {})
  missing += [f'data.{name}' for name in REQUIRED_DATA if name not in data]
  if missing:
    raise UserError(
      f'config.{missing[0]} is missing ({", ".join(missing)}): '
      'start from configs/base.py, which has every key'
    )


def budget_of(part: ConfigDict) -> RowBudget:
  """Returns the sizes of a batch from `config.data.budget`.

  Its `streams` part is nested: medium, then kind of stream, then (pieces, items).

  Raises:
    UserError: if a key is unknown, or if a stream's sizes are not two whole numbers.
  """
  values = part.to_dict()
  streams: dict[str, tuple[int, int]] = {}
  for medium, kinds in values.pop('streams', {}).items():
    for kind, sizes in kinds.items():
      name = stream_name(medium, kind)
      streams[name] = _stream_sizes(name, sizes)
  budget = dataclass_of(RowBudget, ConfigDict(values), 'data.budget')
  return dataclasses.replace(budget, streams=streams)


def _stream_sizes(stream: str, sizes: Any) -> tuple[int, int]:
  """Returns a stream's (pieces, items); raises UserError for anything else."""
  pair = tuple(sizes) if isinstance(sizes, list | tuple) else ()
  are_counts = all(isinstance(size, int) and size >= 0 for size in pair)
  if len(pair) != 2 or not are_counts:
    raise UserError(
      f'config.data.budget.streams.{stream}={sizes!r}: '
      'give (pieces, items), two whole numbers'
    )
  return pair


def augment_of(part: ConfigDict | None, table: HostTable = HOSTS) -> dict[str, Any]:
  """Returns the augmentation config of each medium, by name: `config.data.augment`.

  Media whose settings are all zero are left out.

  Raises:
    UserError: if a medium is unknown or cannot be augmented, or if a key is unknown.
  """
  augment: dict[str, Any] = {}
  for medium, values in (part or {}).items():
    kind = table[medium][1].Augment if medium in table else None
    if kind is None:
      known = [name for name, (_, host) in table.items() if host.Augment]
      raise UserError(
        f'config.data.augment: {medium!r} cannot be augmented; choose from {known}'
      )
    strength: Any = dataclass_of(kind, values, f'data.augment.{medium}')
    if any(dataclasses.astuple(strength)):
      augment[medium] = strength
  return augment


def flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns the values of a nested config by dotted name; empty parts are values."""
  values: dict[str, Any] = {}
  for name, value in config.items():
    if isinstance(value, Mapping) and value:
      values |= flat(value, f'{prefix}{name}.')
    else:
      values[f'{prefix}{name}'] = value
  return values


def media_sizes(model: ConfigDict, table: HostTable = HOSTS) -> dict[str, Any]:
  """Returns the sizes of each medium that a run has, from its `config.model`."""
  sizes: dict[str, Any] = {}
  for name, (kind, _) in table.items():
    if kind is None or name not in model:
      continue
    part = model[name]
    own = {key: part[key] for key in part if key not in NETWORKS}
    sizes[name] = dataclass_of(kind, ConfigDict(own), f'model.{name}')
  return sizes


def config_file(beside: str, name: str) -> dict[str, Any]:
  """Runs NAME.py in the folder of a config file and returns what it defines.

  Config files are run, not imported.

  Args:
    beside: `__file__` of the config file.
  """
  return runpy.run_path(os.path.join(os.path.dirname(beside), f'{name}.py'))


def derived(beside: str, name: str) -> ConfigDict:
  """Returns a new copy of the config in NAME.py, in the folder of a config file."""
  return config_file(beside, name)['get_config']()


def with_paths(config: ConfigDict) -> ConfigDict:
  """Returns a copy of a config whose paths have no `~`, and are looked at in buckets.

  Raises:
    UserError: if a path is in a bucket that cannot be opened.
  """
  config = config.copy_and_resolve_references()
  for name, section in [('config', config), *_sections(config)]:
    for key in PATH_KEYS:
      if section.get(key):
        with section.unlocked():
          section[key] = checked(section[key], f'{name}.{key}')
  return config


def _sections(config: ConfigDict) -> list[tuple[str, ConfigDict]]:
  """Returns the parts of a config by their names on the command line."""
  return [
    (f'config.{name}', part)
    for name, part in config.items()
    if isinstance(part, ConfigDict)
  ]


def read_config(
  values: flags.FlagValues, arguments: Sequence[str] | None = None
) -> ConfigDict | None:
  """Parses the command line into the flags and returns the config that they name.

  Args:
    values: flags of the command, among them `config`.
    arguments: command line, the command's name first; `sys.argv` by default. The flag
      has to be defined with the same `sys_argv`.

  Returns:
    The ConfigDict, or None if `--config` was not given.

  Raises:
    UserError: if the command line or the config file cannot be read.
  """
  arguments = sys.argv if arguments is None else arguments
  show_help(values, arguments)
  try:
    values(with_own_config(arguments))
    config = values['config'].value
    if config is not None:
      # The file is loaded lazily: only now would an error in it be raised.
      config.to_dict()
  except READ_ERRORS as error:
    # str() of a KeyError puts its text in quotes.
    message = error.args[0] if isinstance(error, KeyError) else error
    raise UserError(
      f'{message} (see --config and the overrides --config.name=value)'
    ) from error
  return config
