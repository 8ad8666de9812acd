"""Every claim about mimetic initialization that this book tests: whose it is, what was found, and a verdict (chapter
13).

A verdict is a word that follows from an interval (judged) or from what was counted (counted); before all planned pairs
are in it is "open".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import pandas as pd

from mimetic.audit import CHANCE, CLEAR, EXPLAINED, MEANINGFUL
from mimetic.audit.report import sign
from mimetic.data.fetch import data_dir
from mimetic.experiments import pattern
from mimetic.experiments.answers import gpu, positions, questions, recommenders, share
from mimetic.experiments.answers.common import between_runs, measured, percent, with_interval
from mimetic.experiments.answers.growth import (
    before_and_after_the_look,
    better_rates,
    gain_panels,
    half_costs,
    panel_arms,
)
from mimetic.experiments.answers.vision import ALL_SEEDS, on_the_way, on_the_way_sentence, steps_saved
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.construction import constants_table
from mimetic.experiments.language import METRIC as BITS
from mimetic.experiments.metrics import ACCURACY, Metric
from mimetic.experiments.programmes import language as language_programme
from mimetic.experiments.programmes import recommenders as recommender_programme
from mimetic.experiments.programmes.study import Study
from mimetic.experiments.programmes.vision import CENTRAL_SEEDS, DEEPER_SEEDS, NOISE_ONLY, PAPER_SEEDS
from mimetic.experiments.runs import family
from mimetic.statistics import (
    ENOUGH,
    contrast,
    crossed_interval,
    rests_on,
    side,
    slopes_per_doubling,
    summary,
)
from mimetic.training.records import load_runs

HOLDS, PART, NOT, UNDECIDED, OPEN = "holds here", "holds in part", "does not hold here", "undecided", "open"
MEANING = {  # verdict: (what it means, how it is counted of one claim, of several)
    HOLDS: (
        "all planned pairs are in, and the 95 % interval of their mean lies on the side that the claim says",
        "holds here",
        "hold here",
    ),
    PART: (
        (
            "of a claim with several parts some hold, whatever the others say, which the row tells; or there is a gain,"
            " which is or may be smaller than the claim says"
        ),
        "holds in part",
        "hold in part",
    ),
    NOT: (
        (
            "all planned pairs are in, and the interval leaves out what the claim says; of a claim with several parts,"
            " of one at least, and no part holds"
        ),
        "does not hold here",
        "do not hold here",
    ),
    UNDECIDED: (
        (
            "all planned pairs are in, and the interval has both sides in it (of a trend over several sizes: with all"
            " of them, or without one)"
        ),
        "is undecided",
        "are undecided",
    ),
    OPEN: ("not run, or fewer pairs than planned so far", "is open", "are open"),
}
PAPER, REVIEW, ASKED, GUESS, COURSE, OURS = (
    "the paper",
    "a review of it",
    "asked by that review",
    "its authors, as that review reports",
    "a course project",
    "our question",
)
Judgement = tuple[str, str]  # verdict, and what was found


@dataclass(frozen=True)
class Claim:
    """One row of the report."""

    part: str
    says: str
    whose: str
    page: str  # the chapter's file in book/
    judge: Callable[[], Judgement]


def judged(
    values: pd.Series, metric: Metric, planned: int, *, expected: int = 1, least: float = 0.0, unit: str = ""
) -> Judgement:
    """The verdict on paired values and the values in words: mean, 95 % interval, number of pairs.

    Args:
        values: one number a seed, in the metric's stored unit.
        planned: pairs; with fewer nothing is decided, so that no verdict depends on when one looks.
        expected: 1 if the claim says that the metric gets better, -1 worse.
        least: the gain that the claim says, in the stored unit.
        unit: instead of the metric's own.
    """
    if not len(values):
        return OPEN, "no pair yet"
    row, n = summary(values), len(values)
    unit = unit or (metric.difference or metric.name) + (", fewer are better" if metric.lower_is_better else "")
    found = f"{metric.signed(row['difference'])} {unit}".strip()
    if n < planned:
        return OPEN, found + (
            f" ({metric.span(row['low'], row['high'])}, {n} pairs of {planned})"
            if n > 1
            else f", one pair of {planned}"
        )
    found += f" ({metric.span(row['low'], row['high'])}, {n} pairs, p {row['p']:.3f})" if n > 1 else ", one pair"
    # towards what the claim says is up
    low, high = sorted(expected * (-end if metric.lower_is_better else end) for end in (row["low"], row["high"]))
    if high < least:
        return PART if low > 0 else NOT, found
    return HOLDS if low > least else PART if low > 0 else UNDECIDED, found


def joined(parts: dict[str, Judgement]) -> Judgement:
    """One verdict on a claim that was tested in several ways: theirs if they agree, open while one is, that it does not
    hold if one does not and no other does."""
    words = {verdict for verdict, _ in parts.values()}
    if len(words) == 1:
        verdict = words.pop()
    else:
        verdict = OPEN if OPEN in words else PART if words & {HOLDS, PART} else NOT
    return verdict, "; ".join(f"{name}: {found}" for name, (_, found) in parts.items())


def counted(cells: Iterable[bool]) -> str:
    """The verdict on something that is there or not in each of several models and products."""
    cells = list(cells)
    return OPEN if not cells else HOLDS if all(cells) else PART if any(cells) else NOT


# --- the claims ------------------------------------------------------------------------------------------------------


def _sides(products: pd.DataFrame) -> pd.DataFrame:
    """One row a measured model: the common sign of its QK heads (qk) and V·proj layers (vp), the shares of both that
    are beyond chance on either side (qk_any, vp_any), the median size of their diagonals in off-diagonal spreads
    (qk_size, vp_size), and its layers."""
    rows = {}
    for title, part in products.groupby("title", sort=False):
        heads = {"qk": part[part["product"] == "qk"], "vp": part[(part["product"] == "vp") & (part["head"] == -1)]}
        rows[title] = {k: sign(v["sigmas"]) for k, v in heads.items()} | {
            f"{k}_any": (v["sigmas"].abs() > CHANCE).mean() for k, v in heads.items()
        }
        rows[title] |= {f"{k}_size": v["z"].abs().median() for k, v in heads.items()} | {"layers": len(heads["vp"])}
    return pd.DataFrame.from_dict(
        rows, orient="index", columns=["qk", "vp", "qk_any", "vp_any", "qk_size", "vp_size", "layers"]
    )


def _sign_words(qk: str, vp: str) -> str:
    return ", ".join(
        f"{name} {found if found != 'none' else 'no common sign'}" for name, found in (("QK", qk), ("V·proj", vp))
    )


def _trained_vision() -> Judgement:
    measured = pattern.effective()
    sides = _sides(measured[measured["modality"] == "vision"])
    found = "; ".join(f"{row.Index}: {_sign_words(row.qk, row.vp)}" for row in sides.itertuples())
    return counted([*(sides["qk"] == "+"), *(sides["vp"] == "−")]), found


def _trained_text() -> Judgement:
    measured = pattern.effective()
    sides = _sides(measured[measured["causal"] & (measured["modality"] == "text")])
    along = pattern.identity_shares(measured).loc[sides.index]
    found = "; ".join(
        f"{row.Index}: beyond chance, on whichever side, QK in {percent(row.qk_any)} of heads (median size"
        f" {row.qk_size:.1f} spreads), V·proj in {round(row.vp_any * row.layers)} of {row.layers} layers"
        f" ({row.vp_size:.1f}); along I {along.loc[row.Index, 'QK: mean']:g} and"
        f" {along.loc[row.Index, 'V·proj: mean']:g} % of the energy"
        for row in sides.itertuples()
    )
    multiples = along[["QK: mean", "V·proj: mean"]].to_numpy().ravel() >= 100 * EXPLAINED
    found += f": {multiples.sum()} of {len(multiples)} are multiples of I by our mark of {percent(EXPLAINED)}"
    if not any("GPT-2" in name for name in sides.index):
        found += " (GPT-2 itself could not be fetched)"
    return counted([*(sides["qk_any"] > CLEAR), *(sides["vp_any"] > CLEAR), *multiples]), found


def _construction() -> Judgement:
    table = constants_table()
    full, kept = (table.loc[name] for name in ("QK target 0.7 Z + 0.7 I", "QK after truncation to rank 64"))
    found = (
        f"the mean diagonal of QK falls from {full['diag_mean']:.2f} to {kept['diag_mean']:.2f} (d 192, heads of 64),"
        f" {kept['z']:.1f} off-diagonal spreads"
    )
    return counted([kept["sigmas"] > CHANCE]), found


def _against(
    experiment: str, arm: str, reference: str, planned: int, *, expected: int = 1, least: float = 0.0
) -> Judgement:
    metric = family(EXPERIMENTS[experiment]).METRIC
    return judged(
        contrast(load_runs(experiment), {arm: 1, reference: -1}, metric.column),
        metric,
        planned,
        expected=expected,
        least=least,
    )


def _lab(arm: str, reference: str = "timm", expected: int = 1) -> Judgement:
    return _against("cifar10-lab10", arm, reference, len(ALL_SEEDS), expected=expected)


def _untransposed() -> Judgement:
    verdict, found = _lab("untransposed", "mimetic", -1)
    return verdict, f"untransposed minus formula: {found}"


def _sooner() -> Judgement:
    finals, curves = (load_runs("cifar10-lab30", curves=curves) for curves in (False, True))
    sooner = steps_saved(finals, curves)["earlier by"].astype(float)
    verdict, found = judged(
        sooner,
        Metric("", "", scale=100, digits=0),
        len(CENTRAL_SEEDS),
        unit="% of the run earlier than the default's own curve",
    )
    marks = on_the_way(curves)
    way, first = on_the_way_sentence(marks), next(iter(marks.values()), pd.Series(dtype=float))
    less = (
        " (most of the lead in time is that the mimetic runs end higher)"
        if len(first) >= ENOUGH and side(first) == 0
        else ""
    )
    return verdict, f"{found}; lower accuracies are passed {way}{less}" if way else found


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
    return judged(
        contrast(load_runs("cifar10-lab10", folder=data_dir() / "replicas"), {"mimetic": 1, NOISE_ONLY: -1}),
        ACCURACY,
        len(ALL_SEEDS),
    )


def _less_than_fixed(kind: str) -> Judgement:
    """Whether mimetic initialization gains less with positions of another kind than with fixed sin-cos ones."""
    arms = f"{kind}-avg-mimetic", f"{kind}-avg-timm"
    there = contrast(load_runs("cifar10-lab10"), dict(zip(arms, (1, -1))))
    # of the machine that made the others
    fixed = contrast(load_runs("cifar10-lab10", folder=data_dir() / "replicas"), {"mimetic": 1, "timm": -1})
    verdict, found = judged((fixed - there).dropna(), ACCURACY, len(ALL_SEEDS))
    return verdict, (
        f"gain with fixed ones in order minus gain with these: {found}; with these {_lab(*arms)[1]}"
        if len(there)
        else found
    )


def _deep() -> Judgement:
    verdict, found = _lab("depth12-mimetic", "depth12-timm")
    again = contrast(
        load_runs("cifar10-lab10", folder=data_dir() / "replicas"), {"depth12-mimetic": 1, "depth12-timm": -1}
    )
    return verdict, (
        f"{found}. The same pairs again, on a CPU: {measured(again)}" if len(again) and verdict != OPEN else found
    )


def _deep_better() -> Judgement:
    values, words = better_rates(load_runs("cifar10-lab10"))
    verdict, found = judged(values, ACCURACY, DEEPER_PAIRS)
    return verdict, f"{found} ({words})" if words else found


def _deep_half() -> Judgement:
    finals = load_runs("cifar10-lab10")
    verdict, found = _against("cifar10-lab10", "depth12-half-mimetic", "depth12-half-timm", DEEPER_PAIRS)
    if not len(finals):
        return verdict, found
    values, cost = contrast(finals, {"depth12-half-mimetic": 1, "depth12-half-timm": -1}), half_costs(finals)[0]
    first, added = before_and_after_the_look(values)
    if len(first) >= ENOUGH and len(added) >= ENOUGH:
        found += (
            f"; the first {len(first)} {measured(first)}, those added {measured(added)}, and the p of all does not"
            " count the first look"
        )
    if len(cost) >= ENOUGH and side(cost) < 0:
        found += f"; over a default that half the rate costs {100 * -cost.mean():.1f} points"
    return verdict, found


def _imagenet() -> Judgement:
    least, most = (2 * gpu.imagenet_hours("ViT-Tiny", share) for share in (0.4, 0.2))
    return OPEN, f"not run; one pair of runs of ViT-Tiny is {least:.0f} to {most:.0f} GPU hours in arithmetic alone"


@cache
def _gains() -> pd.DataFrame:
    return share.gain_points()


def _language_gains_less() -> Judgement:
    gains = _gains()[_gains()["signs"] == share.PUBLISHED]
    rows = {name: part.iloc[0] for name, part in gains[gains["point"] == gains["experiment"]].groupby("experiment")}
    planned = {"cifar10-lab30": len(CENTRAL_SEEDS)} | {study.experiment: _seeds(study) for study in CORPORA}
    if not set(planned) <= set(rows):
        return OPEN, "no pair yet"
    vision, *texts = (rows[name] for name in planned)

    def words(row: pd.Series) -> str:
        return (
            f"{RELATIVE.signed(row['gain'])} % ({RELATIVE.span(row['low'], row['high'])}, {row['pairs']}"
            f" pair{'s' if row['pairs'] != 1 else ''})"
        )

    found = f"relative gain on CIFAR-10 {words(vision)}; " + "; ".join(
        f"{name} {words(row)}" for name, row in zip(planned, (vision, *texts)) if row is not vision
    )
    if any(rows[name]["pairs"] < pairs for name, pairs in planned.items()):
        return OPEN, found
    # relative gains of two metrics are not one unit, but a gain and a loss differ in any
    losses = sum(row["high"] <= 0 for row in texts)
    if vision["low"] <= 0 or not losses:
        return UNDECIDED, found
    verdict, found = HOLDS if losses == len(texts) else PART, found + " (below 0 is not a smaller gain, but a loss)"
    fixed = gains[gains["experiment"].isin([study.experiment for study in FIXED])]
    said = "; ".join(
        f"{EXPERIMENTS[row.experiment].dataset} {RELATIVE.signed(row.gain)} % ({RELATIVE.span(row.low, row.high)},"
        f" {row.pairs} pairs)"
        for row in fixed.itertuples()
        if row.pairs >= ENOUGH
    )
    found += f"; GPTs with fixed sin-cos positions, as the ViT has them: {said}" if said else ""
    finals = load_runs("cifar10-lab10")
    same = contrast(finals, {"learned-avg-mimetic": 1, "learned-avg-timm": -1})
    if len(same) >= len(ALL_SEEDS):  # the GPTs' positions are learned, the ViT's that gains are not
        same = same / finals[finals["arm"] == "learned-avg-timm"].set_index("seed")["test_accuracy"]
        found += (
            "; CIFAR-10 with learned positions, which the GPTs have (10 epochs):"
            f" {judged(same, RELATIVE, len(ALL_SEEDS), unit='%')[1]}"
        )
        if side(same) <= 0:
            return PART, f"{found}: with those no gain is seen in vision, either"
    if (fixed["low"] > 0).any():
        return PART, found
    return verdict, found


def _seeds(study: Study) -> int:
    """How many pairs of a study of GPTs are planned."""
    return len(language_programme.SEEDS[study.name])


def _gpt(study: Study, arm: str = "vision", reference: str = "gpt2") -> Judgement:
    """Whether an arm gains in a study of GPTs."""
    return _against(study.experiment, arm, reference, _seeds(study))


def _texts(arm: str, studies: tuple[Study, ...], longer: Study) -> Judgement:
    """Whether an arm gains on both texts, and what it does in longer runs."""
    verdict, found = joined({study.question: _gpt(study, arm) for study in studies})
    config = EXPERIMENTS[longer.experiment]
    return (
        verdict,
        (
            f"{found}. After {config.epochs * config.steps_per_epoch:,} steps, {studies[0].question}:"
            f" {_gpt(longer, arm)[1]}"
        ),
    )


def _fixed_structure() -> Judgement:
    controls = {"default at mimetic's norms": "rescaled", "random directions": "random-directions"}
    return joined({name: _gpt(FIXED[0], reference=arm) for name, arm in controls.items()})


def _gains_less(study: Study, changed: str) -> Judgement:
    """Whether vision's signs gain less with positions that were changed in this way."""
    verdict, found = judged(positions.changes("vision", study, FIXED[0]), BITS, _seeds(study), expected=-1)
    return (
        verdict,
        f"{changed} minus their own: {found}. {changed[:1].upper()}{changed[1:]} against the default: {_gpt(study)[1]}",
    )


