"""The whole model: causal, packed = alone, every head learns, gradients cross modalities and reach every weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import examples, laid, packed, tiny_run

from omni_jax.modalities.audio import embed as audio_embed
from omni_jax.modalities.audio.mel import as_wave, log_mel_patches
from omni_jax.modalities.image import embed as image_embed
from omni_jax.modalities.image.embed import normalised
from omni_jax.model import abstract, batch_losses, encode_streams, merge, ModelConfig
from omni_jax.objective import LossConfig, total_loss
from omni_jax.sharding import name_of
from omni_jax.types import Batch, NONE

KEY = jax.random.key(11)


def hidden_states(kit, batch, push=None):
  """Decoder states of a batch; `push` is added to the embeddings."""
  batch = jax.tree.map(jnp.asarray, batch)
  model = merge(kit.model, kit.state.params)
  batch = encode_streams(model.config, kit.state.buffers['frozen'], batch)
  x_BLD = model.embed(batch)
  x_BLD = x_BLD if push is None else x_BLD + push
  return model.decoder(
    x_BLD,
    batch.segment_BL,
    batch.modality_BL,
    batch.position_BL3,
    kit.state.buffers['router_bias'],
    kit.mesh,
  ).hidden_BLD


def with_values(batch: Batch, **values: jax.Array) -> Batch:
  """The batch with other pieces in some of its streams, given as MEDIUM_KIND."""
  streams = dict(batch.streams)
  for name, value_BM in values.items():
    stream = name.replace('_', '.')
    streams[stream] = streams[stream]._replace(value_BM=value_BM)
  return batch._replace(streams=streams)


def value_of(batch: Batch, stream: str) -> np.ndarray:
  return batch.streams[stream].value_BM


@pytest.fixture
def float_pixels(monkeypatch):
  """Embeddings take pixels that are normalised already, which have gradients, beside bytes, which have none."""

  def either(value, image):
    return normalised(value, image) if value.dtype == jnp.uint8 else value

  monkeypatch.setattr(image_embed, 'normalised', either)


@pytest.fixture(scope='module')
def row(batch):
  """The fuller row of the batch alone, and which position of it may look at which."""
  row = jax.tree.map(lambda x: x[:1], batch)
  segment_L, place = row.segment_BL[0], np.arange(row.segment_BL.shape[1])
  assert segment_L.max() >= 3
  same_LL = (segment_L[:, None] == segment_L[None]) & (segment_L[:, None] > 0)
  return row, same_LL & (place[:, None] >= place[None])


def reach(mask_LL, at_L, pieces):
  """(L, pieces): whether position p may know of a piece, which is shown at the positions that `at_L` says."""
  shown_LM = at_L[:, None] == np.arange(pieces)[None]
  return (mask_LL[:, :, None] & shown_LM[None]).any(axis=1)


def test_nothing_knows_the_future_or_other_examples_by_gradients(
  kit, row, float_pixels
):
  """Gradient of the state at every position with respect to every embedding, pixel and sample of the row."""
  row, mask_LL = row
  length, width = mask_LL.shape[0], kit.config.decoder.width
  image = kit.config.media['image']

  def gradients(push, seen, drawn, heard):
    def run(push, seen, drawn, heard):
      values = dict(image_seen=seen, image_drawn=drawn, audio_heard=heard)
      return hidden_states(kit, with_values(row, **values), push)

    _, pull = jax.vjp(run, push, seen, drawn, heard)
    direction_D = jax.random.normal(KEY, (width,))
    # Position by position. Not vmap: XLA on CPU (jaxlib 0.10.2) sums a vmapped RMS norm's gradient wrongly.
    return jax.lax.map(
      lambda p: pull(jax.nn.one_hot(p, length)[None, :, None] * direction_D),
      jnp.arange(length),
    )

  pixels = [
    normalised(jnp.asarray(value_of(row, name)), image)
    for name in ('image.seen', 'image.drawn')
  ]
  heard = as_wave(jnp.asarray(value_of(row, 'audio.heard')))
  push, *pieces = kit.meshed(gradients)(jnp.zeros((1, length, width)), *pixels, heard)
  real = row.segment_BL[0] > 0
  found = lambda x: (np.abs(np.asarray(x)) > 0).any(axis=-1)[real]
  np.testing.assert_array_equal(found(push[:, 0]), mask_LL[real], 'embeddings')
  names = ('image.seen', 'image.drawn', 'audio.heard')
  for name, grads in zip(names, pieces, strict=True):
    expected = reach(mask_LL, row.streams[name].at_BL[0], grads.shape[2])[real]
    assert expected.any()
    np.testing.assert_array_equal(found(grads[:, 0]), expected, name)


def test_nothing_knows_the_future_or_other_examples_by_changes(kit, row):
  """What has no gradient: text ids and the codes of spoken frames, one changed at a time, all in one batch."""
  row, mask_LL = row
  length = len(mask_LL)
  spoken_L = row.streams['audio.spoken'].at_BL[0]
  (spoken,) = np.nonzero(spoken_L != NONE)
  (texts,) = np.nonzero(row.token_BL[0])
  many = jax.tree.map(lambda x: np.repeat(x, 1 + len(texts) + len(spoken), axis=0), row)
  for i, q in enumerate(texts, start=1):
    many.token_BL[i, q] += 1
  samples = kit.config.media['audio'].frame
  noise = 8000 * np.random.default_rng(0).standard_normal(samples)
  for i, q in enumerate(spoken, start=1 + len(texts)):
    value_of(many, 'audio.spoken')[i, spoken_L[q]] = noise.astype(np.int16)
  hidden = np.asarray(kit.meshed(lambda many: hidden_states(kit, many))(many))
  moved = np.abs(hidden[1:] - hidden[:1]).max(axis=-1) > 1e-4
  moved[:, row.segment_BL[0] == 0] = False
  np.testing.assert_array_equal(moved[: len(texts)], mask_LL.T[texts])
  for later, q in zip(moved[len(texts) :], spoken, strict=True):
    assert later[q], 'a spoken frame that the model does not see'
    assert not (later & ~mask_LL[:, q]).any()
  assert moved.shape == (len(texts) + len(spoken), length)


def test_packed_equals_alone(kit, batch, fifth):
  """Every head's loss on packed rows is the sum over the examples alone, the noise of the images included."""
  losses = lambda items: (
    kit.forward(
      fifth.params, fifth.buffers, packed(items, kit.config.hosts()), KEY
    ).heads
  )
  items = laid(kit.config)
  whole, alone = losses(items), [losses([item]) for item in items]
  assert (batch.segment_BL.max(axis=1) > 1).all()
  for name, loss in whole.items():
    np.testing.assert_allclose(
      loss.weight, sum(one[name].weight for one in alone), rtol=1e-6, err_msg=name
    )
    np.testing.assert_allclose(
      loss.total, sum(one[name].total for one in alone), rtol=1e-5, err_msg=name
    )
    assert loss.weight > 0 and sum(one[name].weight > 0 for one in alone) > 1


