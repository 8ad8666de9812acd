"""Records: what is written is read back, and nothing damaged, edited or misplaced is believed."""

import json
import os

import pytest

from mimetic.data.json_files import digest
from mimetic.training import records
from mimetic.training.records import RecordError, load_runs, read_record, record_path, source_hash, write_record


def make_record(experiment="lab", arm="timm", seed=0, accuracy=(0.1, 0.4)):
    curve = [
        {"epoch": i + 1, "step": 10 * i + 10, "lr": 1e-3, "train_loss": 2 - i, "test_loss": 3 - i, "test_accuracy": a}
        for i, a in enumerate(accuracy)
    ]
    return {
        "experiment": experiment, "arm": arm, "seed": seed, "config": {"epochs": len(curve), "init": arm},
        "curve": curve, "final": curve[-1], "parameters": {"mlp": 5, "total": 7},
        "throughput": {"unit": "images", "per_second": 500.0},
        "seconds": {"train": 1.5, "evaluate": 0.5, "total": 2.25},
        "device": {"type": "cpu", "name": "a processor", "threads": 1, "precision": "float32", "compiled": False},
        "versions": {"python": "3.11.0", "torch": "2.6.0"}, "source": {"sha256": "0" * 64, "files": {}},
        "started": records.now(), "finished": records.now(), "resumed": 0,
    }  # fmt: skip


def test_round_trip(tmp_path):
    path = write_record(make_record(), tmp_path)
    assert path == record_path("lab", "timm", 0, tmp_path) == tmp_path / "lab" / "timm-seed0.json"
    record = read_record(path)
    assert {k: v for k, v in record.items() if k not in ("digest", "schema")} == make_record() | {
        key: record[key] for key in ("started", "finished")
    }
    assert [p.name for p in path.parent.iterdir()] == ["timm-seed0.json"]  # no temporary file is left


def test_load_runs_one_row_a_run_and_one_row_an_epoch(tmp_path):
    for arm, seed, accuracy in [("timm", 1, (0.2, 0.3)), ("timm", 0, (0.1, 0.4)), ("mimetic", 0, (0.2, 0.5, 0.45))]:
        write_record(make_record(arm=arm, seed=seed, accuracy=accuracy), tmp_path)
    write_record(make_record("other"), tmp_path)
    runs = load_runs("lab", folder=tmp_path)
    assert runs[["arm", "seed"]].values.tolist() == [["mimetic", 0], ["timm", 0], ["timm", 1]]
    assert runs["test_accuracy"].tolist() == [0.45, 0.4, 0.3]  # the last epoch, not the best
    assert runs["images_per_second"].tolist() == [500.0] * 3 and runs["config.epochs"].tolist() == [3, 2, 2]
    curves = load_runs("lab", folder=tmp_path, curves=True)
    assert curves.query("arm == 'mimetic'")["test_accuracy"].tolist() == [0.2, 0.5, 0.45]
    assert len(curves) == 7 and len(load_runs(folder=tmp_path)) == 4
    empty = load_runs("nothing-yet", folder=tmp_path)
    assert empty.empty and {"experiment", "arm", "seed"} <= set(empty.columns)


def test_what_is_just_being_written_is_not_read(tmp_path):
    path = write_record(make_record(), tmp_path)
    for other in (path.with_name(f".{path.stem}.0123abcd.tmp.json"), tmp_path / ".ipynb_checkpoints" / "copy.json"):
        other.parent.mkdir(exist_ok=True)
        other.write_text("{half")
    assert len(load_runs(folder=tmp_path)) == len(load_runs("lab", folder=tmp_path)) == 1


def test_folder_can_be_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path / "elsewhere"))
    write_record(make_record())
    assert (tmp_path / "elsewhere" / "lab" / "timm-seed0.json").is_file() and len(load_runs("lab")) == 1


def edit(**changes):
    return lambda record: record | changes


def signed(record):
    """With the digest of what it holds now: written so, by another program."""
    return record | {"digest": digest(record)}


