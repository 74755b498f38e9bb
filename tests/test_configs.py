"""Every file of configs/ is a run that can start.

Its network, its optimizers, its data and its command exist.
"""

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
from omni_jax.sharding import AXES
from omni_jax.train.mesh_checks import check_rows, check_sizes
from omni_jax.train.optim import OptimConfig
from omni_jax.train.plan import Plan

FILES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
NO_RUNS = ('base', 'speed', 'text')  # other configs derive from them; they name no data
VARIANTS = [f'{file}:text' for file in FILES if file.startswith('omni_')]
every_config = pytest.mark.parametrize('name', FILES + VARIANTS)
RUNS = [file for file in FILES if file not in NO_RUNS]
every_run = pytest.mark.parametrize('name', RUNS)


def load(name: str) -> ConfigDict:
  """Returns the locked config of 'FILE' or 'FILE:VARIANT'."""
  file, _, variant = name.partition(':')
  get_config = runpy.run_path(str(ROOT / 'configs' / f'{file}.py'))['get_config']
  config = get_config(variant) if variant else get_config()
  return config.lock()


def run_config(config: ConfigDict) -> RunConfig:
  """Returns the checked config of a run."""
  model_config = ModelConfig.from_config(config.model)
  return RunConfig.of(config, tuple(model_config.autoencoders))


@every_config
def test_the_network_is_built_with_its_media(name):
  config = ModelConfig.from_config(load(name).model)
  fewest_leaves = 20 if config.media else 12
  assert len(jax.tree.leaves(abstract(config))) > fewest_leaves
  for autoencoder in config.autoencoders:
    assert jax.tree.leaves(abstract_autoencoder(config, autoencoder))
  if 'image' in config.media:
    assert config.tokenizer.max_grid >= max(config.media['image'].grid)
  only_text = name in ('text', 'shakespeare', 'speed') or ':' in name
  media = set() if only_text else {'image', 'audio'}
  assert set(config.media) == media


@every_config
def test_every_part_is_valid(name):
  config = load(name)
  model_config = ModelConfig.from_config(config.model)
  hosts = model_config.hosts()
  sources = ('',) if name in NO_RUNS else SOURCES
  assert set(config.mesh) <= set(AXES)
  assert config.data.source in sources
  check_budget(run_config(config).budget, hosts)
  LossConfig.from_config(config.omni.losses, dict(hosts))
  for stage in (*model_config.autoencoders, OMNI):
    dataclass_of(OptimConfig, config[stage].optim, f'{stage}.optim')
  limits_of(config)


class Keys(NamedTuple):
  """The keys of a config.

  Attributes:
    leaves: full names of the values.
    open: full names of the empty parts, in which a run may set any key.
  """

  leaves: set[str]
  open: set[str]


def keys_of(part: ConfigDict, prefix: str = '') -> Keys:
  """Returns the keys of a part of a config, with a prefix before each name."""
  keys = Keys(set(), set())
  for name in part:
    value = part[name]
    full_name = f'{prefix}{name}'
    if not isinstance(value, ConfigDict):
      keys.leaves.add(full_name)
    elif not len(value):
      keys.open.add(full_name)
    else:
      inner = keys_of(value, f'{full_name}.')
      keys.leaves.update(inner.leaves)
      keys.open.update(inner.open)
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
  """A key that configs/base.py does not have would be silently ignored."""
  config = load(name)
  assert not unknown_keys(config)
  drawing = {field.name for field in dataclasses.fields(Drawing)}
  for part in config.data.sources.values():
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
def test_a_row_has_room_for_the_largest_items(name):
  config = load(name)
  hosts = ModelConfig.from_config(config.model).hosts()
  budget = run_config(config).budget
  specs = {spec.name: spec for spec in hosts.streams}
  for stream, (pieces, items) in budget.streams.items():
    assert (pieces > 0) == (items > 0)
    longest = specs[stream].longest
    # Room for one spoken word (about a second), or for the largest image.
    least = min(longest, 13) if stream.startswith('audio.') else longest
    assert not pieces or pieces >= least, stream
  # A drawn image takes two positions for each piece, and four for the tokens around it.
  drawn, _ = budget.room('image.drawn')
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
  'name, message',
  [
    ('model.decoder', r'config\.model\.decoder is missing'),
    ('model.codec', r'config\.model\.codec is missing'),
    ('model.image.head', r'config\.model\.image\.head is missing'),
    ('model.decoder.theta', r"config\.model\.decoder: .*'theta'"),
    ('model.dtype', r'config\.model\.dtype=None is unknown'),
    ('omni.losses.z', r'config\.omni\.losses\.z is missing'),
    ('omni.optim.clip', r"config\.omni\.optim: .*'clip'"),
  ],
)
def test_missing_parts_and_settings_are_named(name, message):
  """configs/base.py has the only defaults."""
  config = load('tiny').unlock()
  config.mesh.data = 1
  *parents, last = name.split('.')
  part = config
  for parent in parents:
    part = part[parent]
  del part[last]
  with pytest.raises(UserError, match=message):
    Plan(config)


@pytest.mark.parametrize('part', ['data.budget', 'omni.losses', 'omni.optim'])
def test_misspelt_settings_are_named(part):
  config = load('tiny').unlock()
  config.mesh.data = 1
  first, second = part.split('.')
  config[first][second].rwos = 1
  with pytest.raises(UserError, match=rf'config\.{part}: .*rwos'):
    Plan(config)


POD_RUNS = runpy.run_path(str(ROOT / 'launch' / 'pods.py'))['RUNS']


@pytest.mark.parametrize('name', POD_RUNS)
def test_meshes_of_the_pods_page_divide_the_model(name):
  """Checks sizes without any devices, before anybody waits for a compiler."""
  _, file, topology_name, _, overrides = POD_RUNS[name]
  config = load(file.replace('.py', '')).unlock()
  config.update_from_flattened_dict(overrides)
  slices, _, sides = topology.parse_name(topology_name)
  sizes = [config.mesh.get(axis, 1) for axis in AXES]
  known = math.prod(size for size in sizes if size != -1)
  rest = slices * math.prod(sides) // known
  shape = tuple(rest if size == -1 else size for size in sizes)
  mesh = jax.sharding.AbstractMesh(shape, AXES)
  model_config = ModelConfig.from_config(config.model)
  check_sizes(mesh, main_sizes(model_config))
  for rows in (config.data.budget.rows, config.codec.batch):
    check_rows(mesh, rows)
