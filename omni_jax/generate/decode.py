"""Defines the programs that write replies: the decode loop, and the writing of a block.

The loop writes ids, and media one piece at a time, until every row is finished or waits
for a block. A block is written all at once, between two runs of the loop.
"""

from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh

from omni_jax import sharding
from omni_jax.generate.grammar import DONE, FORM, Grammar
from omni_jax.generate.prefill import DecodeState, extend_rows, place_state, split_keys
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


def is_waiting(state: DecodeState, grammar: Grammar) -> Array:
  """Returns which rows the loop leaves alone, bool (B,).

  Their reply is finished, or a block must be written first.
  """
  return (state.mode_B == DONE) | (grammar.block_C[state.mode_B] > 0)


def decode(
  params: Any,
  bias_IE: Array,
  state: DecodeState,
  grammar: Grammar,
  sampling: Sampling,
  *,
  model: OmniModel,
  mesh: Mesh,
) -> DecodeState:
  """Writes until every row is finished or waits for a block.

  Args:
    params: pure dict of the model's parameters.
    bias_IE: router biases.
    model: abstract model.
  """
  writer = _Writer(merge(model, params), bias_IE, grammar, sampling, mesh)

  def unfinished(state: DecodeState) -> Array:
    return ~is_waiting(state, grammar).all()

  return place_state(jax.lax.while_loop(unfinished, writer.write_id, state))


