"""What this book tests of vision models (chapters 5 to 8)."""

from __future__ import annotations

import pandas as pd

from mimetic.book import common, gpu
from mimetic.book.claims.verdicts import (
    COURSE,
    DETAILS,
    HOLDS,
    NOT,
    OPEN,
    OURS,
    PAPER,
    REVIEW,
    UNDECIDED,
    Judgement,
    against,
    joined,
    judged,
)
from mimetic.book.common import measured, with_interval
from mimetic.book.growth import before_and_after_the_look, better_rates, gain_panels, half_costs, panel_arms
from mimetic.book.head_start import on_the_way, on_the_way_sentence, steps_saved
from mimetic.book.vision import ALL_SEEDS
from mimetic.experiments.metrics import ACCURACY, Metric
from mimetic.experiments.programmes.vision import CENTRAL_SEEDS, DEEPER_SEEDS, NOISE_ONLY, PAPER_SEEDS, gain, pair
from mimetic.statistics import ENOUGH, contrast, difference, rests_on, side, slopes_per_doubling
from mimetic.training.records import load_runs

VISION, WHY = "Training, vision", "What makes the difference (vision, 10 epochs)"
PAPER_PAIRS, DEEPER_PAIRS = len(PAPER_SEEDS), len(ALL_SEEDS) + len(DEEPER_SEEDS)


def _lab(arm: str, reference: str = "timm", expected: int = 1) -> Judgement:
    return against("cifar10-lab10", arm, reference, len(ALL_SEEDS), expected=expected)


def _gains(prefix: str) -> Judgement:
    """Whether mimetic initialization gains in the setting that this prefix names."""
    reference, arm = pair(prefix)
    return _lab(arm, reference)


def _untransposed() -> Judgement:
    verdict, found = _lab("untransposed", "mimetic", -1)
    return verdict, f"untransposed minus formula: {found}"


def _sooner() -> Judgement:
    finals, curves = (load_runs("cifar10-lab30", curves=curves) for curves in (False, True))
    sooner = steps_saved(finals, curves)["earlier by"].astype(float)
    percent, unit = Metric("", "", scale=100, digits=0), "% of the run earlier than the default's own curve"
    verdict, found = judged(sooner, percent, len(CENTRAL_SEEDS), unit=unit)
    if not (marks := on_the_way(curves)):
        return verdict, found
    found += f"{DETAILS}Lower accuracies are passed {on_the_way_sentence(marks)}."
    if max(earlier.mean() for earlier in marks.values()) < sooner.mean():
        found += " The lead in time is largest at the end, where the curves are flat."
    return verdict, found


def _trend(titles: tuple[str, ...], expected: int) -> Judgement:
    _, dots, _ = gain_panels(load_runs("cifar10-lab10"))
    parts = {}
    for title in titles:
        there, wanted = dots[title]["x"].nunique() if title in dots else 0, len(panel_arms(title))
        slopes = slopes_per_doubling(dots[title]) if there == wanted else pd.Series(dtype=float)
        ready = judged(slopes, ACCURACY, len(ALL_SEEDS), expected=expected, unit="points a doubling")
        if there == wanted and ready[0] != OPEN and (without := rests_on(dots[title])):
            alone = " or ".join(f"without {x:,.0f} {with_interval(v)}" for x, v in without.items())
            ready = UNDECIDED, f"{ready[1]}, but {alone}"
        parts[title] = ready if there == wanted else (OPEN, f"{there} of {wanted} sizes have a pair")
    return joined(parts)


def _pattern() -> Judgement:
    if load_runs("cifar10-lab10").empty:  # that arm stands beside the others of its machine, in data/replicas
        return OPEN, "no pair yet"
    values = difference(common.replicas("cifar10-lab10"), "mimetic", NOISE_ONLY)
    return judged(values, ACCURACY, len(ALL_SEEDS))


def _less_than_fixed(kind: str) -> Judgement:
    """Whether mimetic initialization gains less with positions of another kind than with fixed sin-cos ones."""
    there = contrast(load_runs("cifar10-lab10"), gain(f"{kind}-avg"))
    fixed = contrast(common.replicas("cifar10-lab10"), gain("base"))  # of the machine that made those
    verdict, found = judged((fixed - there).dropna(), ACCURACY, len(ALL_SEEDS), unit="points less")
    if len(there):
        found = f"{found}{DETAILS}With these positions: {_gains(f'{kind}-avg')[1]}"
    return verdict, found


def _deep() -> Judgement:
    verdict, found = _gains("depth12")
    again = contrast(common.replicas("cifar10-lab10"), gain("depth12"))
    if len(again) and verdict != OPEN:
        found += f"{DETAILS}The same pairs on a CPU: {measured(again)}."
    return verdict, found


def _deep_better() -> Judgement:
    values, words = better_rates(load_runs("cifar10-lab10"))
    verdict, found = judged(values, ACCURACY, DEEPER_PAIRS)
    return verdict, f"{found} ({words})" if words else found


