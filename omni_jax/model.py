"""OmniModel: embed -> decoder -> heads, and the losses of a batch.

It handles streams; all that depends on a medium comes from the tables.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple, TypeVar

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from omni_jax import sharding
from omni_jax.config import dataclass_of, media_sizes
from omni_jax.errors import UserError
from omni_jax.modalities.contract import Codes
from omni_jax.modalities.device import MediumConfigs, Size
from omni_jax.modalities.devices import TABLES, Tables
from omni_jax.modalities.head_loss import HeadLoss, UnitLoss
from omni_jax.modalities.hosts import Hosts, TEXT
from omni_jax.modalities.text.embed import TextEmbed
from omni_jax.modalities.text.head import TextHead
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig
from omni_jax.nn.decoder import Decoder, DecoderConfig, DecoderOutput
from omni_jax.nn.layers import gather_rows
from omni_jax.nn.moe_router import RouterStats
from omni_jax.types import Batch, stream_name, StreamSpec

T = TypeVar('T')
Module = TypeVar('Module', bound=nnx.Module)
DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True, eq=False)
class ModelConfig:
  """The configuration that determines the shapes of the network.

  Attributes:
    tokenizer, decoder: configs of the tokenizer and of the decoder.
    media: sizes of each medium of the model, by medium.
    embeds, heads: configs of the media's networks, by medium; None if it has none.
    autoencoders: configs of the autoencoders, by name.
    dtype: dtype of the computation.
    weights: dtype of the trained weights and of their moments in the optimizer;
      bfloat16 halves the memory, but small updates are lost.
    tables: tables of all media that a model can have.
  """

  tokenizer: TokenizerConfig
  decoder: DecoderConfig
  media: Mapping[str, Any]
  embeds: Mapping[str, Any]
  heads: Mapping[str, Any]
  autoencoders: Mapping[str, Any]
  dtype: str
  weights: str
  tables: Tables

  @classmethod
  def from_config(cls, config: ConfigDict, tables: Tables = TABLES) -> 'ModelConfig':
    """Returns the ModelConfig of a run.

    Args:
      config: the `model` part of the run's config.
      tables: tables of all media that the model can have.

    Raises:
      UserError: if a part is missing, has an unknown key or refuses a value.
    """
    known = {'tokenizer', 'decoder', 'dtype', 'weights'}
    known |= set(tables.devices) | set(tables.autoencoders())
    unknown = sorted(set(config) - known)
    if unknown:
      raise UserError(
        f'config.model: {unknown} is unknown; its parts are {sorted(known)}'
      )
    decoder = _part(DecoderConfig, config, 'decoder')
    media = [name for name in tables.devices if name in config]
    autoencoders: dict[str, Any] = {}
    for name, (medium, row) in tables.autoencoders().items():
      if medium in media:
        autoencoders[name] = _part(row.config, config, name)
    return cls(
      tokenizer=_part(TokenizerConfig, config, 'tokenizer'),
      decoder=dataclasses.replace(decoder, modalities=1 + len(tables.hosts)),
      media=media_sizes(config, tables.hosts),
      embeds={name: _network(config, tables, name, 'embed') for name in media},
      heads={name: _network(config, tables, name, 'head') for name in media},
      autoencoders=autoencoders,
      dtype=_dtype(config, 'dtype'),
      weights=_dtype(config, 'weights'),
      tables=tables,
    )

  def hosts(self, stored: Mapping[str, Codes] | None = None) -> Hosts:
    """Returns the hosts (the numpy side) of the model's media.

    Args:
      stored: codes that batches carry instead of payloads, by stream.
    """
    tokenizer = Tokenizer(self.tokenizer)
    return Hosts(self.media, tokenizer, self.tables.hosts, stored)

  def parts(self, medium: str) -> MediumConfigs:
    """Returns the configs of one medium, as its row of the device table takes them."""
    device = self.tables.devices[medium]
    specs = {}
    for spec in self.hosts().streams:
      if spec.medium == medium:
        specs[spec.kind] = spec
    autoencoder = None
    if device.autoencoder:
      autoencoder = self.autoencoders.get(device.autoencoder.name)
    return MediumConfigs(
      self.media[medium],
      self.embeds[medium],
      self.heads[medium],
      autoencoder,
      specs,
      self.decoder.width,
    )

  def coded_streams(self) -> dict[str, str]:
    """Returns the autoencoder of each stream that the model takes as codes."""
    autoencoders = {}
    for medium in self.media:
      device = self.tables.devices[medium]
      if device.autoencoder:
        for kind in device.coded(self.parts(medium)):
          autoencoders[stream_name(medium, kind)] = device.autoencoder.name
    return autoencoders

  def codes_of(self, autoencoder: str) -> Codes:
    """Returns the form of the codes into which an autoencoder turns a piece."""
    medium, row = self.tables.autoencoders()[autoencoder]
    return Codes(*row.codes(self.media[medium], self.autoencoders[autoencoder]))

  def stored_codes(self) -> dict[str, Codes]:
    """Returns the form of the codes by stream, for runs whose codes are stored."""
    coded = self.coded_streams()
    return {stream: self.codes_of(name) for stream, name in coded.items()}


def _part(kind: type[T], config: ConfigDict, path: str) -> T:
  """Returns the part of `config.model` with this dotted name as a dataclass.

  Raises:
    UserError: if it is missing, or has keys or values that the dataclass refuses.
  """
  part = config
  for name in path.split('.'):
    if name not in part:
      raise UserError(
        f'config.model.{path} is missing: start from configs/base.py, which has every '
        'key'
      )
    part = part[name]
  return dataclass_of(kind, part, f'model.{path}')


def _network(config: ConfigDict, tables: Tables, medium: str, name: str) -> Any:
  """Returns the config of a medium's 'embed' or 'head'; None if it has none."""
  kind = getattr(tables.devices[medium], f'{name}_config')
  return None if kind is None else _part(kind, config, f'{medium}.{name}')


