"""Images of many sizes in one pool: the DiT head and the encoder give what they give for each image alone in a row."""

from collections.abc import Sequence
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import chat, picture, text

from omni_jax.data.making import prepare
from omni_jax.modalities.hosts import Hosts
from omni_jax.modalities.image import embed as image_embed
from omni_jax.modalities.image.embed import ImageEmbed, ImageEmbedConfig, normalised
from omni_jax.modalities.image.head import DiTConfig, DiTHead
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig
from omni_jax.sequence.pack import Packer
from omni_jax.types import Batch, RowBudget

IMAGE = ImageConfig(height=8, width=8, patch=2, fit='keep')  # at most 16 patches
BLOCK, WIDTH, KEY = 32, 8, jax.random.key(3)
HOSTS = Hosts({'image': IMAGE}, Tokenizer(TokenizerConfig(max_grid=4)))
# 16, 3, 4, 12, 1, 8 and 8 patches: three images lie in the first block and four in the second.
SIZES = [(8, 8), (2, 6), (4, 4), (6, 8), (2, 2), (8, 4), (4, 8)]
NAMES = range(len(SIZES))
# Rows of images by number, and blocks in a row.
POOLS = {
  'one row': ([list(NAMES)], 2),
  'backwards': ([list(NAMES)[::-1]], 3),
  'two rows': ([[3, 1, 6], [5, 0, 4, 2]], 1),
  'other blocks': ([[0, 3, 6, 4], [], [2, 5, 1]], 4),
}
every_pool = pytest.mark.parametrize('name', POOLS)


@functools.cache
def example(number: int, written: bool):
  shown = picture(np.random.default_rng(number), *SIZES[number])
  asked, answer = ([text('?')], [shown]) if written else ([shown], [text('!')])
  return prepare(chat(f'image/{number}', asked, answer), HOSTS)


def pool(rows: Sequence[Sequence[int]], blocks: int, written: bool) -> Batch:
  stream = 'image.drawn' if written else 'image.seen'
  budget = RowBudget(len(rows), 320, {stream: (blocks * BLOCK, len(SIZES))})
  packer = Packer(budget, HOSTS)
  for row, numbers in enumerate(rows):
    for number in numbers:
      assert packer.add(example(number, written), row)
  return packer.batch()


def positions(rows: Sequence[Sequence[int]], written: bool) -> dict[int, tuple]:
  """By number of an image, (row, first position, end) of its example."""
  found = {}
  for row, numbers in enumerate(rows):
    first = 0
    for number in numbers:
      end = first + example(number, written).length
      found[number] = (row, first, end)
      first = end
  return found


ALONE = [[number] for number in NAMES]


def random_weights(module: nnx.Module) -> nnx.Module:
  """All of them: adaLN-Zero starts at zero, where nothing could be seen."""
  state = nnx.state(module, nnx.Param)
  leaves, tree = jax.tree.flatten(state)
  keys = jax.random.split(jax.random.key(7), len(leaves))
  noise = [
    0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
  ]
  nnx.update(module, tree.unflatten(noise))
  return module


def assert_close(ours, theirs, message=''):
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    scale = np.abs(b).max()
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * scale, err_msg=message)


@pytest.fixture(scope='module')
def head():
  config = DiTConfig(width=16, layers=2, heads=2, hidden=16, noises=4, null=0.4)
  return random_weights(DiTHead(config, IMAGE, BLOCK, WIDTH, rngs=nnx.Rngs(0)))


def hidden_states(rows: Sequence[Sequence[int]]) -> jax.Array:
  """The same states for an example wherever it lies."""
  hidden_BLD = np.ones((len(rows), 320, WIDTH), np.float32)
  for number, (row, first, end) in positions(rows, True).items():
    rng = np.random.default_rng(100 + number)
    hidden_BLD[row, first:end] = rng.standard_normal((end - first, WIDTH))
  return jnp.asarray(hidden_BLD)


