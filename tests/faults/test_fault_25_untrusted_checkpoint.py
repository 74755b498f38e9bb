"""Fault 25: a checkpoint from elsewhere is data, never code.

Shapes are checked before memory is allocated, nothing is unpickled, and no path leads
out of the folder.
"""

import ast
import hashlib
import json
import pathlib
import shutil

from etils import epath
from faults.toy import initial_state, model_of, same, state_at
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


def ignore(line):
  """Logs nothing."""


def save(workdir, state):
  """Saves a state and returns the folder of the step."""
  with Checkpoints(str(workdir), 'toy') as checkpoints:
    checkpoints.save(state, b'{}')
  return workdir / 'checkpoints' / 'toy' / '1'


@pytest.fixture
def step_folder(tmp_path):
  """Returns the folder of a saved step."""
  return save(tmp_path, state_at(1))


def write_manifest(folder, body):
  """Writes a manifest with the right digest, as anybody who can write the folder can."""
  digest = hashlib.blake2b(body, digest_size=16).hexdigest()
  head = json.dumps({'blake2b': digest}).encode()
  (pathlib.Path(folder) / 'manifest.json').write_bytes(head + b'\n' + body + b'\n')


def forge(step_folder, change):
  """Applies the function `change` to the manifest of a step."""
  body = json.loads((step_folder / 'manifest.json').read_text().splitlines()[1])
  change(body)
  write_manifest(step_folder, json.dumps(body).encode())


def forge_leaf(step_folder, name, shape, digest):
  """Replaces the entry of an array in the manifest of a step."""
  forge(
    step_folder, lambda body: body['leaves'].update({name: [shape, 'float32', digest]})
  )


def restore(step_folder):
  """Returns the parameters that a reader restores."""
  workdir = str(step_folder.parents[2])  # of WORKDIR/checkpoints/toy/1
  with Checkpoints(workdir, 'toy', read_only=True, say=ignore) as checkpoints:
    model, _ = checkpoints.restore_model(model_of(initial_state()))
    return model['params']


def forbid_reading(monkeypatch):
  """Makes every attempt to read arrays an error."""

  def fail(*_, **__):
    raise AssertionError('an array was read before it was checked')

  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'restore', fail)


@pytest.mark.parametrize('shape', [[1 << 40, 1 << 20], [64, 65], [-1], []], ids=str)
def test_fault_25_a_declared_shape_is_compared_before_any_memory_is_allocated(
  step_folder, monkeypatch, shape
):
  forge_leaf(step_folder, 'params.decoder.w', shape, '0' * 16)
  forbid_reading(monkeypatch)
  message = (
    r'is of another model: 1 of \d+ arrays differs, the first is params\.decoder\.w'
  )
  with pytest.raises(UserError, match=message):
    restore(step_folder)


def add_leaf(body):
  body['leaves']['params.extra'] = [[2], 'float32', '0' * 16]


def remove_leaf(body):
  del body['leaves']['params.scale']


@pytest.mark.parametrize(
  'change, message',
  [
    (add_leaf, r'the first is params\.extra: saved .*, wanted absent'),
    (remove_leaf, r'the first is params\.scale: saved absent'),
  ],
  ids=['unknown', 'missing'],
)
def test_fault_25_an_unknown_or_missing_leaf_is_refused_by_name(
  step_folder, monkeypatch, change, message
):
  forge(step_folder, change)
  forbid_reading(monkeypatch)
  with pytest.raises(UserError, match=message):
    restore(step_folder)


def test_fault_25_files_that_declare_another_shape_than_the_manifest_are_refused(
  tmp_path,
):
  """A giant array is not allocated, although its manifest has the right shape."""
  params = initial_state().params | {'decoder': {'w': jnp.ones((64, 4096))}}
  step_folder = save(
    tmp_path, initial_state()._replace(params=params, step=jnp.int32(1))
  )
  forge_leaf(step_folder, 'params.decoder.w', [64, 64], '0' * 16)
  message = (
    r'no good step .*an array of model cannot be read: .*\(64, 64\) is not compatible '
    r'with the stored shape: \(64, 4096\)'
  )
  with pytest.raises(UserError, match=message):
    restore(step_folder)


@pytest.mark.parametrize(
  'part', ['model', 'model/_METADATA', 'model/manifest.ocdbt', 'model/d']
)
def test_fault_25_links_out_of_the_folder_are_refused(step_folder, tmp_path, part):
  elsewhere = tmp_path / 'elsewhere'
  shutil.move(step_folder / part, elsewhere)
  (step_folder / part).symlink_to(elsewhere)
  with pytest.raises(UserError, match='leads out of the folder'):
    restore(step_folder)


def test_fault_25_names_in_a_manifest_that_lead_out_of_the_folder_are_refused(
  step_folder, tmp_path
):
  (tmp_path / 'secret').write_text('x')
  forge(
    step_folder,
    lambda body: body['files'].update({'model/../../../../secret': [1, '']}),
  )
  with pytest.raises(UserError, match=r'model/\.\./.*secret leads out of the folder'):
    restore(step_folder)


