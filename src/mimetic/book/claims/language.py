"""What this book tests of language models (chapters 10 and 11)."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from mimetic.book import gains, positions, share
from mimetic.book.claims.verdicts import (
    DETAILS,
    GUESS,
    HOLDS,
    NOT,
    OPEN,
    OURS,
    PAPER,
    PART,
    UNDECIDED,
    Judgement,
    against,
    joined,
    judged,
)
from mimetic.book.common import IN_PERCENT, comparisons_of, plural
from mimetic.book.language import text_of
from mimetic.book.vision import ALL_SEEDS
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.language import METRIC as BITS
from mimetic.experiments.programmes import language as programme
from mimetic.experiments.programmes.study import Study
from mimetic.experiments.programmes.vision import CENTRAL_SEEDS, gain, pair
from mimetic.statistics import ENOUGH, contrast, side
from mimetic.training.records import load_runs

TEXT = "Language"
CORPORA = (programme.CENTRAL, programme.WIKITEXT2)
COMPARED = "The ViT has sin-cos positions, the GPTs learned ones."
FIXED = (programme.POSITIONS, programme.POSITIONS_WIKITEXT2)
STARTED = (programme.FROM_SINCOS, programme.FROM_SINCOS_WIKITEXT2)


def _relative(row: pd.Series) -> str:
    """A point's relative gain in words (a row of gains.gain_points)."""
    pairs = plural(row["pairs"], "pair")
    return f"{IN_PERCENT.signed(row['gain'])} % ({IN_PERCENT.span(row['low'], row['high'])}, {pairs})"


def _language_gains_less() -> Judgement:
    points = gains.gain_points()
    ours = points[points["signs"] == gains.PUBLISHED]
    rows = {name: part.iloc[0] for name, part in ours[ours["point"] == ours["experiment"]].groupby("experiment")}
    planned = {"cifar10-lab30": len(CENTRAL_SEEDS)} | {study.experiment: _seeds(study) for study in CORPORA}
    if not set(planned) <= set(rows):
        return OPEN, "no pair yet"
    vision, *texts = (rows[name] for name in planned)
    names = {study.experiment: text_of(study) for study in (*CORPORA, *FIXED)}
    said = [f"{names[row['experiment']]} {_relative(row)}" for row in texts]
    found = "; ".join((f"relative gain on CIFAR-10 {_relative(vision)}", *said))
    if any(rows[name]["pairs"] < pairs for name, pairs in planned.items()):
        return OPEN, found
    # relative gains of two metrics are not one unit, but a gain and a loss differ in any
    losses = sum(row["high"] <= 0 for row in texts)
    if vision["low"] <= 0 or not losses:
        return UNDECIDED, found
    verdict, found = HOLDS if losses == len(texts) else PART, f"{found} (below 0: a loss){DETAILS}{COMPARED}"
    fixed = ours[ours["experiment"].isin([study.experiment for study in FIXED])]
    said = [f"{names[row['experiment']]} {_relative(row)}" for _, row in fixed.iterrows() if row["pairs"] >= ENOUGH]
    found += f"{DETAILS}GPTs with fixed sin-cos ones: {'; '.join(said)}." if said else ""
    finals = load_runs("cifar10-lab10")
    same = contrast(finals, gain("learned-avg"))
    if len(same) >= len(ALL_SEEDS):  # the GPTs' positions are learned, the ViT's that gains are not
        same = same / finals[finals["arm"] == pair("learned-avg")[0]].set_index("seed")["test_accuracy"]
        changed = judged(same, IN_PERCENT, len(ALL_SEEDS), unit="%")[1]
        found += f"{DETAILS}CIFAR-10 with learned ones (10 epochs): {changed}"
        if side(same) <= 0:
            return PART, f"{found}: with those no gain is seen in vision, either."
    if (fixed["low"] > 0).any():
        return PART, found
    return verdict, found


def _seeds(study: Study) -> int:
    """How many pairs of a study of GPTs are planned."""
    return len(programme.SEEDS[study.name])


def _gpt(study: Study, arm: str = "vision", reference: str = "gpt2") -> Judgement:
    """Whether an arm gains in a study of GPTs."""
    return against(study.experiment, arm, reference, _seeds(study))


def _texts(arm: str, studies: tuple[Study, ...], longer: Study) -> Judgement:
    """Whether an arm gains on both texts, and what it does in longer runs."""
    verdict, found = joined({text_of(study): _gpt(study, arm) for study in studies})
    steps = EXPERIMENTS[longer.experiment].epochs * EXPERIMENTS[longer.experiment].steps_per_epoch
    return verdict, f"{found}{DETAILS}After {steps:,} steps, {text_of(studies[0])}: {_gpt(longer, arm)[1]}."


HALVES = {"V·proj alone": "vp-minus", "QK alone": "qk"}


def _over(study: Study, references: Mapping[str, str]) -> Judgement:
    """Whether vision's signs gain more than each of these arms."""
    return joined({f"over {name}": _gpt(study, reference=arm) for name, arm in references.items()})


