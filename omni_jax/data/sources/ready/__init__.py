"""Public data sets that are read directly from ../shared/data, one file per set."""
