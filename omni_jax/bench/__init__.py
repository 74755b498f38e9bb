"""Measures the cost of loading and of checkpoints: `python -m omni_jax.bench data …`."""