def _dtype(config: ConfigDict, name: str) -> str:
  """Returns a dtype of `config.model`; raises UserError for any other value."""
  dtype = config.get(name)
  if dtype not in DTYPES:
    raise UserError(f'config.model.{name}={dtype!r} is unknown; it is one of {DTYPES}')
  return dtype


def main_sizes(config: ModelConfig) -> list[Size]:
  """Returns (config key, size, logical axis) of each dimension a mesh has to divide.

  Small dimensions are left out: they stay whole. The size of attention is its number of
  heads rather than of columns of its projections, since devices that shared a head
  would exchange it in every layer; key heads are repeated if there are too few. The
  vocabulary is left out as well, because its size follows from the tokenizer.
  """
  decoder = config.decoder
  sizes: list[Size] = [
    ('config.model.decoder.width', decoder.width, 'expert_embed'),
    ('config.model.decoder.heads', decoder.heads, 'heads'),
    ('config.model.decoder.experts', decoder.experts, 'expert'),
    ('config.model.decoder.expert_hidden', decoder.expert_hidden, 'mlp'),
  ]
  if decoder.shared_hidden:
    shared = ('config.model.decoder.shared_hidden', decoder.shared_hidden, 'mlp')
    sizes.append(shared)
  for medium in config.media:
    device = config.tables.devices[medium]
    sizes += device.sizes(config.parts(medium))
  return sizes


