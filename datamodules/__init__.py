"""LightningDataModules: one face for every data set. They know nothing of models."""

from datamodules.augment import Augment
from datamodules.base import ImageDataModule
from datamodules.batch import Batch, Selection, ViewPair
from datamodules.cifar import CIFAR10, CIFAR100
from datamodules.digits import Digits
from datamodules.files import DataError
from datamodules.folders import ImageFolder, ImageNet
from datamodules.imagenet32 import Imagenet32
from datamodules.mnist import MNIST, FashionMNIST
from datamodules.torchvision_sets import STL10, SVHN
from datamodules.toys import Checkerboard, NoisyProducts, Rings, Spirals, Toys
from datamodules.views import BarlowTwinsViews, SimCLRViews, VICRegViews, Views

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "STL10",
    "SVHN",
    "Augment",
    "BarlowTwinsViews",
    "Batch",
    "Checkerboard",
    "DataError",
    "Digits",
    "FashionMNIST",
    "ImageDataModule",
    "ImageFolder",
    "ImageNet",
    "Imagenet32",
    "NoisyProducts",
    "Rings",
    "Selection",
    "SimCLRViews",
    "Spirals",
    "Toys",
    "VICRegViews",
    "ViewPair",
    "Views",
]
