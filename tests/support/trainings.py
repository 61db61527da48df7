"""Trainings in both frameworks that do the same, and faults to plant in them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn

import jaxp3
import p3
import torchp3

STEPS = 300
SIZES = {"features": 4, "hidden": 8, "classes": 3}


def regression(count: int, size: int = 16) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of a regression."""
    random = np.random.default_rng(0)
    for _ in range(count):
        x = random.normal(size=(size, SIZES["features"])).astype(np.float32)
        yield x, np.sin(x.sum(1, keepdims=True) + np.arange(2)).astype(np.float32)


def labelled(count: int, shape: tuple[int, ...] = (4,), size: int = 16) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of a classification."""
    random = np.random.default_rng(0)
    for _ in range(count):
        yield random.normal(size=(size, *shape)).astype(np.float32), random.integers(0, SIZES["classes"], size)


def net() -> nn.Module:
    """Two layers with a norm between them."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))


def tree_of(model: nn.Module) -> dict[str, dict[str, jax.Array]]:
    """The parameters of a `Sequential` as a tree."""
    found: dict[str, dict[str, jax.Array]] = {}
    for path, x in model.named_parameters():
        layer, leaf = path.split(".")
        found.setdefault(f"layer{layer}", {})[leaf] = jnp.asarray(x.detach().numpy())
    return found


def forward(p: Any, x: jax.Array, epsilon: float = 1e-5, approximate: bool = False) -> jax.Array:
    """`net` in JAX."""
    h = x @ p["layer0"]["weight"].T + p["layer0"]["bias"]
    mean, variance = h.mean(-1, keepdims=True), h.var(-1, keepdims=True)
    h = (h - mean) / jnp.sqrt(variance + epsilon) * p["layer1"]["weight"] + p["layer1"]["bias"]
    return jax.nn.gelu(h, approximate=approximate) @ p["layer3"]["weight"].T + p["layer3"]["bias"]


def torch_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """The mean square error."""
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


def jax_loss(p: Any, batch: Any) -> jax.Array:
    """The same in JAX."""
    x, y = batch
    return jnp.mean((forward(p, x) - y) ** 2)


Optimizers = tuple[Callable[[Any], torch.optim.Optimizer], Any]


def mlp(optimizers: Optimizers, schedule: Any = None, clip: Any = None, loss: Any = jax_loss, **options: Any) -> Any:
    """The training of `net`."""
    model = net()
    optimizer = optimizers[0](model.parameters())
    scheduler = None if schedule is None else schedule(optimizer)
    return (
        torchp3.Training(model, torch_loss, optimizer, scheduler, clip, **options),
        jaxp3.Training(tree_of(model), loss, optimizers[1]),
    )


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """The parameters with and without weight decay."""
    matrices = [x for x in model.parameters() if x.ndim > 1]
    return [{"params": matrices}, {"params": [x for x in model.parameters() if x.ndim < 2], "weight_decay": 0.0}]


def adamw_by_groups(mask: Any = lambda p: jax.tree.map(lambda x: x.ndim > 1, p), **options: Any) -> Any:
    """AdamW that decays matrices alone."""
    model = net()
    optimizer = torch.optim.AdamW(groups(model), 1e-2, weight_decay=0.1)
    tx = optax.adamw(1e-2, **{"weight_decay": 0.1, "mask": mask, **options})
    return torchp3.Training(model, torch_loss, optimizer), jaxp3.Training(tree_of(model), jax_loss, tx)


