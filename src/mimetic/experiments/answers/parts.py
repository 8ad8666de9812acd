"""What chapter 7 says of all its arms together: the answer, and what the constants' sensitivity amounts to."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from mimetic.data.fetch import data_dir
from mimetic.experiments.answers import common, machines
from mimetic.experiments.answers.vision import COMMAND, ahead, found, points
from mimetic.experiments.construction import product_sizes
from mimetic.experiments.metrics import ACCURACY
from mimetic.experiments.programmes.vision import NOISE_ONLY, PAIR, STUDIES, TRACE
from mimetic.statistics import ENOUGH, contrast, mean_interval, side, summary
from mimetic.training.records import load_runs

# What the answer names: sentence -> name of an arm -> a sum of arms; against the default unless the sentence says otherwise
ASKED: dict[str, dict[str, Mapping[str, float]]] = {
    "One half alone": {"queries and keys": {"mimetic-qk": 1, "timm": -1}, "values and projection": {"mimetic-vp": 1, "timm": -1}},
    "Without the diagonal of one product, against mimetic initialization": {"of QK": {"qk-beta-0": 1, "mimetic": -1}, "of V·proj": {"vp-beta-0": 1, "mimetic": -1}},
    "Without the noise of one product, against mimetic initialization": {"of QK": {"qk-alpha-0": 1, "mimetic": -1}, "of V·proj": {"vp-alpha-0": 1, "mimetic": -1}},
    "What queries and keys add to values and projection": {"with their diagonal": {"mimetic": 1, "mimetic-vp": -1}, "without": {"qk-beta-0": 1, "mimetic-vp": -1}},
    "Only the size": {"the default at mimetic's norms": {"timm-rescaled": 1, "timm": -1}, "its singular values in random directions": {"random-directions": 1, "timm": -1}},
    "A wrong sign, against mimetic initialization": {"of QK": {"qk-minus": 1, "mimetic": -1}, "of V·proj": {"vp-plus": 1, "mimetic": -1}, "both": {"both-flipped": 1, "mimetic": -1}},
    "A wrong sign, against the default": {"of QK": {"qk-minus": 1, "timm": -1}, "of V·proj": {"vp-plus": 1, "timm": -1}, "both": {"both-flipped": 1, "timm": -1}},
    "V·proj stored untransposed, as in public code": {"": {"untransposed": 1, "timm": -1}},
    "Constants exchanged (QK 0.4, V·proj 0.7)": {"": {"swapped": 1, "timm": -1}, "against mimetic initialization": {"swapped": 1, "mimetic": -1}},
    "The gain with another position embedding, average pooling": {
        "learned": {"learned-avg-mimetic": 1, "learned-avg-timm": -1}, "none": {"none-avg-mimetic": 1, "none-avg-timm": -1},
    },
    "With a class token": {
        "sin-cos": {"sincos2d-token-mimetic": 1, "sincos2d-token-timm": -1}, "learned": {"learned-token-mimetic": 1, "learned-token-timm": -1},
        "none": {"none-token-mimetic": 1, "none-token-timm": -1},
    },
    "Against other defaults": {"PyTorch's": {"mimetic": 1, "torch": -1}, "Xavier": {"mimetic": 1, "xavier": -1}},
}  # fmt: skip


def answer(finals: pd.DataFrame) -> str:
    """Chapter 7's answer: the gain, what each half has of it, and what is left without the structure, the signs, the position embedding."""
    if not set(PAIR) <= set(finals["arm"]):
        return f"**Answer.** The runs of this chapter are not in yet. `{COMMAND}` makes them, and this page follows."
    whole = contrast(finals, {"mimetic": 1, "timm": -1})
    if not len(whole):
        return f"**Answer.** No pair of runs is in yet. `{COMMAND}` makes them, and this page follows."
    text = f"**Answer.** After 10 epochs mimetic initialization is {ahead(whole.mean())} timm's default ({len(whole)} pair{'s' * (len(whole) != 1)}). "
    if conclusion := _conclusion(finals, whole):
        return f"{text}{conclusion}Each row of the figure has its interval; the differences between these arms are below, and part of them [made again on another machine](#machines)."
    parts, fewest = [], len(whole)
    for what, arms in ASKED.items():
        said = []
        for name, sums in arms.items():
            values = contrast(finals, sums)
            if len(values):
                fewest = min(fewest, len(values))
                said.append(f"{name} {points(values.mean())}{_word(values)}".strip())
        if said:
            parts.append(f"* {what}: {', '.join(said)}.")
    if not parts:
        return text + "The controls are not in yet."
    few = f"With {fewest} pair{'s' if fewest > 1 else ''} some of these are no claims. " if fewest < ENOUGH else ""
    lines = "\n".join(parts)
    return f"{text}In points, against the same default unless said otherwise:\n\n{lines}\n\n{few}Intervals, and the differences between these arms, are below."


