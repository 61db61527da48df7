"""A U-Net of one step: pooling, a transposed convolution, bilinear upsampling, and a skip connection."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from tests.support.models import Pair
from tests.support.models.common import Wrong, faults, normal, port, seeded

WIDTH = 8  # also the rows and the columns
Layer = Callable[[jax.Array], jax.Array]


class TorchUNet(nn.Module):
    """The network in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.mid = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.up = nn.ConvTranspose2d(WIDTH, WIDTH, 3, 2, padding=1, output_padding=1)
        self.smooth = nn.AvgPool2d(3, 1, padding=1)
        self.out = nn.Conv2d(3 * WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """An image of the same size."""
        skip = functional.relu(self.down(x))
        x = functional.relu(self.mid(self.pool(skip)))
        wide = functional.interpolate(x, scale_factor=2, mode="bilinear")
        return self.out(self.smooth(torch.cat([skip, self.up(x), wide], 1)))


def upsampled(x: jax.Array, axes: tuple[int, ...], wrong: Wrong) -> jax.Array:
    """The image of twice as many rows and columns, which are at two axes."""
    if "align_corners" in wrong:
        for axis in axes:
            n = x.shape[axis]
            at = jnp.linspace(0, n - 1, 2 * n)[:, None] - jnp.arange(n)
            weights = jnp.maximum(0, 1 - jnp.abs(at)).astype(x.dtype)
            x = jnp.moveaxis(jnp.tensordot(x, weights, (axis, 1)), -1, axis)
        return x
    shape = tuple(n * (2 if axis in axes else 1) for axis, n in enumerate(x.shape))
    return jax.image.resize(x, shape, "nearest" if "nearest" in wrong else "bilinear")


def forward(x: jax.Array, layers: Any, pool: Layer, smooth: Layer, channels: int, wrong: Wrong) -> jax.Array:
    """The network of any library, whose images have their channels at some axis."""
    skip = jax.nn.relu(layers.down(x))
    x = jax.nn.relu(layers.mid(pool(skip)))
    wide = upsampled(x, (1, 2), wrong)  # the axes both of BHWC and of CHW
    if "detached_skip" in wrong:
        skip = jax.lax.stop_gradient(skip)
    parts = [layers.up(x), skip, wide] if "parts_swapped" in wrong else [skip, layers.up(x), wide]
    return layers.out(smooth(jnp.concatenate(parts, channels)))


def flax_pools(wrong: Wrong) -> tuple[Layer, Layer]:
    """The two pools of Flax."""
    window = {"window_shape": (2, 2), "strides": (2, 2)}
    return (
        partial(linen.avg_pool if "mean_pool" in wrong else linen.max_pool, **window),
        partial(
            linen.avg_pool,
            window_shape=(3, 3),
            padding=((1, 1), (1, 1)),
            count_include_pad="pad_not_counted" not in wrong,
        ),
    )


class NnxUnflipped(nnx.ConvTranspose):
    """A transposed convolution that turns its kernel once too often."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """The wrong convolution."""
        kernel = self.kernel[...][::-1, ::-1]
        return jax.lax.conv_transpose(x, kernel, self.strides, self.padding, transpose_kernel=True) + self.bias[...]


class NnxUNet(nnx.Module):
    """The network in Flax NNX, with the channels last, and with the kernel of torch in the transposed convolution."""

    def __init__(self, wrong: Wrong, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.down = nnx.Conv(3, WIDTH, (3, 3), rngs=rngs)
        self.mid = nnx.Conv(WIDTH, WIDTH, (3, 3), rngs=rngs)
        transposed = NnxUnflipped if "unflipped" in wrong else nnx.ConvTranspose
        padding = ((2, 1), (2, 1)) if "other_padding" in wrong else ((1, 2), (1, 2))
        self.up = transposed(WIDTH, WIDTH, (3, 3), (2, 2), padding=padding, transpose_kernel=True, rngs=rngs)
        self.out = nnx.Conv(3 * WIDTH, WIDTH, (3, 3), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """An image of the same size."""
        return forward(x, self, *flax_pools(self.wrong), -1, self.wrong)


class LinenUNet(linen.Module):
    """The network in Flax Linen, with the channels last, and with the kernel turned in the transposed convolution."""

    wrong: Wrong = frozenset()

    def setup(self) -> None:
        """The layers."""
        self.down = linen.Conv(WIDTH, (3, 3))
        self.mid = linen.Conv(WIDTH, (3, 3))
        self.up = linen.ConvTranspose(WIDTH, (3, 3), (2, 2), padding=((1, 2), (1, 2)))
        self.out = linen.Conv(WIDTH, (3, 3))

    def __call__(self, x: jax.Array) -> jax.Array:
        """An image of the same size."""
        return forward(x, self, *flax_pools(self.wrong), -1, self.wrong)


class EquinoxUNet(eqx.Module):
    """The network in Equinox."""

    down: eqx.nn.Conv2d
    pool: eqx.nn.Pool
    mid: eqx.nn.Conv2d
    up: eqx.nn.ConvTranspose2d
    smooth: eqx.nn.AvgPool2d
    out: eqx.nn.Conv2d
    wrong: Wrong = eqx.field(static=True)

    def __init__(self, wrong: Wrong, key: jax.Array) -> None:
        keys = jax.random.split(key, 4)
        self.down = eqx.nn.Conv2d(3, WIDTH, 3, padding=1, key=keys[0])
        self.pool = (eqx.nn.AvgPool2d if "mean_pool" in wrong else eqx.nn.MaxPool2d)(2, 2)
        self.mid = eqx.nn.Conv2d(WIDTH, WIDTH, 3, padding=1, key=keys[1])
        self.up = eqx.nn.ConvTranspose2d(WIDTH, WIDTH, 3, 2, padding=1, output_padding=1, key=keys[2])
        self.smooth = eqx.nn.AvgPool2d(3, 1, padding=1)
        self.out = eqx.nn.Conv2d(3 * WIDTH, WIDTH, 3, padding=1, key=keys[3])
        self.wrong = wrong

    def __call__(self, x: jax.Array) -> jax.Array:
        """An image of the same size, of one example."""
        layers = self
        if "unflipped" in self.wrong:
            layers = eqx.tree_at(lambda model: model.up.weight, self, replace_fn=lambda w: w[:, :, ::-1, ::-1])
        return forward(x, layers, layers.pool, layers.smooth, 0, self.wrong)


def linen_unet(wrong: Wrong) -> tuple[linen.Module, Any]:
    """The network in Flax Linen with its variables."""
    module = LinenUNet(wrong)
    return module, module.init(jax.random.key(0), jnp.zeros((1, WIDTH, WIDTH, 3)))


def images() -> Any:
    """Four images, which have as many rows and columns as a layer has channels."""
    return normal(4, 3, WIDTH, WIDTH)


TORCH = seeded(TorchUNet)
UNFLIPPED = ("up", "output", "flip|turn|revers")
SMOOTH = ("smooth", "input")  # what is given to the first layer after code by hand
PAIRS = (
    Pair(
        "unet-nnx",
        "nnx",
        TORCH,
        port(lambda wrong: NnxUNet(wrong, nnx.Rngs(0))),
        images,
        faults(
            unflipped=UNFLIPPED,
            other_padding=("up", "output", "padding|shift|offset"),
            pad_not_counted=(("smooth", "out"), "output", "pad|count"),
            nearest=(*SMOOTH, "nearest|bilinear|interpol|upsampl|resize"),
            detached_skip=("down", "gradient", "stop_gradient|detach|skip|zero"),
        ),
    ),
    Pair(
        "unet-linen",
        "linen",
        TORCH,
        port(linen_unet),
        images,
        faults(
            mean_pool=(("pool", "mid"), "output", "max|mean|avg|pool"),
            align_corners=(*SMOOTH, "align|corner|interpol|upsampl|resize"),
            parts_swapped=(*SMOOTH, "order|concat|swap|permut"),
        ),
    ),
    Pair(
        "unet-equinox",
        "equinox",
        TORCH,
        port(lambda wrong: EquinoxUNet(wrong, jax.random.key(0))),
        images,
        faults(
            unflipped=UNFLIPPED,
            mean_pool=("pool", "output", "max|mean|avg|pool"),
            nearest=(*SMOOTH, "nearest|bilinear|interpol|upsampl|resize"),
            parts_swapped=(*SMOOTH, "order|concat|swap|permut"),
        ),
    ),
)
