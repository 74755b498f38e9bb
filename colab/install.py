"""Installs the packages that the notebooks need and lack: `python colab/install.py`.

A jax that is new enough stays as it is, with the packages that drive its TPU or GPU: pip
may not change them. If jax is missing or too old, it is installed, for the accelerator
that the old one was for.
"""

from collections.abc import Mapping, Sequence
import importlib.metadata
import pathlib
import subprocess
import sys
import tempfile
import tomllib
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

OLDEST_JAX = '0.10.2'
EXTRAS = ('demo', 'eval')
KEPT = ('jax', 'jaxlib', 'libtpu')  # and every plugin, jax-cuda…, jax-rocm…


class Plan(NamedTuple):
  """Packages that pip has to install, and versions that it may not change."""

  missing: list[str]
  kept: list[str]


def plan(wanted: Sequence[str], installed: Mapping[str, str]) -> Plan:
  """Returns what pip has to install, besides what is already installed.

  Args:
    wanted: requirements, as in pyproject.toml.
    installed: installed versions by canonical name.
  """
  new_enough = 'jax' in installed and Version(installed['jax']) >= Version(OLDEST_JAX)
  kept = []
  if new_enough:
    for name, version in sorted(installed.items()):
      if name in KEPT or name.startswith(('jax-cuda', 'jax-rocm')):
        kept.append(f'{name}=={version}')
  missing = []
  for requirement in map(Requirement, wanted):
    name = canonicalize_name(requirement.name)
    if requirement.marker and not requirement.marker.evaluate():
      continue
    if name == 'jax':
      if not new_enough:
        missing.append(f'jax{_accelerator(installed)}>={OLDEST_JAX}')
      continue
    version = installed.get(name)
    if version is None or not requirement.specifier.contains(version, prereleases=True):
      missing.append(f'{requirement.name}{requirement.specifier}')
  return Plan(missing, kept)


def _accelerator(installed: Mapping[str, str]) -> str:
  """Returns the extra of jax for the accelerator whose driver is installed, or ''."""
  if 'libtpu' in installed:
    return '[tpu]'
  cuda = []
  for name in installed:
    if name.startswith('jax-cuda'):
      cuda.append(name.removeprefix('jax-').removesuffix('-plugin'))
  return f'[{min(cuda, key=len)}]' if cuda else ''


def main() -> int:
  """Installs what is missing and returns pip's exit code."""
  text = (pathlib.Path(__file__).parents[1] / 'pyproject.toml').read_text()
  project = tomllib.loads(text)['project']
  wanted = [*project['dependencies'], 'matplotlib']
  for extra in EXTRAS:
    wanted += project['optional-dependencies'][extra]
  installed = {}
  for package in importlib.metadata.distributions():
    if package.name:
      installed[canonicalize_name(package.name)] = package.version
  missing, kept = plan(wanted, installed)
  print(f'kept: {", ".join(kept) or "no jax"}')
  print(f'to install: {", ".join(missing) or "nothing"}')
  if not missing:
    return 0
  with tempfile.NamedTemporaryFile('w', suffix='.txt') as constraints:
    constraints.write('\n'.join(kept))
    constraints.flush()
    pip = [sys.executable, '-m', 'pip', 'install', '-q', *missing]
    return subprocess.run([*pip, '-c', constraints.name], check=False).returncode


if __name__ == '__main__':
  sys.exit(main())