def test_order_in_the_rows_changes_nothing(kit, fifth):
  losses = lambda items: (
    kit.forward(
      fifth.params, fifth.buffers, packed(items, kit.config.hosts()), KEY
    ).heads
  )
  forward, backward = losses(laid(kit.config)), losses(laid(kit.config)[::-1])
  for name in forward:
    np.testing.assert_allclose(
      forward[name].total, backward[name].total, rtol=1e-5, err_msg=name
    )


@pytest.fixture(scope='module')
def overfit(kit, batch):
  state, curve = kit.state, []
  for _ in range(200):
    state, metrics = kit.step(state, batch)
    curve.append(
      {
        name: float(metrics[f'loss/{name}'])
        for name in ('text', 'image', 'audio', 'total')
      }
    )
  return curve


@pytest.mark.parametrize(
  'head, left', [('text', 0.02), ('image', 0.3), ('audio', 0.02)]
)
def test_every_head_overfits_one_batch(overfit, head, left):
  """The noise of the image loss is new in every step, so it falls slower and is averaged."""
  last = np.mean([losses[head] for losses in overfit[-10:]])
  assert last < left * overfit[0][head], f'{overfit[0][head]:.3f} -> {last:.3f}'


def crossed_gradients(kit, batch):
  """In one jitted function: the speech loss by the pixels seen, the image loss by the mel features heard."""
  heard = batch.streams['audio.heard']
  wave = as_wave(jnp.asarray(heard.value_BM))
  mel = log_mel_patches(wave, jnp.asarray(heard.item_BM), kit.config.media['audio'])
  bytes_seen = jnp.asarray(value_of(batch, 'image.seen'))
  pixels = normalised(bytes_seen, kit.config.media['image'])

  def losses(state, pixels, mel, name):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(audio_embed, 'log_mel_patches', lambda frames, clips, config: mel)
      shown = jax.tree.map(jnp.asarray, with_values(batch, image_seen=pixels))
      heads, _ = batch_losses(
        state.params, state.buffers, shown, KEY, model=kit.model, mesh=kit.mesh
      )
    return heads[name].mean

  both = lambda state: (
    jax.grad(losses, argnums=1)(state, pixels, mel, 'audio'),
    jax.grad(losses, argnums=2)(state, pixels, mel, 'image'),
  )
  return kit.meshed(both)


