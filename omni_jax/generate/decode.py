"""The jitted decode loop for what is written step by step, and the writing of a block between two turns of it."""

from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh

from omni_jax.generate.grammar import DONE, FORM, Grammar
from omni_jax.generate.prefill import append, Rows, split_rows
from omni_jax.modalities.hosts import TEXT
from omni_jax.modalities.text.head import sample_token
from omni_jax.model import merge, OmniModel


class Sampling(NamedTuple):
  """How freely to sample; values, so that changing one does not compile anew.

  Attributes:
    temperature: of text; 0 takes the best.
    speech_temperature: of what is written one piece at a time.
    guidance: of what is written as a block; 1 for none.
  """

  temperature: Array
  top_p: Array
  speech_temperature: Array
  guidance: Array


def waiting(rows: Rows, grammar: Grammar) -> Array:
  """True where the loop has nothing to do: the reply is done, or a block must be written first."""
  return (rows.mode_B == DONE) | (grammar.block_M[rows.mode_B] > 0)


def decode(
  params: Any,
  bias_IE: Array,
  rows: Rows,
  grammar: Grammar,
  sampling: Sampling,
  *,
  model: OmniModel,
  mesh: Mesh,
) -> Rows:
  """Writes until every row is done or waits for a block."""
  writer = _Writer(merge(model, params), bias_IE, grammar, sampling, mesh)

  def unfinished(rows: Rows) -> Array:
    return ~waiting(rows, grammar).all()

  return jax.lax.while_loop(unfinished, writer.say, rows)


class _Writer(NamedTuple):
  """What every turn of the loop needs."""

  network: OmniModel
  bias_IE: Array
  grammar: Grammar
  sampling: Sampling
  mesh: Mesh

  def say(self, rows: Rows) -> Rows:
    """Writes one more id, and the piece that it announces, in every row that is not waiting."""
    network, grammar = self.network, self.grammar
    hosts = network.config.hosts()
    active_B = ~waiting(rows, grammar)
    now_B, later_B = split_rows(rows.key_B)
    token_B = jnp.where(active_B, self._token(rows, now_B), 0)
    mode_B = jnp.where(active_B, grammar.next_MV[rows.mode_B, token_B], rows.mode_B)
    inside_B = jnp.where(active_B, grammar.inside_M[mode_B], 0)  # a piece is written
    said_B = rows.said_B + active_B
    # A reply that has used up its room is closed, whatever it was in the middle of.
    room = rows.token_BO.shape[1]
    mode_B = jnp.where(active_B & (said_B >= room), DONE, mode_B)
    row = jnp.arange(len(token_B))
    write_B = jnp.where(active_B, rows.said_B, room)

    dtype = jnp.dtype(network.config.dtype)
    # The id that announces a piece gives way to the piece.
    words_B = jnp.where(inside_B > 0, -1, token_B)
    x_BD = network.embeds[TEXT].tokens(words_B, dtype)
    modality_B = jnp.where(active_B, hosts.numbers[TEXT], 0)
    pieces = dict(rows.piece_BO)
    for name, written_BO in rows.piece_BO.items():
      mine_B = inside_B == hosts.numbers[name]
      piece_B = self._piece(name, rows, mine_B, now_B)
      place_B3 = jnp.zeros((len(row), FORM), jnp.int32).at[:, 0].set(rows.count_B)
      embedded_BD = network.embeds[name].written(piece_B, place_B3, dtype)
      x_BD = x_BD + jnp.where(mine_B[:, None], embedded_BD, 0)
      modality_B = jnp.where(mine_B, hosts.numbers[name], modality_B)
      pieces[name] = written_BO.at[row, write_B].set(piece_B, mode='drop')

    rows = rows._replace(
      mode_B=mode_B,
      key_B=later_B,
      said_B=said_B,
      count_B=jnp.where(inside_B > 0, rows.count_B + 1, 0),
      token_BO=rows.token_BO.at[row, write_B].set(token_B, mode='drop'),
      piece_BO=pieces,
    )
    position_BL3 = jnp.broadcast_to(rows.time_B[:, None, None], (len(row), 1, 3))
    hidden_BLD, rows = append(
      network,
      rows,
      x_BD[:, None],
      modality_B[:, None],
      position_BL3,
      self.bias_IE,
      self.mesh,
    )
    hidden_BD = jnp.where(active_B[:, None], hidden_BLD[:, 0], rows.hidden_BD)
    return rows._replace(hidden_BD=hidden_BD, time_B=rows.time_B + active_B)

  def _token(self, rows: Rows, key_B: Array) -> Array:
    """Returns the next id of each row: one that its mode allows; none that would make an item too long."""
    hosts = self.network.config.hosts()
    allowed_BV = self.grammar.allowed_MV[rows.mode_B]
    inside_B = self.grammar.inside_M[rows.mode_B]
    for name in rows.piece_BO:
      writing = hosts[name].writing()
      full_B = (inside_B == hosts.numbers[name]) & (rows.count_B >= writing.longest)
      announces_V = jnp.arange(allowed_BV.shape[1]) == writing.piece
      allowed_BV = allowed_BV & ~(full_B[:, None] & announces_V)
    logits_BV = self.network.heads[TEXT].logits(rows.hidden_BD)
    sampling = self.sampling

    def pick(logits_V, allowed_V, key):
      return sample_token(
        logits_V[None],
        allowed_V[None],
        key,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
      )[0]

    return jax.vmap(pick)(logits_BV, allowed_BV, key_B)

  def _piece(self, name: str, rows: Rows, mine_B: Array, key_B: Array) -> Array:
    """Returns a piece of a medium for every row; nothing is computed where no row wants one."""
    written_BO = rows.piece_BO[name]
    return jax.lax.cond(
      mine_B.any(),
      lambda: self.network.heads[name].sample(
        rows.hidden_BD,
        key_B,
        temperature=self.sampling.speech_temperature,
        top_p=self.sampling.top_p,
      ),
      lambda: jnp.zeros((len(written_BO), *written_BO.shape[2:]), written_BO.dtype),
    )


