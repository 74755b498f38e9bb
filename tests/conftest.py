"""Before jax starts: eight CPU devices, strict shapes and types, a compilation cache that runs and workers share."""

import os
import pathlib
import tempfile

import jaxtyping

# Every annotation of the package is checked while it runs: in tests only, since it costs time.
jaxtyping.install_import_hook('omni_jax', 'typecheck.check')

import jax  # noqa: E402
import pytest  # noqa: E402

CACHE = pathlib.Path(os.environ.get('OMNI_JAX_TEST_CACHE', pathlib.Path(tempfile.gettempdir()) / 'omni_jax_tests'))

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)