class OmniModel(nnx.Module):
  """One causal decoder, an embedding per medium and a head per written medium."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.config = config
    devices = config.tables.devices
    vocab = Tokenizer(config.tokenizer).vocab_size
    width = config.decoder.width
    # The order in which modules are built determines their random numbers.
    embeds: dict[str, Any] = {TEXT: TextEmbed(vocab, width, rngs=rngs)}
    for medium in config.media:
      embeds[medium] = devices[medium].embed(config.parts(medium), rngs)
    self.embeds = nnx.Dict(embeds)
    self.decoder = Decoder(config.decoder, rngs=rngs)
    heads: dict[str, Any] = {TEXT: TextHead(width, vocab, rngs=rngs)}
    for medium in config.media:
      build_head = devices[medium].head
      if build_head is not None:
        heads[medium] = build_head(config.parts(medium), rngs)
    self.heads = nnx.Dict(heads)
    self.streams: tuple[StreamSpec, ...] = config.hosts().streams

  def embed(self, batch: Batch) -> Float[Array, 'B L D']:
    """Returns the embedding of each position: the sum of the payloads present there.

    Args:
      batch: batch whose coded streams hold codes, see `encode_streams`.
    """
    dtype = jnp.dtype(self.config.dtype)
    x_BLD = self.embeds[TEXT](batch.token_BL, dtype)
    for spec in self.streams:
      stream = batch.streams[spec.name]
      if not stream.item_BM.size:
        continue
      embed = self.embeds[spec.medium]
      if spec.written:
        piece_BMD = embed.written(stream.value_BM, stream.place_BM3, dtype)
      else:
        piece_BMD = embed.read(stream, dtype)
      x_BLD += gather_pool(piece_BMD, stream.at_BL)
      if spec.queries:
        query_BMD = embed.queries(stream.place_BM3, dtype)
        x_BLD += gather_pool(query_BMD, stream.query_at_BL)
    return sharding.shard(x_BLD, 'batch', 'length', 'act_embed')

  def __call__(
    self, batch: Batch, bias_IE: Float[Array, 'I E'], mesh: Mesh
  ) -> DecoderOutput:
    """Returns the decoder's states of a batch.

    Args:
      batch: batch whose coded streams hold codes, see `encode_streams`.
      bias_IE: biases of the routers, for loss-free balancing.
    """
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
    """Returns the loss of each head, summed over the batch.

    Args:
      hidden_BLD: states of the decoder.
      key: key of the step, for the noise of diffusion losses.
    """
    text = self.heads[TEXT]
    losses = {TEXT: text.loss(hidden_BLD, batch.target_BL, batch.weight_BL, mesh)}
    for medium, units in self._unit_losses(hidden_BLD, batch, key).items():
      losses[medium] = units.summed() if units else HeadLoss.zero()
    return losses

  def segment_losses(
    self, hidden_BLD: Float[Array, 'B L D'], batch: Batch, key: Array, *, segments: int
  ) -> dict[str, HeadLoss]:
    """Returns the loss of each head, summed over each segment of each row: (B, S).

    It serves objectives that compare answers. Heads that the rows have no room for are
    left out.

    Args:
      hidden_BLD: states of the decoder.
      key: key of the step, for the noise of diffusion losses.
      segments: S, a static bound; losses of later segments are left out.
    """
    text = self.heads[TEXT].losses(hidden_BLD, batch.target_BL, batch.weight_BL)
    losses = {TEXT: text.by_segment(batch.segment_BL, segments)}
    for medium, units in self._unit_losses(hidden_BLD, batch, key).items():
      if units:
        losses[medium] = units.by_segment(batch.segment_BL, segments)
    return losses

  def _unit_losses(
    self, hidden_BLD: Array, batch: Batch, key: Array
  ) -> dict[str, UnitLoss | None]:
    """Returns the losses of written pieces by medium; None if rows have no room."""
    losses: dict[str, UnitLoss | None] = {}
    for spec in self.streams:
      if not spec.written:
        continue
      stream = batch.streams[spec.name]
      if not stream.item_BM.size:
        losses[spec.medium] = None
        continue
      pools = len(stream.item_BM)
      hidden_PTD = hidden_BLD.reshape(pools, -1, hidden_BLD.shape[-1])
      losses[spec.medium] = self.heads[spec.medium].losses(hidden_PTD, stream, key)
    return losses


def gather_pool(
  piece_PMD: Float[Array, 'P M D'], at_BL: Int[Array, 'B L']
) -> Float[Array, 'B L D']:
  """Returns the piece that each position carries; zeros where it carries none.

  Args:
    piece_PMD: pieces of the pools; P divides B, and B / P rows share each pool.
    at_BL: number of the position's piece in the pool of its row, or NONE.
  """
  rows, length = at_BL.shape
  at_PL = at_BL.reshape(len(piece_PMD), -1)
  return gather_rows(piece_PMD, at_PL).reshape(rows, length, -1)


def abstract(config: ModelConfig) -> OmniModel:
  """Returns the model with shapes in place of arrays, without computing anything."""
  return nnx.eval_shape(lambda: OmniModel(config, rngs=nnx.Rngs(0)))


def abstract_autoencoder(config: ModelConfig, name: str) -> nnx.Module:
  """Returns an autoencoder with shapes in place of arrays."""
  medium, row = config.tables.autoencoders()[name]
  sizes = config.media[medium]
  autoencoder = config.autoencoders[name]
  return nnx.eval_shape(lambda: row.make(sizes, autoencoder, nnx.Rngs(0)))


def merge(model: Module, params: dict[str, Any]) -> Module:
  """Returns an abstract model with its shapes replaced by the arrays of a pure dict."""
  graph, state = nnx.split(model)
  nnx.replace_by_pure_dict(state, params)
  return nnx.merge(graph, state)


def encode_pieces(
  config: ModelConfig,
  name: str,
  values: Mapping[str, Any],
  value_BM: Array,
  item_BM: Array,
) -> Array:
  """Returns the codes (B, M, …) of pools of pieces.

  Args:
    name: name of the autoencoder.
    values: 'params' and 'buffers' of the autoencoder.
    value_BM: pieces (B, M, …).
    item_BM: number of each piece's item in its pool, from 1; 0 for empty places.
  """
  _, row = config.tables.autoencoders()[name]
  module = merge(abstract_autoencoder(config, name), values['params'])
  return row.encode(module, values['buffers'], value_BM, item_BM)


def decode_pieces(
  config: ModelConfig, name: str, values: Mapping[str, Any], code_NM: Array
) -> Array:
  """Returns the pieces (N, M, …) of items given as codes, one item per row.

  Args:
    name: name of the autoencoder.
    values: 'params' and 'buffers' of the autoencoder.
    code_NM: codes (N, M, …).
  """
  _, row = config.tables.autoencoders()[name]
  module = merge(abstract_autoencoder(config, name), values['params'])
  return row.decode(module, values['buffers'], code_NM)


def encode_streams(
  config: ModelConfig, frozen: Mapping[str, Any], batch: Batch
) -> Batch:
  """Returns the batch with codes in every stream that the model takes as codes.

  Streams that hold stored codes already are only cast to int32.

  Args:
    frozen: values of the autoencoders, by name; no gradient flows into them.
  """
  specs = {spec.name: spec for spec in config.hosts().streams}
  streams = dict(batch.streams)
  for name, autoencoder in config.coded_streams().items():
    stream = streams[name]
    has_codes = stream.value_BM.dtype != specs[name].dtype
    if has_codes:
      code_BM = stream.value_BM.astype(jnp.int32)
    else:
      values = jax.lax.stop_gradient(frozen[autoencoder])
      code_BM = encode_pieces(
        config, autoencoder, values, stream.value_BM, stream.item_BM
      )
    streams[name] = stream._replace(value_BM=code_BM)
  return batch._replace(streams=streams)


class BatchLosses(NamedTuple):
  """Losses and router statistics of one batch.

  Attributes:
    heads: loss of each head, by medium.
    stats: statistics of the routers; leaves have a leading axis of layers.
  """

  heads: dict[str, HeadLoss]
  stats: RouterStats


def batch_losses(
  params: dict[str, Any],
  buffers: Mapping[str, Any],
  batch: Batch,
  key: Array,
  *,
  model: OmniModel,
  mesh: Mesh,
) -> BatchLosses:
  """Returns the losses of all heads and the statistics of the routers on one batch.

  Args:
    params: the model's parameters, as a pure dict.
    buffers: 'router_bias' and 'frozen' (values of the autoencoders, by name).
    key: key of the step, for the noise of diffusion losses.
    model: abstract model; its arrays come from `params`.
  """
  network = merge(model, params)
  coded = encode_streams(model.config, buffers['frozen'], batch)
  decoded = network(coded, buffers['router_bias'], mesh)
  heads = network.losses(decoded.hidden_BLD, coded, key, mesh)
  return BatchLosses(heads, decoded.stats)
