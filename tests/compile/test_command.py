"""`python -m omni_jax.compile` on pretended CPU devices: what it prints, and every mistake in one line."""

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
  return subprocess.run(
    [sys.executable, '-m', 'omni_jax.compile', '--config=configs/tiny.py', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture(scope='module')
def printed():
  done = run(
    '--topology=cpu:4',
    '--json',
    '--config.mesh.fsdp=2',
    '--config.model.decoder.remat=full',
  )
  assert not done.returncode, done.stderr
  return json.loads(done.stdout)


@pytest.mark.parametrize('name', ['train', 'prefill', 'decode', 'draw'])
def test_json_has_every_program(printed, name):
  found = printed[name]
  assert found['fits'] and found['memory']['peak'] > found['memory']['parameters'] > 0
  assert (
    found['flops']['program'] > 0
    and found['hbm_bytes'] > 0
    and found['compile_seconds'] > 0
  )
  assert (
    found['bound'] and found['seconds']['serial'] >= found['seconds']['overlapped'] > 0
  )


def test_kinds_of_memory_add_up(printed):
  memory = printed['train']['memory']
  assert math.isclose(
    sum(size for name, size in memory.items() if name != 'peak'), memory['peak']
  )
  assert 1.9 < memory['optimizer'] / memory['parameters'] < 2.1


def test_collectives_are_named_by_mesh_axes(printed):
  assert {one['axes'] for one in printed['train']['collectives']} <= {
    'data',
    'fsdp',
    'data+fsdp',
  }
  assert printed['train']['collectives']


def test_text_names_what_bounds(capfd):
  done = run('--topology=cpu:2', '--programs=train', '--buffers=2', '--work=3')
  assert not done.returncode, done.stderr
  for word in (
    'parameters',
    'optimizer',
    'temporaries',
    'analytic',
    'bound by',
    'MFU',
    'mesh data=2',
  ):
    assert word in done.stdout, word


@pytest.mark.parametrize(
  'arguments, said',
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
def test_mistakes_are_one_line(arguments, said):
  done = run(*arguments)
  assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, (
    done.stderr
  )
  assert re.search(said, done.stderr), done.stderr


def test_a_state_that_cannot_fit_is_refused_before_compiling():
  config = tiny_run()
  config.model.decoder.update(
    dict(
      width=8192,
      layers=8,
      head_dim=128,
      heads=64,
      kv_heads=8,
      experts=8,
      expert_hidden=8192,
    )
  )
  where = topology.describe('cpu:4')
  plan = measure.make_plan(config.lock(), where)
  with pytest.raises(
    UserError,
    match=r'does not fit cpu:4: .* GiB a chip before any activation .*parameters .* chips',
  ):
    measure.check_state(plan, where)


@pytest.mark.long
def test_search_prints_a_table():
  done = run('--topology=cpu:2', '--search', '--config.model.decoder.experts=2')
  assert not done.returncode, done.stderr
  assert (
    'best, by MFU' in done.stdout and 'fsdp=2' in done.stdout and 'full' in done.stdout
  )


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
def test_names_of_topologies(name, parsed):
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
def test_devices_of_every_kind(name, devices):
  where = topology.describe(name)
  assert len(where.devices) == devices == where.chips * where.chip.devices


@needs_libtpu
def test_a_topology_that_does_not_exist_is_a_user_error():
  with pytest.raises(UserError, match='v5e:3x3'):
    topology.describe('v5e:3x3')


def test_analytic_flops_of_the_decoder_by_hand():
  config = ConfigDict(tiny_run().model)
  config.decoder.update(
    dict(
      width=32,
      layers=2,
      heads=2,
      kv_heads=1,
      head_dim=16,
      experts=4,
      top_k=2,
      expert_hidden=16,
      shared_hidden=32,
    )
  )
  found = step_flops(ModelConfig.from_config(config), RowBudget(2, 64))
  matrices = 32 * (32 + 2 * 16) + 32 * 32 + 32 * 4 + 2 * 3 * 32 * 16 + 3 * 32 * 32
  assert (
    found.layers == 2 * 128 * 2 * matrices and found.attention == 4 * 128 * 2 * 32 * 64
  )
  assert found.media == {'image': Flops(0, 0, 0), 'audio': Flops(0, 0, 0)}
  assert found.executed(Remat.FULL) - found.model == found.layers + found.attention
