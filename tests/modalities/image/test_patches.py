"""Images <-> patches <-> positions, also of images smaller than the largest one."""

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.modalities.hosts import Hosts
from omni_jax.modalities.image import embed
from omni_jax.modalities.image.embed import normalised, Places
from omni_jax.modalities.image.host import bytes_of, cut, grid_of, patch_places
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig
from omni_jax.types import Span

CONFIG = ImageConfig(height=8, width=12, channels=3, patch=2, mean=0.4, std=0.3)
TOKENIZER = Tokenizer(TokenizerConfig(max_grid=6))
HOST = Hosts({'image': CONFIG}, TOKENIZER)['image']


def pixels(height=8, width=12):
  return np.random.default_rng(height).random((height, width, 3), np.float32)


def pieces(image):
  (value,) = HOST.pieces(Span('image', payload=image))
  return value


def test_patches_come_back_as_the_image():
  """To the nearest of 256 levels, which come back as they are."""
  for image in (pixels(), 1 - pixels()):
    value = pieces(image)
    assert value.shape == (24, 12) and value.dtype == np.uint8
    again = HOST.joined(value, (1, 4, 6))
    np.testing.assert_allclose(again, image, atol=0.5 / 255 + 1e-6)
    np.testing.assert_array_equal(pieces(again), value)


def test_all_256_levels_come_back_through_what_the_model_sees():
  levels = jnp.arange(256, dtype=jnp.uint8).reshape(1, 256)
  seen = normalised(levels, CONFIG)
  np.testing.assert_allclose(seen[0, [0, 255]], [-0.4 / 0.3, 0.6 / 0.3], rtol=1e-5)
  np.testing.assert_array_equal(embed.as_bytes(seen, CONFIG), levels)
  far = jnp.asarray([[-9.0, 9.0]])
  np.testing.assert_array_equal(embed.as_bytes(far, CONFIG), [[0, 255]])


def test_a_patch_is_a_square_of_the_image_row_by_row():
  patches = normalised(jnp.asarray(pieces(pixels())), CONFIG)
  levels = np.floor(pixels() * 255 + 0.5) / 255
  for p in range(24):
    r, c = divmod(p, 6)
    square = (levels[2 * r : 2 * r + 2, 2 * c : 2 * c + 2] - 0.4) / 0.3
    np.testing.assert_allclose(patches[p], square.reshape(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('height, width', [(2, 2), (4, 6), (8, 4), (8, 12)])
def test_a_smaller_image_has_the_patches_and_places_of_a_corner_of_the_largest(
  height, width
):
  small, padded = pixels(height, width), np.zeros((8, 12, 3), np.float32)
  padded[:height, :width] = small
  rows, columns = grid_of(small, CONFIG)
  place_M3 = patch_places(rows, columns)
  corner_M = place_M3[:, 1] * 6 + place_M3[:, 2]
  np.testing.assert_array_equal(pieces(padded)[corner_M], pieces(small))
  np.testing.assert_array_equal(patch_places(4, 6)[corner_M], place_M3)
  np.testing.assert_array_equal(pieces(small), cut(bytes_of(small), 2))
  (item,) = HOST.layout((rows, columns), False).items
  np.testing.assert_array_equal(item.place_M3, place_M3)
  again = HOST.joined(pieces(small), item.form)
  np.testing.assert_allclose(again, small, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize(
  'shape', [(7, 12, 3), (8, 14, 3), (10, 12, 3), (8, 12, 1)], ids=str
)
def test_an_image_that_does_not_fit_is_refused_with_both_sizes(shape):
  with pytest.raises(
    ValueError, match=f'{shape[0]}x{shape[1]}x{shape[2]} does not fit .* 8x12x3'
  ):
    grid_of(np.zeros(shape, np.float32), CONFIG)


def laid_out(written):
  return HOST.layout(HOST.form(Span('image', payload=pixels(4, 6))), written)


def test_a_read_image_is_its_size_and_its_patches():
  made = laid_out(written=False)
  names = [TOKENIZER.name(i) for i in made.token_n.tolist() if i]
  assert names == ['boi', 'size:2', 'size:3', 'eoi'] and len(made.token_n) == 4 + 6
  (item,) = made.items
  assert item.stream == 'image.seen' and item.form == (1, 2, 3)
  np.testing.assert_array_equal(item.at_M, np.arange(3, 9))
  np.testing.assert_array_equal(item.place_M3[:, 1:], list(np.ndindex(2, 3)))
  assert not made.label_n.any() and item.query_M is None and item.write_M is None
  np.testing.assert_array_equal(made.modality_n[3:-1], HOST.number)


def test_a_written_image_is_queries_and_their_clean_patches_in_the_same_places():
  made = laid_out(written=True)
  assert len(made.token_n) == 4 + 12
  (item,) = made.items  # and none that is only seen
  assert item.stream == 'image.drawn' and item.form == (1, 2, 3)
  np.testing.assert_array_equal(item.query_M, np.arange(3, 9))
  np.testing.assert_array_equal(item.write_M, item.query_M)
  np.testing.assert_array_equal(item.at_M, np.arange(9, 15))
  np.testing.assert_array_equal(made.offset_n3[3:9], made.offset_n3[9:15])
  np.testing.assert_array_equal(made.offset_n3[3:9] - 3, item.place_M3)
  assert [TOKENIZER.name(i) for i in made.label_n.tolist() if i] == [
    'boi',
    'size:2',
    'size:3',
  ]  # no loss on X, none on <eoi>
  assert made.offset_n3[-1, 0] == made.offset_n3[:-1].max() + 1


def test_a_place_is_a_row_of_one_table_and_a_column_of_another():
  places = Places((4, 6), 512, rngs=nnx.Rngs(0))
  made = places(jnp.asarray(patch_places(4, 6))[None], jnp.float32)[0]
  for (_, row, column), vector in zip(patch_places(4, 6), made, strict=True):
    expected = places.rows[...][row] + places.columns[...][column]
    np.testing.assert_allclose(vector, expected, rtol=1e-6)
  assert abs(made.std() - 1) < 0.1
