"""What tests of training share: a Trainer that writes and shows nothing, its batches, a comparison of weights."""

from functools import partial
from pathlib import Path

import lightning.pytorch as L
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from datamodules.augment import Augment
from datamodules.batch import Batch
from datamodules.digits import Digits
from models.networks.memory.saved_tensors import SavedTensorMeter


def train(model, tmp_path, data=None, callbacks=(), resume=None, **trainer_arguments):
    """Train on digits, two epochs of four batches unless told otherwise; the Trainer."""
    arguments = {
        "devices": 1,
        "max_epochs": 2,
        "limit_train_batches": 4,
        "limit_val_batches": 1,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
    }
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        **(arguments | trainer_arguments),
    )
    data = data or Digits(batch_size=32, augment=Augment(pad=1))
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=False if resume else None)
    return trainer


class Recorder(L.Callback):
    """Keeps the batches a run trained on."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)


def assert_equal_weights(one, other):
    """See that two models have the same weights and buffers, bit for bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def assert_same(one, other, where):
    """See that what two checkpoints hold in some place is the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}.{number}")
    else:
        assert one == other, where


def evaluated(model, batch):
    """What validation logs of one batch, without ``val/``."""
    model.on_validation_epoch_start()
    model.validation_step(batch, 0)
    return model._evaluation.compute()


def assert_isolated(model, batch):
    """See that the loss of each part reaches every parameter of that part, and no other."""
    reached = []

    def backward_only(k, loss):
        loss.backward()
        reached.append({name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()})
        model.zero_grad()

    model.update_block = backward_only
    model.training_step(batch, 0)
    parts = [(f"blocks.{k}.", f"heads.{k}.") for k in range(model.schedule.parts)]
    assert reached == [{n for n, _ in model.named_parameters() if n.startswith(own)} for own in parts]


def saved_in_a_step(model, batch):
    """Most bytes that one step saves for backward passes at a time, and what is left of them after each part."""
    left = []

    def backward_only(k, loss):
        loss.backward()
        del loss
        left.append(meter.current)

    model.update_block = backward_only
    with SavedTensorMeter([*model.parameters(), *model.buffers()]) as meter:
        model.training_step(batch, 0)
    return meter.peak, left


def mapped_files_in(folder):
    """How many files without a name this process has mapped that are in a folder (Linux)."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return len({line.split(maxsplit=5)[-1] for line in maps if f" {folder}/" in line and line.endswith("(deleted)")})


# A small network on random images

SHAPE, CLASSES, SIZE = (3, 8, 8), 10, 6
make_sgd = partial(SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)


def smooth(image_shape, num_classes) -> nn.Sequential:
    """A network in which no image sees another: without BatchNorm."""
    conv = partial(nn.Conv2d, kernel_size=3, padding=1)
    layers = [conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


def made(method, network=smooth, **options):
    torch.manual_seed(0)
    options = {"optimizer": make_sgd, **options}
    return method(network=network, image_shape=SHAPE, num_classes=CLASSES, **options)


def batches(count):
    generator = torch.Generator().manual_seed(0)

    def batch():
        images, other = torch.randn(2, SIZE, *SHAPE, generator=generator)
        labels = torch.randint(CLASSES, (SIZE,), generator=generator)
        return Batch(images, labels, ((1.0, images, images + 0.3 * other),), torch.arange(SIZE))

    return [batch() for _ in range(count)]


def joined(some):
    return Batch(torch.cat([b.images for b in some]), torch.cat([b.labels for b in some]))


class Batches(L.LightningDataModule):
    """These batches, in this order."""

    def __init__(self, some):
        super().__init__()
        self.some = some

    def train_dataloader(self):
        return DataLoader(self.some, batch_size=None)
