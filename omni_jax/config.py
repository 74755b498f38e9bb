"""The config of a run: read from files and the command line, checked once, and frozen; loads no jax."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import os
import re
import runpy
import sys
from typing import Any, TypeVar

from absl import flags
from ml_collections import ConfigDict

from omni_jax.errors import UserError
from omni_jax.modalities.contract import Host
from omni_jax.modalities.hosts import HOSTS
from omni_jax.types import RowBudget

T = TypeVar('T')
OMNI, EVALUATE = 'omni', 'evaluate'  # stages; those of autoencoders have their names
CODES = (
  'computed',
  'stored',
)  # what config.data.codes can be: in the step, or in the records
REQUIRED = (
  'seed',
  'stages',
  'cpu_devices',
  'mesh',
  'distributed',
  'profile',
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
NETWORKS = ('embed', 'head')  # parts of a medium's config that are not its sizes


def dataclass_of(kind: type[T], part: Any, name: str) -> T:
  """A frozen dataclass from a part of the config; a misspelt key or a bad value is the user's error."""
  try:  # config.json has lists where the config had tuples
    return kind(
      **{
        key: tuple(value) if isinstance(value, list) else value
        for key, value in part.to_dict().items()
      }
    )
  except (TypeError, ValueError) as error:
    raise UserError(f'config.{name}: {error}') from error


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
  """How batches are made; which, only as far as lanes go.

  Attributes:
    lanes: the rows are cut into; at least as many as there are ever processes; 0 for their number.
    workers: processes that make examples; 0 for the loader's own thread.
    strict: refuse to go on with other data than those that a checkpoint's state is of.
  """

  lanes: int = 0
  workers: int = 0
  strict: bool = True


@dataclasses.dataclass(frozen=True)
class StageConfig:
  """A stage that trains something.

  Attributes:
    steps: updates in all.
    log_every, save_every: in steps.
    bad_steps: updates that are not finite and may be left out; one more ends the run.
    optim: of the optimizer, see train/optim.py.
  """

  steps: int
  log_every: int
  save_every: int
  bad_steps: int
  optim: Mapping[str, Any]

  def __post_init__(self):
    for name in ('steps', 'log_every', 'save_every'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)}: it is 1 or more')
    if self.bad_steps < 0:
      raise ValueError(f'bad_steps={self.bad_steps}: it is 0 or more')


@dataclasses.dataclass(frozen=True)
class AutoencoderStage(StageConfig):
  """The stage of an autoencoder.

  Attributes:
    init_from: folder of a run whose autoencoder is used instead of an own one.
    batch: crops.
    pieces: of a crop.
  """

  init_from: str
  batch: int
  pieces: int


@dataclasses.dataclass(frozen=True)
class ModelStage(StageConfig):
  """The stage of the whole model.

  Attributes:
    bias_step: of loss-free balancing.
    accumulate: parts of a batch that are computed one after the other.
    ema: decay of a moving average of the weights; 0: none is kept.
    freeze: patterns of parameters that are not trained.
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
      raise ValueError(f'accumulate={self.accumulate}: it is 1 or more')
    if not 0 <= self.ema < 1:
      raise ValueError(f'ema={self.ema}: a decay is at least 0 (off) and below 1')


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """What a run's config says, checked as far as neither data nor devices nor the network are needed.

  Attributes:
    config: all of it, as it was read.
    stages: names, in order.
    autoencoders: their stages, by name.
    omni: the stage of the whole model.
    budget: sizes of a batch.
    augment: by medium, how much what is only read changes.
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
    cls,
    config: ConfigDict,
    autoencoders: Collection[str],
    table: Mapping[str, tuple[type | None, type[Host]]] = HOSTS,
  ) -> 'RunConfig':
    """Checks a config.

    Args:
      autoencoders: names of those that the run's model has.
      table: of the media's hosts.

    Raises:
      UserError: with the key, its value, and what it can be.
    """
    require(config)
    known = (*autoencoders, OMNI, EVALUATE)
    if unknown := [name for name in config.stages if name not in known]:
      raise UserError(f'config.stages: {unknown} is unknown; a stage is one of {known}')
    run = cls(
      config=config,
      stages=tuple(config.stages),
      autoencoders={
        name: dataclass_of(AutoencoderStage, config[name], name)
        for name in autoencoders
      },
      omni=dataclass_of(ModelStage, config.omni, OMNI),
      budget=budget_of(config.data.budget),
      loader=dataclass_of(LoaderConfig, config.loader, 'loader'),
      augment=augment_of(config.data.augment, table),
    )
    run.check()
    return run

  def check(self) -> None:
    """Compares the parts with each other."""
    parts, rows, group = self.omni.accumulate, self.budget.rows, self.budget.group
    if self.budget.grouped and self.budget.pools % parts:
      groups = f' in groups of {group}' if group > 1 else ''
      raise UserError(
        f'config.omni.accumulate={parts}: it is 1 or more and divides config.data.budget.rows={rows}{groups}'
      )
    codes = self.config.data.codes
    if codes not in CODES:
      raise UserError(f'config.data.codes={codes!r} is unknown; it is one of {CODES}')
    profile = self.config.profile
    if profile and not re.fullmatch(r'\d+:\d+', profile):
      raise UserError(
        f"config.profile={profile!r}: give the first and the last step, such as '10:15'"
      )