def _conclusion(finals: pd.DataFrame, whole: pd.Series) -> str:
    """What the parts of the whole gain (a difference a pair) come to, a sentence each, as far as the pairs decide them; "" before they are in."""
    asked = {
        "half": {"mimetic-vp": 1, "mimetic-qk": -1}, "size": {"mimetic": 1, "timm-rescaled": -1}, "directions": {"mimetic": 1, "random-directions": -1},
        "torch": {"mimetic": 1, "torch": -1}, "signs": {"both-flipped": 1, "timm": -1}, "qk": {"qk-beta-0": 1, "mimetic": -1}, "vp": {"vp-beta-0": 1, "mimetic": -1},
        "learned": {"learned-avg-mimetic": 1, "learned-avg-timm": -1}, "none": {"none-avg-mimetic": 1, "none-avg-timm": -1},
    }  # fmt: skip
    values = {name: contrast(finals, arms) for name, arms in asked.items()}
    if min(map(len, values.values())) < ENOUGH:
        return ""
    found = {name: pd.Series(summary(v)) for name, v in values.items()}
    says = {name: common.word(row) for name, row in found.items()}
    parts = []
    if says["half"] in ("gains", "loses"):
        first, second = ("values and projection", "queries and keys") if says["half"] == "gains" else ("queries and keys", "values and projection")
        parts.append(f"More of it comes from {first} than from {second}")
    if says["size"] == says["directions"] == "gains":
        low, high = sorted(found[name]["difference"] for name in ("size", "directions"))
        gains = sorted(summary(contrast(finals, {arm: 1, "timm": -1}))["difference"] for arm in ("random-directions", "timm-rescaled"))
        parts.append(f"Attention weights made as large without the pattern gain only {points(gains[0])[1:]} to {points(gains[1])[1:]}; the other {points(low)[1:]} to {points(high)[1:]} points size does not explain")
        if says["torch"] == "gains":
            parts.append(f"Over PyTorch's default, whose weights are larger than timm's outside attention, too, {points(found['torch']['difference'])[1:]} are left")
    lost = {name: says[part] == "loses" for name, part in (("QK's", "qk"), ("V·proj's", "vp"))}
    if any(lost.values()):
        parts.append("; ".join(f"{name} diagonal {'(and with it a part of the size) is worth ' + points(-found[part]['difference'])[1:] + ' of the ' + points(whole.mean())[1:] if lost[name] else 'cannot be told from nothing'}" for name, part in (("V·proj's", "vp"), ("QK's", "qk"))))
    noise = [contrast(finals, {"vp-alpha-0": 1, other: -1}) for other in ("mimetic", "timm")]
    if min(map(len, noise)) >= ENOUGH and [common.word(pd.Series(summary(values))) for values in noise] == ["loses", common.NO_DIFFERENCE]:
        parts.append(f"Without V·proj's noise {points(-noise[0].mean())[1:]} are lost, and what is left cannot be told from nothing")
    if says["signs"] == "loses":
        single = [common.word(pd.Series(summary(values))) for arm in ("qk-minus", "vp-plus") if len(values := contrast(finals, {arm: 1, "timm": -1})) >= ENOUGH]
        parts.append(f"{'With one sign flipped nothing is left that these pairs can show, with both' if single == [common.NO_DIFFERENCE] * 2 else 'With both signs flipped'} there is a loss")
    if not any(says[name] == "gains" for name in ("learned", "none")):
        parts.append("No gain was found where the model, with average pooling, has no sin-cos positions")
    return "".join(f"{part[:1].upper()}{part[1:]}. " for part in parts)


def _word(values: pd.Series) -> str:
    return f" ({common.word(pd.Series(summary(values)))})" if len(values) >= ENOUGH else ""


