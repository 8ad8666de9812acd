"""What the language chapters say (10 and 11): the comparison, the products, convergence, samples, a yardstick."""

from __future__ import annotations

from functools import partial
from html import escape

import pandas as pd

from mimetic.experiments import pattern
from mimetic.experiments.answers import common
from mimetic.experiments.answers.common import finding, study_table
from mimetic.experiments.configs import named
from mimetic.experiments.language import METRIC
from mimetic.experiments.programmes.language import BETTER, CENTRAL, RATE, SEEDS, STUDIES, WIKITEXT2
from mimetic.experiments.programmes.study import Study
from mimetic.experiments.recorded import product_table
from mimetic.figures.style import LABELS
from mimetic.statistics import ENOUGH, smallest_p
from mimetic.training.records import load_runs, read_record, record_path

COMMAND = "python -m mimetic queue language"
XLABEL = "difference in last-epoch bits per byte (left of 0 is better)"
draw = partial(common.draw, command=COMMAND)


def progress(study: Study, finals: pd.DataFrame) -> str:
    """How many of a study's runs are in; "" when all are."""
    return common.missing(study, finals, SEEDS[study.name], COMMAND, f"{study.question}: ")


# --- the comparison --------------------------------------------------------------------------------------------------


def comparisons(studies: tuple[Study, ...] = (CENTRAL, RATE, WIKITEXT2)) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every arm against the default, a group a corpus: table and points for figures.comparisons."""
    return common.stacked(((study, load_runs(study.experiment)) for study in studies), METRIC)


def answer(study: Study = CENTRAL) -> str:
    """What the comparison on a corpus shows so far, the two sets of signs first."""
    table = study_table(study, load_runs(study.experiment), METRIC)
    if table.empty:
        return f"On {study.question}: no pair of runs is in yet. `{COMMAND}` makes them, and this page follows."
    config, lines = named(study.experiment), []
    for arm in ("language", "vision"):
        if LABELS[arm] in table.index:
            row = table.loc[LABELS[arm]]
            relative = f"{100 * row['difference'] / row['reference']:+.1f} %".replace("-", "−")
            lines.append(f"{LABELS[arm]} {finding(row, METRIC)}, which is {relative} of the default's {row['reference']:.3f}")
    steps = config.epochs * config.steps_per_epoch
    pairs = int(table["pairs"].max())
    strength = ""
    if pairs < ENOUGH:
        strength = f" {pairs} pair{'s' * (pairs != 1)} can at best give p = {smallest_p(pairs, 'two-sided'):.2g} in an exact sign-flip test: not enough for a claim."
    if not lines:
        return f"On {study.question}: neither set of signs has a pair with the default yet."
    return f"On {study.question}, after {steps:,} steps, against the default: " + "; ".join(lines) + f". Fewer bits per byte are better.{strength}"


def found(study: Study) -> str:
    """A study's findings as Markdown: one line a comparison, and how many runs are missing."""
    finals = load_runs(study.experiment)
    return common.findings(study, finals, progress(study, finals), METRIC, "mean difference to the default")


def numbers(table: pd.DataFrame) -> pd.DataFrame:
    """A table of comparisons for the page; p corrected over all its rows. ahead: pairs with fewer bits (wins counts larger metrics)."""
    return common.rounded(table.assign(ahead=table["pairs"] - table["wins"]), 4, ("pairs", "ahead")) if len(table) else table


def run_table(experiment: str) -> pd.DataFrame:
    """Every run of an experiment: the last epoch's metrics, and what it took."""
    finals = load_runs(experiment)
    columns = ["arm", "seed", "step", "train_loss", "test_loss", "test_perplexity", "test_bits_per_byte", "seconds.total"]
    if finals.empty:
        return pd.DataFrame(columns=columns)
    table = finals[columns].sort_values(["seed", "test_bits_per_byte"], ignore_index=True)
    return table.round({"train_loss": 3, "test_loss": 3, "test_perplexity": 2, "test_bits_per_byte": 4, "seconds.total": 0})


