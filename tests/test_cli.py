"""The command line: help with examples, one-line errors with exit status 2, a run from start to record."""

import os
import re
import subprocess
import sys

import pytest
import torch

from mimetic import cli, commands
from mimetic.cli import main
from mimetic.experiments.programmes import QUEUES


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("MIMETIC_DATA", str(tmp_path / "cache"))


TINY = "--experiment tiny --train-size 320 --d-model 16 --depth 1 --num-heads 2 --patch-size 4 --epochs 1".split()


@pytest.mark.parametrize(
    "command",
    [
        "",
        "train",
        "train cifar10-lab30",
        "coverage",
        "queue",
        "bench init",
        "bench train",
        "bench profile",
        "data fetch",
        "pretrained list",
        "pretrained measure",
    ],
    ids=lambda c: c or "all",
)
def test_help_shows_examples(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([*command.split(), "--help"])
    out = capsys.readouterr().out
    assert done.value.code == 0
    assert "python -m mimetic" in out
    if command == "train cifar10-lab30":  # every setting, with its own help and this experiment's value
        assert "--label-smoothing" in out and "average of the patches" in out and "10000" in out
    else:
        assert "example" in out
    if command == "queue":
        said = dict(re.findall(r"^ *(?:│ *)?([a-z-]+) {2,}.*?(\d+) runs", out, flags=re.MULTILINE))
        assert set(said) == {"lab", "recipe", "language", "recommenders"}
        assert said == {name: str(len(QUEUES[name]())) for name in said}


@pytest.mark.parametrize("experiment", ["digits", "tinyshakespeare", "ml100k"])
def test_every_setting_has_a_help_of_its_own(experiment, capsys):
    """tyro takes it from the comment beside the field, else from one above, which may be the heading of a group."""
    with pytest.raises(SystemExit):
        main(["train", experiment, "--help"])
    text = " ".join(re.sub(r"[^ -~]", " ", capsys.readouterr().out).split())
    helps = dict(re.findall(r"--([a-z-]+) (?:\{None\}\|)?[A-Z]{3,} (.*?) ?\(default:", text))
    assert {"epochs", "batch-size", "weight-decay", "num-heads", "init", "compile", "device", "dataset"} <= set(helps)
    assert not {name for name, said in helps.items() if said in ("", "training", "machine", "data", "model")}
    assert helps["weight-decay"].startswith("AdamW's") and helps["compile"].startswith("torch.compile: auto")


@pytest.mark.parametrize(
    ("command", "says"),
    [("queue", "stop after this time, everything saved"), ("bench train", "one on every core but one, two at least")],
)
def test_helps_without_tyro_are_the_same(command, says, capsys):
    for line in (cli.main, commands.main):
        with pytest.raises(SystemExit) as done:
            line([*command.split(), "--help"])
        out = " ".join(capsys.readouterr().out.replace("│", "").split())
        assert (
            done.value.code == 0 and says in out and f"example: python -m mimetic {command}" in out.replace("s:", ":")
        )


def test_train_writes_a_record_and_then_reads_it(tmp_path, capsys):
    assert main(["train", "digits", *TINY, "--init", "mimetic", "--seed", "3"]) == 0
    first = capsys.readouterr().out
    assert "epoch 1/1" in first and "tiny/mimetic-seed3: test accuracy" in first
    assert (tmp_path / "runs" / "tiny" / "mimetic-seed3.json").is_file()
    assert main(["train", "digits", *TINY, "--init", "mimetic", "--seed", "3"]) == 0
    again = " (this is the record that there is; --force trains it again)\n"
    assert capsys.readouterr().out == first.splitlines()[-1] + again  # nothing is trained, the same result is shown
    assert main(["train", "digits", *TINY, "--init", "mimetic", "--seed", "3", "--lr", "0.002"]) == 2
    assert "--force" in capsys.readouterr().err


def test_a_warning_is_one_line_without_code(monkeypatch, capsys):
    def full(path, state):
        raise OSError("No space left on device")

    monkeypatch.setattr("mimetic.training.loop.save_checkpoint", full)
    assert main(["train", "digits", *TINY, "--checkpoint-seconds", "0"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "is not saved" in line]
    assert said and all(line.startswith("warning: tiny/timm-seed0 is not saved (No space left") for line in said)


def test_no_store_leaves_nothing(tmp_path, capsys):
    assert main(["train", "digits", *TINY, "--no-store", "--quiet"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.pt"))


def test_time_limit_is_not_an_error(capsys):
    assert main(["train", "digits", *TINY, "--time-limit", "0.0001"]) == 0
    assert "goes on from there" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command, words",
    [
        ("train digits --init mimetik", "init must be one of timm, torch, xavier"),
        ("train digits --epochs 3", "give the run another experiment name"),
        ("train digits --no-store --time-limit 60", "choose one of them"),
        (
            "train digits --experiment mine --train-size 1400",
            "digits has 1390 training images with the same number of each class",
        ),
        ("train digits --experiment mine --curve-images 360", "at most 350, not 360"),
        ("train pydoc --experiment mine --context 90000", "context"),
        (
            "train digits --init mimetic --arm timm",
            "arm 'timm' of digits sets what was given otherwise: init='mimetic'",
        ),
        (
            "train cifar10-lab10 --arm swapped --qk-beta 0.1",
            "arm 'swapped' of cifar10-lab10 sets what was given otherwise: qk_beta=0.1",
        ),
        ("train cifar10-lab10 --arm swapped --experiment mine", "'swapped' is an arm of cifar10-lab10"),
        ("audit minilm-l6 --transposed", "needs both --num-heads and --proj"),
        ("queue lab --processes 0", "processes must be at least 1"),
        ("data fetch cifar", "choose from cifar10, cifar100, digits"),
        ("data fetch", "name what to fetch"),
        ("data fetch cifar10", "MIMETIC_OFFLINE is set"),
        ("train cifar10-lab30", "or choose digits"),
    ],
)
def test_mistakes_are_one_line_and_status_2(command, words, capsys):
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and words in err


@pytest.mark.parametrize(
    "command", ["trian", "train cifar", "train digits --epoch 3", "train digits --epochs many", "bench"]
)
def test_misspelt_commands_and_options_are_status_2(command, capsys):
    with pytest.raises(SystemExit) as done:
        sys.exit(main(command.split()))
    assert done.value.code == 2 and capsys.readouterr().err


def test_a_misspelt_setting_is_looked_for_in_its_own_experiment(capsys):
    with pytest.raises(SystemExit):
        main(["train", "digits", "--epoch", "3"])
    said = capsys.readouterr().err
    assert "--epochs" in said and "train digits --help" in said and "pydoc" not in said


def test_half_of_a_command_of_two_words_names_the_others(capsys):
    assert main(["data", "--help"]) == 2 and "data is followed by one of: fetch" in capsys.readouterr().err


def test_constants_that_would_change_nothing_are_refused(capsys):
    for option, init in (("--qk-beta", "timm"), ("--vp-alpha", "mimetic-qk"), ("--qk-alpha", "mimetic-vp")):
        assert main(["train", "digits", *TINY, "--init", init, option, "0.3"]) == 2
        said = capsys.readouterr().err
        assert f"would change nothing with init='{init}': choose one of mimetic, " in said and f" {init}," not in said


def test_nobody_reads_on():
    listing = subprocess.run(
        f"{sys.executable} -m mimetic queue lab --list | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert listing.stdout.startswith("cifar10-lab30/timm-seed0") and listing.stderr == ""


def test_each_of_several_data_sets_is_tried(monkeypatch, capsys):
    monkeypatch.setenv("MIMETIC_OFFLINE", "1")
    assert main(["data", "fetch", "tinyshakespeare", "digits", "beauty"]) == 2
    out, err = capsys.readouterr()
    assert out == "digits: part of scikit-learn\n" and err.count("error: ") == 2 and "beauty.txt" in err


def test_data_fetch_digits(capsys):
    assert main(["data", "fetch", "digits"]) == 0
    assert capsys.readouterr().out == "digits: part of scikit-learn\n"


def test_bench_init(capsys):
    assert main("bench init --d-model 32 --depth 1 --num-heads 2".split()) == 0
    assert "times the speed of plain" in capsys.readouterr().out


def test_module_runs_as_a_process():
    command = [sys.executable, "-m", "mimetic", "data", "fetch", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: 'nonsense' is not known")
    assert "Traceback" not in done.stderr


def test_fetching_text(monkeypatch, capsys):
    monkeypatch.setenv("MIMETIC_OFFLINE", "1")
    assert main(["data", "fetch", "pydoc"]) == 0
    assert capsys.readouterr().out == "pydoc: part of Python\n"
    assert main(["data", "fetch", "tinyshakespeare", "wikitext2"]) == 2
    assert "input.txt: not in the cache, and MIMETIC_OFFLINE is set" in capsys.readouterr().err


def test_text_experiments_train_and_refuse(capsys):
    tiny = (
        "--experiment tiny --d-model 16 --depth 1 --num-heads 2 --context 8 --batch-size 4 --epochs 1 --steps-per-epoch"
        " 2 --curve-tokens 50".split()
    )
    assert main(["train", "pydoc", *tiny, "--init", "mimetic", "--no-store", "--quiet"]) == 0
    assert "tiny/mimetic-seed0: validation bits per byte" in capsys.readouterr().out
    for arguments, words in (
        (["train", "tinyshakespeare", "--arm", "sideways"], "tinyshakespeare has no arm 'sideways'"),
        (["train", "wikitext2", "--experiment", "trial", "--vocab-size", "99"], "vocab_size must be from 256"),
        (
            ["train", "tinyshakespeare", "--experiment", "trial", "--context", "200000"],
            "context=200000 is longer than the text",
        ),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_named_before_anything_is_fetched(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIMETIC_DATA", str(tmp_path / "file"))
    monkeypatch.delenv("MIMETIC_OFFLINE", raising=False)
    monkeypatch.setattr("urllib.request.OpenerDirector.open", pytest.fail)
    for name in ("tinyshakespeare", "ml100k", "minilm-l6", "cifar10"):
        assert main(["data", "fetch", name]) == 2
        assert "let MIMETIC_DATA name a folder of yours" in capsys.readouterr().err, name


def test_a_whole_pickled_model_is_told_apart_from_a_state_dict(tmp_path, capsys):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    assert main(["audit", str(tmp_path / "whole.pt"), "--num-heads", "1", "--qkv", "{}.qkv", "--proj", "{}.proj"]) == 2
    assert "whole.pt cannot be read as a state dict: it holds more than tensors" in capsys.readouterr().err


def test_bad_sizes_of_a_measurement_are_named(capsys):
    for option in ("--d-model", "--depth", "--num-heads", "--repeats"):
        assert main(["bench", "init", option, "0"]) == 2
        assert f"{option[2:].replace('-', '_')} must be at least 1, not 0" in capsys.readouterr().err


def test_an_output_that_is_not_utf8_gets_plain_signs():
    done = subprocess.run(
        [sys.executable, "-m", "mimetic", "audit", "whisper-tiny-encoder"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
        check=True,
    )
    assert "W_V W_proj  -5.56" in done.stdout.decode("cp1252")  # a minus that is lost would be another sign


def test_a_file_without_names_is_told_the_options(tmp_path, capsys):
    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "my.pt")
    assert main(["audit", str(tmp_path / "my.pt")]) == 2
    assert "needs --num-heads, --proj, and --qkv" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("bench init --repeats 1", "stopped\n"),
        ("train digits --no-store", "stopped; a stored run goes on from its last checkpoint with the same command\n"),
    ],
)
def test_what_is_stopped_says_whether_it_goes_on(command, says, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    for kind in (cli.BenchInit, cli.Train):
        monkeypatch.setattr(kind, "__call__", stop)
    assert main(command.split()) == 130
    assert capsys.readouterr().err == says


def test_a_run_that_is_judged_by_training_images_says_so(capsys):
    few = "train digits --no-store --quiet --epochs 1 --d-model 16 --depth 1 --num-heads 2"
    for part, says in (
        ("", "test accuracy"),
        (" --train-size 1000 --validation 100", "(of the validation part) after 1 epochs"),
    ):
        assert main((few + part).split()) == 0
        out = capsys.readouterr().out
        assert says in out and ("validation" in out) == bool(part)
