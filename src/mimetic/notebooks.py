"""Notebooks: checked parameters, and execution that leaves nothing of the machine behind.

In a notebook, the cell after the `parameters` cell checks what papermill may have put in:

    from mimetic.notebooks import choose, choose_int
    choose("dataset", dataset, ["digits", "cifar10"])
    choose_int("epochs", epochs, 1, 1000)

From the command line:

    python -m mimetic.notebooks execute             # every notebook in book/, outputs stored in place
    python -m mimetic.notebooks execute 03 05       # some of them, by number, name or path

papermill executes, and with other values it is papermill that is called (README). This module adds what it does not do:
it removes its metadata, refuses output that shows a path of this machine, and writes the file only when every cell has
run. papermill, nbformat and nbclient come with the extra `book`; `choose` needs none of them.
"""

from __future__ import annotations

import argparse
import base64
import copy
import io
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mimetic.data.fetch import atomic_path

if TYPE_CHECKING:
    from nbformat import NotebookNode

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE = {"file_extension": ".py", "mimetype": "text/x-python", "name": "python", "pygments_lexer": "ipython3"}
USUAL_FOLDERS = [r"/home/[\w.-]+", r"/Users/[\w.-]+", r"/root", r"/tmp", r"[A-Z]:\\Users\\[\w.-]+"]  # patterns
SHOWN_TRACEBACK_LINES = 40
SEEN = 16  # of 255: a difference of colour up to which two pictures show the same


class NotebookError(Exception):
    """A notebook that cannot be executed or stored; the message names the notebook, the cell and the reason."""


# Parameters: what a reader may set ------------------------------------------------------------------------------------


def choose(name: str, value: Any, choices: Iterable[Any]) -> Any:
    """Return `value` if it is one of `choices`.

    Raises ValueError naming the parameter, the value and the choices. True does not pass for 1.
    """
    choices = list(choices)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}")
    return value


def choose_several(name: str, value: Any, choices: Iterable[str]) -> list[str]:
    """A parameter that is one or more of some names: a list, or a string with commas (as papermill's -p gives it).

    Raises:
        ValueError: it is not; the message names the choices.
    """
    choices = list(choices)
    several = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    fit = isinstance(several, (list, tuple)) and all(v in choices for v in several)
    if not fit or not several or len(set(several)) < len(several):
        raise ValueError(f"{name}={value!r}: choose one or more of {', '.join(map(repr, choices))}")
    return list(several)


def choose_int(name: str, value: Any, low: int, high: int) -> int:
    """Return `value` if it is a whole number between `low` and `high`, both included; ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}={value!r}: choose a whole number from {low} to {high}")
    return value


def choose_ints(name: str, value: Any, low: int, high: int) -> list[int]:
    """Return a list of different whole numbers between `low` and `high`, both included, from a list, from one number,
    or from text as `papermill -p` passes it ("0,1,2"); ValueError otherwise."""
    refusal = ValueError(
        f'{name}={value!r}: choose different whole numbers from {low} to {high}, as [0, 1], "0,1" or one number'
    )
    if isinstance(value, str):
        try:
            value = [int(part) for part in value.strip("[]() ").split(",")]
        except ValueError:
            raise refusal from None
    numbers = list(value) if isinstance(value, (list, tuple, range)) else [value]
    fit = all(isinstance(n, int) and not isinstance(n, bool) and low <= n <= high for n in numbers)
    if not numbers or not fit or len(set(numbers)) < len(numbers):
        raise refusal
    return numbers


def note_changes(**parameters: tuple[Any, Any]) -> None:
    """Say, in a notebook, which parameters have other values than on the published page, since text that is not
    computed is of those: name=(its value, the published one); and where MIMETIC_RUNS names no folder, so that every
    run would seem to be missing. Says nothing where all are as published."""
    from mimetic.training.records import runs_dir

    changed = {name: pair for name, pair in parameters.items() if pair[0] != pair[1]}
    values = ", ".join(
        f"`{name} = {value!r}` (published: `{published!r}`)" for name, (value, published) in changed.items()
    )
    said = []
    if changed:
        said.append(
            f"**With {values}.** Tables, figures and computed sentences follow these values; all other text is of the"
            " published page."
        )
    if not runs_dir().is_dir():
        said.append(f"**There is no folder {runs_dir()}**, which MIMETIC_RUNS names: no record is read on this page.")
    if said:
        from IPython.display import Markdown, display

        display(Markdown("\n\n".join(said)))


# Outputs: what may be stored ------------------------------------------------------------------------------------------


def strip_metadata(notebook: NotebookNode) -> NotebookNode:
    """Remove, in place, what differs between two executions of the same notebook or belongs to one machine:
    papermill's and the kernel's records, time stamps, the Python version. Joins text that the kernel happened to send
    in pieces. Returns the notebook."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = dict(KERNEL)
    notebook.metadata["language_info"] = dict(LANGUAGE)
    for cell in notebook.cells:
        for key in ("papermill", "execution", "ExecuteTime", "collapsed"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = _join_streams(cell.outputs)
    return notebook


def _join_streams(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    joined: list[NotebookNode] = []
    for output in outputs:
        previous = joined[-1] if joined else None
        if previous and output.output_type == previous.output_type == "stream" and output.name == previous.name:
            previous.text += output.text
        else:
            joined.append(output)
    return joined


def shrink_images(notebook: NotebookNode) -> NotebookNode:
    """Store every PNG output, in place, with the 256 colours that suit it best, where these show the same and take
    fewer bytes: a third of them in a figure of lines and letters; a picture of many shades keeps them. Returns the
    notebook."""
    from PIL import Image  # matplotlib draws with it

    for output in (o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})):
        stored = base64.b64decode(output.data["image/png"])
        small = io.BytesIO()
        with suppress(OSError), Image.open(io.BytesIO(stored)) as image:  # one that is no picture stays as it is
            if image.mode != "P" and getattr(image, "n_frames", 1) == 1:
                opaque = Image.new("RGBA", image.size, "white")
                opaque.alpha_composite(image.convert("RGBA"))
                full = opaque.convert("RGB")
                few = full.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
                off = np.abs(np.asarray(few.convert("RGB"), int) - np.asarray(full, int)).max(axis=2)
                (few if np.quantile(off, 0.999) <= SEEN else full).save(small, "PNG", optimize=True)
        if 0 < len(small.getvalue()) < 0.95 * len(stored):  # not for what another release of zlib makes of it
            output.data["image/png"] = base64.b64encode(small.getvalue()).decode()
    return notebook