def require(config: Any) -> None:
  """Refuses a config that lacks a part, such as one that was written for an older version."""
  missing = [name for name in REQUIRED if name not in config]
  of_data = ('source', 'seed', 'codes', 'budget', 'augment')
  missing += [f'data.{name}' for name in of_data if name not in config.get('data', {})]
  if missing:
    raise UserError(
      f'config.{missing[0]} is missing ({", ".join(missing)}): start from configs/base.py, which has every key'
    )


def budget_of(part: Any) -> RowBudget:
  """Returns the sizes of a batch; `streams` names media, and each its kinds of streams."""
  values = part.to_dict()
  streams: dict[str, tuple[int, int]] = {}
  for medium, kinds in values.pop('streams', {}).items():
    for kind, sizes in kinds.items():
      name = f'{medium}.{kind}'
      streams[name] = _room_of(name, sizes)
  budget = dataclass_of(RowBudget, ConfigDict(values), 'data.budget')
  return dataclasses.replace(budget, streams=streams)


def _room_of(stream: str, sizes: Any) -> tuple[int, int]:
  pair = tuple(sizes) if isinstance(sizes, list | tuple) else ()
  whole = all(isinstance(size, int) and size >= 0 for size in pair)
  if len(pair) != 2 or not whole:
    raise UserError(
      f'config.data.budget.streams.{stream}={sizes!r}: give (pieces, items), two whole numbers'
    )
  return pair


def augment_of(
  part: Any, table: Mapping[str, tuple[type | None, type[Host]]] = HOSTS
) -> dict[str, Any]:
  """Returns how much media change, by name, from `config.data.augment`; media that do not change are left out."""
  changes = {}
  for medium in part or {}:
    kind = table[medium][1].Augment if medium in table else None
    if kind is None:
      known = [name for name, (_, host) in table.items() if host.Augment]
      raise UserError(
        f'config.data.augment: {medium!r} cannot be changed; it is one of {known}'
      )
    change = dataclass_of(kind, part[medium], f'data.augment.{medium}')
    if any(dataclasses.astuple(change)):
      changes[medium] = change
  return changes


def media_sizes(
  model: Any, table: Mapping[str, tuple[type | None, type[Host]]] = HOSTS
) -> dict[str, Any]:
  """Returns the sizes of the media that a run has, by name, from the `model` part of its config."""
  sizes = {}
  for name, (kind, _) in table.items():
    if kind is not None and name in model:
      own = ConfigDict(
        {key: model[name][key] for key in model[name] if key not in NETWORKS}
      )
      sizes[name] = dataclass_of(kind, own, f'model.{name}')
  return sizes


def config_file(beside: str, name: str) -> dict[str, Any]:
  """Returns what NAME.py defines, which lies beside a config file: such files are run, not imported.

  Args:
    beside: `__file__` of the config file.
  """
  return runpy.run_path(os.path.join(os.path.dirname(beside), f'{name}.py'))


def derived(beside: str, name: str) -> ConfigDict:
  """Returns the config of NAME.py beside a config file, to be changed."""
  return config_file(beside, name)['get_config']()


def read_config(
  values: flags.FlagValues, arguments: Sequence[str] | None = None
) -> Any:
  """Reads the command line into the flags and returns their `config`, or None where it was not given.

  Args:
    arguments: with the name of the command, instead of `sys.argv`; the flag has to be defined with the same `sys_argv`.
  """
  try:
    values(sys.argv if arguments is None else arguments)
    config = values['config'].value
    if config is not None:
      config.to_dict()  # a file that cannot be loaded says so only now
  except (
    flags.Error,
    AttributeError,
    ImportError,
    KeyError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
  ) as error:
    said = (
      error.args[0] if isinstance(error, KeyError) else error
    )  # a KeyError shows its text in quotes
    raise UserError(
      f'{said} (see --config and the overrides --config.name=value)'
    ) from error
  return config