def test_gradients_cross_from_speech_to_pixels_and_from_images_to_sound(
  kit, batch, fifth, float_pixels
):
  gradients = crossed_gradients(kit, batch)
  _, mel = gradients(kit.state)
  assert not mel.any(), 'adaLN-Zero: the fresh image head looks at nothing'
  pixels, mel = (np.abs(np.asarray(x)) for x in gradients(fifth))
  seen, heard = batch.streams['image.seen'], batch.streams['audio.heard']
  spoken, drawn = batch.streams['audio.spoken'], batch.streams['image.drawn']

  def segments(row: int, at_BL: np.ndarray) -> np.ndarray:
    """Segments of a row that carry something."""
    return batch.segment_BL[row][at_BL[row] != NONE]

  # A patch has a gradient where its own example speaks, a frame where its own example draws; elsewhere exactly none.
  expected_pixels = np.zeros(seen.item_BM.shape, bool)
  expected_mel = np.zeros(heard.item_BM.shape, bool)
  for row in range(len(pixels)):
    for q in np.flatnonzero(seen.at_BL[row] != NONE):
      says = np.isin(batch.segment_BL[row, q], segments(row, spoken.at_BL))
      expected_pixels[row, seen.at_BL[row, q]] = says
    for q in np.flatnonzero(heard.at_BL[row] != NONE):
      draws = np.isin(batch.segment_BL[row, q], segments(row, drawn.query_at_BL))
      expected_mel[row, heard.at_BL[row, q]] = draws
  assert expected_pixels.any() and expected_mel.any()
  np.testing.assert_array_equal(pixels.max(axis=2) > 1e-9, expected_pixels)
  np.testing.assert_array_equal(mel.max(axis=2) > 1e-9, expected_mel)


def test_every_weight_gets_a_gradient(kit, batch, fifth):
  def objective(params, batch):
    heads, stats = batch_losses(
      params, fifth.buffers, batch, KEY, model=kit.model, mesh=kit.mesh
    )
    return total_loss(heads, stats, LossConfig()), stats

  grads, stats = kit.meshed(jax.grad(objective, has_aux=True))(fifth.params, batch)
  assert (stats.load_E > 0).all(), (
    'the batch does not reach every expert: this test would show too little'
  )
  without = [
    name_of(path)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
    if not np.any(leaf)
  ]
  assert not without
  for name in ('up', 'down'):
    assert np.abs(grads['decoder']['blocks']['moe'][name]).max(axis=(2, 3)).all(), (
      f'an expert whose {name} learns nothing'
    )
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_the_frozen_codec_gets_none(kit, batch, fifth):
  def objective(codec, batch):
    buffers = fifth.buffers | {'frozen': {'codec': codec}}
    heads, _ = batch_losses(
      fifth.params, buffers, batch, KEY, model=kit.model, mesh=kit.mesh
    )
    return sum(head.mean for head in heads.values())

  grads = kit.meshed(jax.grad(objective))(fifth.buffers['frozen']['codec'], batch)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_bfloat16_computes_in_bfloat16_and_keeps_weights_and_losses_in_fp32(kit, batch):
  config = tiny_run().model
  config.audio.seconds, config.dtype = 0.48, 'bfloat16'
  half = kit._replace(model=abstract(ModelConfig.from_config(config)))
  with jax.set_mesh(kit.mesh):
    assert jax.eval_shape(lambda b: hidden_states(half, b), batch).dtype == jnp.bfloat16
    heads, stats = jax.eval_shape(
      lambda b: batch_losses(
        kit.state.params, kit.state.buffers, b, KEY, model=half.model, mesh=kit.mesh
      ),
      batch,
    )
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((heads, stats)))


