"""OmniModel: embed -> decoder -> heads, and the losses of a batch. It knows streams, and of media only their tables."""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int

from omni_jax import sharding
from omni_jax.config import dataclass_of, media_sizes
from omni_jax.errors import UserError
from omni_jax.modalities.contract import Codes
from omni_jax.modalities.device import Parts, Size
from omni_jax.modalities.devices import TABLES, Tables
from omni_jax.modalities.head_loss import HeadLoss, UnitLoss
from omni_jax.modalities.hosts import Hosts, TEXT
from omni_jax.modalities.text.embed import TextEmbed
from omni_jax.modalities.text.head import TextHead
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig
from omni_jax.nn.decoder import Decoded, Decoder, DecoderConfig
from omni_jax.nn.layers import gather_rows
from omni_jax.nn.moe_router import RouterStats
from omni_jax.types import Batch, StreamSpec

DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True, eq=False)
class ModelConfig:
  """Everything that fixes the shapes of the network.

  Attributes:
    tokenizer, decoder: of text and of the decoder.
    media: sizes by medium; a medium that is not named is not there.
    embeds, heads: configs of their networks, by medium.
    autoencoders: by name.
    dtype: of the computation.
    weights: of what is trained and of its moments; half the memory, but small updates are lost.
    tables: of the media that there can be.
  """

  tokenizer: TokenizerConfig = TokenizerConfig()
  decoder: DecoderConfig = DecoderConfig()
  media: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  embeds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  heads: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  autoencoders: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  dtype: str = 'float32'
  weights: str = 'float32'
  tables: Tables = TABLES

  @classmethod
  def from_config(cls, config: Any, tables: Tables = TABLES) -> 'ModelConfig':
    """Returns the model of the `model` part of a run's ConfigDict.

    Raises:
      UserError: for a name or a value that a part does not take.
    """
    known = {'tokenizer', 'decoder', 'dtype', 'weights'}
    known |= set(tables.devices) | set(tables.autoencoders())
    if unknown := sorted(set(config) - known):
      raise UserError(
        f'config.model: {unknown} is unknown; its parts are {sorted(known)}'
      )
    types = {name: config.get(name, 'float32') for name in ('dtype', 'weights')}
    for name, value in types.items():
      if value not in DTYPES:
        raise UserError(
          f'config.model.{name}={value!r} is unknown; it is one of {DTYPES}'
        )
    media = [name for name in tables.devices if name in config]
    decoder = _part(DecoderConfig, config, 'decoder')
    return cls(
      tokenizer=_part(TokenizerConfig, config, 'tokenizer'),
      decoder=dataclasses.replace(decoder, modalities=1 + len(tables.hosts)),
      media=media_sizes(config, tables.hosts),
      embeds={name: _network(config, tables, name, 'embed') for name in media},
      heads={name: _network(config, tables, name, 'head') for name in media},
      autoencoders={
        name: _part(row.config, config, name)
        for name, (medium, row) in tables.autoencoders().items()
        if medium in media
      },
      tables=tables,
      **types,
    )

  def hosts(self, stored: Mapping[str, Codes] | None = None) -> Hosts:
    """Returns the numpy side of the media.

    Args:
      stored: by stream, codes that batches carry in the place of payloads.
    """
    tokenizer = Tokenizer(self.tokenizer)
    return Hosts(self.media, tokenizer, self.tables.hosts, stored)

  def parts(self, medium: str) -> Parts:
    """Returns the configs of one medium."""
    device = self.tables.devices[medium]
    specs = {
      spec.name.partition('.')[2]: spec
      for spec in self.hosts().streams
      if spec.medium == medium
    }
    name = device.autoencoder.name if device.autoencoder else ''
    return Parts(
      self.media[medium],
      self.embeds[medium],
      self.heads[medium],
      self.autoencoders.get(name),
      specs,
      self.decoder.width,
    )

  def coded(self) -> dict[str, str]:
    """Returns stream -> autoencoder, of the streams that the model takes as codes."""
    found = {}
    for medium in self.media:
      device = self.tables.devices[medium]
      if device.autoencoder:
        for kind in device.coded(self.parts(medium)):
          found[f'{medium}.{kind}'] = device.autoencoder.name
    return found

  def codes_of(self, autoencoder: str) -> Codes:
    """Returns what an autoencoder makes of a piece."""
    medium, row = self.tables.autoencoders()[autoencoder]
    return Codes(*row.codes(self.media[medium], self.autoencoders[autoencoder]))

  def stored_codes(self) -> dict[str, Codes]:
    """Returns what the streams of codes carry where the codes are stored."""
    return {stream: self.codes_of(name) for stream, name in self.coded().items()}


