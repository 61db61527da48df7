"""What can go wrong, in the kinds that a caller tells apart."""

from collections.abc import Sequence


class InputError(ValueError):
    """
    What was asked for cannot be done: a specification, a file, a device or a framework that is not there.

    The message is one line: what was given, what is allowed, what to do. The commands print it and exit with 2.
    """


class UncallableError(InputError):
    """
    A function cannot be called with the inputs.

    Attributes
    ----------
    side : whose it is, "reference" or "port"
    """

    def __init__(self, message: str, side: str) -> None:
        """The message is one line, as every `InputError`'s."""
        super().__init__(message, side)
        self.side = side

    def __str__(self) -> str:
        """The message alone."""
        return str(self.args[0])


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


class LostProcessError(RuntimeError):
    """
    Another process of the same fit has ended, or does not answer.

    Attributes
    ----------
    process, processes : this one, counted from 0, and how many there are
    absent : those that do not answer, as far as this one can tell
    reason : in the framework's words
    """

    def __init__(self, process: int, processes: int, absent: Sequence[int], reason: str) -> None:
        """Keep what is known; the arguments are the exception's own, so that it can be pickled."""
        super().__init__(process, processes, absent, reason)
        self.process, self.processes, self.absent, self.reason = process, processes, absent, reason

    def __str__(self) -> str:
        """Say who is missing, and what to do."""
        who = f"process {' and '.join(map(str, self.absent))}" if self.absent else "another process"
        return (
            f"process {self.process} of {self.processes} has lost {who}, which ended or does not answer "
            f"({self.reason}); start all of them again: with --checkpoint and --resume they go on from the last piece "
            "that was saved"
        )


class StoppedError(RuntimeError):
    """A fit was interrupted, and all its processes stopped when a piece was saved; the message says how to go on."""


# What all processes of a fit come to alike; anything else may be one's alone.
ALIKE = (InputError, DivergenceError, StoppedError)


def last_words(error: BaseException) -> tuple[str, int] | None:
    """What a command says of an error, in a line, and its exit code; None where the fault is not the user's."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, StoppedError):
        return str(error), 130
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}; ask for fewer points or steps", 2
    if isinstance(error, (InputError, OSError)):
        return str(error), 2
    if isinstance(error, (DivergenceError, LostProcessError)):
        return str(error), 1
    return None


def dtype_error(given: str, conversion: str) -> TypeError:
    """What either framework's operator raises for anything but floating-point and complex arrays."""
    return TypeError(
        "legendre_p3 takes float16, bfloat16, float32, float64, complex64 and complex128, "
        f"and was given {given}; convert it, as in {conversion}"
    )
