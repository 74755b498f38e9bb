"""The readers of a conversion, one file per input format."""
