"""Builds and compiles the programs of a run, with shapes and shardings for arrays.

They are the train step, prefill, decode, and the writing of blocks such as images.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import pathlib
import tempfile
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from omni_jax import sharding
from omni_jax.checkpoint.init_values import init_buffers, init_frozen
from omni_jax.checkpoint.placement import generation_config, generation_params
from omni_jax.compile.memory import (
  bytes_on_a_device,
  from_dump,
  from_stats,
  Memory,
  read_texts,
)
from omni_jax.generate.api import block_sizes, reply_slots
from omni_jax.generate.decode import BlockProgram, decode, Sampling, write_block
from omni_jax.generate.grammar import build_grammar
from omni_jax.generate.prefill import DecodeState, prefill, ReplySizes
from omni_jax.modalities.text.tokenizer import ANY, TASKS
from omni_jax.model import abstract, encode_streams, ModelConfig, OmniModel
from omni_jax.sequence.pack import Packer
from omni_jax.train.plan import omni_program, Plan
from omni_jax.types import Batch


class Program(NamedTuple):
  """A program to compile.

  Attributes:
    mesh: mesh of the devices to compile for; they need not exist.
    function: jitted function.
    arguments: shapes with shardings of the arguments that take memory, by kind.
    call: arguments that the function is called with, as shapes with shardings.
  """

  mesh: Mesh
  function: Any
  arguments: Mapping[str, Any]
  call: tuple[Any, ...]


class CompileSeconds(NamedTuple):
  """The seconds that the compilation of a program took.

  Attributes:
    tracing: wall-clock seconds of tracing and lowering.
    compiling: wall-clock seconds of compiling.
    cpu: CPU seconds of this process while compiling.
  """

  tracing: float
  compiling: float
  cpu: float


class CompiledProgram(NamedTuple):
  """A compiled program, or what is known about one that does not fit.

  Attributes:
    memory: bytes on one device.
    text: optimized HLO, also of a program that does not fit.
    refusal: the compiler's message if the program does not fit, else ''.
    xla_cost: XLA's `cost_analysis`, which counts the body of a loop once; empty for a
      program that does not fit.
    seconds: seconds of the compilation.
  """

  memory: Memory
  text: str
  refusal: str
  xla_cost: Mapping[str, float]
  seconds: CompileSeconds


def _with_shardings(shapes: Any, shardings: Any) -> Any:
  """Returns the shapes of a tree with the shardings of a tree of the same structure."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )


def _with_sharding(shapes: Any, common: jax.sharding.Sharding) -> Any:
  """Returns the shapes of a tree, all with the same sharding."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=common), shapes
  )


def frozen_shapes(plan: Plan, mesh: Mesh) -> dict[str, Any]:
  """Returns the shapes of the autoencoders' values by name, replicated on all devices."""
  init = functools.partial(init_frozen, plan.model_config, seed=0)
  return _with_sharding(jax.eval_shape(init), sharding.replicated(mesh))


def batch_shapes(plan: Plan, mesh: Mesh) -> Batch:
  """Returns the shapes of a packed batch, its rows split over the batch axes."""
  budget = plan.budget
  group_budget = dataclasses.replace(budget, rows=budget.group)
  group = Packer(group_budget, plan.hosts).batch()
  batch_sharding = sharding.batch_sharding(mesh)

  def shape_of_all_groups(x: Any) -> jax.ShapeDtypeStruct:
    shape = (len(x) * budget.pools, *x.shape[1:])
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=batch_sharding)

  return jax.tree.map(shape_of_all_groups, group)


def train_program(plan: Plan) -> Program:
  """Returns the program of one update, as `train.stages.omni_stage` runs it."""
  program = omni_program(plan, frozen_shapes(plan, plan.mesh))
  state = _with_shardings(program.state, program.shardings)
  batch = batch_shapes(plan, plan.mesh)
  kinds = {
    'parameters': state.params,
    'optimizer': state.opt_state,
    'buffers': (state.buffers, state.step, state.rng),
    'batch': batch,
  }
  return Program(plan.mesh, program.step, kinds, (state, batch))


