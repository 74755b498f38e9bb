"""Images of many sizes in one pool give the results of each image alone in a row.

This holds for the DiT head and for the encoder, gradients included.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import chat, part, picture, text

from omni_jax.data.example_maker import prepare
from omni_jax.modalities.hosts import Hosts
from omni_jax.modalities.image import embed as image_embed
from omni_jax.modalities.image.embed import ImageEmbed, normalised
from omni_jax.modalities.image.head import DiTHead
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig
from omni_jax.sequence.pack import Packer
from omni_jax.types import Batch, RowBudget

IMAGE = ImageConfig(height=8, width=8, patch=2, fit='keep')  # at most 16 patches
BLOCK = 32
LENGTH = 320  # positions of a row
WIDTH = 8
KEY = jax.random.key(3)
HOSTS = Hosts({'image': IMAGE}, Tokenizer(TokenizerConfig(max_grid=4)))
# 16, 3, 4, 12, 1, 8 and 8 patches: three images in the first block, four in the second.
SIZES = [(8, 8), (2, 6), (4, 4), (6, 8), (2, 2), (8, 4), (4, 8)]
IMAGES = range(len(SIZES))  # their numbers
# Numbers of the images in each row, and number of blocks in a row.
POOLS = {
  'one row': ([list(IMAGES)], 2),
  'backwards': ([list(IMAGES)[::-1]], 3),
  'two rows': ([[3, 1, 6], [5, 0, 4, 2]], 1),
  'other blocks': ([[0, 3, 6, 4], [], [2, 5, 1]], 4),
}
every_pool = pytest.mark.parametrize('name', POOLS)


@functools.cache
def example(number: int, written: bool):
  image = picture(np.random.default_rng(number), *SIZES[number])
  if written:
    conversation = chat(f'image/{number}', [text('?')], [image])
  else:
    conversation = chat(f'image/{number}', [image], [text('!')])
  return prepare(conversation, HOSTS)


def packed_batch(rows: Sequence[Sequence[int]], blocks: int, written: bool) -> Batch:
  """Returns a batch with these images in its rows, drawn or seen."""
  stream = 'image.drawn' if written else 'image.seen'
  budget = RowBudget(len(rows), LENGTH, {stream: (blocks * BLOCK, len(SIZES))})
  packer = Packer(budget, HOSTS)
  for row, numbers in enumerate(rows):
    for number in numbers:
      assert packer.add(example(number, written), row)
  return packer.batch()


def example_ranges(rows: Sequence[Sequence[int]], written: bool) -> dict[int, tuple]:
  """Returns (row, first position, end) of each image's example, by its number."""
  ranges = {}
  for row, numbers in enumerate(rows):
    first = 0
    for number in numbers:
      end = first + example(number, written).length
      ranges[number] = (row, first, end)
      first = end
  return ranges


ALONE = [[number] for number in IMAGES]


def random_weights(module: nnx.Module) -> nnx.Module:
  """Returns the module with all weights random.

  At its initial zeros adaLN-Zero outputs nothing, so a test could not fail.
  """
  leaves, tree = jax.tree.flatten(nnx.state(module, nnx.Param))
  keys = jax.random.split(jax.random.key(7), len(leaves))
  noise = [
    0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
  ]
  nnx.update(module, tree.unflatten(noise))
  return module


def assert_close(actual, expected, message=''):
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    scale = np.abs(b).max()
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * scale, err_msg=message)


@pytest.fixture(scope='module')
def head():
  sizes = dict(width=16, layers=2, heads=2, hidden=16)
  config = part('model.image.head', **sizes, noises=4, null=0.4)
  return random_weights(DiTHead(config, IMAGE, BLOCK, WIDTH, rngs=nnx.Rngs(0)))


def hidden_states(rows: Sequence[Sequence[int]]) -> jax.Array:
  """Returns states that are the same for an example wherever it is packed."""
  hidden_BLD = np.ones((len(rows), LENGTH, WIDTH), np.float32)
  for number, (row, first, end) in example_ranges(rows, True).items():
    rng = np.random.default_rng(100 + number)
    hidden_BLD[row, first:end] = rng.standard_normal((end - first, WIDTH))
  return jnp.asarray(hidden_BLD)


class HeadResults(NamedTuple):
  """Results of the head.

  Attributes:
    losses: (loss, weight) by number of an image.
    hidden_grads: gradient with respect to the hidden states of its example, by number
      of an image.
    param_grads: gradients with respect to all weights.
  """

  losses: dict[int, tuple]
  hidden_grads: dict[int, jax.Array]
  param_grads: Any


