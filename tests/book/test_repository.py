"""The files around the code say the same thing, and none of them knows the machine it was written on."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
README = (ROOT / "README.md").read_text()


def _requirements():
    extras = PROJECT["optional-dependencies"]
    return [Requirement(text) for text in PROJECT["dependencies"] + [r for extra in extras.values() for r in extra]]


def _lock():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_conda_supplies_python_and_pip_and_pip_this_project_with_all_its_extras():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    (line,) = pip
    path, extras = re.fullmatch(r"-e (\S+)\[(\S+)\]", line).groups()
    assert path == "."
    assert set(extras.split(",")) == set(PROJECT["optional-dependencies"])


def test_every_requirement_has_a_range_and_a_reason():
    text = (ROOT / "pyproject.toml").read_text()
    reasons = {}
    for requirement in _requirements():
        assert requirement.specifier, f"{requirement} has no range"
        for line in text.splitlines():
            if line.strip().startswith(f'"{requirement}"') or line.strip().startswith(f'"{requirement.name}>'):
                reasons[requirement.name] = reasons.get(requirement.name) or "#" in line
    assert not [name for name in {r.name for r in _requirements()} if not reasons.get(name)]


def test_the_same_requirement_has_one_range():
    ranges = {}
    for requirement in _requirements():
        ranges.setdefault(_canonical(requirement.name), set()).add(str(requirement.specifier))
    assert {name: r for name, r in ranges.items() if len(r) > 1} == {}


def test_lock_is_exact_versions_without_hosts_or_paths():
    lines = _lock()
    assert lines and all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    names = [_canonical(line.split("==")[0]) for line in lines]
    assert len(names) == len(set(names))
    assert "mimetic" not in names


def test_lock_answers_every_requirement_within_its_range():
    pins = {_canonical(line.split("==")[0]): Version(line.split("==")[1]) for line in _lock()}
    for requirement in _requirements():
        assert _canonical(requirement.name) in pins, f"{requirement.name} is not locked: make lock"
        assert requirement.specifier.contains(pins[_canonical(requirement.name)], prereleases=True), str(requirement)


def test_citation_has_the_version_and_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert "arXiv:2305.09828" in str(citation["references"])


# The Makefile ---------------------------------------------------------------------------------------------------------


def _make(folder, *arguments, **environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key != "MFLAGS"}
    return subprocess.run(
        ["make", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, env=clean | environment
    )


@pytest.fixture
def checkout(tmp_path):
    """A copy with the real Makefile, in a folder with a space in its name, in which the tools of
    .venv only write down how they were called.
    """
    tmp_path = tmp_path / "a checkout"
    tmp_path.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "01_a.ipynb").write_text("{}")
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name in ("python", "jupyter-book"):
        tool = tools / name
        tool.write_text(
            f'#!/bin/sh\necho "{name} $*" >> calls\n'
            "mkdir -p _build/html/_static/mathjax; touch _build/html/_static/theme.js.map\n"
        )
        tool.chmod(0o755)
    return tmp_path


def _calls(folder):
    calls = folder / "calls"
    text = calls.read_text() if calls.exists() else ""
    calls.unlink(missing_ok=True)
    return text.splitlines()


def _newer(path):
    """Give a file a time stamp after all others, as an edit would."""
    later = max(p.stat().st_mtime for p in path.parents[1].rglob("*") if p.is_file()) + 5
    os.utime(path, (later, later))


def test_make_book_installs_with_the_lock_builds_strictly_and_says_where(checkout):
    result = _make(checkout, "book")
    assert result.returncode == 0, result.stderr
    install, build = _calls(checkout)
    assert "-c requirements.lock" in install and ".[book,test]" in install
    assert build.startswith("jupyter-book build .")
    assert {"-n", "-W", "--keep-going"} <= set(build.split())
    assert f"file://{checkout}/_build/html/index.html" in result.stdout
    assert not list(checkout.rglob("*.map"))


def test_make_book_skips_what_is_done_and_redoes_what_is_not(checkout):
    _make(checkout, "book")
    _calls(checkout)
    assert _make(checkout, "book").returncode == 0
    assert _calls(checkout) == []
    _newer(checkout / "book" / "01_a.ipynb")
    _make(checkout, "book")
    assert [call.split()[0] for call in _calls(checkout)] == ["jupyter-book"]
    (checkout / "pyproject.toml").touch()
    _newer(checkout / "pyproject.toml")
    _make(checkout, "book")
    assert _calls(checkout)[0].startswith("python -m pip install")


def test_a_failed_build_is_a_failure_and_is_not_skipped_next_time(checkout):
    tool = checkout / ".venv" / "bin" / "jupyter-book"
    good = tool.read_text()
    tool.write_text("#!/bin/sh\nexit 1\n")
    assert _make(checkout, "book").returncode != 0
    tool.write_text(good)
    _calls(checkout)
    _make(checkout, "book")
    assert any(call.startswith("jupyter-book build") for call in _calls(checkout))


def test_make_test_runs_unit_tests_notebooks_and_site(checkout):
    assert _make(checkout, "test").returncode == 0
    calls = _calls(checkout)
    (tests,) = [call for call in calls if "--nbval" in call]
    assert "book/01_a.ipynb" in tests
    assert " --site tests " in tests
    assert "--nbval-lax" not in tests
    assert "--ignore" not in tests
    assert any(call.startswith("jupyter-book build") for call in calls)
    lint = [call.split()[:4] for call in calls if "ruff" in call]
    assert lint == [["python", "-m", "ruff", "check"], ["python", "-m", "ruff", "format"]]


@pytest.mark.parametrize("interpreter", ["no-such-python", "false"])
def test_make_says_which_python_it_needs(checkout, interpreter):
    shutil.rmtree(checkout / ".venv")
    result = _make(checkout, "book", f"PYTHON={interpreter}")
    assert result.returncode != 0
    assert f"{interpreter} is missing or older than Python 3.11" in result.stderr
    assert not (checkout / ".venv").exists()


def test_make_help_lists_the_targets(checkout):
    listed = re.findall(r"^  make (\w+)", _make(checkout, "help").stdout, flags=re.MULTILINE)
    assert {"book", "test", "notebooks", "serve", "clean", "lock", "help"} <= set(listed)


# README ---------------------------------------------------------------------------------------------------------------


def test_readme_commands_and_links_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)", "\n".join(re.findall(r"`[^`]+`", README)))) <= targets
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links and not [link for link in links if not (ROOT / link).exists()]
    first_cells = " ".join(re.findall(r"^\| (`.*?`) \|", README, flags=re.MULTILINE))
    tabled = re.findall(r"`([^`]+)`", first_cells)
    assert tabled and not [path for path in tabled if not (ROOT / path).exists()]
    for notebook in re.findall(r"papermill (\S+)", README):
        if notebook.endswith(".ipynb"):
            assert (ROOT / notebook).exists()


@pytest.mark.parametrize("page", ["README.md", "book/index.md"])
@pytest.mark.slow
def test_the_four_lines_on_your_own_model_work(page):
    pytest.importorskip("timm")
    block, *more = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 4
    names = {}
    exec(block.replace("vit_base_patch16_224", "vit_tiny_patch16_224"), names)
    for positions in more:
        exec(positions, names)
        rows = names["model"].pos_embed[0].detach()
        assert rows[0].abs().max() < 0.2 and torch.allclose(rows[1:].norm(dim=1), torch.tensor(96**0.5), atol=1)
    weight = names["model"].blocks[0].attn
    d = weight.proj.weight.shape[0]
    product = (weight.proj.weight @ weight.qkv.weight[2 * d :]).T.detach()
    assert product.diagonal().mean() < -0.3 and abs((product - product.diag().diag()).mean()) < 0.01


# What must not be in the files ----------------------------------------------------------------------------------------


def _project_files():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_the_page_of_the_library_has_every_public_name_and_each_says_what_it_is():
    import mimetic

    page = (ROOT / "book" / "api.md").read_text()
    shown = re.findall(r"^\.\. auto\w+:: (?:mimetic\.\w+\.)?(\w+)$", page, re.M)
    for_adapters = ["linear_out", "fused_out", "linear_in", "verify", "Check"]  # of modules of their own
    assert sorted(shown) == sorted([*mimetic.__all__, *for_adapters])
    # data: their text is below their assignment
    for name in set(mimetic.__all__) - {"VISION", "LANGUAGE", "INITIALIZERS"}:
        assert len(getattr(mimetic, name).__doc__) > 40


def test_no_file_names_a_folder_of_a_machine():
    here = rf"(?<![\w.~-]){re.escape(str(ROOT))}(?![\w-])"
    somewhere = re.compile(rf"{here}|/home/\w+/|/Users/\w+/|(?<![\w.])/root/\w")
    found = []
    for path in _project_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match.group(0)}" for match in somewhere.finditer(text)]
    assert not found


def test_no_large_or_private_file_is_committed():
    files = _project_files()
    assert not [str(p) for p in files if p.stat().st_size > 2_000_000]
    assert not [str(p) for p in files if {".venv", "cache", "_build", "__pycache__"} & set(p.relative_to(ROOT).parts)]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_comments_of_fields_have_no_colon():
    """Sphinx (Napoleon) would show what stands before it as the field's type, after the rest."""
    lines = [line for line in _source_lines() if "  #: " in line]
    assert len(lines) > 30 and not [line for line in lines if ": " in line.partition("  #: ")[2]]


def test_comments_of_fields_are_seen_by_sphinx():
    """It reads "#:" only: with a space between the two signs the documentation lacks the field's text."""
    assert not [line for line in _source_lines() if re.search(r"#\s+:", line)]


def _source_lines():
    return [line for path in (ROOT / "src").rglob("*.py") for line in path.read_text(encoding="utf-8").splitlines()]
