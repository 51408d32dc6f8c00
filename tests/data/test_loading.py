"""Where data comes from: files, saved folders and the Hub; carved, sampled and checked."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from fake_hub import serving
from task_sets import write_rows

from hf_async_mtl import TaskConfig
from hf_async_mtl.data.config import DataSource, expand_path
from hf_async_mtl.data.loading import load_splits
from hf_async_mtl.validation import ConfigurationError

TASK = TaskConfig("classification", ["text"])
SCORE = TaskConfig("regression", ["text"], label_column="score")


def rows_of(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": ["neg", "pos"][i % 2]} for i in range(start, start + count)]


@pytest.fixture
def data(tmp_path):
    """A folder with a hundred training rows, ten to validate and ten to test."""
    write_rows(tmp_path / "train.jsonl", rows_of(100))
    write_rows(tmp_path / "dev.jsonl", rows_of(10, 100))
    write_rows(tmp_path / "test.jsonl", rows_of(10, 110))
    return tmp_path


def load(
    folder: Path, data: Any = None, *, max_samples: Any = None, task: TaskConfig = TASK, seed: int = 0, **splits: Any
):
    section = {"train": "train.jsonl", "validation": "dev.jsonl", **splits} if data is None else data
    return load_splits("polarity", task, DataSource.from_section("polarity", section, max_samples, folder), seed)


def refused(folder: Path, data: Any = None, **arguments: Any) -> str:
    """The message that a section is refused with."""
    with pytest.raises(ConfigurationError) as caught:
        load(folder, data, **arguments)
    return str(caught.value)


def test_the_key_of_an_earlier_version_names_the_example(data):
    """Bug: `stream: true` is ignored, or called an unknown key that is near to `test`."""
    assert "has been removed. Save the rows as `scripts/examples/streaming.py`" in refused(data, stream=True)


# -- formats ----------------------------------------------------------------------------------------------------------


def save_jsonl(rows: Dataset, path: Path) -> str:
    write_rows(path.with_suffix(".jsonl"), rows)
    return f"{path.name}.jsonl"


def save_csv(rows: Dataset, path: Path) -> str:
    rows.to_csv(path.with_suffix(".csv"), index=False)
    return f"{path.name}.csv"


def save_parquet(rows: Dataset, path: Path) -> str:
    rows.to_parquet(path.with_suffix(".parquet"))
    return f"{path.name}.parquet"


def save_folder(rows: Dataset, path: Path) -> str:
    rows.save_to_disk(path)
    return path.name


@pytest.mark.parametrize("save", [save_jsonl, save_csv, save_parquet, save_folder])
def test_every_format_gives_the_same_rows(tmp_path, save):
    """A format that loses, renames or reorders rows would show only as a lower score."""
    rows = Dataset.from_list(rows_of(12))
    splits = {
        split: save(rows.select(part), tmp_path / split) for split, part in (("train", range(8)), ("dev", [8, 9]))
    }
    loaded = load(tmp_path, {"train": splits["train"], "validation": splits["dev"]})
    assert loaded["train"].to_list() == rows_of(8)
    assert loaded["validation"].to_list() == rows_of(2, 8)


def test_a_folder_of_all_splits_gives_each_its_own(tmp_path):
    """One folder named for every split must not give the training rows to all of them."""
    sets = {"train": rows_of(8), "validation": rows_of(4, 8), "test": rows_of(4, 12)}
    DatasetDict({split: Dataset.from_list(rows) for split, rows in sets.items()}).save_to_disk(tmp_path / "all")
    loaded = load(tmp_path, dict.fromkeys(sets, "all"))
    assert {split: rows.to_list() for split, rows in loaded.items()} == sets
    assert "has the splits train, validation, test, and no validation_b" in refused(
        tmp_path, {**dict.fromkeys(sets, "all"), "validation_b": "all"}
    )


def test_words_of_a_csv_file_stay_words(tmp_path):
    """pandas reads "NA", "None" and "null" as missing: a class of that name, and texts, would be gone."""
    (tmp_path / "train.csv").write_text("text,label\nNA,None\nnull,some\nplain,None\n", encoding="utf-8")
    loaded = load(tmp_path, {"train": "train.csv", "validation": "train.csv"})
    assert loaded["train"].to_list() == [
        {"text": "NA", "label": "None"},
        {"text": "null", "label": "some"},
        {"text": "plain", "label": "None"},
    ]


def test_splits_come_in_their_order_and_further_sets_with_them(data):
    """The order of a user's keys must not decide which set is reported first."""
    loaded = load(
        data, {"test": "test.jsonl", "validation_b": "dev.jsonl", "validation": "dev.jsonl", "train": "train.jsonl"}
    )
    assert list(loaded) == ["train", "validation", "validation_b", "test"]


