"""What this book tests of recommenders (chapters 12 and 12b)."""

from __future__ import annotations

from mimetic.audit import EXPLAINED, MEANINGFUL
from mimetic.audit.report import sign, sign_words
from mimetic.book import first_question, questions, recommenders
from mimetic.book.claims.verdicts import ASKED, DETAILS, OPEN, OURS, Judgement, against, counted, joined, judged
from mimetic.book.common import SHORT, measured, percent
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.programmes import recommenders as programme
from mimetic.experiments.runs import family
from mimetic.statistics import crossed_interval, difference
from mimetic.training.records import load_runs

ITEMS = "Recommenders"
NAMES = {"ml100k": "MovieLens", "beauty": "Beauty"}
FIXED = "-sincos"  # what the experiments with fixed positions end with
SIBLING_PAIRS = len(programme.FIRST_SEEDS) + len(programme.MORE_SEEDS)


def _worth_imitating() -> Judgement:
    parts = {}
    for data, title in NAMES.items():
        products = first_question.trained(data)
        seeds, planned = products["seed"].nunique(), len(programme.SEEDS[data])
        found = "no run yet"
        if seeds:
            whole = (sign(products.loc[products["product"] == product, "sigmas"]) for product in ("qk", "vp"))
            of = f" of {planned}" if seeds < planned else ""
            found = f"{first_question.signs_in_words(products)} ({seeds}{of} seeds; over all layers, as `audit` asks,"
            found += f" {sign_words(*whole)})"
        verdict = counted(first_question.layer_signs(products)["sign"] != "none") if seeds >= planned else OPEN
        parts[title] = verdict, found
    return joined(parts)


def _imitable() -> Judgement:
    ours, parts = questions.explained_table(), {}
    names = {run: name for name, run in questions.OURS.items()}
    for data, title in NAMES.items():
        part = ours[ours["model"] == names[data, programme.DEFAULT]]
        carried = [f"{percent(row['explained'], 2)} of {SHORT[row['product']]}" for _, row in part.iterrows()]
        found = f"the identity carries {' and '.join(carried)}" if carried else "no run yet"
        parts[title] = counted(part["explained"] >= EXPLAINED), found
    verdict, found = joined(parts)
    return (
        verdict,
        f"{found} (of the energy; our mark is {percent(EXPLAINED)}){DETAILS}{questions.beside(ours).strip()}",
    )


def _meaningful_share() -> Judgement:
    marks = questions.share_marks()
    found = "; ".join(f"{percent(value, 1)} with {n:,} items" for n, value in marks.values())
    return counted(value >= MEANINGFUL for _, value in marks.values()), found


def _fixed_vision() -> Judgement:
    """With what comes of it at three times the rate, where that was run."""
    verdict, found = _both(programme.VISION, suffix=FIXED)
    own, there = load_runs("ml100k-sincos"), load_runs("ml100k-sincos-rate")
    metric = family(EXPERIMENTS["ml100k"]).METRIC
    both = difference(there, programme.VISION, programme.DEFAULT, metric.column)
    crossed = difference(own, programme.VISION, programme.DEFAULT, metric.column, there)
    if verdict != OPEN and len(both) > 1:
        found += (
            f"{DETAILS}MovieLens, both arms at three times the rate: {measured(both, metric)}."
            f"{DETAILS}Against the default at that rate: {measured(crossed, metric)}."
        )
    return verdict, found


def _started_items(kind: str) -> Judgement:
    """Whether opposite signs are behind the default and behind vision's with learned positions that start large."""
    pairs, references = len(programme.FIXED_SEEDS), {"the default": programme.DEFAULT, "vision's": programme.VISION}
    return joined(
        {
            f"minus {name}": against(f"ml100k-{kind}", programme.OPPOSITE, arm, pairs, expected=-1)
            for name, arm in references.items()
        }
    )


def _both(arm: str, reference: str = programme.DEFAULT, suffix: str = "", expected: int = 1) -> Judgement:
    """Whether an arm is ahead (or, expected=-1, behind) on both data sets; suffix: of the experiments, after the data
    set's name."""
    parts = {}
    for data, title in NAMES.items():
        planned = len(programme.FIXED_SEEDS if suffix == FIXED else programme.SEEDS[data])
        parts[title] = against(data + suffix, arm, reference, planned, expected=expected)
    return joined(parts)


