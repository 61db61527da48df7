"""A ResNet of two basic blocks with batch norm, in evaluation and in training."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import torch
from flax import nnx
from torch import nn

from tests.support.models import Pair
from tests.support.models.common import Wrong, faults, normal, port, seeded

EPSILON = 1e-5
MOMENTUM = 0.1  # of torch, which is one minus that of the others


class TorchBlock(nn.Module):
    """Two convolutions with a residual, which is convolved too where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs, EPSILON, MOMENTUM)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, EPSILON, MOMENTUM)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs, EPSILON, MOMENTUM)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The residual block."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class TorchResNet(nn.Module):
    """The network in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8, EPSILON, MOMENTUM)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = TorchBlock(8, 8, 1)
        self.layer2 = TorchBlock(8, 16, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits of the classes."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(self.avgpool(x).flatten(1))


def unbiased(kept: jax.Array, updated: jax.Array, count: Any) -> jax.Array:
    """A running variance as torch updates it, from what a library kept of the old and its update by the biased one."""
    return kept + (updated - kept) * count / (count - 1)


def momentum(wrong: Wrong) -> float:
    """The part of the running statistics that is kept."""
    return MOMENTUM if "momentum_reversed" in wrong else 1 - MOMENTUM


def epsilon(wrong: Wrong) -> float:
    """What is added to a variance."""
    return 1e-3 if "epsilon" in wrong else EPSILON


def joined(skip: jax.Array, y: jax.Array, wrong: Wrong) -> jax.Array:
    """The sum at the end of a block."""
    if "detached_residual" in wrong:
        skip = jax.lax.stop_gradient(skip)
    if "residual_twice" in wrong:
        skip = 2 * skip
    return jax.nn.relu(skip) + jax.nn.relu(y) if "relu_before_sum" in wrong else jax.nn.relu(skip + y)


class NnxBatchNorm(nnx.BatchNorm):
    """A batch norm whose running variance is unbiased, as that of torch, where the library's is not."""

    def __init__(self, features: int, wrong: Wrong, rngs: nnx.Rngs) -> None:
        super().__init__(features, momentum=momentum(wrong), epsilon=epsilon(wrong), rngs=rngs)
        self.wrong = wrong

    def __call__(self, x: jax.Array, *arguments: Any, **keywords: Any) -> jax.Array:
        """The normed x."""
        mean, variance = self.mean[...], self.var[...]
        y = super().__call__(x, *arguments, **keywords)
        if "not_updated" in self.wrong:
            self.mean[...], self.var[...] = mean, variance
        elif not self.use_running_average and "biased" not in self.wrong:
            self.var[...] = unbiased(self.momentum * variance, self.var[...], x.size / x.shape[-1])
        return y


def flipped_convolution(x: jax.Array, kernel: jax.Array, *arguments: Any, **keywords: Any) -> jax.Array:
    """A convolution in the sense of mathematics, which turns the kernel."""
    return jax.lax.conv_general_dilated(x, kernel[::-1, ::-1], *arguments, **keywords)


class NnxBlock(nnx.Module):
    """Two convolutions with a residual, which is convolved too where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, wrong: Wrong, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        convolution = flipped_convolution if "flipped" in wrong else jax.lax.conv_general_dilated
        self.conv1 = nnx.Conv(
            inputs,
            outputs,
            (3, 3),
            stride,
            padding="SAME" if "same" in wrong else 1,
            use_bias=False,
            conv_general_dilated=convolution,
            rngs=rngs,
        )
        self.bn1 = NnxBatchNorm(outputs, wrong, rngs)
        self.conv2 = nnx.Conv(outputs, outputs, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.bn2 = NnxBatchNorm(outputs, wrong, rngs)
        self.downsample = (
            nnx.Sequential(
                nnx.Conv(inputs, outputs, (1, 1), stride, use_bias=False, rngs=rngs), NnxBatchNorm(outputs, wrong, rngs)
            )
            if stride > 1
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """The residual block."""
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return joined(x if self.downsample is None else self.downsample(x), y, self.wrong)


class NnxResNet(nnx.Module):
    """The network in Flax NNX, with the channels last."""

    def __init__(self, wrong: Wrong, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.conv1 = nnx.Conv(3, 8, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.bn1 = NnxBatchNorm(8, wrong, rngs)
        self.layer1 = NnxBlock(8, 8, 1, wrong, rngs)
        self.layer2 = NnxBlock(8, 16, 2, wrong, rngs)
        self.fc = nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of the classes."""
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(x.max((1, 2)) if "max_pool" in self.wrong else x.mean((1, 2)))


