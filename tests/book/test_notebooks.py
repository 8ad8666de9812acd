"""The committed notebooks are executed, portable and refuse wrong parameters; so does the tool that executes them."""

import base64
import copy
import io
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from mimetic import notebooks
from mimetic.notebooks import NotebookError, choose, choose_int, choose_ints, choose_several

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"
COMMITTED = sorted(BOOK.glob("*.ipynb"))
PORTABLE = (
    # nbval: stored output is not compared, cell is not run, an error is expected
    "nbval-ignore-output", "nbval-skip", "nbval-raises-exception", "raises-exception",
    # the page: what is shown
    "hide-cell", "hide-input", "hide-output", "remove-cell", "remove-input", "remove-output", "scroll-output",
    "full-width", "margin", "output_scroll", "parameters",
    "narrow",  # custom.css: a figure that is drawn for a telephone's width
)  # fmt: skip

every_notebook = pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)


def _read(path):
    return nbformat.read(path, as_version=4)


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


# The committed notebooks ----------------------------------------------------------------------------------------------


def _chapters(node):
    if isinstance(node, dict):
        yield from [node[key] for key in ("root", "file") if key in node]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _chapters(child)


def test_table_of_contents_lists_every_page_once_and_none_that_is_missing():
    listed = list(_chapters(yaml.safe_load((ROOT / "_toc.yml").read_text())))
    pages = [p.relative_to(ROOT).with_suffix("").as_posix() for p in BOOK.iterdir() if p.suffix in (".md", ".ipynb")]
    assert sorted(listed) == sorted(pages)


@every_notebook
def test_nothing_was_out_of_reach_when_the_stored_outputs_were_made(path):
    shown = "".join(output.get("text", "") for cell in _code(_read(path)) for output in cell.outputs)
    assert "not in the cache" not in shown  # Unavailable's words: the page would lack a model or a data set


def test_the_road_map_leads_to_every_page():
    page = "01_introduction.ipynb"
    linked = set(re.findall(r"\]\(([\w.]+)\)", (BOOK / page).read_text()))
    pages = {p.name for p in COMMITTED} | {p.name for p in BOOK.glob("*.md")} - {"index.md", "references.md"}
    assert pages - linked - {page} == set()


@every_notebook
def test_executed_in_order_to_the_end_without_error(path):
    cells = _code(_read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    expected = {"raises-exception", "nbval-raises-exception"}
    assert not [
        o
        for c in cells
        if not expected & set(c.metadata.get("tags", []))
        for o in c.outputs
        if o.output_type == "error"
    ]


@every_notebook
def test_portable(path):
    notebook = _read(path)
    assert path.stat().st_size < 1_000_000
    assert notebook.metadata.kernelspec.name == "python3"
    assert "papermill" not in notebook.metadata
    assert not [c for c in notebook.cells if {"papermill", "execution", "ExecuteTime"} & set(c.metadata)]
    assert notebooks.local_paths(notebook) == []
    nbformat.validate(notebook)


@every_notebook
def test_as_the_tool_stores_it(path):
    notebook = _read(path)
    stored = notebooks.shrink_images(notebooks.strip_metadata(_read(path)))
    assert nbformat.writes(stored) == nbformat.writes(notebook), "run make notebooks"


@every_notebook
def test_output_shows_no_warnings_no_progress_bars_and_no_empty_sentence(path):
    for cell in _code(_read(path)):
        for output in cell.outputs:
            assert output.get("name") != "stderr", f"cell writes to stderr: {cell.source[:60]!r}"
            assert "\r" not in str(output.get("text", "")), f"a progress bar is stored: {cell.source[:60]!r}"
            # an empty sentence is shown as the name of a class
            assert output.get("data", {}).get("text/markdown", "x").strip(), f"nothing is said: {cell.source[:60]!r}"


def _shown_code(notebook):
    """The lines of code that a page shows: cells whose input is not removed, and fenced blocks of text cells."""
    for cell in notebook.cells:
        if {"remove-cell", "remove-input"} & set(cell.metadata.get("tags", [])):
            continue
        fenced = re.findall(r"^```([^\n]*)\n(.*?)^```", cell.source, re.S | re.M)
        blocks = (
            [cell.source]
            if cell.cell_type == "code"
            else [text for language, text in fenced if not language.startswith("{")]
        )
        yield from (line for block in blocks for line in block.splitlines())


@every_notebook
def test_shown_code_fits_the_column(path):
    wide = [line for line in _shown_code(_read(path)) if len(line) > 92]
    assert not wide, "cut off on the page at 1280 pixels; `ruff format --line-length 92` breaks code"


@every_notebook
def test_tags_mean_something(path):
    tags = {tag for cell in _read(path).cells for tag in cell.metadata.get("tags", [])}
    assert tags <= set(PORTABLE)


@every_notebook
def test_a_parameter_that_is_not_as_published_is_told(path, monkeypatch):
    parameters, check = (cell.source for cell in _code(_read(path))[:2])
    published, told = {}, []
    exec(parameters, published)
    values = {name: value for name, value in published.items() if name != "__builtins__"}
    monkeypatch.setattr(notebooks, "note_changes", lambda **given: told.append(given))
    exec(check, published)
    assert told == [{name: (value, value) for name, value in values.items()}]


def test_other_values_are_told_and_the_published_ones_are_not(capsys):
    notebooks.note_changes(epochs=(3, 3), seeds=([0, 1], [0, 1]))
    assert capsys.readouterr().out == ""
    notebooks.note_changes(epochs=(1, 3), dataset=("cifar10", "digits"))
    out = capsys.readouterr().out
    assert "Markdown" in out  # as a plain console shows it


def test_records_that_are_looked_for_where_no_folder_is_are_told(monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr("IPython.display.display", lambda shown: told.append(shown.data))
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path))
    notebooks.note_changes(epochs=(3, 3))
    assert told == []
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path / "agian"))
    notebooks.note_changes(epochs=(1, 3))
    assert "With `epochs = 1`" in told[0] and f"There is no folder {tmp_path / 'agian'}" in told[0]


