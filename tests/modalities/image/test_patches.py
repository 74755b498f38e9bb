"""Images of all sizes become patches and positions and come back."""

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.modalities.hosts import Hosts
from omni_jax.modalities.image import embed
from omni_jax.modalities.image.embed import normalised, Places
from omni_jax.modalities.image.files import bytes_of
from omni_jax.modalities.image.host import cut, grid_of, patch_places
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig
from omni_jax.types import Span

# 4 x 6 patches of 12 values.
CONFIG = ImageConfig(height=8, width=12, channels=3, patch=2, mean=0.4, std=0.3)
TOKENIZER = Tokenizer(TokenizerConfig(max_grid=6))
HOST = Hosts({'image': CONFIG}, TOKENIZER)['image']


def pixels(height=8, width=12):
  return np.random.default_rng(height).random((height, width, 3), np.float32)


def pieces(image):
  """Returns the patches of an image, as bytes."""
  (value,) = HOST.pieces(Span('image', payload=image))
  return value


def test_patches_come_back_as_the_image():
  """Pixels are rounded to 256 levels, which then come back exactly."""
  for image in (pixels(), 1 - pixels()):
    value = pieces(image)
    assert value.shape == (24, 12)
    assert value.dtype == np.uint8
    joined = HOST.join_pieces(value, (1, 4, 6))
    np.testing.assert_allclose(joined, image, atol=0.5 / 255 + 1e-6)
    np.testing.assert_array_equal(pieces(joined), value)


def test_normalised_levels_come_back_as_bytes():
  levels = jnp.arange(256, dtype=jnp.uint8).reshape(1, 256)
  values = normalised(levels, CONFIG)
  np.testing.assert_allclose(values[0, [0, 255]], [-0.4 / 0.3, 0.6 / 0.3], rtol=1e-5)
  np.testing.assert_array_equal(embed.as_bytes(values, CONFIG), levels)
  out_of_range = jnp.asarray([[-9.0, 9.0]])
  np.testing.assert_array_equal(embed.as_bytes(out_of_range, CONFIG), [[0, 255]])


def test_a_patch_is_a_square_of_the_image_row_by_row():
  patches = normalised(jnp.asarray(pieces(pixels())), CONFIG)
  levels = np.floor(pixels() * 255 + 0.5) / 255
  for p in range(24):
    row, column = divmod(p, 6)
    square = levels[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
    expected = (square.reshape(-1) - CONFIG.mean) / CONFIG.std
    np.testing.assert_allclose(patches[p], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('height, width', [(2, 2), (4, 6), (8, 4), (8, 12)])
def test_a_smaller_image_has_the_patches_and_places_of_a_corner_of_the_largest(
  height, width
):
  small = pixels(height, width)
  padded = np.zeros((8, 12, 3), np.float32)
  padded[:height, :width] = small
  rows, columns = grid_of(small, CONFIG)
  place_M3 = patch_places(rows, columns)
  corner_M = place_M3[:, 1] * 6 + place_M3[:, 2]
  np.testing.assert_array_equal(pieces(padded)[corner_M], pieces(small))
  np.testing.assert_array_equal(patch_places(4, 6)[corner_M], place_M3)
  np.testing.assert_array_equal(pieces(small), cut(bytes_of(small), 2))
  (item,) = HOST.layout((rows, columns), False).items
  np.testing.assert_array_equal(item.place_M3, place_M3)
  joined = HOST.join_pieces(pieces(small), item.form)
  np.testing.assert_allclose(joined, small, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize(
  'shape', [(7, 12, 3), (8, 14, 3), (10, 12, 3), (8, 12, 1)], ids=str
)
def test_an_image_that_does_not_fit_is_refused_with_both_sizes(shape):
  h, w, c = shape
  with pytest.raises(ValueError, match=f'{h}x{w}x{c} does not fit .* 8x12x3'):
    grid_of(np.zeros(shape, np.float32), CONFIG)


def layout_of(written):
  """Returns the layout of an image of 2 x 3 patches."""
  return HOST.layout(HOST.form(Span('image', payload=pixels(4, 6))), written)


def names_of(ids_n):
  """Returns the names of the special tokens among ids; 0 is none."""
  return [TOKENIZER.name(i) for i in ids_n.tolist() if i]


def test_a_read_image_is_its_size_and_its_patches():
  layout = layout_of(written=False)
  assert names_of(layout.token_n) == ['boi', 'size:2', 'size:3', 'eoi']
  assert len(layout.token_n) == 4 + 6
  (item,) = layout.items
  assert item.stream == 'image.seen'
  assert item.form == (1, 2, 3)
  np.testing.assert_array_equal(item.at_M, np.arange(3, 9))
  np.testing.assert_array_equal(item.place_M3[:, 1:], list(np.ndindex(2, 3)))
  assert not layout.label_n.any()
  assert item.query_M is None
  assert item.write_M is None
  np.testing.assert_array_equal(layout.modality_n[3:-1], HOST.number)


def test_a_written_image_is_queries_and_their_clean_patches_in_the_same_places():
  layout = layout_of(written=True)
  assert len(layout.token_n) == 4 + 12
  (item,) = layout.items  # no item of image.seen
  assert item.stream == 'image.drawn'
  assert item.form == (1, 2, 3)
  np.testing.assert_array_equal(item.query_M, np.arange(3, 9))
  np.testing.assert_array_equal(item.write_M, item.query_M)
  np.testing.assert_array_equal(item.at_M, np.arange(9, 15))
  np.testing.assert_array_equal(layout.offset_n3[3:9], layout.offset_n3[9:15])
  np.testing.assert_array_equal(layout.offset_n3[3:9] - 3, item.place_M3)
  # No loss on the clean patches, and none on <eoi>.
  assert names_of(layout.label_n) == ['boi', 'size:2', 'size:3']
  assert layout.offset_n3[-1, 0] == layout.offset_n3[:-1].max() + 1


def test_a_place_is_embedded_as_the_sum_of_its_row_and_its_column():
  places = Places((4, 6), 512, rngs=nnx.Rngs(0))
  place_M3 = patch_places(4, 6)
  embedded_MD = places(jnp.asarray(place_M3)[None], jnp.float32)[0]
  for (_, row, column), vector in zip(place_M3, embedded_MD, strict=True):
    expected = places.rows[...][row] + places.columns[...][column]
    np.testing.assert_allclose(vector, expected, rtol=1e-6)
  assert abs(embedded_MD.std() - 1) < 0.1
