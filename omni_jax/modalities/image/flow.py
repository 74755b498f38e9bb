"""Rectified flow (Liu et al. 2022): what is between noise and data, and the way from one to the other.

t = 0 is noise, t = 1 is data, in training and in sampling: x_t = (1 - t)·noise + t·data, velocity = data - noise.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Bool, Float, UInt

from omni_jax.modalities.head_loss import HeadLoss
from omni_jax.modalities.image.embed import patchify
from omni_jax.types import ImageConfig


class Noised(NamedTuple):
  """The images of a batch as a step sees them: K samples of noise and time for each image."""

  x_BNKPY: Array  # patches between noise and data
  velocity_BNKPY: Array  # what is to be predicted
  t_BNK: Array
  chance_BNK: Array  # even in [0, 1), for whatever happens to a share of the samples


def noised(data: Array, noise: Array, t: Array) -> Array:
  return (1 - t) * noise + t * data


def velocity(data: Array, noise: Array) -> Array:
  return data - noise


def noise_images(
  drawn_BNhwc: Float[Array, 'B N h w c'],
  draw_key_BN: UInt[Array, 'B N'],
  key: Array,
  image: ImageConfig,
  *,
  samples: int,
  shift: float,
) -> Noised:
  """Noise, time (logit-normal, shifted) and chance depend on `key` (the step's) and the image's own key only."""
  b, n = draw_key_BN.shape

  def draw(k):
    k_noise, k_time, k_chance = jax.random.split(jax.random.fold_in(key, k), 3)
    return (
      jax.random.normal(k_noise, (samples, image.patches, image.values)),
      jax.random.normal(k_time, (samples,)),
      jax.random.uniform(k_chance, (samples,)),
    )

  noise, z, chance = (
    x.reshape(b, n, *x.shape[1:]) for x in jax.vmap(draw)(draw_key_BN.reshape(-1))
  )
  t = jax.nn.sigmoid(z)
  t = shift * t / (1 + (shift - 1) * t)
  data = patchify(drawn_BNhwc, image)[:, :, None]
  return Noised(
    noised(data, noise, t[..., None, None]), velocity(data, noise), t, chance
  )


def flow_loss(
  error_BNKPY: Float[Array, 'B N K P Y'], valid_BNP: Bool[Array, 'B N P']
) -> HeadLoss:
  """Squared error, mean over the values of an image and its samples, summed over images."""
  per_patch = jnp.where(
    valid_BNP[:, :, None], jnp.square(error_BNKPY).mean(axis=-1), 0
  ).mean(axis=2)
  per_image = per_patch.sum(axis=-1) / jnp.maximum(valid_BNP.sum(axis=-1), 1)
  return HeadLoss(per_image.sum(), valid_BNP.any(axis=-1).sum().astype(jnp.float32))


def start_noise(key_U: Array, image: ImageConfig) -> Float[Array, 'U P Y']:
  """Where drawing begins; one key for each image."""
  return jax.vmap(lambda k: jax.random.normal(k, (image.patches, image.values)))(key_U)


def sample(
  velocity_fn: Callable[[Array, Array], Array], noise: Array, *, steps: int
) -> Array:
  """Euler from t = 0 to t = 1; `velocity_fn(x, t)` with scalar t."""

  def step(i, x):
    return x + velocity_fn(x, i / steps) / steps

  return jax.lax.fori_loop(0, steps, step, noise)


def time_features(t_U: Float[Array, 'U'], width: int) -> Float[Array, 'U W']:
  """Sinusoids of t in [0, 1], as in DDPM with t scaled to 1000."""
  frequency = 10000.0 ** (-jnp.arange(width // 2) / (width // 2))
  angle = 1000 * t_U[:, None] * frequency
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
