"""The built site: every page is there, every local link and picture leads somewhere, nothing is broken or left over."""

import os
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

from mimetic import notebooks

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"


@pytest.fixture(scope="module", autouse=True)
def _site(request):
    """Built without a warning (-W), or as it is, or not there."""
    if request.config.getoption("--site"):
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("MAKE") and key not in ("MFLAGS", "PYTHONPATH")
        }
        build = subprocess.run(["make", "book"], cwd=ROOT, env=clean, capture_output=True, text=True)
        assert build.returncode == 0, build.stdout + build.stderr
    elif not (SITE / "index.html").exists():
        pytest.skip("no site: make book")


@pytest.fixture(scope="module")
def pages(_site):
    return {
        path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in (SITE / "book").glob("*.html")
    }


def test_every_source_has_its_page(pages):
    sources = {p.stem for p in (ROOT / "book").iterdir() if p.suffix in (".md", ".ipynb")}
    assert {path.stem for path in pages} == sources


def test_first_page_leads_to_the_book():
    assert "book/index.html" in (SITE / "index.html").read_text()


def test_local_links_and_pictures_exist(pages):
    broken, names = [], {path: {tag["id"] for tag in page.find_all(id=True)} for path, page in pages.items()}
    for path, page in pages.items():
        attributes = [(tag, "href") for tag in page.find_all("a", href=True)]
        attributes += [(tag, "src") for tag in page.find_all(["img", "script"], src=True)]
        attributes += [(tag, "href") for tag in page.find_all("link", href=True)]
        for tag, key in attributes:
            url = urlsplit(tag[key])
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not target.exists():
                broken.append(f"{path.name}: {tag[key]}")
            elif url.fragment and target in names and unquote(url.fragment) not in names[target]:
                broken.append(f"{path.name}: {tag[key]}")
    assert not broken


def test_formulas_and_scripts_need_no_network(pages):
    for path, page in pages.items():
        outside = [tag["src"] for tag in page.find_all(["script", "img"], src=True) if tag["src"].startswith("http")]
        assert not outside, path.name
    assert (SITE / "_static" / "mathjax" / "tex-chtml.js").exists()


def test_no_errors_of_sphinx_or_notebooks_on_the_pages(pages):
    for path, page in pages.items():
        assert not page.select(".system-message, .problematic, .output.traceback, .output.stderr"), path.name
        assert page.h1 and page.title.get_text(strip=True), path.name


def test_pages_fit_a_phone_and_figures_say_what_they_show(pages):
    for path, page in pages.items():
        assert page.find("meta", attrs={"name": "viewport"}), path.name
        # Sphinx puts the file name where there is no description. In a notebook, give one in the cell's metadata:
        # {"mystnb": {"image": {"alt": "..."}}}
        described = [bool(re.search(r"\w+ \w+", img.get("alt", ""))) for img in page.select("article img")]
        assert all(described), f"{path.name}: figure {described.index(False) + 1} has no description"


def test_no_local_path_and_nothing_left_over(pages):
    folders = [str(ROOT), str(Path.home())]
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert not [f for f in folders if len(Path(f).parts) > 2 and f in text], path.name
    assert not list(SITE.rglob("*.map"))
    assert not (SITE / ".venv").exists()


def test_downloaded_notebooks_are_the_committed_ones():
    for path in notebooks.find_notebooks(folder=ROOT / "book"):
        assert (SITE / "_sources" / "book" / path.name).read_bytes() == path.read_bytes()