def _beyond_learned() -> Judgement:
    return joined(
        {
            own.question: judged(positions.across("vision", fixed, "gpt2", own), BITS, _seeds(fixed))
            for fixed, own in zip(FIXED, CORPORA)
        }
    )


def _share_guess() -> Judgement:
    points = _gains()[(_gains()["experiment"] == "share") & (_gains()["signs"] == share.PUBLISHED)]
    there, wanted = int((points["pairs"] >= share.FEW).sum()), len(language_programme.SHARES)
    if there < wanted:
        return OPEN, f"{there} of {wanted} points of the sweep are in"
    found = share.correlated(share.held_fixed(points))
    _, low, high, _ = found
    if not share.mostly_gains(share.held_fixed(points)):
        return UNDECIDED, f"no gain at most points that could follow the share ({share.correlation_words(*found)})"
    return HOLDS if low > 0 else NOT if high < 0 else UNDECIDED, share.correlation_words(*found)


def _worth_imitating() -> Judgement:
    parts = {}
    for data, title in recommenders.TITLES.items():
        products = questions.trained(data)
        seeds, planned = products["seed"].nunique(), len(recommender_programme.SEEDS[data])
        found = (
            f"{questions.signs_in_words(products)} ({seeds}{f' of {planned}' if seeds < planned else ''} seeds)"
            if seeds
            else "no run yet"
        )
        if seeds:
            whole = {
                name: sign(products.loc[products["product"] == product, "sigmas"])
                for product, name in (("qk", "QK"), ("vp", "V·proj"))
            }
            found += f"; over all layers, as `audit` asks, {_sign_words(*whole.values())}"
        parts[title] = counted(questions.layer_signs(products)["sign"] != "none") if seeds >= planned else OPEN, found
    return joined(parts)


