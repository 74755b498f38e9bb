"""Rectified flow (Liu et al. 2022): training targets, noise and the sampler.

In training and in sampling, t = 0 is noise and t = 1 is data:
x_t = (1 - t)·noise + t·data, velocity = data - noise.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from omni_jax.modalities.head_loss import UnitLoss
from omni_jax.nn.pool import counts
from omni_jax.types import Stream

# Base of the number that encodes a place: more than the pieces along a side of an item.
PLACES = 1024


class Noise(NamedTuple):
  """The random numbers of a step for a stream: K samples for each item and piece.

  Attributes:
    noise_BKMY: normal noise of each piece.
    t_BKN: time of each item, in [0, 1].
    chance_BKN: uniform number of each item, in [0, 1), which decides what happens to a
      share of the items.
  """

  noise_BKMY: Array
  t_BKN: Array
  chance_BKN: Array


def noised(data: Array, noise: Array, t: Array) -> Array:
  """Returns the point at time t on the straight line from noise to data."""
  return (1 - t) * noise + t * data


def velocity(data: Array, noise: Array) -> Array:
  """Returns the constant velocity along the straight line from noise to data."""
  return data - noise


def item_keys(key_BN: Array, key: Array) -> Array:
  """Returns a random key for each item.

  Args:
    key_BN: uint32 key of each item, as in `Stream`.
    key: random key of the step.
  """

  def fold_in(item_key: Array) -> Array:
    return jax.random.fold_in(key, item_key)

  return jax.vmap(jax.vmap(fold_in))(key_BN)


def piece_noise(
  key: Array, place_M3: Int[Array, '*M 3'], samples: int, values: int
) -> Float[Array, '*M K Y']:
  """Returns normal noise for pieces.

  Args:
    key: key of each piece's item; its shape is that of `place_M3` without the last
      axis.
    place_M3: place of each piece in its item.
    samples: K.
    values: Y.
  """
  time, high, wide = jnp.moveaxis(place_M3, -1, 0)
  number = (time * PLACES + high) * PLACES + wide

  def of_piece(key: Array, number: Array) -> Array:
    return jax.random.normal(jax.random.fold_in(key, number), (samples, values))

  flat = jax.vmap(of_piece)(key.reshape(-1), number.reshape(-1))
  return flat.reshape(*number.shape, samples, values)


def sample_noise(
  stream: Stream, key: Array, *, samples: int, values: int, shift: float
) -> Noise:
  """Returns the noise, times (logit-normal, shifted) and chances of a stream.

  They depend only on `key`, on the item's own key and on the piece's place in it, not
  on where the item is packed.

  Args:
    key: random key of the step.
    samples: K.
    values: Y.
    shift: s of t -> s·t / (1 + (s - 1)·t).
  """

  def of_item(key: Array) -> tuple[Array, Array]:
    time_key, chance_key = jax.random.split(key)
    z = jax.random.normal(time_key, (samples,))
    return z, jax.random.uniform(chance_key, (samples,))

  key_BN = item_keys(stream.key_BN, key)
  z_BNK, chance_BNK = jax.vmap(jax.vmap(of_item))(key_BN)
  t_BNK = jax.nn.sigmoid(z_BNK)
  t_BNK = shift * t_BNK / (1 + (shift - 1) * t_BNK)
  item_BM = jnp.maximum(stream.item_BM - 1, 0)
  key_BM = jnp.take_along_axis(key_BN, item_BM, axis=1)
  noise_BMKY = piece_noise(key_BM, stream.place_BM3, samples, values)
  return Noise(
    noise_BKMY=jnp.moveaxis(noise_BMKY, 2, 1),
    t_BKN=jnp.moveaxis(t_BNK, 2, 1),
    chance_BKN=jnp.moveaxis(chance_BNK, 2, 1),
  )


def flow_loss(error_BKMY: Float[Array, 'B K M Y'], stream: Stream) -> UnitLoss:
  """Returns the squared error of each piece, a mean over values and samples.

  The pieces of an item have a total weight of 1.
  """
  valid_BM = stream.write_at_BM >= 0
  valid_item_BM = jnp.where(valid_BM, stream.item_BM, 0)
  per_item_BN = counts(valid_item_BM, stream.form_BN3.shape[1])
  item_BM = jnp.maximum(stream.item_BM - 1, 0)
  count_BM = jnp.take_along_axis(per_item_BN, item_BM, axis=1)
  weight_BM = jnp.where(valid_BM, 1 / jnp.maximum(count_BM, 1), 0.0)
  error_BM = jnp.square(error_BKMY).mean(axis=3).mean(axis=1)
  loss_BM = jnp.where(valid_BM, error_BM, 0.0) * weight_BM
  return UnitLoss(loss_BM, weight_BM, stream.write_at_BM)


def start_noise(
  key_U: Key[Array, 'U'], place_UM3: Int[Array, 'U M 3'], values: int
) -> Float[Array, 'U M Y']:
  """Returns the noise from which drawing starts.

  Args:
    key_U: key of each item.
    place_UM3: place of each piece in its item.
    values: Y.
  """
  key_UM = jnp.broadcast_to(key_U[:, None], place_UM3.shape[:2])
  return piece_noise(key_UM, place_UM3, 1, values)[:, :, 0]


def sample(
  velocity_fn: Callable[[Array, Array], Array], noise: Array, *, steps: int
) -> Array:
  """Returns the data that Euler steps from t = 0 to t = 1 reach from the noise.

  Args:
    velocity_fn: (x, t) -> velocity, with a scalar t.
  """

  def step(i: Array, x: Array) -> Array:
    return x + velocity_fn(x, i / steps) / steps

  return jax.lax.fori_loop(0, steps, step, noise)


def time_features(t: Float[Array, '*U'], width: int) -> Float[Array, '*U W']:
  """Returns sinusoids of t in [0, 1], as in DDPM with t scaled to 1000."""
  frequency = 10000.0 ** (-jnp.arange(width // 2) / (width // 2))
  angle = 1000 * t[..., None] * frequency
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
