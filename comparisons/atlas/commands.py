"""
The atlas: where PyTorch and JAX differ, function by function.

`python -m comparisons.atlas make` compares the two functions of every pair in pairs.toml, and resumes where it was
stopped; `python -m comparisons.atlas show special.i1` shows one pair.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar
from unittest import mock

import click
import jax
from pydantic import BaseModel, ValidationError

import jaxp3
import p3.parity
import torchp3
from comparisons.atlas.differences import KINDS, Atlas, Entry, Where, entry, load_explanations, unused
from comparisons.atlas.findings import Examined, examine, run
from comparisons.atlas.page import docs_part, draw, render_page
from comparisons.atlas.pairs import load_pairs
from comparisons.pages import machine, write_part
from p3.commands.check import check_progress

HERE = Path(__file__).parent
Model = TypeVar("Model", bound=BaseModel)
# So that what is found is the same on any x86-64 machine of today: by these the frameworks choose their vector
# instructions, and one thread adds up in one order.
ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
}
VERSIONS = {name: version(name) for name in ("torch", "jax", "optax", "numpy", "scipy", "mpmath")}


def fingerprint(text: str) -> str:
    """What a result depends on: the text that it is of, the versions, the environment, and the code that makes it."""
    sources = [HERE / f"{name}.py" for name in ("pairs", "findings", "snippets")]
    sources += Path(str(p3.parity.__file__)).parent.rglob("*.py")
    sources += [Path(str(package.__file__)).with_name("function.py") for package in (torchp3, jaxp3)]
    found = hashlib.sha256(json.dumps([text, VERSIONS, ENVIRONMENT]).encode())
    for path in sorted(sources):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def quietly() -> None:
    """In each process: no warnings, and Ctrl-C is the first one's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")


def examine_into(name: str, path: Path) -> None:
    """Examine a pair, and write what is found."""
    written(path, examine(load_pairs()[name]).model_dump_json(indent=1))
    jax.clear_caches()  # which would take gigabytes over all pairs


def run_into(program: str, path: Path) -> None:
    """Run a program, and write what it prints."""
    try:
        written(path, run(program))
    except RuntimeError as error:  # a program that does not run shows nothing, which a test says
        written(path, str(error))


