"""Public data sets that are read as they lie in ../shared/data; each is one file."""
