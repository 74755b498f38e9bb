"""Rectified flow: one convention for training and sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.modalities.image.flow import noised, sample, velocity

DATA, NOISE = jax.random.normal(jax.random.key(0), (2, 3, 4, 4))


def test_zero_is_noise_and_one_is_data():
  np.testing.assert_array_equal(noised(DATA, NOISE, jnp.float32(0)), NOISE)
  np.testing.assert_array_equal(noised(DATA, NOISE, jnp.float32(1)), DATA)
  _, slope = jax.jvp(lambda t: noised(DATA, NOISE, t), (0.3,), (1.0,))
  np.testing.assert_allclose(slope, velocity(DATA, NOISE), rtol=1e-6)


@pytest.mark.parametrize('steps', [1, 2, 7, 50])
def test_the_true_velocity_leads_to_the_data_in_any_number_of_steps(steps):
  straight = sample(lambda x, t: velocity(DATA, NOISE), NOISE, steps=steps)
  np.testing.assert_allclose(straight, DATA, atol=1e-5)
  seen_from_x = sample(lambda x, t: (DATA - x) / (1 - t), NOISE, steps=steps)
  np.testing.assert_allclose(seen_from_x, DATA, atol=1e-4)
