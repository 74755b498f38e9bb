"""The programs of a run, with shapes and shardings in the place of arrays: the train step, prefill, decode, drawing."""

from collections.abc import Mapping
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
from omni_jax.compile import memory
from omni_jax.compile.memory import bytes_on_a_device, Memory
from omni_jax.generate.api import POSITIONS_PER_IMAGE
from omni_jax.generate.decode import decode, draw, Sampling
from omni_jax.generate.grammar import grammar
from omni_jax.generate.prefill import prefill, Room
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.model import abstract, encode_media, merge
from omni_jax.sequence.pack import Packer
from omni_jax.train import state as states
from omni_jax.train.optim import make_optimizer, OptimConfig
from omni_jax.train.plan import omni_program, Plan
from omni_jax.types import Batch

PROGRAMS = ('train', 'prefill', 'decode', 'draw')


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


def codec_shapes(plan: Plan) -> Any:
  """Values of the codec stage, whole on every device."""
  init = lambda: states.codec_values(
    states.init_codec(plan.omni, make_optimizer(OptimConfig(), 1), seed=0)
  )
  return _all(jax.eval_shape(init), sharding.replicated(plan.mesh))


def batch_shapes(plan: Plan) -> Batch:
  """A packed batch, its rows split over the mesh."""
  one = Packer(dataclasses.replace(plan.budget, rows=1), plan.media).batch()
  rows, where = plan.budget.rows, sharding.by_rows(plan.mesh)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=where), one
  )


def train_program(plan: Plan) -> Program:
  """One update, as `train.stages.omni_stage` runs it."""
  made = omni_program(plan, codec_shapes(plan))
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
  """Shapes that the programs of generation share."""

  params: Any
  bias_IE: Any
  batch: Batch
  key_B: Any
  room: Room
  encoded: Any


def _replies(plan: Plan) -> _Replies:
  """As many replies as the run has rows, to prompts as long as its rows."""
  config, made = plan.config, omni_program(plan, codec_shapes(plan))
  state, image, new = (
    _placed(made.state, made.layout),
    plan.omni.media.image,
    config.generate.max_new,
  )
  slots = (
    plan.budget.length
    + new
    + max(1, new // POSITIONS_PER_IMAGE) * (2 * image.patches + 1)
  )
  batch, rows = batch_shapes(plan), sharding.by_rows(plan.mesh)
  codec = state.buffers['codec']
  encode = lambda params, books, batch: encode_media(
    plan.omni, merge(plan.abstract_codec(), params), books, batch
  )
  encoded = _all(
    jax.eval_shape(encode, codec['params'], states.codebooks_of(codec), batch), rows
  )
  key_B = _all(
    jax.eval_shape(lambda: jax.random.split(jax.random.key(0), plan.budget.rows)), rows
  )
  return _Replies(
    state.params, state.buffers['router_bias'], batch, key_B, Room(slots, new), encoded
  )


def _prefill(plan: Plan, r: _Replies) -> Program:
  model = abstract(plan.omni)
  function = jax.jit(
    functools.partial(prefill, model=model, mesh=plan.mesh, room=r.room)
  )
  return Program(
    function,
    {'parameters': r.params, 'batch': (r.batch, r.encoded)},
    (r.params, r.bias_IE, r.batch, r.encoded, r.key_B),
  )


def _after_prefill(plan: Plan, r: _Replies) -> tuple[Any, ...]:
  """Arguments of decode and draw."""
  made = _prefill(plan, r)
  with jax.set_mesh(plan.mesh):
    rows = jax.eval_shape(made.function, *made.call)
  cache = sharding.cache_layout(plan.mesh)
  placed = _all(rows, sharding.by_rows(plan.mesh))._replace(
    cache=_all(rows.cache, cache)
  )
  whole = sharding.replicated(plan.mesh)
  rules = _all(
    jax.eval_shape(
      lambda: jax.tree.map(jnp.asarray, grammar(Tokenizer(plan.omni.tokenizer), 'any'))
    ),
    whole,
  )
  sampling = Sampling(
    *(jax.ShapeDtypeStruct((), jnp.float32, sharding=whole) for _ in Sampling._fields)
  )
  return r.params, r.bias_IE, placed, rules, sampling


def prefill_program(plan: Plan) -> Program:
  """Reading the prompts."""
  return _prefill(plan, _replies(plan))


def decode_program(plan: Plan) -> Program:
  """The loop that writes text and speech; its body, one id in every row, is counted once."""
  call = _after_prefill(plan, _replies(plan))
  function = jax.jit(
    functools.partial(decode, model=abstract(plan.omni), mesh=plan.mesh),
    donate_argnums=2,
  )
  return Program(function, {'parameters': call[0], 'cache': call[2].cache}, call)


def draw_program(plan: Plan) -> Program:
  """Drawing an image in every row."""
  call = _after_prefill(plan, _replies(plan))
  function = jax.jit(
    functools.partial(
      draw,
      model=abstract(plan.omni),
      mesh=plan.mesh,
      steps=plan.config.generate.dit_steps,
    ),
    donate_argnums=2,
  )
  return Program(function, {'parameters': call[0], 'cache': call[2].cache}, call)


MAKERS = {
  'train': train_program,
  'prefill': prefill_program,
  'decode': decode_program,
  'draw': draw_program,
}


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
