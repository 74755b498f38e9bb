"""The jitted decode loop for text and speech, and the drawing of an image between two turns of it."""

from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh

from omni_jax.generate.grammar import Grammar, Mode
from omni_jax.generate.prefill import append, Rows, split_rows
from omni_jax.modalities.text.head import sample_token
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.model import merge, OmniModel
from omni_jax.types import Modality


class Sampling(NamedTuple):
  """How freely to sample; values, so that changing one does not compile anew."""

  temperature: Array  # of text; 0 takes the best
  top_p: Array
  speech_temperature: Array
  guidance: Array  # of the image head; 1 for none


def waiting(rows: Rows) -> Array:
  """True where the loop has nothing to do: the reply is done, or an image must be drawn first."""
  return (rows.mode_B == Mode.DONE) | (rows.mode_B == Mode.DRAW)


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
  """Writes text and speech until every row is done or waits for an image."""
  omni, tokenizer = merge(model, params), Tokenizer(model.config.tokenizer)

  def turn(rows: Rows) -> Rows:
    return _say(omni, tokenizer, bias_IE, rows, grammar, sampling, mesh)

  return jax.lax.while_loop(lambda rows: ~waiting(rows).all(), turn, rows)


def _say(
  omni: OmniModel,
  tokenizer: Tokenizer,
  bias_IE: Array,
  rows: Rows,
  grammar: Grammar,
  sampling: Sampling,
  mesh: Mesh,
) -> Rows:
  """One more id (and, for `<frame>`, its codes) in every row that is not waiting."""
  frame, active_B = tokenizer.special('frame'), ~waiting(rows)
  now_B, later_B = split_rows(rows.key_B)
  allowed_BV = grammar.allowed_MV[rows.mode_B]
  full_B = (rows.frames_B >= omni.config.media.audio.frames) & (
    rows.mode_B == Mode.AUDIO
  )
  allowed_BV = allowed_BV & ~(
    full_B[:, None] & (jnp.arange(allowed_BV.shape[1]) == frame)
  )
  logits_BV = omni.heads['text'].logits(rows.hidden_BD)

  def pick(logits_V, allowed_V, key):
    return sample_token(
      logits_V[None],
      allowed_V[None],
      key,
      temperature=sampling.temperature,
      top_p=sampling.top_p,
    )[0]

  token_B = jnp.where(active_B, jax.vmap(pick)(logits_BV, allowed_BV, now_B), 0)
  framed_B = token_B == frame
  code_BJ = jax.lax.cond(
    framed_B.any(),
    lambda: omni.heads['audio'].sample(
      rows.hidden_BD,
      now_B,
      temperature=sampling.speech_temperature,
      top_p=sampling.top_p,
    ),
    lambda: jnp.zeros(rows.code_BOJ.shape[::2], jnp.int32),
  )
  mode_B = jnp.where(active_B, grammar.next_MV[rows.mode_B, token_B], rows.mode_B)
  write_B = jnp.where(active_B, rows.said_B, rows.token_BO.shape[1])
  row = jnp.arange(len(token_B))
  said_B = rows.said_B + active_B
  # A reply that has used up its room is closed, whatever it was in the middle of.
  mode_B = jnp.where(
    active_B & (said_B >= rows.token_BO.shape[1]), int(Mode.DONE), mode_B
  )
  rows = rows._replace(
    mode_B=mode_B,
    key_B=later_B,
    said_B=said_B,
    frames_B=jnp.where(framed_B, rows.frames_B + 1, 0),
    token_BO=rows.token_BO.at[row, write_B].set(token_B, mode='drop'),
    code_BOJ=rows.code_BOJ.at[row, write_B].set(code_BJ, mode='drop'),
  )
  x_BLD = _embed_said(omni, token_B, framed_B, code_BJ)[:, None]
  modality_B = jnp.where(
    active_B, jnp.where(framed_B, int(Modality.AUDIO), int(Modality.TEXT)), 0
  )
  position_BL3 = jnp.broadcast_to(rows.time_B[:, None, None], (len(token_B), 1, 3))
  hidden_BLD, rows = append(
    omni, rows, x_BLD, modality_B[:, None], position_BL3, bias_IE, mesh
  )
  return rows._replace(
    hidden_BD=jnp.where(active_B[:, None], hidden_BLD[:, 0], rows.hidden_BD),
    time_B=rows.time_B + active_B,
  )