DAMAGE = {
    "no 'source'": lambda record: {k: v for k, v in record.items() if k != "source"},
    "'seconds' is list": edit(seconds=[]),
    "schema 99": edit(schema=99),
    "schema None": lambda record: {k: v for k, v in record.items() if k != "schema"},
    "it is the record of lab/timm-seed3.json": edit(seed=3),
    "'seed' is bool": edit(seed=False),
    "the curve is empty": edit(curve=[]),
    "epochs are not 1, 2, 3": lambda record: record | {"curve": record["curve"][1:]},
    "same metrics": lambda record: record | {"curve": [{"epoch": 1}, record["curve"][1]]},
    "the final metrics are not those of the last epoch": lambda record: record | {"final": record["curve"][0]},
    "test_accuracy of epoch 2 is nan": (
        lambda record: record | {"curve": [record["curve"][0], record["curve"][1] | {"test_accuracy": float("nan")}]}
    ),
    "does not match its digest": edit(config={"epochs": 2, "init": "mimetic"}),
    "no unit or number": lambda record: signed(record | {"throughput": {}}),
    "or no hash of its source": lambda record: signed(record | {"source": {}}),
}


@pytest.mark.parametrize("why", DAMAGE)
def test_damaged_record_is_refused_by_name(tmp_path, why):
    path = write_record(make_record(), tmp_path)
    path.write_text(json.dumps(DAMAGE[why](json.loads(path.read_text()))))
    with pytest.raises(RecordError, match=f"lab/timm-seed0.json is damaged: .*{why}"):
        load_runs(folder=tmp_path)


def test_truncated_and_edited_files_are_refused(tmp_path):
    path = write_record(make_record(), tmp_path)
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match="lab/timm-seed0.json is damaged: not JSON"):
        read_record(path)
    for numbers_that_no_one_reads in ("9" * 5_000, "[" * 100_000, whole.replace("0.4", "1" + "0" * 400)):
        path.write_text(numbers_that_no_one_reads)
        with pytest.raises(RecordError, match="lab/timm-seed0.json is damaged: not JSON"):
            read_record(path)
    path.write_text(whole.replace("0.4", "0.5"))  # curve and final alike
    with pytest.raises(RecordError, match="does not match its digest"):
        read_record(path)


def test_a_bad_record_is_not_written_and_the_old_one_stays(tmp_path, monkeypatch):
    path = write_record(make_record(), tmp_path)
    before = path.read_text()
    with pytest.raises(RecordError, match="nan"):
        write_record(make_record(accuracy=(0.1, float("nan"))), tmp_path)
    with pytest.raises(ValueError, match="experiment must be lower-case"):
        write_record(make_record("../lab"), tmp_path)

    def dies(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(OSError, match="disk full"):
        write_record(make_record(accuracy=(0.9,)), tmp_path)
    assert path.read_text() == before and len(list(tmp_path.rglob("*.*"))) == 1


def test_source_hash_follows_the_source(tmp_path, monkeypatch):
    real = source_hash(["training/loop.py", "construct.py"])
    assert real == source_hash(["construct.py", "training/loop.py"]) and len(real["files"]) == 2
    assert real["sha256"] != source_hash(["construct.py"])["sha256"]
    monkeypatch.setattr(records, "__file__", str(tmp_path / "training" / "records.py"))
    for text in (b"a = 1\n", b"a = 2\n", b"a = 1\r\n"):
        (tmp_path / "x.py").write_bytes(text)
        records._file_hash.cache_clear()
        real[text] = source_hash(["x.py"])["sha256"]
    (tmp_path / "x.py").write_bytes(b"a = 3\n")  # an edit while a queue runs: its processes have the old code
    assert source_hash(["x.py"])["sha256"] == real[b"a = 1\r\n"]
    records._file_hash.cache_clear()
    assert real[b"a = 1\n"] != real[b"a = 2\n"] and real[b"a = 1\n"] == real[b"a = 1\r\n"]
