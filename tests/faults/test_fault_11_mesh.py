"""Fault 11: a mesh that does not fit the devices, or does not divide a size.

It is refused before anything is compiled.
"""

import jax
import pytest
from samples import frozen_values, tiny_model, tiny_run

from omni_jax import sharding
from omni_jax.errors import UserError
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.model import main_sizes, ModelConfig
from omni_jax.train import stages
from omni_jax.train.mesh_checks import check_sizes, describe_axes

CASES = {
  'product': (
    {'mesh.data': 3},
    r"mesh \{'data': 3, .* needs 3 devices, but there are 8; "
    r'set config\.mesh so that the product divides 8',
  ),
  'two_sizes_left_open': ({'mesh.data': -1, 'mesh.fsdp': -1}, 'at most one is -1'),
  'rows': (
    {'data.budget.rows': 12},
    r'batch of 12 rows is not divisible by 8 devices .*; nearest: 8',
  ),
  'experts': (
    {'mesh.data': 1, 'mesh.expert': 8, 'data.budget.rows': 8},
    r'config\.model\.decoder\.experts=4 is not divisible by config\.mesh\.expert=8; '
    r'nearest: 8 for .*, 4 for config\.mesh\.expert$',
  ),
  'groups': (
    {'model.decoder.kv_heads': 3, 'data.budget.rows': 8},
    'heads=2 is not a multiple of kv_heads=3',
  ),
}
# As many heads as the mesh axis that splits heads has devices.
KV = {'model.decoder.heads': 4, 'model.decoder.kv_heads': 4}
# Mesh axis, changed values, the size in the message, and the nearest sizes that fit for
# the key and for the mesh axis.
SIZES = {
  'width': (
    'fsdp',
    {'model.decoder.width': 42},
    'model.decoder.width=42',
    '40 or 44',
    '3 or 6',
  ),
  'dit': (
    'fsdp',
    {'model.image.head.width': 30, 'model.image.head.heads': 2},
    'model.image.head.width=30',
    '28 or 32',
    '3 or 5',
  ),
  'codec_head': (
    'fsdp',
    {'model.audio.head.width': 34},
    'model.audio.head.width=34',
    '32 or 36',
    '2 or 17',
  ),
  'experts': (
    'expert',
    {'model.decoder.experts': 6},
    'model.decoder.experts=6',
    '4 or 8',
    '3 or 6',
  ),
  'heads': (
    'tensor',
    {'model.decoder.heads': 6, 'model.decoder.kv_heads': 6},
    'model.decoder.heads=6',
    '4 or 8',
    '3 or 6',
  ),
  'expert_hidden': (
    'tensor',
    KV | {'model.decoder.expert_hidden': 18},
    'model.decoder.expert_hidden=18',
    '16 or 20',
    '3 or 6',
  ),
  'shared_hidden': (
    'tensor',
    KV | {'model.decoder.shared_hidden': 7},
    'model.decoder.shared_hidden=7',
    '4 or 8',
    '1 or 7',
  ),
  'hearing': (
    'tensor',
    KV | {'model.image.head.heads': 4, 'model.audio.embed.hidden': 30},
    'model.audio.embed.hidden=30',
    '28 or 32',
    '3 or 5',
  ),
  'dit_heads': (
    'tensor',
    KV | {'model.image.head.heads': 2},
    'model.image.head.heads=2',
    '4',
    '2',
  ),
  'codec_heads': (
    'tensor',
    KV | {'model.image.head.heads': 4, 'model.audio.head.heads': 2},
    'model.audio.head.heads=2',
    '4',
    '2',
  ),
  'entries': (
    'tensor',
    KV
    | {
      'model.image.head.heads': 4,
      'model.audio.head.heads': 4,
      'model.codec.entries': 30,
    },
    'model.codec.entries=30',
    '28 or 32',
    '3 or 5',
  ),
  'length': (
    'context',
    {'data.budget.length': 90},
    'data.budget.length=90',
    '88 or 92',
    '3 or 5',
  ),
}