def head_results(head: DiTHead, rows, blocks: int, key=KEY):
  """By number of an image: its loss, its weight and its gradients by hidden states; the gradients by all weights."""
  batch = pool(rows, blocks, written=True)
  stream = jax.tree.map(jnp.asarray, batch.streams['image.drawn'])
  graph, params = nnx.split(head)
  at = positions(rows, True)
  # Every image weighs differently, the same in every pool.
  weight_BS = np.zeros((len(rows), len(SIZES)), np.float32)
  for row, numbers in enumerate(rows):
    weight_BS[row, : len(numbers)] = 1.0 + np.array(numbers, np.float32)

  def total(params, hidden):
    units = nnx.merge(graph, params).losses(hidden, stream, key)
    each = units.by_segment(jnp.asarray(batch.segment_BL), len(SIZES))
    return (each.total * weight_BS).sum(), each

  run = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
  (_, each), (by_params, by_hidden) = run(params, hidden_states(rows))
  losses = {}
  for row, numbers in enumerate(rows):
    for segment, number in enumerate(numbers):
      losses[number] = (each.total[row, segment], each.weight[row, segment])
  gradients = {n: by_hidden[row, first:end] for n, (row, first, end) in at.items()}
  outside = np.ones(by_hidden.shape[:2], bool)
  for row, first, end in at.values():
    outside[row, first:end] = False
  assert not np.asarray(by_hidden)[outside].any(), 'padding has a gradient'
  return losses, gradients, by_params


@pytest.fixture(scope='module')
def alone(head):
  return head_results(head, ALONE, 1)