def _embed_said(
  omni: OmniModel, token_B: Array, framed_B: Array, code_BJ: Array
) -> Array:
  dtype = jnp.dtype(omni.config.dtype)
  text_BD = omni.text_embed.tokens(jnp.where(framed_B, -1, token_B), dtype)
  return text_BD + jnp.where(
    framed_B[:, None], omni.audio_embed.embed_codes(code_BJ, dtype), 0
  )


def draw(
  params: Any,
  bias_IE: Array,
  rows: Rows,
  grammar: Grammar,
  sampling: Sampling,
  *,
  model: OmniModel,
  mesh: Mesh,
  steps: int,
) -> tuple[Rows, Array]:
  """Draws the image of every row that waits for one: queries in, DiT, clean patches and `<eoi>` in.

  Returns:
    The rows, ready to go on, and pixels_Bhwc (of rows that did not wait: meaningless).
  """
  omni, tokenizer, image = (
    merge(model, params),
    Tokenizer(model.config.tokenizer),
    model.config.media.image,
  )
  dtype = jnp.dtype(model.config.dtype)
  drawing_B = rows.mode_B == Mode.DRAW
  sizes_B2 = jnp.take_along_axis(
    rows.token_BO, jnp.maximum(rows.said_B[:, None] - jnp.array([2, 1]), 0), axis=1
  )
  high_B, wide_B = (sizes_B2 - tokenizer.special('size:1') + 1).T
  r_P, c_P = jnp.divmod(jnp.arange(image.patches), image.grid[1])
  valid_BP = drawing_B[:, None] & (r_P < high_B[:, None]) & (c_P < wide_B[:, None])
  place_P3 = jnp.stack([jnp.zeros_like(r_P), r_P, c_P], axis=1).astype(jnp.float32)
  position_BP3 = rows.time_B[:, None, None] + place_P3
  modality_BP = jnp.where(valid_BP, int(Modality.IMAGE), 0)
  query_BPD = jnp.broadcast_to(
    omni.image_embed.query[...].astype(dtype),
    (*valid_BP.shape, omni.config.decoder.width),
  )
  now_B, later_B = split_rows(rows.key_B)
  block_BP = valid_BP.astype(jnp.int32) if omni.sees_noise else None
  pixels_Bhwc, rows = omni.heads['image'].draw(
    lambda x_BPD: append(
      omni, rows, x_BPD, modality_BP, position_BP3, bias_IE, mesh, block_BP
    ),
    query_BPD,
    valid_BP,
    now_B,
    guidance_B=jnp.broadcast_to(sampling.guidance, drawing_B.shape),
    steps=steps,
  )
  clean_BPD = omni.image_embed.patches(
    pixels_Bhwc[:, None], dtype
  ) + omni.image_embed.clean[...].astype(dtype)
  end_BD = omni.text_embed.tokens(
    jnp.full(len(high_B), tokenizer.special('eoi')), dtype
  )
  end_time_B = rows.time_B + jnp.maximum(high_B, wide_B)
  end_position_BL3 = jnp.broadcast_to(end_time_B[:, None, None], (len(high_B), 1, 3))
  end_modality_BL = jnp.where(drawing_B, int(Modality.TEXT), 0)[:, None]
  hidden_BLD, rows = append(
    omni,
    rows,
    jnp.concatenate([clean_BPD, end_BD[:, None]], axis=1),
    jnp.concatenate([modality_BP, end_modality_BL], axis=1),
    jnp.concatenate([position_BP3, end_position_BL3], axis=1),
    bias_IE,
    mesh,
  )
  return rows._replace(
    mode_B=jnp.where(drawing_B, grammar.after_draw, rows.mode_B),
    key_B=later_B,
    hidden_BD=jnp.where(drawing_B[:, None], hidden_BLD[:, -1], rows.hidden_BD),
    time_B=jnp.where(drawing_B, end_time_B + 1, rows.time_B),
  ), pixels_Bhwc