class _Writer(NamedTuple):
  """The inputs that stay the same in every iteration of the loop."""

  network: OmniModel
  bias_IE: Array
  grammar: Grammar
  sampling: Sampling
  mesh: Mesh

  def write_id(self, state: DecodeState) -> DecodeState:
    """Writes one id, and the piece it announces, in every row that is not waiting."""
    network = self.network
    grammar = self.grammar
    hosts = network.config.hosts()
    active_B = ~is_waiting(state, grammar)
    key_B, next_key_B = split_keys(state.key_B)
    token_B = jnp.where(active_B, self._token(state, key_B), 0)
    mode_B = jnp.where(active_B, grammar.next_CV[state.mode_B, token_B], state.mode_B)
    # Number of the medium of which the id announces a piece, or 0.
    inside_B = jnp.where(active_B, grammar.inside_C[mode_B], 0)
    count_B = state.written_B + active_B
    # A reply that has used up its room ends, even in the middle of an item.
    room = state.token_BO.shape[1]
    mode_B = jnp.where(active_B & (count_B >= room), DONE, mode_B)
    row_B = jnp.arange(len(token_B))
    # Waiting rows write past the end, where updates are dropped.
    write_B = jnp.where(active_B, state.written_B, room)

    dtype = jnp.dtype(network.config.dtype)
    # In place of an id that announces a piece, the piece is embedded.
    text_B = jnp.where(inside_B > 0, -1, token_B)
    x_BD = network.embeds[TEXT].tokens(text_B, dtype)
    modality_B = jnp.where(active_B, hosts.numbers[TEXT], 0)
    pieces = dict(state.piece_BO)
    for name, written_BO in state.piece_BO.items():
      announced_B = inside_B == hosts.numbers[name]
      piece_B = self._piece(name, state, announced_B, key_B)
      place_B3 = jnp.zeros((len(row_B), FORM), jnp.int32)
      place_B3 = place_B3.at[:, 0].set(state.item_pieces_B)
      embedded_BD = network.embeds[name].written(piece_B, place_B3, dtype)
      x_BD = x_BD + jnp.where(announced_B[:, None], embedded_BD, 0)
      modality_B = jnp.where(announced_B, hosts.numbers[name], modality_B)
      pieces[name] = written_BO.at[row_B, write_B].set(piece_B, mode='drop')

    state = state._replace(
      mode_B=mode_B,
      key_B=next_key_B,
      written_B=count_B,
      item_pieces_B=jnp.where(inside_B > 0, state.item_pieces_B + 1, 0),
      token_BO=state.token_BO.at[row_B, write_B].set(token_B, mode='drop'),
      piece_BO=pieces,
    )
    position_B13 = jnp.broadcast_to(state.time_B[:, None, None], (len(row_B), 1, FORM))
    hidden_B1D, state = extend_rows(
      network,
      state,
      x_BD[:, None],
      modality_B[:, None],
      position_B13,
      self.bias_IE,
      self.mesh,
    )
    hidden_BD = jnp.where(active_B[:, None], hidden_B1D[:, 0], state.hidden_BD)
    return state._replace(hidden_BD=hidden_BD, time_B=state.time_B + active_B)

  def _token(self, state: DecodeState, key_B: Array) -> Array:
    """Returns the next id of each row, int32 (B,).

    It is one that the mode of the row allows, and none that would make an item longer
    than its medium permits.
    """
    hosts = self.network.config.hosts()
    sampling = self.sampling
    allowed_BV = self.grammar.allowed_CV[state.mode_B]
    inside_B = self.grammar.inside_C[state.mode_B]
    for name in state.piece_BO:
      writing = hosts.writing(name)
      is_inside_B = inside_B == hosts.numbers[name]
      full_B = is_inside_B & (state.item_pieces_B >= writing.longest)
      announces_V = jnp.arange(allowed_BV.shape[1]) == writing.piece
      allowed_BV = allowed_BV & ~(full_B[:, None] & announces_V)
    # Each device samples from whole rows: sorting a split one takes many exchanges.
    logits_BV = sharding.shard_items(self.network.heads[TEXT].logits(state.hidden_BD))

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

  def _piece(
    self, name: str, state: DecodeState, announced_B: Array, key_B: Array
  ) -> Array:
    """Returns a piece of a medium for every row, (B, …).

    The head runs only if some row needs the piece (`announced_B`).
    """
    written_BO = state.piece_BO[name]

    def sampled() -> Array:
      return self.network.heads[name].sample(
        state.hidden_BD,
        key_B,
        temperature=self.sampling.speech_temperature,
        top_p=self.sampling.top_p,
      )

    def zeros() -> Array:
      return jnp.zeros((len(written_BO), *written_BO.shape[2:]), written_BO.dtype)

    return jax.lax.cond(announced_B.any(), sampled, zeros)


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

  They are meaningless in rows that did not wait for one.

  Attributes:
    value_BM: pieces, as the host has them.
    form_B3: (time, height, width) of each item, in pieces.
  """

  value_BM: Array
  form_B3: Array


def write_block(
  params: Any,
  bias_IE: Array,
  state: DecodeState,
  grammar: Grammar,
  sampling: Sampling,
  *,
  block: BlockProgram,
  model: OmniModel,
  mesh: Mesh,
) -> tuple[DecodeState, Block]:
  """Writes one item in every row that waits for a block of this medium.

  The decoder reads the queries of all pieces, the head samples the pieces from its
  states, and the decoder reads the clean pieces and the id after the item.

  Args:
    params: pure dict of the model's parameters.
    bias_IE: router biases.
    model: abstract model.

  Returns:
    The state after the item, and the item of each row.
  """
  network = merge(model, params)
  hosts = model.config.hosts()
  medium = block.medium
  writing = hosts.writing(medium)
  number = hosts.numbers[medium]
  embed = network.embeds[medium]
  dtype = jnp.dtype(model.config.dtype)
  waits_B = grammar.block_C[state.mode_B] == number
  form_B3 = _form(state, writing.opening)
  place_BM3 = _places(form_B3, writing.longest)
  piece_M = jnp.arange(writing.longest)
  valid_BM = waits_B[:, None] & (piece_M[None] < form_B3.prod(axis=1)[:, None])
  place_BM3 = jnp.where(valid_BM[..., None], place_BM3, 0)
  position_BM3 = state.time_B[:, None, None] + place_BM3.astype(jnp.float32)
  modality_BM = jnp.where(valid_BM, number, 0)

  key_B, next_key_B = split_keys(state.key_B)
  query_BMD = embed.queries(place_BM3, dtype)
  state_BMD, state = extend_rows(
    network, state, query_BMD, modality_BM, position_BM3, bias_IE, mesh
  )
  value_BM = network.heads[medium].sample(
    state_BMD,
    place_BM3,
    valid_BM,
    key_B,
    guidance_U=jnp.broadcast_to(sampling.guidance, waits_B.shape),
    steps=block.steps,
  )

  clean_BMD = embed.written(value_BM, place_BM3, dtype)
  closing_B = jnp.full(len(waits_B), writing.closing)
  end_B1D = network.embeds[TEXT].tokens(closing_B, dtype)[:, None]
  end_time_B = state.time_B + form_B3.max(axis=1)
  end_position_B13 = jnp.broadcast_to(
    end_time_B[:, None, None], (len(waits_B), 1, FORM)
  )
  end_modality_B1 = jnp.where(waits_B, hosts.numbers[TEXT], 0)[:, None]
  hidden_BLD, state = extend_rows(
    network,
    state,
    jnp.concatenate([clean_BMD, end_B1D], axis=1),
    jnp.concatenate([modality_BM, end_modality_B1], axis=1),
    jnp.concatenate([position_BM3, end_position_B13], axis=1),
    bias_IE,
    mesh,
  )
  state = state._replace(
    mode_B=jnp.where(waits_B, grammar.after, state.mode_B),
    key_B=next_key_B,
    hidden_BD=jnp.where(waits_B[:, None], hidden_BLD[:, -1], state.hidden_BD),
    time_B=jnp.where(waits_B, end_time_B + 1, state.time_B),
  )
  return place_state(state), Block(value_BM, form_B3)


def _form(state: DecodeState, opening: tuple[tuple[int, ...], ...]) -> Array:
  """Returns the form of the item that each row is about to write, int32 (B, 3).

  The last ids of a row give the sizes; a size that the medium's opening lacks is 1.
  """
  sizes = opening[1:]
  form_B3 = jnp.ones((len(state.written_B), FORM), jnp.int32)
  for k, ids in enumerate(sizes):
    back = len(sizes) - k
    at_B1 = jnp.maximum(state.written_B - back, 0)[:, None]
    token_B = jnp.take_along_axis(state.token_BO, at_B1, axis=1)[:, 0]
    form_B3 = form_B3.at[:, FORM - back].set(token_B - ids[0] + 1)
  return form_B3


def _places(form_B3: Array, pieces: int) -> Array:
  """Returns (time, height, width) of each piece inside its item, int32 (B, M, 3)."""
  _, height_B, width_B = form_B3.T
  piece_1M = jnp.arange(pieces)[None]
  plane_B1 = jnp.maximum(height_B * width_B, 1)[:, None]
  width_B1 = jnp.maximum(width_B, 1)[:, None]
  inside_BM = piece_1M % plane_B1  # number of the piece inside its frame
  time_BM = piece_1M // plane_B1
  row_BM = inside_BM // width_B1
  column_BM = inside_BM % width_B1
  return jnp.stack([time_BM, row_BM, column_BM], axis=2)
