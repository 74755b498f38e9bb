"""Installs what the notebooks need and does not have yet: `python colab/install.py`.

A jax that is new enough stays as it is, with the packages that drive its TPU or GPU: pip
may not touch them. A jax that is missing or too old is installed, for the accelerator
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
  """What pip is told to install, and the versions that it may not change."""

  missing: list[str]
  kept: list[str]


def plan(wanted: Sequence[str], have: Mapping[str, str]) -> Plan:
  """Returns what pip has to install beside the packages that are already there.

  Args:
    wanted: requirements, as in pyproject.toml.
    have: installed versions by canonical name.
  """
  new_enough = 'jax' in have and Version(have['jax']) >= Version(OLDEST_JAX)
  kept = []
  if new_enough:
    for name, version in sorted(have.items()):
      if name in KEPT or name.startswith(('jax-cuda', 'jax-rocm')):
        kept.append(f'{name}=={version}')
  missing = []
  for requirement in map(Requirement, wanted):
    name = canonicalize_name(requirement.name)
    if requirement.marker and not requirement.marker.evaluate():
      continue
    if name == 'jax':
      if not new_enough:
        missing.append(f'jax{_accelerator(have)}>={OLDEST_JAX}')
      continue
    version = have.get(name)
    if version is None or not requirement.specifier.contains(version, prereleases=True):
      missing.append(f'{requirement.name}{requirement.specifier}')
  return Plan(missing, kept)


def _accelerator(have: Mapping[str, str]) -> str:
  """Returns the extra of jax for the accelerator whose driver is installed, or ''."""
  if 'libtpu' in have:
    return '[tpu]'
  cuda = []
  for name in have:
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
  have = {}
  for package in importlib.metadata.distributions():
    if package.name:
      have[canonicalize_name(package.name)] = package.version
  missing, kept = plan(wanted, have)
  print(f'stays: {", ".join(kept) or "no jax"}')
  print(f'installs: {", ".join(missing) or "nothing"}')
  if not missing:
    return 0
  with tempfile.NamedTemporaryFile('w', suffix='.txt') as constraints:
    constraints.write('\n'.join(kept))
    constraints.flush()
    pip = [sys.executable, '-m', 'pip', 'install', '-q', *missing]
    return subprocess.run([*pip, '-c', constraints.name], check=False).returncode


if __name__ == '__main__':
  sys.exit(main())
