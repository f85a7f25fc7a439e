"""Plain torch: networks as chains of units, the cut into blocks, the heads. Knows no Lightning."""

from models.networks.chain import Chain, NetworkCallable, NetworkError
from models.networks.checkpointed import Checkpointed
from models.networks.cut import Cut, CutError, block_shapes, cut_chain, feature_shapes
from models.networks.embedding_heads import (
    BiasFreeProjector,
    ConvExpansion,
    EmbeddingHead,
    ExpandedClassifier,
    GlobalPooling,
    LocalPooling,
    PoolingCallable,
    ProjectorCallable,
)
from models.networks.group_heads import GroupHeads
from models.networks.groups import end_at_last_map, group_blocks
from models.networks.heads import AuxHead, CNNHead, ConvHead, Head, HeadCallable, LinearHead, MLPSRHead
from models.networks.mlp import MLP
from models.networks.noise import FeatureNoise
from models.networks.overparameterized import collapse, overparameterize
from models.networks.profile import Cost, activation_bytes, profile
from models.networks.recomputed import Recomputed, recompute
from models.networks.resnet import CifarResNet, ResNet, from_torchvision
from models.networks.saved_tensors import SavedTensorMeter
from models.networks.vgg import VGG, VGG16, VGG6a, VGG8b, VGG11b

__all__ = [
    "MLP",
    "VGG",
    "VGG16",
    "AuxHead",
    "BiasFreeProjector",
    "CNNHead",
    "Chain",
    "Checkpointed",
    "CifarResNet",
    "ConvExpansion",
    "ConvHead",
    "Cost",
    "Cut",
    "CutError",
    "EmbeddingHead",
    "ExpandedClassifier",
    "FeatureNoise",
    "GlobalPooling",
    "GroupHeads",
    "Head",
    "HeadCallable",
    "LinearHead",
    "LocalPooling",
    "MLPSRHead",
    "NetworkCallable",
    "NetworkError",
    "PoolingCallable",
    "ProjectorCallable",
    "Recomputed",
    "ResNet",
    "SavedTensorMeter",
    "VGG6a",
    "VGG8b",
    "VGG11b",
    "activation_bytes",
    "block_shapes",
    "collapse",
    "cut_chain",
    "end_at_last_map",
    "feature_shapes",
    "from_torchvision",
    "group_blocks",
    "overparameterize",
    "profile",
    "recompute",
]
