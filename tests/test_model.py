"""The whole model: causal, packed = alone, every head learns, gradients cross modalities and reach every weight."""

import jax
import jax.numpy as jnp
import numpy as np
from omni_jax.train.losses import LossConfig, total_loss
import pytest
from samples import laid, packed, tiny_run

from omni_jax.modalities.audio import embed as audio_embed
from omni_jax.modalities.audio.mel import log_mel_patches
from omni_jax.modalities.image.embed import patchify
from omni_jax.model import abstract, encode_media, merge, OmniConfig
from omni_jax.sharding import name_of
from omni_jax.train.state import codebooks_of
from omni_jax.train.step import omni_losses
from omni_jax.types import NONE

KEY = jax.random.key(11)


def hidden_states(kit, batch, push=None):
  """Decoder states of a batch; `push` is added to the embeddings."""
  batch = jax.tree.map(jnp.asarray, batch)
  model, frozen = merge(kit.model, kit.state.params), kit.state.buffers['codec']
  encoded = encode_media(
    model.config, merge(kit.codec, frozen['params']), codebooks_of(frozen), batch
  )
  x_BLD = model.embed(batch, encoded)
  x_BLD = x_BLD if push is None else x_BLD + push
  return model.decoder(
    x_BLD,
    batch.segment_BL,
    batch.modality_BL,
    batch.position_BL3,
    kit.state.buffers['router_bias'],
    kit.mesh,
  ).hidden_BLD


@pytest.fixture(scope='module')
def row(batch):
  """The fuller row of the batch alone, and which position of it may look at which."""
  row = jax.tree.map(lambda x: x[:1], batch)
  segment_L, place = row.segment_BL[0], np.arange(row.segment_BL.shape[1])
  assert segment_L.max() >= 3
  same_LL = (segment_L[:, None] == segment_L[None]) & (segment_L[:, None] > 0)
  return row, same_LL & (place[:, None] >= place[None])


def reach(mask_LL, map_L, items):
  """(L, items): whether position p may know of an item, which is shown at the positions that `map_L` says."""
  shown_LI = map_L[:, None] == np.arange(items)[None]
  return (mask_LL[:, :, None] & shown_LI[None]).any(axis=1)


def test_nothing_knows_the_future_or_other_examples_by_gradients(kit, row):
  """Gradient of the state at every position with respect to every embedding, pixel and sample of the row."""
  row, mask_LL = row
  length, width = mask_LL.shape[0], kit.config.decoder.width

  def gradients(push, seen, drawn, heard):
    run = lambda push, seen, drawn, heard: hidden_states(
      kit, row._replace(seen_BNhwc=seen, drawn_BNhwc=drawn, heard_BRS=heard), push
    )
    _, pull = jax.vjp(run, push, seen, drawn, heard)
    direction_D = jax.random.normal(KEY, (width,))
    # Position by position. Not vmap: XLA on CPU (jaxlib 0.10.2) sums a vmapped RMS norm's gradient wrongly.
    return jax.lax.map(
      lambda p: pull(jax.nn.one_hot(p, length)[None, :, None] * direction_D),
      jnp.arange(length),
    )

  push, seen, drawn, heard = kit.meshed(gradients)(
    jnp.zeros((1, length, width)), row.seen_BNhwc, row.drawn_BNhwc, row.heard_BRS
  )
  real = row.segment_BL[0] > 0
  found = lambda x: (
    (np.abs(np.asarray(x)) > 0).reshape(length, x.shape[1], -1).any(axis=-1)[real]
  )
  np.testing.assert_array_equal(found(push[:, 0]), mask_LL[real], 'embeddings')
  squares = jax.vmap(
    lambda x: patchify(x + kit.config.media.image.mean, kit.config.media.image)
  )  # of gradients: no mean
  for name, grads, shown in (
    ('seen', squares(seen[:, 0]), row.seen_BL),
    ('drawn', squares(drawn[:, 0]), row.drawn_BL),
  ):
    grads = grads.reshape(length, -1, grads.shape[-1])
    np.testing.assert_array_equal(
      found(grads), reach(mask_LL, shown[0], grads.shape[1])[real], name
    )
  np.testing.assert_array_equal(
    found(heard[:, 0]), reach(mask_LL, row.heard_BL[0], heard.shape[2])[real], 'heard'
  )


