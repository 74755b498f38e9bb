"""Images <-> patches <-> positions, also of images smaller than the largest one."""

import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.modalities.image.embed import patchify, unpatchify
from omni_jax.modalities.image.host import form, grid_of, layout, patch_indices
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig
from omni_jax.types import Modality, NONE, Span

CONFIG = ImageConfig(height=8, width=12, channels=3, patch=2, mean=0.4, std=0.3)
TOKENIZER = Tokenizer(TokenizerConfig(max_grid=6))
MEDIA = MediaConfig(image=CONFIG)


def pixels(height=8, width=12):
  return np.random.default_rng(height).random((height, width, 3), np.float32)


def test_patches_come_back_as_the_image():
  batch = jnp.asarray(np.stack([pixels(), 1 - pixels()]))[None]
  patches = patchify(batch, CONFIG)
  assert patches.shape == (1, 2, 24, 12)
  np.testing.assert_allclose(unpatchify(patches, CONFIG), batch, atol=1e-6)


def test_a_patch_is_a_square_of_the_image_row_by_row():
  patches = patchify(jnp.asarray(pixels())[None], CONFIG)[0]
  for p in range(24):
    r, c = divmod(p, 6)
    square = (pixels()[2 * r : 2 * r + 2, 2 * c : 2 * c + 2] - 0.4) / 0.3
    np.testing.assert_allclose(patches[p], square.reshape(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('height, width', [(2, 2), (4, 6), (8, 4), (8, 12)])
def test_a_smaller_image_lies_in_the_corner_of_the_padded_grid(height, width):
  small, padded = pixels(height, width), np.zeros((8, 12, 3), np.float32)
  padded[:height, :width] = small
  rows, columns = grid_of(small, CONFIG)
  kept = patchify(jnp.asarray(padded)[None], CONFIG)[
    0, patch_indices(rows, columns, CONFIG)
  ]
  tight = ImageConfig(
    height=height, width=width, channels=3, patch=2, mean=0.4, std=0.3
  )
  np.testing.assert_array_equal(kept, patchify(jnp.asarray(small)[None], tight)[0])


@pytest.mark.parametrize(
  'shape', [(7, 12, 3), (8, 14, 3), (10, 12, 3), (8, 12, 1)], ids=str
)
def test_an_image_that_does_not_fit_is_refused_with_both_sizes(shape):
  with pytest.raises(
    ValueError, match=f'{shape[0]}x{shape[1]}x{shape[2]} does not fit .* 8x12x3'
  ):
    grid_of(np.zeros(shape, np.float32), CONFIG)


def test_a_read_image_is_its_size_and_its_patches():
  made = layout(
    form(Span(Modality.IMAGE, pixels=pixels(4, 6)), MEDIA), False, TOKENIZER, MEDIA
  )
  names = [TOKENIZER.name(i) for i in made.token_n.tolist() if i]
  assert names == ['boi', 'size:2', 'size:3', 'eoi'] and len(made.token_n) == 4 + 6
  np.testing.assert_array_equal(made.seen_n[3:-1], [0, 1, 2, 6, 7, 8])
  assert (
    not made.label_n.any()
    and (made.query_n == NONE).all()
    and (made.drawn_n == NONE).all()
  )


def test_a_written_image_is_queries_and_their_clean_patches_in_the_same_places():
  made = layout(
    form(Span(Modality.IMAGE, pixels=pixels(4, 6)), MEDIA), True, TOKENIZER, MEDIA
  )
  assert len(made.token_n) == 4 + 12
  np.testing.assert_array_equal(made.query_n[3:9], [0, 1, 2, 6, 7, 8])
  np.testing.assert_array_equal(made.drawn_n[9:15], made.query_n[3:9])
  np.testing.assert_array_equal(made.offset_n3[3:9], made.offset_n3[9:15])
  assert [TOKENIZER.name(i) for i in made.label_n.tolist() if i] == [
    'boi',
    'size:2',
    'size:3',
  ]  # no loss on X, none on <eoi>
  assert (made.seen_n == NONE).all()
  assert made.offset_n3[-1, 0] == made.offset_n3[:-1].max() + 1
