"""What a command says when its user made a mistake: one line on stderr, exit code 2, no traceback."""

from collections.abc import Callable
import sys


class UserError(ValueError):
  """Something that the person at the keyboard can mend: the message says what, where, which values, what to do."""


def run_command(main: Callable[[], int | None]) -> None:
  """Runs a command's main; a `UserError` becomes one line on stderr and exit code 2."""
  try:
    code = main() or 0
  except UserError as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    code = 2
  sys.exit(code)
