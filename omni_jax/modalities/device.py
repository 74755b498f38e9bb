"""What a medium provides on the devices: its embedding, its head, maybe an autoencoder, as rows of a table."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import nnx
from jax import Array

from omni_jax.types import RowBudget, StreamSpec

# (key of the config, size, logical axis): a main dimension that a mesh has to divide.
Size = tuple[str, int, str]


class Parts(NamedTuple):
  """The configs of one medium of a model, and what they are connected to.

  Attributes:
    sizes: of the medium (`config.model.NAME`).
    embed, head: of its networks (`config.model.NAME.embed`, `.head`), or None.
    autoencoder: of its autoencoder (`config.model.AUTOENCODER`), or None.
    streams: by kind.
    width: of the decoder.
  """

  sizes: Any
  embed: Any
  head: Any
  autoencoder: Any
  streams: Mapping[str, StreamSpec]
  width: int


class Flops(NamedTuple):
  """FLOPs of a forward pass over a full batch, 2 per weight and piece that it acts on."""

  embed: float = 0.0
  head: float = 0.0
  autoencoder: float = 0.0  # it is frozen: no gradient


class Trained(NamedTuple):
  """What one pass of an autoencoder's training gives: figures, and statistics for its buffers."""

  metrics: dict[str, Array]
  stats: Any


class Autoencoder(NamedTuple):
  """A network that turns pieces into codes or latents and back. It is trained by a stage of its name, then frozen.

  Attributes:
    name: of the stage, of its part of `config.model`, and of its values in buffers['frozen'].
    config: dataclass of its sizes.
    make: (sizes of the medium, config, rngs) -> module.
    init_buffers: config -> what no optimizer touches, a dict.
    loss: (module, buffers, crops, key) -> (loss, Trained).
    update_buffers: (config, buffers, stats, key) -> buffers.
    encode: (module, buffers, value_BM, item_BM) -> codes or latents of pieces that lie in pools.
    decode: (module, buffers, codes of single items (N, M, …)) -> pieces (N, M, …).
    identity: (sizes, config) -> text of all settings that codes depend on, beside the weights.
    read_buffers: names of the buffers that encoding reads.
    codes: (sizes, config) -> shape of a piece's codes, and their number of values; 0 for latents.
  """

  name: str
  config: type
  make: Callable[[Any, Any, nnx.Rngs], nnx.Module]
  init_buffers: Callable[[Any], dict[str, Any]]
  loss: Callable[[Any, Any, Any, Array], tuple[Array, Trained]]
  update_buffers: Callable[[Any, Any, Any, Array], dict[str, Any]]
  encode: Callable[[Any, Any, Array, Array], Array]
  decode: Callable[[Any, Any, Array], Array]
  identity: Callable[[Any, Any], str]
  read_buffers: Callable[[dict[str, Any]], Any]
  codes: Callable[[Any, Any], tuple[tuple[int, ...], int]]


# Named functions: a table of them can be pickled.
def _no_streams(parts: Parts) -> tuple[str, ...]:
  return ()


def _no_sizes(parts: Parts) -> list[Size]:
  return []


def _no_flops(parts: Parts, budget: RowBudget) -> Flops:
  return Flops()


class Device(NamedTuple):
  """One medium's row of the table.

  A module of `embed` has `read(stream, dtype)`, and where the medium is written `written(value, place, dtype)`; where
  it is written as a block also `queries(place, dtype)`. A module of `head` has `losses(hidden_BLD, stream, key)` and
  `sample(…)` side by side.

  Attributes:
    embed, head: (Parts, rngs) -> module; head may be None: the medium is only read.
    embed_config, head_config: dataclasses of their sizes.
    autoencoder: or None.
    coded: Parts -> kinds of streams that the model takes as the autoencoder's codes.
    sizes: Parts -> main dimensions.
    flops: (Parts, budget) -> Flops.
  """

  embed: Callable[[Parts, nnx.Rngs], nnx.Module]
  head: Callable[[Parts, nnx.Rngs], nnx.Module] | None
  embed_config: type | None = None
  head_config: type | None = None
  autoencoder: Autoencoder | None = None
  coded: Callable[[Parts], tuple[str, ...]] = _no_streams
  sizes: Callable[[Parts], list[Size]] = _no_sizes
  flops: Callable[[Parts, RowBudget], Flops] = _no_flops


def swiglu_weights(width: int, hidden: int) -> int:
  """Returns the weights of a SwiGLU."""
  return 3 * width * hidden
