"""FLOPs of the products of a compiled program."""

from collections import Counter
import re

from omni_jax.compile.hlo import Computation, Instruction, Module
from omni_jax.compile.kernels import call_cost, call_target


def dot_flops(dot: Instruction, computation: Computation) -> float:
  """Returns the FLOPs of a dot or a ragged dot: 2 · result · contracted sizes."""
  lhs = computation.by_name[dot.operands[0]].shapes[0].dims
  if dot.opcode == 'ragged-dot':  # each row meets one group's matrix, in any direction
    rhs = computation.by_name[dot.operands[1]].shapes[0].dims
    return 2.0 * lhs[0] * lhs[1] * rhs[-1]
  contracted = 1
  for axis in dot.numbers('lhs_contracting_dims'):
    contracted *= lhs[axis]
  return 2.0 * dot.shapes[0].elements * contracted


def convolution_flops(convolution: Instruction, computation: Computation) -> float:
  """Returns the FLOPs of a convolution as XLA counts them.

  Positions of the window that fall on padding or between dilated inputs are no work.
  The TPU compiler writes products as convolutions, batched ones with the batch as a
  dilated spatial axis.
  """
  left, right, out = re.split('_|->', convolution.attribute('dim_labels'))
  lhs_dims = computation.by_name[convolution.operands[0]].shapes[0].dims
  rhs_dims = computation.by_name[convolution.operands[1]].shapes[0].dims
  lhs = dict(zip(left, lhs_dims, strict=True))
  rhs = dict(zip(right, rhs_dims, strict=True))
  result = dict(zip(out, convolution.shapes[0].dims, strict=True))
  feature_groups = int(convolution.attribute('feature_group_count') or 1)
  batch_groups = int(convolution.attribute('batch_group_count') or 1)
  flops = 2.0 * (lhs['f'] // feature_groups) * result['f'] * (lhs['b'] // batch_groups)
  window = dict(re.findall(r'(\w+)=([\w\-]+)', convolution.attribute('window')))
  for axis in sorted(label for label in left if label.isdigit()):
    spatial = {name: text.split('x')[int(axis)] for name, text in window.items()}
    flops *= _window_pairs(lhs[axis], rhs[axis], result[axis], spatial)
  return flops


def _window_pairs(size: int, kernel: int, out: int, window: dict[str, str]) -> int:
  """Returns how many pairs (output, window position) of an axis meet an input."""
  low = int(window.get('pad', '0_0').split('_')[0])
  stride = int(window.get('stride', 1))
  lhs_dilation = int(window.get('lhs_dilate', 1))
  rhs_dilation = int(window.get('rhs_dilate', 1))
  if kernel == 1 and lhs_dilation == 1 and low == 0:
    return out
  count = 0
  last = (size - 1) * lhs_dilation
  for k in range(kernel):
    begin = k * rhs_dilation - low  # place in the dilated input of the first output
    if lhs_dilation == 1:
      first = max(0, -(begin // stride))
      count += max(0, min(out - 1, (last - begin) // stride) - first + 1)
      continue
    for o in range(out):
      place = begin + o * stride
      count += 0 <= place <= last and place % lhs_dilation == 0
  return count


class ProductFlops:
  """Counts the FLOPs of a module's instructions, those of each fusion once.

  Attributes:
    uncounted: custom calls without a cost estimate, by target, how many.
  """

  def __init__(self, module: Module):
    self._module = module
    self._by_fusion: dict[str, float] = {}
    self.uncounted: Counter = Counter()

  def of(self, instruction: Instruction, computation: Computation, times: int) -> float:
    """Returns the FLOPs of one time of an instruction.

    Args:
      times: how often it runs, to count custom calls.
    """
    opcode = instruction.opcode
    if opcode in ('dot', 'ragged-dot'):
      return dot_flops(instruction, computation)
    if opcode == 'convolution':
      return convolution_flops(instruction, computation)
    if opcode in ('fusion', 'call'):
      called = instruction.called('calls') or instruction.called('to_apply')
      return self._of_computation(self._module.computations[called], times)
    if opcode == 'custom-call':
      cost = call_cost(instruction, computation)
      if not cost.known:
        self.uncounted[call_target(instruction)] += times
      return cost.flops
    return 0.0

  def _of_computation(self, fused: Computation, times: int) -> float:
    if fused.name not in self._by_fusion:
      self._by_fusion[fused.name] = sum(
        self.of(instruction, fused, times) for instruction in fused.instructions
      )
    return self._by_fusion[fused.name]
