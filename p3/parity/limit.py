"""Limits to the time that each call of a function may take, and to the memory that a check may."""

import ctypes
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from time import monotonic
from typing import TypeVar

from p3.parity.place import Place

Result = TypeVar("Result")
GRACE = 1.0  # seconds in which an interrupted call may end
WAIT = 0.02  # seconds between two looks at a call
GPU = Path("/dev/nvidiactl")
ABANDONED: list[Thread] = []  # threads in calls that could not be interrupted, which go on


class TimeLimitError(BaseException):
    """
    A call exceeds its time limit. It is no `Exception`, so that a function that catches exceptions is stopped as well.

    Attributes
    ----------
    place : the side and the quantity of the call; None in the interrupted thread, where it is not known
    """

    def __init__(self, place: Place | None = None) -> None:
        """Without arguments, as Python raises it in the interrupted thread."""
        super().__init__(place)
        self.place = place


class Limit:
    """The time that each call may take, of work that runs in a thread of its own."""

    def __init__(self, seconds: float) -> None:
        """No call has begun."""
        self.seconds = seconds
        self.begin: float | None = None  # of the call that runs
        self.place: Place | None = None
        self.lock = Lock()

    @contextmanager
    def call(self, place: Place) -> Iterator[None]:
        """While it lasts, a call runs; a call within it is part of it."""
        if self.begin is not None:
            yield
            return
        with self.lock:
            self.begin, self.place = monotonic(), place
        try:
            yield
        finally:
            with self.lock:
                self.begin = None

    def run(self, work: Callable[[], Result]) -> Result:
        """
        The result of some work, or what it raises.

        Raises
        ------
        TimeLimitError
            A call in it took too long. Python code is interrupted; code that is compiled cannot be, and goes on in a
            thread that nothing waits for.
        """
        outcome: SimpleQueue[tuple[Result | None, BaseException | None]] = SimpleQueue()

        def target() -> None:
            LIMIT.set(self)
            try:
                outcome.put((work(), None))
            except BaseException as error:  # which is raised again in the thread that waits
                outcome.put((None, error))

        thread = Thread(target=target, daemon=True)
        thread.start()
        is_interrupted = False
        while True:
            try:
                result, error = outcome.get(timeout=WAIT)
            except Empty:
                with self.lock:
                    late = 0.0 if self.begin is None else monotonic() - self.begin - self.seconds
                    if late > 0 and not is_interrupted:
                        interrupt(thread)
                        is_interrupted = True
                if late > GRACE:
                    ABANDONED.append(thread)
                    raise TimeLimitError(self.place) from None
                continue
            if isinstance(error, TimeLimitError):
                raise TimeLimitError(self.place) from None
            if error is not None:
                raise error
            return result  # type: ignore[return-value]


LIMIT: ContextVar[Limit | None] = ContextVar("LIMIT", default=None)


@contextmanager
def limited(place: Place) -> Iterator[None]:
    """While it lasts, a call runs, in the time that is allowed in this thread, if any is."""
    limit = LIMIT.get()
    if limit is None:
        yield
        return
    with limit.call(place):
        yield


def interrupt(thread: Thread) -> None:
    """Raise a `TimeLimitError` in a thread, as soon as that runs Python code."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(TimeLimitError))


class Memory:
    """The limit of the process's memory while checks run in some of its threads."""

    def __init__(self) -> None:
        """No check runs."""
        self.lock = Lock()
        self.checks = 0
        self.before = (0, 0)  # the limits without a check

    @contextmanager
    def limited(self) -> Iterator[None]:
        """
        While it lasts, to allocate more memory than the machine has left raises an exception, and ends no process.

        Linux can limit the addresses of a process, and other systems cannot. CUDA reserves far more addresses than it
        uses, so that nothing is limited where there is a GPU of NVIDIA's.
        """
        left = memory_left()
        if left is None:
            yield
            return
        import resource  # which Windows has not

        with self.lock:
            self.checks += 1
            if self.checks == 1:
                self.before = resource.getrlimit(resource.RLIMIT_AS)
                limits = [limit for limit in self.before if limit != resource.RLIM_INFINITY]
                resource.setrlimit(resource.RLIMIT_AS, (min([left, *limits]), self.before[1]))
        try:
            yield
        finally:
            with self.lock:
                self.checks -= 1
                if not self.checks:
                    resource.setrlimit(resource.RLIMIT_AS, self.before)


MEMORY = Memory()


def memory_left() -> int | None:
    """The bytes of addresses that the process may have, by what memory is free; None where there is no limit."""
    if GPU.exists():
        return None
    try:
        reserved = int(Path("/proc/self/statm").read_text().split()[0])
        machine = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return reserved * mmap.PAGESIZE + int(machine["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None  # another system than Linux
