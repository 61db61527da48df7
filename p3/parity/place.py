"""Where a check found something, as fields; the words are made from the fields last."""

from typing import NamedTuple

EAGER = "eager"


class Place(NamedTuple):
    """
    Where a check found something, or a side raised.

    Attributes
    ----------
    side : "reference" or "port"; "inputs" where these are too weak to show a fault
    quantity : "value", "vjp", "jvp of vjp", ...
    path : of the array in the reference's inputs or outputs, as in `inputs["w"]`; empty where it is of none alone
    by : "cotangent" or "tangent", where a derivative of second order is by that of the array, and not by the array
    mode : "eager", or the transform or compiler that it is computed by
    precision : the dtype that it is computed in; empty where that is float64 or float32, in which everything is
    special : what is special of the inputs: their shape, or what the user calls them; empty where nothing is
    number : what stands in an input that has a special number in it
    of : the path of the input that is special, or has the number in it; empty where there is no other
    """

    side: str
    quantity: str
    path: str = ""
    by: str = ""
    mode: str = EAGER
    precision: str = ""
    special: str = ""
    number: complex | float | None = None
    of: str = ""

    @property
    def at(self) -> str:
        """What is special of the inputs, in words."""
        if self.number is not None:
            return f"at {self.number:.9g}" + (f" of {self.of}" if self.of else "")
        return " ".join(filter(None, [self.of, self.special]))

    @property
    def circumstances(self) -> str:
        """In which mode, in which dtype and at which inputs, in words; empty where these are the ordinary ones."""
        return ", ".join(filter(None, ["" if self.mode == EAGER else self.mode, self.precision, self.at]))

    @property
    def array(self) -> str:
        """Which array it is of, in words."""
        return f"the {self.by} of {self.path}" if self.by else self.path

    def __str__(self) -> str:
        """All of it, in words, from the side to the array."""
        side = f"the {self.side}" if self.side else ""
        return ", ".join(filter(None, [side, self.circumstances, self.quantity, self.array]))