def test_the_pools_are_what_they_are_meant_to_be():
  """Several images in a block, none across a border, and images that are in other blocks of other pools."""
  found = {}
  for name, (rows, blocks) in POOLS.items():
    item_BM = pool(rows, blocks, written=True).streams['image.drawn'].item_BM
    item_UP = item_BM.reshape(-1, BLOCK)
    assert max(len(np.unique(block[block > 0])) for block in item_UP) > 1
    for row, numbers in enumerate(rows):
      for k, number in enumerate(numbers):
        at = np.flatnonzero(item_BM[row] == k + 1)
        assert len(at) == SIZES[number][0] * SIZES[number][1] // 4
        assert len({*(at // BLOCK)}) == 1
        found.setdefault(number, set()).add((name, row, at[0] // BLOCK, at[0] % BLOCK))
  places = [{place[1:] for place in pools} for pools in found.values()]
  assert all(len(each) > 1 for each in places)


@every_pool
def test_losses_and_gradients_of_a_pool_are_those_of_each_image_alone(
  head, alone, name
):
  rows, blocks = POOLS[name]
  losses, gradients, by_params = head_results(head, rows, blocks)
  wanted_losses, wanted_gradients, wanted_by_params = alone
  for number in NAMES:
    np.testing.assert_allclose(losses[number][1], 1, rtol=1e-6)  # an image counts 1
    assert_close(losses[number], wanted_losses[number], f'loss of {number}')
    assert np.abs(gradients[number]).max() > 0
    message = f'gradient of {number}'
    assert_close(gradients[number], wanted_gradients[number], message)
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(by_params))
  assert_close(by_params, wanted_by_params, 'gradient of the weights')


def test_another_step_has_other_noise(head, alone):
  losses, _, _ = head_results(head, *POOLS['one row'], key=jax.random.key(4))
  for number in NAMES:
    assert abs(losses[number][0] - alone[0][number][0]) > 1e-3


def pushed(stream, item: int):
  """The stream with other bytes in the pieces of one item of its first row; 0 is padding."""
  value_BM = np.array(stream.value_BM)
  value_BM[0][stream.item_BM[0] == item] ^= 0x55
  return stream._replace(value_BM=value_BM)


def test_patches_of_an_image_do_not_see_another_nor_padding(head):
  rows, blocks = POOLS['one row']
  stream = pool(rows, blocks, written=True).streams['image.drawn']
  hidden = hidden_states(rows)
  run = nnx.jit(lambda head, stream: head.losses(hidden, stream, KEY).loss_BU[0])
  clean_M = np.asarray(run(head, stream))
  assert not clean_M[stream.item_BM[0] == 0].any()
  for item in range(1 + len(SIZES)):
    moved_M = np.asarray(run(head, pushed(stream, item))) != clean_M
    own_M = (stream.item_BM[0] == item) & (item > 0)
    assert not moved_M[~own_M].any(), item
    assert moved_M[own_M].all(), item


# The encoder of seen images.


@pytest.fixture(scope='module')
def encoder():
  config = ImageEmbedConfig(layers=2, heads=2, hidden=16)
  return random_weights(ImageEmbed(config, IMAGE, BLOCK, WIDTH, rngs=nnx.Rngs(0)))


@pytest.fixture
def float_pixels(monkeypatch):
  """The embedding takes pixels that are normalised already: these have gradients."""
  monkeypatch.setattr(image_embed, 'normalised', lambda value, image: value)


def encoder_results(encoder: ImageEmbed, rows, blocks: int):
  """By number of an image: its patches at width and the gradients by its pixels; the gradients by all weights."""
  stream = pool(rows, blocks, written=False).streams['image.seen']
  pixels = normalised(jnp.asarray(stream.value_BM), IMAGE)
  graph, params = nnx.split(encoder)
  weight_BMD = np.zeros((*stream.item_BM.shape, WIDTH), np.float32)
  at = {}
  for row, numbers in enumerate(rows):
    for k, number in enumerate(numbers):
      mine_M = np.flatnonzero(stream.item_BM[row] == k + 1)
      rng = np.random.default_rng(200 + number)
      weight_BMD[row, mine_M] = rng.standard_normal((len(mine_M), WIDTH))
      at[number] = (row, mine_M)

  def total(params, pixels):
    shown = jax.tree.map(jnp.asarray, stream)._replace(value_BM=pixels)
    x_BMD = nnx.merge(graph, params).read(shown, jnp.float32)
    return (x_BMD * weight_BMD).sum(), x_BMD

  run = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
  (_, x_BMD), (by_params, by_pixels) = run(params, pixels)
  assert not np.asarray(by_pixels)[stream.item_BM == 0].any(), 'padding has a gradient'
  states = {number: x_BMD[place] for number, place in at.items()}
  gradients = {number: by_pixels[place] for number, place in at.items()}
  return states, gradients, {name: by_params[name] for name in ENCODING}


ENCODING = ('encoder', 'patch', 'place')  # the rest is of images that are written


@every_pool
def test_a_pool_is_encoded_as_each_image_alone(encoder, float_pixels, name):
  ours = encoder_results(encoder, *POOLS[name])
  theirs = encoder_results(encoder, ALONE, 1)
  for number in NAMES:
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
      assert np.abs(mine[number]).max() > 0
      assert_close(mine[number], other[number], f'image {number}')
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(ours[2]))
  assert_close(ours[2], theirs[2], 'gradient of the weights')


def test_the_encoder_mixes_the_patches_of_an_image_and_of_no_other(encoder):
  rows, blocks = POOLS['one row']
  stream = pool(rows, blocks, written=False).streams['image.seen']
  run = nnx.jit(lambda encoder, stream: encoder.read(stream, jnp.float32)[0])
  clean_MD = np.asarray(run(encoder, stream))
  for item in range(1 + len(SIZES)):
    moved_M = (np.asarray(run(encoder, pushed(stream, item))) != clean_MD).any(axis=1)
    own_M = stream.item_BM[0] == item
    assert not moved_M[~own_M].any(), item
    assert moved_M[own_M].all(), item
  # One patch moves all of its own image.
  one = np.array(stream.value_BM)
  one[0, 5] ^= 0x55
  moved_M = (np.asarray(run(encoder, stream._replace(value_BM=one))) != clean_MD).any(1)
  np.testing.assert_array_equal(moved_M, stream.item_BM[0] == stream.item_BM[0, 5])
