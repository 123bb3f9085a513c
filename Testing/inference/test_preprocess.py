import numpy as np
import pytest
import torch

from MedSAM3Core.inference.preprocess import to_pixels


def literal_resize(image: np.ndarray, size: int) -> np.ndarray:
    """Antialiased bilinear resize by its definition: a triangle filter as wide as the scale."""

    def matrix(n_in: int) -> np.ndarray:
        scale = n_in / size
        support = max(scale, 1.0)
        weights = np.zeros((size, n_in))
        for out in range(size):
            centre = (out + 0.5) * scale
            for source in range(n_in):
                weights[out, source] = max(0.0, 1.0 - abs((source + 0.5 - centre) / support))
            weights[out] /= weights[out].sum()
        return weights

    return matrix(image.shape[0]) @ image.astype(float) @ matrix(image.shape[1]).T


@pytest.mark.parametrize("shape", [(37, 23), (5, 9), (16, 16)])
def test_resize_follows_its_definition_to_one_grey_value(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels = to_pixels(image[None], 16)
    grey = ((pixels[0] * 0.5 + 0.5) * 255).numpy()
    assert np.abs(grey[0] - literal_resize(image, 16)).max() <= 0.5 + 1e-3
    assert np.array_equal(grey[0], grey[1])


def test_grey_and_colour_and_range() -> None:
    colour = np.zeros((2, 4, 4, 3), np.uint8)
    colour[..., 1] = 255
    pixels = to_pixels(colour, 8)
    assert pixels.shape == (2, 3, 8, 8)
    assert pixels[:, 0].eq(-1).all()
    assert pixels[:, 1].eq(1).all()
    assert to_pixels(np.zeros((3, 4, 4), np.uint8), 8).shape == (3, 3, 8, 8)


def test_a_reversed_view_is_taken_as_it_looks() -> None:
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    assert torch.equal(to_pixels(image[:, ::-1], 8), to_pixels(image, 8).flip(-2))


@pytest.mark.parametrize("wrong", [np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 4, 4), np.uint8)])
def test_wrong_input_is_named(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        to_pixels(wrong, 8)