def trace_sentence(experiment: str = "cifar10-lab10") -> str:
    """Whether V·proj without noise loses for want of noise, or because its factors are then coordinate axes; "" without runs."""
    runs = load_runs(experiment, folder=data_dir() / "replicas")
    values = contrast(runs, {TRACE: 1, "mimetic": -1})
    if len(values) < 2:
        return ""
    row = summary(values)
    says = "So it is the noise that is missed, and not the directions." if row["high"] < 0 else "So it may have been the directions and not the noise."
    return (
        f"Without noise V·proj's factors are coordinate axes, so that arm lacks directions of its own as well. With a trace of it, |α| 0.001, they have some: {points(row['difference'])} points "
        f"against 0.4 ({ACCURACY.span(row['low'], row['high'])}, {len(values)} pairs, all of a CPU, `data/replicas`). {says}"
    )


def smaller_sentence(d: int = 96, k: int = 32) -> str:
    """How much smaller mimetic initialization's products are where one of their constants is 0, in words; d and k: of the laboratory's models."""
    sizes = product_sizes(d, k)
    less = (1 - sizes / sizes["both"]).map(common.percent)
    return (
        f"Every constant at nothing makes its product smaller, too: that of $W_VW_{{proj}}$ by {common.percent(1 - 0.5**0.5)}, $1-1/\\sqrt2$, that of $W_QW_K^\\top$ by {less['no diagonal']} "
        f"without its diagonal and by {less['no noise']} without its noise."
    )


def constants_sentence(finals: pd.DataFrame) -> str:
    """What doubling, halving and leaving out each constant does to the accuracy of mimetic initialization, in short; "" without runs."""
    values = {arm: contrast(finals, {arm: 1, "mimetic": -1}) for arm in STUDIES["constants"].arms[1:]}
    values = {arm: v for arm, v in values.items() if len(v) >= ENOUGH}
    usual = {"qk-alpha": 0.7, "qk-beta": 0.7, "vp-alpha": 0.4, "vp-beta": 0.4}

    def arms(ratio: float) -> dict[str, pd.Series]:
        named = {f"{part}-{ratio * constant:g}": part for part, constant in usual.items()}
        return {named[arm]: v for arm, v in values.items() if arm in named}

    def lost(these: dict[str, pd.Series]) -> str:
        means = [v.mean() for v in these.values()]
        worse, better = (sum(end(summary(v)) for v in these.values()) for end in (lambda row: row["high"] < 0, lambda row: row["low"] > 0))
        return f"a loss in {worse} of {len(these)}{f', a gain in {better}' if better else ''} ({ACCURACY.span(min(means), max(means))} points)"

    parts = [f"{word} a constant: {lost(these)}." for word, ratio in (("Doubling", 2), ("Halving", 0.5)) if (these := arms(ratio))]
    names = {"qk-alpha": "no noise in QK", "vp-alpha": "no noise in V·proj (and axes for directions)", "qk-beta": "no diagonal in QK", "vp-beta": "no diagonal in V·proj"}
    without = arms(0)
    if without:
        parts.append("Left out: " + ", ".join(f"{names[part]} {points(without[part].mean())}{_word(without[part])}" for part in names if part in without) + ".")
    ranks = {arm: v for arm, v in values.items() if arm.startswith("qk-rank")}
    if ranks:
        parts.append(f"A lower rank of QK, {' or '.join(arm.rpartition('-')[2] for arm in ranks)} of 32: {lost(ranks)}.")
    return f"**In short**, against 0.7 and 0.4. {' '.join(parts)} If nothing had an effect, chance alone would still put 0 outside {0.05 * len(values):.1f} of {len(values)} such intervals." if parts else ""


def precision(finals: pd.DataFrame) -> str:
    """Whether bfloat16 changes the answer; what is there of it, before runs of both precisions are."""
    missing = common.missing(STUDIES["precision"], finals, (0, 1, 2), COMMAND)
    if not set(STUDIES["precision"].arms) <= set(finals["arm"]):
        return f"No pair of float32 runs is in yet. {missing}"
    return found("precision", finals)


def made_on(finals: pd.DataFrame, experiment: str = "cifar10-lab10") -> str:
    """Which machines made this chapter's runs, and whether they agree where two did."""
    studies = tuple(study for name, study in STUDIES.items() if study.experiment == experiment and name not in ("size", "data", "deeper"))
    arms = {arm for study in studies for arm in study.arms} | {TRACE, NOISE_ONLY}
    return f"{machines.made_on(finals[finals['arm'].isin(arms)], studies)} {machines.replicas_sentence(experiment, among=arms)}".strip()