def by_rate(experiments: tuple[str, ...] = (CENTRAL.experiment, RATE.experiment)) -> pd.DataFrame:
    """Mean last-epoch bits per byte of each arm (rows) at each learning rate (columns), of the arms that were run at several."""
    finals = pd.concat([f for name in experiments if len(f := load_runs(name))] or [pd.DataFrame(columns=["arm"])])
    if finals.empty:
        return pd.DataFrame()
    finals["arm"] = finals["arm"].str.rpartition("-")[2]
    table = finals.pivot_table(index="arm", columns="config.lr", values="test_bits_per_byte").dropna()
    return table.rename(index=LABELS).rename_axis(columns="learning rate").round(3)


# --- the recipe ------------------------------------------------------------------------------------------------------


def recipe_table(finals: pd.DataFrame) -> pd.DataFrame:
    """The search for the recipe: mean bits per byte of the held-out training text by setting, best first."""
    groups = finals.groupby("arm")["test_bits_per_byte"]
    table = pd.DataFrame({"held-out bits per byte": groups.mean(), "seeds": groups.size()})
    return table.sort_values("held-out bits per byte").round(3)


def recipe_winner(finals: pd.DataFrame) -> str:
    """The setting that the rule takes: the best one if it is better than the base by more than BETTER, else the base."""
    means = finals.groupby("arm")["test_bits_per_byte"].mean()
    return means.idxmin() if means["base"] - means.min() > BETTER else "base"


def recipe_sentence(finals: pd.DataFrame) -> str:
    """What the search chose, and by how much."""
    if finals.empty or "base" not in set(finals["arm"]):
        return "The search has no records yet: `python -m mimetic queue language-recipe`."
    base = finals[finals["arm"] == "base"]["test_bits_per_byte"]
    others = finals[finals["arm"] != "base"].groupby("arm")["test_bits_per_byte"].mean()
    seeds = f", its {len(base)} seeds {abs(base.max() - base.min()):.3f} apart" if len(base) > 1 else ""
    kept = "so the base was kept" if recipe_winner(finals) == "base" else "so by the rule it replaces the base's value"
    best = others.idxmin()
    return f"The best other setting, `{best}`, is {METRIC.signed(others[best] - base.mean())} from the base ({base.mean():.3f}{seeds}), {kept}."


# --- the products ----------------------------------------------------------------------------------------------------


def trained_products(experiments: tuple[str, ...] = ("tinyshakespeare-narrow", "tinyshakespeare", "wikitext2"), arm: str = "gpt2") -> pd.DataFrame:
    """The products of our own GPTs after training from the default (seed 0), gains folded in, as measure gives them, and title."""
    frames = []
    for experiment in experiments:
        path = record_path(experiment, arm, 0)
        if path.is_file():
            record = read_record(path)
            title = f"our GPT, {record['config']['dataset']}, d {record['config']['d_model']}"
            frames.append(product_table(record, fold=True).assign(title=title))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["title", "layer", "head", "product", "z", "sigmas"])


def causal_products() -> pd.DataFrame:
    """The products of every causal language model that was measured, pretrained ones first, then our own; gains folded in."""
    effective = pattern.effective()
    return pd.concat([effective[effective["causal"] & (effective["modality"] == "text")], trained_products()], ignore_index=True)


def measured_signs(products: pd.DataFrame) -> pd.DataFrame:
    """One row a model: the share of heads (QK) and of layers (V·proj) on either side of chance, and the median z."""
    return pattern.verdicts(products)


def signs_sentence(products: pd.DataFrame) -> str:
    """Which sign each model's products have more often, beyond chance, in words."""
    parts = []
    for title, part in products.groupby("title", sort=False):
        words = []
        for product, name, unit in (("qk", "$W_QW_K^T$", "heads"), ("vp", "$W_VW_{proj}$", "layers")):
            sigmas = part[(part["product"] == product) & ((part["head"] == -1) | (product == "qk"))]["sigmas"]
            above, below = int((sigmas > pattern.CHANCE).sum()), int((sigmas < -pattern.CHANCE).sum())
            lean = "leans to $+I$" if above > below else "leans to $-I$" if below > above else "has no lean"
            words.append(f"{name} {lean} ({above} {unit} above chance, {below} below, of {len(sigmas)})")
        parts.append(f"* {title}: {'; '.join(words)}")
    return "\n".join(parts)


