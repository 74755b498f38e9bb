"""What checks the annotations of the package in tests: beartype, to which an int is a float, as to PEP 484."""

from beartype import beartype, BeartypeConf

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
