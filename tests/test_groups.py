"""Rows in groups that share their pools give the same batch, losses and gradients.

They need less room, because a row can use the room that its neighbour leaves free.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import BUDGET, laid_out_examples, make_kit, omni_optimizer, tiny_model

from omni_jax.errors import UserError
from omni_jax.inspect_data import loss_masks, payload_of, stretches_of
from omni_jax.model import batch_losses, encode_streams, merge
from omni_jax.sequence.pack import check_budget, Packer, room_names
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


def layouts_of(model):
  """Returns two sets of examples, laid out for a model."""
  return laid_out_examples(model, seed=0) + laid_out_examples(model, seed=1)


@pytest.fixture(scope='module')
def batches(model):
  """Returns a batch with a pool per row, and the same rows with a pool per pair."""
  hosts = model.hosts()
  alone = Packer(ALONE, hosts)
  together = Packer(TOGETHER, hosts)
  for layout in layouts_of(model):
    assert alone.add(layout)
  rows = rows_of(model, alone.batch().segment_BL)
  for layout, row in zip(layouts_of(model), rows, strict=True):
    assert together.add(layout, row)
  return alone.batch(), together.batch()


def changed_row(before, after):
  """Returns the only row in which two arrays differ."""
  (row,) = np.flatnonzero((before != after).any(axis=1))
  return int(row)


def rows_of(model, segment_BL):
  """Returns the row that the packer chooses for each example: the first with room.

  It also checks that the rows end up with the segments `segment_BL`.
  """
  packer = Packer(ALONE, model.hosts())
  rows = []
  for layout in layouts_of(model):
    before = packer.batch().segment_BL.copy()
    assert packer.add(layout)
    rows.append(changed_row(before, packer.batch().segment_BL))
  np.testing.assert_array_equal(packer.batch().segment_BL, segment_BL)
  return rows


def test_core_arrays_are_the_same_and_pools_hold_the_same_pieces(batches):
  alone, together = batches
  for actual, expected in zip(together[:-1], alone[:-1], strict=True):
    np.testing.assert_array_equal(actual, expected)
  for name, own in alone.streams.items():
    shared = together.streams[name]
    assert len(shared.item_BM) == ROWS // 2
    assert (shared.item_BM > 0).sum() == (own.item_BM > 0).sum()
    for row, at_L in enumerate(shared.at_BL):
      for position, piece in enumerate(at_L):
        own_piece = own.at_BL[row, position]
        assert (piece == NONE) == (own_piece == NONE)
        if piece != NONE:
          np.testing.assert_array_equal(
            shared.value_BM[row // 2, piece], own.value_BM[row, own_piece]
          )


def test_losses_and_gradients_are_the_same(model, batches):
  kit = make_kit(model, omni_optimizer(model))
  state = kit.state
  for _ in range(3):  # so that no weight is exactly zero
    state, _ = kit.step(state, batches[0])

  def total(params, batch):
    key = jax.random.key(3)
    losses = batch_losses(
      params, state.buffers, batch, key, model=kit.model, mesh=kit.mesh
    )
    return sum(head.total for head in losses.heads.values()), losses.heads

  run = kit.jit(jax.value_and_grad(total, has_aux=True))
  (_, alone), alone_grads = run(state.params, batches[0])
  (_, together), together_grads = run(state.params, batches[1])
  for name, loss in alone.items():
    np.testing.assert_allclose(together[name].total, loss.total, rtol=1e-5)
    np.testing.assert_allclose(together[name].weight, loss.weight, rtol=1e-6)
  leaves = jax.tree.leaves(alone_grads)
  largest = max(float(jnp.abs(leaf).max()) for leaf in leaves)
  for actual, expected in zip(jax.tree.leaves(together_grads), leaves, strict=True):
    np.testing.assert_allclose(actual, expected, atol=2e-6 * largest)


def test_losses_of_segments_are_the_same(model, batches):
  kit = make_kit(model, omni_optimizer(model))

  def losses(params, batch):
    network = merge(kit.model, params)
    coded = encode_streams(model, kit.state.buffers['frozen'], batch)
    hidden = network(coded, kit.state.buffers['router_bias'], kit.mesh).hidden_BLD
    return network.segment_losses(hidden, coded, jax.random.key(1), segments=4)

  run = kit.jit(losses)
  alone, together = (run(kit.state.params, batch) for batch in batches)
  for name, loss in alone.items():
    assert loss.total.shape == (ROWS, 4)
    np.testing.assert_allclose(together[name].total, loss.total, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together[name].weight, loss.weight, rtol=1e-6)


def test_a_row_may_use_room_that_its_neighbour_leaves_free(model):
  hosts = model.hosts()
  drawn_items = room_names(hosts).index('image.drawn items')
  drawing = next(x for x in laid_out_examples(model) if x.needs[drawn_items])
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
  parts = split_batch(jax.tree.map(jnp.asarray, together), 2)
  assert parts.token_BL.shape[:2] == (2, 2)
  np.testing.assert_array_equal(parts.token_BL[1], together.token_BL[2:])
  for name, stream in together.streams.items():
    np.testing.assert_array_equal(parts.streams[name].value_BM[1], stream.value_BM[1:])


def is_stream(kind):
  """Returns whether a kind of stretch is a stream, such as 'image.seen'."""
  return '.' in kind


def without_items(stretches):
  """Returns (start, stop, kind) of each stretch: items are numbered by pool."""
  return [(stretch.start, stretch.stop, stretch.kind) for stretch in stretches]


def test_inspect_data_finds_the_pieces_of_a_row(model, batches):
  hosts = model.hosts()
  alone, together = batches
  for row in range(ROWS):
    stretches = stretches_of(together, row)
    expected_stretches = stretches_of(alone, row)
    assert without_items(stretches) == without_items(expected_stretches)
    for stretch, expected in zip(stretches, expected_stretches, strict=True):
      if is_stream(stretch.kind):
        payload = payload_of(together, row, stretch, hosts)
        expected_payload = payload_of(alone, row, expected, hosts)
        np.testing.assert_array_equal(payload, expected_payload)
    masks = loss_masks(together, row, hosts)
    for name, expected_mask in loss_masks(alone, row, hosts).items():
      np.testing.assert_array_equal(masks[name], expected_mask)


@pytest.mark.parametrize('group', [0, 3])
def test_groups_that_do_not_divide_the_rows_are_refused(model, group):
  budget = RowBudget(rows=ROWS, length=96, group=group)
  with pytest.raises(UserError, match='config.data.budget.group'):
    check_budget(budget, model.hosts())