@every_notebook
def test_every_parameter_is_checked_at_once_and_the_choices_are_named(path):
    """The code cell after `parameters` passes with the published values, and refuses a wrong value for any of them."""
    notebook = _read(path)
    cells = _code(notebook)
    (index,) = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    assert index == 0
    parameters, check = cells[0].source, cells[1].source
    published = {}
    exec(parameters, published)
    names = set(published) - {"__builtins__"}
    assert names
    exec(check, published)
    for name in names:
        wrong = {}
        exec(parameters, wrong)
        wrong[name] = "no such value"
        with pytest.raises(ValueError, match=rf"{name}.*choose") as refusal:
            exec(check, wrong)
        assert "no such value" in str(refusal.value)


# Parameters -----------------------------------------------------------------------------------------------------------


def test_choose():
    assert choose("dataset", "digits", ["digits", "cifar10"]) == "digits"
    with pytest.raises(ValueError, match=r"dataset='mnist': choose one of 'digits', 'cifar10'"):
        choose("dataset", "mnist", ["digits", "cifar10"])
    with pytest.raises(ValueError, match="flag"):
        choose("flag", 1, [True, False])


def test_choose_int():
    assert choose_int("epochs", 1, 1, 10) == 1
    assert choose_int("epochs", 10, 1, 10) == 10
    for wrong in (0, 11, 1.0, "1", True, None):
        with pytest.raises(ValueError, match="epochs=.*from 1 to 10"):
            choose_int("epochs", wrong, 1, 10)


def test_choose_ints():
    for value in ([0, 1], (0, 1), range(2), "0,1", "[0, 1]"):
        assert choose_ints("seeds", value, 0, 9) == [0, 1]
    assert choose_ints("seeds", 3, 0, 9) == choose_ints("seeds", "3", 0, 9) == [3]
    for wrong in ([], "", "a", [0, 0], [10], [True], 1.5, None, {"seed": 1}):
        with pytest.raises(ValueError, match="seeds=.*from 0 to 9"):
            choose_ints("seeds", wrong, 0, 9)


def test_choose_several():
    for value in (["a", "b"], ("a", "b"), "a,b", "a, b"):
        assert choose_several("arms", value, ["a", "b", "c"]) == ["a", "b"]
    for wrong in ([], "", "d", ["a", "a"], ["a", 1], None, 3):
        with pytest.raises(ValueError, match="arms=.*choose one or more of 'a', 'b', 'c'"):
            choose_several("arms", wrong, ["a", "b", "c"])


# Execution ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def book(tmp_path):
    (tmp_path / "book").mkdir()

    def write(name, *sources):
        cells = [new_markdown_cell("# Title"), new_code_cell("epochs = 3", metadata={"tags": ["parameters"]})]
        path = tmp_path / "book" / f"{name}.ipynb"
        nbformat.write(new_notebook(cells=cells + [new_code_cell(s) for s in sources]), path)
        return path

    return write


def test_execute_stores_outputs_and_nothing_of_the_machine(book):
    path = book("01_a", "import os\nprint('one'); print('two', epochs)", "print(os.path.basename(os.getcwd()))")
    assert notebooks.execute(path, progress=False) == path
    notebook = _read(path)
    assert [c.execution_count for c in _code(notebook)] == [1, 2, 3]
    texts = ["".join(o.text for o in cell.outputs) for cell in _code(notebook)]
    assert texts == ["", "one\ntwo 3\n", "book\n"]  # it runs in the notebook's folder
    assert "papermill" not in path.read_text() and "iopub" not in path.read_text()
    assert "version" not in notebook.metadata.language_info
    first = path.read_bytes()
    notebooks.execute(path, progress=False)
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_kernel_is_the_one_of_this_environment(book):
    path = book("01_a", "import sys, pathlib\npathlib.Path('prefix').write_text(sys.prefix);")
    notebooks.execute(path, progress=False)
    assert (path.parent / "prefix").read_text() == sys.prefix


