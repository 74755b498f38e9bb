"""Installs what the notebooks need and does not have yet: `python colab/install.py`.

A jax that is new enough stays as it is, and with it what drives its TPU or GPU: pip may not touch them. One that is
missing or too old is installed, for the accelerator that the old one was for.
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
  """What pip is asked to install, and the versions that it may not change."""

  missing: list[str]
  kept: list[str]


def plan(wanted: Sequence[str], have: Mapping[str, str]) -> Plan:
  """Which of the requirements pip is to install beside the packages that are there.

  Args:
    have: versions by canonical name.
  """
  new_enough = 'jax' in have and Version(have['jax']) >= Version(OLDEST_JAX)
  kept = [
    f'{name}=={version}'
    for name, version in sorted(have.items())
    if new_enough and (name in KEPT or name.startswith(('jax-cuda', 'jax-rocm')))
  ]
  missing = []
  for requirement in map(Requirement, wanted):
    name = canonicalize_name(requirement.name)
    if requirement.marker and not requirement.marker.evaluate():
      continue
    if name == 'jax':
      missing += [] if new_enough else [f'jax{_accelerator(have)}>={OLDEST_JAX}']
    elif name not in have or not requirement.specifier.contains(
      have[name], prereleases=True
    ):
      missing.append(f'{requirement.name}{requirement.specifier}')
  return Plan(missing, kept)


def _accelerator(have: Mapping[str, str]) -> str:
  """The extra of jax for the accelerator whose driver is there."""
  found = [
    name.removeprefix('jax-').removesuffix('-plugin')
    for name in have
    if name.startswith('jax-cuda')
  ]
  return '[tpu]' if 'libtpu' in have else f'[{min(found, key=len)}]' if found else ''


def main() -> int:
  project = tomllib.loads(
    (pathlib.Path(__file__).parents[1] / 'pyproject.toml').read_text()
  )['project']
  wanted = project['dependencies'] + [
    x for extra in EXTRAS for x in project['optional-dependencies'][extra]
  ]
  have = {
    canonicalize_name(d.name): d.version
    for d in importlib.metadata.distributions()
    if d.name
  }
  missing, kept = plan([*wanted, 'matplotlib'], have)
  print(
    f'stays: {", ".join(kept) or "no jax"}\ninstalls: {", ".join(missing) or "nothing"}'
  )
  if not missing:
    return 0
  with tempfile.NamedTemporaryFile('w', suffix='.txt') as constraints:
    constraints.write('\n'.join(kept))
    constraints.flush()
    return subprocess.run(
      [sys.executable, '-m', 'pip', 'install', '-q', *missing, '-c', constraints.name],
      check=False,
    ).returncode


if __name__ == '__main__':
  sys.exit(main())
