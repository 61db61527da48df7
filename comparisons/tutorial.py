"""
The loop of PyTorch's tutorial "Defining new autograd functions", as it stands there: what the benchmark starts from.

Run as a script, it is the tutorial's.
"""

import math

import torch


class LegendrePolynomial3(torch.autograd.Function):
    """The tutorial's operator."""

    @staticmethod
    def forward(ctx, input):
        """½ (5x³ − 3x)."""
        ctx.save_for_backward(input)
        return 0.5 * (5 * input**3 - 3 * input)

    @staticmethod
    def backward(ctx, grad_output):
        """The cotangent times 1.5 (5x² − 1)."""
        (input,) = ctx.saved_tensors
        return grad_output * 1.5 * (5 * input**2 - 1)


def train(x, y, steps, learning_rate, show=print):
    """The tutorial's loop: a, b, c and d after it."""
    a, b, c, d = (torch.full((), value, dtype=x.dtype, requires_grad=True) for value in (0.0, -1.0, 0.0, 0.3))
    for t in range(steps):
        P3 = LegendrePolynomial3.apply  # noqa: N806  the tutorial's own name
        y_pred = a + b * P3(c + d * x)
        loss = (y_pred - y).pow(2).sum()
        if t % 100 == 99:
            show(t, loss.item())
        loss.backward()
        with torch.no_grad():
            a -= learning_rate * a.grad
            b -= learning_rate * b.grad
            c -= learning_rate * c.grad
            d -= learning_rate * d.grad
            a.grad = None
            b.grad = None
            c.grad = None
            d.grad = None
    return [coefficient.item() for coefficient in (a, b, c, d)]


if __name__ == "__main__":
    x = torch.linspace(-math.pi, math.pi, 2000)
    a, b, c, d = train(x, torch.sin(x), 2000, 5e-6)
    print(f"Result: y = {a} + {b} * P3({c} + {d} x)")