def _part(kind: type, config: Any, name: str) -> Any:
  return dataclass_of(kind, config[name], f'model.{name}') if name in config else kind()


def _network(config: Any, tables: Tables, medium: str, name: str) -> Any:
  kind = getattr(tables.devices[medium], f'{name}_config')
  if kind is None:
    return None
  part = config[medium].get(name)
  return kind() if part is None else dataclass_of(kind, part, f'model.{medium}.{name}')


def main_sizes(c: ModelConfig) -> list[Size]:
  """Returns (config key, size, logical axis) of the dimensions that a mesh has to divide; small ones stay whole.

  Heads rather than the columns of their projections: half a head on a device would be exchanged in every layer; those
  of keys are repeated where there are too few. The vocabulary is not among them: it is what the tokenizer makes it.
  """
  d = c.decoder
  sizes: list[Size] = [
    ('config.model.decoder.width', d.width, 'expert_embed'),
    ('config.model.decoder.heads', d.heads, 'heads'),
    ('config.model.decoder.experts', d.experts, 'expert'),
    ('config.model.decoder.expert_hidden', d.expert_hidden, 'mlp'),
  ]
  if d.shared_hidden:
    sizes.append(('config.model.decoder.shared_hidden', d.shared_hidden, 'mlp'))
  for medium in c.media:
    sizes += c.tables.devices[medium].sizes(c.parts(medium))
  return sizes


class OmniModel(nnx.Module):
  """One causal decoder, an embedding and a head per medium."""

  def __init__(self, c: ModelConfig, *, rngs: nnx.Rngs):
    self.config = c
    vocab, width = Tokenizer(c.tokenizer).vocab_size, c.decoder.width
    embeds: dict[str, nnx.Module] = {TEXT: TextEmbed(vocab, width, rngs=rngs)}
    for medium in c.media:
      embeds[medium] = c.tables.devices[medium].embed(c.parts(medium), rngs)
    self.embeds = nnx.Dict(embeds)
    self.decoder = Decoder(c.decoder, rngs=rngs)
    heads: dict[str, nnx.Module] = {TEXT: TextHead(width, vocab, rngs=rngs)}
    for medium in c.media:
      if make := c.tables.devices[medium].head:
        heads[medium] = make(c.parts(medium), rngs)
    self.heads = nnx.Dict(heads)
    self.streams: tuple[StreamSpec, ...] = c.hosts().streams

  def embed(self, batch: Batch) -> Float[Array, 'B L D']:
    """Returns the sum of the payloads present at each position.

    Args:
      batch: its coded streams hold codes, see `encode_streams`.
    """
    dtype = jnp.dtype(self.config.dtype)
    x_BLD = self.embeds[TEXT](batch.token_BL, dtype)
    for spec in self.streams:
      stream = batch.streams[spec.name]
      if not stream.item_BM.size:
        continue
      embed = self.embeds[spec.medium]
      pieces = (stream.value_BM, stream.place_BM3, dtype)
      piece_BMD = embed.written(*pieces) if spec.written else embed.read(stream, dtype)
      x_BLD += gather_pool(piece_BMD, stream.at_BL)
      if spec.queries:
        query_BMD = embed.queries(stream.place_BM3, dtype)
        x_BLD += gather_pool(query_BMD, stream.query_at_BL)
    return sharding.shard(x_BLD, 'batch', 'length', 'act_embed')

  def __call__(self, batch: Batch, bias_IE: Float[Array, 'I E'], mesh: Mesh) -> Decoded:
    return self.decoder(
      self.embed(batch),
      batch.segment_BL,
      batch.modality_BL,
      batch.position_BL3,
      bias_IE,
      mesh,
    )

  def losses(
    self, hidden_BLD: Float[Array, 'B L D'], batch: Batch, key: Array, mesh: Mesh
  ) -> dict[str, HeadLoss]:
    """Returns the loss of every head over the batch."""
    text = self.heads[TEXT]
    losses = {TEXT: text.loss(hidden_BLD, batch.target_BL, batch.weight_BL, mesh)}
    for medium, units in self._written(hidden_BLD, batch, key).items():
      losses[medium] = units.summed() if units else HeadLoss(_none(), _none())
    return losses

  def segment_losses(
    self, hidden_BLD: Float[Array, 'B L D'], batch: Batch, key: Array, *, segments: int
  ) -> dict[str, HeadLoss]:
    """Returns the loss of every head over each segment of each row, as (B, S): for preferences between answers."""
    text = self.heads[TEXT].losses(hidden_BLD, batch.target_BL, batch.weight_BL)
    losses = {TEXT: text.by_segment(batch.segment_BL, segments)}
    for medium, units in self._written(hidden_BLD, batch, key).items():
      if units:
        losses[medium] = units.by_segment(batch.segment_BL, segments)
    return losses

  def _written(
    self, hidden_BLD: Array, batch: Batch, key: Array
  ) -> dict[str, UnitLoss | None]:
    """Returns the losses of the pieces that are written, by medium; None where rows have no room for any."""
    losses: dict[str, UnitLoss | None] = {}
    for spec in self.streams:
      if spec.written:
        stream = batch.streams[spec.name]
        head = self.heads[spec.medium]
        losses[spec.medium] = None
        if stream.item_BM.size:
          pools = (len(stream.item_BM), -1, hidden_BLD.shape[-1])
          losses[spec.medium] = head.losses(hidden_BLD.reshape(pools), stream, key)
    return losses