@pytest.mark.parametrize('case', CASES)
def test_fault_11_what_does_not_divide_is_refused_before_compilation(
  tmp_path, monkeypatch, case
):
  values, message = CASES[case]
  check_refused(tmp_path, monkeypatch, values, message)


@pytest.mark.parametrize('case', SIZES)
def test_fault_11_a_size_that_its_axis_does_not_divide_is_refused_with_the_nearest_that_fit(
  tmp_path, monkeypatch, case
):
  """The weights are not silently replicated on every device."""
  axis, values, size, sizes, splits = SIZES[case]
  key = size.partition('=')[0]
  mesh = {'mesh.data': 1, f'mesh.{axis}': 4, 'data.budget.rows': 8}
  message = (
    rf'config\.{size} is not divisible by config\.mesh\.{axis}=4; '
    rf'nearest: {sizes} for config\.{key}, {splits} for config\.mesh\.{axis}$'
  )
  check_refused(tmp_path, monkeypatch, mesh | values, message)


def test_fault_11_every_axis_that_splits_weights_or_rows_is_checked():
  """Checks every main size of the default network.

  The nearest sizes that a message names are accepted.
  """
  sizes = [*main_sizes(tiny_model()), ('config.data.budget.length', 96, 'length')]
  # Rows are split over data: check_rows checks them.
  checked_axes = {'data'}
  for key, size, axis in sizes:
    names = describe_axes(sharding.make_mesh(), axis)
    checked_axes.update(names.replace('config.mesh.', '').split(' x '))
    mesh = sharding.make_mesh({names.rpartition('.')[2]: 8})
    try:
      check_sizes(mesh, [(key, size, axis)])
    except UserError as error:
      nearest = str(error).rpartition('nearest: ')[2]
      for_key, for_axis = nearest.split(', ')
      fits = numbers_in(for_key)
      assert all(n % 8 == 0 and abs(n - size) < 8 for n in fits)
      assert all(size % n == 0 for n in numbers_in(for_axis))
      check_sizes(mesh, [(key, n, axis) for n in fits])
    else:
      assert size % 8 == 0
  assert checked_axes == set(sharding.AXES)


def numbers_in(text):
  """Returns the numbers of text like '8 or 16 for config.key'."""
  numbers = text.split(' for ')[0]
  return [int(n) for n in numbers.split(' or ')]


@pytest.mark.parametrize('tensor', [1, 2])
def test_fault_11_a_vocabulary_that_does_not_divide_is_kept_whole_and_logged(
  tmp_path, tensor
):
  config = tiny_run()
  config.model.decoder.update(dict(heads=2, kv_heads=2))
  if vocab_size(config) % 2 == 0:
    config.model.tokenizer.voices = (*config.model.tokenizer.voices, 'extra')
  config.mesh.update(dict(data=1, tensor=tensor))
  assert vocab_size(config) % 2
  (tmp_path / 'run').mkdir()
  run = stages.Run(config, str(tmp_path / 'run'))
  with jax.set_mesh(run.mesh):
    stage = stages.omni_stage(run, frozen_values(run.model_config))
  stage.batches.close()
  log = tmp_path / 'run' / 'log.txt'
  text = log.read_text() if log.exists() else ''
  message = 'is not divisible by config.mesh.tensor=2; every device keeps all of it'
  assert text.count(message) == (tensor == 2)
  table = stage.state.params['embeds']['text']['tokens']['table']
  assert table.is_fully_replicated and table.shape[0] == vocab_size(config)


def vocab_size(config):
  return Tokenizer(ModelConfig.from_config(config.model).tokenizer).vocab_size


def check_refused(tmp_path, monkeypatch, values, message):
  """Checks that a run with these values is refused before anything is compiled."""

  def fail(*_, **__):
    raise AssertionError('a program was compiled')

  config = tiny_run()
  for name, value in values.items():
    config.update_from_flattened_dict({name: value})
  monkeypatch.setattr(jax, 'jit', fail)
  with pytest.raises(UserError, match=message):
    stages.run_all(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()
