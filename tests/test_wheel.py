"""A wheel has every module, the configs and the command, and works without a checkout."""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

from packaging.version import Version
import pytest
import samples

IS_OLD = Version(importlib.metadata.version('setuptools')) < Version('77')
SOURCES = ('omni_jax', 'configs', 'pyproject.toml', 'setup.py', 'README.md', 'LICENSE')

pytestmark = pytest.mark.skipif(
  IS_OLD, reason="needs the setuptools of the extra 'dev'"
)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> pathlib.Path:
  """Returns the wheel of this checkout, built from a copy: a build leaves files."""
  folder = tmp_path_factory.mktemp('wheel')
  for name in SOURCES:
    source = samples.ROOT / name
    if source.is_dir():
      ignore = shutil.ignore_patterns('__pycache__')
      shutil.copytree(source, folder / 'tree' / name, ignore=ignore)
    else:
      shutil.copy(source, folder / 'tree' / name)
  pip = [
    sys.executable,
    '-m',
    'pip',
    'wheel',
    '-q',
    '--no-deps',
    '--no-build-isolation',
  ]
  subprocess.run([*pip, '-w', folder, folder / 'tree'], check=True)
  (file,) = folder.glob('*.whl')
  return file


def test_the_wheel_has_all_modules_and_configs(wheel):
  expected = {'omni_jax/py.typed'}
  for path in (samples.ROOT / 'omni_jax').rglob('*.py'):
    expected.add(path.relative_to(samples.ROOT).as_posix())
  for path in (samples.ROOT / 'configs').glob('*.py'):
    expected.add(f'omni_jax/configs/{path.name}')
  with zipfile.ZipFile(wheel) as archive:
    files = {name for name in archive.namelist() if '.dist-info/' not in name}
    (scripts,) = [name for name in archive.namelist() if name.endswith('points.txt')]
    assert 'omni-jax = omni_jax.cli:main' in archive.read(scripts).decode()
  assert files == expected


def test_configs_are_found_without_a_checkout(wheel, tmp_path):
  """`--config=configs/omni_1b.py:text` in an empty folder, with the wheel unpacked."""
  site = tmp_path / 'site'
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(site)
  (tmp_path / 'empty').mkdir()
  program = (
    'import omni_jax; from omni_jax.train.__main__ import parse; '
    'print(omni_jax.__file__, parse()[0].model.decoder.width)'
  )
  flags = ['--config=configs/omni_1b.py:text', '--workdir=w', '--config.seed=3']
  result = subprocess.run(
    [sys.executable, '-c', program, *flags],
    cwd=tmp_path / 'empty',
    env=os.environ | {'PYTHONPATH': str(site)},
    capture_output=True,
    text=True,
  )
  assert result.stdout.split() == [str(site / 'omni_jax' / '__init__.py'), '2048'], (
    result.stderr
  )