def test_a_further_set_without_labels_of_the_task_is_left_out(data, caplog):
    """Bug: of a table of two tasks, a set that is labeled for one of them cannot be reported for it alone."""
    rows = [{"text": "a", "label": "pos", "score": None}, {"text": "b", "label": "neg", "score": None}]
    write_rows(data / "hard.jsonl", rows)
    for name in ("train", "dev"):
        path = data / f"{name}.jsonl"
        write_rows(path, [{**json.loads(line), "score": i} for i, line in enumerate(path.read_text().splitlines())])
    assert list(load(data, validation_hard="hard.jsonl")) == ["train", "validation", "validation_hard"]
    assert list(load(data, validation_hard="hard.jsonl", task=SCORE)) == ["train", "validation"]
    assert "the validation_hard split has no labels of the task, and is left out of it." in caplog.text


def test_a_split_that_is_set_to_nothing_is_left_out(data):
    """Beside a preset, `test: null` is the way to have no test split."""
    assert list(load(data, test=None)) == ["train", "validation"]


# -- paths ------------------------------------------------------------------------------------------------------------


def test_paths_may_name_environment_variables(data, monkeypatch):
    """One committed configuration must serve many machines."""
    monkeypatch.setenv("SOME_DATA", str(data))
    loaded = load(Path("/nowhere"), {"train": "${SOME_DATA}/train.jsonl", "validation": "$SOME_DATA/dev.jsonl"})
    assert len(loaded["train"]) == 100


def test_a_variable_that_is_not_set_is_named(data, monkeypatch):
    """Left in the path, it would read as a missing file called ${SOME_DATA}."""
    monkeypatch.delenv("SOME_DATA", raising=False)
    message = refused(data, train="${SOME_DATA}/train.jsonl")
    assert "tasks.polarity.data.train" in message
    assert "${SOME_DATA}" in message


def test_home_is_expanded(monkeypatch):
    """A shell expands `~`, a YAML file does not."""
    monkeypatch.setenv("HOME", "/home/someone")
    assert expand_path("encoder", "~/model") == Path("/home/someone/model")


# -- carving and sampling ---------------------------------------------------------------------------------------------


def texts(rows: Dataset) -> list[str]:
    return list(rows["text"])


def test_a_carved_split_shares_no_row_with_train(data):
    """A teacher chosen on rows that it was trained on would be chosen by its memory."""
    loaded = load(data, validation={"from_train": 0.2}, test={"from_train": 0.1})
    parts = [set(texts(rows)) for rows in loaded.values()]
    assert [len(part) for part in parts] == [72, 20, 8]
    assert set.union(*parts) == {row["text"] for row in rows_of(100)}


def test_a_carve_is_a_seeded_draw(data):
    """The last rows of a sorted file are of one class; and a resumed run must hold out what the first one did."""
    first = texts(load(data, validation={"from_train": 0.2})["validation"])
    assert texts(load(data, validation={"from_train": 0.2})["validation"]) == first
    assert texts(load(data, validation={"from_train": 0.2}, seed=1)["validation"]) != first
    assert first not in (texts(Dataset.from_list(rows_of(20))), texts(Dataset.from_list(rows_of(20, 80))))


def test_a_limit_moves_no_row_between_carved_splits(data):
    """Runs on 2,000 and on all rows would be compared on different validation rows."""
    whole = load(data, validation={"from_train": 0.2})
    limited = load(data, validation={"from_train": 0.2}, max_samples={"train": 10})
    assert texts(limited["validation"]) == texts(whole["validation"])
    assert len(limited["train"]) == 10
    assert set(texts(limited["train"])) < set(texts(whole["train"]))


