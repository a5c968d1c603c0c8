"""``sites:FOLDER``: what each site reports, what they agree on, and who is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flsimulation import load_experiment
from flsimulation.cli.main import main
from flsimulation.data.federated import FederatedData
from flsimulation.data.sites.agree import Agreement, agree
from flsimulation.data.sites.joined import load_no_site, load_site, read_facts
from flsimulation.data.sites.moments import Moments, together
from flsimulation.data.sites.raw import read_site
from flsimulation.data.sites.site_facts import SiteFacts, facts_of
from flsimulation.errors import DataError, ExperimentError
from flsimulation.experiment import Experiment, flatten, unflatten
from flsimulation.models import build_model
from flsimulation.rundir import RunRecord

ROOT = Path(__file__).parent.parent
HOSPITALS = ROOT / "experiments" / "sites"


def rows(*lines: str, times: int = 6) -> str:
    """A table of a header and lines, these repeated."""
    return "\n".join([lines[0], *lines[1:] * times]) + "\n"


WELL = rows("age,ward,label", "50,a,well", "60,b,sick")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three sites of one form."""
    path = tmp_path / "sites"
    path.mkdir()
    for site in ("berlin", "lodz", "porto"):
        (path / f"{site}.csv").write_text(WELL)
    return path


def experiment(folder: Path, **data: Any) -> Experiment:
    return Experiment.model_validate(
        {"name": "s", "data": {"dataset": f"sites:{folder}", **data}, "strategy": {"rounds": 1}}
    )


def load(folder: Path, **data: Any) -> FederatedData:
    return FederatedData.load(experiment(folder, **data))