def head_results(head: DiTHead, rows, blocks: int, key=KEY) -> HeadResults:
  batch = packed_batch(rows, blocks, written=True)
  stream = jax.tree.map(jnp.asarray, batch.streams['image.drawn'])
  graph, params = nnx.split(head)
  # Every image has a weight of its own, the same in every pool.
  weight_BS = np.zeros((len(rows), len(SIZES)), np.float32)
  for row, numbers in enumerate(rows):
    weight_BS[row, : len(numbers)] = 1.0 + np.array(numbers, np.float32)

  def total(params, hidden):
    units = nnx.merge(graph, params).losses(hidden, stream, key)
    loss_BS = units.by_segment(jnp.asarray(batch.segment_BL), len(SIZES))
    return (loss_BS.total * weight_BS).sum(), loss_BS

  run = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
  (_, loss_BS), (param_grads, hidden_grad) = run(params, hidden_states(rows))
  losses = {}
  for row, numbers in enumerate(rows):
    for segment, number in enumerate(numbers):
      losses[number] = (loss_BS.total[row, segment], loss_BS.weight[row, segment])
  hidden_grads = {}
  outside = np.ones(hidden_grad.shape[:2], bool)
  for number, (row, first, end) in example_ranges(rows, True).items():
    hidden_grads[number] = hidden_grad[row, first:end]
    outside[row, first:end] = False
  assert not np.asarray(hidden_grad)[outside].any(), 'padding has a gradient'
  return HeadResults(losses, hidden_grads, param_grads)


@pytest.fixture(scope='module')
def alone(head) -> HeadResults:
  return head_results(head, ALONE, 1)


