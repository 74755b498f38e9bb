"""The programs of a run, with shapes and shardings in the place of arrays: the train step, prefill, decode, blocks."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import pathlib
import tempfile
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from omni_jax import sharding
from omni_jax.checkpoint.init_values import init_frozen
from omni_jax.compile import memory
from omni_jax.compile.memory import bytes_on_a_device, Memory
from omni_jax.generate.api import block_media, reply_slots
from omni_jax.generate.decode import BlockOf, decode, Sampling, write_block
from omni_jax.generate.grammar import ANY, grammar
from omni_jax.generate.prefill import prefill, Room
from omni_jax.modalities.text.tokenizer import TASKS
from omni_jax.model import abstract, encode_streams, ModelConfig
from omni_jax.sequence.pack import Packer
from omni_jax.train.plan import omni_program, Plan
from omni_jax.types import Batch


class Program(NamedTuple):
  """Something to compile.

  Attributes:
    function: jitted.
    arguments: shapes with shardings, by kind.
  """

  function: Any
  arguments: Mapping[str, Any]
  call: tuple[Any, ...]


class Compiled(NamedTuple):
  """A compiled program, or what is known of one that does not fit.

  Attributes:
    text: optimized HLO; also of a program that does not fit.
    refusal: the compiler's message, where it does not fit.
    xla_cost: `cost_analysis`, which counts the body of a loop once.
    seconds: of tracing and lowering, of compiling, and the processors' time of the latter.
  """

  memory: Memory
  text: str
  refusal: str
  xla_cost: Mapping[str, float]
  seconds: tuple[float, float, float]


def _placed(shapes: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )


def _all(shapes: Any, where: jax.sharding.Sharding) -> Any:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes
  )


def frozen_shapes(plan: Plan) -> Any:
  """Returns the values of the autoencoders, whole on every device."""
  init = functools.partial(init_frozen, plan.model_config, seed=0)
  return _all(jax.eval_shape(init), sharding.replicated(plan.mesh))


def batch_shapes(plan: Plan) -> Batch:
  """Returns a packed batch, its rows split over the mesh."""
  budget, where = plan.budget, sharding.by_rows(plan.mesh)
  one = Packer(dataclasses.replace(budget, rows=budget.group), plan.hosts).batch()

  def whole(x: Any) -> jax.ShapeDtypeStruct:
    shape = (len(x) * budget.pools, *x.shape[1:])
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=where)

  return jax.tree.map(whole, one)


def train_program(plan: Plan) -> Program:
  """One update, as `train.stages.omni_stage` runs it."""
  made = omni_program(plan, frozen_shapes(plan))
  state, batch = _placed(made.state, made.layout), batch_shapes(plan)
  kinds = {
    'parameters': state.params,
    'optimizer': state.opt_state,
    'buffers': (state.buffers, state.step, state.rng),
    'batch': batch,
  }
  return Program(made.step, kinds, (state, batch))


def state_kinds(plan: Plan) -> dict[str, float]:
  """Bytes of a device that are taken before a step begins, and its gradients; nothing is compiled."""
  program = train_program(plan)
  kinds = {name: bytes_on_a_device(tree) for name, tree in program.arguments.items()}
  return kinds | {'gradients': bytes_on_a_device(program.arguments['parameters'])}


class _Replies(NamedTuple):
  """Shapes that the programs of generation share; the batch's coded streams hold codes."""

  params: Any
  bias_IE: Any
  batch: Batch
  key_B: Any
  room: Room


def _replies(plan: Plan) -> _Replies:
  """Returns as many replies as the run has rows, to prompts as long as its rows."""
  program = omni_program(plan, frozen_shapes(plan))
  state = _placed(program.state, program.layout)
  new = plan.config.generate.max_new
  slots = plan.budget.length + reply_slots(plan.model_config, new)
  rows = sharding.by_rows(plan.mesh)
  encode = functools.partial(encode_streams, plan.model_config)
  coded = jax.eval_shape(encode, state.buffers['frozen'], batch_shapes(plan))
  keys = lambda: jax.random.split(jax.random.key(0), plan.budget.rows)
  return _Replies(
    state.params,
    state.buffers['router_bias'],
    _all(coded, rows),
    _all(jax.eval_shape(keys), rows),
    Room(slots, new),
  )


