"""`load(workdir).generate(content, want='any', seed=0) -> list[Part]`: the Python side of generation."""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from omni_jax import sharding
from omni_jax.checkpoint.restore import restore_run
from omni_jax.errors import UserError
from omni_jax.generate.decode import BlockOf, decode, Sampling, write_block
from omni_jax.generate.grammar import Grammar, grammar
from omni_jax.generate.prefill import prefill, Room
from omni_jax.generate.prompt import chat
from omni_jax.generate.reply import as_parts, items_of, Written
from omni_jax.modalities.contract import Part
from omni_jax.modalities.devices import TABLES, Tables
from omni_jax.modalities.hosts import TEXT
from omni_jax.model import (
  abstract,
  batch_losses,
  decode_pieces,
  encode_pieces,
  encode_streams,
  ModelConfig,
)
from omni_jax.sequence.example import Example
from omni_jax.sequence.interleave import interleave, prompt_spans
from omni_jax.sequence.pack import Laid, lay_out, pack_rows
from omni_jax.types import Batch, RowBudget, Span, StreamSpec

BATCH = 64  # rows that are written together; more prompts take turns
PIECE = (
  32  # positions and pieces are padded to a multiple, so that few lengths are compiled
)
POSITIONS_PER_BLOCK = 8  # of `max_new`: how many blocks a reply has room for


def block_media(model_config: ModelConfig) -> dict[str, int]:
  """Returns the media that are written as a block, and the most pieces of an item."""
  found = {}
  for name, host in model_config.hosts().items():
    writing = host.writing() if name != TEXT else None
    if writing is not None and writing.piece is None:
      found[name] = writing.longest
  return found


