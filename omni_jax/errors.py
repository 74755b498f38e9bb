"""Errors that are not bugs: a user's mistake, and a record that cannot be used."""

from collections.abc import Callable
import re
import sys

# Exit codes: a mistake of the user; saved after SIGTERM, start again (EX_TEMPFAIL); saved
# after ctrl-C.
MISTAKE = 2
PREEMPTED = 75
INTERRUPTED = 130
# The parts of a reason that are specific to one record: quoted text and numbers.
OWN_VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d.,:]*")


class UserError(ValueError):
  """A mistake that the user can fix.

  The message says what is wrong, where, with which values, and what to do.
  """


class BadRecord(ValueError):
  """A record that cannot be used; the loader skips and counts it.

  Attributes:
    reason: human-readable description of what is wrong.
    id: id of the record, or '' where only the medium is known.
    kind: the reason without numbers, names and the path: equal for all records that are
      bad for the same reason, so that they can be counted together.
  """

  def __init__(self, reason: str, id: str = '', kind: str = ''):
    # All three arguments, or the exception could not be unpickled in another process.
    super().__init__(reason, id, kind)
    self.reason = reason
    self.id = id
    self.kind = kind or OWN_VALUES.sub('…', reason)

  def of(self, id: str) -> 'BadRecord':
    """Returns a copy with the record's id, unless the error already has one."""
    return BadRecord(self.reason, self.id or id, self.kind)

  def at(self, path: str) -> 'BadRecord':
    """Returns a copy whose reason starts with the path of the medium concerned."""
    return BadRecord(f'{path}: {self.reason}', self.id, self.kind)

  def __str__(self) -> str:
    return f'{self.id}: {self.reason}' if self.id else self.reason


def one_line(message: object) -> str:
  """Returns an error, or its message, as one line of text."""
  return ' '.join(str(message).split())


def run_command(main: Callable[[], int | None]) -> None:
  """Runs a command's main function and exits with the code that it returns.

  A `UserError` becomes one line on stderr and exit code MISTAKE.
  """
  try:
    code = main() or 0
  except UserError as error:
    print(f'error: {one_line(error)}', file=sys.stderr)
    code = MISTAKE
  sys.exit(code)
