"""What the chapter on GPU training and the page on ImageNet's cost say: budgets that are counted, numbers of
records."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd

from mimetic import flops
from mimetic.bench import load_bench
from mimetic.bench.profile import kind_of
from mimetic.book.common import blank, markdown, percent
from mimetic.book.vision import PAPER_COMMAND, central
from mimetic.data.images import TRAIN_SIZES
from mimetic.experiments.configs import named
from mimetic.experiments.configs.vision import VisionConfig
from mimetic.experiments.programmes import QUEUES
from mimetic.experiments.programmes.vision import PAIR, PAPER_SEEDS
from mimetic.experiments.runs import existing
from mimetic.experiments.vision import vit_config
from mimetic.models.vit import ViTConfig
from mimetic.training.records import load_runs

PAPER = ("cifar10-paper", "cifar100-paper", "cifar10-small")
COMMAND = PAPER_COMMAND
TITLES = {
    "cifar10-paper": "CIFAR-10, ViT-Tiny",
    "cifar100-paper": "CIFAR-100, ViT-Tiny",
    "cifar10-small": "CIFAR-10, ViT-Small",
    "cifar10-lab30": "laboratory, ViT of width 96",
}
TARGET_MINUTES = 4.0  # for ViT-Tiny on an H100
SHARES = (0.1, 0.2, 0.4)  # of a card's peak: from poor to very good for models this small
CARD = "H100"
# Two models for ImageNet, at 224 pixels and patch 16 (which the paper trained could not be read): width, heads.
IMAGENET_MODELS = {"ViT-Tiny": (192, 3), "ViT-Base": (768, 12)}
IMAGENET_IMAGES, IMAGENET_EPOCHS = 1_281_167, 300
PAIRS = len(PAPER_SEEDS)


def answer() -> str:
    """The chapter's answer: what the records say of each of the three comparisons; without a pair, what there is and
    what a run costs."""
    tables = {experiment: finals for experiment in PAPER if len(finals := load_runs(experiment))}
    said = [
        f"* {TITLES[experiment]} ({', '.join(sorted(set(finals['device.name'])))}): {central(finals)}"
        for experiment, finals in tables.items() if set(PAIR) <= set(finals["arm"])
    ]  # fmt: skip
    if said:
        return "**Answer.**\n\n" + "\n".join(said)
    measured = steps_measured()
    measured = measured[measured["experiment"] == PAPER[0]]
    if measured.empty and not tables:
        return (
            "**Answer.** Not known yet: **no GPU result is in.** No run of this chapter has been made on a GPU."
            " Everything below is the plan, counted and tested on a CPU;"
            f" `{COMMAND}` makes the runs, and this page follows."
        )
    missing = "**no run at this scale is finished**"
    if tables:
        missing = f"**no pair of runs at this scale is finished** ({'; '.join(map(_alone, tables.values()))})"
    text = f"**Answer.** Not known yet: {missing}. `{COMMAND}` makes the runs, and this page follows."
    return text if measured.empty else f"{text} {_cost(measured.iloc[-1])}"


def _alone(finals: pd.DataFrame) -> str:
    """Runs of one experiment that have no partner yet, in words."""
    names = dict(zip(PAIR, ("default", "mimetic"), strict=True))
    runs = [
        f"{names.get(row['arm'], row['arm'])}, seed {row['seed']}, ends at {percent(row['test_accuracy'], 1)}"
        for _, row in finals.iterrows()
    ]
    return f"{TITLES[finals['experiment'].iloc[0]]}: {', '.join(runs)}"


def _cost(row: pd.Series) -> str:
    """What a GPU needs for a run, by a measured step and, where there are any, by whole runs."""
    whole = throughput((row["experiment"],))
    whole = whole[whole["device"] == row["device"]] if len(whole) else whole
    minutes = whole["minutes a run"].iloc[0] if len(whole) else row["minutes"]
    took = f"will take {minutes:.1f} minutes of training on an {row['device']}"
    if len(whole):
        took = f"took {minutes:.1f} minutes on an {row['device']}, evaluation and saving included"
    target = "is met" if minutes <= TARGET_MINUTES else "is missed"
    return (
        f"A run of {TITLES[row['experiment']]} {took}; our target of {TARGET_MINUTES:.0f}, set for an H100, {target}."
        f" (In a benchmark a training step takes {1e3 * row['step']:.0f} ms, {row['images_per_second']:,.0f} images a"
        f" second and {percent(row['peak'])} of the card's peak.) {versus_timm(row['device'])}".rstrip()
    )


def _images(config: VisionConfig) -> int:
    """How many images a run of this chapter trains on, each as often as there are epochs."""
    return TRAIN_SIZES[config.dataset] * config.epochs


def steps_measured() -> pd.DataFrame:
    """One row an experiment of this chapter and card, the newest `bench profile`: experiment, device, step (seconds),
    images_per_second, peak (share), finished, minutes of training in a run."""
    columns = ["experiment", "minutes", "device", "step", "images_per_second", "peak", "finished"]
    rows = []
    for _, row in _on_gpus(PAPER).iterrows():
        minutes = _images(named(row["arguments.experiment"])) / row["images_per_second"] / 60
        rows.append((row["arguments.experiment"], minutes, *row[columns[2:]]))
    return pd.DataFrame(rows, columns=columns).drop_duplicates(["experiment", "device"], keep="last", ignore_index=True)


def _on_gpus(experiments: Collection[str]) -> pd.DataFrame:
    """Every stored `bench profile` of these experiments on a GPU, oldest first."""
    table = load_bench("profile")
    if table.empty:
        return table
    return table[table["arguments.experiment"].isin(experiments) & (table["device"].map(flops.peak) > 0)]


def steps_so_far() -> pd.DataFrame:
    """One row a stored `bench profile` of PAPER's first experiment on a GPU, oldest first: what a step took, and what
    of it the GPU computed."""
    rows = [
        {
            "card": row["device"],
            "ms a step": round(1e3 * row["step"], 1),
            "ms the GPU computes": round(1e3 * row["step"] * row["busy"], 1),
            "ms to make a batch, alone": round(1e3 * row["phases"]["batch and augmentation"], 1),
            "images/s": round(row["images_per_second"]),
            "share of peak (%)": round(100 * row["peak"], 1),
        }
        for _, row in _on_gpus(PAPER[:1]).iterrows()
    ]
    return pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1, name="measurement"))


def largest_kernels() -> pd.DataFrame:
    """The kernels that took most of the GPU's time in the newest profile of PAPER's first experiment that names them:
    kind and share (percent); empty without one."""
    table = load_bench("profile")
    tops = table.loc[table["arguments.experiment"] == PAPER[0], "top"].dropna() if "top" in table else ()
    top = tops.iloc[-1] if len(tops) else {}
    rows = {name: {"kind": kind_of(name), "share (%)": round(100 * share, 1)} for name, share in top.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["kind", "share (%)"]).rename_axis("kernel")


def versus_timm(device: str) -> str:
    """How much faster than timm's own ingredients training is on a card, in a sentence; "" where it was not
    measured."""
    table = load_bench("train")
    table = table[(table["arguments.experiment"] == PAPER[0]) & (table["device"] == device)] if len(table) else table
    if table.empty:
        return ""
    row = table.iloc[-1]
    best = max(row["timm"], key=row["timm"].get)
    steps = steps_measured()
    finished = steps["finished"][(steps["experiment"] == PAPER[0]) & (steps["device"] == device)]
    newer = (finished > row["finished"]).any()
    which = "with an earlier version of the step" if newer else "in that shorter measurement"
    return (
        f"timm's model of the same size, compiled, with its own per-image transforms ({best}) reached"
        f" {row['timm'][best]:,.0f} images a second there, ours {row['ours']:,.0f} in the same call:"
        f" {row['ratio']:.1f} times as many ({which})."
    )


def state() -> pd.DataFrame:
    """One row an experiment of the queue `paper`: runs wanted and there."""
    rows = [(config.experiment, existing(config) is not None) for config in QUEUES["paper"]()]
    groups = pd.DataFrame(rows, columns=["experiment", "there"]).groupby("experiment", sort=False)["there"]
    return groups.agg(["size", "sum"]).rename(columns={"size": "runs", "sum": "recorded"})


def recipe(experiment: str = "cifar10-paper") -> pd.DataFrame:
    """The recipe, setting by setting, and where each comes from."""
    c = named(experiment)
    rows = {
        "model": (f"width {c.d_model}, {c.depth} layers of {c.num_heads} heads", "papers that compare with it"),
        "epochs": (c.epochs, "our choice"),
        "position, pooling": (f"{c.pos_embed}, {c.global_pool}", "papers that compare with it"),
        "patch": (f"{c.patch_size} pixels, {(32 // c.patch_size) ** 2} tokens", "our choice"),
        "batch": (c.batch_size, "our choice"),
        "optimiser": (f"AdamW, peak {c.lr:g}, weight decay {c.weight_decay:g}", "our choice"),
        "schedule": (f"{percent(c.warmup)} warm-up, cosine to 0", "our choice"),
        "augmentation": (f"crop, flip, RandAugment({c.randaugment_ops}, {c.randaugment_magnitude})", "our choice"),
        "clipping, smoothing": (f"{c.grad_clip:g}, {c.label_smoothing:g}", "our choice"),
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "where from"])


def budget() -> pd.DataFrame:
    """One row an experiment of PAPER: GFLOP an image, PFLOP a run, and minutes a run at SHARES of an H100's peak in
    bfloat16."""
    rows = {}
    for name in PAPER:
        config = named(name)
        image = flops.total(vit_config(config))
        run = image * _images(config)
        times = {f"min at {percent(share)}": round(run / (share * flops.peak(CARD)) / 60, 1) for share in SHARES}
        rows[TITLES[name]] = {"GFLOP an image": round(image / 1e9, 2), "PFLOP a run": round(run / 1e15, 1)} | times
    return pd.DataFrame.from_dict(rows, orient="index")


def minutes() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Lines and points for figures.minutes_by_share: counted for an H100; and of records or, where there are none, of a
    measured step."""
    names = {"cifar10-paper": "ViT-Tiny, 100 epochs", "cifar10-small": "ViT-Small, 100 epochs"}
    runs = {name: flops.total(vit_config(named(name))) * _images(named(name)) for name in names}
    lines = [
        {"label": names[n], "share": s, "minutes": run / (s * flops.peak(CARD)) / 60}
        for n, run in runs.items()
        for s in (0.05, *SHARES)
    ]
    there = throughput(tuple(names))
    points = [
        {"label": names[row["experiment"]], "share": row["share of peak (%)"] / 100, "minutes": row["minutes a run"]}
        for _, row in there.dropna().iterrows()
    ]
    recorded = set(there["experiment"]) if len(there) else set()
    points += [
        {"label": names[row["experiment"]], "share": row["peak"], "minutes": row["minutes"]}
        for _, row in steps_measured().iterrows() if row["experiment"] in names and row["experiment"] not in recorded
    ]  # fmt: skip
    return pd.DataFrame(lines), pd.DataFrame(points, columns=["label", "share", "minutes"])