class BlockOf(NamedTuple):
  """What a program writes as a block: static.

  Attributes:
    medium: its name.
    steps: of its sampler.
  """

  medium: str
  steps: int


class Block(NamedTuple):
  """The items that were written as a block, one a row.

  Attributes:
    value_BM: pieces as the host has them; meaningless in rows that did not wait.
    form_B3: their sizes.
  """

  value_BM: Array
  form_B3: Array


def write_block(
  params: Any,
  bias_IE: Array,
  rows: Rows,
  grammar: Grammar,
  sampling: Sampling,
  *,
  block: BlockOf,
  model: OmniModel,
  mesh: Mesh,
) -> tuple[Rows, Block]:
  """Writes the item of every row that waits for one of this medium: queries in, the head, clean pieces and the end in.

  Returns:
    The rows, ready to go on, and what was written.
  """
  network, hosts = merge(model, params), model.config.hosts()
  medium = block.medium
  writing, number = hosts[medium].writing(), hosts.numbers[medium]
  embed, head = network.embeds[medium], network.heads[medium]
  dtype = jnp.dtype(model.config.dtype)
  waits_B = grammar.block_M[rows.mode_B] == number
  form_B3 = _form(rows, writing.opening)
  _, high_B, wide_B = form_B3.T
  piece_M = jnp.arange(writing.longest)
  plane_B1 = jnp.maximum(high_B * wide_B, 1)[:, None]
  width_B1 = jnp.maximum(wide_B, 1)[:, None]
  inside_BM = piece_M[None] % plane_B1
  places = (piece_M[None] // plane_B1, inside_BM // width_B1, inside_BM % width_B1)
  place_BM3 = jnp.stack(places, axis=2)
  valid_BM = waits_B[:, None] & (piece_M[None] < form_B3.prod(axis=1)[:, None])
  place_BM3 = jnp.where(valid_BM[..., None], place_BM3, 0)
  position_BM3 = rows.time_B[:, None, None] + place_BM3.astype(jnp.float32)
  modality_BM = jnp.where(valid_BM, number, 0)

  now_B, later_B = split_rows(rows.key_B)
  query_BMD = embed.queries(place_BM3, dtype)
  run = (bias_IE, mesh)
  state_BMD, rows = append(network, rows, query_BMD, modality_BM, position_BM3, *run)
  value_BM = head.sample(
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
    *run,
  )
  rows = rows._replace(
    mode_B=jnp.where(waits_B, grammar.after, rows.mode_B),
    key_B=later_B,
    hidden_BD=jnp.where(waits_B[:, None], hidden_BLD[:, -1], rows.hidden_BD),
    time_B=jnp.where(waits_B, end_time_B + 1, rows.time_B),
  )
  return rows, Block(value_BM, form_B3)


def _form(rows: Rows, opening: tuple[tuple[int, ...], ...]) -> Array:
  """Returns (time, height, width) of the items to write, as the last ids said; 1 where nothing was said of a size."""
  sizes = opening[1:]
  form_B3 = jnp.ones((len(rows.said_B), FORM), jnp.int32)
  for k, ids in enumerate(sizes):
    back = len(sizes) - k
    at_B1 = jnp.maximum(rows.said_B - back, 0)[:, None]
    token_B = jnp.take_along_axis(rows.token_BO, at_B1, axis=1)[:, 0]
    form_B3 = form_B3.at[:, FORM - back].set(token_B - ids[0] + 1)
  return form_B3
