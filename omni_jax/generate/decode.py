"""The jitted programs that write replies: the decode loop, and the writing of a block.

The loop writes ids, and media one piece at a time, until every row is done or waits for
a block. A block is written all at once, between two runs of the loop.
"""

from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh

from omni_jax.generate.grammar import DONE, FORM, Grammar
from omni_jax.generate.prefill import append, DecodeState, split_keys
from omni_jax.modalities.hosts import TEXT
from omni_jax.modalities.text.head import sample_token
from omni_jax.model import merge, OmniModel


class Sampling(NamedTuple):
  """The settings of sampling, as float32 scalars: changing one does not recompile.

  Attributes:
    temperature: temperature of text; 0 takes the most likely id.
    top_p: probability mass of nucleus sampling, for ids and pieces.
    speech_temperature: temperature of media that are written one piece at a time.
    guidance: classifier-free guidance of media that are written as a block; 1 for none.
  """

  temperature: Array
  top_p: Array
  speech_temperature: Array
  guidance: Array


def waiting(rows: DecodeState, grammar: Grammar) -> Array:
  """Returns which rows the loop leaves alone, bool (B,).

  Their reply is done, or a block must be written first.
  """
  return (rows.mode_B == DONE) | (grammar.block_M[rows.mode_B] > 0)


def decode(
  params: Any,
  bias_IE: Array,
  rows: DecodeState,
  grammar: Grammar,
  sampling: Sampling,
  *,
  model: OmniModel,
  mesh: Mesh,
) -> DecodeState:
  """Writes until every row is done or waits for a block.

  Args:
    params: pure dict of the model's parameters.
    bias_IE: router biases.
    model: abstract model.
  """
  writer = _Writer(merge(model, params), bias_IE, grammar, sampling, mesh)

  def unfinished(rows: DecodeState) -> Array:
    return ~waiting(rows, grammar).all()

  return jax.lax.while_loop(unfinished, writer.write_id, rows)


