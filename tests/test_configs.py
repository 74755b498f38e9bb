"""Every file of configs/ is a run that can start: its network, its optimizers, its data and its command exist."""

import ast
import dataclasses
import math
import runpy
from typing import NamedTuple

import jax
from ml_collections import ConfigDict
import pytest
from samples import ROOT

from omni_jax.compile import topology
from omni_jax.config import dataclass_of, OMNI, RunConfig
from omni_jax.data.sources.mixture import Drawing
from omni_jax.data.sources.table import SOURCES
from omni_jax.errors import UserError
from omni_jax.evaluate.limits import limits_of
from omni_jax.model import abstract, abstract_autoencoder, main_sizes, ModelConfig
from omni_jax.objective import LossConfig
from omni_jax.sequence.pack import check_budget
from omni_jax.sharding import AXES, check_divides, check_sizes
from omni_jax.train.optim import OptimConfig
from omni_jax.train.plan import Plan
from omni_jax.types import RowBudget

FILES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
NO_RUNS = ('base', 'text')  # what others start from: they name no data
VARIANTS = [f'{file}:text' for file in FILES if file.startswith('omni_')]
every_config = pytest.mark.parametrize('name', FILES + VARIANTS)
every_run = pytest.mark.parametrize(
  'name', [file for file in FILES if file not in NO_RUNS]
)


def load(name: str) -> ConfigDict:
  """The locked config of 'FILE' or 'FILE:VARIANT'."""
  file, _, variant = name.partition(':')
  make = runpy.run_path(str(ROOT / 'configs' / f'{file}.py'))['get_config']
  return (make(variant) if variant else make()).lock()


def checked(config: ConfigDict) -> RunConfig:
  model_config = ModelConfig.from_config(config.model)
  return RunConfig.of(config, tuple(model_config.autoencoders))


@every_config
def test_network_is_built(name):
  config = ModelConfig.from_config(load(name).model)
  assert len(jax.tree.leaves(abstract(config))) > (20 if config.media else 12)
  for autoencoder in config.autoencoders:
    assert jax.tree.leaves(abstract_autoencoder(config, autoencoder))
  if 'image' in config.media:
    assert config.tokenizer.max_grid >= max(config.media['image'].grid)
  only_text = name in ('text', 'shakespeare') or ':' in name
  assert set(config.media) == (set() if only_text else {'image', 'audio'})


@every_config
def test_every_part_is_understood(name):
  config = load(name)
  run, model_config = checked(config), ModelConfig.from_config(config.model)
  assert set(config.mesh) <= set(AXES)
  assert config.data.source in (('',) if name in NO_RUNS else SOURCES)
  check_budget(run.budget, model_config.hosts())
  LossConfig.from_config(config.omni.losses, dict(model_config.hosts()))
  for stage in (*model_config.autoencoders, OMNI):
    dataclass_of(OptimConfig, config[stage].optim, f'{stage}.optim')
  limits_of(config)


class Keys(NamedTuple):
  """Names of a config's leaves, and names of its parts that are empty: what they hold is up to a run."""

  leaves: set[str]
  open: set[str]


def keys_of(part: ConfigDict, inside: str = '') -> Keys:
  keys = Keys(set(), set())
  for name in part:
    value, full = part[name], f'{inside}{name}'
    if not isinstance(value, ConfigDict):
      keys.leaves.add(full)
    elif not len(value):
      keys.open.add(full)
    else:
      for own, found in zip(keys, keys_of(value, f'{full}.'), strict=True):
        own |= found
  return keys


BASE = keys_of(load('base'))


def unknown_keys(config: ConfigDict) -> set[str]:
  """Returns the keys that configs/base.py does not have."""
  keys = keys_of(config)
  unknown = set()
  for name in keys.leaves - BASE.leaves:
    if not any(name.startswith(f'{part}.') for part in BASE.open):
      unknown.add(name)
  for name in keys.open - BASE.open:
    if not any(leaf.startswith(f'{name}.') for leaf in BASE.leaves):
      unknown.add(name)
  return unknown


