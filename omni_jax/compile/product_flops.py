"""Counts the FLOPs of the matrix products and convolutions of a compiled program."""

from collections import Counter
import re

from omni_jax.compile.hlo import Computation, Instruction, Module
from omni_jax.compile.kernels import call_cost, call_target


def dot_flops(dot: Instruction, computation: Computation) -> float:
  """Returns the FLOPs of a dot or a ragged dot.

  They are 2 · elements of the result · contracted sizes. In a ragged dot each row is
  multiplied by the matrix of one group, also in the gradients.
  """
  lhs = _operand_dims(dot, 0, computation)
  if dot.opcode == 'ragged-dot':
    rhs = _operand_dims(dot, 1, computation)
    return 2.0 * lhs[0] * lhs[1] * rhs[-1]
  contracted = 1
  for axis in dot.numbers('lhs_contracting_dims'):
    contracted *= lhs[axis]
  return 2.0 * dot.shapes[0].elements * contracted


def convolution_flops(convolution: Instruction, computation: Computation) -> float:
  """Returns the FLOPs of a convolution as XLA counts them.

  Positions of the window that fall on padding or between dilated inputs do not count.
  The TPU compiler writes products as convolutions, and batched products with the batch
  as a dilated spatial axis.
  """
  labels = convolution.attribute('dim_labels')
  lhs_labels, rhs_labels, out_labels = re.split('_|->', labels)
  lhs_dims = _operand_dims(convolution, 0, computation)
  rhs_dims = _operand_dims(convolution, 1, computation)
  lhs = dict(zip(lhs_labels, lhs_dims, strict=True))
  rhs = dict(zip(rhs_labels, rhs_dims, strict=True))
  result = dict(zip(out_labels, convolution.shapes[0].dims, strict=True))
  feature_groups = int(convolution.attribute('feature_group_count') or 1)
  batch_groups = int(convolution.attribute('batch_group_count') or 1)
  features = lhs['f'] // feature_groups
  batch = lhs['b'] // batch_groups
  flops = 2.0 * features * result['f'] * batch
  window = dict(re.findall(r'(\w+)=([\w\-]+)', convolution.attribute('window')))
  spatial_axes = sorted(label for label in lhs_labels if label.isdigit())
  for axis in spatial_axes:
    axis_window = {name: text.split('x')[int(axis)] for name, text in window.items()}
    flops *= _window_pairs(lhs[axis], rhs[axis], result[axis], axis_window)
  return flops


def _operand_dims(
  instruction: Instruction, index: int, computation: Computation
) -> tuple[int, ...]:
  """Returns the dimensions of an operand that is one array."""
  operand = computation.by_name[instruction.operands[index]]
  return operand.shapes[0].dims


def _window_pairs(size: int, kernel: int, out: int, window: dict[str, str]) -> int:
  """Returns how many pairs (output, window position) of an axis fall on an input.

  Args:
    size: size of the input along the axis.
    kernel: size of the window.
    out: size of the output.
    window: XLA's settings of the window along this axis, by name.
  """
  low = int(window.get('pad', '0_0').split('_')[0])
  stride = int(window.get('stride', 1))
  lhs_dilation = int(window.get('lhs_dilate', 1))
  rhs_dilation = int(window.get('rhs_dilate', 1))
  if kernel == 1 and lhs_dilation == 1 and low == 0:
    return out
  count = 0
  last = (size - 1) * lhs_dilation
  for k in range(kernel):
    # Place in the dilated input that this window position has for the first output.
    begin = k * rhs_dilation - low
    if lhs_dilation == 1:
      first = max(0, -(begin // stride))
      count += max(0, min(out - 1, (last - begin) // stride) - first + 1)
      continue
    for o in range(out):
      place = begin + o * stride
      count += 0 <= place <= last and place % lhs_dilation == 0
  return count


class ProductFlops:
  """Counts the FLOPs of a module's instructions; each fusion is analysed once.

  Attributes:
    uncounted: number of custom calls without a cost estimate, by target.
  """

  def __init__(self, module: Module):
    self._module = module
    self._by_fusion: dict[str, float] = {}
    self.uncounted: Counter[str] = Counter()

  def of(self, instruction: Instruction, computation: Computation, times: int) -> float:
    """Returns the FLOPs of running an instruction once.

    Args:
      instruction: instruction to count.
      computation: computation that holds it.
      times: how often it runs, which is added to `uncounted` if it is an unknown call.
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
    """Returns the FLOPs of running a computation once."""
    if fused.name not in self._by_fusion:
      flops = 0.0
      for instruction in fused.instructions:
        flops += self.of(instruction, fused, times)
      self._by_fusion[fused.name] = flops
    return self._by_fusion[fused.name]