class _Writer(NamedTuple):
  """The inputs that stay the same in every iteration of the loop."""

  network: OmniModel
  bias_IE: Array
  grammar: Grammar
  sampling: Sampling
  mesh: Mesh

  def write_id(self, rows: DecodeState) -> DecodeState:
    """Writes one id, and the piece it announces, in every row that is not waiting."""
    network = self.network
    grammar = self.grammar
    hosts = network.config.hosts()
    active_B = ~waiting(rows, grammar)
    now_B, later_B = split_keys(rows.key_B)
    token_B = jnp.where(active_B, self._token(rows, now_B), 0)
    mode_B = jnp.where(active_B, grammar.next_MV[rows.mode_B, token_B], rows.mode_B)
    # Number of the medium of which the id announces a piece, or 0.
    inside_B = jnp.where(active_B, grammar.inside_M[mode_B], 0)
    count_B = rows.written_B + active_B
    # A reply that has used up its room ends, even in the middle of an item.
    room = rows.token_BO.shape[1]
    mode_B = jnp.where(active_B & (count_B >= room), DONE, mode_B)
    row_B = jnp.arange(len(token_B))
    # Waiting rows write past the end, where updates are dropped.
    write_B = jnp.where(active_B, rows.written_B, room)

    dtype = jnp.dtype(network.config.dtype)
    # An id that announces a piece is not embedded itself: the piece is.
    words_B = jnp.where(inside_B > 0, -1, token_B)
    x_BD = network.embeds[TEXT].tokens(words_B, dtype)
    modality_B = jnp.where(active_B, hosts.numbers[TEXT], 0)
    pieces = dict(rows.piece_BO)
    for name, written_BO in rows.piece_BO.items():
      mine_B = inside_B == hosts.numbers[name]
      piece_B = self._piece(name, rows, mine_B, now_B)
      place_B3 = jnp.zeros((len(row_B), FORM), jnp.int32)
      place_B3 = place_B3.at[:, 0].set(rows.item_pieces_B)
      embedded_BD = network.embeds[name].written(piece_B, place_B3, dtype)
      x_BD = x_BD + jnp.where(mine_B[:, None], embedded_BD, 0)
      modality_B = jnp.where(mine_B, hosts.numbers[name], modality_B)
      pieces[name] = written_BO.at[row_B, write_B].set(piece_B, mode='drop')

    rows = rows._replace(
      mode_B=mode_B,
      key_B=later_B,
      written_B=count_B,
      item_pieces_B=jnp.where(inside_B > 0, rows.item_pieces_B + 1, 0),
      token_BO=rows.token_BO.at[row_B, write_B].set(token_B, mode='drop'),
      piece_BO=pieces,
    )
    position_B13 = jnp.broadcast_to(rows.time_B[:, None, None], (len(row_B), 1, FORM))
    hidden_B1D, rows = append(
      network,
      rows,
      x_BD[:, None],
      modality_B[:, None],
      position_B13,
      self.bias_IE,
      self.mesh,
    )
    hidden_BD = jnp.where(active_B[:, None], hidden_B1D[:, 0], rows.hidden_BD)
    return rows._replace(hidden_BD=hidden_BD, time_B=rows.time_B + active_B)

  def _token(self, rows: DecodeState, key_B: Array) -> Array:
    """Returns the next id of each row, int32 (B,).

    It is one that the mode of the row allows, and none that would make an item longer
    than its medium permits.
    """
    hosts = self.network.config.hosts()
    sampling = self.sampling
    allowed_BV = self.grammar.allowed_MV[rows.mode_B]
    inside_B = self.grammar.inside_M[rows.mode_B]
    for name in rows.piece_BO:
      writing = hosts.writing(name)
      is_inside_B = inside_B == hosts.numbers[name]
      full_B = is_inside_B & (rows.item_pieces_B >= writing.longest)
      announces_V = jnp.arange(allowed_BV.shape[1]) == writing.piece
      allowed_BV = allowed_BV & ~(full_B[:, None] & announces_V)
    logits_BV = self.network.heads[TEXT].logits(rows.hidden_BD)

    def pick(logits_V: Array, allowed_V: Array, key: Array) -> Array:
      token_1 = sample_token(
        logits_V[None],
        allowed_V[None],
        key,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
      )
      return token_1[0]

    return jax.vmap(pick)(logits_BV, allowed_BV, key_B)

  def _piece(self, name: str, rows: DecodeState, mine_B: Array, key_B: Array) -> Array:
    """Returns a piece of a medium for every row, (B, …).

    The head runs only if the piece is needed in some row (`mine_B`).
    """
    written_BO = rows.piece_BO[name]

    def sampled() -> Array:
      return self.network.heads[name].sample(
        rows.hidden_BD,
        key_B,
        temperature=self.sampling.speech_temperature,
        top_p=self.sampling.top_p,
      )

    def zeros() -> Array:
      return jnp.zeros((len(written_BO), *written_BO.shape[2:]), written_BO.dtype)

    return jax.lax.cond(mine_B.any(), sampled, zeros)


class BlockProgram(NamedTuple):
  """The static arguments of the program that writes blocks.

  Attributes:
    medium: name of the medium.
    steps: steps of its sampler.
  """

  medium: str
  steps: int


class Block(NamedTuple):
  """The items that were written as a block, one per row.

  Attributes:
    value_BM: pieces as the host has them; meaningless in rows that did not wait.
    form_B3: (time, height, width) of each item, in pieces.
  """

  value_BM: Array
  form_B3: Array