def _texts(node: Any) -> Iterable[str]:
    """Every string in nested outputs, except base64 data."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            if not (str(key).startswith("image/") and key != "image/svg+xml"):
                yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)


def _machine_folders() -> list[str]:
    """Folders whose names must not be stored: the checkout, the environment, the home and the temporary folder."""
    candidates = [Path.cwd(), Path(__file__).parents[2], Path(sys.prefix), Path.home(), Path(tempfile.gettempdir())]
    if "MIMETIC_DATA" in os.environ:
        candidates.append(Path(os.environ["MIMETIC_DATA"]).absolute())
    folders = {str(form) for path in candidates for form in (path, path.resolve())}
    return sorted((f for f in folders if len(Path(f).parts) > 1), key=len, reverse=True)


def local_paths(notebook: NotebookNode) -> list[tuple[int, str]]:
    """(cell number from 1, path) of every path in outputs or sources that lies in this checkout, environment, home or
    temporary folder, or in the usual homes of any machine."""
    folders = [*map(re.escape, _machine_folders()), *USUAL_FOLDERS]
    pattern = re.compile(rf"(?<![\w./~-])(?:{'|'.join(folders)})(?![\w-])[^\s'\"<>,;:)]*")
    found = []
    for number, cell in enumerate(notebook.cells, start=1):
        texts = itertools.chain([cell.source], _texts(cell.get("outputs", [])))
        found += [(number, match.group(0)) for text in texts for match in pattern.finditer(text)]
    return found


def _write(notebook: NotebookNode, path: Path) -> None:
    """Write atomically: the old file stays whole until the new one is."""
    import nbformat

    nbformat.validate(notebook)
    with atomic_path(path) as temporary:
        temporary.write_text(nbformat.writes(notebook).rstrip("\n") + "\n", encoding="utf-8")


# Execution ------------------------------------------------------------------------------------------------------------


def find_notebooks(names: Sequence[str] = (), folder: str | Path = "book") -> list[Path]:
    """Paths of the named notebooks: a number ("03"), a name ("03_construction", with or without .ipynb) or a path.
    No names: all of `folder`, sorted. Raises NotebookError naming what is there if a name fits none or several."""
    available = sorted(Path(folder).glob("*.ipynb"))
    if not names:
        if not available:
            raise NotebookError(f"no notebooks in {folder}")
        return available
    paths = []
    for name in names:
        if name.endswith(".ipynb") and Path(name).is_file():
            paths.append(Path(name))
            continue
        stem = name.removesuffix(".ipynb")
        fits = [p for p in available if p.stem == stem or p.stem.startswith(f"{stem}_")]
        if len(fits) != 1:
            there = ", ".join(p.stem for p in available) or "nothing"
            raise NotebookError(f"no notebook {name!r} in {folder}, which has {there}")
        paths += fits
    return paths


def execute(path: str | Path, *, label: str = "", progress: bool = True, cell_timeout: int | None = None) -> Path:
    """Execute a notebook from its first cell in a fresh kernel of this environment, in the notebook's folder, and
    replace it by itself with its outputs.

    label: put before the progress bar; cell_timeout: seconds, None for no limit.
    Returns the path. Raises NotebookError, with nothing written, for a cell that fails (the message names notebook,
    cell and error) and for outputs that show a path of this machine.
    """
    import nbformat
    import papermill

    path = Path(path)
    try:
        notebook = nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise NotebookError(f"{path}: no such file") from None
    except Exception as error:
        raise NotebookError(f"{path}: not a notebook ({error})") from error

    given = copy.deepcopy(notebook)  # papermill adds cells to it
    given.metadata["kernelspec"] = dict(KERNEL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in the Makefile: the order of sums depends on it
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # this environment's kernel, not one in the home folder
    os.environ.pop("MPLBACKEND", None)  # would replace the notebook's own figures
    try:
        executed = papermill.execute_notebook(
            given, None, kernel_name=KERNEL["name"], cwd=str(path.parent), execution_timeout=cell_timeout,
            extra_arguments=["--log-level=CRITICAL"],  # the kernel's notes about its own connection are no news here
            progress_bar={"desc": label, "leave": True, "dynamic_ncols": True} if progress else False,
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        raise NotebookError(_failure(path, notebook, error)) from None
    except papermill.exceptions.PapermillException as error:
        raise NotebookError(f"{path}: {error}") from error

    strip_metadata(executed)
    if shown := local_paths(executed):
        lines = "\n".join(f"  cell {number}: {text}" for number, text in dict.fromkeys(shown))
        raise NotebookError(
            f"{path}: nothing stored, because it shows paths of this machine:\n{lines}\n"
            "Print relative paths, and silence or mend what warns."
        )
    _write(shrink_images(executed), path)
    return path


def _failure(path: Path, notebook: NotebookNode, error: Any) -> str:
    """Notebook, cell and error in the first line, then the end of the traceback.

    The cell is found by its source in the notebook as it was given: papermill's own index counts cells that it added.
    """
    code = [(number, cell) for number, cell in enumerate(notebook.cells, start=1) if cell.cell_type == "code"]
    numbers = [number for number, cell in code if cell.source == error.source]
    # several: only the count tells them apart
    where = f"cell {numbers[0]}" if len(numbers) == 1 else f"In [{error.exec_count}]"
    first = next((line for line in (error.source or "").splitlines() if line.strip()), "")
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback or [])).splitlines()
    if len(text) > SHOWN_TRACEBACK_LINES:
        text = ["…", *text[-SHOWN_TRACEBACK_LINES:]]
    return "\n".join([f"{path}, {where} ({first.strip()[:80]}): {error.ename}: {error.evalue}", *text])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mimetic.notebooks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  execute\n  execute 03 05",
    )
    command = parser.add_subparsers(required=True).add_parser(
        "execute", help="execute notebooks and store their outputs"
    )
    command.add_argument("names", nargs="*", help="numbers, names or paths; none: all")
    command.add_argument("--folder", default="book", help="where the notebooks are (default: book)")
    command.add_argument("--cell-timeout", type=int, metavar="SECONDS", help="limit for one cell (default: none)")
    command.add_argument("--no-progress", action="store_true", help="no progress bars")
    arguments = parser.parse_args(argv)

    done: list[Path] = []
    try:
        paths = find_notebooks(arguments.names, arguments.folder)
        width = max(len(path.name) for path in paths)
        for number, path in enumerate(paths, start=1):
            label = f"[{number}/{len(paths)}] {path.name:<{width}}"
            done.append(
                execute(path, label=label, progress=not arguments.no_progress, cell_timeout=arguments.cell_timeout)
            )
    except NotebookError as error:
        print(f"\nstopped: {error}", file=sys.stderr)
        if done:
            print(f"stored before: {', '.join(path.name for path in done)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the notebook that was running is as it was", file=sys.stderr)
        return 130
    print(f"stored {len(done)} notebook{'s' * (len(done) != 1)}: {', '.join(path.name for path in done)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
