"""Fault 25: a checkpoint from elsewhere is data, never code: shapes before memory, no pickle, no way out of the folder."""

import ast
import hashlib
import json
import pathlib
import shutil

from etils import epath
from faults.toy import fresh, same, states
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from samples import ROOT

from omni_jax.checkpoint import manifest
from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.errors import UserError

LIKE = {'params': fresh().params, 'buffers': fresh().buffers}


@pytest.fixture
def step(tmp_path):
  with Checkpoints(str(tmp_path), 'toy') as checkpoints:
    checkpoints.save(states(1)[0], b'{}')
  return tmp_path / 'checkpoints' / 'toy' / '1'


def forge(step, change):
  """Another manifest, with a digest that is right: whoever can write the folder can do that."""
  body = json.loads((step / 'manifest.json').read_text().splitlines()[1])
  change(body)
  text = json.dumps(body)
  digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
  (step / 'manifest.json').write_text(
    json.dumps({'blake2b': digest}) + '\n' + text + '\n'
  )


def restore(step, like=LIKE):
  with Checkpoints(
    str(step.parents[2]), 'toy', read_only=True, say=lambda text: None
  ) as checkpoints:
    return checkpoints.restore_model(like)[0]


def nothing_is_read(monkeypatch):
  def read(*_, **__):
    raise AssertionError('read before it was checked')

  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'restore', read)


@pytest.mark.parametrize('shape', [[1 << 40, 1 << 20], [64, 65], [-1], []], ids=str)
def test_fault_25_a_declared_shape_is_compared_before_any_memory_is_asked_for(
  step, monkeypatch, shape
):
  forge(
    step,
    lambda body: body['leaves'].update(
      {'params.decoder.w': [shape, 'float32', '0' * 16]}
    ),
  )
  nothing_is_read(monkeypatch)
  with pytest.raises(
    UserError, match=r'is of another model: 1 arrays differ, first params\.decoder\.w'
  ):
    restore(step)


@pytest.mark.parametrize(
  'change, said',
  [
    (
      lambda body: body['leaves'].update({'params.extra': [[2], 'float32', '0' * 16]}),
      r'first params\.extra: saved .*, wanted absent',
    ),
    (
      lambda body: body['leaves'].pop('params.scale'),
      r'first params\.scale: saved absent',
    ),
  ],
  ids=['unknown', 'missing'],
)
def test_fault_25_an_unknown_or_missing_leaf_is_refused_by_name(
  step, monkeypatch, change, said
):
  forge(step, change)
  nothing_is_read(monkeypatch)
  with pytest.raises(UserError, match=said):
    restore(step)


def test_fault_25_the_files_themselves_may_declare_what_they_like(tmp_path):
  """A store that holds a giant array under a manifest of the right shape: it is refused, and not made."""
  giant = fresh()._replace(
    params=fresh().params | {'decoder': {'w': jnp.ones((64, 4096))}}, step=jnp.int32(1)
  )
  with Checkpoints(str(tmp_path), 'toy') as checkpoints:
    checkpoints.save(giant, b'{}')
  step = tmp_path / 'checkpoints' / 'toy' / '1'
  forge(
    step,
    lambda body: body['leaves'].update(
      {'params.decoder.w': [[64, 64], 'float32', '0' * 16]}
    ),
  )
  with pytest.raises(
    UserError,
    match=r'no good step .*an array of model cannot be read: .*\(64, 64\) is not compatible with the stored shape: \(64, 4096\)',
  ):
    restore(step)


@pytest.mark.parametrize(
  'part', ['model', 'model/_METADATA', 'model/manifest.ocdbt', 'model/d']
)
def test_fault_25_links_out_of_the_folder_are_refused(step, tmp_path, part):
  elsewhere = tmp_path / 'elsewhere'
  shutil.move(step / part, elsewhere)
  (step / part).symlink_to(elsewhere)
  with pytest.raises(UserError, match='leads out of the folder'):
    restore(step)


def test_fault_25_names_in_a_manifest_do_not_lead_out_either(step, tmp_path):
  (tmp_path / 'secret').write_text('x')
  forge(step, lambda body: body['files'].update({'model/../../../../secret': [1, '']}))
  with pytest.raises(UserError, match=r'model/\.\./.*secret leads out of the folder'):
    restore(step)