def _prefill(plan: Plan, r: _Replies) -> Program:
  function = jax.jit(
    functools.partial(
      prefill, model=abstract(plan.model_config), mesh=plan.mesh, room=r.room
    )
  )
  kinds = {'parameters': r.params, 'batch': r.batch}
  return Program(function, kinds, (r.params, r.bias_IE, r.batch, r.key_B))


def _after_prefill(plan: Plan, r: _Replies) -> tuple[Any, ...]:
  """Returns the arguments of the programs that write."""
  reading = _prefill(plan, r)
  with jax.set_mesh(plan.mesh):
    rows = jax.eval_shape(reading.function, *reading.call)
  cache = _all(rows.cache, sharding.cache_layout(plan.mesh))
  placed = _all(rows, sharding.by_rows(plan.mesh))._replace(cache=cache)
  whole = sharding.replicated(plan.mesh)
  tables = lambda: jax.tree.map(jnp.asarray, grammar(plan.hosts, ANY))
  rules = _all(jax.eval_shape(tables), whole)
  number = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
  sampling = Sampling(*(number for _ in Sampling._fields))
  return r.params, r.bias_IE, placed, rules, sampling


def prefill_program(plan: Plan) -> Program:
  """Returns the reading of the prompts."""
  return _prefill(plan, _replies(plan))


def decode_program(plan: Plan) -> Program:
  """Returns the loop that writes id by id; its body, one id in every row, is counted once."""
  call = _after_prefill(plan, _replies(plan))
  function = functools.partial(
    decode, model=abstract(plan.model_config), mesh=plan.mesh
  )
  kinds = {'parameters': call[0], 'cache': call[2].cache}
  return Program(jax.jit(function, donate_argnums=2), kinds, call)


def block_program(plan: Plan, medium: str) -> Program:
  """Returns the writing of a block of a medium in every row."""
  call = _after_prefill(plan, _replies(plan))
  function = functools.partial(
    write_block,
    block=BlockOf(medium, plan.config.generate.dit_steps),
    model=abstract(plan.model_config),
    mesh=plan.mesh,
  )
  kinds = {'parameters': call[0], 'cache': call[2].cache}
  return Program(jax.jit(function, donate_argnums=2), kinds, call)


def programs_of(model_config: ModelConfig) -> dict[str, Callable[[Plan], Program]]:
  """Returns the programs of a run by name; a medium that is written as a block has one by the name of its task."""
  programs: dict[str, Callable[[Plan], Program]] = {
    'train': train_program,
    'prefill': prefill_program,
    'decode': decode_program,
  }
  for medium in block_media(model_config):
    name = TASKS.get(medium, medium)
    programs[name] = functools.partial(block_program, medium=medium)
  return programs


def compile_program(
  mesh: Mesh, program: Program, dump: pathlib.Path | None = None
) -> Compiled:
  """Compiles for the devices of a mesh; a program that does not fit is measured from what the compiler had planned.

  Args:
    dump: folder that keeps all that the compiler writes down.
  """
  kinds = {name: bytes_on_a_device(tree) for name, tree in program.arguments.items()}
  begin = time.perf_counter()
  with (
    jax.set_mesh(mesh),
    tempfile.TemporaryDirectory(prefix='omni_jax_hlo_') as scratch,
  ):
    lowered = program.function.lower(*program.call)
    lowering, begin, busy = (
      time.perf_counter() - begin,
      time.perf_counter(),
      time.process_time(),
    )
    folder = dump or pathlib.Path(scratch)
    options = (
      {'xla_dump_to': str(folder)} if mesh.devices.flat[0].platform == 'tpu' else {}
    )
    try:
      compiled, refused = lowered.compile(compiler_options=options), ''
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      compiled, refused = None, str(error).splitlines()[0]
    seconds = lowering, time.perf_counter() - begin, time.process_time() - busy
    report, assignment, text = memory.texts(folder)
  if compiled is None:
    return Compiled(
      memory.from_dump(kinds, report, assignment), text, refused, {}, seconds
    )
  counted = compiled.cost_analysis() or {}
  return Compiled(
    memory.from_stats(compiled.memory_analysis(), kinds, report, assignment),
    compiled.as_text(),
    '',
    counted,
    seconds,
  )