def _imitable() -> Judgement:
    ours = questions.explained_table()
    parts = {}
    for data, title in recommenders.TITLES.items():
        part = ours[ours["model"] == questions.MODEL_NAMES[data]]
        carried = " and ".join(
            f"{percent(row['explained'], 2)} of {'QK' if row['product'] == 'qk' else 'V·proj'}"
            for _, row in part.iterrows()
        )
        parts[title] = (
            counted(part["explained"] >= EXPLAINED),
            (f"the identity carries {carried}" if len(part) else "no run yet"),
        )
    verdict, found = joined(parts)
    return verdict, f"{found} (of the energy; our mark is {percent(EXPLAINED)}).{questions.beside(ours)}"


def _meaningful_share() -> Judgement:
    marks = questions.share_marks()
    found = "; ".join(f"{percent(value, 1)} with {n:,} items" for n, value in marks.values())
    return counted(value >= MEANINGFUL for _, value in marks.values()), found


def _fixed_items(arm: str, reference: str = recommender_programme.DEFAULT, expected: int = 1) -> Judgement:
    return _against("ml100k-sincos", arm, reference, len(recommender_programme.FIXED_SEEDS), expected=expected)


def _recommenders(arm: str, reference: str = recommender_programme.DEFAULT) -> Judgement:
    return joined(
        {
            title: _against(data, arm, reference, len(recommender_programme.SEEDS[data]))
            for data, title in recommenders.TITLES.items()
        }
    )