def anatomy() -> pd.DataFrame:
    """Share of the FLOPs by part, in percent; a column an experiment."""
    columns = {}
    for name in ("cifar10-lab30", "cifar10-paper", "cifar10-small"):
        parts = flops.flops(vit_config(named(name)))
        columns[TITLES[name]] = {part: 100 * value / sum(parts.values()) for part, value in parts.items()}
    return pd.DataFrame(columns).round(1)


def throughput(experiments: Sequence[str] = ("cifar10-lab30", *PAPER)) -> pd.DataFrame:
    """One row an experiment and device with records: images/s of its runs, TFLOP/s, share of the card's peak (percent;
    nan where the peak is not known), minutes a run (medians; slowest, fastest, least, most: of the runs), evaluation
    and compiling included."""
    rows = []
    for name in experiments:
        finals = load_runs(name)
        if finals.empty:
            continue
        image = flops.total(vit_config(named(name)))
        for device, part in finals.groupby("device.name"):
            speed = part["images_per_second"].median()
            rows.append(
                {
                    "experiment": name,
                    "device": device,
                    "runs": len(part),
                    "images/s": round(speed),
                    "TFLOP/s": round(speed * image / 1e12, 3),
                    "share of peak (%)": round(100 * speed * image / flops.peak(device), 1),
                    "minutes a run": round(part["seconds.total"].median() / 60, 1),
                    "slowest": part["images_per_second"].min(),
                    "fastest": part["images_per_second"].max(),
                    "least": part["seconds.total"].min() / 60,
                    "most": part["seconds.total"].max() / 60,
                }
            )
    return pd.DataFrame(rows)