def write_block(
  params: Any,
  bias_IE: Array,
  rows: DecodeState,
  grammar: Grammar,
  sampling: Sampling,
  *,
  block: BlockProgram,
  model: OmniModel,
  mesh: Mesh,
) -> tuple[DecodeState, Block]:
  """Writes one item in every row that waits for a block of this medium.

  The decoder reads the queries of all pieces, the head samples the pieces from its
  states, and the decoder reads the clean pieces and the id behind the item.

  Args:
    params: pure dict of the model's parameters.
    bias_IE: router biases.
    model: abstract model.

  Returns:
    The rows behind the item, and the item of each row.
  """
  network = merge(model, params)
  hosts = model.config.hosts()
  medium = block.medium
  writing = hosts.writing(medium)
  number = hosts.numbers[medium]
  embed = network.embeds[medium]
  dtype = jnp.dtype(model.config.dtype)
  waits_B = grammar.block_M[rows.mode_B] == number
  form_B3 = _form(rows, writing.opening)
  place_BM3 = _places(form_B3, writing.longest)
  piece_M = jnp.arange(writing.longest)
  valid_BM = waits_B[:, None] & (piece_M[None] < form_B3.prod(axis=1)[:, None])
  place_BM3 = jnp.where(valid_BM[..., None], place_BM3, 0)
  position_BM3 = rows.time_B[:, None, None] + place_BM3.astype(jnp.float32)
  modality_BM = jnp.where(valid_BM, number, 0)

  now_B, later_B = split_keys(rows.key_B)
  query_BMD = embed.queries(place_BM3, dtype)
  state_BMD, rows = append(
    network, rows, query_BMD, modality_BM, position_BM3, bias_IE, mesh
  )
  value_BM = network.heads[medium].sample(
    state_BMD,
    place_BM3,
    valid_BM,
    now_B,
    guidance_U=jnp.broadcast_to(sampling.guidance, waits_B.shape),
    steps=block.steps,
  )

  clean_BMD = embed.written(value_BM, place_BM3, dtype)
  closing_B = jnp.full(len(waits_B), writing.closing)
  end_B1D = network.embeds[TEXT].tokens(closing_B, dtype)[:, None]
  end_time_B = rows.time_B + form_B3.max(axis=1)
  end_position_B13 = jnp.broadcast_to(
    end_time_B[:, None, None], (len(waits_B), 1, FORM)
  )
  end_modality_B1 = jnp.where(waits_B, hosts.numbers[TEXT], 0)[:, None]
  hidden_BLD, rows = append(
    network,
    rows,
    jnp.concatenate([clean_BMD, end_B1D], axis=1),
    jnp.concatenate([modality_BM, end_modality_B1], axis=1),
    jnp.concatenate([position_BM3, end_position_B13], axis=1),
    bias_IE,
    mesh,
  )
  rows = rows._replace(
    mode_B=jnp.where(waits_B, grammar.after, rows.mode_B),
    key_B=later_B,
    hidden_BD=jnp.where(waits_B[:, None], hidden_BLD[:, -1], rows.hidden_BD),
    time_B=jnp.where(waits_B, end_time_B + 1, rows.time_B),
  )
  return rows, Block(value_BM, form_B3)


def _form(rows: DecodeState, opening: tuple[tuple[int, ...], ...]) -> Array:
  """Returns the form of the item that each row is about to write, int32 (B, 3).

  The last ids of a row are the sizes of the opening; a size that the opening of the
  medium does not have is 1.
  """
  sizes = opening[1:]
  form_B3 = jnp.ones((len(rows.written_B), FORM), jnp.int32)
  for k, ids in enumerate(sizes):
    back = len(sizes) - k
    at_B1 = jnp.maximum(rows.written_B - back, 0)[:, None]
    token_B = jnp.take_along_axis(rows.token_BO, at_B1, axis=1)[:, 0]
    form_B3 = form_B3.at[:, FORM - back].set(token_B - ids[0] + 1)
  return form_B3


def _places(form_B3: Array, pieces: int) -> Array:
  """Returns (time, height, width) of each piece inside its item, int32 (B, M, 3)."""
  _, high_B, wide_B = form_B3.T
  piece_1M = jnp.arange(pieces)[None]
  plane_B1 = jnp.maximum(high_B * wide_B, 1)[:, None]
  width_B1 = jnp.maximum(wide_B, 1)[:, None]
  inside_BM = piece_1M % plane_B1  # number of the piece inside its frame
  time_BM = piece_1M // plane_B1
  row_BM = inside_BM // width_B1
  column_BM = inside_BM % width_B1
  return jnp.stack([time_BM, row_BM, column_BM], axis=2)
