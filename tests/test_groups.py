"""Rows in groups that share their pools give the same batch, losses and gradients.

They need less room, because a row can use what its neighbour leaves.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import BUDGET, laid, make_kit, omni_optimizer, tiny_model

from omni_jax.errors import UserError
from omni_jax.inspect_data import loss_masks, payload_of, stretches_of
from omni_jax.model import batch_losses, encode_streams, merge
from omni_jax.sequence.pack import check_budget, Packer
from omni_jax.train.accumulate import split_batch
from omni_jax.types import NONE, RowBudget

ROWS = 4
ALONE = dataclasses.replace(BUDGET, rows=ROWS)


def in_pairs(budget: RowBudget) -> RowBudget:
  """Returns a budget whose rows share pools in pairs; a pool has room for two rows."""
  streams = {name: (2 * m, 2 * n) for name, (m, n) in budget.streams.items()}
  return dataclasses.replace(budget, group=2, streams=streams)


TOGETHER = in_pairs(ALONE)


@pytest.fixture(scope='module')
def model():
  return tiny_model()


def items_of(model):
  """Returns two sets of examples, laid out."""
  return laid(model, seed=0) + laid(model, seed=1)


@pytest.fixture(scope='module')
def batches(model):
  """Returns (a batch with a pool per row, the same rows with a pool per pair)."""
  hosts = model.hosts()
  alone = Packer(ALONE, hosts)
  together = Packer(TOGETHER, hosts)
  for item in items_of(model):
    assert alone.add(item)
  rows = rows_of(model, alone.batch().segment_BL)
  for item, row in zip(items_of(model), rows, strict=True):
    assert together.add(item, row)
  return alone.batch(), together.batch()


def rows_of(model, segment_BL):
  """Returns the row that the packer chooses for each item: the first with room."""
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
  for _ in range(3):  # afterwards no weight is exactly zero any more
    state, _ = kit.step(state, batches[0])

  def total(params, batch):
    key = jax.random.key(3)
    losses = batch_losses(
      params, state.buffers, batch, key, model=kit.model, mesh=kit.mesh
    )
    return sum(head.total for head in losses.heads.values()), losses.heads

  run = kit.meshed(jax.value_and_grad(total, has_aux=True))
  (_, alone), alone_grads = run(state.params, batches[0])
  (_, together), together_grads = run(state.params, batches[1])
  for name, loss in alone.items():
    np.testing.assert_allclose(together[name].total, loss.total, rtol=1e-5)
    np.testing.assert_allclose(together[name].weight, loss.weight, rtol=1e-6)
  leaves = jax.tree.leaves(alone_grads)
  largest = max(float(jnp.abs(leaf).max()) for leaf in leaves)
  for ours, theirs in zip(leaves, jax.tree.leaves(together_grads), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-6 * largest)


def test_losses_of_segments_are_the_same(model, batches):
  kit = make_kit(model, omni_optimizer(model))

  def losses(params, batch):
    network = merge(kit.model, params)
    coded = encode_streams(model, kit.state.buffers['frozen'], batch)
    hidden = network(coded, kit.state.buffers['router_bias'], kit.mesh).hidden_BLD
    return network.segment_losses(hidden, coded, jax.random.key(1), segments=4)

  run = kit.meshed(losses)
  alone, together = (run(kit.state.params, batch) for batch in batches)
  for name, loss in alone.items():
    assert loss.total.shape == (ROWS, 4)
    np.testing.assert_allclose(together[name].total, loss.total, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together[name].weight, loss.weight, rtol=1e-6)


def test_a_row_may_use_what_its_neighbour_leaves(model):
  hosts = model.hosts()
  drawing = next(item for item in laid(model) if item.needs[4])  # image.drawn items
  streams = dict(BUDGET.streams) | {'image.drawn': (16, 1)}
  budget = dataclasses.replace(ALONE, streams=streams)
  alone = Packer(budget, hosts)
  assert alone.add(drawing, 0)
  assert not alone.add(drawing, 0)
  together = Packer(in_pairs(budget), hosts)
  assert together.add(drawing, 0)
  assert together.add(drawing, 0)
  assert not together.add(drawing, 1)
  assert together.add(drawing, 2)


def test_parts_of_a_batch_keep_groups_together(model, batches):
  _, together = batches
  cut = split_batch(jax.tree.map(jnp.asarray, together), 2)
  assert cut.token_BL.shape[:2] == (2, 2)
  np.testing.assert_array_equal(cut.token_BL[1], together.token_BL[2:])
  for name, stream in together.streams.items():
    np.testing.assert_array_equal(cut.streams[name].value_BM[1], stream.value_BM[1:])


def test_the_page_of_a_row_finds_its_pieces(model, batches):
  hosts = model.hosts()
  alone, together = batches
  for row in range(ROWS):
    ours = stretches_of(alone, row)
    theirs = stretches_of(together, row)
    assert [stretch[:3] for stretch in ours] == [stretch[:3] for stretch in theirs]
    for our_stretch, their_stretch in zip(ours, theirs, strict=True):
      if '.' in our_stretch.kind:
        our_payload = payload_of(alone, row, our_stretch, hosts)
        their_payload = payload_of(together, row, their_stretch, hosts)
        np.testing.assert_array_equal(our_payload, their_payload)
    their_losses = loss_masks(together, row, hosts)
    for name, has_loss in loss_masks(alone, row, hosts).items():
      np.testing.assert_array_equal(has_loss, their_losses[name])


@pytest.mark.parametrize('group', [0, 3])
def test_groups_that_do_not_divide_the_rows_are_refused(model, group):
  budget = RowBudget(rows=ROWS, length=96, group=group)
  with pytest.raises(UserError, match='config.data.budget.group'):
    check_budget(budget, model.hosts())
