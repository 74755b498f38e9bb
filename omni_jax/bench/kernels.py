"""Checks the kernels of this machine's devices against their references, and times them.

python -m omni_jax.bench.kernels [--length=4096] [--rows=8]

The kernels are those that the model would choose here, for one layer of omni_1b.
"""

from collections.abc import Callable
import functools
import statistics
import sys
import time
from typing import Any

from absl import flags
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from omni_jax import sharding
from omni_jax.command_line import show_help
from omni_jax.errors import run_command, UserError
from omni_jax.nn import attention_kernels
from omni_jax.nn.context_parallel import attend
from omni_jax.nn.experts import Experts, GroupedMatmul, moe_experts, moe_reference
from omni_jax.nn.reach import packed_rows

HEADS = 16
KV_HEADS = 4
HEAD_DIM = 128
EXPERTS = 8
WIDTH = 2048
HIDDEN = 1024
CALLS = 5
# Largest difference from the reference, relative to its largest value: some bits of the
# eight that a bf16 has.
TOLERANCE = 0.03

_FLAGS = flags.FlagValues()
flags.DEFINE_integer(
  'length', 4096, 'positions in a row', lower_bound=2, flag_values=_FLAGS
)
flags.DEFINE_integer('rows', 8, 'rows of a batch', lower_bound=1, flag_values=_FLAGS)


def main() -> None:
  show_help(_FLAGS, sys.argv)
  _FLAGS(sys.argv)
  rows, length = _FLAGS.rows, _FLAGS.length
  failed = []
  for segments in (4, 2 * attention_kernels.MAX_SEGMENTS):
    if not check_attention(rows, length, segments):
      failed.append(f'attention with {segments} segments')
  if not check_experts(rows * length):
    failed.append('experts')
  if failed:
    raise UserError(f'differs from its reference: {", ".join(failed)}')


def _random(seed: int, *shape: int) -> Array:
  return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def check_attention(rows: int, length: int, segments: int) -> bool:
  """Returns whether packed attention equals attention in pieces."""
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  segment_L = 1 + np.arange(length) * segments // length
  reach = packed_rows(jnp.broadcast_to(jnp.asarray(segment_L), (rows, length)))
  q = _random(0, rows, length, HEADS, HEAD_DIM)
  k = _random(1, rows, length, KV_HEADS, HEAD_DIM)
  v = _random(2, rows, length, KV_HEADS, HEAD_DIM)
  kernel = attention_kernels.choose(mesh.devices.flat[0], q, k, reach)
  name = f'attention, {segments} segments, {kernel.value}'
  chosen = lambda q, k, v: attend(q, k, v, reach, mesh)
  reference = lambda q, k, v: attention_kernels.in_pieces(q, k, v, reach)
  with jax.set_mesh(mesh):
    return _compare(name, chosen, reference, (q, k, v))


def check_experts(tokens: int) -> bool:
  """Returns whether the experts equal those that are computed on every token."""
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  weights = Experts(
    _random(1, EXPERTS, WIDTH, HIDDEN) * WIDTH**-0.5,
    _random(2, EXPERTS, WIDTH, HIDDEN) * WIDTH**-0.5,
    _random(3, EXPERTS, HIDDEN, WIDTH) * HIDDEN**-0.5,
  )
  score_TE = jax.random.normal(jax.random.key(4), (tokens, EXPERTS))
  expert_TK = jax.lax.top_k(score_TE, 2)[1].astype(jnp.int32)
  weight_TK = jnp.full(expert_TK.shape, 0.5, jnp.bfloat16)
  way = GroupedMatmul.of(mesh)
  compute = functools.partial(moe_experts, matmul=way, block=64)
  chosen = lambda x, w: compute(x, w, expert_TK, weight_TK)
  reference = lambda x, w: moe_reference(x, w, expert_TK, weight_TK)
  arguments = (_random(0, tokens, WIDTH), weights)
  return _compare(f'experts, {way.value}', chosen, reference, arguments)


def _compare(
  name: str,
  chosen: Callable[..., Array],
  reference: Callable[..., Array],
  arguments: tuple[Any, ...],
) -> bool:
  """Prints times and the largest relative difference; returns whether it is small."""
  results = []
  times = []
  for function in (chosen, reference):
    forward = jax.jit(function)
    both = jax.jit(functools.partial(_with_gradients, function))
    times.append((_milliseconds(forward, arguments), _milliseconds(both, arguments)))
    results.append(both(*arguments))
  worst = 0.0
  for actual, expected in zip(*map(jax.tree.leaves, results), strict=True):
    difference = jnp.abs(actual.astype(jnp.float32) - expected.astype(jnp.float32))
    worst = max(worst, float(difference.max() / jnp.abs(expected).max()))
  (forward_ms, both_ms), (slow_forward_ms, slow_both_ms) = times
  print(
    f'{name}: {forward_ms:.2f} ms, with gradients {both_ms:.2f} ms (reference '
    f'{slow_forward_ms:.2f}, {slow_both_ms:.2f}); largest difference {worst:.1%}',
    flush=True,
  )
  return worst <= TOLERANCE


def _with_gradients(function: Callable[..., Array], *arguments: Any) -> Any:
  """Returns the result and the gradients of a weighted sum of it."""
  y, pull = jax.vjp(function, *arguments)
  return y, pull(jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype))


def _milliseconds(function: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
  """Returns the median time of a call, after one that compiles."""
  jax.block_until_ready(function(*arguments))
  seconds = []
  for _ in range(CALLS):
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    seconds.append(time.perf_counter() - start)
  return 1e3 * statistics.median(seconds)


if __name__ == '__main__':
  run_command(main)
