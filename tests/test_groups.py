"""Rows that share their pools in groups: the same batch, the same losses and gradients, with fewer pieces in vain."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import BUDGET, laid, make_kit, omni_optimizer, tiny_model

from omni_jax.errors import UserError
from omni_jax.inspect_data import losses_of, payload_of, pieces_of
from omni_jax.model import batch_losses, encode_streams, merge
from omni_jax.sequence.pack import check_budget, Packer
from omni_jax.train.accumulate import cut_into
from omni_jax.types import NONE, RowBudget

ROWS = 4
ALONE = dataclasses.replace(BUDGET, rows=ROWS)
TOGETHER = dataclasses.replace(
  BUDGET,
  rows=ROWS,
  group=2,
  streams={name: (2 * m, 2 * n) for name, (m, n) in BUDGET.streams.items()},
)


@pytest.fixture(scope='module')
def model():
  return tiny_model()


def items_of(model, seeds=(0, 1)):
  return [each for seed in seeds for each in laid(model, seed)]


@pytest.fixture(scope='module')
def batches(model):
  """(rows with pools of their own, the same rows with pools of two)."""
  hosts = model.hosts()
  alone, together = Packer(ALONE, hosts), Packer(TOGETHER, hosts)
  for item in items_of(model):
    assert alone.add(item)
  segment_BL = alone.batch().segment_BL
  for item, row in zip(items_of(model), rows_of(model, segment_BL), strict=True):
    assert together.add(item, row)
  return alone.batch(), together.batch()


def rows_of(model, segment_BL):
  """The row of every item, as the packer has chosen it: the first with room."""
  packer = Packer(ALONE, model.hosts())
  rows = []
  for item in items_of(model):
    before = packer.batch().segment_BL.copy()
    assert packer.add(item)
    changed = (packer.batch().segment_BL != before).any(axis=1)
    rows.append(int(np.flatnonzero(changed)[0]))
  np.testing.assert_array_equal(packer.batch().segment_BL, segment_BL)
  return rows


def test_core_arrays_are_the_same_and_pools_hold_the_same_pieces(batches):
  alone, together = batches
  for ours, theirs in zip(alone[:-1], together[:-1], strict=True):
    np.testing.assert_array_equal(ours, theirs)
  for name, own in alone.streams.items():
    shared = together.streams[name]
    assert len(shared.item_BM) == ROWS // 2
    assert (shared.item_BM > 0).sum() == (own.item_BM > 0).sum()
    for row, at_L in enumerate(shared.at_BL):
      for position, piece in enumerate(at_L):
        before = own.at_BL[row, position]
        assert (piece == NONE) == (before == NONE)
        if piece != NONE:
          np.testing.assert_array_equal(
            shared.value_BM[row // 2, piece], own.value_BM[row, before]
          )


def test_losses_and_gradients_are_the_same(model, batches):
  kit = make_kit(model, omni_optimizer(model))
  state = kit.state
  for _ in range(3):  # nothing is at its exact zero any more
    state, _ = kit.step(state, batches[0])

  def total(params, batch):
    losses = batch_losses(
      params, state.buffers, batch, jax.random.key(3), model=kit.model, mesh=kit.mesh
    )
    return sum(head.total for head in losses.heads.values()), losses.heads

  run = kit.meshed(jax.value_and_grad(total, has_aux=True))
  (_, ours), our_grads = run(state.params, batches[0])
  (_, theirs), their_grads = run(state.params, batches[1])
  for name in ours:
    np.testing.assert_allclose(theirs[name].total, ours[name].total, rtol=1e-5)
    np.testing.assert_allclose(theirs[name].weight, ours[name].weight, rtol=1e-6)
  largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(our_grads))
  for a, b in zip(
    jax.tree.leaves(our_grads), jax.tree.leaves(their_grads), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=2e-6 * largest)


def test_losses_of_segments_are_the_same(model, batches):
  kit = make_kit(model, omni_optimizer(model))

  def losses(params, batch):
    network = merge(kit.model, params)
    coded = encode_streams(model, kit.state.buffers['frozen'], batch)
    hidden = network(coded, kit.state.buffers['router_bias'], kit.mesh).hidden_BLD
    return network.segment_losses(hidden, coded, jax.random.key(1), segments=4)

  run = kit.meshed(losses)
  ours, theirs = (run(kit.state.params, batch) for batch in batches)
  for name in ours:
    assert ours[name].total.shape == (ROWS, 4)
    np.testing.assert_allclose(
      theirs[name].total, ours[name].total, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(theirs[name].weight, ours[name].weight, rtol=1e-6)


def test_a_row_may_use_what_its_neighbour_leaves(model):
  hosts = model.hosts()
  drawing = next(item for item in laid(model) if item.needs[4])  # image.drawn items
  streams = dict(BUDGET.streams) | {'image.drawn': (16, 1)}
  alone = dataclasses.replace(ALONE, streams=streams)
  shared = dataclasses.replace(
    alone, group=2, streams={name: (2 * m, 2 * n) for name, (m, n) in streams.items()}
  )
  first, second = Packer(alone, hosts), Packer(shared, hosts)
  assert first.add(drawing, 0) and not first.add(drawing, 0)
  assert second.add(drawing, 0) and second.add(drawing, 0)
  assert not second.add(drawing, 1) and second.add(drawing, 2)


def test_parts_of_a_batch_keep_groups_together(model, batches):
  _, together = batches
  cut = cut_into(jax.tree.map(jnp.asarray, together), 2)
  assert cut.token_BL.shape[:2] == (2, 2)
  np.testing.assert_array_equal(cut.token_BL[1], together.token_BL[2:])
  for name, stream in together.streams.items():
    np.testing.assert_array_equal(cut.streams[name].value_BM[1], stream.value_BM[1:])


def test_the_page_of_a_row_finds_its_pieces(model, batches):
  hosts = model.hosts()
  for row in range(ROWS):
    ours, theirs = (pieces_of(batch, row) for batch in batches)
    assert [p[:3] for p in ours] == [p[:3] for p in theirs]
    for a, b in zip(ours, theirs, strict=True):
      if '.' in a.kind:
        np.testing.assert_array_equal(
          payload_of(batches[0], row, a, hosts), payload_of(batches[1], row, b, hosts)
        )
    losses = [losses_of(batch, row, hosts) for batch in batches]
    for name in losses[0]:
      np.testing.assert_array_equal(losses[0][name], losses[1][name])


@pytest.mark.parametrize('group', [0, 3])
def test_groups_divide_the_rows(model, group):
  budget = RowBudget(rows=ROWS, length=96, group=group)
  with pytest.raises(UserError, match='config.data.budget.group'):
    check_budget(budget, model.hosts())