def heads_of(kit, state, batch):
  """Decoder states of a batch, and functions of them: the losses of all heads, summed and by segment."""
  coded = encode_streams(kit.config, state.buffers['frozen'], batch)
  network = merge(kit.model, state.params)
  hidden_BLD = network(coded, state.buffers['router_bias'], kit.mesh).hidden_BLD
  summed = lambda hidden: network.losses(hidden, coded, KEY, kit.mesh)
  by_segment = lambda hidden, segments: network.segment_losses(
    hidden, coded, KEY, segments=segments
  )
  return hidden_BLD, summed, by_segment


def test_losses_by_segment_are_those_of_each_example_and_sum_to_the_whole(
  kit, batch, fifth
):
  most = int(batch.segment_BL.max())

  def both(state, batch):
    hidden, summed, by_segment = heads_of(kit, state, batch)
    return summed(hidden), by_segment(hidden, most), by_segment(hidden, 1)

  whole, each, first = kit.meshed(both)(fifth, batch)
  assert set(whole) == set(each) == {'text', 'image', 'audio'}
  for name, loss in whole.items():
    assert each[name].total.shape == (len(batch.segment_BL), most)
    for sums, total in zip(each[name], loss, strict=True):
      np.testing.assert_allclose(sums.sum(), total, rtol=1e-5, err_msg=name)
    for fewer, more in zip(first[name], each[name], strict=True):
      np.testing.assert_allclose(fewer, more[:, :1], rtol=1e-6, err_msg=name)

  # The examples one by one, found again by their ids.
  hosts = kit.config.hosts()
  items = {tuple(item.layout.token_n.tolist()): item for item in laid(kit.config)}
  assert len(items) == len(examples())
  for row, segment_L in enumerate(batch.segment_BL):
    for segment in range(1, segment_L.max() + 1):
      item = items.pop(tuple(batch.token_BL[row][segment_L == segment].tolist()))
      alone = kit.forward(fifth.params, fifth.buffers, packed([item], hosts), KEY)
      for name, loss in alone.heads.items():
        here = jax.tree.map(lambda x, at=(row, segment - 1): x[at], each[name])
        np.testing.assert_allclose(here, loss, rtol=2e-5, atol=1e-6, err_msg=name)
  assert not items


@pytest.mark.parametrize('name', ['text', 'image', 'audio'])
def test_the_loss_of_a_segment_has_gradients_at_its_own_positions_only(
  kit, batch, fifth, name
):
  most = int(batch.segment_BL.max())

  def gradients(state, batch):
    hidden, _, by_segment = heads_of(kit, state, batch)

    def pull(row, segment):
      total = lambda hidden: by_segment(hidden, most)[name].total[row, segment]
      return jnp.abs(jax.grad(total)(hidden)).max(axis=2)

    at = [(row, segment) for row in range(len(hidden)) for segment in range(most)]
    weight_BS = by_segment(hidden, most)[name].weight
    return jnp.stack([pull(*each) for each in at]), weight_BS

  grads_UBL, weight_BS = kit.meshed(gradients)(fifth, batch)
  grads_BSBL = np.asarray(grads_UBL).reshape(*weight_BS.shape, *batch.segment_BL.shape)
  assert (weight_BS > 0).sum() > 1
  for row, segment in np.ndindex(*weight_BS.shape):
    reached = grads_BSBL[row, segment] > 0
    own = np.zeros_like(reached)
    own[row] = batch.segment_BL[row] == segment + 1
    assert not reached[~own].any()
    assert reached.any() == (weight_BS[row, segment] > 0)