def _bytes_by_kind(program: Program) -> dict[str, float]:
  """Returns the bytes of a program's arguments on one device, by kind."""
  return {name: bytes_on_a_device(tree) for name, tree in program.arguments.items()}


def state_kinds(plan: Plan) -> dict[str, float]:
  """Returns the bytes on a device of a step's arguments and gradients, by kind.

  Nothing is compiled.
  """
  program = train_program(plan)
  kinds = _bytes_by_kind(program)
  kinds['gradients'] = bytes_on_a_device(program.arguments['parameters'])
  return kinds


class _Replies(NamedTuple):
  """The shapes that the programs of generation share.

  Attributes:
    params: parameters of the model.
    bias_IE: biases of the routers.
    batch: prompts; the coded streams of the batch hold codes.
    key_B: random key of each reply.
    sizes: sizes of the cache and of the replies.
  """

  params: Any
  bias_IE: Any
  batch: Batch
  key_B: Any
  sizes: ReplySizes


def _replies(plan: Plan, mesh: Mesh) -> _Replies:
  """Returns the shapes of one reply per row of the run, to prompts as long as a row."""
  max_new = plan.config.generate.max_new
  slots = plan.budget.length + reply_slots(plan.model_config, max_new)
  batch_sharding = sharding.batch_sharding(mesh)
  encode = functools.partial(encode_streams, plan.model_config)
  frozen = frozen_shapes(plan, mesh)
  batch = jax.eval_shape(encode, frozen, batch_shapes(plan, mesh))
  make_keys = lambda: jax.random.split(jax.random.key(0), plan.budget.rows)
  keys = jax.eval_shape(make_keys)
  buffers = jax.eval_shape(functools.partial(init_buffers, plan.model_config, frozen))
  return _Replies(
    params=generation_params(plan.model_config, mesh),
    bias_IE=_with_sharding(buffers['router_bias'], sharding.replicated(mesh)),
    batch=_with_sharding(batch, batch_sharding),
    key_B=_with_sharding(keys, batch_sharding),
    sizes=ReplySizes(slots, max_new),
  )


def _network(plan: Plan) -> OmniModel:
  """Returns the abstract model as it generates."""
  return abstract(generation_config(plan.model_config))


def _prefill(plan: Plan, mesh: Mesh, replies: _Replies) -> Program:
  """Returns the program that reads the prompts of the replies."""
  function = functools.partial(
    prefill, model=_network(plan), mesh=mesh, sizes=replies.sizes
  )
  params = replies.params
  kinds = {'parameters': params, 'batch': replies.batch}
  call = (params, replies.bias_IE, replies.batch, replies.key_B)
  return Program(mesh, jax.jit(function), kinds, call)


class _WritingCall(NamedTuple):
  """The arguments of the programs that write after the prefill, in their order."""

  params: Any
  bias_IE: Any
  state: DecodeState
  grammar: Any
  sampling: Sampling


def _writing_call(plan: Plan, mesh: Mesh) -> _WritingCall:
  """Returns the shapes of the arguments of the programs that write."""
  replies = _replies(plan, mesh)
  reading = _prefill(plan, mesh, replies)
  with jax.set_mesh(mesh):
    state = jax.eval_shape(reading.function, *reading.call)

  def placed(x: Any) -> Any:
    by_heads = NamedSharding(mesh, sharding.cache_spec(mesh, x.shape))
    return _with_sharding(x, by_heads)

  cache = jax.tree.map(placed, state.cache)
  state = _with_sharding(state, sharding.batch_sharding(mesh))
  replicated = sharding.replicated(mesh)
  make_grammar = lambda: jax.tree.map(jnp.asarray, build_grammar(plan.hosts, ANY))
  grammar = _with_sharding(jax.eval_shape(make_grammar), replicated)
  number = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated)
  numbers: list[Any] = [number] * len(Sampling._fields)
  sampling = Sampling._make(numbers)
  return _WritingCall(
    replies.params, replies.bias_IE, state._replace(cache=cache), grammar, sampling
  )


