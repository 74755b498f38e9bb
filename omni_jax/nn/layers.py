"""Linear, embedding, RMSNorm and SwiGLU: fp32 weights, computed in the type of their input."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped

from omni_jax import sharding
from omni_jax.sharding import Role

lecun = nnx.initializers.lecun_normal()
zeros = nnx.initializers.zeros_init()
ones = nnx.initializers.ones_init()


def normal(std: float):
  return nnx.initializers.normal(std)


class Linear(nnx.Module):
  """`x @ w (+ b)` over the last axis."""

  def __init__(
    self,
    d_in: int,
    d_out: int,
    axes=('embed', 'mlp'),
    *,
    rngs: nnx.Rngs,
    bias: bool = False,
    init=lecun,
    role: Role = Role.MATRIX,
  ):
    self.w = sharding.param(rngs, (d_in, d_out), axes, init, role)
    self.b = sharding.param(rngs, (d_out,), (None,), zeros, Role.BIAS) if bias else None

  def __call__(self, x: Float[Array, '... d_in']) -> Float[Array, '... d_out']:
    y = x @ self.w[...].astype(x.dtype)
    return y if self.b is None else y + self.b[...].astype(x.dtype)


class Embedding(nnx.Module):
  """Rows of a table by index; an index below 0 gives a row of zeros."""

  def __init__(
    self,
    n: int,
    width: int,
    axes=('vocab', 'embed'),
    *,
    rngs: nnx.Rngs,
    std: float = 0.02,
  ):
    self.table = sharding.param(rngs, (n, width), axes, normal(std), Role.TABLE)

  def __call__(
    self, index: Int[Array, '...'], dtype=jnp.float32
  ) -> Float[Array, '... width']:
    rows = self.table[...][
      jnp.maximum(index, 0)
    ]  # in fp32: so the gradients of a frequent row are summed
    return jnp.where(index[..., None] >= 0, rows, 0).astype(dtype)


def rms_norm(x: Array, eps: float = 1e-6) -> Array:
  """Root-mean-square norm over the last axis, in fp32 (Zhang & Sennrich 2019)."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
  return y.astype(x.dtype)


class RMSNorm(nnx.Module):
  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.scale = sharding.param(rngs, (width,), (None,), ones, Role.NORM)

  def __call__(self, x: Float[Array, '... width']) -> Float[Array, '... width']:
    return rms_norm(x) * self.scale[...].astype(x.dtype)


class SwiGLU(nnx.Module):
  """`down(silu(gate(x)) · up(x))` (Shazeer 2020). Gate and up are two weights, so that both are cut alike."""

  def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
    self.gate = Linear(width, hidden, ('embed', 'mlp'), rngs=rngs)
    self.up = Linear(width, hidden, ('embed', 'mlp'), rngs=rngs)
    self.down = Linear(hidden, width, ('mlp', 'embed'), rngs=rngs)

  def __call__(self, x: Float[Array, '... width']) -> Float[Array, '... width']:
    return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


def gather_rows(
  item_BND: Shaped[Array, 'B N D'], index_BL: Int[Array, 'B L']
) -> Shaped[Array, 'B L D']:
  """item[b, index[b, l]], zeros where the index is below 0."""
  picked_BLD = jnp.take_along_axis(
    item_BND, jnp.maximum(index_BL, 0)[..., None], axis=1
  )
  return jnp.where(index_BL[..., None] >= 0, picked_BLD, 0)
