"""What the commands with absl flags have in common: their help."""

from collections.abc import Sequence
import sys

from absl import flags

CONFIG_HELP = (
  'file of the config; --config.KEY=VALUE overrides a key, and configs/base.py lists '
  'all of them'
)


def show_help(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  """Prints what a command does and its flags, and exits, if --help is asked for.

  Args:
    values: flags of the command.
    arguments: command line.
  """
  if not {'--help', '-h'} & set(arguments):
    return
  text = sys.modules['__main__'].__doc__ or ''
  print(text.strip())
  is_global = values is flags.FLAGS
  help_text = values.main_module_help() if is_global else values.get_help('', False)
  # The first line of a group names the module that defines its flags.
  lines = [line for line in help_text.splitlines() if line.startswith(' ')]
  print('\nflags:')
  print('\n'.join(lines))
  sys.exit(0)