def _gains_less(study: Study, changed: str) -> Judgement:
    """Whether vision's signs gain less with positions that were changed in this way."""
    verdict, found = judged(positions.changes("vision", study, FIXED[0]), BITS, _seeds(study), expected=-1)
    return verdict, f"{found} ({changed} minus their own){DETAILS}Against the default: {_gpt(study)[1]}."


def _compared(study: Study) -> dict[str, Judgement]:
    """The comparisons of a study, by label."""
    return {label: _gpt(study, arm, reference) for label, (reference, arm) in comparisons_of(study).items()}


def _started() -> Judgement:
    """Whether vision's signs gain on both texts with learned positions that start from sines and cosines; on the second
    over the default at either of two rates."""
    texts = {text_of(study): _compared(study) for study in STARTED}
    return joined({f"{t}{k.removeprefix('vision signs')}": v for t, found in texts.items() for k, v in found.items()})


def _beyond_learned() -> Judgement:
    return joined(
        {
            text_of(own): judged(positions.over_own_start("vision", fixed), BITS, _seeds(fixed))
            for fixed, own in zip(FIXED, CORPORA)
        }
    )


def _share_guess() -> Judgement:
    points = gains.gain_points()
    points = points[(points["experiment"] == "share") & (points["signs"] == gains.PUBLISHED)]
    there, wanted = int((points["pairs"] >= gains.FEW).sum()), len(programme.SHARES)
    if there < wanted:
        return OPEN, f"{there} of {wanted} points of the sweep are in"
    found = share.correlated(share.held_fixed(points))
    _, low, high, _ = found
    if not share.mostly_gains(share.held_fixed(points)):
        return UNDECIDED, f"no gain at most points that could follow the share ({share.correlation_words(*found)})"
    return HOLDS if low > 0 else NOT if high < 0 else UNDECIDED, share.correlation_words(*found)


def _share_fixed() -> Judgement:
    """The same where there is a gain: whether it rises along each of the two things that change the share."""
    study = programme.SHARE_FIXED
    found = share.slopes_by_seed(gains.gain_points(), study.experiment)
    return joined(
        {
            f"along {along}": judged(slopes, share.POINTS, _seeds(study), unit="percentage points a doubling")
            for along, slopes in found.items()
        }
    )


CLAIMS = {
    (TEXT, PAPER, "10b_positions"): {"Language models gain less than vision models": _language_gains_less},
    (TEXT, PAPER, "10_gpt"): {
        "A GPT gains, too (here: learned positions, 1,200 steps)": lambda: _texts("vision", CORPORA, programme.LONG)
    },
    (TEXT, OURS, "10_gpt"): {
        "With both signs + (`mimetic.LANGUAGE`) a GPT gains (learned positions, 1,200 steps)": lambda: _texts(
            "language", CORPORA, programme.LONG
        )
    },
    (TEXT, OURS, "10b_positions"): {
        "With fixed sin-cos positions a GPT gains with vision's signs (1,200 steps)": lambda: _texts(
            "vision", FIXED, programme.POSITIONS_LONG
        ),
        "With learned positions that start from sin-cos it gains, too (1,200 steps)": _started,
        "With these it still gains after 6,000 steps (tiny Shakespeare)": lambda: joined(
            _compared(programme.FROM_SINCOS_LONG)
        ),
        "With fixed positions it gains more than from the size of the weights or their singular values"
        " (tiny Shakespeare)": lambda: _over(FIXED[0], programme.SIZES),
        "With fixed positions either half gains by itself (this row and those below: tiny Shakespeare)": lambda: joined(
            {name: _gpt(FIXED[0], arm) for name, arm in HALVES.items()}
        ),
        "With fixed positions both halves together gain more than either alone": lambda: _over(FIXED[0], HALVES),
        "A GPT gains less with fixed positions in a random order (so it matters that neighbours are alike)": lambda: (
            _gains_less(programme.SHUFFLED, "in a random order")
        ),
        "In a random order it gains more than from the size of the weights or their singular values": lambda: _over(
            programme.SHUFFLED, programme.SIZES
        ),
        "A GPT gains less with fixed positions without their mean (so what they share matters)": lambda: _gains_less(
            programme.CENTRED, "without their mean"
        ),
        "With learned positions it gains if tokens and positions are multiplied by √d (so size matters)": lambda: _gpt(
            programme.SCALED
        ),
        "A GPT gains less with learned positions that start from sin-cos (so fixedness matters)": lambda: _gains_less(
            programme.FROM_SINCOS, "learned from there"
        ),
        "A GPT gains less with learned positions that start from noise as large (so size is not all)": lambda: (
            _gains_less(programme.FROM_NOISE, "starting from noise")
        ),
        "With rotary positions a GPT gains with vision's signs (1,200 steps)": lambda: _gpt(programme.ROTARY),
        "With fixed positions and vision's signs it beats GPT-2's own start with learned ones (both texts)": (
            _beyond_learned
        ),
    },
    (TEXT, GUESS, "11_share"): {
        "The gain follows attention's share of the parameters (here: learned positions)": _share_guess
    },
    (TEXT, OURS, "11_share"): {"With fixed sin-cos positions, where a GPT gains, it follows the share": _share_fixed},
}
