import numpy as np
import pytest
import torch

from datamodules.augment import Augment, augment_batch, cutout, normalise
from datamodules.files import DataError

EVERY_WAY = [
    Augment(pad=pad, padding=padding, flip=flip)
    for pad, padding in ((0, "zero"), (1, "zero"), (4, "zero"), (1, "reflect"), (5, "reflect"))
    for flip in (False, True)
]


def noise(*shape):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def crop(image, options, top, left, flip):
    """Pad, crop, then flip one image."""
    height, width, _ = image.shape
    border = (options.pad, options.pad)
    mode = "constant" if options.padding == "zero" else "reflect"
    piece = np.pad(image, (border, border, (0, 0)), mode=mode)[top : top + height, left : left + width]
    return piece[:, ::-1] if flip else piece


@pytest.mark.parametrize("options", EVERY_WAY, ids=str)
@pytest.mark.parametrize("shape", [(7, 9, 6, 3), (5, 8, 8, 1)], ids=str)
def test_equals_padding_cropping_and_flipping_image_by_image(options, shape):
    images, batch = noise(*shape), shape[0]
    before = images.clone()
    torch.manual_seed(1)
    result = augment_batch(images, options)
    drawn_after = torch.rand(())
    torch.manual_seed(1)  # the same numbers in the same order: flips, tops, lefts
    flips = torch.rand(batch, 1) < 0.5 if options.flip else torch.zeros(batch, dtype=torch.bool)
    drawn = [torch.randint(2 * options.pad + 1, (batch, 1)) for _ in range(2)] if options.pad else [[0] * batch] * 2
    assert torch.rand(()) == drawn_after
    assert result.dtype == torch.uint8
    assert torch.equal(images, before)
    for image, got, top, left, flip in zip(images, result, *drawn, flips, strict=True):
        assert np.array_equal(got, crop(image.numpy(), options, int(top), int(left), bool(flip)))


@pytest.mark.parametrize("channels", [1, 3])
def test_normalises_each_channel_into_channels_last_memory(channels):
    images, mean, std = noise(4, 6, 5, channels), (0.5, 0.25, 0.125)[:channels], (0.2, 0.3, 0.7)[:channels]
    result = normalise(images, mean, std)
    expected = (images.double() / 255 - torch.tensor(mean).double()) / torch.tensor(std).double()
    torch.testing.assert_close(result.double(), expected.permute(0, 3, 1, 2), rtol=0, atol=2e-6)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_normalise_refuses_statistics_of_unequal_length():
    with pytest.raises(ValueError, match=r"zip\(\)"):
        normalise(noise(4, 6, 5, 3), (0.5, 0.5), (0.2,) * 3)


@pytest.mark.parametrize("side", [1, 4, 5, 16])
def test_cutout_cuts_one_square_of_its_size_around_any_pixel(side):
    torch.manual_seed(2)
    images = (torch.rand(300, 3, 9, 7) + 1).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    torch.manual_seed(3)
    result = cutout(images, side)
    torch.manual_seed(3)  # the same numbers in the same order: rows, columns
    rows, columns = torch.randint(9, (300,)), torch.randint(7, (300,))
    for image, got, row, column in zip(before, result, rows.tolist(), columns.tolist(), strict=True):
        expected, top, left = image.clone(), row - side // 2, column - side // 2
        expected[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
        assert torch.equal(got, expected)
    assert torch.equal(images, before)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert cutout(images, 0) is images


def test_reflection_wider_than_the_image_is_refused():
    with pytest.raises(DataError, match=r"augment\.pad"):
        augment_batch(torch.zeros(2, 8, 8, 1, dtype=torch.uint8), Augment(pad=8, padding="reflect"))