def gather_pool(
  piece_PMD: Float[Array, 'P M D'], at_BL: Int[Array, 'B L']
) -> Float[Array, 'B L D']:
  """Returns the pieces that positions carry, zeros where there is none; rows may share a pool."""
  rows, length = at_BL.shape
  at_PL = at_BL.reshape(len(piece_PMD), -1)
  return gather_rows(piece_PMD, at_PL).reshape(rows, length, -1)


def _none() -> Array:
  return jnp.zeros((), jnp.float32)


def abstract(config: ModelConfig) -> OmniModel:
  """Returns the model with shapes in place of arrays: nothing is computed."""
  return nnx.eval_shape(lambda: OmniModel(config, rngs=nnx.Rngs(0)))


def abstract_autoencoder(config: ModelConfig, name: str) -> nnx.Module:
  """Returns an autoencoder with shapes in place of arrays."""
  medium, row = config.tables.autoencoders()[name]
  sizes, own = config.media[medium], config.autoencoders[name]
  return nnx.eval_shape(lambda: row.make(sizes, own, nnx.Rngs(0)))


def merge(model: nnx.Module, params: dict[str, Any]) -> Any:
  """Returns an abstract model with the arrays of a pure dict in the place of its shapes."""
  graph, state = nnx.split(model)
  nnx.replace_by_pure_dict(state, params)
  return nnx.merge(graph, state)


def encode_pieces(
  config: ModelConfig, name: str, values: Any, value_BM: Array, item_BM: Array
) -> Array:
  """Returns the codes of pools of pieces.

  Args:
    name: of the autoencoder.
    values: its 'params' and 'buffers'.
  """
  _, row = config.tables.autoencoders()[name]
  module = merge(abstract_autoencoder(config, name), values['params'])
  return row.encode(module, values['buffers'], value_BM, item_BM)


def decode_pieces(config: ModelConfig, name: str, values: Any, code_NM: Array) -> Array:
  """Returns the pieces of items given as codes, one item a row."""
  _, row = config.tables.autoencoders()[name]
  module = merge(abstract_autoencoder(config, name), values['params'])
  return row.decode(module, values['buffers'], code_NM)


def encode_streams(
  config: ModelConfig, frozen: Mapping[str, Any], batch: Batch
) -> Batch:
  """Returns the batch with codes in the streams that the model takes as codes, as far as it does not carry them.

  Args:
    frozen: values of the autoencoders, by name; no gradient flows into them.
  """
  plain = {spec.name: spec for spec in config.hosts().streams}
  streams = dict(batch.streams)
  for name, autoencoder in config.coded().items():
    stream = streams[name]
    if stream.value_BM.dtype != plain[name].dtype:  # codes already
      codes = stream.value_BM.astype(jnp.int32)
    else:
      values = jax.lax.stop_gradient(frozen[autoencoder])
      pool = (stream.value_BM, stream.item_BM)
      codes = encode_pieces(config, autoencoder, values, *pool)
    streams[name] = stream._replace(value_BM=codes)
  return batch._replace(streams=streams)


class BatchLosses(NamedTuple):
  """What the model makes of a batch with answers."""

  heads: dict[str, HeadLoss]
  stats: RouterStats


def batch_losses(
  params: Any, buffers: Any, batch: Batch, key: Array, *, model: OmniModel, mesh: Mesh
) -> BatchLosses:
  """Returns the losses of all heads and the statistics of the routers on one batch.

  Args:
    buffers: 'router_bias' and 'frozen'.
    key: of the step, for the noise of diffusion losses.
    model: abstract, the arrays come from params.
  """
  network = merge(model, params)
  coded = encode_streams(model.config, buffers['frozen'], batch)
  decoded = network(coded, buffers['router_bias'], mesh)
  heads = network.losses(decoded.hidden_BLD, coded, key, mesh)
  return BatchLosses(heads, decoded.stats)