# what the gain hangs on: condition -> (the default there, mimetic initialization there)
CONDITIONS = {
    "sin-cos positions, average pooling": PAIR, "learned positions, average pooling": ("learned-avg-timm", "learned-avg-mimetic"),
    "no positions, average pooling": ("none-avg-timm", "none-avg-mimetic"), "sin-cos positions, class token": ("sincos2d-token-timm", "sincos2d-token-mimetic"),
    "learned positions, class token": ("learned-token-timm", "learned-token-mimetic"), "no positions, class token": ("none-token-timm", "none-token-mimetic"),
    "as in the first row, over PyTorch's default": ("torch", "mimetic"), "as in the first row, 0.4 for QK and 0.7 for V·proj, as in some public code": ("timm", "swapped"),
}  # fmt: skip


def _gains_by_condition(finals: pd.DataFrame) -> dict[str, pd.Series]:
    """Condition -> the gain of every pair; {} while a condition has too few of them."""
    gains = {name: contrast(finals, {arm: 1, reference: -1}) for name, (reference, arm) in CONDITIONS.items()}
    return gains if min(map(len, gains.values())) >= ENOUGH else {}


def _made_with(finals: pd.DataFrame, gains: dict[str, pd.Series]) -> str:
    arms = {arm for pair in CONDITIONS.values() for arm in pair}
    devices = " and ".join(sorted(finals.loc[finals["arm"].isin(arms), "device.name"].unique()))
    return f"{min(map(len, gains.values()))} pairs each, on {devices}"


def without_position(finals: pd.DataFrame) -> str:
    """Whether there is a gain without any position, against what we expected, in a sentence; else ""."""
    values = contrast(finals, {"none-token-mimetic": 1, "none-token-timm": -1})
    if len(values) < ENOUGH or side(values) <= 0:
        return ""
    return f"With a class token there is a gain without any position, {common.measured(values)}, against our expectation: position makes the gain larger, but there it is not all of it."


def conditions(finals: pd.DataFrame) -> str:
    """What the gain hangs on, in points only, as Markdown: a table of positions and pooling, and the other defaults and constants; "" without runs."""
    gains = _gains_by_condition(finals)
    if not gains:
        return ""
    own, learned, none, *token, torch, swapped = (common.with_interval(values) for values in gains.values())
    kinds = ("sin-cos", "learned", "none")
    table = common.markdown(pd.DataFrame({"positions": kinds, "average pooling": (own, learned, none), "class token": token}))
    return (
        f"The gain depends on what it is combined with; in points after ten epochs ({_made_with(finals, gains)}; in brackets the 95 % interval):\n\n{table}\n\n"
        f"In the first cell's model, over PyTorch's default it is {torch}; with the constants of the two products exchanged, as some public code has them, {swapped}."
    )


def conditions_table(finals: pd.DataFrame) -> str:
    """The same as a Markdown table with the accuracies themselves; "" without runs."""
    gains, rows = _gains_by_condition(finals), []
    for name, values in gains.items():
        reference, arm = (finals[finals["arm"] == arm].set_index("seed").loc[values.index, ACCURACY.column].mean() for arm in CONDITIONS[name])
        rows.append((name, f"{100 * reference:.1f}", f"{100 * arm:.1f}", common.with_interval(values)))
    if not rows:
        return ""
    table = common.markdown(pd.DataFrame(rows, columns=["after ten epochs", "default (%)", "mimetic (%)", "gain (points)"]))
    return f"The gain depends on what it is combined with, and on the default ({_made_with(finals, gains)}; in brackets the 95 % interval of the gain):\n\n{table}"


def learned_position(finals: pd.DataFrame) -> str:
    """What mimetic initialization gains with a learned position embedding, which GPTs have, and with a sin-cos one, in words; "" without runs."""
    said = []
    for name, prefixes in {"a learned position embedding": ("learned-avg-", "learned-token-"), "a sin-cos one": ("", "sincos2d-token-")}.items():
        values = [contrast(finals, {f"{prefix}mimetic": 1, f"{prefix}timm": -1}) for prefix in prefixes]
        if min(map(len, values)) < ENOUGH:
            return ""
        average, token = (f"{points(v.mean())} points ({ACCURACY.span(*mean_interval(v))}, {len(v)} pairs)" for v in values)
        said.append(f"with {name} {average} under average pooling and {token} with a class token")
    return f"on CIFAR-10 mimetic initialization changes the accuracy {said[0]}, {said[1]}"
