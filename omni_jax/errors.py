"""What goes wrong outside of the code: a user's mistake, and a record that cannot be used."""

from collections.abc import Callable
import re
import sys

OWN_VALUES = re.compile(
  r"'[^']*'|\"[^\"]*\"|\d[\d.,:]*"
)  # in a reason, what is said of this record only


class UserError(ValueError):
  """Something that the person at the keyboard can mend: the message says what, where, which values, what to do."""


class BadRecord(ValueError):
  """A record that cannot be used; the loader skips and counts it.

  Attributes:
    reason: what is wrong, for a person.
    id: the record's id, or '' where only the medium is known.
    kind: what records that are bad for the same reason have in common: without numbers, names and the path.
  """

  def __init__(self, reason: str, id: str = '', kind: str = ''):
    # All three, or the exception would not survive the pickling between worker processes.
    super().__init__(reason, id, kind)
    self.reason = reason
    self.id = id
    self.kind = kind or OWN_VALUES.sub('…', reason)

  def of(self, id: str) -> 'BadRecord':
    """Returns the same error with the record's id, where that was not known yet."""
    return BadRecord(self.reason, self.id or id, self.kind)

  def at(self, path: str) -> 'BadRecord':
    """Returns the same error with the name of the medium that it is about."""
    return BadRecord(f'{path}: {self.reason}', self.id, self.kind)

  def __str__(self) -> str:
    return f'{self.id}: {self.reason}' if self.id else self.reason


def run_command(main: Callable[[], int | None]) -> None:
  """Runs a command's main; a `UserError` becomes one line on stderr and exit code 2."""
  try:
    code = main() or 0
  except UserError as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    code = 2
  sys.exit(code)
