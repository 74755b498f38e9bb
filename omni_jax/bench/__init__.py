"""What things cost, measured: `python -m omni_jax.bench data …`."""
