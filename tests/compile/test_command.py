"""Tests `python -m omni_jax.compile` on simulated CPU devices: output and errors."""

import importlib.util
import json
import math
import re
import subprocess
import sys

from ml_collections import ConfigDict
import pytest
from samples import ROOT, tiny_run

from omni_jax.compile import measure, topology
from omni_jax.errors import UserError
from omni_jax.modalities.device import Flops
from omni_jax.model import ModelConfig
from omni_jax.nn.decoder import Remat
from omni_jax.train.flops import step_flops
from omni_jax.types import RowBudget

needs_libtpu = pytest.mark.skipif(
  not importlib.util.find_spec('libtpu'),
  reason='libtpu is not installed; pip install "jax[tpu]"',
)


def run(*arguments: str) -> subprocess.CompletedProcess:
  """Runs the command on configs/tiny.py and returns its result."""
  return subprocess.run(
    [sys.executable, '-m', 'omni_jax.compile', '--config=configs/tiny.py', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture(scope='module')
def report():
  """Returns what the command prints with --json for four devices."""
  result = run(
    '--topology=cpu:4',
    '--json',
    '--config.mesh.fsdp=2',
    '--config.model.decoder.remat=full',
  )
  assert not result.returncode, result.stderr
  return json.loads(result.stdout)


@pytest.mark.parametrize('name', ['train', 'prefill', 'decode', 'draw'])
def test_json_has_every_program(report, name):
  program = report[name]
  memory = program['memory']
  seconds = program['seconds']
  assert program['fits']
  assert memory['parameters'] > 0
  if name != 'decode':  # it does not take the parameters of the image head
    assert memory['peak'] > memory['parameters']
  assert program['flops']['program'] > 0
  assert program['hbm_bytes'] > 0
  assert program['compile_seconds'] > 0
  assert program['bound']
  assert seconds['serial'] >= seconds['overlapped'] > 0


def test_kinds_of_memory_add_up(report):
  memory = dict(report['train']['memory'])
  peak = memory.pop('peak')
  assert math.isclose(sum(memory.values()), peak)
  assert 1.9 < memory['optimizer'] / memory['parameters'] < 2.1


def test_collectives_are_named_by_mesh_axes(report):
  collectives = report['train']['collectives']
  axes = {collective['axes'] for collective in collectives}
  assert collectives
  assert axes <= {'data', 'fsdp', 'data+fsdp'}


def test_text_has_memory_flops_and_what_bounds_the_step():
  result = run('--topology=cpu:2', '--programs=train', '--buffers=2', '--work=3')
  assert not result.returncode, result.stderr
  assert 'parameters' in result.stdout
  assert 'optimizer' in result.stdout
  assert 'temporaries' in result.stdout
  assert 'analytic' in result.stdout
  assert 'bound by' in result.stdout
  assert 'MFU' in result.stdout
  assert 'mesh data=2' in result.stdout


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--topology=v9:4x4'], 'v5p'),
    (['--topology=v5p'], 'v5p:4x4x4'),
    (['--topology=v5e:4x4x4'], 'v5e has 2 sides'),
    (['--topology=cpu:3', '--programs=trian'], 'train, prefill'),
    (['--topology=cpu:3'], 'batch of 4 rows is not divisible by 3'),
    (['--topology=cpu:8', '--config.mesh.data=2'], 'mesh .* has 2 of the 8 devices'),
    (['--topology=cpu:8', '--config.mesh.data=3'], 'needs 3 devices'),
    (
      [
        '--topology=cpu:4',
        '--config.mesh.data=1',
        '--config.mesh.expert=4',
        '--config.model.decoder.experts=6',
      ],
      'config.model.decoder.experts=6 is not divisible',
    ),
    ([], '--topology'),
    (['--topology=cpu:2', '--config.model.decoder.widht=3'], 'widht'),
  ],
  ids=str,
)
def test_mistakes_are_reported_in_one_line(arguments, message):
  result = run(*arguments)
  lines = result.stderr.strip().splitlines()
  assert result.returncode == 2, result.stderr
  assert len(lines) == 1, result.stderr
  assert re.search(message, result.stderr), result.stderr


def test_a_state_that_cannot_fit_is_refused_before_compiling():
  config = tiny_run()
  decoder = config.model.decoder
  decoder.width = 8192
  decoder.layers = 8
  decoder.head_dim = 128
  decoder.heads = 64
  decoder.kv_heads = 8
  decoder.experts = 8
  decoder.expert_hidden = 8192
  cpus = topology.describe('cpu:4')
  plan = measure.make_plan(config.lock(), cpus)
  message = (
    'does not fit cpu:4: .* GiB a chip before any activation .*parameters .* chips'
  )
  with pytest.raises(UserError, match=message):
    measure.check_state(plan, cpus)


@pytest.mark.long
def test_search_prints_a_table():
  result = run('--topology=cpu:2', '--search', '--config.model.decoder.experts=2')
  assert not result.returncode, result.stderr
  assert 'best, by MFU' in result.stdout
  assert 'fsdp=2' in result.stdout
  assert 'full' in result.stdout


@pytest.mark.parametrize(
  'name, parsed',
  [
    ('v5p:4x4x4', (1, 'v5p', (4, 4, 4))),
    ('2xv5p:4x4x4', (2, 'v5p', (4, 4, 4))),
    ('v5e:16x16', (1, 'v5e', (16, 16))),
    ('cpu:8', (1, 'cpu', (8,))),
    ('tpu7x:2x2x1', (1, 'tpu7x', (2, 2, 1))),
  ],
)
def test_names_of_topologies_are_parsed(name, parsed):
  assert topology.parse_name(name) == parsed


@needs_libtpu
@pytest.mark.parametrize(
  'name, devices',
  [
    ('v4:2x2x1', 8),
    ('v5e:1x1', 1),
    ('v5p:4x4x2', 32),
    ('v6e:8x8', 64),
    ('tpu7x:2x2x1', 8),
    ('3xv5e:2x2', 12),
  ],
)
def test_every_topology_has_its_devices(name, devices):
  description = topology.describe(name)
  assert len(description.devices) == devices
  assert description.chips * description.chip.devices == devices


@needs_libtpu
def test_a_topology_that_does_not_exist_is_a_user_error():
  with pytest.raises(UserError, match='v5e:3x3'):
    topology.describe('v5e:3x3')


def test_analytic_flops_of_the_decoder_equal_those_computed_by_hand():
  config = ConfigDict(tiny_run().model)
  decoder = config.decoder
  decoder.width = 32
  decoder.layers = 2
  decoder.heads = 2
  decoder.kv_heads = 1
  decoder.head_dim = 16
  decoder.experts = 4
  decoder.top_k = 2
  decoder.expert_hidden = 16
  decoder.shared_hidden = 32
  flops = step_flops(ModelConfig.from_config(config), RowBudget(2, 64))
  attention_weights = 32 * (32 + 2 * 16) + 32 * 32
  router_weights = 32 * 4
  expert_weights = 2 * 3 * 32 * 16 + 3 * 32 * 32
  weights = attention_weights + router_weights + expert_weights
  positions = 2 * 64
  layers = 2
  assert flops.layers == 2 * positions * layers * weights
  assert flops.attention == 4 * positions * layers * 32 * 64
  assert flops.media == {'image': Flops(0, 0, 0), 'audio': Flops(0, 0, 0)}
  assert flops.executed(Remat.FULL) - flops.model == flops.layers + flops.attention