def _vision_signs() -> Judgement:
    verdict, found = _recommenders(recommender_programme.VISION)
    there = joined(
        {
            title: _against(
                f"{data}-rate",
                recommender_programme.VISION,
                recommender_programme.DEFAULT,
                len(recommender_programme.SEEDS[data]),
            )
            for data, title in recommenders.TITLES.items()
        }
    )
    crossed, own = {}, []
    for data, title in recommenders.TITLES.items():
        metric, runs, other = family(EXPERIMENTS[data]).METRIC, load_runs(data), load_runs(f"{data}-rate")
        values = between_runs(runs, other, (recommender_programme.VISION, recommender_programme.DEFAULT), metric.column)
        crossed[title] = judged(values, metric, len(recommender_programme.SEEDS[data]))
        changed = between_runs(
            other, runs, (recommender_programme.DEFAULT, recommender_programme.DEFAULT), metric.column
        )
        own += [metric.signed(changed.mean())] if len(changed) else []
    itself = f" (which changes the default itself by {' and '.join(own)})" if own else ""
    return (
        verdict,
        (
            f"{found}. Both arms at three times the rate: {there[1]}. Vision's signs as they are against the default at"
            f" three times the rate{itself}: {joined(crossed)[1]}"
        ),
    )


def _other_positions() -> Judgement:
    parts = {
        f"{kind}, {pooling}": _against(
            "cifar10-lab10", f"{kind}-{short}-mimetic", f"{kind}-{short}-timm", len(ALL_SEEDS)
        )
        for pooling, short in (("average pooling", "avg"), ("class token", "token"))
        for kind in ("learned", "none")
    }
    verdict, found = joined(parts)
    words = [word for word, _ in parts.values()]
    mixed = (
        f"a gain in {words.count(HOLDS)} of {len(words)}, a loss in {words.count(NOT)}: "
        if {HOLDS, NOT} <= set(words)
        else ""
    )
    return verdict, mixed + found