PICKLING = {'pickle', 'cloudpickle', 'dill', 'joblib', 'marshal', 'shelve'}


def packages_imported(tree):
  """Returns the names of the packages that a module imports."""
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names.update(alias.name.split('.')[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      names.add((node.module or '').split('.')[0])
  return names


def test_fault_25_pickles_beside_the_arrays_are_never_opened(step_folder):
  """No module of the package can open a pickle either."""
  bomb = b"cposix\nsystem\n(S'touch " + str(step_folder / 'pwned').encode() + b"'\ntR."
  (step_folder / 'model.pkl').write_bytes(bomb)
  (step_folder / 'model/params.pt').write_bytes(bomb)
  (step_folder / 'model/params.npy').write_bytes(bomb)
  (step_folder / 'iterator/state.pickle').write_bytes(bomb)
  assert same(restore(step_folder), state_at(1).params)
  assert not (step_folder / 'pwned').exists()
  for path in (ROOT / 'omni_jax').rglob('*.py'):
    text = path.read_text()
    assert not packages_imported(ast.parse(text)) & PICKLING, path
    assert 'allow_pickle=True' not in text, path


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)


def lists_and_dicts(inner):
  dicts = st.dictionaries(st.text(max_size=9), inner, max_size=3)
  return st.lists(inner, max_size=3) | dicts


JSON = st.recursive(VALUES, lists_and_dicts, max_leaves=9)
MANIFEST = st.fixed_dictionaries(
  {
    'version': st.just(1),
    'step': JSON,
    'about': JSON,
    'leaves': st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    'files': st.dictionaries(st.text(max_size=5), JSON, max_size=3),
  }
)


@hypothesis.settings(max_examples=150)
@hypothesis.given(st.one_of(JSON, st.binary(max_size=60), MANIFEST))
def test_fault_25_a_manifest_with_any_contents_is_read_or_refused(
  tmp_path_factory, body
):
  folder = tmp_path_factory.mktemp('fuzzed')
  text = body if isinstance(body, bytes) else json.dumps(body).encode()
  write_manifest(folder, text)
  try:
    contents = manifest.read(epath.Path(folder))
  except manifest.Damaged:
    return
  assert isinstance(contents.step, int)
  assert all(isinstance(leaf, manifest.Leaf) for leaf in contents.leaves.values())


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.binary(max_size=200))
def test_fault_25_bytes_in_the_place_of_a_manifest_are_refused(tmp_path_factory, data):
  folder = tmp_path_factory.mktemp('fuzzed')
  (folder / 'manifest.json').write_bytes(data)
  with pytest.raises(manifest.Damaged):
    manifest.read(epath.Path(folder))


def test_fault_25_only_the_arrays_that_fit_are_read_from_another_run(step_folder):
  """For config.init_from, arrays of another shape are not read at all, even if huge."""
  sharding = jnp.ones(1).sharding
  scale = jax.ShapeDtypeStruct((64,), jnp.float32, sharding=sharding)
  with Checkpoints(str(step_folder.parents[2]), 'toy', read_only=True) as checkpoints:
    restored, _ = checkpoints.restore_some({'params': {'scale': scale}})
  assert same(restored, {'params': {'scale': state_at(1).params['scale']}})


def make_older(body):
  """Turns a manifest into one of version 1, whose digests have 32 bits."""
  body['version'] = 1
  for leaf in body['leaves'].values():
    shape, dtype, digest = leaf
    leaf[:] = [shape, dtype, digest[:8]]


def test_fault_25_manifests_of_older_code_are_read_and_their_digests_compared(
  step_folder,
):
  forge(step_folder, make_older)
  assert same(restore(step_folder), state_at(1).params)
  forge_leaf(step_folder, 'params.scale', [64], '0' * 8)
  message = r'array params\.scale has digest [0-9a-f]{16}, but 00000000 was saved'
  with pytest.raises(UserError, match=message):
    restore(step_folder)


@pytest.mark.parametrize('digest', ['', '0' * 8, '0' * 17, 'x' * 16, 'F' * 16])
def test_fault_25_a_digest_of_another_form_is_refused(step_folder, digest):
  forge_leaf(step_folder, 'params.scale', [64], digest)
  with pytest.raises(UserError, match='is not a digest of params.scale'):
    restore(step_folder)


def test_fault_25_a_step_of_newer_code_is_refused_and_stays_where_it_is(step_folder):
  forge(step_folder, lambda body: body.update(version=3))
  message = r'manifest.json of step 1 has version 3, but this code reads \[1, 2\]'
  with (
    pytest.raises(UserError, match=message),
    Checkpoints(str(step_folder.parents[2]), 'toy') as checkpoints,
  ):
    checkpoints.resume(initial_state())
  assert (step_folder / 'manifest.json').exists()
  assert not (step_folder.parent / 'quarantine').exists()
