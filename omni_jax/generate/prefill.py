"""Reads prompts into the KV cache, and defines the state of replies in progress."""

import functools
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh

from omni_jax import sharding
from omni_jax.generate.grammar import piece_writings, START
from omni_jax.model import merge, ModelConfig, OmniModel
from omni_jax.nn.attention import KVCache
from omni_jax.nn.reach import cached, packed_rows
from omni_jax.types import Batch


class ReplySizes(NamedTuple):
  """Static sizes of a batch of replies.

  Attributes:
    slots: slots of the cache.
    max_new: largest number of ids in a reply.
  """

  slots: int
  max_new: int


class DecodeState(NamedTuple):
  """The state of B replies in progress, with room for O ids each.

  Attributes:
    cache: keys and values of all layers.
    length_B: int32, filled slots of the cache.
    time_B: float32, time of the next position.
    hidden_BD: decoder state at the last position.
    mode_B: int32, mode of the grammar.
    key_B: random keys.
    written_B: int32, ids written so far.
    token_BO: int32, ids in the order of writing, 0 after the last.
    piece_BO: pieces (B, O, …) of each medium that is written piece by piece, at the
      index of the id that announces them.
    item_pieces_B: int32, pieces of the current item written so far.
  """

  cache: KVCache
  length_B: Array
  time_B: Array
  hidden_BD: Array
  mode_B: Array
  key_B: Array
  written_B: Array
  token_BO: Array
  piece_BO: dict[str, Array]
  item_pieces_B: Array


@functools.partial(jax.jit, static_argnames='slots')
def grow(cache: KVCache, *, slots: int) -> KVCache:
  """Returns a cache with more slots, of which the new ones are empty."""

  def padded(x: Array) -> Array:
    new = slots - x.shape[2]
    return sharding.shard_cache(jnp.pad(x, [(0, 0), (0, 0), (0, new), (0, 0), (0, 0)]))

  return jax.tree.map(padded, cache)


def place_state(state: DecodeState) -> DecodeState:
  """Constrains the state of replies: its rows are split, and the heads of the cache.

  All programs agree on it, so that each reuses the memory of the state that it gets.
  """
  fields = state._asdict()
  cache = jax.tree.map(sharding.shard_cache, fields.pop('cache'))
  return DecodeState(cache=cache, **jax.tree.map(sharding.shard_items, fields))


def piece_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Returns the shape of a written piece of each medium that is written piece by piece."""
  hosts = config.hosts()
  autoencoder_of = config.coded_streams()
  written_specs = [spec for spec in hosts.streams if spec.written]
  shapes = {}
  for name in piece_writings(hosts):
    spec = next(spec for spec in written_specs if spec.medium == name)
    if spec.name in autoencoder_of:
      shapes[name] = config.codes_of(autoencoder_of[spec.name]).shape
    else:
      shapes[name] = spec.shape
  return shapes


def slots_of(valid_BL: Array, length_B: Array, slots: int) -> Array:
  """Returns the cache slot of each new position, int32 (B, L).

  Positions that are not valid get the slot past the end, which is never written.
  """
  rank_BL = jnp.cumsum(valid_BL, axis=1) - 1
  return jnp.where(valid_BL, length_B[:, None] + rank_BL, slots)


def extend_rows(
  network: OmniModel,
  state: DecodeState,
  x_BLD: Array,
  modality_BL: Array,
  position_BL3: Array,
  bias_IE: Array,
  mesh: Mesh,
) -> tuple[Array, DecodeState]:
  """Runs the next positions of each row through the decoder; modality 0 is padding.

  Returns:
    hidden_BLD of these positions, and the state with its cache and length advanced; the
    caller advances the time and the hidden state.
  """
  valid_BL = modality_BL > 0
  slots = state.cache.key_IBSGA.shape[2]
  slot_BL = slots_of(valid_BL, state.length_B, slots)
  decoded = network.decoder.extend(
    x_BLD,
    slot_BL,
    modality_BL,
    position_BL3,
    bias_IE,
    mesh,
    state.cache,
    cached(slot_BL, slots),
  )
  length_B = state.length_B + valid_BL.sum(axis=1)
  assert decoded.cache is not None
  state = state._replace(cache=decoded.cache, length_B=length_B)
  return decoded.hidden_BLD, state


def prefill(
  params: Any,
  bias_IE: Array,
  batch: Batch,
  key_B: Array,
  *,
  model: OmniModel,
  mesh: Mesh,
  sizes: ReplySizes,
) -> DecodeState:
  """Reads one prompt per row and returns the state at the beginning of the replies.

  Args:
    params: pure dict of the model's parameters.
    bias_IE: router biases.
    batch: the prompts; coded streams hold codes.
    key_B: a random key per row.
    model: abstract model.
    mesh: mesh of the program.
    sizes: sizes of the replies.
  """
  network = merge(model, params)
  config = model.config
  b = len(batch.token_BL)
  valid_BL = batch.modality_BL > 0
  length_B = valid_BL.sum(axis=1)
  zero_B = jnp.zeros(b, jnp.int32)
  x_BLD = network.embed(batch)
  slot_BL = slots_of(valid_BL, zero_B, sizes.slots)
  cache = network.decoder.init_cache(b, sizes.slots, jnp.dtype(config.dtype))
  # The cache is empty: positions attend only to their own row.
  reach = packed_rows(valid_BL.astype(jnp.int32))
  decoded = network.decoder.extend(
    x_BLD, slot_BL, batch.modality_BL, batch.position_BL3, bias_IE, mesh, cache, reach
  )
  assert decoded.cache is not None
  last_B11 = (length_B - 1)[:, None, None]
  last_BD = jnp.take_along_axis(decoded.hidden_BLD, last_B11, axis=1)[:, 0]
  position_BL3 = jnp.where(batch.segment_BL[..., None] > 0, batch.position_BL3, 0)
  pieces = {}
  for name, shape in piece_shapes(config).items():
    pieces[name] = jnp.zeros((b, sizes.max_new, *shape), jnp.int32)
  state = DecodeState(
    cache=decoded.cache,
    length_B=length_B,
    time_B=position_BL3.max(axis=(1, 2)) + 1,
    hidden_BD=last_BD,
    mode_B=jnp.full(b, START, jnp.int32),
    key_B=key_B,
    written_B=zero_B,
    token_BO=jnp.zeros((b, sizes.max_new), jnp.int32),
    piece_BO=pieces,
    item_pieces_B=zero_B,
  )
  return place_state(state)


def split_keys(key_B: Array) -> tuple[Array, Array]:
  """Splits the key of each row.

  What a row samples therefore never depends on its neighbours.

  Returns:
    Keys to use now, and keys to keep.
  """
  pair_B2 = jax.vmap(jax.random.split)(key_B)
  return pair_B2[:, 0], pair_B2[:, 1]