def _sibling(reference: str) -> Judgement:
    planned = len(recommender_programme.FIRST_SEEDS) + len(recommender_programme.MORE_SEEDS)
    prefix = recommender_programme.SIBLING_PREFIX
    verdict, found = _against("ml100k", prefix + recommender_programme.OPPOSITE, prefix + reference, planned)
    users = recommenders.user_differences("ml100k", prefix + recommender_programme.OPPOSITE, prefix + reference)
    found += f", over seeds and users {recommenders.interval(*crossed_interval(users))}" if len(users) > 1 else ""
    prefix = recommender_programme.LONG_SIBLING_PREFIX
    later = _against(
        "ml100k", prefix + recommender_programme.OPPOSITE, prefix + reference, len(recommender_programme.FIRST_SEEDS)
    )[1]
    return verdict, f"{found}. After {EXPERIMENTS['ml100k'].epochs} epochs: {later}"


CONTROLS = {"default at that size": recommender_programme.RESCALED, "random directions": recommender_programme.RANDOM}


def _sibling_structure() -> Judgement:
    prefix = recommender_programme.SIBLING_PREFIX
    planned = len(recommender_programme.FIRST_SEEDS) + len(recommender_programme.MORE_SEEDS)
    return joined(
        {
            name: _against("ml100k", prefix + recommender_programme.OPPOSITE, prefix + control, planned)
            for name, control in CONTROLS.items()
        }
    )