def test_fault_25_pickles_beside_the_arrays_are_never_opened(step):
  """Neither by us, nor does any module of the package know how to."""
  bomb = b"cposix\nsystem\n(S'touch " + str(step / 'pwned').encode() + b"'\ntR."
  for name in (
    'model.pkl',
    'model/params.pt',
    'model/params.npy',
    'iterator/state.pickle',
  ):
    (step / name).write_bytes(bomb)
  assert same(restore(step)['params'], states(1)[0].params)
  assert not (step / 'pwned').exists()
  for path in (ROOT / 'omni_jax').rglob('*.py'):
    tree = ast.parse(path.read_text())
    imported = {
      alias.name.split('.')[0]
      for node in ast.walk(tree)
      if isinstance(node, ast.Import)
      for alias in node.names
    }
    imported |= {
      (node.module or '').split('.')[0]
      for node in ast.walk(tree)
      if isinstance(node, ast.ImportFrom)
    }
    assert not imported & {
      'pickle',
      'cloudpickle',
      'dill',
      'joblib',
      'marshal',
      'shelve',
    }, path
    assert 'allow_pickle=True' not in path.read_text(), path


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=9), inner, max_size=3)
  ),
  max_leaves=9,
)


def written(folder, body):
  text = body if isinstance(body, bytes) else json.dumps(body).encode()
  head = json.dumps(
    {'blake2b': hashlib.blake2b(text, digest_size=16).hexdigest()}
  ).encode()
  (pathlib.Path(folder) / 'manifest.json').write_bytes(head + b'\n' + text + b'\n')


@hypothesis.settings(max_examples=150)
@hypothesis.given(
  st.one_of(
    JSON,
    st.binary(max_size=60),
    st.fixed_dictionaries(
      {
        'version': st.just(1),
        'step': JSON,
        'about': JSON,
        'leaves': st.dictionaries(st.text(max_size=5), JSON, max_size=3),
        'files': st.dictionaries(st.text(max_size=5), JSON, max_size=3),
      }
    ),
  )
)
def test_fault_25_a_manifest_of_anything_is_read_or_refused(tmp_path_factory, body):
  folder = tmp_path_factory.mktemp('fuzzed')
  written(folder, body)
  try:
    found = manifest.read(epath.Path(folder))
  except manifest.Damaged:
    return
  assert isinstance(found.step, int) and all(
    isinstance(leaf, manifest.Leaf) for leaf in found.leaves.values()
  )


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.binary(max_size=200))
def test_fault_25_bytes_in_the_place_of_a_manifest_are_refused(tmp_path_factory, data):
  folder = tmp_path_factory.mktemp('fuzzed')
  (folder / 'manifest.json').write_bytes(data)
  with pytest.raises(manifest.Damaged):
    manifest.read(epath.Path(folder))


def test_fault_25_of_another_run_only_what_fits_is_read(tmp_path):
  """config.init_from: what has another shape here is not read at all, be it huge."""
  with Checkpoints(str(tmp_path), 'toy') as checkpoints:
    checkpoints.save(states(1)[0], b'{}')
  some = {
    'params': {
      'scale': jax.ShapeDtypeStruct((64,), jnp.float32, sharding=jnp.ones(1).sharding)
    }
  }
  with Checkpoints(str(tmp_path), 'toy', read_only=True) as checkpoints:
    found, _ = checkpoints.restore_some(some)
  assert same(found, {'params': {'scale': states(1)[0].params['scale']}})


def older(body):
  """As code before digests of 64 bits wrote it."""
  body['version'] = 1
  body['leaves'] = {
    name: [shape, dtype, digest[:8]]
    for name, (shape, dtype, digest) in body['leaves'].items()
  }


def test_fault_25_manifests_of_older_code_are_read_and_their_digests_compared(step):
  forge(step, older)
  assert same(restore(step)['params'], states(1)[0].params)
  forge(
    step,
    lambda body: body['leaves'].update({'params.scale': [[64], 'float32', '0' * 8]}),
  )
  with pytest.raises(
    UserError, match=r'array params\.scale has digest [0-9a-f]{16}, saved was 00000000'
  ):
    restore(step)


@pytest.mark.parametrize('digest', ['', '0' * 8, '0' * 17, 'x' * 16, 'F' * 16])
def test_fault_25_a_digest_of_another_length_compares_with_nothing(step, digest):
  forge(
    step,
    lambda body: body['leaves'].update({'params.scale': [[64], 'float32', digest]}),
  )
  with pytest.raises(UserError, match='is not a digest of params.scale'):
    restore(step)


def test_fault_25_a_step_of_newer_code_is_refused_and_not_put_aside(step):
  forge(step, lambda body: body.update(version=3))
  with (
    pytest.raises(
      UserError,
      match=r'manifest.json of step 1 is of version 3, this code reads \[1, 2\]',
    ),
    Checkpoints(str(step.parents[2]), 'toy') as checkpoints,
  ):
    checkpoints.resume(fresh())
  assert (step / 'manifest.json').exists() and not (step.parent / 'quarantine').exists()