def throughput_table() -> pd.DataFrame:
    """throughput for the page: medians with their ranges."""
    table = throughput()
    if table.empty:
        return table
    spans = {"images/s": ("slowest", "fastest", ",.0f"), "minutes a run": ("least", "most", ".1f")}
    for name, (low, high, form) in spans.items():
        table[name] = [
            f"{row[name]:{form}}" + (f" ({row[low]:.0f} to {row[high]:.0f})" if row["runs"] > 1 else "")
            for _, row in table.iterrows()
        ]
        table = table.drop(columns=[low, high])
    table["TFLOP/s"] = [f"{v:.2g}" if v < 10 else f"{v:.0f}" for v in table["TFLOP/s"]]
    names = {"images/s": "images/s in training", "minutes a run": "minutes a run, all included"}
    return blank(table.set_index("experiment").rename(TITLES).rename(columns=names)).replace("", "–")


def priority() -> str:
    """The order of the queue `paper`, in words."""
    runs = QUEUES["paper"]()
    rest = len(runs) - PAIRS * len(PAIR) * len(PAPER)
    return (
        f"{len(runs)} runs: {PAIRS} pairs of each of {'; '.join(TITLES[name] for name in PAPER)}; then {rest} runs for"
        " the first three questions of chapter 7 (which half, structure or scale, signs)."
    )


