"""Networks as plain torch modules: the catalogue whose cost is simulated, and small ones to be trained.

ResNet (He et al., CVPR 2016; v1.5, whose stride sits in the 3x3 convolution, for ResNet-50), VGG-16 (Simonyan
and Zisserman, ICLR 2015, configuration D) and a decoder-only Transformer of GPT-2's smallest size (Radford et
al., 2019, with the output projection tied to the token embedding). Every builder takes its sizes and builds
on the current default device, so that `with torch.device("meta")` costs neither memory nor time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelEntry:
    """A network and the input it takes, for the catalogue or for a user's own model.

    Parameters
    ----------
    build : callable
        Returns a new module; called with torch's default device set to "meta" when only the cost is wanted.
    sample_shape : tuple of int, or tuple of tuples of int
        Shape of one sample without the batch dimension; one shape per input where there are several.
    description : str
        One line for listings.
    sample_dtype : str or tuple of str
        Name of torch's dtype of each input, such as "float32", or "int64" for tokens.
    """

    build: Callable[[], nn.Module]
    sample_shape: tuple[int, ...] | tuple[tuple[int, ...], ...]
    description: str
    sample_dtype: str | tuple[str, ...] = "float32"


def small_mlp(inputs: int = 64, hidden: int = 32, classes: int = 10) -> nn.Sequential:
    """One hidden layer with ReLU; 64-32-10 has 2,410 parameters. Takes (batch, ...) of `inputs` values."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )  # fmt: skip


def small_cnn(channels: int = 1, side: int = 8, classes: int = 10) -> nn.Sequential:
    """Two 3x3 convolutions (8 and 16 channels), each pooled by 2, and one linear layer.

    Takes images of shape (batch, channels, side, side) with a side of at least 4.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * (side // 4) ** 2, classes),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a shortcut."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.shortcut = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, h, w) to (batch, width, h / stride, w / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        return cast(Tensor, self.relu(self.bn2(self.conv2(y)) + self.shortcut(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch normalisation and a shortcut; four times `width` go out."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        self.shortcut = _shortcut(channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, h, w) to (batch, 4 width, h / stride, w / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return cast(Tensor, self.relu(self.bn3(self.conv3(y)) + self.shortcut(x)))


def _shortcut(channels: int, width: int, stride: int) -> nn.Module:
    """Identity, or a strided 1x1 convolution where the shape changes."""
    if stride == 1 and channels == width:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))


def _stages(block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, ...]) -> tuple[nn.Sequential, int]:
    """The four stages of a ResNet after its 64-channel stem, and their number of output channels."""
    stages, channels = [], 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        blocks: list[nn.Module] = []
        for index in range(depth):
            blocks.append(block(channels, width, 2 if stage > 0 and index == 0 else 1))
            channels = width * block.expansion
        stages.append(nn.Sequential(*blocks))
    return nn.Sequential(*stages), channels


def resnet18_cifar(classes: int = 10) -> nn.Sequential:
    """ResNet-18 for 32x32 images: 3x3 stem with stride 1, no max-pooling; 11,173,962 parameters."""
    stages, channels = _stages(BasicBlock, (2, 2, 2, 2))
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        stages,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, classes),
    )


def resnet50(classes: int = 1000) -> nn.Sequential:
    """ResNet-50 for 224x224 images: 7x7 stem with stride 2, max-pooling; 25,557,032 parameters."""
    stages, channels = _stages(Bottleneck, (3, 4, 6, 3))
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
        stages,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, classes),
    )


def vgg16(classes: int = 1000) -> nn.Sequential:
    """VGG-16 (configuration D, no batch normalisation) for 224x224 images; 138,357,544 parameters."""
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(512 * 7 * 7, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, classes),
    )


class DecoderBlock(nn.Module):
    """Causal self-attention and a feed-forward layer, each behind layer normalisation, each residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, width) to the same shape."""
        batch, length, width = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(attended.transpose(1, 2).reshape(batch, length, width))
        return cast(Tensor, x + self.feed_forward(self.norm2(x)))


class Transformer(nn.Module):
    """Decoder-only Transformer with learned positions and a tied output projection.

    Takes token numbers of shape (batch, length) and returns logits of shape (batch, length, vocabulary).
    The defaults are GPT-2's smallest size: 124,439,808 parameters.
    """

    def __init__(
        self, vocabulary: int = 50257, context: int = 1024, width: int = 768, heads: int = 12, depth: int = 12
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(DecoderBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocabulary, bias=False)
        self.output.weight = self.tokens.weight
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token numbers (batch, length) to logits (batch, length, vocabulary)."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(places)
        return cast(Tensor, self.output(self.norm(self.blocks(x))))


MODELS: dict[str, ModelEntry] = {
    "resnet18-cifar": ModelEntry(resnet18_cifar, (3, 32, 32), "ResNet-18, CIFAR form, 10 classes"),
    "resnet50": ModelEntry(resnet50, (3, 224, 224), "ResNet-50 (v1.5), ImageNet, 1000 classes"),
    "vgg16": ModelEntry(vgg16, (3, 224, 224), "VGG-16, ImageNet, 1000 classes"),
    "gpt2-small": ModelEntry(
        Transformer,
        (1024,),
        "decoder-only Transformer of GPT-2's smallest size, 1024 tokens a sample",
        "int64",
    ),
    "mlp-digits": ModelEntry(small_mlp, (1, 8, 8), "MLP 64-32-10 on 8x8 digits"),
    "cnn-digits": ModelEntry(small_cnn, (1, 8, 8), "two convolutions and a linear layer on 8x8 digits"),
}
"""The catalogue, by name; `simulator.workload.cost.MODEL_NAMES` has the same names without torch."""
