"""Linear, Embedding, RMSNorm and SwiGLU: fp32 weights, computed in the input's type."""

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


def normal(std: float) -> nnx.Initializer:
  """Returns an initializer that draws from a normal distribution around 0."""
  return nnx.initializers.normal(std)


class Linear(nnx.Module):
  """`x @ w (+ b)` over the last axis."""

  def __init__(
    self,
    d_in: int,
    d_out: int,
    axes: tuple[str | None, str | None] = ('embed', 'mlp'),
    *,
    rngs: nnx.Rngs,
    bias: bool = False,
    init: nnx.Initializer = lecun,
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
    axes: tuple[str | None, str | None] = ('vocab', 'embed'),
    *,
    rngs: nnx.Rngs,
    std: float = 0.02,
  ):
    self.table = sharding.param(rngs, (n, width), axes, normal(std), Role.TABLE)

  def __call__(
    self, index: Int[Array, '...'], dtype: jax.typing.DTypeLike = jnp.float32
  ) -> Float[Array, '... width']:
    # Gathered in fp32, so that the gradients of a frequent row are summed in fp32.
    rows = self.table[...][jnp.maximum(index, 0)]
    return jnp.where(index[..., None] >= 0, rows, 0).astype(dtype)


def rms_norm(x: Array, eps: float = 1e-6) -> Array:
  """Returns x over its root mean square along the last axis, computed in fp32.

  The norm is that of Zhang & Sennrich (2019); the result has the type of x.
  """
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
  return y.astype(x.dtype)


class RMSNorm(nnx.Module):
  """`rms_norm` times a learned scale per column."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.scale = sharding.param(rngs, (width,), (None,), ones, Role.NORM)

  def __call__(self, x: Float[Array, '... width']) -> Float[Array, '... width']:
    return rms_norm(x) * self.scale[...].astype(x.dtype)


class SwiGLU(nnx.Module):
  """`down(silu(gate(x)) · up(x))` (Shazeer 2020).

  Gate and up are two weights, so that both are split over devices in the same way.
  """

  def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
    self.gate = Linear(width, hidden, ('embed', 'mlp'), rngs=rngs)
    self.up = Linear(width, hidden, ('embed', 'mlp'), rngs=rngs)
    self.down = Linear(hidden, width, ('mlp', 'embed'), rngs=rngs)

  def __call__(self, x: Float[Array, '... width']) -> Float[Array, '... width']:
    return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


def gather_rows(
  item_BND: Shaped[Array, 'B N D'], index_BL: Int[Array, 'B L']
) -> Shaped[Array, 'B L D']:
  """Returns item[b, index[b, l]], with zeros where the index is below 0."""
  index_BL1 = jnp.maximum(index_BL, 0)[..., None]
  picked_BLD = jnp.take_along_axis(item_BND, index_BL1, axis=1)
  return jnp.where(index_BL[..., None] >= 0, picked_BLD, 0)
