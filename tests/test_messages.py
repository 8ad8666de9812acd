"""What error messages have in common: a whole number is asked for in one way, an error is shown on one line."""

import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from mimetic import MimeticSpec, StateNames
from mimetic.data.sequences import check_sequences
from mimetic.experiments.configs import config_from_record, named
from mimetic.experiments.runs import check
from mimetic.messages import check_whole, one_line
from mimetic.models import BERT4RecConfig, GPTConfig, ViTConfig
from mimetic.training.config import TrainConfig


@pytest.mark.parametrize("wrong", [True, False, 0, -1, 2.0, "2", None])
def test_a_whole_number_is_asked_for(wrong):
    with pytest.raises(ValueError) as error:
        check_whole("depth", wrong)
    assert str(error.value) == f"depth must be a whole number of at least 1, not {wrong!r}"
    check_whole("depth", 1)
    check_whole("seed", 0, least=0)


# Python counts with True as with 1
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: ViTConfig(depth=True), "depth"),
        (lambda: GPTConfig(depth=True), "depth"),
        (lambda: BERT4RecConfig(10, depth=True), "depth"),
        (lambda: TrainConfig(epochs=True), "epochs"),
        (lambda: StateNames(proj="{}", num_heads=True, qkv="{}"), "num_heads"),
        (lambda: check(named("digits", experiment="mine", seed=True)), "seed"),
        (lambda: check(named("pydoc", experiment="mine", steps_per_epoch=True)), "steps_per_epoch"),
        (lambda: check(named("pydoc", experiment="mine", curve_tokens=True)), "curve_tokens"),
        (lambda: check(named("clusters", experiment="mine", passes=True)), "passes"),
        (lambda: check_sequences("clusters", True), "items"),
    ],
)
def test_true_is_no_whole_number(call, name):
    with pytest.raises(ValueError, match=f"^{name} must be a whole number (of at least|from) .*, not True$"):
        call()


@pytest.mark.parametrize("experiment", ["cifar10-lab10", "tinyshakespeare", "ml100k"])
@pytest.mark.parametrize("value", ["a", [1], {"b": 2}, b"x", float("nan"), True])
def test_a_setting_of_another_type_is_named(experiment, value):
    config = named(experiment)
    for name in config.known():
        usual = getattr(config, name)
        if isinstance(usual, str) or (value is True and (isinstance(usual, bool) or name in MimeticSpec.constants())):
            continue
        with pytest.raises((ValueError, TypeError)) as error:
            check(replace(config, **{name: value}), store=False)
        assert re.search(rf"\b{name}\b", str(error.value)), (name, error.value)


def test_a_whole_number_is_a_number():
    check(named("digits", experiment="mine", lr=1, weight_decay=0), store=False)
    with pytest.raises(ValueError, match=r"lr must be a number, not (np\.float32\()?0\.5"):  # no record can hold it
        check(named("digits", experiment="mine", lr=np.float32(0.5)), store=False)


def test_a_name_is_text():
    for name in ("experiment", "arm"):
        with pytest.raises(ValueError, match=f"{name} must be lower-case letters"):
            check(replace(named("digits"), **{name: 3}), store=False)


def test_a_record_of_a_newer_version_names_the_field():
    values = asdict(named("ml100k")) | {"qk_alpha": [0.7, 0.7]}
    assert config_from_record(values) == replace(named("ml100k"), qk_alpha=(0.7, 0.7))
    with pytest.raises(ValueError, match="^RecommenderConfig has no field warmth: of a newer version\\?$"):
        config_from_record(values | {"warmth": 1})


def test_an_error_on_one_line():
    assert one_line(ValueError("two\n   lines\n")) == "two lines"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(ValueError("long " * 100), 20) == "long long long lo..."
    assert len(one_line(ValueError("long " * 100))) == 300
