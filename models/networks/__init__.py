"""Plain torch: networks as chains of units, the cut into blocks, the heads. Knows no Lightning."""

from models.networks.chain import Chain, NetworkError
from models.networks.cut import Cut, CutError, cut_chain, feature_shapes
from models.networks.heads import AuxHead, CNNHead, Head, MLPSRHead
from models.networks.mlp import MLP
from models.networks.profile import Cost, activation_bytes, profile
from models.networks.resnet import CifarResNet, ResNet, from_torchvision
from models.networks.saved_tensors import SavedTensorMeter
from models.networks.vgg import VGG, VGG16, VGG6a, VGG8b, VGG11b

__all__ = [
    "MLP",
    "VGG",
    "VGG16",
    "AuxHead",
    "CNNHead",
    "Chain",
    "CifarResNet",
    "Cost",
    "Cut",
    "CutError",
    "Head",
    "MLPSRHead",
    "NetworkError",
    "ResNet",
    "SavedTensorMeter",
    "VGG6a",
    "VGG8b",
    "VGG11b",
    "activation_bytes",
    "cut_chain",
    "feature_shapes",
    "from_torchvision",
    "profile",
]
