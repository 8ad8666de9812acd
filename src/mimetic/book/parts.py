"""What chapter 7 says of its arms: the answer's figure and that of every arm, and what stands beside them."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pandas as pd

from mimetic.book import common, machines
from mimetic.book.vision import COMMAND, found, numbers
from mimetic.experiments.metrics import ACCURACY
from mimetic.experiments.programmes.study import Study
from mimetic.experiments.programmes.vision import NOISE_ONLY, PAIR, STUDIES, TRACE, gain, pair
from mimetic.statistics import ENOUGH, contrast, difference, side, summary

# What is asked on another machine, too: sentence -> name of an arm -> (reference arm, arm); against the default
# unless the sentence says otherwise. Positions have their own tables (patch_positions)
ASKED: dict[str, dict[str, tuple[str, str]]] = {
    "One half alone": {"queries and keys": ("timm", "mimetic-qk"), "values and projection": ("timm", "mimetic-vp")},
    "Without the diagonal of one product, against mimetic initialization": {
        "of QK": ("mimetic", "qk-beta-0"),
        "of V·proj": ("mimetic", "vp-beta-0"),
    },
    "Without the noise of one product, against mimetic initialization": {
        "of QK": ("mimetic", "qk-alpha-0"),
        "of V·proj": ("mimetic", "vp-alpha-0"),
    },
    "What queries and keys add to values and projection": {
        "with their diagonal": ("mimetic-vp", "mimetic"),
        "without": ("mimetic-vp", "qk-beta-0"),
    },
    "Only the size": {
        "the default at mimetic's norms": ("timm", "timm-rescaled"),
        "its singular values in random directions": ("timm", "random-directions"),
    },
    "A wrong sign, against mimetic initialization": {
        "of QK": ("mimetic", "qk-minus"),
        "of V·proj": ("mimetic", "vp-plus"),
        "both": ("mimetic", "both-flipped"),
    },
    "A wrong sign, against the default": {
        "of QK": ("timm", "qk-minus"),
        "of V·proj": ("timm", "vp-plus"),
        "both": ("timm", "both-flipped"),
    },
    "V·proj stored untransposed, as in public code": {"": ("timm", "untransposed")},
    "Constants exchanged (QK 0.4, V·proj 0.7)": {
        "": ("timm", "swapped"),
        "against mimetic initialization": ("mimetic", "swapped"),
    },
    "Against other defaults": {"PyTorch's": ("torch", "mimetic"), "Xavier": ("xavier", "mimetic")},
}


def _study(question: str, comparisons: dict[str, tuple[str, str]]) -> Study:
    return Study("parts", question, "cifar10-lab10", (), comparisons)


# The rows of the figure that opens the chapter, all against the default with the same positions
ANSWER = (
    _study(
        "Parts of mimetic initialization",
        {
            "all of it": PAIR,
            "V·proj only": ("timm", "mimetic-vp"),
            "QK only": ("timm", "mimetic-qk"),
            "V·proj without its diagonal": ("timm", "vp-beta-0"),
            "V·proj without its noise": ("timm", "vp-alpha-0"),
            "QK without its diagonal": ("timm", "qk-beta-0"),
        },
    ),
    _study(
        "A diagonal of the wrong sign",
        {"in V·proj": ("timm", "vp-plus"), "in QK": ("timm", "qk-minus"), "in both": ("timm", "both-flipped")},
    ),
    _study(
        "Only as large",
        {"timm's default, scaled up": ("timm", "timm-rescaled"), "random directions": ("timm", "random-directions")},
    ),
    _study(
        "Learned positions in place of fixed sin-cos ones",
        {"starting small": pair("learned-avg"), "starting from sin-cos (CPU)": pair("from-sincos-avg")},
    ),
)
NOT_MADE = "–"


def answer(finals: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table and the points of the chapter's first figure (figures.comparisons)."""
    return common.stacked((study, finals) for study in ANSWER)


