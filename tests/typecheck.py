"""Configures beartype, which checks the annotations of the package in tests.

As in PEP 484, an int passes for a float.
"""

from collections.abc import Sequence
from typing import Any

from beartype import beartype, BeartypeConf, FrozenDict

# Examples are read lazily and may be damaged, so beartype must not access their items.
LAZY = FrozenDict({Sequence[dict[str, Any]]: Sequence})

check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=LAZY))
