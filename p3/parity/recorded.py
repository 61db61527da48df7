"""Operators whose results are kept, and what becomes of what they raise."""

from collections.abc import Callable, Mapping
from typing import Any

from p3.parity.operator import Arrays, Operator
from p3.parity.result import Refusal


class RefusalError(Exception):
    """A side raised: the refusal says which, and what; `is_meant`, whether it has no such thing and says so."""

    def __init__(self, refusal: Refusal, is_meant: bool) -> None:
        """The message is the refusal."""
        super().__init__(str(refusal))
        self.refusal, self.is_meant = refusal, is_meant


def refusal_of(error: BaseException, where: str, method: str) -> RefusalError:
    """A refusal, of a side in some mode, with the first line of what was raised."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    side, _, mode = where.partition(", ")
    doing = ", ".join(filter(None, [mode, method.replace("_", " ")]))
    return RefusalError(Refusal(side, doing, f"{type(error).__name__}: {line}"), isinstance(error, NotImplementedError))


def asked(operator: Operator, side: str, method: str, *groups: Any) -> Arrays:
    """Call a method, and make a `RefusalError` of whatever it raises."""
    try:
        return tuple(getattr(operator, method)(*groups))
    except RefusalError as refusal:  # of a recorded operator, which knows no mode
        _, _, mode = side.partition(", ")
        if not mode:
            raise
        doing = f"{mode}, {refusal.refusal.doing}"
        raise RefusalError(refusal.refusal._replace(doing=doing), refusal.is_meant) from refusal.__cause__
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # frameworks and users' functions raise all kinds, and exit
        raise refusal_of(error, side, method) from error


class Recorded:
    """An operator that computes nothing twice; values and derivatives leave the inputs, and raise `RefusalError`."""

    def __init__(self, operator: Operator, side: str) -> None:
        """Nothing is recorded yet."""
        self.operator, self.side = operator, side
        self.name, self.framework = operator.name, operator.framework
        self._results: dict[object, Arrays] = {}

    def _call(self, method: str, *groups: Arrays) -> Arrays:
        key = (method, *((x.dtype.name, x.shape, x.tobytes()) for group in groups for x in group))
        if key not in self._results:
            given = tuple(tuple(x.copy() for x in group) for group in groups)
            try:
                self._results[key] = tuple(getattr(self.operator, method)(*given))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # frameworks and users' functions raise all kinds, and exit
                raise refusal_of(error, self.side, method) from error
        return self._results[key]

    @property
    def program(self) -> str:
        """As the operator's, if it has one."""
        return getattr(self.operator, "program", "")

    def arguments(self, inputs: Arrays) -> tuple[int, ...]:
        """As the operator's."""
        return self.operator.arguments(inputs)

    def value(self, inputs: Arrays) -> Arrays:
        """As the operator's."""
        return self._call("value", inputs)

    def vjp(self, inputs: Arrays, cotangents: Arrays, between: Callable[[], object] = lambda: None) -> Arrays:
        """As the operator's."""
        return self._call("vjp", inputs, cotangents)

    def jvp(self, inputs: Arrays, tangents: Arrays) -> Arrays:
        """As the operator's."""
        return self._call("jvp", inputs, tangents)

    def vjp_of_vjp(self, inputs: Arrays, cotangents: Arrays, directions: Arrays) -> Arrays:
        """As the operator's."""
        return self._call("vjp_of_vjp", inputs, cotangents, directions)

    def jvp_of_vjp(self, inputs: Arrays, cotangents: Arrays, directions: Arrays) -> Arrays:
        """As the operator's."""
        return self._call("jvp_of_vjp", inputs, cotangents, directions)

    def batched(self, arguments: tuple[int, ...]) -> Operator:
        """As the operator's."""
        return self.operator.batched(arguments)

    def transformed(self) -> Mapping[str, Operator]:
        """As the operator's."""
        return self.operator.transformed()

    def compiled(self) -> Mapping[str, Operator]:
        """As the operator's."""
        return self.operator.compiled()

    def rules(self, inputs: Arrays) -> tuple[str, ...]:
        """As the operator's."""
        return self.operator.rules(inputs)

    def scaled(self, factor: float) -> Operator:
        """As the operator's."""
        return self.operator.scaled(factor)
