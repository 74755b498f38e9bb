"""Multimodal rotary positions: time, height or width rotates each pair of a head."""

from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np


def sections(head_dim: int) -> np.ndarray:
  """Returns the axis (0 time, 1 height, 2 width) of each of the head_dim/2 frequencies.

  The axes alternate (t, h, t, w, …), so that each has fast and slow frequencies;
  Qwen2-VL uses blocks of 24/20/20 instead, which leaves height and width without the
  fast ones.
  """
  return np.resize([0, 1, 0, 2], head_dim // 2)


def mrope_angles(
  position_BL3: Float[Array, 'B L 3'], head_dim: int, theta: float
) -> Float[Array, 'B L a']:
  """Returns the angles of M-RoPE (Qwen2-VL, arXiv 2409.12191), in fp32."""
  frequency = theta ** (-np.arange(head_dim // 2) / (head_dim // 2))
  position_BLa = position_BL3[..., sections(head_dim)]
  return position_BLa * frequency.astype(np.float32)[None, None]


def rotate(
  x_BLHA: Float[Array, 'B L H A'], angle_BLa: Float[Array, 'B L a']
) -> Float[Array, 'B L H A']:
  """Rotates the pairs (x[i], x[i + A/2]) by the angles (Su et al. 2021)."""
  cos = jnp.cos(angle_BLa)[:, :, None]
  sin = jnp.sin(angle_BLa)[:, :, None]
  a, b = jnp.split(x_BLHA.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return rotated.astype(x_BLHA.dtype)
