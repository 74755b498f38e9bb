"""What several commands have in common: help, --mesh.AXIS=N, the package's own configs."""

from collections.abc import Sequence
import os
import sys
from typing import NamedTuple

from absl import flags

from omni_jax.errors import UserError

CONFIG_HELP = (
  'file of the config; --config.KEY=VALUE overrides a key, and configs/base.py lists '
  'all of them'
)

MESH_FLAG = '--mesh.'
# Parents of the package's own configs/: as installed, and in a checkout.
PACKAGE = os.path.dirname(os.path.abspath(__file__))
CONFIG_PARENTS = (PACKAGE, os.path.dirname(PACKAGE))


def show_help(
  values: flags.FlagValues, arguments: Sequence[str], text: str | None = None
) -> None:
  """Prints what a command does and its flags, and exits, if --help is asked for.

  Args:
    values: flags of the command.
    arguments: command line.
    text: what the command does; None for the docstring of the program.
  """
  if not {'--help', '-h'} & set(arguments):
    return
  text = text or sys.modules['__main__'].__doc__ or ''
  print(text.strip())
  is_global = values is flags.FLAGS
  help_text = values.main_module_help() if is_global else values.get_help('', False)
  # The first line of a group names the module that defines its flags.
  lines = [line for line in help_text.splitlines() if line.startswith(' ')]
  print('\nflags:')
  print('\n'.join(lines))
  sys.exit(0)


def own_config(path: str) -> str:
  """Returns the path of a config file, which may be one that came with the package.

  Args:
    path: value of --config. `configs/NAME.py` is the package's own file where the
      current folder has none. What follows a colon is kept: it is an argument of
      `get_config`.
  """
  file = path.partition(':')[0]
  if not file.startswith('configs/') or os.path.exists(file):
    return path
  for parent in CONFIG_PARENTS:
    if os.path.exists(os.path.join(parent, file)):
      return os.path.join(parent, path)
  return path


def with_own_config(arguments: Sequence[str]) -> list[str]:
  """Returns a command line whose --config is a path for `own_config`, resolved."""
  resolved = list(arguments)
  for position, argument in enumerate(arguments):
    flag, equals, path = argument.partition('=')
    if flag not in ('--config', '-config'):
      continue
    if equals:
      resolved[position] = f'{flag}={own_config(path)}'
    elif position + 1 < len(arguments):
      resolved[position + 1] = own_config(arguments[position + 1])
  return resolved


class MeshFlags(NamedTuple):
  """The command line of a command that takes a mesh, in two parts.

  Attributes:
    sizes: sizes of the mesh's axes by name; None if none was given.
    others: arguments that do not concern the mesh.
  """

  sizes: dict[str, int] | None
  others: list[str]


def mesh_flags(arguments: Sequence[str]) -> MeshFlags:
  """Returns the flags of the form --mesh.AXIS=N, and the other arguments.

  Which axes there are is checked where the mesh is made.

  Raises:
    UserError: if a size is not a whole number.
  """
  sizes: dict[str, int] = {}
  others: list[str] = []
  for argument in arguments:
    if not argument.startswith(MESH_FLAG):
      others.append(argument)
      continue
    axis, _, size = argument.removeprefix(MESH_FLAG).partition('=')
    try:
      sizes[axis] = int(size)
    except ValueError as error:
      raise UserError(
        f'{argument}: give --mesh.AXIS=N, such as --mesh.tensor=8'
      ) from error
  return MeshFlags(sizes or None, others)