def written(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def read(kind: type[Model], path: Path) -> Model:
    """What was written."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        reason = "is not there" if isinstance(error, FileNotFoundError) else "is not what make has written"
        raise click.ClickException(f"{path} {reason}; delete it if it is there, and make it again") from error


def do_all(title: str, do: Callable[[str, Path], None], tasks: Iterable[tuple[str, Path]]) -> None:
    """Do what has no result yet, in a process for each core, with a bar on a terminal."""
    left = [(text, path) for text, path in tasks if not path.exists()]
    pool = ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"), quietly)
    try:
        with mock.patch.dict(os.environ, ENVIRONMENT), check_progress() as progress:
            futures = [pool.submit(do, text, path) for text, path in left]
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                progress(title, done, len(left))
    except BaseException:  # Ctrl-C among them: what is being done is lost, and nothing else
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def assemble(names: Iterable[str], parts: Path) -> tuple[Atlas, list[tuple[str, Where]]]:
    """The atlas of some pairs, and the entries of their explanations that match no place."""
    pairs = {name: pair for name, pair in load_pairs().items() if name in names}
    parts.mkdir(parents=True, exist_ok=True)
    paths = {name: parts / f"{name}-{fingerprint(pair.model_dump_json())}.json" for name, pair in pairs.items()}
    do_all("functions", examine_into, paths.items())
    examined = {name: read(Examined, path) for name, path in paths.items()}
    explanations = load_explanations()
    entries = {name: entry(name, pair, examined[name], explanations) for name, pair in pairs.items()}
    shown = [d for found in entries.values() for d in found.differences if d.snippet]
    outputs = {d.snippet: parts / f"{fingerprint(d.snippet)}.txt" for d in shown}
    do_all("programs", run_into, outputs.items())
    for difference in shown:
        difference.output = outputs[difference.snippet].read_text(encoding="utf-8")
    last = max(path.stat().st_mtime for path in paths.values())
    atlas = Atlas(
        versions=VERSIONS,
        machine=machine(),
        environment=ENVIRONMENT,
        date=date.fromtimestamp(last).isoformat(),
        entries=entries,
    )
    return atlas, [(name, where) for name, where in unused(examined, explanations) if name in pairs]


@click.group()
def atlas() -> None:
    """Where PyTorch and JAX differ, function by function."""


FOLDER = click.Path(path_type=Path, file_okay=False, writable=True)
PARTS = click.option("--parts", type=FOLDER, default=HERE / ".atlas", help="Where results are kept, to go on from.")
PAGE = click.Path(path_type=Path, exists=True, dir_okay=False, writable=True)


@atlas.command()
@PARTS
@click.option("--folder", type=FOLDER, default=HERE, help="Where atlas.json, .html and .png go.")
@click.option("--page", type=PAGE, help="The page whose list to replace: docs/atlas.md.")
def make(parts: Path, folder: Path, page: Path | None) -> None:
    """Examine every pair that has no result yet, and write the atlas."""
    folder.mkdir(parents=True, exist_ok=True)
    made, unneeded = assemble(load_pairs(), parts)
    (folder / "atlas.json").write_text(made.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / "atlas.html").write_text(render_page(made), encoding="utf-8")
    draw(made).savefig(folder / "atlas.png", dpi=110)
    if page is not None:
        write_part(page, docs_part(made))
    click.echo(f"{len(made.entries)} functions; cells: " + counted(made.cells()))
    click.echo("differences: " + counted(made.counts()))
    for name, where in unneeded:
        click.echo(f"explains nothing: {name}, {where.model_dump(exclude_defaults=True)}", err=True)


def counted(counts: dict[str, int]) -> str:
    """The counts in a line."""
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


@atlas.command()
@PARTS
@click.argument("name")
@click.option("--all", "everything", is_flag=True, help="The programs as well.")
@click.option("--again", is_flag=True, help="Examine it anew, whatever atlas.json has.")
def show(parts: Path, name: str, everything: bool, again: bool) -> None:
    """Show the pair NAME as atlas.json has it, or examine it if that is of other versions or of another pair."""
    pairs = load_pairs()
    names = [known for known in pairs if name in (known, known.partition(".")[2])]
    if not names:
        close = [known for known in pairs if name in known]
        raise click.UsageError(
            f"there is no pair {name!r}; {'there are ' + ', '.join(close) if close else 'see atlas.html'}"
        )
    made = read(Atlas, HERE / "atlas.json")
    present = all(
        name in made.entries and made.entries[name].pair.model_dump_json() == pairs[name].model_dump_json()
        for name in names
    )
    if again or made.versions != VERSIONS or not present:
        made, _ = assemble(names, parts)
    for name in names:
        click.echo("\n".join(shown(name, made.entries[name], everything)))


def shown(name: str, found: Entry, everything: bool) -> Iterable[str]:
    """A pair in lines."""
    yield f"{name}: {found.pair.torch} and {found.pair.jax}"
    yield from (f"  {check:14} {verdict:14} {found.cells[check].note}" for check, verdict in found.verdicts.items())
    for difference in sorted(found.differences, key=lambda d: KINDS.index(d.kind)):
        yield f"\n{difference.kind}: {' '.join(difference.text.split())}"
        if everything:
            yield from (f"  {place.name}" for place in difference.places)
            yield f"\n{difference.snippet}\n{difference.output}"


def main() -> None:
    """Run the command, with messages of one line and the exit codes of a shell."""
    try:
        atlas(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except OSError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped; the same command goes on", err=True)
        sys.exit(130)
