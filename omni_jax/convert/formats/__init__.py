"""What a conversion can read; each reader is one file."""