@every_config
def test_every_key_is_one_of_base(name):
  """No key is ignored in silence."""
  config = load(name)
  assert not unknown_keys(config)
  for part in config.data.sources.values():
    drawing = {field.name for field in dataclasses.fields(Drawing)}
    assert set(part) <= {*config.data, *drawing}


@pytest.mark.parametrize(
  'part, key',
  [
    ('omni', 'stepz'),
    ('model.image.head', 'widht'),
    ('mesh', 'smell'),
    ('data.budget.streams', 'smell.seen'),
  ],
)
def test_a_key_that_base_does_not_have_is_found(part, key):
  config = load('tiny').unlock()
  inner = config
  for name in part.split('.'):
    inner = inner[name]
  first, _, second = key.partition('.')
  inner[first] = ConfigDict({second: (1, 1)}) if second else 1
  assert unknown_keys(config) == {f'{part}.{key}'}


@every_run
def test_docstring_has_the_command(name):
  text = (ROOT / 'configs' / f'{name}.py').read_text()
  docstring = ast.get_docstring(ast.parse(text))
  assert f'python -m omni_jax.train --config=configs/{name}.py ' in docstring
  assert '--workdir=' in docstring


@every_config
def test_a_row_holds_what_the_budget_promises(name):
  config = load(name)
  hosts, budget = ModelConfig.from_config(config.model).hosts(), checked(config).budget
  specs = {spec.name: spec for spec in hosts.streams}
  for stream, (pieces, items) in budget.streams.items():
    assert (pieces > 0) == (items > 0)
    longest = specs[stream].longest
    # A word of a second, or the largest image.
    least = min(longest, 13) if stream.startswith('audio.') else longest
    assert not pieces or pieces >= least, stream
  drawn, _ = budget.streams.get('image.drawn', (0, 0))
  assert not drawn or budget.length > 2 * specs['image.drawn'].longest + 4


@pytest.mark.parametrize(
  'part, name',
  [
    ('decoder', 'widht'),
    ('image.head', 'layer'),
    ('image', 'heigth'),
    ('image.embed', 'hed'),
    ('codec', 'books'),
    ('audio', 'hz'),
    ('tokenizer', 'voice'),
    ('audio.head', 'head'),
    ('audio.embed', 'hiden'),
  ],
)
def test_misspelt_sizes_are_named(part, name):
  config = load('tiny').unlock()
  config.update_from_flattened_dict({f'model.{part}.{name}': 1})
  with pytest.raises(UserError, match=rf'config\.model\.{part}: .*{name}'):
    ModelConfig.from_config(config.model)


def test_misspelt_parts_are_named():
  config = load('tiny').unlock()
  config.model.decodr = config.model.decoder
  with pytest.raises(UserError, match='decodr'):
    ModelConfig.from_config(config.model)


@pytest.mark.parametrize(
  'kind, part',
  [
    (RowBudget, 'data.budget'),
    (LossConfig, 'omni.losses'),
    (OptimConfig, 'omni.optim'),
  ],
)
def test_misspelt_settings_are_named(kind, part):
  config = load('tiny').unlock()
  config.mesh.data = 1
  first, second = part.split('.')
  config[first][second].rwos = 1
  with pytest.raises(UserError, match=rf'config\.{part}: .*rwos'):
    Plan(config)


PODS = runpy.run_path(str(ROOT / 'launch' / 'pods.py'))['RUNS']


@pytest.mark.parametrize('name', PODS)
def test_chips_of_the_pods_page_divide_what_they_split(name):
  """Without devices: sizes alone, before anybody waits for a compiler."""
  _, file, where, _, overrides = PODS[name]
  config = load(file.replace('.py', '')).unlock()
  config.update_from_flattened_dict(overrides)
  slices, _, sides = topology.parse_name(where)
  sizes = {axis: config.mesh.get(axis, 1) for axis in AXES}
  rest = slices * math.prod(sides) // -math.prod(sizes.values())
  mesh = jax.sharding.AbstractMesh(
    tuple(rest if n == -1 else n for n in sizes.values()), AXES
  )
  model_config = ModelConfig.from_config(config.model)
  check_sizes(mesh, main_sizes(model_config))
  for rows in (config.data.budget.rows, config.codec.batch):
    check_divides(mesh, rows, model_config.decoder.experts)
