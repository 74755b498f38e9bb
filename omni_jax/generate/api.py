"""Generates from Python: `load(workdir).generate(content, want='any', seed=0)`."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from omni_jax import sharding
from omni_jax.checkpoint.placement import generation_config, generation_mesh
from omni_jax.checkpoint.restore import restore_run
from omni_jax.config import AVERAGE
from omni_jax.errors import UserError
from omni_jax.generate.decode import BlockProgram, decode, Sampling, write_block
from omni_jax.generate.grammar import block_writings, build_grammar, Grammar
from omni_jax.generate.prefill import DecodeState, grow, prefill, ReplySizes
from omni_jax.generate.prompt import chat, Content
from omni_jax.generate.reply import as_parts, items_of, WrittenItem
from omni_jax.modalities.contract import Part
from omni_jax.modalities.devices import TABLES, Tables
from omni_jax.modalities.text.tokenizer import ANY
from omni_jax.model import (
  abstract,
  batch_losses,
  decode_pieces,
  encode_pieces,
  encode_streams,
  ModelConfig,
  OmniModel,
)
from omni_jax.sequence.example import Example
from omni_jax.sequence.interleave import interleave, prompt_spans
from omni_jax.sequence.pack import LaidOut, lay_out, pack_rows
from omni_jax.types import Batch, RowBudget, Span, StreamSpec

BATCH = 64  # number of rows that are written together
# Positions and pieces are padded to a multiple of this, so that few lengths are compiled.
LENGTH_MULTIPLE = 32
IDS_PER_BLOCK = 8  # a reply has room for one block per so many ids of `max_new`


def block_sizes(model_config: ModelConfig) -> dict[str, int]:
  """Returns the largest number of pieces of an item of each medium written as a block."""
  writings = block_writings(model_config.hosts())
  return {name: writing.longest for name, writing in writings.items()}


def max_blocks(max_new: int) -> int:
  """Returns the number of blocks that a reply has room for."""
  return max(1, max_new // IDS_PER_BLOCK)


def reply_slots(model_config: ModelConfig, max_new: int, blocks: int = 1) -> int:
  """Returns the number of cache slots that a reply with this many blocks may take.

  A cache begins with room for one block and grows when more are written: decoding reads
  every slot for every id, whether it is filled or not.
  """
  longest = max(block_sizes(model_config).values(), default=0)
  if not longest:
    return max_new
  block_slots = 2 * longest + 1  # queries, clean pieces and the id after them
  return max_new + blocks * block_slots


class TrainedModel:
  """A restored run: its config and weights, and the jitted programs that generate.

  Args:
    params: parameters, as `checkpoint.restore.restore_run` places them.
    buffers: router biases, and the values of the frozen autoencoders.
    mesh: mesh of the parameters; None for one device.
    tables: media that the run may have.

  Attributes:
    config: config of the run.
    model_config: shapes of the network.
    step: training step of the parameters.
    hosts: media of the run.
    tokenizer: tokenizer of the run.
    mesh: mesh of the programs.
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
    self.config = config
    self.step = step
    self.model_config = ModelConfig.from_config(config.model, tables)
    self.hosts = self.model_config.hosts()
    self.tokenizer = self.hosts.tokenizer
    self.mesh = mesh or generation_mesh(self.model_config, {}, jax.local_devices()[:1])
    self._shards = sharding.num_shards(self.mesh, 'batch')
    self._batch = _rounded_up(BATCH, self._shards)
    self.params = params
    self._buffers = buffers
    self._compile(abstract(generation_config(self.model_config)))

  def _compile(self, model: OmniModel) -> None:
    """Creates the jitted programs; each is compiled at its first call."""
    on_mesh: dict[str, Any] = dict(model=model, mesh=self.mesh)
    prefill_rows = functools.partial(prefill, **on_mesh)
    write_blocks = functools.partial(write_block, **on_mesh)
    self._prefill = jax.jit(prefill_rows, static_argnames='sizes')
    self._decode = jax.jit(functools.partial(decode, **on_mesh), donate_argnums=2)
    self._block = jax.jit(write_blocks, static_argnames='block', donate_argnums=2)
    self._losses = jax.jit(functools.partial(batch_losses, **on_mesh))
    encode = functools.partial(encode_pieces, self.model_config)
    decode_codes = functools.partial(decode_pieces, self.model_config)
    self._encode_streams = jax.jit(functools.partial(encode_streams, self.model_config))
    self._encode_pieces = jax.jit(encode, static_argnums=0)
    self._decode_pieces = jax.jit(decode_codes, static_argnums=0)

  @property
  def frozen(self) -> dict[str, Any]:
    """The values of the autoencoders, by name."""
    return self._buffers['frozen']

  def generate(
    self,
    content: Content,
    want: str = ANY,
    seed: int = 0,
    *,
    language: str = '',
    voice: str = '',
    **options: Any,
  ) -> list[Part]:
    """Returns the reply to one prompt.

    Args:
      content: text, a list of content parts, or an example in the chat form.
      want: 'text', a medium such as 'image' or 'audio', or 'any' to let the model
        choose.
      language, voice: language and voice of the answer, where the content does not set
        them.
      options: as in `generate_batch`.

    Raises:
      UserError: as `generate_batch`, and for an empty prompt.
    """
    prompt = chat(content, want, language=language, voice=voice)
    return self.generate_batch([prompt], want, seed, **options)[0]

  def generate_batch(
    self, prompts: Sequence[Example], want: str = ANY, seed: int = 0, **options: Any
  ) -> list[list[Part]]:
    """Returns the replies to prompts.

    A reply depends on its prompt, on the seed and on the number of the prompt, but not
    on the other prompts.

    Args:
      prompts: examples in the chat form that end with an empty message of the
        assistant.
      want: as in `generate`.
      options: temperature, top_p, speech_temperature, guidance, max_new or dit_steps,
        instead of their defaults in `config.generate`.

    Raises:
      UserError: for an unknown want or option, or for a prompt that does not fit the
        context.
    """
    settings = self.config.generate.to_dict()
    unknown = sorted(options.keys() - settings.keys())
    if unknown:
      raise UserError(
        f'unknown options of generation: {unknown}; they are {sorted(settings)}'
      )
    settings.update(options)
    grammar = jax.tree.map(jnp.asarray, build_grammar(self.hosts, want))
    examples = [self._lay_out(prompt) for prompt in prompts]
    keys_of = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))
    rows = self._batch if len(examples) > 1 else 1
    replies: list[list[str | WrittenItem]] = []
    for first in range(0, len(examples), rows):
      group = examples[first : first + rows]
      key_B = keys_of(jnp.arange(first, first + rows))
      with jax.set_mesh(self.mesh):
        written = self._write(group, grammar, settings, key_B)
      replies += written[: len(group)]
    return as_parts(replies, self._decoders(), self.hosts)

  def _lay_out(self, prompt: Example) -> LaidOut:
    """Returns the positions of a prompt, which must fit the context."""
    example = lay_out(prompt_spans(prompt, self.hosts), self.hosts)
    context = self.config.data.budget.length
    if example.length >= context:
      raise UserError(
        f'the prompt has {example.length} positions, but the context of this model has '
        f'{context}: shorten the prompt'
      )
    return example

  def _decoders(self) -> dict[str, Callable[[list[np.ndarray]], list[np.ndarray]]]:
    """Returns a function from codes to pieces for each medium written as codes."""
    decoders: dict[str, Callable[[list[np.ndarray]], list[np.ndarray]]] = {}
    for stream, name in self.model_config.coded_streams().items():
      spec = self._spec(stream)
      if spec.written:
        decoders[spec.medium] = functools.partial(self.decode_items, name)
    return decoders

  def _spec(self, stream: str) -> StreamSpec:
    return next(spec for spec in self.hosts.streams if spec.name == stream)

  def _by_rows(self, tree: Any, rows: int) -> Any:
    """Returns arrays of this many rows on the mesh, split if the mesh divides them."""
    place = sharding.batch_sharding(self.mesh)
    if rows % self._shards:
      place = sharding.replicated(self.mesh)
    return jax.device_put(tree, place)

  def _pack(self, examples: Sequence[LaidOut], rows: int) -> Batch:
    """Returns a batch of one example per row; surplus rows are empty."""
    all_needs = [example.needs for example in examples]
    positions, *needs = np.max(all_needs, axis=0).tolist()
    streams = {}
    for k, spec in enumerate(self.hosts.streams):
      pieces = needs[2 * k]
      items = needs[2 * k + 1]
      unit = spec.block or LENGTH_MULTIPLE
      # With blocks, each item may begin a new one.
      room = items * unit if spec.block else _rounded_up(pieces, unit)
      streams[spec.name] = (max(room, unit), max(items, 1))
    budget = RowBudget(rows, _rounded_up(positions, LENGTH_MULTIPLE), streams)
    return self._by_rows(pack_rows(examples, budget, self.hosts), rows)

  def _write(
    self,
    prompts: Sequence[LaidOut],
    grammar: Grammar,
    settings: dict[str, Any],
    key_B: jax.Array,
  ) -> list[list[str | WrittenItem]]:
    """Returns the replies of one batch of prompts, with media as they were written."""
    rows = len(key_B)
    surplus = [prompts[0]] * (rows - len(prompts))  # written, but not returned
    batch = self._pack([*prompts, *surplus], rows)
    batch = self._encode_streams(self.frozen, batch)
    key_B = self._by_rows(key_B, rows)
    bias_IE = self._buffers['router_bias']
    values = [jnp.float32(settings[name]) for name in Sampling._fields]
    sampling = Sampling(*values)
    max_new = settings['max_new']
    prompt_slots = batch.token_BL.shape[1]
    room = 1  # blocks that the cache has room for
    sizes = ReplySizes(prompt_slots + reply_slots(self.model_config, max_new), max_new)
    state = self._prefill(self.params, bias_IE, batch, key_B, sizes=sizes)
    blocks: list[list[WrittenItem]] = [[] for _ in key_B]
    block_C = np.asarray(grammar.block_C)
    names = {number: name for name, number in self.hosts.numbers.items()}
    while True:
      state = self._decode(self.params, bias_IE, state, grammar, sampling)
      number_B = block_C[np.asarray(state.mode_B)]  # medium of the block, or 0
      waiting = np.flatnonzero(number_B)
      most_blocks = max((len(blocks[row]) for row in waiting), default=0)
      if not len(waiting) or most_blocks == max_blocks(max_new):
        break
      if most_blocks == room:
        room = min(2 * room, max_blocks(max_new))
        slots = prompt_slots + reply_slots(self.model_config, max_new, room)
        state = state._replace(cache=grow(state.cache, slots=slots))
      number = int(number_B[waiting[0]])
      medium = names[number]
      program = BlockProgram(medium, settings['dit_steps'])
      state, block = self._block(
        self.params, bias_IE, state, grammar, sampling, block=program
      )
      for row in np.flatnonzero(number_B == number):
        time, height, width = np.asarray(block.form_B3[row]).tolist()
        pieces = np.asarray(block.value_BM[row])[: time * height * width]
        blocks[row].append(WrittenItem(medium, pieces, (time, height, width)))
    return self._items(state, blocks)

  def _items(
    self, state: DecodeState, blocks: Sequence[Sequence[WrittenItem]]
  ) -> list[list[str | WrittenItem]]:
    """Returns the texts and media of each row.

    Args:
      blocks: by row, the items that were written as a block.
    """
    tokens = np.asarray(state.token_BO).tolist()
    pieces = {name: np.asarray(array) for name, array in state.piece_BO.items()}
    replies = []
    for row, row_blocks in enumerate(blocks):
      row_pieces = {name: array[row] for name, array in pieces.items()}
      replies.append(items_of(tokens[row], row_pieces, row_blocks, self.hosts))
    return replies

  def encode_payloads(self, name: str, payloads: Sequence[Any]) -> list[np.ndarray]:
    """Returns the codes (pieces, …) of payloads.

    Args:
      name: name of an autoencoder.
    """
    medium, _ = self.model_config.tables.autoencoders()[name]
    host = self.hosts[medium]
    codes = []
    for first in range(0, len(payloads), self._batch):
      items = []
      for payload in payloads[first : first + self._batch]:
        span = Span(medium, payload=payload)
        host.form(span)  # raises an error if the payload does not fit
        items.append(host.pieces(span)[0])
      value_NM, item_NM = self._by_rows(_padded(items, self._batch), self._batch)
      code_NM = self._encode_pieces(name, self.frozen[name], value_NM, item_NM)
      codes += _unpadded(code_NM, items)
    return codes

  def decode_items(self, name: str, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the pieces of items given as codes (pieces, …).

    Items are padded at their end, which does not change their pieces.

    Args:
      name: name of an autoencoder.
    """
    pieces = []
    for first in range(0, len(codes), self._batch):
      items = list(codes[first : first + self._batch])
      code_NM, _ = self._by_rows(_padded(items, self._batch), self._batch)
      value_NM = self._decode_pieces(name, self.frozen[name], code_NM)
      pieces += _unpadded(value_NM, items)
    return pieces

  def decode_payloads(self, name: str, codes: Sequence[np.ndarray]) -> list[Any]:
    """Returns the payloads of items given as codes; inverts `encode_payloads`."""
    medium, _ = self.model_config.tables.autoencoders()[name]
    host = self.hosts[medium]
    payloads = []
    for pieces in self.decode_items(name, codes):
      form = host.form_of((), len(pieces))
      payloads.append(host.join_pieces(pieces, form))
    return payloads

  def loss(self, examples: Sequence[Example]) -> dict[str, float]:
    """Returns the mean loss of each head on examples with answers.

    The units are those of the heads: nats per id, squared error, nats per piece.
    """
    laid_out = []
    for example in examples:
      name = str(example.get('id', ''))
      laid_out.append(lay_out(interleave(example, self.hosts), self.hosts, name))
    full = len(laid_out) // self._batch * self._batch
    batches = []
    for first in range(0, full, self._batch):
      batches.append(self._pack(laid_out[first : first + self._batch], self._batch))
    # The rest goes one by one on each device: a batch of every other size would be
    # compiled anew.
    for first in range(full, len(laid_out), self._shards):
      batches.append(self._pack(laid_out[first : first + self._shards], self._shards))
    totals: dict[str, np.ndarray] = {}
    for batch in batches:
      with jax.set_mesh(self.mesh):
        losses = self._losses(self.params, self._buffers, batch, jax.random.key(0))
      for name, head in losses.heads.items():
        sums = np.array([head.total, head.weight])
        totals[name] = totals.get(name, np.zeros(2)) + sums
    means = {}
    for name, (total, weight) in totals.items():
      if weight:
        means[name] = float(total / weight)
    return means


def _rounded_up(n: int, unit: int) -> int:
  """Returns n rounded up to a multiple of `unit`, at least one unit."""
  return max(1, -(-n // unit)) * unit


def _padded(items: Sequence[np.ndarray], rows: int) -> tuple[np.ndarray, np.ndarray]:
  """Pads items (M, …) to one length, one per row.

  Returns:
    The pieces (rows, M, …), and the number of each piece's item, which is 1 everywhere.
  """
  longest = _rounded_up(max(len(item) for item in items), LENGTH_MULTIPLE)
  first = items[0]
  value_NM = np.zeros((rows, longest, *first.shape[1:]), first.dtype)
  for row, item in zip(value_NM, items, strict=False):
    row[: len(item)] = item
  return value_NM, np.ones((rows, longest), np.int32)


def _unpadded(values: jax.Array, items: Sequence[np.ndarray]) -> list[np.ndarray]:
  """Returns the rows of `values` that belong to items, cut to the lengths of these."""
  rows = np.asarray(values)
  return [row[: len(item)] for row, item in zip(rows, items, strict=False)]


def load(
  workdir: str,
  step: int | None = None,
  weights: str = AVERAGE,
  mesh: Mapping[str, int] | None = None,
  tables: Tables = TABLES,
) -> TrainedModel:
  """Restores a run on the devices of this process.

  Args:
    workdir: folder of the run.
    step: step of the checkpoint; None for the last one.
    weights: 'average' for the moving average of the parameters, where the run keeps
      one, or 'raw' for the parameters as trained.
    mesh: sizes of the axes data, expert, tensor and context, 1 by default: `data` and
      `expert` split prompts, `tensor` and `expert` weights. None takes all devices of
      this process in the way that suits the model: it splits prompts, and weights only
      as far as one device should not hold all of them.
    tables: media that the run may have.

  Raises:
    UserError: if there is no such run or step, or if its arrays do not fit its config.
  """
  run = restore_run(workdir, step, weights, tables, mesh)
  return TrainedModel(run.config, run.step, run.params, run.buffers, run.mesh, tables)