def refused(folder: Path, **data: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(folder, **data)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_sites_of_a_folder_are_the_clients_named_by_it(folder: Path) -> None:
    (folder / "porto.csv").unlink()
    (folder / "README.md").write_text("about")
    spec = experiment(folder)
    assert (spec.data.clients, spec.data.sites) == (2, ["berlin", "lodz"])
    assert unflatten(flatten(spec)) == spec
    data = FederatedData.load(spec)
    assert data.names == ("berlin", "lodz")
    assert [part.tolist() for part in data.partitions] == [[*range(12)], [*range(12, 24)]]
    assert data.histogram() == {"0": [12], "1": [12]}  # and not how many of which class
    assert data.dataset.classes == ("sick", "well")
    assert "no sites, left out: README.md" in data.dataset.notes
    shared = load(folder, share_histogram=True)
    assert shared.histogram() == {"0": [6, 6], "1": [6, 6]}


@pytest.mark.parametrize(
    ("text", "keys", "said"),
    [
        (rows("age,label", "50,well", "60,sick"), {}, "site lodz has no column 'ward', which berlin has; add or rename it there, or set data.input-columns = [\"age\"]"),
        (rows("age,ward,bmi,label", "50,a,1,well", "60,b,2,sick"), {}, "site lodz has the column 'bmi', which berlin does not have; remove it there, or set data.input-columns = [\"age\", \"ward\"]"),
        (rows("ward,age,label", "a,50,well", "b,60,sick"), {}, "site lodz has its columns in another order, 'ward' where berlin has 'age'; reorder them there, or set data.input-columns = [\"age\", \"ward\"]"),
        (rows("age,ward,label", "50,a,healthy", "60,b,sick"), {}, "site lodz has the class 'healthy', which no other site has, and lacks 'well', which all others have; rename it there, or list all classes in data.classes"),
        (rows("age,ward,label", "50,a,healthy", "60,b,sick"), {"classes": ["well", "sick"]}, "site lodz: column 'label' has 'healthy' in 6 rows, which is none of data.classes (well, sick); rename it there, or add it"),
        (rows("age,ward", "50,a", "60,b"), {}, "site lodz: data.label-column 'label' is no column of lodz.csv: age, ward; set data.label-column to one of them"),
        (rows("age,ward,label", "50,a,well", "50,b,sick"), {}, "site lodz has one value only in column 'age'; correct it there, set data.input-columns = [\"ward\"], or data.constant = 'accept' if that is so"),
        (rows("age,ward,label", "50,1,well", "60,2,sick"), {}, "site lodz has numbers in column 'ward', but berlin has words; correct it there, or list its categories in data.categories"),
        (rows("age,ward,label", "50,c,well", "60,b,sick"), {"categories": {"ward": ["a", "b"]}}, "site lodz: column 'ward' has 'c', which is none of data.categories (a, b); correct it there, or add it"),
        (rows("age,ward,label", ",a,well", "60,,sick", "61,b,sick"), {}, "site lodz: of 18 rows, cells are missing: 6 in 'age', 6 in 'ward'; fill them, or set data.fill (or data.fill-columns) to mean, zero or drop"),
        (rows("age,ward,label", "2020-01-05,a,well", "2021-02-03,b,sick"), {}, "site lodz: column 'age' of its table has dates such as '2020-01-05', which are no input; turn dates into numbers, or leave it out by data.input-columns: data.input-columns = [\"ward\"]"),
        (rows("age,ward,label", "50,a,well", "60,b,sick", "61,b,sick", times=1), {}, "site lodz has 3 examples, but data.min-examples is 10; lower it (2 at least), or leave the site out"),
        (rows("age,\"wa\trd\",label", "50,a,well", "60,b,sick"), {}, "site lodz: its name cannot be reported, got 'wa\\trd': must be printable, in one line; shorten or correct it"),
        (rows("age,ward,label", "50,a,1", "60,b,0"), {"classes": ["well", "sick"]}, "site lodz: column 'label' has numbers, but data.classes are words (well, sick); write the classes' names there"),
        (rows("age,ward,label", "50,a,0.5", "60,b,1.5"), {}, "site lodz has labels of a regression, but berlin of a classification; correct them there, or set data.task"),
    ],
)  # fmt: skip
def test_a_site_that_differs_is_refused_by_name_with_the_remedy(
    folder: Path, text: str, keys: dict[str, Any], said: str
) -> None:
    (folder / "lodz.csv").write_text(text)
    assert refused(folder, **keys) == said


@pytest.mark.parametrize(
    "keys",
    [
        {"input_columns": ["age"]},
        {"classes": ["sick", "well", "healthy"], "input_columns": ["age", "ward"]},
        {
            "constant": "accept",
            "input_columns": ["age", "ward"],
            "classes": ["sick", "well", "healthy"],
        },
    ],
)
def test_the_remedies_remedy(folder: Path, keys: dict[str, Any]) -> None:
    name = "healthy" if "classes" in keys else "well"
    age = "50" if keys.get("constant") == "accept" else "55"
    (folder / "lodz.csv").write_text(rows("ward,age,label", f"a,{age},{name}", "b,50,sick"))
    data = load(folder, **keys)
    classes = data.dataset.classes
    labels = data.dataset.y_train[torch.from_numpy(data.partitions[1])]
    assert {classes[int(label)] for label in labels} == {name, "sick"}
    ages = data.dataset.x_train[torch.from_numpy(data.partitions[1]), 0]  # type: ignore[index]
    assert sorted(set(ages.tolist())) == sorted({50.0, float(age)})


def test_classes_are_all_that_the_sites_have_where_none_replaces_another(folder: Path) -> None:
    (folder / "lodz.csv").write_text(rows("age,ward,label", "50,a,well", "60,b,sick", "70,b,dying"))
    assert load(folder).dataset.classes == ("dying", "sick", "well")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"clients": 2}, "data.clients is 2, but there are 3 sites (berlin, lodz, porto); leave data.clients out"),
        ({"partition": "iid"}, "data.partition 'iid' divides one data set"),
        ({"standardize": True}, "data.standardize true needs all rows in one place; set it to 'federated'"),
        ({"fill": "median"}, "data.fill 'median' needs all rows in one place; use 'mean', 'zero' or 'drop'"),
        ({"test": "mnist"}, "data.test must be file:PATH, got 'mnist'"),
        ({"sites": ["berlin", "berlin"]}, "data.sites has 'berlin' twice; remove one"),
        ({"sites": ["a/b"]}, "data.sites has the name 'a/b'; use letters, digits"),
        ({"dataset": "mnist", "classes": ["a"]}, "data.classes ['a'] is for data.dataset 'sites:FOLDER', and it is 'mnist'; remove the key"),
        ({"dataset": "mnist", "standardize": "federated"}, "data.standardize 'federated' is for data.dataset 'sites:FOLDER'"),
        ({"dataset": "sites:nowhere"}, "there is no such folder; create it, or name the sites in data.sites"),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_sites(
    folder: Path, tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    file = tmp_path / "e.toml"
    table = {"dataset": f"sites:{folder}", **keys}
    file.write_text("[data]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items()))
    with pytest.raises(ExperimentError) as caught:
        load_experiment(file)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_sites_of_one_name_are_refused(folder: Path) -> None:
    (folder / "lodz").mkdir()
    with pytest.raises(ValueError, match=r"lodz and lodz.csv are both the site 'lodz'; rename one"):
        experiment(folder)


HELD = {"classes": ["no", "yes"], "label_column": "readmitted"}


def pooled(column: str, rule: str) -> np.ndarray:
    """A numeric column of all hospitals, scaled as if its rows were in one place."""
    import pandas as pd

    frames = [
        pd.read_csv(HOSPITALS / "hospitals" / f"{site}.csv", **options)
        for site, options in (
            ("berlin", {"sep": ";", "decimal": ","}),
            ("lodz", {"encoding": "utf-8-sig"}),
            ("porto", {}),
        )
    ]
    frame = pd.concat(frames, ignore_index=True)
    if rule == "drop":
        frame = frame[frame["bmi"].notna()]
    values = frame[column].fillna(frame[column].mean() if rule == "mean" else 0.0).to_numpy()
    return np.asarray((values - values.mean()) / values.std())


@pytest.mark.parametrize("rule", ["mean", "zero", "drop"])
@pytest.mark.parametrize("column", ["age", "bmi"])
def test_federated_standardisation_equals_that_of_rows_in_one_place(rule: str, column: str) -> None:
    keys = {"fill_columns": {"bmi": rule, "ward": "zero"}, "standardize": "federated"}
    data = load(HOSPITALS / "hospitals", **HELD, **keys)
    place = [own.name for own in data.dataset.columns].index(column)
    found = data.dataset.x_train[:, place].numpy()  # type: ignore[index]
    np.testing.assert_allclose(found, pooled(column, rule), rtol=0, atol=2e-6)


def test_missing_categories_are_none_of_them_and_vocabularies_are_joined(folder: Path) -> None:
    (folder / "lodz.csv").write_text(rows("age,ward,label", "50,c,well", "60,,sick"))
    data = load(folder, fill="zero")
    assert data.dataset.columns[1].names == ("a", "b", "c")
    own = data.dataset.x_train[torch.from_numpy(data.partitions[1])]  # type: ignore[index]
    assert own[:2].tolist() == [[50.0, 0.0, 0.0, 1.0], [60.0, 0.0, 0.0, 0.0]]


def test_a_site_reports_no_more_than_what_is_needed(folder: Path) -> None:
    spec = experiment(folder).data
    facts = read_facts(spec, "lodz", folder / "lodz.csv")
    text = facts.model_dump_json(exclude_defaults=True)
    assert json.loads(text) == {
        "site": "lodz",
        "examples": 12,
        "columns": [
            {"name": "age", "kind": "number"},
            {"name": "ward", "kind": "category", "categories": ["a", "b"]},
        ],
        "task": "classification",
        "target": [],
        "classes": ["sick", "well"],
    }
    keys = {"classes": ["sick", "well"], "categories": {"ward": ["a", "b"]}}
    facts = read_facts(experiment(folder, **keys).data, "lodz", folder / "lodz.csv")
    assert facts.classes == facts.columns[1].categories == ()


def test_each_site_alone_has_the_rows_that_it_has_among_all(folder: Path) -> None:
    spec = experiment(HOSPITALS / "hospitals", fill="mean", standardize="federated", **HELD)
    together = FederatedData.load(spec)
    facts = [
        SiteFacts.model_validate_json(
            read_facts(spec.data, site, HOSPITALS / f"hospitals/{site}.csv").model_dump_json()
        )
        for site in reversed(spec.data.sites)
    ]
    agreement = agree(facts, spec.data)
    assert agreement.digest == together.dataset.digest
    sent = Agreement.model_validate_json(agreement.for_clients())
    assert sent.sizes == ()
    for client, site in enumerate(spec.data.sites):
        path = HOSPITALS / f"hospitals/{site}.csv"
        alone = FederatedData.divide(load_site(spec.data, sent, site, path), spec)
        assert alone.held == [client]
        for part in ("train_indices", "validation_indices"):
            mine, theirs = getattr(alone, part)(client), getattr(together, part)(client)
            x, all_x = alone.dataset.x_train, together.dataset.x_train
            assert torch.equal(x[torch.from_numpy(mine)], all_x[torch.from_numpy(theirs)])  # type: ignore[index]
        with pytest.raises(DataError, match="are not here"):
            alone.train_indices((client + 1) % 3)
    server = FederatedData.divide(load_no_site(spec.data, agreement), spec)
    assert server.dataset.is_placeholder
    assert server.histogram() == together.histogram()
    assert not server.held
    assert server.dataset.x_train.abs().sum() == 0  # type: ignore[union-attr]
    models = [build_model(spec.model, data.dataset, 0) for data in (server, together)]
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_model_of_prices_is_built_from_sums(folder: Path) -> None:
    for number, site in enumerate(("berlin", "lodz", "porto")):
        (folder / f"{site}.csv").write_text(
            rows("age,label", f"1,{number}.5", f"2,{number + 10}.25")
        )
    spec = experiment(folder)
    data = FederatedData.load(spec)
    assert data.dataset.task == "regression"
    agreed = data.dataset.agreed
    assert agreed is not None
    assert agreed.means == pytest.approx([data.dataset.y_train.mean().item()])
    assert agreed.deviations == pytest.approx([data.dataset.y_train.std(correction=0).item()])


def picture(path: Path, size: tuple[int, int], mode: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 120 if mode == "L" else (10, 200, 30)).save(path)


def test_image_folders_of_other_sizes_and_modes(tmp_path: Path) -> None:
    folder = tmp_path / "sites"
    for site, size, mode in (("berlin", (8, 8), "L"), ("lodz", (12, 6), "RGB")):
        for number in range(10):
            picture(folder / site / "cat" / f"{number}.png", size, mode)
            picture(folder / site / "dog" / f"{number}.png", size, mode)
    said = refused(folder)
    assert said == (
        "site lodz has inputs of the form [3, 6, 12] float32, but berlin [1, 8, 8] float32; set "
        "data.image-size and data.image-mode"
    )
    data = load(folder, image_size=8, image_mode="grey")
    assert data.dataset.x_train.shape == (40, 1, 8, 8)  # type: ignore[union-attr]
    assert data.dataset.classes == ("cat", "dog")


READER = """
import numpy as np

def read(site, path, shift=0):
    lines = path.read_text().split()
    return {"x": np.array([[float(v) + shift, 1.0] for v in lines]), "y": np.arange(len(lines)) % 2}
"""


def test_a_function_of_ones_own_reads_a_site(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(READER)
    folder = tmp_path / "sites"
    folder.mkdir()
    for site in ("berlin", "lodz"):
        (folder / f"{site}.log").write_text(" ".join(map(str, range(10))))
    reader = f"{tmp_path}/own.py:read"
    data = load(folder, reader=reader, args={"shift": 5})
    assert data.names == ("berlin", "lodz")
    assert data.dataset.x_train[:2].tolist() == [[5.0, 1.0], [6.0, 1.0]]  # type: ignore[index]
    assert data.dataset.classes == ("0", "1")
    (folder / "lodz.log").write_text("1 x")
    assert refused(folder, reader=reader).startswith("site lodz: data.reader '")


def test_arrays_of_sites_and_a_test_set_that_only_the_server_reads(tmp_path: Path) -> None:
    folder = tmp_path / "sites"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for site, shift in (("berlin", 0), ("lodz", 5)):
        x = rng.normal(shift, 2, (20, 3)).astype(np.float32)
        np.savez(folder / f"{site}.npz", x=x, y=np.arange(20) % 3)
    np.savez(tmp_path / "test.npz", x=np.ones((4, 3), np.float32), y=[0, 1, 2, 2])
    data = load(folder, standardize="federated", test=f"file:{tmp_path}/test.npz")
    x, y = data.dataset.x_train, data.dataset.y_test
    assert x.mean(dim=0).tolist() == pytest.approx([0, 0, 0], abs=1e-6)  # type: ignore[union-attr]
    assert x.std(dim=0, correction=0).tolist() == pytest.approx([1, 1, 1], abs=1e-6)  # type: ignore[union-attr]
    assert y.tolist() == [0, 1, 2, 2]
    assert data.dataset.has_test
    gone = tmp_path / "gone.npz"
    assert refused(folder, test=f"file:{gone}") == (
        f"data.test 'file:{gone}': there is no such file or folder; correct the path"
    )
    np.savez(gone, x=np.ones((4, 2), np.float32), y=[0, 1, 2, 2])
    assert refused(folder, test=f"file:{gone}") == (
        "data.test: its inputs have shape [2], the sites agreed on [3]; bring them to one form"
    )


def test_numbers_of_several_classes_mean_the_same_everywhere(tmp_path: Path) -> None:
    folder = tmp_path / "sites"
    folder.mkdir()
    x, y = np.ones((12, 2), np.float32), np.array([[0, 1, 1], [1, 1, 0]] * 6)
    np.savez(folder / "berlin.npz", x=x, y=y, classes=["a", "b", "c"])
    np.savez(folder / "lodz.npz", x=x, y=y, classes=["b", "a", "c"])
    assert refused(folder) == (
        "site lodz has the classes b, a, c, in this order, but berlin a, b, c; number them alike"
    )
    assert refused(folder, classes=["a", "b", "c"]) == (
        "site lodz: its classes are b, a, c, in this order, but data.classes a, b, c; number them alike"
    )
    np.savez(folder / "lodz.npz", x=x, y=y, classes=["a", "b", "c"])
    data = load(folder, classes=["a", "b", "c"])
    assert (data.dataset.task, data.dataset.classes) == ("multilabel", ("a", "b", "c"))
    assert data.dataset.y_train[:2].tolist() == [[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]]


@pytest.mark.seconds
def test_the_hospitals_train_and_every_page_says_that_there_is_no_test_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["run", str(HOSPITALS / "hospitals.toml"), "--out", "run", "--set=strategy.rounds=3"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "no test set (data.test): the clients' held-out parts evaluate the model" in printed
    assert "test loss" not in printed
    record = RunRecord("run")
    assert [line["central"] for line in record.rounds] == [None] * 3
    assert record.rounds[-1]["federated"]["accuracy"] > 0.7
    assert record.manifest["data"]["test-examples"] == 0
    page = Path("run/report.html").read_text()
    assert "There is no test set." in page
    assert "none: there is no test set (data.test)" in page
    assert "(lodz)" in page


def test_a_target_accuracy_needs_a_test_set(folder: Path) -> None:
    with pytest.raises(ValueError, match="the sites have none; set data.test"):
        Experiment.model_validate(
            {"data": {"dataset": f"sites:{folder}"}, "evaluate": {"target-accuracy": 0.5}}
        )


def test_the_hospitals_files_are_those_that_their_program_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(HOSPITALS / "make_hospitals.py", tmp_path)
    namespace: dict[str, Callable[[], None]] = {}
    monkeypatch.setitem(namespace, "__file__", str(tmp_path / "make_hospitals.py"))  # type: ignore[arg-type]
    source = (
        (tmp_path / "make_hospitals.py")
        .read_text()
        .replace("from __future__ import annotations", "")
    )
    exec(compile(source, "make", "exec"), namespace)
    namespace["main"]()
    for path in (HOSPITALS / "hospitals").glob("*.csv"):
        assert (tmp_path / "hospitals" / path.name).read_bytes() == path.read_bytes()


def test_a_column_of_equal_numbers_is_divided_by_1_whatever_its_roundings() -> None:
    parts = [Moments.of(np.full(rows, 36.6)) for rows in (7, 10)]
    assert together(parts).deviation == 1
    assert together([Moments.of(np.array([36.6, 36.6 + 1e-9]))]).deviation < 1e-8


def test_a_report_of_another_length_is_refused_by_name(folder: Path) -> None:
    spec = experiment(folder, sites=["berlin", "lodz", "porto"]).data
    raws = [read_site(own, folder / f"{own}.csv", spec) for own in spec.sites]
    facts = [facts_of(raw, spec) for raw in raws]
    facts[1] = facts[1].model_copy(update={"targets": (Moments(),)})
    with pytest.raises(DataError, match="site lodz reports moments of .* use one version"):
        agree(facts, spec)
