"""The batched operations against torchvision, lightly and Pillow, image by image."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from lightly.transforms import BYOLTransform, SimCLRTransform
from lightly.transforms.gaussian_blur import GaussianBlur
from PIL import Image, ImageFilter, ImageOps
from scipy.stats import chisquare, ks_2samp, kstest
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from datamodules.files import DataError
from datamodules.views.batched import BatchedView, cuts, translate
from datamodules.views.colour import Blur, Gray, Jitter, Solarize, drawn_by, shift_hue_
from datamodules.views.crop import Crop
from datamodules.views.transforms import BarlowTwinsViews, SimCLRViews, VICRegViews

# torchvision's tensor functions round grey's weights to .2989; nothing else may differ.
GRAY_WEIGHTS = 2e-4
ADJUST = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


def noise(*shape, seed=0):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def smooth(count, side, channels=3):
    """Images with edges and areas of one colour, enlarged from few pixels, and some noise."""
    few = noise(count, channels, 4, 4).float()
    images = torch.nn.functional.interpolate(few, (side, side), mode="bilinear").permute(0, 2, 3, 1)
    return (images + 0.1 * noise(count, side, side, channels, seed=1)).clamp(0, 255).to(torch.uint8)


def planar(images):
    """uint8 ``(B, H, W, C)`` → float ``(B, C, H, W)``, still in 0 … 255."""
    return images.permute(0, 3, 1, 2).float().contiguous()


def picture(image):
    return Image.fromarray(image.squeeze(2).numpy() if image.shape[2] == 1 else image.numpy())


def levels(image):
    """A Pillow image as ``(C, H, W)`` in 0 … 255."""
    return torch.from_numpy(np.array(image)).reshape(*image.size[::-1], -1).permute(2, 0, 1).float()


def draw(operation, count, side, seed=0):
    torch.manual_seed(seed)
    return operation.draw(count, side, side, torch.device("cpu"))


def jittered(image, drawn, i, strength=1.0):
    """One image ``(C, H, W)`` in 0 … 1 through torchvision, in the order that it drew."""
    if not drawn.applied[i]:
        return image
    amounts = [*(1 + strength * (drawn.factors[i] - 1)).tolist(), strength * float(drawn.hue[i])]
    for change in drawn.slots[i].argsort().tolist():
        if change < 3 or amounts[3]:  # torchvision leaves out a hue that is None; Pillow's is never without rounding
            image = ADJUST[change](image, amounts[change])
    return image


def by_torchvision(image, operations, chain, i):
    """Crop, flips, jitter and gray of one image ``(C, H, W)`` in 0 … 1, by torchvision."""
    for operation, drawn in zip(operations, chain, strict=True):
        if isinstance(operation, Crop):
            image = tv.resized_crop(image, *drawn.box[i].int().tolist(), list(operation.size), antialias=True)
            image = image.flip(2) if drawn.flip[i] else image
            image = image.flip(1) if drawn.vertical_flip[i] else image
        elif isinstance(operation, Jitter):
            image = jittered(image, drawn, i)
        elif drawn.chance[i] < operation.probability:
            image = tv.rgb_to_grayscale(image, image.shape[0])
    return image


def test_a_worker_crops_and_flips_and_leaves_the_rest_to_the_device():
    transform = SimCLRTransform(input_size=8, vf_prob=0.5, rr_prob=0).transforms[0]
    assert [type(step) for step in cuts(transform).transforms] == [
        v2.PILToTensor,
        v2.RandomResizedCrop,
        v2.RandomHorizontalFlip,
        v2.RandomVerticalFlip,
    ]


def test_a_worker_crops_as_pillow_does_to_one_level():
    image, transform = picture(smooth(1, 40)[0]), SimCLRTransform(input_size=16, rr_prob=0).transforms[0]
    by_pillow = v2.Compose(cuts(transform).transforms[1:])
    for seed in range(20):
        torch.manual_seed(seed)
        wanted = levels(by_pillow(image))
        torch.manual_seed(seed)
        assert (cuts(transform)(image) - wanted).abs().max() <= 1


# What is done to an image


def test_hue_equals_torchvisions_to_rounding():
    x = torch.cat([noise(48, 3, 16, 16).float(), torch.rand(16, 3, 16, 16) * 255])
    x[:4] = x[:4, :1]  # grey
    x[4:8, 1] = x[4:8, 0]  # two channels alike
    x[8:12, 2] = x[8:12, 1]
    x[12] = 0
    x[13] = 255
    turns = torch.linspace(-0.5, 0.5, 64)
    wanted = torch.stack([tv.adjust_hue(image / 255, float(t)) for image, t in zip(x, turns, strict=True)])
    shift_hue_(x, turns)
    assert (x / 255 - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("only", ["brightness", "contrast", "saturation", "hue", "all"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_jitter_equals_torchvisions_in_each_images_own_order(only, channels, strength):
    limits = {"brightness": (0.2, 1.8), "contrast": (0.2, 1.8), "saturation": (0.2, 1.8), "hue": (-0.2, 0.2)}
    jitter = Jitter(*(v if only in (name, "all") else None for name, v in limits.items()), probability=0.8)
    images, drawn = smooth(120, 12, channels), draw(jitter, 120, 12)
    order = drawn.group().argsort()
    got = jitter.apply(planar(images[order]), drawn_by(order, drawn), strength)
    for i, image in zip(order.tolist(), got, strict=True):
        wanted = jittered(planar(images)[i] / 255, drawn, i, strength)
        assert (image / 255 - wanted).abs().max() < (1e-5 if channels == 1 else GRAY_WEIGHTS)


def gray_by_pillow(image, drawn, i):
    return image.convert("L").convert(image.mode)


def solarized_by_pillow(image, drawn, i):
    return ImageOps.solarize(image, 100)


def blurred_by_pillow(image, drawn, i):
    return image.filter(ImageFilter.GaussianBlur(float(drawn.sigma[i])))


@pytest.mark.parametrize(
    ("operation", "by_pillow", "rounding"),
    [
        (Gray(0.6), gray_by_pillow, 0.51),
        (Solarize(0.6, 100), solarized_by_pillow, 0),
        (Blur(0.6, (0.1, 2.0)), blurred_by_pillow, 3),  # Pillow rounds six times to whole levels, 0.5 each
    ],
)
@pytest.mark.parametrize("side", [8, 28, 32, 70, 130])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_that_draw_a_change_are_changed_as_by_pillow(operation, by_pillow, rounding, side, channels):
    images, drawn = noise(60, side, side + 1, channels), draw(operation, 60, side)
    got = operation.apply(planar(images), drawn, 1.0)
    for i, image in enumerate(images):
        changed = drawn.chance[i] < 0.6
        wanted = levels(by_pillow(picture(image), drawn, i) if changed else picture(image))
        assert (got[i] - wanted).abs().max() <= (rounding if changed else 0)


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (28, 1), (8, 3), (32, 3)])
def test_a_whole_view_equals_torchvisions_image_by_image(side, channels):
    transform = SimCLRTransform(side, gaussian_blur=0, vf_prob=0.3, normalize=None).transforms[0]
    view, images = BatchedView(translate(transform)), smooth(150, side, channels)
    torch.manual_seed(3)
    chain = view.draw(images)
    assert chain[0].vertical_flip.any()
    got = view.render(images, chain)
    for i, image in enumerate(planar(images) / 255):
        wanted = by_torchvision(image, translate(transform), chain, i)
        assert (got[i] - wanted).abs().max() < 3 * GRAY_WEIGHTS  # grey is taken three times


def test_chunks_change_nothing_nor_do_the_images_change():
    view, images = BatchedView(translate(BarlowTwinsViews(16).transforms[1])), smooth(50, 16)
    before, chain = images.clone(), view.draw(images)
    whole = view.render(images, chain, chunk=50)
    for chunk in (1, 7, 49):
        assert torch.allclose(view.render(images, chain, chunk=chunk), whole, atol=1e-5)
    assert torch.equal(images, before)


# What is drawn


@pytest.mark.parametrize("side", [8, 32])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 1.0), (0.9, 1.0)])
def test_boxes_are_drawn_as_torchvision_draws_them(side, scale):
    boxes = draw(Crop((side, side), scale), 20_000, side).box
    crop, image = v2.RandomResizedCrop(side, scale), torch.empty(3, side, side)
    wanted = torch.tensor([list(crop.make_params([image]).values()) for _ in range(3000)], dtype=torch.float)
    for measure in (lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2]):
        assert ks_2samp(measure(boxes).numpy(), measure(wanted).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(32, 8), (8, 32), (32, 30)])
def test_where_no_try_fits_the_box_is_torchvisions_central_one(height, width):
    crop = v2.RandomResizedCrop(32, scale=(1.0, 1.0), ratio=(1.2, 1.3))
    crop = crop if height == width else v2.RandomResizedCrop(32, scale=(1.5, 2.0), ratio=(3 / 4, 4 / 3))
    wanted = list(crop.make_params([torch.empty(3, height, width)]).values())
    boxes = Crop((32, 32), crop.scale, crop.ratio).draw(5, height, width, torch.device("cpu")).box
    assert boxes.tolist() == [wanted] * 5


def share(chosen):
    return float(chosen.float().mean())


def test_factors_orders_flips_and_sigmas_are_drawn_evenly():
    drawn = draw(Jitter((0.6, 1.4), (0.2, 1.8), None, (-0.1, 0.1), 0.8), 24_000, 8)
    sigmas = draw(Blur(0.5, (0.1, 2.0)), 20_000, 8).sigma
    even = [(drawn.factors[:, 0], 0.6, 1.4), (drawn.factors[:, 1], 0.2, 1.8), (drawn.hue, -0.1, 0.1), (sigmas, 0.1, 2)]
    for values, low, high in even:
        assert kstest(values.numpy(), "uniform", (low, high - low)).pvalue > 1e-3
    assert (drawn.factors[:, 2] == 1).all()
    orders = torch.tensor(list(permutations(range(4))))
    counts = (drawn.slots == orders.unsqueeze(1)).all(2).sum(1)
    assert chisquare(counts.numpy()).pvalue > 1e-3
    assert share(drawn.applied) == pytest.approx(0.8, abs=5 * math.sqrt(0.16 / 24_000))
    crop = draw(Crop((8, 8), flip=0.3, vertical_flip=0.1), 20_000, 8)
    assert share(crop.flip) == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / 20_000))
    assert share(crop.vertical_flip) == pytest.approx(0.1, abs=5 * math.sqrt(0.09 / 20_000))


@pytest.mark.parametrize("operation", [Gray(0.2), Solarize(0.2), Blur(0.2)], ids=lambda o: type(o).__name__)
def test_a_change_comes_as_often_as_its_probability_times_the_strength_and_first_to_the_same(operation):
    x, drawn = planar(noise(1, 8, 8, 3)).repeat(4000, 1, 1, 1), draw(operation, 4000, 8)
    # A blur with a tiny sigma changes too, if by less than a level.
    weak, strong = ((operation.apply(x.clone(), drawn, s) != x).flatten(1).any(1) for s in (0.5, 1.0))
    assert share(weak) == pytest.approx(0.1, abs=5 * math.sqrt(0.09 / 4000))
    assert share(strong) == pytest.approx(0.2, abs=5 * math.sqrt(0.16 / 4000))
    assert (weak <= strong).all()


def metrics_of(views):
    """Brightness, contrast, colourfulness, warmth, sharpness and slope of each view ``(B, 3, H, W)`` in 0 … 1."""
    return (
        views.mean((1, 2, 3)),
        views.std((1, 2, 3)),
        (views.amax(1) - views.amin(1)).mean((1, 2)),
        (views[:, 0] - views[:, 2]).mean((1, 2)),
        views.diff(dim=3).abs().mean((1, 2, 3)),
        (views[..., 8:] - views[..., :8]).mean((1, 2, 3)),
    )


@pytest.mark.parametrize("cropped_by", ["the device", "a worker"])
@pytest.mark.parametrize("recipe", [SimCLRViews, BarlowTwinsViews])
def test_views_of_an_image_are_distributed_as_lightlys(recipe, cropped_by):
    image, transform = smooth(1, 16 if cropped_by == "the device" else 40), recipe(16).transforms[1]
    torch.manual_seed(5)
    np.random.seed(5)
    theirs = torch.stack([transform(picture(image[0])) for _ in range(600)])
    view, images = BatchedView(translate(transform)), image.expand(6000, -1, -1, -1)
    if cropped_by == "a worker":
        view, cut = BatchedView(translate(transform)[1:]), cuts(transform)
        images = torch.stack([cut(picture(image[0])) for _ in range(2000)]).permute(0, 2, 3, 1)
    ours = view.render(images, view.draw(images))
    for values, wanted in zip(metrics_of(ours), metrics_of(theirs), strict=True):
        assert ks_2samp(values.numpy(), wanted.numpy()).pvalue > 1e-3


# Nested strengths


@pytest.mark.parametrize("recipe", [BarlowTwinsViews, VICRegViews])
@pytest.mark.parametrize("channels", [1, 3])
def test_at_strength_0_only_the_flip_is_left(recipe, channels):
    images, view = noise(40, 16, 16, channels), BatchedView(translate(recipe(16).transforms[1]))
    chain = view.draw(images)
    flip = chain[0].flip.view(-1, 1, 1, 1)
    wanted = torch.where(flip, planar(images).flip(3), planar(images)) / 255
    assert torch.allclose(view.render(images, chain, 0.0), wanted, atol=2e-5)


def test_weaker_crops_contain_stronger_ones():
    columns = (torch.arange(32) * 8).to(torch.uint8).view(1, 1, 32, 1).expand(100, 32, 32, 1)
    images, crop = torch.cat([columns, columns.transpose(1, 2)], 3), Crop((32, 32))
    drawn = draw(crop, 100, 32)
    low, high = torch.tensor(0), torch.tensor(255)
    for strength in (0.0, 0.25, 0.5, 0.75, 1.0):
        shown = crop.apply(planar(images), drawn, strength).flatten(2)
        assert (shown.amin(2) >= low - 1e-2).all()
        assert (shown.amax(2) <= high + 1e-2).all()
        low, high = shown.amin(2), shown.amax(2)
    top, left, height, width = drawn.box.unbind(1)
    assert torch.allclose(low, 8 * torch.stack((left, top), 1), atol=1e-2)
    assert torch.allclose(high, 8 * torch.stack((left + width - 1, top + height - 1), 1), atol=1e-2)


# Translation


@pytest.mark.parametrize(
    ("transform", "side", "kinds"),
    [
        (SimCLRTransform(8, rr_prob=0, rr_degrees=9.0, normalize=None), 0, [Crop, Jitter, Gray, Blur]),
        (BarlowTwinsViews(8), 1, [Crop, Jitter, Gray, Blur, Solarize]),
        (VICRegViews(8), 1, [Crop, Jitter, Gray, Solarize, Blur]),
    ],
)
def test_operations_keep_their_order(transform, side, kinds):
    assert [type(operation) for operation in translate(transform.transforms[side])] == kinds


CROP = v2.RandomResizedCrop(8)


@pytest.mark.parametrize(
    ("transform", "complaint"),
    [
        (SimCLRTransform(8, rr_prob=0.5, normalize=None).transforms[0], "RandomRotate has no batched form"),
        (SimCLRTransform(8, rr_prob=0.5, rr_degrees=9.0, normalize=None).transforms[0], "RandomRotateDegrees has no"),
        (BYOLTransform().transforms[0], "Normalize has no batched form"),
        (v2.Compose([CROP, v2.RandomPosterize(4)]), "RandomPosterize has no batched form"),
        (v2.Compose([v2.RandomHorizontalFlip(), CROP]), "begins with a bilinear RandomResizedCrop, not with RandomHor"),
        (v2.Compose([v2.RandomResizedCrop(8, interpolation=InterpolationMode.BICUBIC)]), "bilinear"),
        (v2.Compose([CROP, GaussianBlur(), GaussianBlur()]), "no operation twice, as here GaussianBlur"),
    ],
)
def test_refuses_what_has_no_batched_form(transform, complaint):
    with pytest.raises(DataError, match=rf"{complaint}.*: set views.batched to false\."):
        translate(transform)


def test_refuses_to_reduce_images():
    view, images = BatchedView(translate(SimCLRViews(8).transforms[0])), noise(2, 9, 8, 3)
    with pytest.raises(DataError, match="8×8 pixels would reduce images of 9×8"):
        view.render(images, view.draw(images))
