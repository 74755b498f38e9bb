"""The device contract of a medium: its embedding, its head and its autoencoder."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import nnx
from jax import Array

from omni_jax.types import RowBudget, StreamSpec

# (config key, size, logical axis): a main dimension, which the mesh must divide.
Size = tuple[str, int, str]


class MediumConfigs(NamedTuple):
  """The configs of one medium of a model, and the sizes of what surrounds it.

  Attributes:
    sizes: config of the medium's sizes (`config.model.NAME`).
    embed: config of its embedding (`config.model.NAME.embed`), or None.
    head: config of its head (`config.model.NAME.head`), or None.
    autoencoder: config of its autoencoder (`config.model.AUTOENCODER`), or None.
    streams: the medium's streams, by kind.
    width: width of the decoder.
  """

  sizes: Any
  embed: Any
  head: Any
  autoencoder: Any
  streams: Mapping[str, StreamSpec]
  width: int


class Flops(NamedTuple):
  """FLOPs of a forward pass over a full batch: 2 per weight and piece.

  Attributes:
    embed: FLOPs of the embedding.
    head: FLOPs of the head.
    autoencoder: FLOPs of the autoencoder, which is frozen and has no backward pass.
  """

  embed: float = 0.0
  head: float = 0.0
  autoencoder: float = 0.0


class TrainOutput(NamedTuple):
  """Results of one training step of an autoencoder besides its loss.

  Attributes:
    metrics: metrics to log, by name.
    stats: statistics of the batch, from which its buffers are updated.
  """

  metrics: dict[str, Array]
  stats: Any


class Autoencoder(NamedTuple):
  """A network that turns pieces into codes or latents and back.

  A training stage of the same name trains it; afterwards it is frozen.

  Attributes:
    name: name of the stage, of its section of `config.model`, and of its values in
      buffers['frozen'].
    config: dataclass of its sizes.
    make: (sizes of the medium, config, rngs) -> module.
    init_buffers: config -> dict of the values that no optimizer touches.
    loss: (module, buffers, crops, key) -> (loss, TrainOutput).
    update_buffers: (config, buffers, stats, key) -> buffers.
    encode: (module, buffers, value_BM, item_BM) -> codes or latents of pieces in pools.
    decode: (module, buffers, codes of single items (N, M, …)) -> pieces (N, M, …).
    identity: (sizes, config) -> text of all settings, beside the weights, that the
      codes depend on.
    read_buffers: buffers -> those that encoding reads.
    codes: (sizes, config) -> (shape of a piece's codes, number of values of a code);
      the number is 0 for latents.
  """

  name: str
  config: type
  make: Callable[[Any, Any, nnx.Rngs], nnx.Module]
  init_buffers: Callable[[Any], dict[str, Any]]
  loss: Callable[[Any, Any, Any, Array], tuple[Array, TrainOutput]]
  update_buffers: Callable[[Any, Any, Any, Array], dict[str, Any]]
  encode: Callable[[Any, Any, Array, Array], Array]
  decode: Callable[[Any, Any, Array], Array]
  identity: Callable[[Any, Any], str]
  read_buffers: Callable[[dict[str, Any]], Any]
  codes: Callable[[Any, Any], tuple[tuple[int, ...], int]]


# The defaults of a row are named functions, so that the table can be pickled.
def _no_streams(parts: MediumConfigs) -> tuple[str, ...]:
  return ()


def _no_sizes(parts: MediumConfigs) -> list[Size]:
  return []


def _no_flops(parts: MediumConfigs, budget: RowBudget) -> Flops:
  return Flops()


class Device(NamedTuple):
  """One medium's row of the device table.

  The module that `embed` returns has `read(stream, dtype)`. If the medium can be
  written, it also has `written(value, place, dtype)`, and if it is written as a block,
  `queries(place, dtype)` too. The module that `head` returns has
  `losses(hidden_BLD, stream, key)` and `sample(…)` side by side.

  Attributes:
    embed: (MediumConfigs, rngs) -> module.
    head: (MediumConfigs, rngs) -> module; None if the medium is only read.
    embed_config: dataclass of the embedding's sizes, or None.
    head_config: dataclass of the head's sizes, or None.
    autoencoder: autoencoder of the medium, or None.
    coded: MediumConfigs -> kinds of the streams that the model takes as codes of the
      autoencoder.
    sizes: MediumConfigs -> main dimensions.
    flops: (MediumConfigs, budget) -> Flops.
  """

  embed: Callable[[MediumConfigs, nnx.Rngs], nnx.Module]
  head: Callable[[MediumConfigs, nnx.Rngs], nnx.Module] | None
  embed_config: type | None = None
  head_config: type | None = None
  autoencoder: Autoencoder | None = None
  coded: Callable[[MediumConfigs], tuple[str, ...]] = _no_streams
  sizes: Callable[[MediumConfigs], list[Size]] = _no_sizes
  flops: Callable[[MediumConfigs, RowBudget], Flops] = _no_flops


def swiglu_weights(width: int, hidden: int) -> int:
  """Returns the number of weights of a SwiGLU."""
  return 3 * width * hidden