# The last figure's rows that no question has: one part taken away, against the default; and positions that were run on
# a CPU only, beside the question's others
FIGURE = ("which-half", "structure", "signs", "default", "fit", "position")
WITHOUT = _study(
    "Without one of the parts",
    {
        "QK without its noise": ("timm", "qk-alpha-0"),
        "QK without its diagonal": ("timm", "qk-beta-0"),
        "V·proj without its noise": ("timm", "vp-alpha-0"),
        "V·proj without its diagonal": ("timm", "vp-beta-0"),
    },
)
OTHER_POSITIONS = replace(
    STUDIES["position"],
    comparisons={
        "sin-cos in a random order, average (CPU)": pair("shuffled-avg"),
        "learned from sin-cos, average (CPU)": pair("from-sincos-avg"),
        "learned from sin-cos, class token (CPU)": pair("from-sincos-token"),
    },
)


def _of_the_figure() -> list[Study]:
    studies = [STUDIES[name] for name in FIGURE]
    return [studies[0], WITHOUT, *studies[1:], OTHER_POSITIONS]


def every_arm(finals: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table and the points of the figure with every arm but those of the constants (figures.comparisons)."""
    return common.stacked((study, finals) for study in _of_the_figure())


def every_number(finals: pd.DataFrame) -> pd.DataFrame:
    """The numbers of that figure and of the constants', as a table for the page."""
    table, _ = common.stacked((study, finals) for study in (*_of_the_figure(), STUDIES["constants"]))
    return numbers(table)


def _said(runs: pd.DataFrame, asked: dict[str, tuple[str, str]]) -> str:
    """Differences in words, {what is compared: (reference arm, arm)}; "" while one of them has no runs."""
    found = {words: difference(runs, arm, reference) for words, (reference, arm) in asked.items()}
    if not all(map(len, found.values())):
        return ""
    return "; ".join(f"{words} {common.measured(values)}" for words, values in found.items())


def noise_only() -> str:
    """Both noises without either diagonal, on a CPU, in a sentence; "" without runs."""
    asked = {
        "over the default": ("timm", NOISE_ONLY),
        "minus mimetic initialization": ("mimetic", NOISE_ONLY),
        "minus the default at mimetic's norms": ("timm-rescaled", NOISE_ONLY),
        "minus random directions": ("random-directions", NOISE_ONLY),
    }
    said = _said(common.replicas("cifar10-lab10"), asked)
    return f"* both noises, neither diagonal (on a CPU): {said}" if said else ""


def trace() -> str:
    """V·proj with hardly any noise, on a CPU, in a sentence; "" without runs."""
    asked = {"over the default": ("timm", TRACE), "minus mimetic initialization": ("mimetic", TRACE)}
    said = _said(common.replicas("cifar10-lab10"), asked)
    return f"* V·proj with a trace of noise, |α| 0.001 (on a CPU): {said}" if said else ""


def over_torch(finals: pd.DataFrame) -> str:
    """One product alone against PyTorch's default, in a list item; "" without runs."""
    said = _said(finals, {"QK": ("torch", "mimetic-qk"), "V·proj": ("torch", "mimetic-vp")})
    return f"* one product alone, minus PyTorch's default: {said}" if said else ""


def cell(values: pd.Series | tuple) -> str:
    """The mean of paired values with its interval; of one pair without; a dash without pairs."""
    return common.with_interval(values) if len(values) else NOT_MADE


def precision(finals: pd.DataFrame) -> str:
    """Whether bfloat16 changes the answer; what is there of it, before runs of both precisions are."""
    missing = common.missing(STUDIES["precision"], finals, (0, 1, 2), COMMAND)
    if not set(STUDIES["precision"].arms) <= set(finals["arm"]):
        return f"No pair of float32 runs is in yet. {missing}"
    return found("precision", finals)


def made_on(finals: pd.DataFrame, experiment: str = "cifar10-lab10") -> str:
    """Which machines made this chapter's runs, and whether they agree where two did."""
    studies = tuple(
        study
        for name, study in STUDIES.items()
        if study.experiment == experiment and name not in ("size", "data", "deeper")
    )
    arms = {arm for study in studies for arm in study.arms} | {TRACE, NOISE_ONLY}
    return (
        f"{machines.made_on(finals[finals['arm'].isin(arms)], studies)}"
        f" {machines.replicas_sentence(experiment, among=arms)}".strip()
    )


# what the gain hangs on: condition -> (the default there, mimetic initialization there)
CONDITIONS = {
    "sin-cos positions, average pooling": pair("base"),
    "learned positions, average pooling": pair("learned-avg"),
    "learned positions that start from sin-cos, average pooling (on a CPU)": pair("from-sincos-avg"),
    "no positions, average pooling": pair("none-avg"),
    "sin-cos positions, class token": pair("sincos2d-token"),
    "learned positions that start from sin-cos, class token (on a CPU)": pair("from-sincos-token"),
    "learned positions, class token": pair("learned-token"),
    "no positions, class token": pair("none-token"),
    "as in the first row, over PyTorch's default": ("torch", "mimetic"),
    "as in the first row, 0.4 for QK and 0.7 for V·proj, as in some public code": ("timm", "swapped"),
}


def mean_of(finals: pd.DataFrame, arm: str, seeds: pd.Index) -> float:
    """Mean accuracy of an arm over these seeds."""
    return finals[finals["arm"] == arm].set_index("seed").loc[seeds, ACCURACY.column].mean()


def conditions_table(finals: pd.DataFrame) -> str:
    """What the gain hangs on, positions, pooling, the default, the constants, as a Markdown table with the accuracies
    themselves; "" without runs."""
    gains = {name: difference(finals, arm, reference) for name, (reference, arm) in CONDITIONS.items()}
    if (pairs := min(map(len, gains.values()))) < ENOUGH:
        return ""
    rows = []
    for name, values in gains.items():
        reference, arm = (mean_of(finals, arm, values.index) for arm in CONDITIONS[name])
        rows.append((name, f"{100 * reference:.1f}", f"{100 * arm:.1f}", common.with_interval(values)))
    table = common.markdown(rows, ["after ten epochs", "default (%)", "mimetic (%)", "gain (points)"])
    devices = sorted(finals.loc[finals["arm"].isin(chain(*CONDITIONS.values())), "device.name"].unique())
    return (
        f"The gain depends on what it is combined with, and on the default ({pairs} pairs each, on"
        f" {' and '.join(devices)}; in brackets the 95 % interval of the gain):\n\n{table}{_otherwise(finals, gains)}"
    )


def _otherwise(finals: pd.DataFrame, gains: dict[str, pd.Series]) -> str:
    """The conditions whose gain lies on another side of 0, or on neither, where another machine made all their pairs
    again, as a paragraph; "" without any."""
    again, said = common.replicas(finals["experiment"].iloc[0]), []
    for name, values in gains.items():
        reference, arm = CONDITIONS[name]
        other = difference(again, arm, reference) if len(again) else values
        if len(other) == len(values) and side(other) != side(values):
            here, there = (set(runs.loc[runs["arm"].isin((reference, arm)), "device.name"]) for runs in (finals, again))
            machines = f"{', '.join(sorted(there))} in place of {', '.join(sorted(here))}"
            said.append(f"*{name}* has {common.with_interval(other)} on {machines}")
    return f"\n\nMade again on another machine, {'; '.join(said)}." if said else ""


def learned_position(finals: pd.DataFrame) -> str:
    """What mimetic initialization gains with sines and cosines, and with a learned position embedding, which GPTs have,
    in words that go on "there a ViT"; "" without runs."""
    said = []
    for name, prefixes in {
        "gains with sines and cosines": ("base", "sincos2d-token"),
        "not with learned positions that start small": ("learned-avg", "learned-token"),
    }.items():
        values = [contrast(finals, gain(prefix)) for prefix in prefixes]
        if min(map(len, values)) < ENOUGH:
            return ""
        average, token = (common.estimate(summary(v), unit="points") for v in values)
        said.append(f"{name}: {average}, with a class token {token}")
    return "; and ".join(said)
