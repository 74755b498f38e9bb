"""The whole model is causal, and all its parts learn.

Packed examples have the same losses as alone, every head learns, and gradients cross
from one medium to another and reach every weight.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import examples, laid_out_examples, LOSSES, packed_batch, tiny_run

from omni_jax.modalities.audio import embed as audio_embed
from omni_jax.modalities.audio.mel import as_wave, log_mel_patches
from omni_jax.modalities.image import embed as image_embed
from omni_jax.modalities.image.embed import normalised
from omni_jax.model import abstract, batch_losses, encode_streams, merge, ModelConfig
from omni_jax.objective import total_loss
from omni_jax.sharding import named_leaves
from omni_jax.types import Batch, NONE

KEY = jax.random.key(11)
HEADS = ('text', 'image', 'audio')


def hidden_states(kit, batch, offset_BLD=None):
  """Returns the decoder's states of a batch, with an offset added to the embeddings."""
  batch = jax.tree.map(jnp.asarray, batch)
  model = merge(kit.model, kit.state.params)
  batch = encode_streams(model.config, kit.state.buffers['frozen'], batch)
  x_BLD = model.embed(batch)
  if offset_BLD is not None:
    x_BLD = x_BLD + offset_BLD
  decoded = model.decoder(
    x_BLD,
    batch.segment_BL,
    batch.modality_BL,
    batch.position_BL3,
    kit.state.buffers['router_bias'],
    kit.mesh,
  )
  return decoded.hidden_BLD


def with_values(batch: Batch, values: dict[str, jax.Array]) -> Batch:
  """Returns the batch with other pieces in some of its streams."""
  streams = dict(batch.streams)
  for name, value_BM in values.items():
    streams[name] = streams[name]._replace(value_BM=value_BM)
  return batch._replace(streams=streams)


def pieces_of(batch: Batch, stream: str) -> np.ndarray:
  """Returns the pieces of a stream."""
  return batch.streams[stream].value_BM


@pytest.fixture
def float_pixels(monkeypatch):
  """Lets embeddings also take normalised pixels.

  Unlike bytes, they have gradients.
  """

  def normalised_if_bytes(value, image):
    return normalised(value, image) if value.dtype == jnp.uint8 else value

  monkeypatch.setattr(image_embed, 'normalised', normalised_if_bytes)


@pytest.fixture(scope='module')
def row_and_mask(batch):
  """Returns the first row of the batch, the fuller one, and its mask (L, L)."""
  row = jax.tree.map(lambda x: x[:1], batch)
  segment_L = row.segment_BL[0]
  assert segment_L.max() >= 3
  position_L = np.arange(len(segment_L))
  same_LL = (segment_L[:, None] == segment_L[None]) & (segment_L[:, None] > 0)
  past_LL = position_L[:, None] >= position_L[None]
  return row, same_LL & past_LL


def reach(mask_LL, at_L, pieces):
  """Returns an (L, M) mask: whether a position may look at one that carries the piece.

  Args:
    at_L: piece that each position carries, or NONE.
    pieces: M, the number of pieces.
  """
  carries_LM = at_L[:, None] == np.arange(pieces)[None]
  return (mask_LL[:, :, None] & carries_LM[None]).any(axis=1)


def test_no_gradient_comes_from_the_future_or_from_other_examples(
  kit, row_and_mask, float_pixels
):
  """Checks the gradients with respect to every embedding, pixel and sample of a row."""
  row, mask_LL = row_and_mask
  length = len(mask_LL)
  width = kit.config.decoder.width
  image = kit.config.media['image']
  names = ('image.seen', 'image.drawn', 'audio.heard')

  def gradients(offset_BLD, *values):
    def states(offset_BLD, *values):
      changed = with_values(row, dict(zip(names, values, strict=True)))
      return hidden_states(kit, changed, offset_BLD)

    _, pull = jax.vjp(states, offset_BLD, *values)
    direction_D = jax.random.normal(KEY, (width,))

    def gradients_of(position):
      one_hot_L = jax.nn.one_hot(position, length)
      return pull(one_hot_L[None, :, None] * direction_D)

    # Position by position, because XLA on CPU (jaxlib 0.10.2) sums the gradient of an
    # RMS norm wrongly under vmap.
    return jax.lax.map(gradients_of, jnp.arange(length))

  seen = normalised(jnp.asarray(pieces_of(row, 'image.seen')), image)
  drawn = normalised(jnp.asarray(pieces_of(row, 'image.drawn')), image)
  heard = as_wave(jnp.asarray(pieces_of(row, 'audio.heard')))
  run = kit.jit(gradients)
  offset_grads, *piece_grads = run(jnp.zeros((1, length, width)), seen, drawn, heard)
  filled_L = row.segment_BL[0] > 0

  def nonzero(grads):
    return (np.abs(np.asarray(grads)) > 0).any(axis=-1)[filled_L]

  np.testing.assert_array_equal(
    nonzero(offset_grads[:, 0]), mask_LL[filled_L], 'embeddings'
  )
  for name, grads in zip(names, piece_grads, strict=True):
    reached_LM = reach(mask_LL, row.streams[name].at_BL[0], grads.shape[2])
    assert reached_LM[filled_L].any()
    np.testing.assert_array_equal(nonzero(grads[:, 0]), reached_LM[filled_L], name)