def test_nothing_knows_the_future_or_other_examples_by_changes(kit, row):
  """What has no gradient: text ids and the codes of spoken frames, one changed at a time, all in one batch."""
  row, mask_LL = row
  length = len(mask_LL)
  (spoken,) = np.nonzero(row.spoken_BL[0] != NONE)
  (texts,) = np.nonzero(row.token_BL[0])
  many = jax.tree.map(lambda x: np.repeat(x, 1 + len(texts) + len(spoken), axis=0), row)
  for i, q in enumerate(texts, start=1):
    many.token_BL[i, q] += 1
  for i, q in enumerate(spoken, start=1 + len(texts)):
    many.spoken_BRS[i, row.spoken_BL[0, q]] = np.random.default_rng(0).standard_normal(
      kit.config.media.audio.frame
    )
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
  losses = lambda items: kit.forward(
    fifth.params, fifth.buffers, packed(items, kit.config.media), KEY
  )[0]
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
  losses = lambda items: kit.forward(
    fifth.params, fifth.buffers, packed(items, kit.config.media), KEY
  )[0]
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
  heard = log_mel_patches(
    jnp.asarray(batch.heard_BRS),
    jnp.asarray(batch.heard_clip_BR),
    kit.config.media.audio,
  )

  def losses(state, pixels, mel, name):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(audio_embed, 'log_mel_patches', lambda frames, clips, config: mel)
      shown = jax.tree.map(jnp.asarray, batch._replace(seen_BNhwc=pixels))
      heads, _ = omni_losses(
        state.params,
        state.buffers,
        shown,
        KEY,
        model=kit.model,
        codec=kit.codec,
        mesh=kit.mesh,
      )
    return heads[name].mean

  both = lambda state: (
    jax.grad(losses, argnums=1)(state, jnp.asarray(batch.seen_BNhwc), heard, 'audio'),
    jax.grad(losses, argnums=2)(state, jnp.asarray(batch.seen_BNhwc), heard, 'image'),
  )
  return kit.meshed(both)


def test_gradients_cross_from_speech_to_pixels_and_from_images_to_sound(
  kit, batch, fifth
):
  gradients = crossed_gradients(kit, batch)
  _, mel = gradients(kit.state)
  assert not mel.any(), 'adaLN-Zero: the fresh image head looks at nothing'
  pixels, mel = (np.abs(np.asarray(x)) for x in gradients(fifth))
  # An image has a gradient where its own example speaks, a frame where its own example draws; elsewhere exactly none.
  says = lambda row, segment: np.isin(
    segment, batch.segment_BL[row][batch.spoken_BL[row] != NONE]
  )
  draws = lambda row, segment: np.isin(
    segment, batch.segment_BL[row][batch.query_BL[row] != NONE]
  )
  expected_pixels, expected_mel = (
    np.zeros(pixels.shape[:2], bool),
    np.zeros(batch.heard_clip_BR.shape, bool),
  )
  for row in range(len(pixels)):
    for q in np.flatnonzero(batch.seen_BL[row] != NONE):
      item = batch.seen_BL[row, q] // kit.config.media.image.patches
      expected_pixels[row, item] = says(row, batch.segment_BL[row, q])
    for q in np.flatnonzero(batch.heard_BL[row] != NONE):
      expected_mel[row, batch.heard_BL[row, q]] = draws(row, batch.segment_BL[row, q])
  assert expected_pixels.any() and expected_mel.any()
  np.testing.assert_array_equal(pixels.max(axis=(2, 3, 4)) > 1e-9, expected_pixels)
  np.testing.assert_array_equal(mel.max(axis=2) > 1e-9, expected_mel)


def test_every_weight_gets_a_gradient(kit, batch, fifth):
  def objective(params, batch):
    heads, stats = omni_losses(
      params, fifth.buffers, batch, KEY, model=kit.model, codec=kit.codec, mesh=kit.mesh
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
    buffers = fifth.buffers | {'codec': codec}
    heads, _ = omni_losses(
      fifth.params, buffers, batch, KEY, model=kit.model, codec=kit.codec, mesh=kit.mesh
    )
    return sum(head.mean for head in heads.values())

  grads = kit.meshed(jax.grad(objective))(fifth.buffers['codec'], batch)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_bfloat16_computes_in_bfloat16_and_keeps_weights_and_losses_in_fp32(kit, batch):
  config = tiny_run().model
  config.audio.seconds, config.dtype = 0.48, 'bfloat16'
  half = kit._replace(model=abstract(OmniConfig.from_config(config)))
  with jax.set_mesh(kit.mesh):
    assert jax.eval_shape(lambda b: hidden_states(half, b), batch).dtype == jnp.bfloat16
    heads, stats = jax.eval_shape(
      lambda b: omni_losses(
        kit.state.params,
        kit.state.buffers,
        b,
        KEY,
        model=half.model,
        codec=kit.codec,
        mesh=kit.mesh,
      ),
      batch,
    )
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((heads, stats)))
