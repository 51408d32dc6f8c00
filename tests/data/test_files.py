"""Files and folders as users have them: shards, separators, types of columns, and the forms of JSON."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset
from task_sets import write_rows
from tiny import tiny_tokenizer

from hf_async_mtl import ConfigurationError, TaskConfig
from hf_async_mtl.data.config import DataSource
from hf_async_mtl.data.loading import load_splits
from hf_async_mtl.data.tokenization import encode

Rows = list[dict[str, Any]]
TASK = TaskConfig("classification", ["text"])
ROWS: Rows = [{"text": f"text {i}", "label": ["neg", "pos"][i % 2]} for i in range(9)]


def load(folder: Path, train: Any, *, task: TaskConfig = TASK, **section: Any) -> dict[str, Dataset]:
    """The splits of a task; its validation rows are three of the training rows where no others are named."""
    section = {"train": train, "validation": train, **section}
    return load_splits("polarity", task, DataSource.from_section("polarity", section, None, folder), 0)


def train_rows(folder: Path, train: Any, **section: Any) -> Rows:
    return load(folder, train, **section)["train"].to_list()


def refused(folder: Path, train: Any, **section: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(folder, train, **section)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(path: Path, rows: Rows) -> Path:
    """Write a file of rows as its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        return write_rows(path, rows)
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