def test_no_change_in_the_future_or_in_other_examples_changes_a_state(
  kit, row_and_mask
):
  """Changes what has no gradient: text ids and codes of spoken frames.

  Each row of one batch has a single change; row 0 has none.
  """
  row, mask_LL = row_and_mask
  spoken_L = row.streams['audio.spoken'].at_BL[0]
  (spoken,) = np.nonzero(spoken_L != NONE)
  (texts,) = np.nonzero(row.token_BL[0])
  rows = 1 + len(texts) + len(spoken)
  batch = jax.tree.map(lambda x: np.repeat(x, rows, axis=0), row)
  for i, position in enumerate(texts, start=1):
    batch.token_BL[i, position] += 1
  samples = kit.config.media['audio'].frame
  noise = 8000 * np.random.default_rng(0).standard_normal(samples)
  for i, position in enumerate(spoken, start=1 + len(texts)):
    piece = spoken_L[position]
    pieces_of(batch, 'audio.spoken')[i, piece] = noise.astype(np.int16)
  states = kit.jit(lambda batch: hidden_states(kit, batch))
  hidden = np.asarray(states(batch))
  is_changed = np.abs(hidden[1:] - hidden[:1]).max(axis=-1) > 1e-4
  is_changed[:, row.segment_BL[0] == 0] = False
  np.testing.assert_array_equal(is_changed[: len(texts)], mask_LL.T[texts])
  for is_changed_L, position in zip(is_changed[len(texts) :], spoken, strict=True):
    assert is_changed_L[position], 'the model does not see a spoken frame'
    assert not (is_changed_L & ~mask_LL[:, position]).any()


def losses_of(kit, state, items):
  """Returns the losses of all heads on a batch of these items."""
  batch = packed_batch(items, kit.config.hosts())
  return kit.forward(state.params, state.buffers, batch, KEY).heads


