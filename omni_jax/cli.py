"""The command `omni-jax`: `omni-jax train …` is `python -m omni_jax.train …`."""

from collections.abc import Sequence
import os
import sys

from omni_jax.errors import run_command, UserError

# Names of the modules that are commands, and what each does.
COMMANDS = {
  'train': 'trains all stages of a run',
  'evaluate': 'scores a checkpoint and writes the report',
  'generate': 'answers a prompt with text, images and speech',
  'convert': 'converts your own data, or a ready data set, to ArrayRecord',
  'inspect_data': 'shows what a batch holds, as a page',
  'compile': 'reports memory, FLOPs and step time of a run on a TPU, without one',
  'bench': 'measures data loading, and the train step beside PyTorch',
}


def usage() -> str:
  """Returns the help: every command with a line of its own."""
  width = max(map(len, COMMANDS))
  lines = ['usage: omni-jax COMMAND [flags]', '']
  for name, description in COMMANDS.items():
    lines.append(f'  {name:{width}}  {description}')
  lines.append('')
  lines.append('omni-jax COMMAND --help lists the flags of a command.')
  return '\n'.join(lines)


def command(arguments: Sequence[str]) -> list[str]:
  """Returns the command line that takes the place of `omni-jax ARGUMENTS`.

  Raises:
    UserError: if the first argument is not a command.
  """
  name, *flags = arguments or ['']
  if name not in COMMANDS:
    given = f'{name!r} is unknown' if name else 'a command is missing'
    raise UserError(
      f'omni-jax: {given}; give one of {", ".join(COMMANDS)} '
      '(omni-jax --help describes them)'
    )
  return [sys.executable, '-m', f'omni_jax.{name}', *flags]


def run() -> None:
  arguments = sys.argv[1:]
  if arguments and arguments[0] in ('-h', '--help', 'help'):
    print(usage())
    return
  # Replaces this process, so that signals reach the command and its exit code is ours.
  os.execv(sys.executable, command(arguments))


def main() -> None:
  run_command(run)


if __name__ == '__main__':
  main()