def nnx_resnet(training: bool) -> Callable[..., nnx.Module]:
    """A factory of the network in Flax NNX."""

    def make(wrong: Wrong) -> nnx.Module:
        model = NnxResNet(wrong, nnx.Rngs(0))
        model.train() if training != ("other_mode" in wrong) else model.eval()
        return model

    return port(make)


class EquinoxBatchNorm(eqx.nn.BatchNorm):
    """A batch norm whose running variance is unbiased, as that of torch, where the library's is not."""

    wrong: Wrong = eqx.field(static=True)

    def __init__(self, features: int, wrong: Wrong) -> None:
        super().__init__(features, "batch", eps=epsilon(wrong), momentum=momentum(wrong), mode="batch")
        self.wrong = wrong

    def __call__(
        self, x: jax.Array, state: eqx.nn.State, *, key: jax.Array | None = None, inference: bool | None = None
    ) -> tuple[jax.Array, eqx.nn.State]:
        """The normed x, and the statistics with those of x."""
        before = state.get(self.batch_state_index)
        y, state = super().__call__(x, state, key=key, inference=inference)
        mean, variance = state.get(self.batch_state_index)
        if "not_updated" in self.wrong:
            return y, state.set(self.batch_state_index, before)
        if self.inference or "biased" in self.wrong:
            return y, state
        count = x[0].size * jax.lax.psum(1, self.axis_name)
        variance = unbiased(self.momentum * before[1], variance, count)
        return y, state.set(self.batch_state_index, (mean, variance))