class Lion(torch.optim.Optimizer):
    """Chen and others, 2023, which `torch.optim` does not have."""

    def __init__(self, parameters: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        """Nothing is remembered yet."""
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # PyTorch's returns a closure's loss
        """One step."""
        for group in self.param_groups:
            one, two = group["betas"]
            for x in group["params"]:
                state = self.state[x]
                moment = state.setdefault("exp_avg", torch.zeros_like(x))
                x.sub_(group["lr"] * torch.sign(one * moment + (1 - one) * x.grad))
                moment.mul_(two).add_((1 - two) * x.grad)


class Block(nn.Module):
    """A transformer block with a head."""

    def __init__(self) -> None:
        """Of 8 features and 2 heads."""
        super().__init__()
        self.norm1, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm2, self.up, self.down, self.head = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attention, and two layers."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        a = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(a.transpose(1, 2).flatten(2))
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


class NnxBlock(nnx.Module):
    """The same in flax.nnx."""

    def __init__(self, epsilon: float = 1e-5) -> None:
        """The same layers."""
        rngs = nnx.Rngs(0)
        self.norm1, self.norm2 = (nnx.LayerNorm(8, epsilon=e, rngs=rngs) for e in (epsilon, 1e-5))
        self.qkv, self.out = nnx.Linear(8, 24, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
        self.up, self.down = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The same."""
        q, k, v = jnp.moveaxis(self.qkv(self.norm1(x)).reshape(*x.shape[:2], 3, 2, 4), (2, 3), (0, 2))
        weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) / 2.0)
        x = x + self.out((weights @ v).swapaxes(1, 2).reshape(x.shape))
        x = x + self.down(jax.nn.gelu(self.up(self.norm2(x)), approximate=False))
        return self.head(x.mean(1))


def entropy(model: nn.Module, batch: Any) -> torch.Tensor:
    """The cross entropy."""
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def nnx_entropy(model: Any, batch: Any) -> jax.Array:
    """The same in JAX."""
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


def block(port: Any = None, loss: Any = nnx_entropy, rate: Any = None) -> Any:
    """The training of a transformer block, with warm-up and a cosine."""
    torch.manual_seed(0)
    model = Block()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.01)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=10)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [10])
    target = port or NnxBlock()
    p3.convert(model, target)
    rate = rate or optax.join_schedules(
        [optax.linear_schedule(1e-3, 1e-2, 10), lambda count: (1 + jnp.cos(jnp.pi * count / 200)) / 2 * 1e-2], [10]
    )
    tx = optax.chain(optax.clip(0.05), optax.adamw(rate, weight_decay=0.01))

    def clip(parameters: Any) -> None:
        torch.nn.utils.clip_grad_value_(parameters, 0.05)

    return torchp3.Training(model, entropy, optimizer, scheduler, clip), jaxp3.Training(target, loss, tx)


class ResNet(nn.Module):
    """A convolution, a residual block with batch norm, and a head."""

    def __init__(self) -> None:
        """Of 4 channels."""
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's input is added to its output."""
        x = self.norm1(self.conv1(x)).relu()
        x = (x + self.norm2(self.conv2(x))).relu()
        return self.head(x.mean((2, 3)))


class NnxResNet(nnx.Module):
    """The same in flax.nnx, with the variance of running statistics that PyTorch has."""

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5) -> None:
        """The same layers."""
        rngs = nnx.Rngs(0)
        self.conv1 = nnx.Conv(2, 4, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.conv2 = nnx.Conv(4, 4, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.norm1 = BatchNorm(4, momentum, epsilon)
        self.norm2 = BatchNorm(4, momentum, 1e-5)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The same."""
        x = jnp.moveaxis(x, 1, -1)
        x = jax.nn.relu(self.norm1(self.conv1(x)))
        x = jax.nn.relu(x + self.norm2(self.conv2(x)))
        return self.head(x.mean((1, 2)))


class BatchNorm(nnx.Module):
    """Batch normalization whose running variance is unbiased, as PyTorch's is."""

    def __init__(self, size: int, momentum: float, epsilon: float) -> None:
        """The momentum is how much is kept."""
        self.scale, self.bias = nnx.Param(jnp.ones(size)), nnx.Param(jnp.zeros(size))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(size)), nnx.BatchStat(jnp.ones(size))
        self.momentum, self.epsilon = momentum, epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """By the statistics of the batch."""
        axes = tuple(range(x.ndim - 1))
        mean, variance = x.mean(axes), x.var(axes)
        count = x.size // x.shape[-1]
        m = self.momentum
        self.mean[...] = m * self.mean[...] + (1 - m) * mean
        self.var[...] = m * self.var[...] + (1 - m) * variance * count / (count - 1)
        return (x - mean) / jnp.sqrt(variance + self.epsilon) * self.scale[...] + self.bias[...]


def resnet(**options: Any) -> Any:
    """The training of a small ResNet, by Nesterov's momentum."""
    torch.manual_seed(0)
    model, port = ResNet(), NnxResNet(**options)
    p3.convert(model, port)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True)
    return torchp3.Training(model, entropy, optimizer), jaxp3.Training(
        port, nnx_entropy, optax.sgd(0.05, 0.9, nesterov=True)
    )


class Lstm(nn.Module):
    """An LSTM whose hidden bias is left out, as JAX's cells have one bias, and a head."""

    def __init__(self) -> None:
        """Of 4 features and 8 hidden ones."""
        super().__init__()
        self.input, self.hidden, self.head = nn.Linear(4, 32), nn.Linear(8, 32, bias=False), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One step of time after another."""
        h = c = torch.zeros(x.shape[0], 8, dtype=x.dtype)
        for t in range(x.shape[1]):
            i, f, g, o = (self.input(x[:, t]) + self.hidden(h)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


def lstm_loss(p: Any, batch: Any) -> jax.Array:
    """The same in JAX, by `jax.lax.scan`."""
    x, y = batch

    def step(carry: Any, x: jax.Array) -> Any:
        h, c = carry
        gates = x @ p["input"]["weight"].T + p["input"]["bias"] + h @ p["hidden"]["weight"].T
        i, f, g, o = jnp.split(gates, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), None

    zeros = jnp.zeros((x.shape[0], 8), x.dtype)
    (h, _), _ = jax.lax.scan(step, (zeros, zeros), jnp.swapaxes(x, 0, 1))
    logits = h @ p["head"]["weight"].T + p["head"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def lstm() -> Any:
    """The training of an LSTM, by RMSprop."""
    torch.manual_seed(0)
    model = Lstm()
    tree: dict[str, dict[str, jax.Array]] = {}
    for path, x in model.named_parameters():
        layer, leaf = path.split(".")
        tree.setdefault(layer, {})[leaf] = jnp.asarray(x.detach().numpy())
    optimizer = torch.optim.RMSprop(model.parameters(), 1e-3)
    tx = optax.rmsprop(1e-3, decay=0.99, eps=1e-8, eps_in_sqrt=False)
    return torchp3.Training(model, entropy, optimizer), jaxp3.Training(tree, lstm_loss, tx)


def adagrad(gradients_squared: Any = 0.0) -> optax.GradientTransformation:
    """Adagrad as PyTorch has it, with epsilon beside the root."""

    def init(p: Any) -> Any:
        return optax.ScaleByRssState(jax.tree.map(lambda x: jnp.full_like(x, gradients_squared), p))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        total = jax.tree.map(lambda s, g: s + g * g, state.sum_of_squares, updates)
        scaled = jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + 1e-10), updates, total)
        return scaled, optax.ScaleByRssState(total)

    return optax.chain(optax.GradientTransformation(init, update), optax.scale_by_learning_rate(0.1))


def adam(rate: Any = 1e-2, **options: Any) -> Optimizers:
    """Adam in both."""
    return lambda x: torch.optim.Adam(x, 1e-2), optax.adam(rate, **options)


def sgd(rate: Any = 0.05, momentum: float | None = 0.9, **options: Any) -> Optimizers:
    """SGD with momentum in both."""
    return lambda x: torch.optim.SGD(x, 0.05, momentum=0.9), optax.sgd(rate, momentum, **options)


def cosine(optimizer: Any) -> Any:
    """A cosine that ends at 0."""
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)


def one_cycle(optimizer: Any) -> Any:
    """The one-cycle policy, with a constant momentum."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, STEPS, anneal_strategy="cos", cycle_momentum=False)


def jax_one_cycle(count: Any) -> Any:
    """The same in JAX, which PyTorch counts from 0 to STEPS − 1."""
    up, down = 0.3 * STEPS - 1, STEPS - 1
    start, peak, end = 1e-2 / 25, 1e-2, 1e-2 / 25 / 1e4
    first = peak + (start - peak) * (1 + jnp.cos(jnp.pi * count / up)) / 2
    rest = end + (peak - end) * (1 + jnp.cos(jnp.pi * (count - up) / (down - up))) / 2
    return jnp.where(count <= up, first, rest)


def adam_with_single_constants() -> optax.GradientTransformation:
    """Adam whose bias is corrected by numbers that are computed in float32."""
    inner = optax.scale_by_adam()

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        _, after = inner.update(updates, state, params)
        count = after.count.astype(jnp.float32)
        first, second = (1 - jnp.float32(beta) ** count for beta in (0.9, 0.999))
        return jax.tree.map(lambda m, v: m / first / (jnp.sqrt(v / second) + 1e-8), after.mu, after.nu), after

    return optax.chain(optax.GradientTransformation(inner.init, update), optax.scale(-1e-2))


RIGHT: dict[str, tuple[Callable[[], Any], Callable[[int], Any]]] = {
    "sgd with momentum": (lambda: mlp(sgd()), regression),
    "adam and a cosine": (
        lambda: mlp(adam(optax.cosine_decay_schedule(1e-2, STEPS)), cosine),
        regression,
    ),
    "adam and one cycle": (lambda: mlp(adam(jax_one_cycle), one_cycle), regression),
    "constants in single precision": (lambda: mlp(clipped(adam_with_single_constants())), regression),
    "adamw with groups": (adamw_by_groups, regression),
    "adagrad": (lambda: mlp((lambda x: torch.optim.Adagrad(x, 0.1), adagrad())), regression),
    "lion": (lambda: mlp((lambda x: Lion(x, 1e-3), optax.lion(1e-3, weight_decay=0.0))), regression),
    "accumulation": (
        lambda: mlp((lambda x: torch.optim.Adam(x, 1e-2), optax.MultiSteps(optax.adam(1e-2), 3)), accumulate=3),
        regression,
    ),
    "injected hyperparameters": (
        lambda: mlp((adam()[0], optax.inject_hyperparams(optax.adam)(1e-2))),
        regression,
    ),
    "transformer block": (block, lambda count: labelled(count, (5, 8))),
    "resnet": (resnet, lambda count: labelled(count, (2, 6, 6), 8)),
    "lstm": (lstm, lambda count: labelled(count, (5, 4))),
}


class Fault(NamedTuple):
    """
    A fault in a training.

    Attributes
    ----------
    make : both sides
    batches : called with their number
    step, quantity, path : where it shows first
    rule : the name of the rule that explains it; or a part of the explanation; empty where no cause is asked for
    """

    make: Callable[[], Any]
    batches: Callable[[int], Any]
    step: int
    quantity: str
    path: str
    rule: str = ""


def mean_for_sum(p: Any, batch: Any) -> jax.Array:
    """The sum, where the reference has the mean."""
    x, y = batch
    return jnp.sum((forward(p, x) - y) ** 2)


def with_forward(**options: Any) -> Callable[[Any, Any], jax.Array]:
    """The loss with another epsilon or GELU."""
    return lambda p, batch: jnp.mean((forward(p, batch[0], **options) - batch[1]) ** 2)


@jax.custom_vjp
def halved(x: jax.Array) -> jax.Array:
    """The identity, whose gradient is half of what it should be."""
    return x


halved.defvjp(lambda x: (x, None), lambda _, g: (g / 2,))


def half_gradient(p: Any, batch: Any) -> jax.Array:
    """The loss with a gradient of one bias that is halved."""
    layer = {**p["layer1"], "bias": halved(p["layer1"]["bias"])}
    return jax_loss({**p, "layer1": layer}, batch)


def smoothed(model: Any, batch: Any) -> jax.Array:
    """The cross entropy with label smoothing."""
    x, y = batch
    return optax.softmax_cross_entropy(model(x), optax.smooth_labels(jax.nn.one_hot(y, 3), 0.1)).mean()


def clipped(tx: Any) -> Optimizers:
    """Adam with another clipping."""
    return lambda x: torch.optim.Adam(x, 1e-2), tx


def other_start() -> Any:
    """A first layer that starts with other numbers."""
    torch_side, jax_side = mlp(adam())
    tree = tree_of(net())
    tree["layer0"]["weight"] = 1.5 * tree["layer0"]["weight"]
    return torch_side, jaxp3.Training(tree, jax_loss, jax_side.optimizer)


W = "0.weight"
FAULTS: dict[str, Fault] = {
    "mean for sum": Fault(lambda: mlp(adam(), loss=mean_for_sum), regression, 0, "loss", "", "reduction"),
    "layer norm epsilon": Fault(
        lambda: block(NnxBlock(epsilon=1e-6)), lambda count: labelled(count, (5, 8)), 0, "output", "norm1", "eps=1e-06"
    ),
    "batch norm epsilon": Fault(
        lambda: resnet(epsilon=1e-3), lambda count: labelled(count, (2, 6, 6), 8), 0, "output", "norm1", "eps=0.001"
    ),
    "batch norm momentum": Fault(
        lambda: resnet(momentum=0.99),
        lambda count: labelled(count, (2, 6, 6), 8),
        0,
        "state",
        "norm1.running_mean",
        "momentum=0.01",
    ),
    "label smoothing": Fault(
        lambda: block(loss=smoothed), lambda count: labelled(count, (5, 8)), 0, "loss", "", "label_smoothing=0.1"
    ),
    "halved gradient": Fault(lambda: mlp(adam(), loss=half_gradient), regression, 0, "gradient", "1.bias", "0.5 times"),
    "other start": Fault(other_start, regression, 0, "parameter", W, "1.5 times"),
    "l2 for decoupled": Fault(
        lambda: mlp(
            (
                lambda x: torch.optim.AdamW(x, 1e-2, weight_decay=0.1),
                optax.chain(optax.add_decayed_weights(0.1), optax.adam(1e-2)),
            )
        ),
        regression,
        0,
        "optimizer state",
        f"first moment of {W}",
        "L2 for decoupled weight decay",
    ),
    "decoupled for l2": Fault(
        lambda: mlp((lambda x: torch.optim.Adam(x, 1e-2, weight_decay=0.1), optax.adamw(1e-2, weight_decay=0.1))),
        regression,
        0,
        "optimizer state",
        f"first moment of {W}",
        "decoupled weight decay for L2",
    ),
    "decay of norms and biases": Fault(
        lambda: adamw_by_groups(mask=None), regression, 0, "update", "0.bias", "weight_decay=0.1"
    ),
    "no decay of norms and biases": Fault(
        lambda: mlp(
            (
                lambda x: torch.optim.AdamW(x, 1e-2, weight_decay=0.1),
                optax.adamw(1e-2, weight_decay=0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
            )
        ),
        regression,
        0,
        "update",
        "0.bias",
        "weight decay of biases and norms",
    ),
    "optax's weight decay": Fault(
        lambda: adamw_by_groups(weight_decay=1e-4), regression, 0, "update", W, "weight_decay=0.0001"
    ),
    "no weight decay": Fault(lambda: adamw_by_groups(weight_decay=0.0), regression, 0, "update", W, "weight_decay=0"),
    "epsilon in the root": Fault(
        lambda: mlp(adam(eps=0.0, eps_root=1e-8)), regression, 0, "update", W, "epsilon in the root"
    ),
    "epsilon": Fault(lambda: mlp(adam(eps=1e-6)), regression, 0, "update", W, "eps=1e-06"),
    "beta2": Fault(
        lambda: mlp(adam(b2=0.99)), regression, 0, "optimizer state", f"second moment of {W}", "betas=(0.9, 0.99)"
    ),
    "beta1": Fault(
        lambda: mlp(adam(b1=0.5)), regression, 0, "optimizer state", f"first moment of {W}", "betas=(0.5, 0.999)"
    ),
    "no bias correction": Fault(
        lambda: mlp(clipped(optax.chain(uncorrected_adam(), optax.scale(-1e-2)))),
        regression,
        0,
        "update",
        W,
        "no bias correction",
    ),
    "nesterov": Fault(lambda: mlp(sgd(nesterov=True)), regression, 0, "update", W, "nesterov"),
    "no momentum": Fault(lambda: mlp(sgd(momentum=None)), regression, 1, "update", W, "momentum=0"),
    "other momentum": Fault(
        lambda: mlp(sgd(momentum=0.95)), regression, 1, "optimizer state", f"momentum of {W}", "momentum=0.95"
    ),
    "averaged momentum": Fault(
        lambda: mlp(
            (
                lambda x: torch.optim.SGD(x, 0.05, momentum=0.9),
                optax.chain(optax.scale(0.1), optax.trace(0.9), optax.scale(-0.05)),
            )
        ),
        regression,
        0,
        "optimizer state",
        f"momentum of {W}",
        "averaged momentum",
    ),
    "no dampening": Fault(
        lambda: mlp((lambda x: torch.optim.SGD(x, 0.05, momentum=0.9, dampening=0.9), optax.sgd(0.05, 0.9))),
        regression,
        1,
        "optimizer state",
        f"momentum of {W}",
        "dampening=0",
    ),
    "clip_grad_norm_": Fault(
        lambda: mlp(clipped(optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2))), clip=0.1),
        regression,
        0,
        "clipped gradient",
        W,
        "clip_grad_norm_ 1e-6",
    ),
    "no clipping": Fault(
        lambda: mlp(clipped(optax.adam(1e-2)), clip=0.1), regression, 0, "clipped gradient", W, "no clipping"
    ),
    "clipping by value": Fault(
        lambda: mlp(clipped(optax.chain(optax.clip(0.1), optax.adam(1e-2))), clip=0.1),
        regression,
        0,
        "clipped gradient",
        W,
        "clipping by value",
    ),
    "schedule a step ahead": Fault(
        lambda: mlp(adam(lambda count: optax.cosine_decay_schedule(1e-2, STEPS)(count + 1)), cosine),
        regression,
        0,
        "learning rate",
        "",
        "a step ahead",
    ),
    "end of the schedule": Fault(
        lambda: mlp(adam(optax.cosine_decay_schedule(1e-2, STEPS - 1)), cosine), regression, 1, "learning rate", ""
    ),
    "no schedule": Fault(lambda: mlp(adam(), cosine), regression, 1, "learning rate", ""),
    "ten times the rate": Fault(lambda: mlp(adam(1e-1)), regression, 0, "learning rate", "", "10 times"),
    "sum of micro-batches": Fault(
        lambda: mlp(
            (
                lambda x: torch.optim.Adam(x, 1e-2),
                optax.MultiSteps(optax.adam(1e-2), 3, use_grad_mean=False),
            ),
            accumulate=3,
        ),
        regression,
        2,
        "optimizer state",
        f"first moment of {W}",
        "sum of micro-batches",
    ),
    "amsgrad after bias correction": Fault(
        lambda: mlp((lambda x: torch.optim.Adam(x, 1e-2, amsgrad=True), optax.amsgrad(1e-2))),
        regression,
        0,
        "optimizer state",
        f"largest second moment of {W}",
        "AMSGrad after bias correction",
    ),
    "adagrad's start": Fault(
        lambda: mlp((lambda x: torch.optim.Adagrad(x, 0.1), adagrad(0.1))),
        regression,
        0,
        "optimizer state",
        f"sum of squares of {W}",
        "initial sum of squares",
    ),
    "other decay of squares": Fault(
        lambda: mlp(
            (
                lambda x: torch.optim.RMSprop(x, 1e-3),
                optax.rmsprop(1e-3, decay=0.9, eps=1e-8, eps_in_sqrt=False),
            )
        ),
        regression,
        0,
        "optimizer state",
        f"second moment of {W}",
        "alpha=0.9",
    ),
    "rmsprop's epsilon in the root": Fault(
        lambda: mlp(
            (
                lambda x: torch.optim.RMSprop(x, 1e-3),
                optax.rmsprop(1e-3, decay=0.99, eps=1e-8, eps_in_sqrt=True),
            )
        ),
        regression,
        0,
        "update",
        W,
        "epsilon in the root",
    ),
    "opposite direction": Fault(
        lambda: mlp(clipped(optax.chain(optax.scale_by_adam(), optax.scale(1e-2)))),
        regression,
        0,
        "update",
        W,
        "opposite direction",
    ),
}


def uncorrected_adam() -> optax.GradientTransformation:
    """Adam without the correction of bias."""
    inner = optax.scale_by_adam()

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        _, after = inner.update(updates, state, params)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + 1e-8), after.mu, after.nu), after

    return optax.GradientTransformation(inner.init, update)