def test_losses_of_packed_examples_are_sums_of_their_losses_alone(
  kit, batch, trained_state
):
  """Each head's loss on packed rows is the sum of its losses on the examples alone.

  That includes the noise of the images.
  """
  items = laid_out_examples(kit.config)
  together = losses_of(kit, trained_state, items)
  alone = [losses_of(kit, trained_state, [item]) for item in items]
  assert (batch.segment_BL.max(axis=1) > 1).all()
  for name, loss in together.items():
    weights = [losses[name].weight for losses in alone]
    totals = [losses[name].total for losses in alone]
    np.testing.assert_allclose(loss.weight, sum(weights), rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(loss.total, sum(totals), rtol=1e-5, err_msg=name)
    assert loss.weight > 0
    assert sum(weight > 0 for weight in weights) > 1


def test_order_in_the_rows_changes_nothing(kit, trained_state):
  items = laid_out_examples(kit.config)
  forward = losses_of(kit, trained_state, items)
  backward = losses_of(kit, trained_state, items[::-1])
  for name, loss in forward.items():
    np.testing.assert_allclose(
      loss.total, backward[name].total, rtol=1e-5, err_msg=name
    )


@pytest.fixture(scope='module')
def loss_curve(kit, batch):
  """Returns the losses of each of 200 steps on the same batch."""
  state = kit.state
  curve = []
  for _ in range(200):
    state, metrics = kit.step(state, batch)
    losses = {name: float(metrics[f'loss/{name}']) for name in (*HEADS, 'total')}
    curve.append(losses)
  return curve


@pytest.mark.parametrize(
  'head, share', [('text', 0.02), ('image', 0.3), ('audio', 0.02)]
)
def test_every_head_overfits_one_batch(loss_curve, head, share):
  """At the end, less than a share of the first loss is left.

  The image loss is averaged and falls less, since each step has new noise.
  """
  first = loss_curve[0][head]
  last = np.mean([losses[head] for losses in loss_curve[-10:]])
  assert last < share * first, f'{first:.3f} -> {last:.3f}'


def crossed_gradients(kit, batch):
  """Returns a jitted function of the state that gives two gradients.

  They are those of the speech loss with respect to the pixels seen, and of the image
  loss with respect to the mel features heard.
  """
  heard = batch.streams['audio.heard']
  wave = as_wave(jnp.asarray(heard.value_BM))
  mel = log_mel_patches(wave, jnp.asarray(heard.item_BM), kit.config.media['audio'])
  bytes_seen = jnp.asarray(pieces_of(batch, 'image.seen'))
  pixels = normalised(bytes_seen, kit.config.media['image'])

  def loss(state, pixels, mel, name):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(audio_embed, 'log_mel_patches', lambda frames, clips, config: mel)
      changed = with_values(batch, {'image.seen': pixels})
      changed = jax.tree.map(jnp.asarray, changed)
      heads, _ = batch_losses(
        state.params, state.buffers, changed, KEY, model=kit.model, mesh=kit.mesh
      )
    return heads[name].mean

  def gradients(state):
    pixel_grad = jax.grad(loss, argnums=1)(state, pixels, mel, 'audio')
    mel_grad = jax.grad(loss, argnums=2)(state, pixels, mel, 'image')
    return pixel_grad, mel_grad

  return kit.jit(gradients)


def test_gradients_cross_from_speech_to_pixels_and_from_images_to_sound(
  kit, batch, trained_state, float_pixels
):
  gradients = crossed_gradients(kit, batch)
  _, mel_grad = gradients(kit.state)
  assert not mel_grad.any(), 'adaLN-Zero: a fresh image head ignores its condition'
  pixel_grad, mel_grad = map(np.asarray, gradients(trained_state))
  seen = batch.streams['image.seen']
  heard = batch.streams['audio.heard']
  spoken = batch.streams['audio.spoken']
  drawn = batch.streams['image.drawn']

  def read_beside_written(read, written_at_BL):
    """Returns a (B, M) mask of the pieces read in examples that also write."""
    marked_BM = np.zeros(read.item_BM.shape, bool)
    for row, segment_L in enumerate(batch.segment_BL):
      writing_segments = segment_L[written_at_BL[row] != NONE]
      for position in np.flatnonzero(read.at_BL[row] != NONE):
        piece = read.at_BL[row, position]
        marked_BM[row, piece] = segment_L[position] in writing_segments
    return marked_BM

  # A patch has a gradient if its own example speaks, and a frame if its own example
  # draws; all others have exactly none.
  expected_pixels = read_beside_written(seen, spoken.at_BL)
  expected_mel = read_beside_written(heard, drawn.query_at_BL)
  assert expected_pixels.any()
  assert expected_mel.any()
  has_pixel_grad = np.abs(pixel_grad).max(axis=2) > 1e-9
  has_mel_grad = np.abs(mel_grad).max(axis=2) > 1e-9
  np.testing.assert_array_equal(has_pixel_grad, expected_pixels)
  np.testing.assert_array_equal(has_mel_grad, expected_mel)


def test_every_weight_gets_a_gradient(kit, batch, trained_state):
  def objective(params, batch):
    heads, stats = batch_losses(
      params, trained_state.buffers, batch, KEY, model=kit.model, mesh=kit.mesh
    )
    return total_loss(heads, stats, LOSSES), stats

  run = kit.jit(jax.grad(objective, has_aux=True))
  grads, stats = run(trained_state.params, batch)
  assert (stats.load_E > 0).all(), (
    'the batch does not reach every expert: this test would show too little'
  )
  leaves = named_leaves(grads)
  assert not [name for name, leaf in leaves.items() if not np.any(leaf)]
  for name in ('up', 'down'):
    largest = np.abs(grads['decoder']['blocks']['moe'][name]).max(axis=(2, 3))
    assert largest.all(), f'an expert whose {name} learns nothing'
  assert all(np.isfinite(leaf).all() for leaf in leaves.values())


def test_the_frozen_codec_gets_no_gradient(kit, batch, trained_state):
  def objective(codec, batch):
    buffers = trained_state.buffers | {'frozen': {'codec': codec}}
    heads, _ = batch_losses(
      trained_state.params, buffers, batch, KEY, model=kit.model, mesh=kit.mesh
    )
    return sum(head.mean for head in heads.values())

  run = kit.jit(jax.grad(objective))
  grads = run(trained_state.buffers['frozen']['codec'], batch)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_bfloat16_computes_in_bfloat16_and_keeps_weights_and_losses_in_fp32(kit, batch):
  config = tiny_run().model
  config.audio.seconds = 0.48
  config.dtype = 'bfloat16'
  bf16_kit = kit._replace(model=abstract(ModelConfig.from_config(config)))

  def losses(batch):
    state = kit.state
    return batch_losses(
      state.params, state.buffers, batch, KEY, model=bf16_kit.model, mesh=kit.mesh
    )

  with jax.set_mesh(kit.mesh):
    hidden = jax.eval_shape(lambda batch: hidden_states(bf16_kit, batch), batch)
    heads, stats = jax.eval_shape(losses, batch)
  assert hidden.dtype == jnp.bfloat16
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((heads, stats)))