def most_blocks(max_new: int) -> int:
  """Returns how many blocks a reply has room for."""
  return max(1, max_new // POSITIONS_PER_BLOCK)


def reply_slots(model_config: ModelConfig, max_new: int) -> int:
  """Returns the cache slots that a reply may take behind its prompt: ids, and queries and clean pieces of blocks."""
  longest = max(block_media(model_config).values(), default=0)
  return max_new + most_blocks(max_new) * (2 * longest + 1) * (longest > 0)


class TrainedModel:
  """A restored run: config, parameters and buffers, and the jitted programs that generate.

  Attributes:
    config: of the run.
    model_config: the shapes of the network.
    step: that the parameters are of.
    hosts: of the run's media.
  """

  def __init__(
    self,
    config: ConfigDict,
    step: int,
    params: Any,
    buffers: Any,
    mesh: Mesh | None = None,
    tables: Tables = TABLES,
  ):
    self.config, self.step = config, step
    self.model_config = ModelConfig.from_config(config.model, tables)
    self.hosts = self.model_config.hosts()
    self.tokenizer = self.hosts.tokenizer
    self._mesh = mesh or sharding.make_mesh({}, jax.local_devices()[:1])
    self.params, self._buffers = params, buffers
    model = abstract(self.model_config)
    if mesh is not None:
      fit = lambda x, spec: sharding.fitting(mesh, spec, x.shape)
      layout = jax.tree.map(fit, params, sharding.param_specs(model))
      self.params = jax.device_put(params, layout)
      self._buffers = jax.device_put(buffers, sharding.replicated(mesh))
    parts = dict(model=model, mesh=self._mesh)
    self._prefill = jax.jit(functools.partial(prefill, **parts), static_argnames='room')
    self._decode = jax.jit(functools.partial(decode, **parts))
    self._block = jax.jit(
      functools.partial(write_block, **parts), static_argnames='block'
    )
    of_model = lambda function: functools.partial(function, self.model_config)
    self._encode_streams = jax.jit(of_model(encode_streams))
    self._encode = jax.jit(of_model(encode_pieces), static_argnums=0)
    self._decode_codes = jax.jit(of_model(decode_pieces), static_argnums=0)
    self._losses = jax.jit(functools.partial(batch_losses, **parts))

  @property
  def frozen(self) -> dict[str, Any]:
    """Values of the autoencoders, by name."""
    return self._buffers['frozen']

  def generate(
    self, content: Any, want: str = 'any', seed: int = 0, **options: Any
  ) -> list[Part]:
    """Answers one prompt: text, a list of content parts, or an example in the chat form.

    Args:
      want: 'text', a medium such as 'image' or 'audio', or 'any' for what the model itself opens.
      options: as of `generate_batch`; also `language` and `voice` of the answer.
    """
    control = {key: options.pop(key) for key in ('language', 'voice') if key in options}
    prompt = chat(content, want, **control)
    return self.generate_batch([prompt], want, seed, **options)[0]

  def generate_batch(
    self, prompts: Sequence[Example], want: str = 'any', seed: int = 0, **options: Any
  ) -> list[list[Part]]:
    """Answers prompts in the chat form, whose last message is the assistant's, with nothing written yet.

    A reply depends on its prompt, the seed and its number, not on its neighbours.

    Args:
      options: temperature, top_p, speech_temperature, guidance, max_new, dit_steps; defaults in config.generate.

    Raises:
      UserError: for an unknown want or option, or a prompt that leaves no room in the context.
    """
    settings = self.config.generate.to_dict()
    if unknown := sorted(set(options) - set(settings)):
      raise UserError(
        f'unknown option of generation: {unknown}; there are {sorted(settings)}'
      )
    rules = jax.tree.map(jnp.asarray, grammar(self.hosts, want))
    laid = [lay_out(prompt_spans(each, self.hosts), self.hosts) for each in prompts]
    self._check_room(laid)
    numbered = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))
    replies: list[list[str | Written]] = []
    for first in range(0, len(laid), BATCH):
      piece = laid[first : first + BATCH]
      rows = BATCH if len(laid) > 1 else 1
      keys = numbered(jnp.arange(first, first + rows))
      with jax.set_mesh(self._mesh):
        written = self._write(piece, rules, settings | options, keys)
      replies += written[: len(piece)]
    return as_parts(replies, self._decoders(), self.hosts)

  def _check_room(self, laid: Sequence[Laid]) -> None:
    context = self.config.data.budget.length
    for prompt in laid:
      if prompt.length >= context:
        raise UserError(
          f'the prompt has {prompt.length} positions, the context of this model {context}: shorten it'
        )

  def _decoders(self) -> dict[str, Any]:
    """Returns, by medium that is written as codes, what turns them into pieces."""
    found = {}
    for stream, name in self.model_config.coded().items():
      spec = self._spec(stream)
      if spec.written:
        found[spec.medium] = functools.partial(self.decode_items, name)
    return found

  def _spec(self, stream: str) -> StreamSpec:
    return next(spec for spec in self.hosts.streams if spec.name == stream)

  def _rows(self, laid: Sequence[Laid], rows: int) -> Batch:
    """Returns one example per row; rows that are left over repeat the first."""
    most = np.max([x.needs for x in laid], axis=0).tolist()
    streams = {}
    for k, spec in enumerate(self.hosts.streams):
      pieces, items = most[1 + 2 * k], most[2 + 2 * k]
      unit = spec.block or PIECE
      # With blocks, each item may begin a new one.
      room = items * unit if spec.block else _whole(pieces, unit)
      streams[spec.name] = (max(room, unit), max(items, 1))
    budget = RowBudget(rows, _whole(most[0], PIECE), streams)
    return pack_rows([*laid, *[laid[0]] * (rows - len(laid))], budget, self.hosts)

  def _write(
    self,
    laid: Sequence[Laid],
    rules: Grammar,
    settings: dict[str, Any],
    key_B: jax.Array,
  ) -> list[list[str | Written]]:
    """Returns the replies of one batch of prompts, codes not yet decoded."""
    batch = self._encode_streams(self.frozen, self._rows(laid, len(key_B)))
    bias_IE = self._buffers['router_bias']
    values = [jnp.float32(settings[name]) for name in Sampling._fields]
    sampling = Sampling(*values)
    most = most_blocks(settings['max_new'])
    new_slots = reply_slots(self.model_config, settings['max_new'])
    slots = batch.token_BL.shape[1] + new_slots
    room = Room(slots, settings['max_new'])
    rows = self._prefill(self.params, bias_IE, batch, key_B, room=room)
    blocks: list[list[Written]] = [[] for _ in key_B]
    block_M = np.asarray(rules.block_M)
    names = {number: name for name, number in self.hosts.numbers.items()}
    while True:
      rows = self._decode(self.params, bias_IE, rows, rules, sampling)
      waits_B = block_M[np.asarray(rows.mode_B)]
      waiting = np.flatnonzero(waits_B)
      if not len(waiting) or max(len(blocks[row]) for row in waiting) == most:
        break
      medium = names[int(waits_B[waiting[0]])]
      run = (self.params, bias_IE, rows, rules, sampling)
      program = BlockOf(medium, settings['dit_steps'])
      rows, block = self._block(*run, block=program)
      for row in np.flatnonzero(waits_B == self.hosts.numbers[medium]):
        form = tuple(int(size) for size in block.form_B3[row])
        pieces = np.asarray(block.value_BM[row])[: int(np.prod(form))]
        blocks[row].append(Written(medium, pieces, form))
    tokens = np.asarray(rows.token_BO).tolist()
    pieces = {name: np.asarray(array) for name, array in rows.piece_BO.items()}
    return [
      items_of(
        tokens[row],
        {name: array[row] for name, array in pieces.items()},
        blocks[row],
        self.hosts,
      )
      for row in range(len(key_B))
    ]

  def encode_payloads(self, name: str, payloads: Sequence[Any]) -> list[np.ndarray]:
    """Returns the codes (pieces, …) of payloads.

    Args:
      name: of an autoencoder.
    """
    medium, _ = self.model_config.tables.autoencoders()[name]
    host, codes = self.hosts[medium], []
    for first in range(0, len(payloads), BATCH):
      items = []
      for payload in payloads[first : first + BATCH]:
        span = Span(medium, payload=payload)
        host.form(span)  # refuses what does not fit
        items.append(host.pieces(span)[0])
      value_NM, item_NM = _padded(items, BATCH)
      made = np.asarray(self._encode(name, self.frozen[name], value_NM, item_NM))
      codes += [code[: len(item)] for code, item in zip(made, items, strict=False)]
    return codes

  def decode_items(self, name: str, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the pieces of items given as codes (pieces, …); padding behind an item is harmless."""
    pieces = []
    for first in range(0, len(codes), BATCH):
      items = list(codes[first : first + BATCH])
      code_NM, _ = _padded(items, BATCH)
      made = np.asarray(self._decode_codes(name, self.frozen[name], code_NM))
      pieces += [value[: len(item)] for value, item in zip(made, items, strict=False)]
    return pieces

  def decode_payloads(self, name: str, codes: Sequence[np.ndarray]) -> list[Any]:
    """Returns the payloads of items given as codes: the inverse of `encode_payloads`."""
    medium, _ = self.model_config.tables.autoencoders()[name]
    host = self.hosts[medium]
    pieces = self.decode_items(name, codes)
    return [host.joined(each, host.form_of((), len(each))) for each in pieces]

  def loss(self, examples: Sequence[Example]) -> dict[str, float]:
    """Returns the mean loss of each head on examples with answers (nats, squared error, nats per piece)."""
    laid = []
    for example in examples:
      name = str(example.get('id', ''))
      laid.append(lay_out(interleave(example, self.hosts), self.hosts, name))
    totals: dict[str, np.ndarray] = {}
    whole = len(laid) // BATCH * BATCH
    pieces = [laid[i : i + BATCH] for i in range(0, whole, BATCH)]
    for piece in pieces + [[x] for x in laid[whole:]]:
      batch = self._rows(piece, len(piece))
      with jax.set_mesh(self._mesh):
        losses = self._losses(self.params, self._buffers, batch, jax.random.key(0))
      for name, head in losses.heads.items():
        sums = np.array([head.total, head.weight])
        totals[name] = totals.get(name, np.zeros(2)) + sums
    return {name: float(total / n) for name, (total, n) in totals.items() if n}


def _whole(n: int, unit: int) -> int:
  """Returns n rounded up to a multiple of `unit`, at least one."""
  return max(1, -(-n // unit)) * unit


def _padded(items: Sequence[np.ndarray], rows: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns items (M, …), one a row, padded to one length, and 1 for every piece: each row is one item."""
  longest = _whole(max(map(len, items)), PIECE)
  value_NM = np.zeros((rows, longest, *items[0].shape[1:]), items[0].dtype)
  for row, item in zip(value_NM, items, strict=False):
    row[: len(item)] = item
  return value_NM, np.ones((rows, longest), np.int32)


def load(
  workdir: str,
  step: int | None = None,
  weights: str = 'average',
  mesh: Mapping[str, int] | None = None,
  tables: Tables = TABLES,
) -> TrainedModel:
  """Restores a run's parameters and buffers.

  Args:
    weights: 'average' (of the parameters, where the run keeps one) or 'raw'.
    mesh: sizes of the axes over which the parameters are then split, as `config.mesh` of a run; None for one device.
    tables: of the media that the run may have.

  Raises:
    UserError: if there is no such run or step, or if its arrays do not fit its config.
  """
  config, model, found = restore_run(workdir, step, weights, tables)
  devices = None if mesh is None else sharding.make_mesh(mesh)
  return TrainedModel(config, found, model['params'], model['buffers'], devices, tables)