# -- several files ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["jsonl", "csv", "tsv", "parquet"])
def shards(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The suffix of three files, ``shards/part-0`` and so on, with the rows of `ROWS`."""
    for i in range(3):
        write(tmp_path / "shards" / f"part-{i}.{request.param}", ROWS[3 * i : 3 * i + 3])
    (tmp_path / "shards" / "README.md").write_text("Rows.")
    return str(request.param)


def test_several_files_are_one_split(shards: str, tmp_path: Path) -> None:
    """Bug: a list, a pattern or a folder is refused; or only its first file is read, or in another order."""
    assert train_rows(tmp_path, [f"shards/part-{i}.{shards}" for i in (1, 0)]) == [*ROWS[3:6], *ROWS[:3]]
    assert train_rows(tmp_path, f"shards/part-*.{shards}") == ROWS
    assert train_rows(tmp_path, f"**/part-[12].{shards}") == ROWS[3:]
    assert train_rows(tmp_path, [f"shards/*-0.{shards}", f"shards/*-2.{shards}"]) == [*ROWS[:3], *ROWS[6:]]
    assert train_rows(tmp_path, "shards") == ROWS
    assert train_rows(tmp_path, str(tmp_path / "shards" / f"*.{shards}")) == ROWS
    held_out = load(tmp_path, "shards", validation={"from_train": 0.4})
    assert [len(rows) for rows in held_out.values()] == [5, 4]


@pytest.mark.parametrize("names", [("train-0", "train-1", "dev-0"), ("train/a", "train/b", "dev/c"), ("train", "val")])
def test_a_folder_has_the_splits_that_its_files_name(names: tuple[str, ...], tmp_path: Path) -> None:
    """Bug: a folder as it is on the Hub gives the validation rows to training, too."""
    for i, name in enumerate(names):
        write(tmp_path / "data" / f"{name}.csv", ROWS[3 * i : 3 * i + 3])
    loaded = load(tmp_path, "data", validation="data")
    last = 3 * (len(names) - 1)
    assert loaded["train"].to_list() == ROWS[:last]
    assert loaded["validation"].to_list() == ROWS[last : last + 3]
    assert "has the splits train, validation, and no test" in refused(tmp_path, "data", test="data")


@pytest.mark.parametrize(
    "name", ["TRAIN.CSV", "rows.ndjson", "rows.csv.gz", "rows.tsv.gz", "rows.jsonl.gz", "rows.json.gz"]
)
def test_other_names_of_the_same_types(name: str, tmp_path: Path) -> None:
    """Bug: a file of Windows, or a compressed shard, is of an unknown type; or a tab is a comma in a compressed one."""
    kind = {"TRAIN.CSV": "csv", "rows.ndjson": "jsonl", "rows.json.gz": "jsonl"}.get(name, name.split(".")[1])
    content = write(tmp_path / f"plain.{kind}", ROWS).read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert train_rows(tmp_path, name) == ROWS


def test_a_file_whose_name_has_brackets_is_no_pattern(tmp_path: Path) -> None:
    """Bug: an existing file is taken for a pattern that matches nothing."""
    write(tmp_path / "rows [1].jsonl", ROWS)
    assert train_rows(tmp_path, "rows [1].jsonl") == ROWS


@pytest.mark.parametrize(
    ("files", "train", "message"),
    [
        (["a.csv", "b.jsonl"], ["a.csv", "b.jsonl"], "must be files of one type; found a.csv and b.jsonl"),
        (["a.csv", "b.tsv"], ["a.csv", "b.tsv"], "must be files of one type; found a.csv and b.tsv"),
        (["a.csv", "b.jsonl"], "*", "must be files of one type; found a.csv and b.jsonl"),
        (["s/a.csv", "s/b.jsonl"], "s", "must be files of one type; found a.csv and b.jsonl"),
        (["s/a.csv"], "t-*.csv", "there is no file or folder"),
        (["s/a.csv"], ["s", "s/a.csv"], "several of one type, or one folder; found s"),
        (["s/a.csv"], [], "must be a name, a list of files or {from_train: 0.1}; found []"),
        (["s/a.csv"], [1], "must be a name, a list of files"),
        (["s/part.csv", "s/my-test.csv"], "s", "must tell their split (test); that of part.csv does not. Name the"),
        (["s/a.txt"], "s", "must be a folder that `save_to_disk` wrote, or with files of type .jsonl"),
        (["s/a.conll"], "s/a.conll", 'found a.conll. Write each sentence as a line {"tokens": [...], "tags": [...]}'),
        (["a.xlsx"], "a.xlsx", "found a.xlsx. Save the sheet as CSV in UTF-8."),
    ],
)
def test_files_that_cannot_be_one_split_are_refused(files: list[str], train: Any, message: str, tmp_path: Path) -> None:
    """Bug: files that are not read are left out without a word, or end in a traceback of a reader."""
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text,label\na,pos\n")
    assert message in refused(tmp_path, train)


def test_a_folder_of_saved_folders_has_no_rows_of_its_own(tmp_path: Path) -> None:
    """Bug: the JSON files in which `save_to_disk` keeps its state are read as rows."""
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "data" / "train")
    assert "must be a folder that `save_to_disk` wrote, or with files" in refused(tmp_path, "data")
    assert train_rows(tmp_path, "data/train") == ROWS


def test_the_file_that_cannot_be_read_is_named(shards: str, tmp_path: Path) -> None:
    """Bug: of a hundred files one is cut short, and the message names none or all."""
    path = tmp_path / "shards" / f"part-1.{shards}"
    path.write_bytes(b'{"text": ' if shards in ("jsonl", "parquet") else b"text,label\n\xff,pos\n")
    message = refused(tmp_path, "shards")
    assert f"{path} could not be read as" in message


def test_an_empty_file_among_others_has_no_rows(shards: str, tmp_path: Path) -> None:
    """Bug: the empty file that a writer leaves where it had no rows ends the run."""
    (tmp_path / "shards" / f"part-1.{shards}").write_bytes(b"")
    assert train_rows(tmp_path, "shards") == [*ROWS[:3], *ROWS[6:]]


@pytest.mark.parametrize("place", [0, 1])
def test_a_file_without_rows_among_others_has_none(shards: str, place: int, tmp_path: Path) -> None:
    """Bug: a shard with a header or blank lines alone, or a table of no rows, makes all of them "no rows"."""
    path = tmp_path / "shards" / f"part-{place}.{shards}"
    if shards == "parquet":
        Dataset.from_list(ROWS).select([]).to_parquet(path)
    else:
        path.write_text({"jsonl": "\n\n", "csv": "text,label\n", "tsv": "text\tlabel\n"}[shards])
    others = [row for i, row in enumerate(ROWS) if i // 3 != place]
    assert train_rows(tmp_path, "shards") == others


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_files_whose_types_differ_are_one_column(kind: str, tmp_path: Path) -> None:
    """Bug: the first file of a partly labeled table has nulls alone, or whole numbers, and the others "cannot cast"."""
    values = ([None, None], [1, 2], [1.5, None])
    for i, scores in enumerate(values):
        write(tmp_path / "s" / f"{i}.{kind}", [{"text": "a", "label": "x", "score": score} for score in scores])
    task = TaskConfig("regression", ["text"], label_column="score")
    assert load(tmp_path, "s", task=task)["train"]["score"] == [1.0, 2.0, 1.5]
    write(tmp_path / "s" / f"3.{kind}", [{"text": "a", "label": "x", "score": "high"}])
    assert "could not be read as" in refused(tmp_path, "s", task=task)


def test_a_column_that_is_null_at_first_is_read(tmp_path: Path) -> None:
    """Bug: a table sorted by task has no label of the second in its first 10 MB: "Couldn't cast"."""
    rows = [{"text": "a" * 11_000_000, "label": None}, {"text": "b", "label": "neg", "source": "web"}]
    write_rows(tmp_path / "x.jsonl", rows)
    assert train_rows(tmp_path, "x.jsonl") == [rows[1]]


# -- CSV --------------------------------------------------------------------------------------------------------------


def test_another_separator(tmp_path: Path) -> None:
    """Bug: a file of a German spreadsheet has one column, `text;label`, and nobody says what to do."""
    (tmp_path / "x.csv").write_text("text;label\na, b;pos\nc;neg\n")
    expected = [{"text": "a, b", "label": "pos"}, {"text": "c", "label": "neg"}]
    assert train_rows(tmp_path, "x.csv", separator=";") == expected
    message = refused(tmp_path, "x.csv")
    assert "its only column is 'text;label'. If that is several, set `separator: ';'`" in message
    (tmp_path / "tab.csv").write_text("text\tlabel\na, b\tpos\nc\tneg\n")
    # In single quotes, YAML does not read the escape.
    assert (
        train_rows(tmp_path, "tab.csv", separator="\\t") == train_rows(tmp_path, "tab.csv", separator="\t") == expected
    )
    (tmp_path / "x.tsv").write_text("text|label\na, b|pos\nc|neg\n")
    assert train_rows(tmp_path, "x.tsv", separator="|") == expected


@pytest.mark.parametrize("separator", ["", ";;", 1, True])
def test_a_separator_is_one_character(separator: Any, tmp_path: Path) -> None:
    """Bug: pandas reads a longer one as a regular expression."""
    write(tmp_path / "x.csv", ROWS)
    message = refused(tmp_path, "x.csv", separator=separator)
    assert "`tasks.polarity.data.separator` must be one character" in message


def test_a_separator_without_csv_is_refused(tmp_path: Path) -> None:
    """Bug: the key has no effect, and nobody says so."""
    write(tmp_path / "x.jsonl", ROWS)
    assert "`tasks.polarity.data.separator` is for CSV files" in refused(tmp_path, "x.jsonl", separator=";")


LOOKS = ["1984", "007", "1.50", "2001-01-01", "true", "NaN", "1e5"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("text", LOOKS)
def test_a_text_is_read_as_it_is_written(text: str, kind: str, tmp_path: Path) -> None:
    """Bug: a column whose texts all look like numbers, dates or booleans is none of texts, or loses its zeros."""
    rows = [{"text": text, "label": label} for label in ("neg", "pos")]
    write(tmp_path / f"x.{kind}", rows)
    assert train_rows(tmp_path, f"x.{kind}") == rows
    listed = [rows[0], rows[1]]
    (tmp_path / "x.json").write_text(json.dumps(listed))
    assert train_rows(tmp_path, "x.json") == rows


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        ("0 1 2", [0, 1, 2]),
        ("10 -1 +3", [10, -1, 3]),
        ("1.0  3.0", [1, None, 3]),
        ("001 010 100", ["001", "010", "100"]),
        ("1 2 x", ["1", "2", "x"]),
        ("1.10 1.1 10", ["1.10", "1.1", "10"]),
        ("True FALSE true", [True, False, True]),
        ("0 true 1", ["0", "true", "1"]),
        ("123456789012345678901 1 2", ["123456789012345678901", "1", "2"]),
    ],
)
def test_labels_of_a_csv_file_are_numbers_where_all_are(cells: str, values: list[Any], tmp_path: Path) -> None:
    """Bug: the code 001 is class 1, 1.10 is 1.1; or the labels 0 and 1 are names, and `label_names` does not fit."""
    lines = [f"a,{cell}" for cell in cells.split(" ")]
    (tmp_path / "x.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    assert [row["label"] for row in train_rows(tmp_path, "x.csv")] == [value for value in values if value is not None]


def test_a_label_of_a_csv_file_may_differ_late(tmp_path: Path) -> None:
    """Bug: pandas reads 10,000 lines at a time, and the first of them decide that all labels are numbers."""
    (tmp_path / "x.csv").write_text("text,label\n" + "a,\n" * 10_000 + "a,1\n" * 10_000 + "b,pos\n")
    labels = load(tmp_path, "x.csv")["train"]["label"]
    assert (len(labels), labels[0], labels[-1]) == (10_001, "1", "pos")


# -- JSON -------------------------------------------------------------------------------------------------------------

FORMS: dict[str, Callable[[Path], Any]] = {
    **{
        orient: lambda path, orient=orient: pd.DataFrame(ROWS).to_json(path, orient=orient)
        for orient in ("columns", "index", "split", "records", "table")
    },
    "named rows": lambda path: pd.DataFrame(ROWS, index=list("abcdefghi")).to_json(path),
    "named rows first": lambda path: pd.DataFrame(ROWS, index=list("abcdefghi")).to_json(path, orient="index"),
    "indented": lambda path: pd.DataFrame(ROWS).to_json(path, indent=2),
    "data": lambda path: path.write_text(json.dumps({"version": 2, "data": ROWS})),
    "list": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "lines": lambda path: write_rows(path, ROWS),
    "lists": lambda path: path.write_text(json.dumps(Dataset.from_list(ROWS).to_dict())),
    "a mark of the byte order": lambda path: path.write_text(pd.DataFrame(ROWS).to_json(), encoding="utf-8-sig"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_json(form: str, tmp_path: Path) -> None:
    """Bug: `DataFrame.to_json` writes columns by default, and the file is one row of dictionaries."""
    FORMS[form](tmp_path / "x.json")
    (tmp_path / "x.json.gz").write_bytes(gzip.compress((tmp_path / "x.json").read_bytes()))
    assert train_rows(tmp_path, "x.json.gz") == train_rows(tmp_path, "x.json")
    found = [{key: row[key] for key in ROWS[0]} for row in train_rows(tmp_path, "x.json")]
    assert found == ROWS


def test_forms_of_json_as_shards(tmp_path: Path) -> None:
    """Bug: of several files with one object each, only the first is opened up."""
    pd.DataFrame(ROWS[:3]).to_json(tmp_path / "0.json")
    write_rows(tmp_path / "1.json", ROWS[3:6])
    pd.DataFrame(ROWS[6:]).to_json(tmp_path / "2.json", orient="split")
    assert train_rows(tmp_path, "*.json") == ROWS


def test_one_row_is_no_table(tmp_path: Path) -> None:
    """Bug: a file with one row of lists or dictionaries is taken for columns."""
    row = {"tokens": ["a", "b"], "tags": ["O", "B-x"]}
    write_rows(tmp_path / "x.jsonl", [row])
    assert train_rows(tmp_path, "x.jsonl", task=TaskConfig("token_classification", ["tokens"], "tags")) == [row]


def test_squad_as_it_is_downloaded(tmp_path: Path) -> None:
    """Bug: SQuAD's own JSON, articles of paragraphs of questions, is one row without a question."""
    answers = [{"text": "red", "answer_start": 4}, {"text": "red shoe", "answer_start": 4}]
    question = {"id": "1", "question": "what color", "answers": answers}
    paragraph = {"context": "the red shoe", "qas": [question, {**question, "id": "2", "answers": answers[:1]}]}
    articles = [{"title": "shoes", "paragraphs": [paragraph]}, {"title": "hats", "paragraphs": [paragraph]}]
    (tmp_path / "train.json").write_text(json.dumps({"version": "1.1", "data": articles}))
    task = TaskConfig("question_answering", ["question", "context"], label_column="answers")
    rows = load(tmp_path, "train.json", task=task)["train"]
    assert rows["id"] == ["1", "2", "1", "2"]
    assert rows[0]["answers"] == {"text": ["red", "red shoe"], "answer_start": [4, 4]}
    encoded = encode(rows, "answer", task, tiny_tokenizer(), 24)
    assert list(encoded["answers"]) == [["red", "red shoe"], ["red"]] * 2