def heads_of(kit, state, batch):
  """Returns the decoder's states of a batch, and two functions of them.

  The functions return the losses of all heads: summed, and by segment.
  """
  coded = encode_streams(kit.config, state.buffers['frozen'], batch)
  network = merge(kit.model, state.params)
  hidden_BLD = network(coded, state.buffers['router_bias'], kit.mesh).hidden_BLD

  def summed(hidden):
    return network.losses(hidden, coded, KEY, kit.mesh)

  def by_segment(hidden, segments):
    return network.segment_losses(hidden, coded, KEY, segments=segments)

  return hidden_BLD, summed, by_segment


def test_losses_by_segment_are_those_of_each_example_and_sum_to_the_batch(
  kit, batch, trained_state
):
  segments = int(batch.segment_BL.max())

  def losses(state, batch):
    hidden, summed, by_segment = heads_of(kit, state, batch)
    return summed(hidden), by_segment(hidden, segments), by_segment(hidden, 1)

  of_batch, of_segments, of_first = kit.jit(losses)(trained_state, batch)
  assert set(of_batch) == set(of_segments) == set(HEADS)
  for name, loss in of_batch.items():
    assert of_segments[name].total.shape == (len(batch.segment_BL), segments)
    for sums, total in zip(of_segments[name], loss, strict=True):
      np.testing.assert_allclose(sums.sum(), total, rtol=1e-5, err_msg=name)
    for first, every in zip(of_first[name], of_segments[name], strict=True):
      np.testing.assert_allclose(first, every[:, :1], rtol=1e-6, err_msg=name)

  # Compare with the examples alone; the ids of a segment tell which example it is.
  items = {
    tuple(item.layout.token_n.tolist()): item for item in laid_out_examples(kit.config)
  }
  assert len(items) == len(examples())
  for row, segment_L in enumerate(batch.segment_BL):
    for segment in range(1, segment_L.max() + 1):
      ids = batch.token_BL[row][segment_L == segment]
      item = items.pop(tuple(ids.tolist()))
      for name, alone in losses_of(kit, trained_state, [item]).items():
        total_BS, weight_BS = of_segments[name]
        loss = (total_BS[row, segment - 1], weight_BS[row, segment - 1])
        np.testing.assert_allclose(loss, alone, rtol=2e-5, atol=1e-6, err_msg=name)
  assert not items


@pytest.mark.parametrize('name', HEADS)
def test_the_loss_of_a_segment_has_gradients_at_its_own_positions_only(
  kit, batch, trained_state, name
):
  segments = int(batch.segment_BL.max())

  def gradients(state, batch):
    hidden, _, by_segment = heads_of(kit, state, batch)

    def largest(row, segment):
      total = lambda hidden: by_segment(hidden, segments)[name].total[row, segment]
      return jnp.abs(jax.grad(total)(hidden)).max(axis=2)

    weight_BS = by_segment(hidden, segments)[name].weight
    grads = [largest(*index) for index in np.ndindex(len(hidden), segments)]
    return jnp.stack(grads), weight_BS

  grads_UBL, weight_BS = kit.jit(gradients)(trained_state, batch)
  grads_BSBL = np.asarray(grads_UBL).reshape(*weight_BS.shape, *batch.segment_BL.shape)
  assert (weight_BS > 0).sum() > 1
  for row, segment in np.ndindex(*weight_BS.shape):
    has_gradient = grads_BSBL[row, segment] > 0
    own = np.zeros_like(has_gradient)
    own[row] = batch.segment_BL[row] == segment + 1
    assert not has_gradient[~own].any()
    assert has_gradient.any() == (weight_BS[row, segment] > 0)
