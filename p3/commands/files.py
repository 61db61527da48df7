"""Files that commands write, tried before the work and not after it."""

import os
from importlib.util import find_spec
from pathlib import Path

import click

from p3.errors import InputError


def writable(context: click.Context, parameter: click.Parameter, path: str | None) -> Path | None:
    """The path of a file that can be written, found out before the work and not after it."""
    if path is None:
        return None
    is_new = not os.path.lexists(path)
    try:
        with open(path, "a", encoding="utf-8"):
            pass
    except OSError as error:
        raise InputError(f"{parameter.opts[0]} {path}: cannot be written: {error.strerror}") from error
    if is_new:
        Path(path).unlink(missing_ok=True)  # by another process of the same fit
    return Path(path)


def drawable(context: click.Context, parameter: click.Parameter, path: str | None) -> Path | None:
    """The path of a picture that can be drawn and written."""
    if path is not None:
        if not path.endswith((".png", ".svg", ".pdf")):
            raise InputError(f"{parameter.opts[0]} {path}: it must end in .png, .svg or .pdf")
        if not find_spec("matplotlib"):
            raise InputError(f'{parameter.opts[0]} needs matplotlib; install it with: pip install "matplotlib>=3.9"')
    return writable(context, parameter, path)


def page_directory(context: click.Context, parameter: click.Parameter, path: str | None) -> Path | None:
    """The path of a directory that a page can be written to."""
    if path is None:
        return None
    require_page_libraries(f"{parameter.opts[0]} {path}")
    if path == "":
        raise InputError(f"{parameter.opts[0]} is empty; give it a directory")
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{parameter.opts[0]} {path}: cannot be made a directory: {error.strerror}") from error
    writable(context, parameter, str(Path(path) / "comparison.html"))
    return Path(path)


def require_page_libraries(what: str) -> None:
    """Raise `InputError`, with what installs them, if the libraries of a page are missing."""
    missing = [name for name in ("matplotlib", "jinja2") if not find_spec(name)]
    if missing:
        install = 'pip install "matplotlib>=3.9" "jinja2>=3.1"'
        raise InputError(f"{what} needs {' and '.join(missing)}; install with: {install}")


def reportable(context: click.Context, parameter: click.Parameter, path: str | None) -> Path | None:
    """The path of a report that can be written."""
    if path is not None:
        if not path.endswith((".json", ".html")):
            raise InputError(f"{parameter.opts[0]} {path}: it must end in .json or .html")
        if path.endswith(".html"):
            require_page_libraries(f"{parameter.opts[0]} {path}")
    return writable(context, parameter, path)
