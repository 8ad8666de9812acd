"""Every test runs with one thread, without a network and with an empty data folder of its own.

A test marked `network` runs only with --network, and then with the caller's network and data folder. One marked `gpu`
runs where there is a GPU: `pytest -m gpu tests` for these alone.
"""

import os
from functools import cache

import pytest

# Before anything imports torch or a hub client. Not MPLBACKEND: notebook kernels would inherit it and lose figures.
OFFLINE = {"MIMETIC_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"


def pytest_addoption(parser):
    parser.addoption("--network", action="store_true", help="run the tests that need the internet, too")
    parser.addoption(
        "--site", action="store_true", help="build the site (make book), which its tests otherwise take as they find it"
    )


def pytest_configure(config):
    if not config.getoption("--network"):
        os.environ.update(OFFLINE)  # huggingface_hub reads its own at import


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("network") and not config.getoption("--network"):
            item.add_marker(pytest.mark.skip(reason="needs --network"))
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@cache
def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def _empty_data_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def _isolated(request, monkeypatch, _empty_data_folder):
    """No test sees the data another user of this checkout has fetched."""
    monkeypatch.delenv("MIMETIC_RUNS", raising=False)
    if "network" not in request.keywords:
        monkeypatch.setenv("MIMETIC_DATA", str(_empty_data_folder))


@pytest.fixture(scope="session", autouse=True)
def _no_screen():
    import matplotlib

    matplotlib.use("Agg")


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """An empty data folder that belongs to one test; MIMETIC_DATA names it."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("MIMETIC_DATA", str(folder))
    return folder
