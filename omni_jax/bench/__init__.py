"""Measures what loading and checkpoints cost: `python -m omni_jax.bench data …`."""
