"""The report, from run directories written by hand."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from matplotlib.colors import to_hex

from flsimulation.errors import InputError
from flsimulation.report import formats, partition_figure, png, write_pngs, write_report
from flsimulation.report.figures import plots
from flsimulation.report.figures.canvas import BLUE, GREEN, ORANGE, VERMILION
from flsimulation.report.scores import Spread, client_spread, failure_counts, phase_seconds
from flsimulation.rundir import RunRecord

XHTML = "{http://www.w3.org/1999/xhtml}"
TOML = 'name = "tiny"\nseed = 7\n\n[data]\nclients = 2\n\n[strategy]\nname = "fedavg"\nrounds = 3\n'


def manifest(**changes):
    return {
        "name": "tiny",
        "state": "completed",
        "started": "2025-03-01T12:30:00+00:00",
        "seconds": 250.0,
        "seed": 7,
        "rounds": 2,
        "error": None,
        "versions": {"flsimulation": "0.1.0", "torch": "2.9.0"},
        "host": {"system": "Linux", "processor-count": 4, "memory-bytes": 8_000_000_000},
        "gpu": "A Fast One",
        "data": {
            "dataset": "mnist",
            "digest": "abc123",
            "classes": ["cat", "dog"],
            "train-examples": 60_000,
            "test-examples": 10_000,
            "clients": 2,
            "histogram": {"0": [30, 10], "1": [0, 20]},
        },
        "model": {"class": "mlp", "parameters": 134_794},
        "peak-memory-bytes": 812_000_000,
        "weights-sha256": "def456",
    } | changes


def a_round(number, loss, accuracy, **changes):
    return {
        "round": number,
        "central": {"loss": loss, "accuracy": accuracy},
        "federated": {"loss": loss + 0.5, "accuracy": accuracy - 0.25},
        "train": None,
        "cohort": [0, 1],
        "failures": {},
        "seconds": {"total": 2.0, "train": 1.0, "aggregate": 0.25, "evaluate": 0.5},
        "bytes": {"down": 1_000_000, "up": 500_000},
        "weights_sha256": "00",
    } | changes


def final(partition, accuracy, number=2, phase="final", **more):
    return {
        "round": number,
        "phase": phase,
        "partition": partition,
        "num-examples": 5,
        "loss": 1.0,
        "accuracy": accuracy,
    } | more


def failed(number, partition, reason, error="boom", phase="train"):
    named = {"round": number, "phase": phase, "partition": partition}
    return named | {"reason": reason, "error": error}


MANIFEST = manifest()
ROUNDS = (a_round(1, 2.0, 0.5), a_round(2, 1.0, 0.75))
CLIENTS = (final(0, 0.9), final(1, 0.5))


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def run_dir(tmp_path):
    """Write a run directory: two finished rounds of two clients, unless told otherwise."""

    def write(rounds=ROUNDS, clients=CLIENTS, manifest=MANIFEST, toml=TOML):
        folder = tmp_path / "run"
        folder.mkdir()
        files = {
            "rounds.jsonl": rounds and lines(*rounds),
            "clients.jsonl": clients and lines(*clients),
        }
        files |= {"manifest.json": manifest and json.dumps(manifest), "experiment.toml": toml}
        for name, text in files.items():
            if text:
                (folder / name).write_text(text, encoding="utf-8")
        return folder

    return write


def page(folder):
    """The page as a tree, and its text."""
    text = write_report(folder).read_text(encoding="utf-8")
    return ET.fromstring(text.removeprefix("<!DOCTYPE html>")), text


def words(element):
    return " ".join("".join(element.itertext()).split())


def tiles(tree):
    (found,) = (e for e in tree.iter(f"{XHTML}dl") if e.get("class") == "tiles")
    return {words(t[0]): [words(part) for part in t[1:]] for t in found}


def table(tree, caption):
    """Header and rows of the table with this caption."""
    (found,) = (
        t for t in tree.iter(f"{XHTML}table") if words(t.find(f"{XHTML}caption")) == caption
    )
    return [[words(cell) for cell in row] for row in found.iter(f"{XHTML}tr")]


# ---- reading


def test_reads_all_files(run_dir):
    record = RunRecord(run_dir())
    assert [record["round"] for record in record.rounds] == [1, 2]
    assert [record["accuracy"] for record in record.evaluated] == [0.9, 0.5]
    assert record.manifest["seed"] == 7
    assert record.settings["strategy"]["rounds"] == 3
    assert record.toml == TOML


@pytest.mark.parametrize(
    "tail", [b'{"round": 3, "cen', b'{"round": 3, "cen\n', b'{"name": "\xc3', b"\0\0\0"]
)
def test_a_last_line_cut_short_is_left_out(run_dir, tail):
    folder = run_dir()
    for name in ("rounds.jsonl", "clients.jsonl"):
        with (folder / name).open("ab") as file:
            file.write(tail)
    record = RunRecord(folder)
    assert len(record.rounds) == 2
    assert len(record.evaluated) == 2


def test_a_last_line_that_only_lacks_its_newline_counts(run_dir):
    folder = run_dir()
    (folder / "rounds.jsonl").write_text(lines(*ROUNDS).rstrip("\n"))
    assert len(RunRecord(folder).rounds) == 2


@pytest.mark.parametrize("bad", ['{"round": 2, "cen', "[1]", '{"central": null}', '{"round": "2"}'])
def test_a_damaged_line_in_the_middle_is_named(run_dir, bad):
    folder = run_dir()
    (folder / "rounds.jsonl").write_text(lines(ROUNDS[0]) + bad + "\n" + lines(ROUNDS[1]))
    with pytest.raises(InputError, match=r"rounds\.jsonl:2: damaged: ") as caught:
        _ = RunRecord(folder).rounds
    assert "\n" not in str(caught.value)


def test_a_damaged_manifest_is_named(run_dir):
    folder = run_dir()
    (folder / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json: damaged: "):
        _ = RunRecord(folder).manifest


@pytest.mark.parametrize("name", ["", "absent"])
def test_another_directory_is_no_run_directory(tmp_path, name):
    for use in (RunRecord, write_report, lambda path: write_pngs(path, tmp_path)):
        with pytest.raises(
            InputError, match="is not a run directory; it contains neither"
        ) as caught:
            use(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_repeated_round_counts_once(run_dir):
    again = a_round(2, 0.5, 0.875)
    record = RunRecord(
        run_dir((*ROUNDS, again), (failed(2, 1, "lost"), final(1, 0.5, phase="train")))
    )
    assert [record["central"]["loss"] for record in record.rounds] == [2.0, 0.5]
    assert record.failures == ()


def test_scores_are_those_of_the_last_finished_round(run_dir):
    early = [final(p, 0.1, 1, "evaluate") for p in (0, 1)]
    last = [final(p, 0.2, 2, "evaluate") for p in (1, 0)]
    unfinished = [final(0, 0.3, 3, "evaluate")]
    record = RunRecord(run_dir(clients=(*early, *last, *unfinished)))
    assert [(r["partition"], r["accuracy"]) for r in record.evaluated] == [(0, 0.2), (1, 0.2)]


# ---- numbers


def test_spread_over_eleven_clients():
    """Values 1..11 hundredths: the worst tenth are two clients, 0.01 and 0.02."""
    spread = client_spread(record_of(*(final(p, (11 - p) / 100) for p in range(11))))
    assert spread.ranked[0] == (10, 0.01)
    assert spread.mean == pytest.approx(0.06)
    assert spread.std == pytest.approx(math.sqrt((11**2 - 1) / 12) / 100)
    assert spread.worst_tenth == pytest.approx(0.015)


def record_of(*scores, failures=(), rounds=ROUNDS, **changes):
    """A run directory with these lines, read whole: it is gone when this returns."""
    with TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "rounds.jsonl").write_text(lines(*rounds))
        (path / "clients.jsonl").write_text(lines(*failures, *scores))
        (path / "manifest.json").write_text(json.dumps(manifest(**changes)))
        (path / "experiment.toml").write_text(TOML)
        record = RunRecord(path)
        assert record.manifest
        assert record.settings
        assert len(record.evaluated) == len(scores)
    return record


def test_without_accuracy_the_largest_loss_is_worst():
    scores = [final(p, None, loss=loss) for p, loss in enumerate((1.0, 3.0, 2.0))]
    spread = client_spread(record_of(*scores))
    assert spread.metric == "loss"
    assert spread.ranked == ((1, 3.0), (2, 2.0), (0, 1.0))
    assert spread.worst_tenth == 3.0


def test_failures_are_the_larger_of_both_counts():
    rounds = [a_round(1, 1, 1, failures={"lost": 2, "error": 1})]
    listed = [failed(1, 0, "lost"), *(failed(t, p, "error") for t in (1, 2) for p in (0, 1))]
    counts = failure_counts(record_of(rounds=rounds, failures=listed))
    assert counts == {1: {"lost": 2, "error": 2}, 2: {"error": 2}}


def test_other_is_the_rest_of_the_total():
    assert phase_seconds(ROUNDS[0]) == {
        "train": 1,
        "aggregate": 0.25,
        "evaluate": 0.5,
        "other": 0.25,
    }
    assert sum(phase_seconds({"round": 1}).values()) == 0


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (formats.duration(0.42), "0.42 s"),
        (formats.duration(59.97), "1 min 0 s"),
        (formats.duration(7500), "2 h 5 min"),
        (formats.size(999), "999 B"),
        (formats.size(999_700), "1 MB"),
        (formats.size(12_400_000), "12.4 MB"),
        (formats.score("accuracy", 0.98765), "98.77%"),
        (formats.score("loss", 0.123456), "0.1235"),
        (formats.listing([1, 2, 3], most=2), "1, 2 and 1 more"),
    ],
)
def test_numbers_as_people_read_them(written, text):
    assert written == text


# ---- figures


def axes_of(figure):
    return figure.axes[0]


def drawn_lines(figure):
    return {line.get_label(): line for line in axes_of(figure).lines}


def test_curves_are_the_recorded_values():
    found = drawn_lines(plots.accuracy_figure(record_of()))
    central, federated = found["central (test set)"], found["federated (clients)"]
    assert central.get_xydata().tolist() == [[1, 0.5], [2, 0.75]]
    assert federated.get_xydata().tolist() == [[1, 0.25], [2, 0.5]]
    assert drawn_lines(plots.loss_figure(record_of()))[
        "central (test set)"
    ].get_ydata().tolist() == [2, 1]


def test_a_round_without_evaluation_is_passed_over_and_a_diverged_one_leaves_a_gap():
    rounds = [*ROUNDS, a_round(3, 1, 1, central=None), a_round(4, 1, 1, central={"loss": None})]
    line = drawn_lines(plots.loss_figure(record_of(rounds=rounds)))["central (test set)"]
    np.testing.assert_array_equal(line.get_xydata(), [[1, 2], [2, 1], [4, math.nan]])


def test_what_was_not_measured_is_not_drawn():
    rounds = [a_round(1, 1, 1, central={"loss": 1.0}, federated=None)]
    record = record_of(rounds=rounds, data={})
    assert plots.figures(record).keys() == {"loss", "times"}
    assert drawn_lines(plots.loss_figure(record)).keys() == {"central (test set)"}


@pytest.mark.parametrize("rounds", [1, 3, 20, 200])
def test_round_ticks_are_whole_and_few(rounds):
    record = record_of(rounds=[a_round(i + 1, 1.0, 0.5) for i in range(rounds)])
    for figure in (plots.loss_figure(record), plots.times_figure(record)):
        low, high = axes_of(figure).get_xlim()
        ticks = [tick for tick in axes_of(figure).get_xticks() if low <= tick <= high]
        assert (low, high) == (0.5, rounds + 0.5)
        assert 1 <= len(ticks) <= 10
        assert all(tick == int(tick) for tick in ticks)


def test_a_loss_over_decades_is_logarithmic():
    rounds = [a_round(1, 1e30, 0.1), a_round(2, 1.0, 0.1)]
    axes = axes_of(plots.loss_figure(record_of(rounds=rounds)))
    assert axes.get_yscale() == "log"
    png(axes.figure)
    assert max(len(label.get_text()) for label in axes.get_yticklabels()) <= 7


def test_times_are_stacked():
    axes = axes_of(plots.times_figure(record_of()))
    bars = {c.get_label(): [(b.get_y(), b.get_height()) for b in c] for c in axes.containers}
    assert bars["train"] == [(0, 1)] * 2
    assert bars["aggregate"] == [(1, 0.25)] * 2
    assert bars["evaluate"] == [(1.25, 0.5)] * 2
    assert bars["other"] == [(1.75, 0.25)] * 2
    assert [to_hex(c[0].get_facecolor()) for c in axes.containers[:3]] == [BLUE, ORANGE, GREEN]


def test_times_of_many_rounds_are_outlines():
    record = record_of(rounds=[a_round(i + 1, 1.0, 0.5) for i in range(100)])
    shapes = {p.get_label(): p.get_data() for p in axes_of(plots.times_figure(record)).patches}
    assert shapes.keys() == {"train", "aggregate", "evaluate", "other"}
    assert set(shapes["other"].values) == {2.0}
    assert set(np.atleast_1d(shapes["other"].baseline)) == {1.75}
    assert shapes["train"].edges[[0, -1]].tolist() == [0.5, 100.5]


def test_failures_by_reason():
    listed = (failed(2, 0, "lost"), failed(2, 1, "error"), failed(3, 1, "error"))
    axes = axes_of(plots.failures_figure(record_of(failures=listed)))
    bars = {c.get_label(): [b.get_height() for b in c] for c in axes.containers}
    assert bars == {"error": [0, 1, 1], "lost": [0, 1, 0]}
    assert plots.failures_figure(record_of()) is None


def test_clients_are_sorted_bars_with_mean_and_worst_tenth():
    figure = plots.clients_figure(record_of(*CLIENTS))
    axes = axes_of(figure)
    assert [bar.get_height() for bar in axes.patches] == [0.5, 0.9]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "0"]
    levels = {name: line.get_ydata()[0] for name, line in drawn_lines(figure).items()}
    assert levels == {"mean": pytest.approx(0.7), "worst tenth": 0.5}
    assert to_hex(drawn_lines(figure)["worst tenth"].get_color()) == VERMILION


def test_many_clients_are_a_distribution():
    figure = plots.clients_figure(record_of(*(final(p, p / 99) for p in range(100))))
    (shape,) = axes_of(figure).patches
    assert shape.get_data().values.tolist() == [5] * 20
    assert drawn_lines(figure)["mean"].get_xdata()[0] == pytest.approx(0.5)


def test_few_clients_are_rows_with_their_numbers():
    axes = axes_of(partition_figure({"1": [0, 2000], "0": [30, 10]}, ["cat", "dog"]))
    assert axes.images[0].get_array().tolist() == [[30, 10], [0, 2000]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1"]
    assert [text.get_text() for text in axes.texts] == ["30", "10", "2,000"]


def test_many_clients_are_columns_in_numerical_order():
    histogram = {str(p): [p, 0, 1] for p in reversed(range(120))}
    axes = axes_of(partition_figure(histogram, ["cat"]))
    assert axes.images[0].get_array().shape == (3, 120)
    assert axes.images[0].get_array()[0].tolist() == list(range(120))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "1", "2"]


def test_sizes_are_bars():
    few = axes_of(partition_figure({"0": [5], "1": [7]}))
    assert [bar.get_height() for bar in few.patches] == [5, 7]
    many = axes_of(partition_figure({str(p): [p] for p in range(100)}))
    assert many.patches[0].get_data().values.tolist() == list(range(100))


def test_names_that_are_formulas_or_of_other_scripts_are_drawn():
    figure = partition_figure({"0": [1, 2, 3]}, [r"$\frac$", "犬", "a\x1bb" + "c" * 40])
    names = [label.get_text() for label in axes_of(figure).get_xticklabels()]
    assert names == [r"$\frac$", "犬", "a b" + "c" * 12 + "…"]
    assert png(figure).startswith(b"\x89PNG")


def test_drawing_leaves_no_trace_in_matplotlib():
    import matplotlib

    with matplotlib.rc_context({"axes.facecolor": "red", "figure.autolayout": True}):
        before = dict(matplotlib.rcParams)
        figure = plots.loss_figure(record_of())
        png(figure)
        assert dict(matplotlib.rcParams) == before
    assert axes_of(figure).get_facecolor()[3] == 0
    assert figure.get_layout_engine() is None


# ---- the page


def test_the_page_says_the_numbers(run_dir):
    tree, _ = page(run_dir())
    assert tiles(tree) == {
        "Test accuracy": ["75.00%", "after round 2"],
        "Test loss": ["1", "after round 2"],
        "Rounds": ["2", "of 3"],
        "Clients": ["2", "2 a round"],
        "Parameters": ["134,794", "mlp"],
        "Peak memory": ["812 MB"],
        "Traffic": ["3 MB", "all messages"],
        "Failures": ["0"],
    }
    assert table(tree, "All rounds")[2] == [
        "2", "1", "75.00%", "1.5", "50.00%", "2", "0", "2.00 s", "1.5 MB",
    ]  # fmt: skip
    assert ["Aggregate", "0.50 s", "0.25 s", "12%"] in table(tree, "Where the time went")
    assert table(tree, "Clients served worst")[1:] == [
        ["1", "50.00%", "1", "5", "20", "1"],
        ["0", "90.00%", "1", "5", "40", "2"],
    ]
    assert ["Standard deviation", "20.00%"] in table(tree, "Spread over clients")


def test_the_page_says_what_ran(run_dir):
    tree, text = page(run_dir())
    head = words(tree.find(f"{XHTML}body/{XHTML}header"))
    for part in (
        "tiny completed",
        "fedavg",
        "Started 1 March 2025, 12:30 UTC",
        "4 min 10 s",
        "Seed 7",
    ):
        assert part in head
    assert "".join(TOML.split()) in "".join("".join(tree.itertext()).split())
    details = words(next(tree.iter(f"{XHTML}details")))
    for part in (
        "abc123",
        "def456",
        "torch 2.9.0",
        "Processors 4",
        "Memory 8 GB",
        "GPU A Fast One",
        "60,000",
    ):
        assert part in details
    captions = [words(caption) for caption in tree.iter(f"{XHTML}figcaption")]
    assert "mean 70.00%, standard deviation 20.00%, worst tenth 50.00%" in captions[3]
    assert (
        captions[2]
        == "2 clients with 20 to 40 examples each, of 1 to 2 classes; median 30 examples."
    )
    assert "No client failed." in text


def test_failures_are_grouped_by_what_they_say(run_dir):
    listed = [failed(1, 0, "error"), failed(2, 1, "error"), failed(2, 0, "lost", None)]
    tree, _ = page(run_dir(clients=listed))
    assert table(tree, "What the clients reported")[1:] == [
        ["error", "boom", "2", "0, 1", "1, 2"],
        ["lost", formats.ABSENT, "1", "0", "2"],
    ]
    assert tiles(tree)["Failures"] == ["3", "error, lost"]
    assert table(tree, "Why clients failed")[1][:2] == ["error", "2"]


@pytest.mark.parametrize("missing", ["manifest", "toml"])
def test_a_run_killed_before_its_first_round_has_a_page(run_dir, missing):
    killed = manifest(state="running", seconds=None, rounds=0) | {"peak-memory-bytes": None}
    given = {"manifest": killed, "toml": TOML} | {missing: None}
    tree, text = page(run_dir(rounds=None, clients=None, **given))
    assert "The run has finished no round." in text
    assert tiles(tree)["Rounds"][0] == "0"
    assert "Test accuracy" not in tiles(tree)
    assert {e.tag for e in tree.iter() if e.tag.endswith("svg")} == (
        set() if missing == "manifest" else {"{http://www.w3.org/2000/svg}svg"}
    )
    assert ("was killed" in text) == (missing == "toml")
    assert ("holds no experiment.toml" in text) == (missing == "toml")


def test_null_values_and_other_metrics_are_no_obstacle(run_dir):
    odd = a_round(1, 1, 1, central={"loss": None, "f1": 0.5}, federated=None, seconds={}, bytes={})
    tree, _ = page(run_dir([odd | {"cohort": None, "failures": None}], None))
    assert table(tree, "All rounds") == [
        ["Round", "Central loss", "Central f1", "Clients", "Failures", "Time", "Traffic"],
        ["1", formats.ABSENT, "0.5", "0", "0", formats.ABSENT, "0 B"],
    ]
    assert "Test f1" in tiles(tree)


def test_rounds_without_a_finite_score_have_no_figure(run_dir):
    odd = a_round(1, 1, 1, central={"loss": None}, federated=None)
    assert "No round has measured a finite loss or accuracy." in page(run_dir([odd], None))[1]


def test_a_regression_has_its_own_metric_and_claims_no_accuracy(run_dir):
    sizes = MANIFEST["data"] | {"classes": [], "histogram": {"0": [40], "1": [20]}}
    rounds = [
        a_round(i, 1, 1, central={"loss": loss, "R2": r2}, federated=None)
        for i, loss, r2 in ((1, 9.1e10, 0.75), (2, 8.25e9, 0.5))
    ]
    clients = [final(p, None, loss=1e9 * (p + 1), R2=0.25 * p) for p in (0, 1)]
    for client in clients:
        del client["accuracy"]
    folder = run_dir(rounds, clients, MANIFEST | {"data": sizes})
    tree, text = page(folder)
    found = tiles(tree)
    assert found["Test R2"] == ["0.5", "after round 2"]
    assert found["Test loss"] == ["8.25e9", "after round 2"]
    assert "Test set: 0.5 after round 2." in text
    assert "Test set: 8.25e9 after round 2." in text
    assert table(tree, "Clients served worst") == [
        ["Client", "R2", "Loss", "Evaluated on", "Holds"],
        ["1", "0.25", "2e9", "5", "20"],
        ["0", "0", "1e9", "5", "40"],
    ]
    assert "accuracy" not in text.replace("target-accuracy", "").lower()
    written = {path.name for path in write_pngs(folder, folder / "plots")}
    assert "metric.png" in written
    assert "accuracy.png" not in written


@pytest.mark.seconds
def test_a_long_run_shows_its_last_thousand_rounds(run_dir):
    tree, _ = page(run_dir([a_round(i + 1, 1.0, 0.5) for i in range(1002)]))
    rows = table(tree, "The last 1,000 rounds; rounds.jsonl has all 1,002")
    assert [rows[1][0], rows[-1][0]] == ["3", "1002"]


def test_hostile_names_and_errors_stay_text(run_dir):
    evil = "</title></svg><script>alert(1)</script>&\x1b[31m\x00"
    bad = manifest(name=evil, state='"><b>', error=evil, started=evil, versions={evil: evil})
    bad["data"] |= {"classes": [evil, "<img src=x>"], "dataset": evil, "digest": evil}
    clients = [failed(1, 0, evil, evil), *CLIENTS]
    tree, text = page(run_dir(clients=clients, manifest=bad, toml=f"# {evil}"))
    assert "<script" not in text
    assert "<img" not in text
    assert "<b>" not in text
    assert "\x1b" not in text
    assert "alert(1)" in words(tree.find(f"{XHTML}head/{XHTML}title"))
    assert not [e.tag for e in tree.iter() if e.tag.rpartition("}")[2] in ("script", "img", "b")]


def test_the_page_needs_nothing_from_outside(run_dir):
    many = manifest()
    many["data"]["histogram"] = {str(p): [p, 1] for p in range(30)}  # drawn as an embedded image
    tree, text = page(run_dir(clients=[*CLIENTS, failed(1, 0, "lost")], manifest=many))
    assert re.findall(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)) == []
    links = [
        v for e in tree.iter() for k, v in e.items() if k.rpartition("}")[2] in ("href", "src")
    ]
    assert {link.split(":")[0] if link.startswith("data:") else link[0] for link in links} == {
        "data",
        "#",
    }
    assert not re.search(r"@import|url\((?!#)", text)


def test_the_pages_figures_do_not_clash_and_are_named(run_dir):
    tree, text = page(run_dir(clients=[*CLIENTS, failed(1, 0, "lost")]))
    ids = [e.get("id") for e in tree.iter() if e.get("id")]
    assert len(ids) == len(set(ids)) > 100
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {a or b for a, b in used} <= set(ids)
    labels = [e.get("aria-label") for e in tree.iter() if e.get("role") == "img"]
    assert len(labels) == 6
    assert all(len(label) > 20 for label in labels)
    assert tree.get("lang") == "en"
    assert all(e.get("scope") for e in tree.iter(f"{XHTML}th"))


def test_figures_take_the_pages_colours(run_dir):
    _, text = page(run_dir())
    assert "var(--ink)" in text
    for name in set(re.findall(r"var\(--([a-z-]+)\)", text)):
        assert text.count(f"--{name}:") == 2, name  # once for light, once for dark


def test_the_same_run_gives_the_same_page(run_dir):
    folder = run_dir()
    assert write_report(folder) == folder / "report.html"
    first = (folder / "report.html").read_bytes()
    write_report(folder)
    assert (folder / "report.html").read_bytes() == first
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []


def test_pngs_are_written_by_name(run_dir, tmp_path):
    written = write_pngs(run_dir(), tmp_path / "new" / "folder")
    assert [path.name for path in written] == [
        "accuracy.png", "loss.png", "partition.png", "clients.png", "times.png",
    ]  # fmt: skip
    for path in written:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n")
        assert int.from_bytes(content[16:20], "big") == 840  # 5.6 inches at 150 dots


@pytest.mark.seconds
def test_a_report_is_drawn_without_pyplot_and_torch(run_dir):
    code = (
        "import sys; from flsimulation.report import write_report; write_report(sys.argv[1]); "
        "print({'matplotlib.pyplot', 'torch', 'flwr'} & set(sys.modules))"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(run_dir())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_importing_the_report_loads_neither_matplotlib_nor_torch():
    code = "import sys, flsimulation.report; print({'matplotlib', 'torch', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_spread_of_many_clients_needs_each_value_a_few_times() -> None:
    asked = 0

    class Ranked(tuple[tuple[int, float], ...]):
        def __iter__(self) -> Iterator[tuple[int, float]]:
            nonlocal asked
            asked += 1
            return super().__iter__()

    spread = Spread("loss", 1, Ranked((i, float(i)) for i in range(50)))
    assert spread.std == pytest.approx(math.sqrt((50**2 - 1) / 12))
    assert asked < 10