def _item_structure() -> Judgement:
    return joined(
        {
            f"{title}, {name}": _against(
                data, recommender_programme.VISION, control, len(recommender_programme.SEEDS[data])
            )
            for data, title in recommenders.TITLES.items()
            for name, control in CONTROLS.items()
        }
    )


RELATIVE = Metric("", "relative gain", "%", scale=100, digits=1)
CORPORA = (language_programme.CENTRAL, language_programme.WIKITEXT2)
FIXED = (language_programme.POSITIONS, language_programme.POSITIONS_WIKITEXT2)
PATTERN, VISION, WHY, TEXT, ITEMS = (
    "The pattern and the formula",
    "Training, vision",
    "What makes the difference (vision, 10 epochs)",
    "Language",
    "Recommenders",
)
PAPER_PAIRS, DEEPER_PAIRS = len(PAPER_SEEDS), len(ALL_SEEDS) + len(DEEPER_SEEDS)
CLAIMS = (
    Claim(
        PATTERN,
        "In trained vision transformers $W_QW_K^T$ leans to +I and $W_VW_{proj}$ to −I",
        PAPER,
        "02_looking_inside",
        _trained_vision,
    ),
    Claim(
        PATTERN,
        "Products of GPT-type models are semi-diagonal (noise and a multiple of I), too",
        REVIEW,
        "02_looking_inside",
        _trained_text,
    ),
    Claim(
        PATTERN,
        "αZ + βI, cut to the rank that a head has, is still semi-diagonal",
        OURS,
        "03_construction",
        _construction,
    ),
    Claim(
        VISION,
        "A small ViT ends with a higher accuracy on CIFAR-10 (here: 10,000 images, 30 epochs)",
        PAPER,
        "06_cifar_claim",
        lambda: _against("cifar10-lab30", "mimetic", "timm", len(CENTRAL_SEEDS)),
    ),
    Claim(
        VISION,
        "It also trains faster: in the same schedule it passes the default's final accuracy earlier",
        PAPER,
        "06_cifar_claim",
        _sooner,
    ),
    Claim(
        VISION,
        "On CIFAR-10 the gain is over 5 % (read as points; here: ViT-Tiny, 50,000 images, 100 epochs, our recipe)",
        PAPER,
        "05b_gpu",
        lambda: _against("cifar10-paper", "mimetic", "timm", PAPER_PAIRS, least=0.05),
    ),
    Claim(
        VISION,
        "There is a gain on CIFAR-100, too",
        PAPER,
        "05b_gpu",
        lambda: _against("cifar100-paper", "mimetic", "timm", PAPER_PAIRS),
    ),
    Claim(
        VISION,
        "There is one on SVHN and Tiny ImageNet, too",
        PAPER,
        "05b_gpu",
        lambda: (OPEN, "not run: neither data set is prepared here"),
    ),
    Claim(VISION, "On ImageNet the gain is over 4 %", PAPER, "05c_imagenet", _imagenet),
    Claim(VISION, "The gain grows with the model", REVIEW, "08_size_and_data", lambda: _trend(("width", "depth"), 1)),
    Claim(
        VISION,
        "It is there at twelve layers, ViT-Tiny's depth, too (10 epochs, at the rate chosen for six)",
        OURS,
        "08_size_and_data",
        _deep,
    ),
    Claim(
        VISION,
        "It is there at twelve layers and half that rate (five pairs, and five that were added when those had been"
        " seen)",
        OURS,
        "08_size_and_data",
        _deep_half,
    ),
    Claim(
        VISION,
        "It is there at twelve layers with each arm at the better of the two rates",
        OURS,
        "08_size_and_data",
        _deep_better,
    ),
    Claim(VISION, "The gain grows when images are few", COURSE, "08_size_and_data", lambda: _trend(("data",), -1)),
    Claim(WHY, "Queries and keys alone gain", OURS, "07_why", lambda: _lab("mimetic-qk")),
    Claim(WHY, "Values and projection alone gain", OURS, "07_why", lambda: _lab("mimetic-vp")),
    Claim(WHY, "It is more than the size of the weights", OURS, "07_why", lambda: _lab("mimetic", "timm-rescaled")),
    Claim(WHY, "It is more than the singular values", OURS, "07_why", lambda: _lab("mimetic", "random-directions")),
    Claim(
        WHY,
        "The two diagonals are part of it: without either, the noise of both products gains less",
        OURS,
        "07_why",
        _pattern,
    ),
    Claim(
        WHY,
        "V·proj's diagonal is part of it (without it the product is smaller, too)",
        OURS,
        "07_why",
        lambda: _lab("mimetic", "vp-beta-0"),
    ),
    Claim(WHY, "QK's diagonal is part of it", OURS, "07_why", lambda: _lab("mimetic", "qk-beta-0")),
    Claim(WHY, "It is there over PyTorch's default, too", OURS, "07_why", lambda: _lab("mimetic", "torch")),
    Claim(WHY, "It is there without sin-cos positions, too", OURS, "07_why", _other_positions),
    Claim(
        WHY,
        "It is because near places have positions that are alike: with sin-cos positions in a random order it gains"
        " less",
        OURS,
        "07_why",
        lambda: _less_than_fixed("shuffled"),
    ),
    Claim(
        WHY,
        "It is because positions stay fixed: with learned ones that start from sin-cos it gains less",
        OURS,
        "07_why",
        lambda: _less_than_fixed("from-sincos"),
    ),
    Claim(
        WHY,
        "It takes more than large positions: with learned ones that start from noise as large it gains less",
        OURS,
        "07_why",
        lambda: _less_than_fixed("from-noise"),
    ),
    Claim(
        WHY,
        "With both signs flipped it is worse than the default",
        OURS,
        "07_why",
        lambda: _lab("both-flipped", expected=-1),
    ),
    Claim(
        WHY, "V·proj stored untransposed, as in public code, is worse than the formula", OURS, "07_why", _untransposed
    ),
    Claim(
        TEXT,
        "Language models gain less than vision models (here: GPTs with learned positions, a ViT with sin-cos ones)",
        PAPER,
        "10_gpt",
        _language_gains_less,
    ),
    Claim(
        TEXT,
        "A GPT gains too, though less (here: vision's constants, learned positions, two texts, 1,200 steps; the paper:"
        " WikiText-103)",
        PAPER,
        "10_gpt",
        lambda: _texts("vision", CORPORA, language_programme.LONG),
    ),
    Claim(
        TEXT,
        "With QK + and V·proj + (`mimetic.LANGUAGE`) a GPT gains (learned positions, 1,200 steps)",
        OURS,
        "10_gpt",
        lambda: _texts("language", CORPORA, language_programme.LONG),
    ),
    Claim(
        TEXT,
        "With fixed sin-cos positions in place of learned ones a GPT gains by vision's signs (1,200 steps)",
        OURS,
        "10_gpt",
        lambda: _texts("vision", FIXED, language_programme.POSITIONS_LONG),
    ),
    Claim(
        TEXT,
        "There it gains more than from the size of the weights or their singular values (tiny Shakespeare)",
        OURS,
        "10_gpt",
        _fixed_structure,
    ),
    Claim(
        TEXT,
        "It is because neighbours have positions that are alike: with the same positions in a random order it gains"
        " less, or loses",
        OURS,
        "10_gpt",
        lambda: _gains_less(language_programme.SHUFFLED, "in a random order"),
    ),
    Claim(
        TEXT,
        "It is what all fixed positions have in common: without their mean it gains less, or loses",
        OURS,
        "10_gpt",
        lambda: _gains_less(language_programme.CENTRED, "without their mean"),
    ),
    Claim(
        TEXT,
        "It is the size of what enters the first block: with learned positions it gains, too, if tokens and positions"
        " are multiplied by √d",
        OURS,
        "10_gpt",
        lambda: _gpt(language_programme.SCALED),
    ),
    Claim(
        TEXT,
        "It is that fixed positions are not learned: with learned ones that start from sines and cosines it gains less,"
        " or loses",
        OURS,
        "10_gpt",
        lambda: _gains_less(language_programme.FROM_SINCOS, "learned from there"),
    ),
    Claim(
        TEXT,
        "It takes more than large positions: with learned ones that start from noise as large it gains less, or loses",
        OURS,
        "10_gpt",
        lambda: _gains_less(language_programme.FROM_NOISE, "starting from noise"),
    ),
    Claim(
        TEXT,
        "With rotary positions a GPT gains by vision's signs (1,200 steps, tiny Shakespeare)",
        OURS,
        "10_gpt",
        lambda: _gpt(language_programme.ROTARY),
    ),
    Claim(
        TEXT,
        "With fixed positions and vision's signs it predicts better than from GPT-2's own start with learned positions",
        OURS,
        "10_gpt",
        _beyond_learned,
    ),
    Claim(TEXT, "The gain follows attention's share of the parameters", GUESS, "11_share", _share_guess),
    Claim(ITEMS, "A trained BERT4Rec has layers worth imitating", ASKED, "12_recommenders", _worth_imitating),
    Claim(ITEMS, "An initialization can imitate these layers", ASKED, "12_recommenders", _imitable),
    Claim(
        ITEMS,
        "These layers are a meaningful share of its parameters, a tenth or more",
        ASKED,
        "12_recommenders",
        _meaningful_share,
    ),
    Claim(
        ITEMS,
        "BERT4Rec gains with vision's signs (this row and those below: learning rate 0.001, the users' last items)",
        OURS,
        "12_recommenders",
        _vision_signs,
    ),
    Claim(
        ITEMS,
        "BERT4Rec gains more than from the size of the weights or their singular values",
        OURS,
        "12_recommenders",
        _item_structure,
    ),
    Claim(
        ITEMS,
        "BERT4Rec gains with the opposite signs",
        OURS,
        "12_recommenders",
        lambda: _recommenders(recommender_programme.OPPOSITE),
    ),
    Claim(
        ITEMS,
        "BERT4Rec gains more with the opposite signs than with vision's",
        OURS,
        "12_recommenders",
        lambda: _recommenders(recommender_programme.OPPOSITE, recommender_programme.VISION),
    ),
    Claim(
        ITEMS,
        "With fixed sin-cos positions it gains with vision's signs (MovieLens-100K)",
        OURS,
        "12_recommenders",
        lambda: _fixed_items(recommender_programme.VISION),
    ),
    Claim(
        ITEMS,
        "With fixed positions it gains more with them than from the size of the weights or their singular values",
        OURS,
        "12_recommenders",
        lambda: joined(
            {name: _fixed_items(recommender_programme.VISION, control) for name, control in CONTROLS.items()}
        ),
    ),
    Claim(
        ITEMS,
        "With fixed positions and the opposite signs it loses",
        OURS,
        "12_recommenders",
        lambda: _fixed_items(recommender_programme.OPPOSITE, expected=-1),
    ),
    Claim(
        ITEMS,
        "A causal next-item BERT4Rec (MovieLens-100K, 20 epochs) gains with the signs that its training finds, QK − (in"
        " layer 1) and V·proj +",
        OURS,
        "12_recommenders",
        lambda: _sibling(recommender_programme.DEFAULT),
    ),
    Claim(
        ITEMS,
        "The sibling gains more than from the size of the weights or their singular values",
        OURS,
        "12_recommenders",
        _sibling_structure,
    ),
    Claim(
        ITEMS,
        "The sibling gains more with the opposite signs than with vision's",
        OURS,
        "12_recommenders",
        lambda: _sibling(recommender_programme.VISION),
    ),
)
PARTS = tuple(dict.fromkeys(claim.part for claim in CLAIMS))


def claims(part: str | None = None) -> pd.DataFrame:
    """One row a claim, or one a claim of a part: part, claim, whose, found, verdict, page."""
    _gains.cache_clear()
    rows = []
    for claim in CLAIMS:
        if part in (None, claim.part):
            verdict, found = claim.judge()
            rows.append(
                {
                    "part": claim.part,
                    "claim": claim.says,
                    "whose": claim.whose,
                    "found": found,
                    "verdict": verdict,
                    "page": claim.page,
                }
            )
    return pd.DataFrame(rows)