def kept(products: pd.DataFrame) -> pd.DataFrame:
    """Means over layers, heads and seeds, before and after training: both diagonals in units of the off-diagonal spread, and the
    share of heads or layers that are beyond chance on either side (two standard deviations of the null)."""
    rows = {}
    for arm in dict.fromkeys(products["arm"]):
        for when in ("before", "after"):
            part = products[(products["arm"] == arm) & (products["when"] == when)]
            row = {}
            for product, name in (("qk", "QK"), ("vp", "V·proj")):
                these = part[part["product"] == product]
                row |= {
                    f"{name} diagonal / spread": these["z"].mean(),
                    f"{name} above chance (%)": 100 * (these["sigmas"] > 2).mean(),
                    f"{name} below chance (%)": 100 * (these["sigmas"] < -2).mean(),
                }
            rows[LABELS.get(arm, arm), when] = row
    return pd.DataFrame(rows).round(2)


# --- convergence -----------------------------------------------------------------------------------------------------


def head_start(curves: pd.DataFrame, arm: str, reference: str = "gpt2") -> str:
    """The paired gap to the default early (after a tenth of the run), at its widest and at the end, in words."""
    arms = set(curves["arm"])
    if not {arm, reference} <= arms:
        return f"For the {LABELS[arm]}: no pair of these runs is in yet."
    wide = curves.pivot_table(index=["seed", "step"], columns="arm", values="test_bits_per_byte")
    gap = (wide[arm] - wide[reference]).dropna().unstack("seed")
    mean, n = gap.mean(axis=1), gap.shape[1]
    early = mean.index[max(0, len(mean) // 10 - 1)]
    best = mean.idxmin()
    first, last = mean[early], mean.iloc[-1]
    if first < 0 and last > 0.25 * first:
        says = "the head start is gone at the end" if last > -0.002 else "most of the head start is gone at the end"
    elif first < 0:
        says = "the head start is kept"
    else:
        says = "there is no head start" if last >= 0 else "there is no head start, but a gain at the end"
    return (
        f"For the {LABELS[arm]}, {says}: {METRIC.signed(first)} bits per byte after {early:,} steps, {METRIC.signed(mean[best])} at the "
        f"best moment (step {best:,}), {METRIC.signed(last)} at the end ({mean.index[-1]:,} steps; mean of {n} pair{'s' * (n != 1)})."
    )


def overfitting(curves: pd.DataFrame) -> str:
    """Whether the default's curve has turned before its end."""
    runs = curves[curves["arm"] == "gpt2"]
    if runs.empty:
        return ""
    mean = runs.groupby("step")["test_bits_per_byte"].mean()
    best = mean.idxmin()
    if best == mean.index[-1]:
        return f"The default's curve still falls at its last step ({mean.index[-1]:,})."
    return f"The default's curve has its lowest point, {mean[best]:.3f}, at step {best:,}, and ends at {mean.iloc[-1]:.3f}."


# --- samples ---------------------------------------------------------------------------------------------------------


def samples(experiment: str = CENTRAL.experiment, arms: tuple[str, ...] = ("gpt2", "language"), seed: int = 0, letters: int = 320) -> str:
    """The text that both arms write after the same prompt at the same number of steps, side by side, as an HTML table."""
    cells = []
    for arm in arms:
        path = record_path(experiment, arm, seed)
        if not path.is_file():
            return f"<p><em>No samples yet: the record of {experiment}/{arm}, seed {seed}, is not in. <code>{COMMAND}</code> makes it.</em></p>"
        record = read_record(path)
        sample, final = record["anatomy"]["after"]["sample"], record["final"]
        head = f"{escape(LABELS[arm])}<br>{final['step']:,} steps, {final['test_bits_per_byte']:.3f} bits per byte"
        text = f"<strong>{escape(sample['prompt'])}</strong>{escape(sample['text'][:letters])}"
        cells.append((head, f'<pre style="white-space: pre-wrap">{text}</pre>'))
    heads = "".join(f'<th style="text-align: left; width: {100 // len(arms)}%">{head}</th>' for head, _ in cells)
    bodies = "".join(f'<td style="vertical-align: top; text-align: left">{body}</td>' for _, body in cells)
    return f"<table><tr>{heads}</tr><tr>{bodies}</tr></table>"


def planned() -> str:
    """Which studies lack runs; "" when all are in."""
    counts = {s.question.rstrip("?"): common.counts(s, load_runs(s.experiment), SEEDS[s.name]) for s in STUDIES.values()}
    missing = [f"{question} ({there} of {wanted})" for question, (there, wanted) in counts.items() if there < wanted]
    return f"*Not all runs are in: {'; '.join(missing)}. `{COMMAND}` adds the others, and this page follows.*" if missing else ""


def conjecture(study: Study = CENTRAL) -> str:
    """Whether the arms that write one product only say that W_Q W_K^T is what holds a model back, in words. An arm counts as held
    back if it is at least half as far behind the default as both products together (vision signs or language signs) are."""
    table = study_table(study, load_runs(study.experiment), METRIC)
    behind = table["difference"].rename({LABELS[arm]: arm for arm in ("language", "vision", "qk", "vp")}) if len(table) else pd.Series(dtype=float)
    whole = behind.get("language")
    if whole is None or not {"qk", "vp"} & set(behind.index):
        return "The runs that test it are not in yet."
    if whole <= 0:
        return "In these runs the language signs are not behind the default, so there is nothing to explain."
    parts = [f"{LABELS[arm]} is {'held back too' if behind[arm] > whole / 2 else 'not held back'} ({METRIC.signed(behind[arm])})" for arm in ("qk", "vp") if arm in behind]
    held = {arm: behind[arm] > whole / 2 for arm in ("qk", "vp") if arm in behind}
    if held.get("vp"):
        says = "so queries and keys are not the whole of it"
    elif held.get("qk"):
        says = "so queries and keys are what does it" if "vp" in held else "as it should be if queries and keys are what does it"
    else:
        says = "so it takes both products" if len(held) == 2 else "as it should be if queries and keys are what does it" if "vp" in held else "so queries and keys alone are not what does it"
    pairs = int(table["pairs"].min())
    return f"{'; '.join(parts)}; {says} ({pairs} pair{'s' * (pairs != 1)})."


# --- a yardstick -----------------------------------------------------------------------------------------------------


def pair_model_bits(dataset: str = "pydoc") -> float:
    """Bits per byte of the evaluated text under a table of how often each character follows each other one in the training text
    (add-one smoothing): what can be predicted from the last character alone, without any attention.

    Raises what data.text.load_text raises.
    """
    import torch

    from mimetic.data.text import load_text

    data = load_text(dataset)
    V = data.vocab_size
    train, test = data.train.long(), data.test.long()
    counts = torch.bincount(train[:-1] * V + train[1:], minlength=V * V).view(V, V).double() + 1
    bits = -(counts / counts.sum(1, keepdim=True)).log2()[test[:-1], test[1:]]
    return float(bits.sum() / data.token_bytes[test[1:]].sum())


def attention_before_training(dataset: str = "pydoc", arms: tuple[str, ...] = ("gpt2", "language", "vision", "qk"), windows: int = 8) -> pd.DataFrame:
    """How much of its attention a token gives to itself, and how much to itself or an equal token before it, in percent, in the
    first and in the last layer of untrained models (those of "tinyshakespeare", seed 0), over windows of the evaluated text.

    Raises what data.text.load_text raises.
    """
    import torch

    from mimetic.attention import attention_layers
    from mimetic.data.text import load_text
    from mimetic.experiments.language import build_model

    data, rows = load_text(dataset), {}
    for arm in arms:
        config = named("tinyshakespeare", arm=arm)
        N = config.context
        ids_BN = data.test[: windows * N].view(windows, N).long()
        model, seen = build_model(config, data.vocab_size).eval(), []
        for block in model.blocks:
            block.attn.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        with torch.no_grad():
            model(ids_BN)
        row, equal_BNN = {}, ids_BN[:, :, None] == ids_BN[:, None]
        layers = attention_layers(model)
        for name, i in (("first layer", 0), ("last layer", len(layers) - 1)):
            q, k = (torch.einsum("bnd,dhk->bhnk", seen[i], w) for w in (layers[i].q, layers[i].k))
            scores = (q @ k.mT / layers[i].head_dim**0.5).masked_fill(torch.ones(N, N, dtype=torch.bool).triu(1), -torch.inf)
            attention_BNN = scores.softmax(-1).mean(1)
            row[name, "to itself"] = 100 * attention_BNN.diagonal(dim1=1, dim2=2).mean().item()
            row[name, "to equal tokens"] = 100 * (attention_BNN * equal_BNN).sum(-1).mean().item()
        rows[LABELS[arm]] = row
    return pd.DataFrame.from_dict(rows, orient="index").round(1)
