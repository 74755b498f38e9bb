"""What checks the annotations of the package in tests: beartype, to which an int is a float, as to PEP 484."""

from collections.abc import Sequence
from typing import Any

from beartype import beartype, BeartypeConf, FrozenDict

# Examples are read when they are looked at, and may be damaged: beartype shall not look at one of them.
LAZY = FrozenDict({Sequence[dict[str, Any]]: Sequence})

check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=LAZY))
