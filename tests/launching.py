"""Runs the scripts of launch/ as a user would, in a clean environment."""

import os
import pathlib
import subprocess

LAUNCH = pathlib.Path(__file__).parent.parent / 'launch'
# Variables that a developer may have set and that change what the scripts do.
VARIABLES = ('TPU', 'ZONE', 'TYPE', 'SPOT', 'SLICES', 'PROJECT', 'RUNTIME', 'EXTRAS')
VARIABLES += ('SOURCE', 'DRY_RUN', 'PYTHON', 'PROCESSES', 'NAME', 'IMAGE', 'CLUSTER')
VARIABLES += ('TOPOLOGY', 'HOSTS', 'CHIPS', 'ACCELERATOR', 'SERVICE_ACCOUNT')


def environment(**variables: str) -> dict[str, str]:
  """Returns the environment of the tests with only these variables of the scripts."""
  kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
  return kept | variables


def run(
  script: str, *arguments: str, folder: pathlib.Path = LAUNCH, **variables: str
) -> subprocess.CompletedProcess:
  """Runs a launch script.

  Args:
    script: name of the script.
    folder: folder of the script, a copy of launch/ or itself.
    variables: the variables of the scripts that are set.
  """
  return subprocess.run(
    ['bash', folder / script, *arguments],
    env=environment(**variables),
    capture_output=True,
    text=True,
  )


def executable(path: pathlib.Path, script: str) -> str:
  """Writes a bash script that takes the place of a program; returns its path."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/bin/bash\n{script}\n')
  path.chmod(0o755)
  return str(path)
