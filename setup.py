"""Installs configs/ with the package, as omni_jax/configs; all else is in pyproject.toml.

pyproject.toml cannot name a folder outside of the package without listing every
sub-package as well.
"""

from setuptools import find_namespace_packages, setup

setup(
  packages=[*find_namespace_packages(include=['omni_jax*']), 'omni_jax.configs'],
  package_dir={'omni_jax.configs': 'configs'},
)