@pytest.mark.parametrize(("given", "there"), [(None, "1"), ("2", "2")])
def test_one_thread_unless_the_caller_says_otherwise(book, monkeypatch, given, there):
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    path = book("01_a", "import os, pathlib\npathlib.Path('threads').write_text(os.environ['OMP_NUM_THREADS']);")
    notebooks.execute(path, progress=False)
    assert (path.parent / "threads").read_text() == there


def test_a_path_of_this_machine_is_refused(book):
    path = book("01_a", "import sys\nprint('installed in', sys.prefix)")
    before = path.read_bytes()
    with pytest.raises(NotebookError, match=rf"cell 3: {re.escape(sys.prefix)}"):
        notebooks.execute(path, progress=False)
    assert path.read_bytes() == before


def _picture(image) -> nbformat.NotebookNode:
    stored = io.BytesIO()
    image.save(stored, "PNG")
    data = {"image/png": base64.b64encode(stored.getvalue()).decode()}
    return new_notebook(cells=[new_code_cell(outputs=[new_output("display_data", data)])])


def _shrunk(image) -> Image.Image:
    notebook = notebooks.shrink_images(_picture(image))
    return Image.open(io.BytesIO(base64.b64decode(notebook.cells[0].outputs[0].data["image/png"])))


def test_pictures_take_fewer_bytes_and_show_the_same():
    colours = np.random.default_rng(1).integers(0, 256, (40, 3), dtype=np.uint8)
    lines = Image.fromarray(colours[np.random.default_rng(2).integers(0, 40, (200, 300))]).convert("RGBA")
    lines.putpixel((3, 3), (0, 0, 0, 0))  # nothing there: the page is white
    small = _shrunk(lines)
    assert small.mode == "P" and small.size == lines.size and small.convert("RGB").getpixel((3, 3)) == (255, 255, 255)
    lines.putpixel((3, 3), (255, 255, 255, 255))
    assert np.array_equal(np.asarray(small.convert("RGB")), np.asarray(lines.convert("RGB")))
    shades = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(_shrunk(shades)), np.asarray(shades))  # 256 colours would not do
    frames = io.BytesIO()
    lines.save(frames, "PNG", save_all=True, append_images=[shades.resize(lines.size).convert("RGBA")])
    for data in (frames.getvalue(), b"no picture"):  # nothing of either is lost
        moving, kept = _picture(lines), base64.b64encode(data).decode()
        moving.cells[0].outputs[0].data["image/png"] = kept
        assert notebooks.shrink_images(moving).cells[0].outputs[0].data["image/png"] == kept
    notebook = notebooks.shrink_images(_picture(lines))
    assert notebooks.shrink_images(copy.deepcopy(notebook)) == notebook


def test_local_paths_sees_html_and_other_machines_and_no_more():
    def output(data):
        return new_notebook(cells=[new_code_cell("x", outputs=[new_output("execute_result", data=data)])])

    home = "/".join(["", "home", "someone", "x.py"])
    assert notebooks.local_paths(output({"text/html": f"<td>{home}</td>"})) == [(1, home)]
    inside = home.replace("someone/x.py", "x")  # part of an address or of a relative path
    for innocent in (f"https://example.org{inside}", "book/data/tmp", "a/root/b", "V·proj / tmp_x", f"~{inside}"):
        assert notebooks.local_paths(output({"text/plain": innocent})) == []
    assert notebooks.local_paths(output({"image/png": f"{home}/{'A' * 20}"})) == []


def test_command_line_stops_at_the_first_failing_cell(book, tmp_path):
    good = book("01_good", "print('fine')")
    bad = book("02_bad", "x = 1", "def halve(x):\n    return x / 0\n\nhalve(x)")
    never = book("03_never", "print('never')")
    before = bad.read_bytes(), never.read_bytes()
    result = subprocess.run(
        [sys.executable, "-m", "mimetic.notebooks", "execute", "--no-progress"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert "stopped: book/02_bad.ipynb, cell 4 (def halve(x):): ZeroDivisionError: division by zero" in result.stderr
    assert "return x / 0" in result.stderr and "\x1b" not in result.stderr
    assert "stored before: 01_good.ipynb" in result.stderr
    assert "fine" in good.read_text()
    assert (bad.read_bytes(), never.read_bytes()) == before


def test_command_line_names_notebooks(book, tmp_path, capsys, monkeypatch):
    book("01_a", "print('epochs', epochs)")
    book("02_b", "print('b')")
    monkeypatch.chdir(tmp_path)
    assert notebooks.main(["execute", "3"]) == 1
    assert "no notebook '3' in book, which has 01_a, 02_b" in capsys.readouterr().err


@every_notebook
def test_a_figure_drawn_for_a_telephone_is_shown_at_its_width(path):
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code":
            drawn_narrow = re.search(r"figures\.(comparisons|families)\b", cell.source) is not None
            assert drawn_narrow == ("narrow" in cell.metadata.get("tags", [])), cell.source
