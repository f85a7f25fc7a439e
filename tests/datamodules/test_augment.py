import numpy as np
import pytest
import torch

from datamodules.augment import Augment, augment_batch, cutout, normalise
from datamodules.files import DataError

EVERY_WAY = [
    Augment(pad=pad, padding=padding, flip=flip)
    for pad, padding in ((0, "zero"), (1, "zero"), (4, "zero"), (1, "reflect"), (4, "reflect"))
    for flip in (False, True)
    if pad or flip
]


def noise(*shape):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def padded(image, options):
    border = (options.pad, options.pad)
    return np.pad(image, (border, border, (0, 0)), mode="constant" if options.padding == "zero" else "reflect")


def crop(image, options, top, left, flip):
    """Pad, crop, then flip one image."""
    height, width, _ = image.shape
    piece = padded(image, options)[top : top + height, left : left + width]
    return piece[:, ::-1] if flip else piece


def crops_shown(image, result, options):
    """Every (top, left, flip) that turns the image into the result."""
    offsets, flips = range(2 * options.pad + 1), (False, True) if options.flip else (False,)
    every = [(top, left, flip) for top in offsets for left in offsets for flip in flips]
    return [how for how in every if np.array_equal(crop(image, options, *how), result)]


@pytest.mark.parametrize("options", EVERY_WAY, ids=str)
@pytest.mark.parametrize("shape", [(7, 9, 6, 3), (5, 8, 8, 1)], ids=str)
def test_equals_padding_cropping_and_flipping_image_by_image(options, shape):
    images, batch = noise(*shape), shape[0]
    torch.manual_seed(1)
    result = augment_batch(images, options)
    torch.manual_seed(1)  # the same numbers in the same order: flips, tops, lefts
    flips = torch.rand(batch, 1) < 0.5 if options.flip else torch.zeros(batch, dtype=torch.bool)
    drawn = [torch.randint(2 * options.pad + 1, (batch, 1)) for _ in range(2)] if options.pad else [[0] * batch] * 2
    for image, got, top, left, flip in zip(images, result, *drawn, flips, strict=True):
        assert np.array_equal(got, crop(image.numpy(), options, int(top), int(left), bool(flip)))


@pytest.mark.parametrize("options", EVERY_WAY, ids=str)
def test_every_image_is_a_crop_of_itself_and_draws_its_own(options):
    images = noise(12, 9, 7, 3)
    result = augment_batch(images, options)
    shown = [crops_shown(image.numpy(), got.numpy(), options) for image, got in zip(images, result, strict=True)]
    assert all(shown)
    assert not set.intersection(*map(set, shown))


@pytest.mark.parametrize("padding", ["zero", "reflect"])
def test_every_crop_is_drawn_equally_often(padding):
    options, image = Augment(pad=1, padding=padding, flip=True), noise(1, 4, 4, 3)
    results = augment_batch(image.repeat(3600, 1, 1, 1), options)
    every = [(top, left, flip) for top in range(3) for left in range(3) for flip in (False, True)]
    possible = torch.stack([torch.from_numpy(crop(image[0].numpy(), options, *how).copy()) for how in every])
    counts = (results.unsqueeze(1) == possible).flatten(2).all(dim=2).sum(dim=0)
    assert counts.sum() == 3600
    assert counts.min() > 200 - 5 * 14  # 200 expected, standard deviation 14
    assert counts.max() < 200 + 5 * 14


def test_shows_zeros_at_a_border_that_was_padded():
    images = torch.full((200, 4, 4, 1), 9, dtype=torch.uint8)
    corners = augment_batch(images, Augment(pad=2))[:, 0, 0, 0]
    assert set(corners.tolist()) == {0, 9}


def test_reflection_mirrors_at_the_border_pixel_without_repeating_it():
    row = torch.arange(10, 15, dtype=torch.uint8).view(1, 1, 5, 1).repeat(300, 5, 1, 1)
    rows = {tuple(image[0, :, 0].tolist()) for image in augment_batch(row, Augment(pad=3, padding="reflect"))}
    assert rows == {
        (13, 12, 11, 10, 11),
        (12, 11, 10, 11, 12),
        (11, 10, 11, 12, 13),
        (10, 11, 12, 13, 14),
        (11, 12, 13, 14, 13),
        (12, 13, 14, 13, 12),
        (13, 14, 13, 12, 11),
    }


