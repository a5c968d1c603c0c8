"""Tables as people have them: dialects, text that stays text, missing numbers, categories."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch

from flsimulation.data import Dataset, load_dataset
from flsimulation.data.summary import summarize
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data

ROWS = 20
HEIGHT = [1.5 + i / 8 for i in range(ROWS)]
FRAME = pd.DataFrame(
    {"height": HEIGHT, "age": [20 + i for i in range(ROWS)], "label": ["no", "yes"] * 10}
)


def load(path: Path, **keys: Any) -> Dataset:
    return load_dataset(Data(dataset=f"file:{path}", **keys), 0)


def refused(path: Path, **keys: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(data: Dataset) -> torch.Tensor:
    """All inputs in the order of the first column."""
    assert isinstance(data.x_train, torch.Tensor)
    assert isinstance(data.x_test, torch.Tensor)
    x = torch.cat([data.x_train, data.x_test])
    return x[x[:, 0].argsort()]


def save(path: Path, frame: Any = FRAME, **options: Any) -> Path:
    frame.to_csv(path, index=False, **options)
    return path


# --- dialects --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "understood"),
    [
        ("d.csv", {}, "separator ',', decimal '.', utf-8"),
        ("d.csv", {"sep": ";", "decimal": ","}, "separator ';', decimal ',', utf-8"),
        ("d.csv", {"decimal": ",", "quoting": 1}, "separator ',', decimal ',', utf-8"),
        ("d.csv", {"sep": ";"}, "separator ';', decimal '.', utf-8"),
        ("d.csv", {"encoding": "utf-8-sig"}, "separator ',', decimal '.', utf-8"),
        ("d.csv", {"encoding": "utf-16", "sep": ";"}, "separator ';', decimal '.', utf-16"),
        ("d.tsv", {"sep": "\t"}, "separator tab, decimal '.', utf-8"),
        ("d.txt", {"sep": " "}, "separator space, decimal '.', utf-8"),
        ("d.csv", {"sep": "|"}, "separator '|', decimal '.', utf-8"),
        ("d.csv", {"quoting": 1}, "separator ',', decimal '.', utf-8"),
        ("d.csv.gz", {}, "separator ',', decimal '.', utf-8"),
    ],
)
def test_dialects(tmp_path: Path, name: str, options: dict[str, Any], understood: str) -> None:
    data = load(save(tmp_path / name, **options))
    assert rows(data).tolist() == FRAME[["height", "age"]].to_numpy().tolist()
    assert data.classes == ("no", "yes")
    assert data.notes[0] == f"{name}: {understood}; 20 rows; inputs height, age (number)"


def test_letters_of_western_europe(tmp_path: Path) -> None:
    frame = FRAME.assign(label=["für", "gegen"] * 10)
    path = save(tmp_path / "d.csv", frame, encoding="cp1252")
    data = load(path)
    assert data.classes == ("für", "gegen")
    assert "cp1252" in data.notes[0]
    assert "data.encoding 'utf-8' does not fit d.csv" in refused(path, encoding="utf-8")
    assert "data.encoding 'klingon' does not fit d.csv" in refused(path, encoding="klingon")


def test_said_dialects_win(tmp_path: Path) -> None:
    path = save(tmp_path / "d.csv", sep=";", decimal=",")
    assert len(load(path, separator=";", decimal=",", encoding="utf-8").y_train) == 16
    assert "data.label-column 'label' is no column of d.csv" in refused(path, separator=",")
    assert "20 numbers as text in 20 rows" in refused(path, decimal=".")


def test_separators_of_several_characters(tmp_path: Path) -> None:
    assert refused(save(tmp_path / "d.csv"), separator="::") == (
        "data.separator must be one character, got '::'; correct it"
    )


def test_thousands_are_not_decimals(tmp_path: Path) -> None:
    frame = FRAME.assign(age=[f"{i},200" for i in range(10, 30)])
    text = refused(save(tmp_path / "d.csv", frame))
    assert text.startswith(
        "data.decimal: d.csv has numbers such as '10,200', in which the comma may"
    )


def test_parquet(tmp_path: Path) -> None:
    frame = FRAME.assign(town=pd.Categorical(["Rome", "Bonn"] * 10), tall=FRAME.height > 2)
    frame.to_parquet(tmp_path / "d.parquet")
    data = load(tmp_path / "d.parquet")
    assert [(c.name, c.kind, c.width) for c in data.columns] == [
        ("height", "number", 1), ("age", "number", 1), ("town", "category", 2), ("tall", "number", 1),
    ]  # fmt: skip
    assert rows(data)[0].tolist() == [1.5, 20, 0, 1, 0]  # Bonn, Rome
    assert data.notes[0].startswith(
        "d.parquet: Parquet; 20 rows; inputs height, age, tall (number)"
    )
    (tmp_path / "d.parquet").write_bytes(b"nothing")
    assert "d.parquet cannot be read as Parquet" in refused(tmp_path / "d.parquet")


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (
            pd.date_range("2020", periods=ROWS),
            "column 'more' of d.parquet has dates such as '2020-",
        ),
        ([[1, 2]] * ROWS, "column 'more' of d.parquet has lists; save it as an NPZ file"),
    ],
)
def test_parquet_refusals(tmp_path: Path, column: Any, said: str) -> None:
    FRAME.assign(more=column).to_parquet(tmp_path / "d.parquet")
    assert said in refused(tmp_path / "d.parquet")


def test_damaged_gzip(tmp_path: Path) -> None:
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(b"a,label\n")[:-9])
    assert "d.csv.gz cannot be read: " in refused(tmp_path / "d.csv.gz")


# --- which columns ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [range(ROWS), [*range(ROWS)][::-1]])
def test_a_saved_index_is_no_input(tmp_path: Path, order: Any) -> None:
    FRAME.iloc[list(order)].to_csv(tmp_path / "d.csv")
    data = load(tmp_path / "d.csv")
    assert [column.name for column in data.columns] == ["height", "age"]
    assert "column 'Unnamed: 0' is a saved index, not used" in data.notes[0]


def test_rows_named_by_r(tmp_path: Path) -> None:
    lines = [f'"r{i}",{i},{i % 2}' for i in range(ROWS)]
    (tmp_path / "d.csv").write_text("\n".join(['"a","label"', *lines]))
    assert rows(load(tmp_path / "d.csv"))[:, 0].tolist() == [*range(ROWS)]


def test_a_separator_at_the_end_of_lines(tmp_path: Path) -> None:
    lines = [f"{i},{i % 2}," for i in range(ROWS)]
    (tmp_path / "d.csv").write_text("\n".join(["a,label", *lines]))
    assert rows(load(tmp_path / "d.csv"))[:, 0].tolist() == [*range(ROWS)]


def test_rows_that_are_longer_than_the_header(tmp_path: Path) -> None:
    lines = [f"{i},b,c,{i % 2}" for i in range(ROWS)]
    (tmp_path / "d.csv").write_text("\n".join(["a,label", *lines]))
    assert "rows with more cells than its header; name them all" in refused(tmp_path / "d.csv")
    (tmp_path / "d.csv").write_text("\n".join([",a,label", *lines]))
    assert "rows with more cells than its header; name them all" in refused(tmp_path / "d.csv")


def test_words_beside_a_separator_at_the_end_of_lines(tmp_path: Path) -> None:
    lines = [f"{i},{'pq'[i % 2]},{i % 2}," for i in range(ROWS)]
    (tmp_path / "d.csv").write_text("\n".join(["a,town,label", *lines]))
    assert rows(load(tmp_path / "d.csv"))[:2].tolist() == [[0, 1, 0], [1, 0, 1]]


def test_an_empty_column(tmp_path: Path) -> None:
    FRAME.assign(town=None).to_parquet(tmp_path / "d.parquet")
    text = refused(tmp_path / "d.parquet", fill="mean")
    assert "column 'town' of d.parquet is empty; leave it out by data.input-columns" in text


def test_chosen_columns(tmp_path: Path) -> None:
    path = save(tmp_path / "d.csv", FRAME.assign(name=[f"p{i}" for i in range(ROWS)]))
    assert rows(load(path, input_columns=["age"]))[:, 0].tolist() == FRAME.age.tolist()
    assert "data.input-columns 'agee' is no column of d.csv" in refused(
        path, input_columns=["agee"]
    )
    assert "data.input-columns has the label 'label'" in refused(path, input_columns=["label"])
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 1)), y=[0, 1, 0, 1])
    assert "data.input-columns are those of a table" in refused(
        tmp_path / "d.npz", input_columns=["a"]
    )


def test_columns_without_names(tmp_path: Path) -> None:
    path = save(tmp_path / "d.csv", header=False)
    assert "no column of d.csv: 1.5, 20, no" in refused(path)
    path = save(tmp_path / "d.csv", FRAME.assign(label=1), header=False)
    assert refused(path).endswith("; the first line must hold the columns' names")


# --- text stays text -------------------------------------------------------------------------------


def test_words_for_missing_numbers_are_names(tmp_path: Path) -> None:
    frame = FRAME.assign(
        label=["None", "NA", "nan", "null"] * 5, site=["NA", "EU"] * 10, town=["NaN", "x"] * 10
    )
    data = load(
        save(tmp_path / "d.csv", frame), partition="natural", partition_column="site", clients=2
    )
    assert data.classes == ("NA", "None", "nan", "null")
    assert data.owners is not None
    assert set(data.owners.tolist()) == {"NA", "EU"}
    assert "clients: 2 in this order: EU, NA" in data.notes
    assert data.columns[-1][:2] == ("town", "category")
    assert rows(data)[0].tolist() == [1.5, 20, 1, 0]


def test_a_leading_zero_is_part_of_the_name(tmp_path: Path) -> None:
    frame = FRAME.assign(label=["01", "1", "10", "1"] * 5, client=["1", "01"] * 10)
    data = load(save(tmp_path / "d.csv", frame), partition="natural")
    assert data.classes == ("01", "1", "10")
    assert data.owners is not None
    assert set(data.owners.tolist()) == {"01", "1"}


def test_numbered_clients_stay_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    frame = FRAME.assign(client=["10", "9"] * 10)
    data = load(save(tmp_path / "d.csv", frame), partition="natural")
    assert "clients: 2 in this order: 9, 10" in data.notes


@pytest.mark.parametrize(
    ("mark", "decimal", "keys"),
    [(",", ".", {}), (".", ",", {}), (",", ".", {"decimal": "."}), (".", ",", {"decimal": ","})],
)
def test_marks_between_thousands(
    tmp_path: Path, mark: str, decimal: str, keys: dict[str, str]
) -> None:
    numbers = [800.5 + 40.25 * i for i in range(ROWS)]
    written = [
        f"{number:,.2f}".translate(str.maketrans({",": mark, ".": decimal})) for number in numbers
    ]
    frame = FRAME.assign(income=written, label=written)[["income", "label"]]
    frame.loc[3, "income"] = "NA"
    data = load(save(tmp_path / "d.csv", frame, sep=";"), fill="zero", **keys)
    assert data.task == "regression"
    numbers[3] = 0
    assert sorted(rows(data)[:, 0].tolist()) == sorted(numbers)
    assert data.columns[0].missing == 1


def test_whole_thousands_need_the_decimal_mark(tmp_path: Path) -> None:
    frame = FRAME.assign(label=[f"{1300 + 700 * i:,}" for i in range(ROWS)])
    path = save(tmp_path / "d.csv", frame)
    assert "set data.decimal to '.' or ','" in refused(path)
    data = load(path, decimal=".")
    assert sorted([*data.y_train.tolist(), *data.y_test.tolist()])[:2] == [1300, 2000]
    assert data.task == "regression"


def test_labels_with_a_decimal_comma(tmp_path: Path) -> None:
    data = load(save(tmp_path / "d.csv", FRAME.assign(label=HEIGHT), sep=";", decimal=","))
    assert data.task == "regression"
    assert sorted([*data.y_train.tolist(), *data.y_test.tolist()]) == HEIGHT


@pytest.mark.parametrize("word", ["NA", "inf", "unknown"])
def test_a_word_among_numbers_is_no_class(tmp_path: Path, word: str) -> None:
    frame = FRAME.assign(label=[*map(str, HEIGHT[:-1]), word])
    text = refused(save(tmp_path / "d.csv", frame))
    assert f"column 'label' of d.csv has numbers, but 1 cell such as {word!r}" in text
    assert "the first in row 20; correct or remove" in text


def test_a_word_for_a_missing_one_among_two_numbers_is_no_class(tmp_path: Path) -> None:
    path = save(tmp_path / "d.csv", FRAME.assign(label=["0", "1", *["0"] * 17, "nan"]))
    words = refused(path, missing_values=["nan"])
    assert "column 'label' of d.csv has numbers, but 1 cell such as 'nan'" in words
    data = load(path, missing_values=["nan"], task="classification")
    assert data.classes == ("0", "1", "nan")


def test_a_letter_before_a_number_makes_a_name(tmp_path: Path) -> None:
    names = ["e1", "E2", "e-3"]
    frame = FRAME.assign(label=(names * 7)[:ROWS], area=[f"E{i % 9}" for i in range(19)] + ["N1"])
    data = load(save(tmp_path / "d.csv", frame))
    assert data.classes == ("E2", "e-3", "e1")
    assert data.columns[-1].width == 10


def test_a_second_column_of_labels_is_no_input(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("a,label,label\n" + "".join(f"{i},{i % 2},{i % 2}\n" for i in range(ROWS)))
    assert "d.csv has several columns 'label', and all but one would be inputs" in refused(path)


def test_a_note_is_one_line(tmp_path: Path) -> None:
    data = load(save(tmp_path / "d.csv", FRAME.assign(text=["a\nb", "c"] * 10)))
    assert not any("\n" in note for note in data.notes)
    assert "text (category: a b, c)" in data.notes[0]


def test_clients_can_be_inputs_too(tmp_path: Path) -> None:
    frame = FRAME.assign(client=["NA", "EU"] * 10)
    path = save(tmp_path / "d.csv", frame)
    data = load(path, partition="natural", input_columns=["age", "client"])
    assert rows(data)[:2].tolist() == [[20, 0, 1], [21, 1, 0]]
    assert data.owners is not None
    assert set(data.owners.tolist()) == {"NA", "EU"}


# --- numbers ---------------------------------------------------------------------------------------


def with_gaps(path: Path, word: str = "NA") -> Path:
    return save(path, FRAME.assign(height=[word if i % 10 == 3 else i for i in range(ROWS)]))


def test_missing_numbers_are_refused(tmp_path: Path) -> None:
    assert refused(with_gaps(tmp_path / "d.csv")).endswith(
        "d.csv has 2 missing cells in column 'height', the first in row 4; fill them, or set "
        "data.fill to mean, median, zero or drop"
    )


def test_missing_numbers_are_filled_from_the_training_examples(tmp_path: Path) -> None:
    path = with_gaps(tmp_path / "d.csv")
    zero = load(path, fill="zero")
    assert isinstance(zero.x_train, torch.Tensor)
    known = [x for x, age in zero.x_train.tolist() if age not in (23, 33)]
    for fill, value in (("mean", np.mean(known)), ("median", np.median(known)), ("zero", 0)):
        data = load(path, fill=fill)
        filled = [x for x, age in rows(data).tolist() if age in (23, 33)]
        assert filled == pytest.approx([value, value])
        assert f"inputs: 2 missing numbers filled (data.fill {fill})" in data.notes
        assert data.columns[0].missing == 2


def test_rows_with_missing_numbers_are_left_out(tmp_path: Path) -> None:
    data = load(with_gaps(tmp_path / "d.csv"), fill="drop")
    assert sorted(rows(data)[:, 1].tolist()) == [20 + i for i in range(ROWS) if i % 10 != 3]
    assert "2 rows with missing numbers left out (data.fill drop)" in data.notes


def test_a_file_of_incomplete_rows_alone(tmp_path: Path) -> None:
    gaps = [1.0, None] * 10
    path = save(tmp_path / "d.csv", FRAME.assign(one=gaps, other=gaps[::-1]))
    assert "data.fill 'drop' leaves no row of d.csv: each has a missing" in refused(
        path, fill="drop"
    )


def test_words_for_a_missing_number_can_be_named(tmp_path: Path) -> None:
    path = with_gaps(tmp_path / "d.csv", "lost")
    assert "has numbers, but 'lost' in row 4 (2 such cells); correct them, or add" in refused(path)
    assert rows(load(path, missing_values=["lost"], fill="zero"))[0].tolist() in ([0, 20], [0, 23])


@pytest.mark.parametrize(("word", "value"), [("inf", "inf"), ("-inf", "-inf"), ("1e999", "inf")])
def test_infinite_numbers(tmp_path: Path, word: str, value: str) -> None:
    assert (
        f"column 'height' of d.csv has 2 infinite numbers, the first, {value}, in row 4; correct"
        in refused(with_gaps(tmp_path / "d.csv", word), fill="mean")
    )


def test_numbers_beyond_float32(tmp_path: Path) -> None:
    text = refused(with_gaps(tmp_path / "d.csv", "1e300"))
    assert "(or, for float32, too large) numbers, the first (inf) at column 'height', row 4" in text


def test_one_value_only(tmp_path: Path) -> None:
    data = load(save(tmp_path / "d.csv", FRAME.assign(age=7)))
    assert "inputs with one value only: age (7)" in data.notes


def test_standardized_by_the_training_examples(tmp_path: Path) -> None:
    frame = FRAME.assign(town=["Rome", "Bonn"] * 10, flat=3.0)
    data = load(save(tmp_path / "d.csv", frame), standardize=True)
    plain = load(save(tmp_path / "d.csv", frame))
    assert isinstance(data.x_train, torch.Tensor)
    assert isinstance(plain.x_train, torch.Tensor)
    mean, deviation = plain.x_train[:, 0].mean(), plain.x_train[:, 0].std(correction=0)
    assert isinstance(data.x_test, torch.Tensor)
    assert isinstance(plain.x_test, torch.Tensor)
    torch.testing.assert_close(data.x_test[:, 0], (plain.x_test[:, 0] - mean) / deviation)
    assert data.x_train[:, 2:4].unique().tolist() == [0, 1]  # categories stay
    assert data.x_train[:, 4].unique().tolist() == [0]


def test_columns_far_from_0_are_named_unless_they_are_scaled(tmp_path: Path) -> None:
    income = [30_000 + 500 * i for i in range(ROWS - 1)] + [-72_500]
    path = save(tmp_path / "d.csv", FRAME.assign(income=income, town=["Rome", "Bonn"] * 10))
    (note,) = (note for note in load(path, test_fraction=0.05).notes if "not scaled" in note)
    assert " in column 'income' and are not scaled (data.standardize = true does it)" in note
    assert note.startswith(("inputs reach 72,500", "inputs reach 39,000"))
    year = save(tmp_path / "e.csv", FRAME.assign(income=income, year=2021))
    assert any("(2 columns reach 100 or more)" in note for note in load(year).notes)
    for quiet in (load(path, standardize=True), load(save(tmp_path / "f.csv"))):
        assert not any("not scaled" in note for note in quiet.notes)


def test_standardizing_needs_columns(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((8, 1, 2, 2)), y=[0, 1] * 4)
    assert "data.standardize scales columns of numbers" in refused(
        tmp_path / "d.npz", standardize=True
    )


# --- categories ------------------------------------------------------------------------------------


def test_categories_are_inputs_in_sorted_order(tmp_path: Path) -> None:
    towns = ["Rome", "Bonn", "Oslo", "Bonn"] * 5
    data = load(save(tmp_path / "d.csv", FRAME.assign(town=towns)))
    names = ["Bonn", "Oslo", "Rome"]
    assert rows(data)[:, 2:].tolist() == [[float(t == name) for name in names] for t in towns]
    assert "town (category: Bonn, Oslo, Rome)" in data.notes[0]
    assert [tuple(c)[:3] for c in data.columns] == [
        ("height", "number", 0), ("age", "number", 0), ("town", "category", 0),
    ]  # fmt: skip
    assert [c["distinct"] for c in summarize(data)["inputs"][0]["columns"]] == [16, 16, 3]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([f"p{i}" for i in range(ROWS)], "column 'more' of d.csv has 20 distinct words in 20 rows (such as 'p0'), too many"),
        ([f"2020-01-{i + 1:02d}" for i in range(ROWS)], "column 'more' of d.csv has dates such as '2020-01-01', which"),
        ([f"{i + 1}/2/2020 10:00" for i in range(ROWS)], "has dates such as '1/2/2020 10:00'"),
        (["a", "b", "", "b"] * 5, "d.csv has 5 missing cells in column 'more', the first in row 3"),
    ],
)  # fmt: skip
def test_text_that_is_no_category(tmp_path: Path, cells: list[str], said: str) -> None:
    assert said in refused(save(tmp_path / "d.csv", FRAME.assign(more=cells)))


def test_all_columns_that_are_no_inputs_are_named_at_once(tmp_path: Path) -> None:
    ids, days = [f"A-{i}" for i in range(ROWS)], [f"{i + 1}.3.2021" for i in range(ROWS)]
    town = ["Bonn", "Oslo"] * 10
    path = save(tmp_path / "d.csv", FRAME.assign(town=town, case=ids, seen=days))
    text = refused(path)
    assert "2 columns of d.csv are no inputs ('case' has 20 distinct words in 20 rows" in text
    assert "'seen' has dates such as '1.3.2021'" in text
    assert text.endswith('data.input-columns = ["height", "age", "town"]')
    assert load(path, input_columns=["height", "age", "town"]).x_train.shape == (16, 4)


def test_sentences_are_no_categories_but_may_be_made_numbers(tmp_path: Path) -> None:
    said = [f"the {i}th day was long and we all slept until the evening" for i in range(ROWS)]
    frame = pd.DataFrame({"said": said, "label": ["no", "yes"] * 10})
    text = refused(save(tmp_path / "d.csv", frame))
    assert (
        "20 distinct texts in 20 rows (such as 'the 0th day was long and we all slept...')" in text
    )
    assert "turn texts into numbers in a function of your own (data.dataset = 'FILE.py:" in text
    assert text.endswith("leave it out by data.input-columns")  # no other column remains


def test_a_missing_category_is_none_of_them(tmp_path: Path) -> None:
    path = save(tmp_path / "d.csv", FRAME.assign(town=["", "a", "b", "a"] * 5))
    assert rows(load(path, fill="mean"))[:2, 2:].tolist() == [[0, 0], [1, 0]]
    assert len(rows(load(path, fill="drop"))) == 15


# --- two files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label": "maybe"}, "test.csv has the label 'maybe' in row 1, which train.csv does not have"),
        ({"town": ["Bonn"] * 19 + ["Rome"]}, "column 'town' of test.csv has 'Rome' in row 20, which the training file"),
        ({"age": "old"}, "column 'age' of test.csv has words, but numbers in the training file, such as 'old'"),
    ],
)  # fmt: skip
def test_test_files_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    frame = FRAME.assign(town=["Bonn", "Oslo"] * 10)
    save(tmp_path / "train.csv", frame)
    save(tmp_path / "test.csv", frame.assign(**changes))
    assert said in refused(tmp_path)


def test_a_numbered_class_that_only_the_test_file_has(tmp_path: Path) -> None:
    save(tmp_path / "train.csv", FRAME.assign(label=[0, 1] * 10))
    save(tmp_path / "test.csv", FRAME.assign(label=[0, 1] * 9 + [1, 2]))
    assert "test.csv has the label '2' in row 20, which train.csv does not have" in refused(
        tmp_path
    )


def test_further_columns_of_the_test_file_are_not_used(tmp_path: Path) -> None:
    save(tmp_path / "train.tsv", sep="\t")
    save(tmp_path / "test.csv", FRAME[["label", "age", "height"]].assign(id=1))
    data = load(tmp_path)
    assert isinstance(data.x_test, torch.Tensor)
    assert data.x_test.tolist() == FRAME[["height", "age"]].to_numpy().tolist()
    assert "not in the training file, not used: id" in data.notes[1]


# --- arrays ----------------------------------------------------------------------------------------


def test_missing_and_infinite_numbers_of_arrays(tmp_path: Path) -> None:
    x = np.ones((12, 3), np.float32)
    x[7, 2] = x[9, 0] = np.nan
    np.savez(tmp_path / "d.npz", x=x, y=[0, 1] * 6)
    assert (
        "array x has 2 missing (NaN) numbers, the first (nan) at [7, 2]; fill or remove"
        in refused(tmp_path / "d.npz")
    )
    assert rows(load(tmp_path / "d.npz", fill="mean")).unique().tolist() == [1]
    np.savez(tmp_path / "d.npz", x=np.nan_to_num(x, nan=np.inf), y=[0, 1] * 6)
    assert "array x has 2 infinite" in refused(tmp_path / "d.npz", fill="mean")


@pytest.mark.parametrize("kind", ["uint8", "int64"])
def test_integers_of_one_or_two_dimensions_are_tokens(tmp_path: Path, kind: str) -> None:
    x = np.arange(24).reshape(8, 3).astype(kind)
    np.savez(tmp_path / "d.npz", x=x, y=[0, 1] * 4)
    data = load(tmp_path / "d.npz")
    assert rows(data).tolist() == x.tolist()
    assert rows(data).dtype == torch.int64
    assert "inputs: integers 0 to 23 stay integers (tokens); save numbers as floats" in data.notes
