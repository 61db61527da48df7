"""What can go wrong, in the two kinds a caller tells apart."""


class InputError(ValueError):
    """
    What was asked for cannot be done: a specification, a file, a device or a framework that is not there.

    The message is one line: what was given, what is allowed, what to do. The commands print it and exit with 2.
    """


class DivergenceError(ArithmeticError):
    """
    The fit left the finite numbers.

    Attributes
    ----------
    step : the first step, counted from 0, whose loss or update is not finite
    loss : the loss before that step's update
    learning_rate : of that step
    """

    def __init__(self, step: int, loss: float, learning_rate: float) -> None:
        """Keep where it happened; the arguments are the exception's own, so that it can be pickled."""
        super().__init__(step, loss, learning_rate)
        self.step, self.loss, self.learning_rate = step, loss, learning_rate

    def __str__(self) -> str:
        """Say where it happened, and what usually helps."""
        return (
            f"the fit diverged at step {self.step}: loss {self.loss}; "
            f"try a learning rate below {self.learning_rate:g} or a start nearer to the answer"
        )


def dtype_error(given: str, conversion: str) -> TypeError:
    """What either framework's operator raises for anything but floating-point and complex arrays."""
    return TypeError(
        "legendre_p3 takes float16, bfloat16, float32, float64, complex64 and complex128, "
        f"and was given {given}; convert it, as in {conversion}"
    )