def test_reflection_may_be_as_wide_as_the_image_less_one():
    images = noise(50, 4, 4, 3)
    options = Augment(pad=3, padding="reflect")
    for image, got in zip(images, augment_batch(images, options), strict=True):
        assert crops_shown(image.numpy(), got.numpy(), options)


def test_flips_half_of_the_images():
    images = torch.tensor([0, 1], dtype=torch.uint8).view(1, 1, 2, 1).repeat(4000, 1, 1, 1)
    flipped = augment_batch(images, Augment(flip=True))[:, 0, 0, 0].float().mean()
    assert abs(flipped - 0.5) < 0.04  # five standard deviations


@pytest.mark.parametrize("options", [Augment(), Augment(cutout=4), *EVERY_WAY], ids=str)
def test_keeps_shape_and_type_and_leaves_the_source_alone(options):
    images = noise(6, 9, 7, 3)
    before = images.clone()
    result = augment_batch(images, options)
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    assert torch.equal(images, before)


def test_changes_nothing_and_draws_nothing_when_nothing_is_asked_for():
    images, state = noise(3, 4, 4, 3), torch.get_rng_state()
    assert torch.equal(augment_batch(images, Augment()), images)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalises_each_channel(channels):
    images, mean, std = noise(4, 6, 5, channels), (0.5, 0.25, 0.125)[:channels], (0.2, 0.3, 0.7)[:channels]
    result = normalise(images, mean, std)
    expected = (images.double() / 255 - torch.tensor(mean).double()) / torch.tensor(std).double()
    torch.testing.assert_close(result.double(), expected.permute(0, 3, 1, 2), rtol=0, atol=2e-6)
    assert result.dtype == torch.float32


def test_normalised_images_lie_in_channels_last_memory():
    result = normalise(noise(4, 6, 5, 3), (0.5,) * 3, (0.2,) * 3)
    assert result.shape == (4, 3, 6, 5)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_normalise_refuses_statistics_of_unequal_length():
    with pytest.raises(ValueError, match=r"zip\(\)"):
        normalise(noise(4, 6, 5, 3), (0.5, 0.5), (0.2,) * 3)


@pytest.mark.parametrize("side", [1, 4, 5, 16])
def test_cutout_cuts_one_square_of_its_size_around_any_pixel(side):
    torch.manual_seed(2)
    images = torch.rand(300, 3, 9, 7) + 1
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


def test_cutout_squares_are_whole_or_hang_over_the_border():
    holes = (cutout(torch.ones(2000, 1, 12, 12), 4) == 0)[:, 0]
    heights, widths = holes.any(dim=2).sum(dim=1), holes.any(dim=1).sum(dim=1)
    assert torch.equal(holes.sum(dim=(1, 2)), heights * widths)  # a rectangle
    assert set(heights.tolist()) == set(widths.tolist()) == {2, 3, 4}
    whole = (heights == 4) & (widths == 4)
    assert abs(whole.float().mean() - (9 / 12) ** 2) < 0.06  # 9 of 12 centres have room; five standard deviations
    assert holes.any(dim=0).all()


def test_cutout_keeps_channels_last_memory():
    images = torch.ones(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    assert cutout(images, 4).is_contiguous(memory_format=torch.channels_last)


def test_same_seed_same_images():
    images, options = noise(20, 8, 8, 3), Augment(pad=2, flip=True)
    torch.manual_seed(5)
    first, other = augment_batch(images, options), augment_batch(images, options)
    torch.manual_seed(5)
    assert torch.equal(augment_batch(images, options), first)
    assert not torch.equal(first, other)


def test_reflection_wider_than_the_image_is_refused():
    with pytest.raises(DataError, match=r"augment\.pad"):
        augment_batch(torch.zeros(2, 8, 8, 1, dtype=torch.uint8), Augment(pad=8, padding="reflect"))
