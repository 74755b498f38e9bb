"""Public data sets that are read as they lie in ../shared/data, one file per set."""
