"""Recurrent networks: an LSTM and a GRU with a head."""

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

from tests.support.models import Pair
from tests.support.models.common import Wrong, faults, normal, port, seeded

WIDTH = 16


class TorchRecurrent(nn.Module):
    """An LSTM or a GRU in torch, with a head."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.rnn = kind(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The head of each time, and the last memory."""
        y, carry = self.rnn(x)
        memory = carry[1] if isinstance(carry, tuple) else carry
        return self.head(y), memory[0]


def memory(carry: Any, wrong: Wrong) -> jax.Array:
    """The memory in what is carried from time to time, which is first the memory and then the output in an LSTM."""
    return carry[1 if "carry_swapped" in wrong else 0] if isinstance(carry, tuple) else carry


class NnxGRUCell(nnx.GRUCell):
    """A cell with a bias in the product with the hidden state, as torch has it and the library has not."""

    def __init__(self, inputs: int, outputs: int, *, wrong: Wrong, rngs: nnx.Rngs) -> None:
        super().__init__(inputs, outputs, rngs=rngs)
        self.wrong = wrong
        if "library" not in wrong:
            self.dense_h = nnx.Linear(outputs, 3 * outputs, rngs=rngs)

    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The next hidden state, twice."""
        if "reset_before" not in self.wrong:
            return super().__call__(carry, inputs)
        reset, update, new = jnp.split(self.dense_i(inputs), 3, -1)
        hidden_reset, hidden_update, _ = jnp.split(self.dense_h(carry), 3, -1)
        reset, update = jax.nn.sigmoid(reset + hidden_reset), jax.nn.sigmoid(update + hidden_update)
        new = jnp.tanh(new + jnp.split(self.dense_h(reset * carry), 3, -1)[2])
        carry = (1 - update) * new + update * carry
        return carry, carry


class NnxRecurrent(nnx.Module):
    """The network in Flax NNX."""

    def __init__(self, cell: Callable[..., nnx.Module], wrong: Wrong, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.rnn = nnx.RNN(cell(WIDTH, WIDTH, rngs=rngs), return_carry=True, reverse="reversed" in wrong)
        self.head = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The head of each time, and the last memory."""
        carry, y = self.rnn(x)
        return self.head(y), memory(carry, self.wrong)


class LinenRecurrent(linen.Module):
    """The network in Flax Linen, which starts from zeros of the type of x."""

    cell: type[linen.Module]
    wrong: Wrong = frozenset()

    @linen.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The head of each time, and the last memory."""
        zeros = jnp.zeros((*x.shape[:-2], WIDTH), x.dtype)
        carry, y = linen.RNN(
            self.cell(WIDTH), return_carry=True, reverse="reversed" in self.wrong, keep_order=True, name="rnn"
        )(x, initial_carry=(zeros, zeros) if self.cell is linen.OptimizedLSTMCell else zeros)
        return linen.Dense(WIDTH, name="head")(y), memory(carry, self.wrong)


class EquinoxRecurrent(eqx.Module):
    """The network in Equinox, with a scan over the times."""

    rnn: eqx.nn.LSTMCell | eqx.nn.GRUCell
    head: eqx.nn.Linear
    wrong: Wrong = eqx.field(static=True)

    def __init__(self, cell: type[eqx.Module], wrong: Wrong, key: jax.Array) -> None:
        keys = jax.random.split(key)
        self.rnn = cell(WIDTH, WIDTH, key=keys[0])
        self.head = eqx.nn.Linear(WIDTH, WIDTH, key=keys[1])
        self.wrong = wrong

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The head of each time, and the last memory, of one example."""
        lstm = isinstance(self.rnn, eqx.nn.LSTMCell)
        cell = self.rnn
        if "gates" in self.wrong:  # two of them are exchanged
            order = jnp.array([0, 2, 1, 3] if lstm else [1, 0, 2])
            cell = eqx.tree_at(
                lambda cell: (cell.weight_ih, cell.weight_hh, cell.bias),
                cell,
                replace_fn=lambda w: w.reshape(len(order), WIDTH, -1)[order].reshape(w.shape),
            )

        def step(carry: Any, x: jax.Array) -> tuple[Any, jax.Array]:
            carry = cell(x, carry)
            return carry, carry[0] if lstm else carry

        zeros = jnp.zeros(WIDTH, x.dtype)
        carry, y = jax.lax.scan(step, (zeros, zeros) if lstm else zeros, x, reverse="reversed" in self.wrong)
        return jax.vmap(self.head)(y), carry[0 if "carry_swapped" in self.wrong else 1] if lstm else carry


def linen_recurrent(cell: type[linen.Module]) -> Callable[..., tuple[linen.Module, Any]]:
    """A factory of the network in Flax Linen with its variables."""

    def make(wrong: Wrong) -> tuple[linen.Module, Any]:
        module = LinenRecurrent(cell, wrong)
        return module, module.init(jax.random.key(0), jnp.zeros((1, 6, WIDTH)))

    return port(make)


def sequences() -> Any:
    """Four sequences of six times."""
    return normal(4, 6, WIDTH)


LSTM = seeded(lambda: TorchRecurrent(nn.LSTM))
GRU = seeded(lambda: TorchRecurrent(nn.GRU))
REVERSED = ("rnn", "output", "revers|time|order")
CARRY_SWAPPED = ("output", "output", "carry|state|swap|output")
GATES = ("rnn", "output", "gate|order|permut")
PAIRS = (
    Pair(
        "lstm-nnx",
        "nnx",
        LSTM,
        port(lambda wrong: NnxRecurrent(nnx.OptimizedLSTMCell, wrong, nnx.Rngs(0))),
        sequences,
        faults(reversed=REVERSED, carry_swapped=CARRY_SWAPPED),
    ),
    Pair(
        "gru-nnx",
        "nnx",
        GRU,
        port(lambda wrong: NnxRecurrent(partial(NnxGRUCell, wrong=wrong), wrong, nnx.Rngs(0))),
        sequences,
        faults(
            reset_before=("rnn", "output", "reset|gate"),
            library=(("rnn.bias_hh_l0", "rnn"), "parameter", "bias"),
            reversed=REVERSED,
        ),
    ),
    Pair(
        "lstm-linen",
        "linen",
        LSTM,
        linen_recurrent(linen.OptimizedLSTMCell),
        sequences,
        faults(reversed=REVERSED, carry_swapped=CARRY_SWAPPED),
    ),
    Pair("gru-linen", "linen", GRU, linen_recurrent(linen.GRUCell), sequences, faults(reversed=REVERSED)),
    Pair(
        "lstm-equinox",
        "equinox",
        LSTM,
        port(lambda wrong: EquinoxRecurrent(eqx.nn.LSTMCell, wrong, jax.random.key(0))),
        sequences,
        faults(gates=GATES, carry_swapped=CARRY_SWAPPED),
    ),
    Pair(
        "gru-equinox",
        "equinox",
        GRU,
        port(lambda wrong: EquinoxRecurrent(eqx.nn.GRUCell, wrong, jax.random.key(0))),
        sequences,
        faults(gates=GATES, reversed=REVERSED),
    ),
)
