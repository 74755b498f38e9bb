"""Roles select the parameters that Muon updates, that decay and that are cast.

They select the same parameters as rules by name did before there were roles.
"""

import functools
import runpy

from flax import nnx
import jax
from ml_collections import ConfigDict
import pytest
from samples import ROOT

from omni_jax.model import abstract, abstract_autoencoder, ModelConfig
from omni_jax.nn.blocks import cast_matrices
from omni_jax.sharding import leaf_name, named_leaves, param_roles, Role
from omni_jax.train.optim import decay_mask, muon_mask

VARIANTS = {
  'as it is': {},
  'router by modality': {'decoder.routing': 'modality', 'decoder.shared_hidden': 0},
  'hears codes': {'audio.embed.hearing': 'codes'},
  'convolutions': {'audio.embed.channels': 8},
  'image encoder': {'image.embed.layers': 1},
  'images keep their shape': {'image.fit': 'keep', 'image.embed.layers': 1},
}


def decayed_by_name(name: str, ndim: int) -> bool:
  """Returns whether a parameter has more than one axis and is no scale and no bias."""
  return ndim > 1 and name.rpartition('.')[2] not in ('scale', 'b')


def muon_by_name(name: str, ndim: int) -> bool:
  """Returns whether a parameter is the matrix of a linear map or of an expert."""
  if 'router' in name or name.startswith('heads.text'):
    return False
  return ndim > 1 and name.endswith(('.w', '.gate', '.up', '.down'))


def cast_by_name(name: str, ndim: int) -> bool:
  """Returns whether a parameter of the decoder's blocks is a matrix of no router."""
  return ndim >= 3 and 'router' not in name


@functools.cache
def config_of(file: str, variant: str = 'as it is') -> ModelConfig:
  """Returns the network of a file in configs/, in one of the variants."""
  config = runpy.run_path(str(ROOT / 'configs' / file))['get_config']().model
  config = ConfigDict(config.to_dict())
  config.update_from_flattened_dict(VARIANTS[variant])
  return ModelConfig.from_config(config)


FILES = sorted(path.name for path in (ROOT / 'configs').glob('*.py'))
CASES = [(file, 'as it is') for file in FILES]
CASES += [('digits.py', variant) for variant in VARIANTS if variant != 'as it is']


def assert_roles_select_as_names_did(model: nnx.Module) -> None:
  """Checks what decays and what Muon updates."""
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  roles = param_roles(model)
  decays = named_leaves(decay_mask(params, roles=roles))
  is_matrix = named_leaves(muon_mask(params, roles=roles))
  for name, leaf in named_leaves(params).items():
    assert decays[name] == decayed_by_name(name, leaf.ndim), name
    assert is_matrix[name] == muon_by_name(name, leaf.ndim), name


@pytest.mark.parametrize('file, variant', CASES)
def test_the_model_is_decayed_and_updated_as_by_names(file, variant):
  assert_roles_select_as_names_did(abstract(config_of(file, variant)))


@pytest.mark.parametrize('file', FILES)
def test_the_codec_is_decayed_and_updated_as_by_names(file):
  config = config_of(file)
  for name in config.autoencoders:
    assert_roles_select_as_names_did(abstract_autoencoder(config, name))
  assert set(config.autoencoders) == ({'codec'} if 'audio' in config.media else set())


@pytest.mark.parametrize('file, variant', CASES)
def test_the_blocks_are_cast_as_by_names(file, variant):
  blocks = nnx.state(abstract(config_of(file, variant)).decoder.blocks)
  cast = jax.eval_shape(lambda state: cast_matrices(state, 'bfloat16'), blocks)
  leaves = jax.tree_util.tree_leaves_with_path(cast)
  assert len(leaves) == len(jax.tree.leaves(blocks)) > 8
  for path, leaf in leaves:
    name = leaf_name(path)
    assert (leaf.dtype == 'bfloat16') == cast_by_name(name, leaf.ndim), name


def test_every_parameter_has_a_role():
  roles = named_leaves(param_roles(abstract(config_of('digits.py'))))
  assert set(roles.values()) == set(Role)
  assert roles['decoder.blocks.moe.router.w'] == Role.ROUTER
  assert roles['decoder.blocks.moe.up'] == Role.MATRIX
  assert roles['decoder.norm.scale'] == Role.NORM
  assert roles['heads.text.out.w'] == Role.TABLE