def test_a_limit_is_a_seeded_sample_of_its_split(data):
    """The first rows of a sorted file are of one class; two runs with one data seed must see the same rows."""
    first = texts(load(data, max_samples={"train": 10, "validation": 4})["train"])
    assert texts(load(data, max_samples={"train": 10})["train"]) == first
    assert texts(load(data, max_samples={"train": 10}, seed=1)["train"]) != first
    assert first != texts(Dataset.from_list(rows_of(10)))


def test_a_limit_above_the_rows_takes_all(data):
    """`max_samples: {train: 2000}` stands in configurations of small tasks too."""
    assert texts(load(data, max_samples={"train": 1000})["train"]) == texts(Dataset.from_list(rows_of(100)))


def test_two_tasks_on_one_file_are_cut_alike(data):
    """An intent and slot tags on the same texts: a row held out for one must not be trained on for the other."""
    data.joinpath("train.jsonl").rename(data / "both.jsonl")
    sources = {
        name: DataSource.from_section(
            name, {"train": "both.jsonl", "validation": {"from_train": 0.2}}, {"train": 9}, data
        )
        for name in ("intent", "slots")
    }
    loaded = [load_splits(name, TASK, source, 5) for name, source in sources.items()]
    assert texts(loaded[0]["validation"]) == texts(loaded[1]["validation"])
    assert texts(loaded[0]["train"]) == texts(loaded[1]["train"])


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_a_carve_that_leaves_a_split_empty_is_refused(data, share):
    """A share rounds to no row at all, and the run would fail at its first evaluation."""
    assert "Each needs at least one" in refused(data, validation={"from_train": share})


@pytest.mark.parametrize(
    "value", [{"from_train": 1}, {"from_train": 1.5}, {"from_train": "0.1"}, {"share": 0.1}, {}, 3, []]
)
def test_a_carve_that_makes_no_sense_is_refused(data, value):
    """A share of 1 (all rows) or a misspelt key must not be taken for anything else."""
    message = refused(data, validation=value)
    assert "tasks.polarity.data.validation" in message
    assert "from_train" in message


def test_train_cannot_be_carved_from_itself(data):
    """It would ask for a split that is not there yet."""
    assert "tasks.polarity.data.train" in refused(data, train={"from_train": 0.5})


@pytest.mark.parametrize(
    "max_samples", [{"train": 0}, {"train": -1}, {"train": True}, {"train": "10"}, {"train": None}, 10, [10]]
)
def test_a_limit_that_makes_no_sense_is_refused(data, max_samples):
    """A limit of 0 or of text would take no row, or fail while sampling."""
    assert "tasks.polarity.max_samples" in refused(data, max_samples=max_samples)


def test_a_limit_of_an_unknown_split_is_refused(data):
    """`max_samples: {validaton: 100}` would limit nothing."""
    message = refused(data, max_samples={"validaton": 100})
    assert "train, validation" in message
    assert "'validaton'" in message


# -- unlabeled test splits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [-1, None])
def test_an_unlabeled_test_split_is_not_scored(data, label):
    """The Hub's hidden labels are -1: scored, they would read as wrong answers."""
    table = pa.table({"text": ["a"] * 3, "label": pa.array([label] * 3, pa.int64())})
    pq.write_table(table, data / "hidden.parquet")
    assert list(load(data, test="hidden.parquet")) == ["train", "validation"]


def test_an_unlabeled_test_score_is_not_scored(data):
    """stsb's hidden scores are -1.0."""
    for name in ("train", "dev"):
        write_rows(data / f"{name}.jsonl", [{"text": "a", "score": float(i)} for i in range(4)])
    write_rows(data / "hidden.jsonl", [{"text": "a", "score": -1.0}] * 3)
    assert "test" not in load(data, test="hidden.jsonl", task=SCORE)


def test_a_score_of_minus_one_is_a_score(data):
    """A regression target may well be -1.0 somewhere: only a split that has nothing else is unlabeled."""
    scores = [{"text": "a", "score": x} for x in (-1.0, 0.5, -1.0)]
    for name in ("train", "dev", "test"):
        write_rows(data / f"{name}.jsonl", scores)
    loaded = load(data, test="test.jsonl", task=SCORE)
    assert loaded["test"].to_list() == scores


def test_training_rows_without_labels_are_kept_for_their_error(data):
    """Only a test split may be left out: a training split without labels is a mistake that must be told."""
    write_rows(data / "train.jsonl", [{"text": "a", "label": -1}] * 3)
    assert "train" in load(data)


