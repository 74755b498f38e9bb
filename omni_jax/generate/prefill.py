"""The cache and the rows that are being written; a prompt is the first piece that goes in."""

from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh

from omni_jax.generate.grammar import START
from omni_jax.model import merge, ModelConfig, OmniModel
from omni_jax.nn.attention import KVCache
from omni_jax.nn.reach import cached, packed_rows
from omni_jax.types import Batch


class Room(NamedTuple):
  """Static sizes of a batch of replies: slots of the cache, and ids that a reply may have."""

  slots: int
  max_new: int


class Rows(NamedTuple):
  """B replies in the making. The reply's ids and pieces are kept in the order in which they were written.

  Attributes:
    length_B: filled slots of the cache.
    time_B: float32, position of what comes next.
    hidden_BD: decoder state at the last position.
    mode_B: of the grammar.
    key_B: random keys.
    said_B: ids said so far.
    token_BO: ids, 0 where nothing was said yet.
    piece_BO: by medium that is written one piece at a time, its pieces where the id announces one.
    count_B: pieces of the item that is being written.
  """

  cache: KVCache
  length_B: Array
  time_B: Array
  hidden_BD: Array
  mode_B: Array
  key_B: Array
  said_B: Array
  token_BO: Array
  piece_BO: dict[str, Array]
  count_B: Array


def stepwise(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Returns the media that are written one piece at a time, and the shape of a piece as the model writes it."""
  hosts = config.hosts()
  specs = {spec.name: spec for spec in hosts.streams if spec.written}
  coded = config.coded()
  found = {}
  for name, host in hosts.items():
    writing = host.writing()
    if writing is None or writing.piece is None:
      continue
    spec = next(spec for spec in specs.values() if spec.medium == name)
    in_codes = spec.name in coded
    found[name] = config.codes_of(coded[spec.name]).shape if in_codes else spec.shape
  return found


def slots_of(valid_BL: Array, length_B: Array, slots: int) -> Array:
  """Returns the cache slot of each position of a piece; what is not valid gets one past the end: it is not written."""
  rank_BL = jnp.cumsum(valid_BL, axis=1) - 1
  return jnp.where(valid_BL, length_B[:, None] + rank_BL, slots)


def append(
  network: OmniModel,
  rows: Rows,
  x_BLD: Array,
  modality_BL: Array,
  position_BL3: Array,
  bias_IE: Array,
  mesh: Mesh,
) -> tuple[Array, Rows]:
  """Runs a piece of each row through the decoder; modality 0 marks padding.

  Returns:
    hidden_BLD of the piece, and the rows with cache and length moved on (time and hidden state are the caller's).
  """
  valid_BL = modality_BL > 0
  slots = rows.cache.key_BSGA.shape[2]
  slot_BL = slots_of(valid_BL, rows.length_B, slots)
  decoded = network.decoder.extend(
    x_BLD,
    slot_BL,
    modality_BL,
    position_BL3,
    bias_IE,
    mesh,
    rows.cache,
    cached(slot_BL, slots),
  )
  length_B = rows.length_B + valid_BL.sum(axis=1)
  return decoded.hidden_BLD, rows._replace(cache=decoded.cache, length_B=length_B)


def prefill(
  params: Any,
  bias_IE: Array,
  batch: Batch,
  key_B: Array,
  *,
  model: OmniModel,
  mesh: Mesh,
  room: Room,
) -> Rows:
  """Reads the prompts, one per row, and stands where the reply begins.

  Args:
    batch: its coded streams hold codes.
  """
  network, config = merge(model, params), model.config
  b = len(batch.token_BL)
  valid_BL = batch.modality_BL > 0
  length_B = valid_BL.sum(axis=1)
  none_B = jnp.zeros(b, jnp.int32)
  decoded = network.decoder.extend(
    network.embed(batch),
    slots_of(valid_BL, none_B, room.slots),
    batch.modality_BL,
    batch.position_BL3,
    bias_IE,
    mesh,
    network.decoder.init_cache(b, room.slots, jnp.dtype(config.dtype)),
    packed_rows(valid_BL.astype(jnp.int32)),  # nothing else is in the cache
  )
  last_B11 = (length_B - 1)[:, None, None]
  last_BD = jnp.take_along_axis(decoded.hidden_BLD, last_B11, axis=1)[:, 0]
  position_BL3 = jnp.where(batch.segment_BL[..., None] > 0, batch.position_BL3, 0)
  return Rows(
    cache=decoded.cache,
    length_B=length_B,
    time_B=position_BL3.max(axis=(1, 2)) + 1,
    hidden_BD=last_BD,
    mode_B=none_B + START,
    key_B=key_B,
    said_B=none_B,
    token_BO=jnp.zeros((b, room.max_new), jnp.int32),
    piece_BO={
      name: jnp.zeros((b, room.max_new, *shape), jnp.int32)
      for name, shape in stepwise(config).items()
    },
    count_B=none_B,
  )


def split_rows(key_B: Array) -> tuple[Array, Array]:
  """Returns a fresh key per row and the keys that go on, so that a row's draws do not depend on its neighbours."""
  pairs = jax.vmap(lambda k: jax.random.split(k, 2))(key_B)
  return pairs[:, 0], pairs[:, 1]