def test_pools_mix_images_and_vary_their_places():
  """Blocks hold several images, none crosses a border, and places differ by pool."""
  places_of = {number: set() for number in IMAGES}
  for rows, blocks in POOLS.values():
    item_BM = packed_batch(rows, blocks, written=True).streams['image.drawn'].item_BM
    item_UP = item_BM.reshape(-1, BLOCK)
    assert max(len(np.unique(block[block > 0])) for block in item_UP) > 1
    for row, numbers in enumerate(rows):
      for k, number in enumerate(numbers):
        pieces = np.flatnonzero(item_BM[row] == k + 1)
        height, width = SIZES[number]
        assert len(pieces) == height * width // IMAGE.patch**2
        assert len(set(pieces // BLOCK)) == 1
        places_of[number].add((row, pieces[0] // BLOCK, pieces[0] % BLOCK))
  for places in places_of.values():
    assert len(places) > 1


@every_pool
def test_losses_and_gradients_of_a_pool_are_those_of_each_image_alone(
  head, alone, name
):
  rows, blocks = POOLS[name]
  together = head_results(head, rows, blocks)
  for number in IMAGES:
    loss, weight = together.losses[number]
    np.testing.assert_allclose(weight, 1, rtol=1e-6)
    assert_close((loss, weight), alone.losses[number], f'loss of {number}')
    gradient = together.hidden_grads[number]
    assert np.abs(gradient).max() > 0
    assert_close(gradient, alone.hidden_grads[number], f'gradient of {number}')
  for leaf in jax.tree.leaves(together.param_grads):
    assert np.abs(leaf).max() > 0
  assert_close(together.param_grads, alone.param_grads, 'gradient of the weights')


@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_recomputation_in_the_backward_pass_changes_no_result(head, remat):
  config = dataclasses.replace(head.config, remat=remat)
  recomputing = DiTHead(config, IMAGE, BLOCK, WIDTH, rngs=nnx.Rngs(0))
  nnx.update(recomputing, nnx.state(head))
  rows, blocks = POOLS['one row']
  assert_close(
    head_results(recomputing, rows, blocks), head_results(head, rows, blocks)
  )


@pytest.mark.parametrize('remat', ['offload', 'attention'])
def test_kinds_of_recomputation_that_only_the_decoder_has_are_refused(remat):
  with pytest.raises(ValueError, match=f'remat={remat} must be one of none, dots'):
    part('model.image.head', remat=remat)


def test_another_step_has_other_noise(head, alone):
  rows, blocks = POOLS['one row']
  later = head_results(head, rows, blocks, key=jax.random.key(4))
  for number in IMAGES:
    loss, _ = later.losses[number]
    loss_alone, _ = alone.losses[number]
    assert abs(loss - loss_alone) > 1e-3


def with_flipped_bytes(stream, item: int):
  """Returns the stream with other bytes in one item of its first row; 0 is padding."""
  value_BM = np.array(stream.value_BM)
  value_BM[0][stream.item_BM[0] == item] ^= 0x55
  return stream._replace(value_BM=value_BM)


def test_patches_of_an_image_do_not_see_another_nor_padding(head):
  rows, blocks = POOLS['one row']
  stream = packed_batch(rows, blocks, written=True).streams['image.drawn']
  hidden = hidden_states(rows)
  run = nnx.jit(lambda head, stream: head.losses(hidden, stream, KEY).loss_BU[0])
  clean_M = np.asarray(run(head, stream))
  assert not clean_M[stream.item_BM[0] == 0].any()
  for item in range(1 + len(SIZES)):
    changed_M = np.asarray(run(head, with_flipped_bytes(stream, item))) != clean_M
    own_M = (stream.item_BM[0] == item) & (item > 0)
    assert not changed_M[~own_M].any(), item
    assert changed_M[own_M].all(), item


@pytest.fixture(scope='module')
def encoder():
  config = part('model.image.embed', layers=2, heads=2, hidden=16)
  return random_weights(ImageEmbed(config, IMAGE, BLOCK, WIDTH, rngs=nnx.Rngs(0)))


@pytest.fixture
def float_pixels(monkeypatch):
  """Makes the embedding take normalised pixels, which unlike bytes have gradients."""
  monkeypatch.setattr(image_embed, 'normalised', lambda value, image: value)


class EncoderResults(NamedTuple):
  """Results of the encoder.

  Attributes:
    states: embedded patches, by number of an image.
    pixel_grads: gradient with respect to its pixels, by number of an image.
    param_grads: gradients with respect to the weights for seen images, by name.
  """

  states: dict[int, jax.Array]
  pixel_grads: dict[int, jax.Array]
  param_grads: dict[str, Any]


def encoder_results(encoder: ImageEmbed, rows, blocks: int) -> EncoderResults:
  stream = packed_batch(rows, blocks, written=False).streams['image.seen']
  pixels = normalised(jnp.asarray(stream.value_BM), IMAGE)
  graph, params = nnx.split(encoder)
  weight_BMD = np.zeros((*stream.item_BM.shape, WIDTH), np.float32)
  places = {}
  for row, numbers in enumerate(rows):
    for k, number in enumerate(numbers):
      own_M = np.flatnonzero(stream.item_BM[row] == k + 1)
      rng = np.random.default_rng(200 + number)
      weight_BMD[row, own_M] = rng.standard_normal((len(own_M), WIDTH))
      places[number] = (row, own_M)

  def total(params, pixels):
    normalised_stream = jax.tree.map(jnp.asarray, stream)._replace(value_BM=pixels)
    x_BMD = nnx.merge(graph, params).read(normalised_stream, jnp.float32)
    return (x_BMD * weight_BMD).sum(), x_BMD

  run = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
  (_, x_BMD), (all_grads, pixel_grad) = run(params, pixels)
  assert not np.asarray(pixel_grad)[stream.item_BM == 0].any(), 'padding has a gradient'
  states = {number: x_BMD[place] for number, place in places.items()}
  pixel_grads = {number: pixel_grad[place] for number, place in places.items()}
  # The other weights are those of written images.
  param_grads = {name: all_grads[name] for name in ('encoder', 'patch', 'place')}
  return EncoderResults(states, pixel_grads, param_grads)


@every_pool
def test_a_pool_is_encoded_as_each_image_alone(encoder, float_pixels, name):
  rows, blocks = POOLS[name]
  together = encoder_results(encoder, rows, blocks)
  alone = encoder_results(encoder, ALONE, 1)
  for number in IMAGES:
    assert np.abs(together.states[number]).max() > 0
    assert_close(together.states[number], alone.states[number], f'image {number}')
    gradient = together.pixel_grads[number]
    assert np.abs(gradient).max() > 0
    assert_close(gradient, alone.pixel_grads[number], f'gradient of {number}')
  for leaf in jax.tree.leaves(together.param_grads):
    assert np.abs(leaf).max() > 0
  assert_close(together.param_grads, alone.param_grads, 'gradient of the weights')


def test_the_encoder_mixes_the_patches_of_an_image_and_of_no_other(encoder):
  rows, blocks = POOLS['one row']
  stream = packed_batch(rows, blocks, written=False).streams['image.seen']
  run = nnx.jit(lambda encoder, stream: encoder.read(stream, jnp.float32)[0])
  clean_MD = np.asarray(run(encoder, stream))

  def changed_patches(other_stream):
    """Returns which patches another stream encodes differently."""
    return (np.asarray(run(encoder, other_stream)) != clean_MD).any(axis=1)

  for item in range(1 + len(SIZES)):
    changed_M = changed_patches(with_flipped_bytes(stream, item))
    own_M = stream.item_BM[0] == item
    assert not changed_M[~own_M].any(), item
    assert changed_M[own_M].all(), item
  # Changing one patch changes the states of all patches of its image.
  patch = 5
  value_BM = np.array(stream.value_BM)
  value_BM[0, patch] ^= 0x55
  changed_M = changed_patches(stream._replace(value_BM=value_BM))
  np.testing.assert_array_equal(
    changed_M, stream.item_BM[0] == stream.item_BM[0, patch]
  )