def _deep_half() -> Judgement:
    finals = load_runs("cifar10-lab10")
    reference, arm = pair("depth12-half")
    verdict, found = against("cifar10-lab10", arm, reference, DEEPER_PAIRS)
    if not len(finals):
        return verdict, found
    values, cost = contrast(finals, gain("depth12-half")), half_costs(finals)[0]
    first, added = before_and_after_the_look(values)
    if len(first) >= ENOUGH and len(added) >= ENOUGH:
        found += (
            f"{DETAILS}The first {len(first)}: {measured(first)}. Five more were added when those had been seen:"
            f" {measured(added)}. The p of all does not count that look."
        )
    if len(cost) >= ENOUGH and side(cost) < 0:
        found += f" Half the rate costs the default {100 * -cost.mean():.1f} points."
    return verdict, found


def _full_size() -> Judgement:
    verdict, found = against("cifar10-paper", "mimetic", "timm", PAPER_PAIRS, least=0.05)
    return verdict, f"{found}{DETAILS}ViT-Tiny, all images, 100 epochs, our recipe; “5 %” is read as points."


def _imagenet() -> Judgement:
    least, *_, most = sorted(2 * gpu.imagenet_hours("ViT-Tiny", share) for share in (*gpu.reached(), 0.2, 0.4))
    return OPEN, f"not run{DETAILS}One pair of runs of ViT-Tiny is {least:.0f} to {most:.0f} GPU hours of arithmetic."


def _other_positions() -> Judgement:
    prefixes = {
        f"{kind}, {pooling}": f"{kind}-{short}"
        for pooling, short in (("average pooling", "avg"), ("class token", "token"))
        for kind in ("learned", "none")
    }
    parts = {name: _gains(prefix) for name, prefix in prefixes.items()}
    verdict, found = joined(parts)
    words = [word for word, _ in parts.values()]
    if {HOLDS, NOT} <= set(words):
        found = f"a gain in {words.count(HOLDS)} of {len(words)}, a loss in {words.count(NOT)}{DETAILS}{found}"
    replicas = common.replicas("cifar10-lab10")
    again = {name: contrast(replicas, gain(prefix)) for name, prefix in prefixes.items()}
    if verdict != OPEN and (once_more := [f"{name} {measured(v)}" for name, v in again.items() if len(v) >= ENOUGH]):
        found += f"{DETAILS}The same pairs on a CPU: {'; '.join(once_more)}."
    return verdict, found


CLAIMS = {
    (VISION, PAPER, "06_cifar_claim"): {
        "A small ViT ends with a higher accuracy on CIFAR-10 (here: 10,000 images, 30 epochs)": lambda: against(
            "cifar10-lab30", "mimetic", "timm", len(CENTRAL_SEEDS)
        ),
        "It also passes the default's final accuracy earlier, in the same schedule": _sooner,
    },
    (VISION, PAPER, "05b_gpu"): {
        "At full size the gain on CIFAR-10 is over 5 %": _full_size,
        "There is a gain on CIFAR-100, too": lambda: against("cifar100-paper", "mimetic", "timm", PAPER_PAIRS),
        "There is a gain on SVHN and Tiny ImageNet, too": lambda: (
            OPEN,
            f"not run{DETAILS}Neither data set is prepared here.",
        ),
    },
    (VISION, PAPER, "05c_imagenet"): {"On ImageNet the gain is over 4 %": _imagenet},
    (VISION, REVIEW, "08_size_and_data"): {"The gain grows with the model": lambda: _trend(("width", "depth"), 1)},
    (VISION, OURS, "08_size_and_data"): {
        "It is there at twelve layers, too (at the learning rate chosen for six)": _deep,
        "It is there at twelve layers and half that rate": _deep_half,
        "It is there at twelve layers with each arm at the better of the two rates": _deep_better,
    },
    (VISION, COURSE, "08_size_and_data"): {"The gain grows when images are few": lambda: _trend(("data",), -1)},
    (WHY, OURS, "07_why"): {
        "Queries and keys alone gain": lambda: _lab("mimetic-qk"),
        "Values and projection alone gain": lambda: _lab("mimetic-vp"),
        "It is more than the size of the weights": lambda: _lab("mimetic", "timm-rescaled"),
        "It is more than the singular values": lambda: _lab("mimetic", "random-directions"),
        "The two diagonals are part of it: the noise alone gains less": _pattern,
        "V·proj's diagonal is part of it (without it the product is smaller, too)": lambda: _lab(
            "mimetic", "vp-beta-0"
        ),
        "QK's diagonal is part of it": lambda: _lab("mimetic", "qk-beta-0"),
        "It is there over PyTorch's default, too": lambda: _lab("mimetic", "torch"),
        "It is there without sin-cos positions, too": _other_positions,
        "It is smaller with sin-cos positions in a random order (so it matters that neighbours are alike)": lambda: (
            _less_than_fixed("shuffled")
        ),
        "It is smaller with learned positions that start from sin-cos (so fixedness matters)": lambda: _less_than_fixed(
            "from-sincos"
        ),
        "It is smaller with learned positions that start from noise as large (so size is not all)": lambda: (
            _less_than_fixed("from-noise")
        ),
        "It is smaller with fixed noise as large for positions (so size and fixedness are not all)": lambda: (
            _less_than_fixed("noise")
        ),
        "It is there with a class token and learned positions that start from sin-cos, too": lambda: _gains(
            "from-sincos-token"
        ),
        "With both signs flipped it is worse than the default": lambda: _lab("both-flipped", expected=-1),
        "V·proj stored untransposed, as in public code, is worse than the formula": _untransposed,
    },
}