def _vision_signs() -> Judgement:
    verdict, found = _both(programme.VISION)
    _, there = _both(programme.VISION, suffix="-rate")
    crossed, own = {}, []
    for data, title in NAMES.items():
        metric, runs, other = family(EXPERIMENTS[data]).METRIC, load_runs(data), load_runs(f"{data}-rate")
        values = difference(runs, programme.VISION, programme.DEFAULT, metric.column, other)
        crossed[title] = judged(values, metric, len(programme.SEEDS[data]))
        changed = difference(other, programme.DEFAULT, programme.DEFAULT, metric.column, runs)
        own += [metric.signed(changed.mean())] if len(changed) else []
    itself = f" (which changes the default itself by {' and '.join(own)})" if own else ""
    found = (
        f"{found}{DETAILS}Both arms at three times the rate: {there}."
        f"{DETAILS}Against the default at that rate{itself}: {joined(crossed)[1]}."
    )
    return verdict, found


def _sibling(reference: str, arm: str = programme.OPPOSITE, expected: int = 1) -> Judgement:
    prefix = programme.SIBLING_PREFIX
    verdict, found = against("ml100k", prefix + arm, prefix + reference, SIBLING_PAIRS, expected=expected)
    users = recommenders.user_differences("ml100k", prefix + arm, prefix + reference)
    found += f", over seeds and users {recommenders.interval(*crossed_interval(users))}" if len(users) > 1 else ""
    prefix = programme.LONG_SIBLING_PREFIX
    later = against("ml100k", prefix + arm, prefix + reference, len(programme.FIRST_SEEDS))[1]
    return verdict, f"{found}{DETAILS}After {EXPERIMENTS['ml100k'].epochs} epochs: {later}."


CONTROLS = {"over the default at that size": programme.RESCALED, "over random directions": programme.RANDOM}


def _sibling_structure() -> Judgement:
    prefix = programme.SIBLING_PREFIX
    opposite = prefix + programme.OPPOSITE
    return joined({k: against("ml100k", opposite, prefix + v, SIBLING_PAIRS) for k, v in CONTROLS.items()})


def _item_structure() -> Judgement:
    return joined(
        {
            f"{title}, {name}": against(data, programme.VISION, control, len(programme.SEEDS[data]))
            for data, title in NAMES.items()
            for name, control in CONTROLS.items()
        }
    )


CLAIMS = {
    (ITEMS, ASKED, "12_recommenders"): {
        "A trained BERT4Rec has layers worth imitating": _worth_imitating,
        "An initialization can imitate these layers": _imitable,
        "These layers are a meaningful share of its parameters": _meaningful_share,
    },
    (ITEMS, OURS, "12_recommenders"): {
        "BERT4Rec gains with vision's signs"
        " (this row and those below: learning rate 0.001, the users' last items)": _vision_signs,
        "BERT4Rec gains more than from the size of the weights or their singular values": _item_structure,
        "BERT4Rec gains with the opposite signs": lambda: _both(programme.OPPOSITE),
        "BERT4Rec gains more with the opposite signs than with vision's": lambda: _both(
            programme.OPPOSITE, programme.VISION
        ),
    },
    (ITEMS, OURS, "12b_qualified"): {
        "With fixed sin-cos positions BERT4Rec gains with vision's signs": _fixed_vision,
        "With fixed positions it gains more than from the size of the weights or their singular values": lambda: joined(
            {name: _both(programme.VISION, control, FIXED) for name, control in CONTROLS.items()}
        ),
        "With fixed positions and the opposite signs it loses": lambda: _both(
            programme.OPPOSITE, suffix=FIXED, expected=-1
        ),
        "With learned positions that start from sin-cos these signs lose on MovieLens, also to vision's": lambda: (
            _started_items("from-sincos")
        ),
        "With learned positions that start from noise as large"
        " these signs lose on MovieLens, also to vision's": lambda: _started_items("from-noise"),
        "A causal next-item BERT4Rec (MovieLens, 20 epochs) gains with the opposite signs, which its training finds"
        " (QK − in layer 1, V·proj +)": lambda: _sibling(programme.DEFAULT),
        "With vision's signs that sibling loses": lambda: _sibling(programme.DEFAULT, programme.VISION, -1),
        "The sibling gains more than from the size of the weights or their singular values": _sibling_structure,
        "The sibling gains more with the opposite signs than with vision's": lambda: _sibling(programme.VISION),
    },
}