# -- errors of the user -----------------------------------------------------------------------------------------------


def test_a_missing_split_says_the_way_out(data):
    """Without a validation split nothing can converge; the user may not know of carving."""
    assert "from_train: 0.1" in refused(data, {"train": "train.jsonl"})
    assert "train split" in refused(data, {"validation": "dev.jsonl"})


def test_an_unknown_key_names_the_nearest(data):
    """`vaildation` would leave the task without a validation split, and the message would say so, not why."""
    message = refused(data, {"train": "train.jsonl", "vaildation": "dev.jsonl"})
    assert "tasks.polarity.data.vaildation" in message
    assert "`validation`" in message


@pytest.mark.parametrize("key", [1, True, "validation_", "validation_A-b"])
def test_a_key_that_is_no_split_is_refused(data, key):
    """YAML makes numbers and booleans of keys, and a suffix becomes part of metric names."""
    assert "Unknown key" in refused(data, {"train": "train.jsonl", "validation": "dev.jsonl", key: "dev.jsonl"})


def test_a_missing_file_is_named_with_its_key(data):
    """The path that was looked at tells what a relative one was relative to."""
    message = refused(data, train="nope.jsonl")
    assert "tasks.polarity.data.train" in message
    assert str(data / "nope.jsonl") in message


def test_a_file_of_an_unknown_type_is_refused(data):
    """A spreadsheet would be read as something else, or fail inside a reader."""
    (data / "train.xlsx").write_bytes(b"x")
    message = refused(data, train="train.xlsx")
    assert ".parquet" in message
    assert "train.xlsx" in message


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("name", "content"),
    [("e.jsonl", ""), ("e.jsonl", "\n\n"), ("e.csv", ""), ("e.csv", "text,label\n")],
    ids=["nothing", "blank lines", "no header", "header alone"],
)
def test_an_empty_split_is_named(data, split, name, content):
    """Every reader fails in its own way on nothing."""
    (data / name).write_text(content, encoding="utf-8")
    message = refused(data, **{split: name})
    assert f"the {split} split must have rows" in message


def test_an_empty_table_is_an_empty_split(data):
    """A parquet file or a saved folder may hold columns and no row."""
    pq.write_table(
        pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}), data / "e.parquet"
    )
    assert "the train split must have rows" in refused(data, train="e.parquet")
    Dataset.from_dict({"text": [], "label": []}).save_to_disk(data / "empty")
    assert "the train split must have rows" in refused(data, train="empty")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("column", ["text", "label"])