class EquinoxBlock(eqx.Module):
    """Two convolutions with a residual, which is convolved too where the shape changes."""

    conv1: eqx.nn.Conv2d
    bn1: EquinoxBatchNorm
    conv2: eqx.nn.Conv2d
    bn2: EquinoxBatchNorm
    downsample: eqx.nn.Sequential | None
    wrong: Wrong = eqx.field(static=True)

    def __init__(self, inputs: int, outputs: int, stride: int, wrong: Wrong, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        padding = "SAME" if "same" in wrong else 1
        self.conv1 = eqx.nn.Conv2d(inputs, outputs, 3, stride, padding, use_bias=False, key=keys[0])
        self.bn1 = EquinoxBatchNorm(outputs, wrong)
        self.conv2 = eqx.nn.Conv2d(outputs, outputs, 3, padding=1, use_bias=False, key=keys[1])
        self.bn2 = EquinoxBatchNorm(outputs, wrong)
        self.downsample = None
        if stride > 1:
            self.downsample = eqx.nn.Sequential(
                [
                    eqx.nn.Conv2d(inputs, outputs, 1, stride, use_bias=False, key=keys[2]),
                    EquinoxBatchNorm(outputs, wrong),
                ]
            )
        self.wrong = wrong

    def __call__(self, x: jax.Array, state: eqx.nn.State) -> tuple[jax.Array, eqx.nn.State]:
        """The residual block of one example."""
        conv1 = self.conv1
        if "flipped" in self.wrong:
            conv1 = eqx.tree_at(lambda layer: layer.weight, conv1, conv1.weight[:, :, ::-1, ::-1])
        y, state = self.bn1(conv1(x), state)
        y, state = self.bn2(self.conv2(jax.nn.relu(y)), state)
        if self.downsample is not None:
            x, state = self.downsample(x, state)
        return joined(x, y, self.wrong), state


class EquinoxResNet(eqx.Module):
    """The network in Equinox."""

    conv1: eqx.nn.Conv2d
    bn1: EquinoxBatchNorm
    layer1: EquinoxBlock
    layer2: EquinoxBlock
    fc: eqx.nn.Linear
    wrong: Wrong = eqx.field(static=True)

    def __init__(self, wrong: Wrong, key: jax.Array) -> None:
        keys = jax.random.split(key, 4)
        self.conv1 = eqx.nn.Conv2d(3, 8, 3, padding=1, use_bias=False, key=keys[0])
        self.bn1 = EquinoxBatchNorm(8, wrong)
        self.layer1 = EquinoxBlock(8, 8, 1, wrong, keys[1])
        self.layer2 = EquinoxBlock(8, 16, 2, wrong, keys[2])
        self.fc = eqx.nn.Linear(16, 16, key=keys[3])
        self.wrong = wrong

    def __call__(self, x: jax.Array, state: eqx.nn.State) -> tuple[jax.Array, eqx.nn.State]:
        """The logits of the classes of one example."""
        x, state = self.bn1(self.conv1(x), state)
        x, state = self.layer1(jax.nn.relu(x), state)
        x, state = self.layer2(x, state)
        return self.fc(x.max((1, 2)) if "max_pool" in self.wrong else x.mean((1, 2))), state


def equinox_resnet(training: bool) -> Callable[..., tuple[eqx.Module, eqx.nn.State]]:
    """A factory of the network in Equinox with its state."""

    def make(wrong: Wrong) -> tuple[eqx.Module, eqx.nn.State]:
        model, state = eqx.nn.make_with_state(EquinoxResNet)(wrong, jax.random.key(0))
        return eqx.nn.inference_mode(model, training == ("other_mode" in wrong)), state

    return port(make)


def images() -> Any:
    """Four images with fewer channels than rows and columns."""
    return normal(4, 3, 8, 8)


STATISTICS = ("bn1", "bn1.running_mean", "bn1.running_var")
BIASED = (("bn1", "bn1.running_var"), "state", "bias|n - 1|variance")
MOMENTUM_REVERSED = (STATISTICS, "state", "momentum")
NOT_UPDATED = (STATISTICS, "state", "updat|unchanged|momentum|training=False")
DETACHED = (("layer2.downsample", "layer2.downsample.1"), "gradient", "stop_gradient|detach|skip|zero")
MAX_POOL = (("avgpool", "fc"), "output", "max|mean|pool")
PAIRS = (
    Pair(
        "resnet-nnx",
        "nnx",
        seeded(TorchResNet),
        nnx_resnet(training=False),
        images,
        faults(
            same=("layer2.conv1", "output", "SAME|padding"),
            flipped=("layer1.conv1", "output", "flip|turn|revers"),
            epsilon=("bn1", "output", "eps|epsilon"),
            max_pool=MAX_POOL,
            residual_twice=(("layer1.relu", "layer1"), "input", "twice|two times|residual|added"),
            other_mode=("bn1", "output", "mode|train|eval|statistics"),
        ),
    ),
    Pair(
        "resnet-nnx-training",
        "nnx",
        seeded(TorchResNet, training=True),
        nnx_resnet(training=True),
        images,
        faults(
            biased=BIASED,
            momentum_reversed=MOMENTUM_REVERSED,
            not_updated=NOT_UPDATED,
            other_mode=("bn1", "output", "mode|train|eval|statistics"),
            detached_residual=DETACHED,
            relu_before_sum=(("layer1.relu", "layer1"), "input", "relu|order|activation"),
        ),
    ),
    Pair(
        "resnet-equinox",
        "equinox",
        seeded(TorchResNet),
        equinox_resnet(training=False),
        images,
        faults(
            same=("layer2.conv1", "output", "SAME|padding"),
            flipped=("layer1.conv1", "output", "flip|turn|revers"),
            epsilon=("bn1", "output", "eps|epsilon"),
            relu_before_sum=(("layer1.relu", "layer1"), "input", "relu|order|activation"),
        ),
    ),
    Pair(
        "resnet-equinox-training",
        "equinox",
        seeded(TorchResNet, training=True),
        equinox_resnet(training=True),
        images,
        faults(
            biased=BIASED,
            momentum_reversed=MOMENTUM_REVERSED,
            not_updated=NOT_UPDATED,
            max_pool=MAX_POOL,
            detached_residual=DETACHED,
        ),
    ),
)
