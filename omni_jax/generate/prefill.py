"""The cache and the rows that are being written; a prompt is the first piece that goes in."""

from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh

from omni_jax.generate.grammar import Mode
from omni_jax.model import Encoded, merge, OmniModel
from omni_jax.nn.attention import KVCache
from omni_jax.nn.reach import cached, packed_rows
from omni_jax.types import Batch


class Room(NamedTuple):
  """Static sizes of a batch of replies: slots of the cache, and ids that a reply may have."""

  slots: int
  max_new: int


class Rows(NamedTuple):
  """B replies in the making. The reply's ids and codes are kept in the order in which they were written."""

  cache: KVCache
  length_B: Array  # filled slots of the cache
  time_B: Array  # float32, position of what comes next
  hidden_BD: Array  # decoder state at the last position
  mode_B: Array  # grammar.Mode
  key_B: Array  # random keys
  said_B: Array  # ids said so far
  token_BO: Array  # ids, 0 where nothing was said yet
  code_BOJ: Array  # codes, where the id is <frame>
  frames_B: Array  # frames of the sound that is being spoken


def slots_of(valid_BL: Array, length_B: Array, slots: int) -> Array:
  """Cache slot of each position of a piece; what is not valid gets a slot past the end and is not written."""
  rank_BL = jnp.cumsum(valid_BL, axis=1) - 1
  return jnp.where(valid_BL, length_B[:, None] + rank_BL, slots)


def append(
  omni: OmniModel,
  rows: Rows,
  x_BLD: Array,
  modality_BL: Array,
  position_BL3: Array,
  bias_IE: Array,
  mesh: Mesh,
  block_BL: Array | None = None,
) -> tuple[Array, Rows]:
  """Runs a piece of each row through the decoder; modality 0 marks padding, `block_BL` as in `cached`.

  Returns:
    hidden_BLD of the piece, and the rows with cache and length moved on (time and hidden state are the caller's).
  """
  valid_BL = modality_BL > 0
  slots = rows.cache.key_BSGA.shape[2]
  slot_BL = slots_of(valid_BL, rows.length_B, slots)
  decoded = omni.decoder.extend(
    x_BLD,
    slot_BL,
    modality_BL,
    position_BL3,
    bias_IE,
    mesh,
    rows.cache,
    cached(slot_BL, slots, block_BL),
  )
  return decoded.hidden_BLD, rows._replace(
    cache=decoded.cache, length_B=rows.length_B + valid_BL.sum(axis=1)
  )


def prefill(
  params: Any,
  bias_IE: Array,
  batch: Batch,
  encoded: Encoded,
  key_B: Array,
  *,
  model: OmniModel,
  mesh: Mesh,
  room: Room,
) -> Rows:
  """Reads the prompts, one per row, and stands where the reply begins."""
  omni = merge(model, params)
  b = len(batch.token_BL)
  valid_BL = batch.modality_BL > 0
  length_B, none_B = valid_BL.sum(axis=1), jnp.zeros(b, jnp.int32)
  reach = packed_rows(
    valid_BL.astype(jnp.int32), omni.open_blocks(batch)
  )  # nothing else is in the cache
  decoded = omni.decoder.extend(
    omni.embed(batch, encoded),
    slots_of(valid_BL, none_B, room.slots),
    batch.modality_BL,
    batch.position_BL3,
    bias_IE,
    mesh,
    omni.decoder.init_cache(b, room.slots, jnp.dtype(model.config.dtype)),
    reach,
  )
  last_BD = jnp.take_along_axis(
    decoded.hidden_BLD, (length_B - 1)[:, None, None], axis=1
  )[:, 0]
  time_B = (
    jnp.where(batch.segment_BL[..., None] > 0, batch.position_BL3, 0).max(axis=(1, 2))
    + 1
  )
  code_BOJ = jnp.zeros((b, room.max_new, model.config.codec.codebooks), jnp.int32)
  return Rows(
    decoded.cache,
    length_B,
    time_B,
    last_BD,
    mode_B=none_B + int(Mode.START),
    key_B=key_B,
    said_B=none_B,
    token_BO=code_BOJ[..., 0],
    code_BOJ=code_BOJ,
    frames_B=none_B,
  )


def split_rows(key_B: Array) -> tuple[Array, Array]:
  """A fresh key per row and the keys that go on, so that a row's draws do not depend on its neighbours."""
  pairs = jax.vmap(lambda k: jax.random.split(k, 2))(key_B)
  return pairs[:, 0], pairs[:, 1]
