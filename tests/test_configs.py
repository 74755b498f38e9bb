"""Every file of configs/ is a run that can start: its network, its optimizers, its data and its command exist."""

import ast
import math
import runpy

import jax
import pytest
from samples import ROOT

from omni_jax.compile import topology
from omni_jax.data.loader import LoaderConfig
from omni_jax.data.sources.table import SOURCES
from omni_jax.errors import UserError
from omni_jax.evaluate.run import limits_of
from omni_jax.model import abstract, main_sizes, OmniConfig
from omni_jax.sharding import AXES, check_divides, check_sizes
from omni_jax.train.losses import LossConfig
from omni_jax.train.optim import OptimConfig
from omni_jax.train.stages import dataclass_of, STAGES
from omni_jax.types import RowBudget

FILES = sorted((ROOT / 'configs').glob('*.py'))
every_config = pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)


def load(path):
  return runpy.run_path(str(path))['get_config']().lock()


@every_config
def test_network_is_built(path):
  config = OmniConfig.from_config(load(path).model)
  assert len(jax.tree.leaves(abstract(config))) > 20
  assert config.tokenizer.max_grid >= max(config.media.image.grid)


@every_config
def test_every_part_is_understood(path):
  config = load(path)
  assert set(config.stages) <= STAGES.keys() and set(config.mesh) <= set(AXES)
  assert config.data.source in SOURCES
  dataclass_of(RowBudget, config.data.budget, 'data.budget')
  dataclass_of(LoaderConfig, config.loader, 'loader')
  dataclass_of(LossConfig, config.omni.losses, 'omni.losses')
  for stage in ('codec', 'omni'):
    dataclass_of(OptimConfig, config[stage].optim, f'{stage}.optim')
  limits_of(config)


@every_config
def test_docstring_has_the_command(path):
  said = ast.get_docstring(ast.parse(path.read_text()))
  assert (
    f'python -m omni_jax.train --config=configs/{path.name} ' in said
    and '--workdir=' in said
  )


@every_config
def test_a_row_holds_what_the_budget_promises(path):
  config = load(path)
  media, budget = OmniConfig.from_config(config.model).media, config.data.budget
  assert not budget.drawn or budget.length > 2 * media.image.patches + 4
  for frames in (budget.heard_frames, budget.spoken_frames):
    assert not frames or frames >= min(media.audio.frames, 13)  # a word of a second


@pytest.mark.parametrize(
  'part, name',
  [
    ('decoder', 'widht'),
    ('dit', 'layer'),
    ('image', 'heigth'),
    ('codec', 'books'),
    ('audio', 'hz'),
    ('tokenizer', 'voice'),
    ('codec_head', 'head'),
    ('audio_embed', 'hiden'),
  ],
)
def test_misspelt_sizes_are_named(part, name):
  config = load(ROOT / 'configs' / 'tiny.py').unlock()
  config.model[part][name] = 1
  with pytest.raises(UserError, match=rf'config\.model\.{part}: .*{name}'):
    OmniConfig.from_config(config.model)


def test_misspelt_parts_are_named():
  config = load(ROOT / 'configs' / 'tiny.py').unlock()
  config.model.decodr = config.model.decoder
  with pytest.raises(UserError, match='decodr'):
    OmniConfig.from_config(config.model)


@pytest.mark.parametrize(
  'kind, part',
  [
    (RowBudget, 'data.budget'),
    (LossConfig, 'omni.losses'),
    (OptimConfig, 'omni.optim'),
  ],
)
def test_misspelt_settings_are_named(kind, part):
  config = load(ROOT / 'configs' / 'tiny.py').unlock()
  first, second = part.split('.')
  config[first][second].rwos = 1
  with pytest.raises(UserError, match=rf'config\.{part}: .*rwos'):
    dataclass_of(kind, config[first][second], part)


PODS = runpy.run_path(str(ROOT / 'launch' / 'pods.py'))['RUNS']


@pytest.mark.parametrize('name', PODS)
def test_chips_of_the_pods_page_divide_what_they_split(name):
  """Without devices: sizes alone, before anybody waits for a compiler."""
  _, file, where, _, overrides = PODS[name]
  file, _, variant = file.partition(':')
  config = runpy.run_path(str(ROOT / 'configs' / file.removesuffix('.py')) + '.py')[
    'get_config'
  ](*filter(None, [variant]))
  config.update_from_flattened_dict(overrides)
  slices, _, sides = topology.parse(where)
  sizes = {axis: config.mesh.get(axis, 1) for axis in AXES}
  rest = slices * math.prod(sides) // -math.prod(sizes.values())
  mesh = jax.sharding.AbstractMesh(
    tuple(rest if n == -1 else n for n in sizes.values()), AXES
  )
  omni = OmniConfig.from_config(config.model)
  check_sizes(mesh, main_sizes(omni))
  for rows in (config.data.budget.rows, config.codec.batch):
    check_divides(mesh, rows, omni.decoder.experts)