def test_a_missing_column_names_the_nearest(data, split, column):
    """A column is misspelt in one split of three."""
    rows = [{f"{column}s" if key == column else key: value for key, value in row.items()} for row in rows_of(4)]
    write_rows(data / "other.jsonl", rows)
    message = refused(data, **{split: "other.jsonl"})
    assert f"{column!r}" in message
    assert f"its {split} split" in message
    assert f"The nearest is {column + 's'!r}" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", b'{"text": "a", "label": "pos"}\n{"text": \n'),
        ("x.jsonl", b"\xff\xfe\x00\x01"),
        ("x.jsonl", b"1\n2\n"),
        ("x.csv", b"text,label\na,pos\nb,neg,c\n"),
        ("x.csv", b"text,label\n\xff\xfe,pos\n"),
        # Pandas takes the first cell of each line for its name, and has the others under the wrong heading.
        ("x.csv", b"text,label\nno, thanks,neg\nyes, please,pos\n"),
        ("x.parquet", b"no table"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(data, name, content):
    """A truncated download must end in one sentence with the file's name."""
    (data / name).write_bytes(content)
    message = refused(data, train=name)
    assert "the train split must be " in message
    assert f"{data / name} could not be read as" in message
    assert "Correct the row, or write the file again." in message
    assert "\n" not in message


def test_a_comma_behind_each_line_of_a_csv_file_is_no_column(data):
    """Pandas moved all cells by one: the labels were read as texts."""
    (data / "x.csv").write_text("text,label\nyes,pos,\nno,neg,\n", encoding="utf-8")
    rows = load(data, train="x.csv")["train"].to_list()
    assert rows == [{"text": "yes", "label": "pos"}, {"text": "no", "label": "neg"}]


# -- the Hub ----------------------------------------------------------------------------------------------------------


def test_a_configuration_of_a_hub_id_needs_the_id(data):
    """`name: rte` without `hub` would be taken for nothing."""
    assert "Add the Hub id" in refused(data, name="rte")


def test_a_card_is_told_of_the_hub_alone(tmp_path):
    """Bug: a folder of this machine that stands where a Hub id may is published."""
    section = {"hub": "user/pairs", "train": "train", "validation": {"from_train": 0.1}}
    assert DataSource.from_section("pairs", section, None, tmp_path).to_section() == section
    assert DataSource.from_section("pairs", {**section, "hub": str(tmp_path)}, None, tmp_path).to_section() == {
        "validation": {"from_train": 0.1}
    }


@pytest.mark.parametrize("key", ["hub", "name"])
def test_a_hub_key_must_be_a_string(data, key):
    """YAML makes a number of a name such as 2024, and the failure would come deep inside a client."""
    section = {"hub": "user/pairs", "train": "train", "validation": "validation", key: 5}
    assert f"tasks.polarity.data.{key}" in refused(data, section)


def test_without_a_network_the_hub_id_is_named(data):
    """Offline, the client's error speaks of connections and not of the task."""
    message = refused(data, {"hub": "nobody/nothing", "train": "train", "validation": "validation"})
    assert "'polarity'" in message
    assert "'nobody/nothing'" in message


LOAD_FROM_HUB = """
import json, sys
from pathlib import Path
from hf_async_mtl import TaskConfig
from hf_async_mtl.data.config import DataSource
from hf_async_mtl.data.loading import load_splits

results = []
for section in json.loads(sys.argv[1]):
    try:
        source = DataSource.from_section("pairs", section, section.pop("max_samples", None), Path())
        splits = load_splits("pairs", TaskConfig("classification", ["left", "right"]), source, 0)
        results.append({split: rows.to_list() for split, rows in splits.items()})
    except ValueError as error:
        results.append(f"{type(error).__name__}: {error}")
print(json.dumps(results))
"""


def parquet(rows: list[dict[str, Any]]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


def test_a_dataset_of_the_hub(tmp_path):
    """Ids, configurations and split names of the source go to the Hub's client; its mistakes come back as sentences."""
    sets = {
        split: [{"left": f"{split} {i}", "right": "b", "label": -1 if split == "hidden" else i % 2} for i in range(4)]
        for split in ("train", "dev", "hidden")
    }
    card = "".join(f"  - split: {split}\n    path: pairs/{split}-*\n" for split in sets)
    other = "- config_name: other\n  data_files: other/*\n"
    files = {
        "README.md": f"---\nconfigs:\n- config_name: pairs\n  data_files:\n{card}{other}---\n".encode(),
        **{f"pairs/{split}-0.parquet": parquet(rows) for split, rows in sets.items()},
        "other/train-0.parquet": parquet([{"x": 1}]),
    }
    good = {"hub": "user/pairs", "name": "pairs", "train": "train", "validation": "dev", "test": "hidden"}
    sections = [
        good,
        {**good, "test": "dev", "validation": {"from_train": 0.25}},
        {**good, "validation": "validation"},
        {**good, "name": "paris"},
        {**good, "hub": "user/none"},
    ]
    with serving("user/pairs", files) as address:
        settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        run = subprocess.run(
            [sys.executable, "-c", LOAD_FROM_HUB, json.dumps(sections)],
            env={**os.environ, **settings, "NO_PROXY": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert run.returncode == 0, run.stderr
    plain, carved, no_split, no_name, no_id = json.loads(run.stdout)
    assert plain == {"train": sets["train"], "validation": sets["dev"]}
    assert [len(carved[split]) for split in ("train", "validation", "test")] == [3, 1, 4]
    assert no_split.startswith("ConfigurationError: Task 'pairs': the split 'validation' of 'user/pairs' (pairs)")
    assert "dev" in no_split
    assert no_name.startswith("ConfigurationError: Task 'pairs': the split 'train' of 'user/pairs' (paris)")
    assert "pairs" in no_name.split("could not be loaded")[1]
    assert no_id.startswith("ConfigurationError: Task 'pairs': the split 'train' of 'user/none' (pairs)")