# --- ImageNet --------------------------------------------------------------------------------------------------------


def imagenet_config(name: str) -> ViTConfig:
    """The models of IMAGENET_MODELS by name: 224 pixels, patch 16, average pooling."""
    d_model, num_heads = IMAGENET_MODELS[name]
    return ViTConfig(d_model=d_model, num_heads=num_heads, global_pool="avg")


def imagenet_cost(gpus: Sequence[int] = (8, 32)) -> str:
    """A Markdown table, one row a model and share of the peak: H100 hours of a run of 300 epochs and of five pairs,
    images that each GPU must be given every second, and for each number of GPUs the hours of the five pairs. Of
    ViT-Tiny also at the highest share that records reach on CIFAR."""
    rows = []
    for name in IMAGENET_MODELS:
        config = imagenet_config(name)
        model = f"{name} ({flops.parameters(config) / 1e6:.1f} M parameters)"
        shares = [(share, "measured on CIFAR") for share in reached() if name == "ViT-Tiny"]
        for share, where in (*shares, (0.2, "assumed"), (0.4, "assumed")):
            run = imagenet_hours(name, share)
            rows.append(
                {
                    "model, share of the peak": f"{model}, {percent(share)} ({where})",
                    "images/s a GPU": f"{round(share * flops.peak(CARD) / flops.total(config), -2):,.0f}",
                    "GPU hours a run": f"{run:.1f}",
                    f"GPU hours of {PAIRS} pairs": f"{2 * PAIRS * run:.0f}",
                }
                | {f"hours on {count} GPUs": f"{2 * PAIRS * run / count:.1f}" for count in gpus}
            )
    return markdown(pd.DataFrame(rows))


def imagenet_hours(name: str, share: float) -> float:
    """Hours of one H100 for one run of 300 epochs at a share of its peak."""
    return flops.total(imagenet_config(name)) * IMAGENET_IMAGES * IMAGENET_EPOCHS / (share * flops.peak(CARD)) / 3600


def reached() -> list[float]:
    """The highest share of its card's peak that a recorded run of this chapter reaches; empty without one."""
    measured = throughput(PAPER)
    known = measured["share of peak (%)"].dropna() if len(measured) else measured
    return [known.max() / 100] if len(known) else []