def prefill_program(plan: Plan, mesh: Mesh) -> Program:
  """Returns the program that reads the prompts, one for each row of the run."""
  return _prefill(plan, mesh, _replies(plan, mesh))


def _writing_program(plan: Plan, mesh: Mesh, function: Callable[..., Any]) -> Program:
  """Returns the program of a function that writes; it reuses the memory of the state."""
  call = _writing_call(plan, mesh)
  writer = functools.partial(function, model=_network(plan), mesh=mesh)
  kinds = {'parameters': call.params, 'cache': call.state.cache}
  return Program(mesh, jax.jit(writer, donate_argnums=2), kinds, tuple(call))


def decode_program(plan: Plan, mesh: Mesh) -> Program:
  """Returns the loop that writes one id after the other.

  Its number of iterations is not known, so that only one is counted: one id per row.
  """
  return _writing_program(plan, mesh, decode)


def block_program(plan: Plan, mesh: Mesh, medium: str) -> Program:
  """Returns the program that writes a block of a medium in every row."""
  block = BlockProgram(medium, plan.config.generate.dit_steps)
  return _writing_program(plan, mesh, functools.partial(write_block, block=block))


def program_names(model_config: ModelConfig) -> tuple[str, ...]:
  """Returns the names of a run's programs.

  A medium that is written as a block has a program under the name of its task.
  """
  return ('train', 'prefill', 'decode', *_media_of_blocks(model_config))


def _media_of_blocks(model_config: ModelConfig) -> dict[str, str]:
  """Returns the media that are written as a block by the name of their program."""
  return {TASKS.get(medium, medium): medium for medium in block_sizes(model_config)}


def build_program(name: str, plan: Plan, mesh: Mesh) -> Program:
  """Returns a program of a run by its name, one of `program_names`.

  Args:
    mesh: mesh of the programs of generation; the train step has that of the plan.
  """
  if name == 'train':
    return train_program(plan)
  programs = {'prefill': prefill_program, 'decode': decode_program}
  if name in programs:
    return programs[name](plan, mesh)
  return block_program(plan, mesh, _media_of_blocks(plan.model_config)[name])


def compile_program(
  program: Program, dump: pathlib.Path | None = None
) -> CompiledProgram:
  """Compiles a program for the devices of its mesh.

  A program that does not fit is measured from what the compiler had planned.

  Args:
    program: program to compile.
    dump: folder that keeps all that the compiler writes; None keeps nothing.

  Raises:
    jax.errors.JaxRuntimeError: if the compiler fails for another reason than memory.
  """
  kinds = _bytes_by_kind(program)
  tracing_start = time.perf_counter()
  with (
    jax.set_mesh(program.mesh),
    tempfile.TemporaryDirectory(prefix='omni_jax_hlo_') as scratch,
  ):
    lowered = program.function.lower(*program.call)
    compiling_start = time.perf_counter()
    cpu_start = time.process_time()
    folder = dump or pathlib.Path(scratch)
    options = {}
    if program.mesh.devices.flat[0].platform == 'tpu':
      options['xla_dump_to'] = str(folder)
    compiled = None
    refusal = ''
    try:
      compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      refusal = str(error).splitlines()[0]
    seconds = CompileSeconds(
      tracing=compiling_start - tracing_start,
      compiling=time.perf_counter() - compiling_start,
      cpu=time.process_time() - cpu_start,
    )
    texts = read_texts(folder)
  if compiled is None:
    memory = from_dump(kinds, texts.usage_report, texts.assignment)
    return CompiledProgram(memory, texts.hlo, refusal, {}, seconds)
  stats = compiled.memory_analysis()
  memory = from_stats(stats, kinds, texts.usage_report, texts.assignment)
  xla_cost = compiled.cost_analysis() or {}
  return CompiledProgram(memory, compiled.as_text(), '', xla_cost, seconds)
