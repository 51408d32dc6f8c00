"""Tokenization: raw rows to tokens and targets, with errors that show the row, and a cache that is right."""

import itertools
import random
import string

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value, load_from_disk
from tiny import WORDS, WORDS_IN_PIECES, byte_level_tokenizer, raw_sets, task_configs, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, RobertaTokenizer

from hf_async_mtl import ConfigurationError, TaskConfig
from hf_async_mtl.data.tokenization import count_truncated, encode
from hf_async_mtl.tasks.labels import HINT
from hf_async_mtl.tasks.pretruncation import shorten

IGNORE = -100
TOKENIZER = tiny_tokenizer()
QA = TaskConfig("question_answering", ["question", "context"], "answers")


def one_row(name, **changes):
    """The first raw row of a task of `raw_sets`, changed."""
    return Dataset.from_list([{**raw_sets(1)[name][0], **changes}])


def labels_of(task, columns, features=None):
    """The encoded labels of rows whose text does not matter."""
    count = len(next(iter(columns.values())))
    if features is not None:
        features = Features({"text": Value("string"), **features})
    rows = Dataset.from_dict({"text": ["cat"] * count, **columns}, features=features)
    return encode(rows, "t", task.resolve(rows), TOKENIZER, 16)["labels"][:]


# -- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token_types", [True, False])
def test_single_text_is_what_the_tokenizer_makes_of_it(token_types):
    """A text cut at another place than the tokenizer's own truncation would differ from a plain call at inference."""
    tokenizer, rows = tiny_tokenizer(token_types), raw_sets(20)["polarity"]
    encoded = encode(rows, "polarity", task_configs()["polarity"], tokenizer, 8)
    for raw, row in zip(rows, encoded, strict=True):
        expected = tokenizer(raw["text"], truncation=True, max_length=8)
        assert row["input_ids"] == [expected["input_ids"]]
        assert ("token_type_ids" in row) == token_types
    assert max(len(ids[0]) for ids in encoded["input_ids"]) == 8


def test_pair_keeps_its_sides_apart():
    """Two texts joined with a space would lose the separator and the token types."""
    rows = raw_sets(20)["overlap"]
    encoded = encode(rows, "overlap", task_configs()["overlap"], TOKENIZER, 12)
    for raw, row in zip(rows, encoded, strict=True):
        expected = TOKENIZER(raw["left"], raw["right"], truncation=True, max_length=12)
        assert row["input_ids"] == [expected["input_ids"]]
        assert row["token_type_ids"] == [expected["token_type_ids"]]
        assert {0, 1} == set(row["token_type_ids"][0])
        assert row["labels"] == raw["score"]


def test_choices_are_one_segment_each_behind_the_prompt():
    """Choices taken column by column and not row by row would score another example's choices."""
    rows = raw_sets(20)["choice"]
    encoded = encode(rows, "choice", task_configs()["choice"], TOKENIZER, 32)
    for raw, row in zip(rows, encoded, strict=True):
        pairs = [(raw["prompt"], raw["first"]), (raw["prompt"], raw["second"])]
        assert row["input_ids"] == [TOKENIZER(*pair)["input_ids"] for pair in pairs]
        assert row["labels"] == raw["label"]


def test_first_subword_alone_carries_the_label():
    """With a label on every sub-word, a word in four pieces would count four times."""
    tokens = ["the", WORDS_IN_PIECES[0], "cat", WORDS_IN_PIECES[1]]
    rows = one_row("colors", tokens=tokens, tags=["O", "B-color", "O", "B-color"])
    labels = encode(rows, "t", task_configs()["colors"], TOKENIZER, 32)["labels"][0]
    assert labels == [IGNORE, 0, 1, *[IGNORE] * 3, 0, 1, *[IGNORE] * 3, IGNORE]


def test_words_behind_the_cut_are_dropped_with_their_labels():
    """Labels longer than the tokens would shift all later examples of a batch."""
    rows = one_row("colors", tokens=["the", "sofa", "cat", "red"], tags=["O", "B-color", "O", "B-color"])
    row = encode(rows, "t", task_configs()["colors"], TOKENIZER, 8)[0]
    assert len(row["input_ids"][0]) == len(row["labels"]) == 8
    assert [label for label in row["labels"] if label != IGNORE] == [0, 1, 0]


def test_words_to_predict_are_marked_without_labels():
    """`predict` has no tags column, and must still know where each word begins."""
    rows = raw_sets(10)["colors"].remove_columns("tags")
    encoded = encode(rows, "t", task_configs()["colors"], TOKENIZER, 64, with_labels=False)
    for raw, words in zip(rows, encoded["words"], strict=True):
        assert [word for word in words if word != IGNORE] == list(range(len(raw["tokens"])))


def test_rows_to_predict_need_no_label():
    """`predict` would ask for the column that it is to fill."""
    for name, task in task_configs().items():
        rows = raw_sets(2)[name].remove_columns(task.target_columns)
        encoded = encode(rows, name, task, TOKENIZER, 32, with_labels=False)
        assert not {"labels", "answers", "tags"} & set(encoded.column_names)


@pytest.mark.parametrize("make", [byte_level_tokenizer, lambda: byte_level_tokenizer(add_prefix_space=True)])
def test_byte_level_tokenizer_sees_words_as_in_their_text(make):
    """RoBERTa's and ModernBERT's tokenizers read the words ["the", "cat"] as "thecat": not the tokens of pretraining.

    Transformers 5 says nothing, and `add_prefix_space=True` changes nothing in a tokenizer without a class of its own.
    """
    tokenizer = make()
    rows = raw_sets(20)["colors"]
    encoded = encode(rows, "colors", task_configs()["colors"], tokenizer, 64)
    for raw, row in zip(rows, encoded, strict=True):
        text = tokenizer(" ".join(raw["tokens"]))
        assert row["input_ids"] == [text["input_ids"]]
        assert [x for x in row["labels"] if x != IGNORE] == [int(tag == "B-color") for tag in raw["tags"]]
        begins = [i for i, label in enumerate(row["labels"]) if label != IGNORE]
        pieces = [tokenizer.decode(text["input_ids"][a:b]) for a, b in zip(begins, [*begins[1:], -1], strict=True)]
        assert [piece.strip() for piece in pieces] == raw["tokens"]


def test_roberta_tokenizer_sees_words_as_in_their_text():
    """As above, with the class that real checkpoints load."""
    merges = [("t", "h"), ("th", "e"), ("Ġ", "c"), ("a", "t"), ("Ġc", "at")]
    symbols = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *pre_tokenizers.ByteLevel.alphabet()]
    vocabulary = {token: i for i, token in enumerate([*symbols, *(left + right for left, right in merges)])}
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=merges)
    rows = one_row("colors", tokens=["the", "cat"], tags=["O", "O"])
    (ids,) = encode(rows, "t", task_configs()["colors"], tokenizer, 16)["input_ids"][0]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "the", "Ġcat", "</s>"]


def test_tokenizer_that_cannot_take_words_is_refused():
    """A tokenizer without words would train on tokens that no text gives it."""
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "c": 3}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    message = (
        "A token_classification task needs a tokenizer that gives a list of words the tokens of their text; "
        f"{type(tokenizer).__name__} does not, with a space before each word or without. Use another encoder."
    )
    with pytest.raises(ConfigurationError) as error:
        encode(one_row("colors"), "t", task_configs()["colors"], tokenizer, 16)
    assert str(error.value) == message


# -- windows ----------------------------------------------------------------------------------------------------------


def split_windows(row):
    """The spans of each window of an encoded row."""
    ends = np.cumsum([len(window) for window in row["input_ids"]])
    assert len(row["spans"]) == ends[-1]
    return [row["spans"][end - len(window) : end] for end, window in zip(ends, row["input_ids"], strict=True)]


@pytest.mark.parametrize("tokenizer", [TOKENIZER, byte_level_tokenizer()], ids=["wordpiece", "byte_level"])
@pytest.mark.parametrize("stride", [None, 0, 3, 1000])
@pytest.mark.parametrize("max_length", [8, 9, 12, 13, 16, 24, 40])
def test_windows_cover_the_whole_context(tokenizer, stride, max_length):
    """A token in no window can be no answer; a stride as long as the window's context crashes the tokenizer."""
    task = TaskConfig("question_answering", ["question", "context"], "answers", doc_stride=stride)
    rows = raw_sets(6)["answer"]
    for raw, row in zip(rows, encode(rows, "answer", task, tokenizer, max_length), strict=True):
        offsets = tokenizer(raw["context"], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        places = {tuple(span): place for place, span in enumerate(offsets)}
        windows = [[places[tuple(span)] for span in spans if span[0] >= 0] for spans in split_windows(row)]
        assert {place for window in windows for place in window} == set(range(len(offsets)))
        assert all(len(window) <= max_length for window in row["input_ids"])
        assert all(window == list(range(window[0], window[-1] + 1)) for window in windows)
        shared = {left[-1] - right[0] + 1 for left, right in itertools.pairwise(windows)}
        assert len(shared) <= 1
        if stride is not None and shared:
            assert shared.pop() <= stride


@pytest.mark.parametrize("max_length", [8, 16, 33])
def test_long_question_leaves_half_of_the_window_to_the_context(max_length):
    """A question longer than the window leaves no room: the tokenizer raises, or makes a window a token."""
    context = " ".join(WORDS * 4)
    rows = one_row(
        "answer", question="is the cat " * 50, context=context, answers={"text": ["good"], "answer_start": [0]}
    )
    (row,) = encode(rows, "t", QA, TOKENIZER, max_length)
    room = max_length - TOKENIZER.num_special_tokens_to_add(pair=True)
    sizes = [sum(start >= 0 for start, _ in spans) for spans in split_windows(row)]
    assert set(sizes[:-1]) == {room - room // 2}
    question = TOKENIZER("is the cat " * 50, add_special_tokens=False)["input_ids"]
    for window in row["input_ids"]:
        assert window[1 : 1 + room // 2] == question[: room // 2]


@pytest.mark.parametrize("tokenizer", [TOKENIZER, byte_level_tokenizer()], ids=["wordpiece", "byte_level"])
def test_every_answer_is_found_in_a_window_that_has_it(tokenizer):
    """An answer found in no window is trained as "no answer", and one found at a wrong place as nonsense."""
    rows = raw_sets(30)["answer"]
    encoded = encode(rows, "answer", task_configs()["answer"], tokenizer, 24)
    several = 0
    for raw, row in zip(rows, encoded, strict=True):
        text, found = raw["answers"]["text"][0], 0
        for spans, (first, last) in zip(split_windows(row), row["labels"], strict=True):
            if (first, last) == (0, 0):
                assert [raw["answers"]["answer_start"][0], raw["answers"]["answer_start"][0] + len(text)] not in spans
                continue
            found += 1
            assert raw["context"][spans[first][0] : spans[last][1]].strip() == text
        assert found >= 1
        several += found > 1
        assert row["answers"] == [text]
    assert several > 0


def test_white_space_around_an_answer_is_no_part_of_it():
    """No token covers the space before an answer, and the answer would be found in no window."""
    rows = one_row("answer", context="the red cat", answers={"text": [" red "], "answer_start": [3]})
    (row,) = encode(rows, "t", QA, TOKENIZER, 32)
    ((first, last),) = row["labels"]
    assert row["spans"][first] == row["spans"][last] == [4, 7]


# -- long texts -------------------------------------------------------------------------------------------------------


def unigram_tokenizer():
    """A tokenizer as ALBERT's: pieces by their probability, and the space is part of a word."""
    letters = [(letter, -8.0) for letter in string.ascii_lowercase]
    backend = Tokenizer(
        models.Unigram([("<unk>", -20.0), ("\u2581", -6.0), *letters, *((f"\u2581{w}", -3.0) for w in WORDS)], 0)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<unk> $A <unk>", pair="<unk> $A <unk> $B:1 <unk>:1", special_tokens=[("<unk>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=["input_ids"], unk_token="<unk>")


def long_text(seed, count=2000):
    """Words, white space and signs of which some tokenizers make no token, or one of all that follows."""
    generator = random.Random(seed)
    signs = [*WORDS, *WORDS_IN_PIECES, "\u65e5\u672c", "\U0001f3d6", "  ", "\n", "\u200b", "x" * 150, "!?", "don't"]
    return " ".join(generator.choice(signs) for _ in range(count))


LONG = [
    long_text(0),
    "\u200b" * 900 + long_text(1),
    "x" * 3000 + " " + long_text(2),
    " " * 2000 + long_text(3),
    "x" * 9000,
]


@pytest.mark.parametrize("make", [tiny_tokenizer, byte_level_tokenizer, unigram_tokenizer, lambda: left_truncating()])
def test_a_long_text_becomes_the_tokens_of_the_whole(make):
    """What is spared the tokenizer is missed: a word is cut in two, or the end of a text is what its model reads."""
    tokenizer = make()
    rows = Dataset.from_dict({"text": LONG, "label": ["pos"] * len(LONG)})
    encoded = encode(rows, "t", task_configs()["polarity"], tokenizer, 16)
    expected = [tokenizer(text, truncation=True, max_length=16) for text in LONG]
    assert [segment for (segment,) in encoded["input_ids"]] == [tokens["input_ids"] for tokens in expected]
    assert encoded["truncated"][:] == [bool(tokens.encodings[0].overflowing) for tokens in expected]
    assert count_truncated(encoded) >= 4


@pytest.mark.parametrize("length", [8, 16, 64])
@pytest.mark.parametrize("make", [tiny_tokenizer, byte_level_tokenizer, unigram_tokenizer])
def test_a_word_that_goes_on_behind_the_cut_keeps_its_tokens(make, length):
    """BERT makes one unknown token of a word of over 100 characters, and a hundred pieces of the part before a cut."""
    tokenizer, dice = make(), random.Random(length)
    for _ in range(100):
        kinds = [["cat", "x" * dice.randint(80, 160), "a-b." * dice.randint(1, 40), "\u65e5" * 30] for _ in range(200)]
        text = "".join(dice.choice(kind) + dice.choice([" ", "\n", " " * 30]) for kind in kinds)
        expected = tokenizer(text, truncation=True, max_length=length)["input_ids"]
        assert tokenizer(shorten(text, tokenizer, length), truncation=True, max_length=length)["input_ids"] == expected


def test_white_space_at_the_cut_is_no_part_of_a_word():
    """The last word was counted from the end of the text, and the one before it was cut in two."""
    text = "a " + "x" * 103 + " " * 23 + "cat " * 100
    expected = TOKENIZER(text, truncation=True, max_length=8)["input_ids"]
    assert TOKENIZER(shorten(text, TOKENIZER, 8), truncation=True, max_length=8)["input_ids"] == expected


@pytest.mark.parametrize(
    ("make", "endless"), [(tiny_tokenizer, "ab+/"), (tiny_tokenizer, "1,2;"), (byte_level_tokenizer, "\u66f8")]
)
def test_what_has_no_spaces_is_shortened_too(make, endless):
    """Waiting for the end of a word that has none, the tokenizer was given all: of a Chinese pair, 18 GB."""
    assert len(shorten("title: " + endless * 20_000, make(), 32)) < 4000


@pytest.mark.parametrize("make", [tiny_tokenizer, byte_level_tokenizer, unigram_tokenizer])
def test_a_long_side_of_a_pair_leaves_the_other_whole(make):
    """Cut to half of the room in advance, a long text loses what a short one leaves it."""
    tokenizer, columns = make(), {"left": [LONG[0], "cat", LONG[2]], "right": ["cat", LONG[1], "a hat is a hat"]}
    rows = Dataset.from_dict({**columns, "score": [1.0] * 3})
    encoded = encode(rows, "t", task_configs()["overlap"], tokenizer, 32)
    assert encoded["truncated"][:] == [True] * 3
    expected = tokenizer(columns["left"], columns["right"], truncation=True, max_length=32)["input_ids"]
    assert [segment for (segment,) in encoded["input_ids"]] == expected


def test_a_long_list_of_words_becomes_the_tokens_of_the_whole():
    """Words without a token stand for words that are read, and the tags of those are lost."""
    words = [*["", " "] * 100, *["red", "sofa", "x" * 5000] * 100]
    rows = Dataset.from_list([{"tokens": words, "tags": ["B-color" if word == "red" else "O" for word in words]}])
    encoded = encode(rows, "t", task_configs()["colors"], TOKENIZER, 32)[0]
    whole = TOKENIZER(words, is_split_into_words=True, truncation=True, max_length=32)
    assert encoded["input_ids"] == [whole["input_ids"]]
    assert encoded["truncated"]
    assert encoded["labels"].count(1) == whole["input_ids"].count(TOKENIZER.convert_tokens_to_ids("red")) > 1


def characters(given):
    return len(given) if isinstance(given, str) else sum(map(characters, given))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("polarity", {"text": "good cat " * 1000}),
        ("overlap", {"left": "good cat " * 1000, "right": "bad cat " * 1000}),
        ("colors", {"tokens": ["red"] * 1000, "tags": ["O"] * 1000}),
        ("colors", {"tokens": ["red", "good-cat-" * 1000], "tags": ["O"] * 2}),
        ("choice", {"prompt": "good cat " * 1000, "second": "bad cat " * 1000}),
        ("answer", {"question": "good cat " * 1000}),
    ],
)
def test_a_long_text_is_not_tokenized_whole(name, changes, calls):
    """All that is cut off is kept, of a pair every piece with every other: two texts of 40 kB take 9 GB."""
    encoded = encode(one_row(name, **changes), name, task_configs()[name], tiny_tokenizer(), 32)
    assert max(characters(given) for args in calls for given in args) <= 2 * 16 * 32
    assert count_truncated(encoded) == 1


def test_a_question_that_is_cut_is_counted():
    """A question lost its end, and as nothing of its context was lost, nobody was told."""
    rows = Dataset.from_list([raw_sets(1)["answer"][0], one_row("answer", question="is the cat " * 9)[0]])
    encoded = encode(rows, "answer", task_configs()["answer"], TOKENIZER, 24)
    assert encoded["truncated"][:] == [False, True]


def test_a_context_without_end_is_refused():
    """All windows of a context are in one batch: a dump of 10 MB takes all memory, or hours."""
    text, limit = "cat " * 8001, "8,000 tokens (1,000 times `max_length`)"
    wrong = one_row("answer", context=text, answers={"text": ["cat"], "answer_start": [0]})
    right = one_row("answer", context=text[4:], answers={"text": ["cat"], "answer_start": [0]})
    task = TaskConfig("question_answering", ["question", "context"], "answers", max_length=8, doc_stride=0)
    with pytest.raises(ConfigurationError) as error:
        encode(wrong, "answer", task, TOKENIZER, 8)
    assert f"row 0: a text that is read in windows must have no more than {limit}, for all" in str(error.value)
    assert "found 8,001. Give" in str(error.value)
    assert len(encode(right, "answer", task, TOKENIZER, 8)[0]["input_ids"]) > 1000


# -- labels -----------------------------------------------------------------------------------------------------------

CLASSES = TaskConfig("classification", ["text"])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["b", "a", "b"], [1, 0, 1]),
        ([2, 0, 1], [2, 0, 1]),
        ([1, 5, 3, 2, 4], [0, 4, 2, 1, 3]),
        (["9", "10", "9"], [1, 0, 1]),
        ([False, True], [0, 1]),
        ([1.0, 0.0, 1.0], [1, 0, 1]),
    ],
    ids=["strings", "indices", "stars", "digits", "booleans", "whole_floats"],
)
@pytest.mark.parametrize("column", ["label", "labels"])
def test_class_labels_of_all_kinds(values, expected, column):
    """Stars 1..5 read as indices would shift every class; a raw column called "labels" would lend its type to ours."""
    task = TaskConfig("classification", ["text"], label_column=column)
    found = labels_of(task, {column: values})
    assert found == expected
    assert {type(value) for value in found} == {int}


def test_schema_names_integer_labels():
    """A `ClassLabel` column speaks in indices of its own names, which `label_names` may give in another order."""
    features = {"label": ClassLabel(names=["no", "yes"])}
    assert labels_of(CLASSES, {"label": [0, 1]}, features) == [0, 1]
    swapped = TaskConfig("classification", ["text"], label_names=["yes", "no"])
    assert labels_of(swapped, {"label": [0, 1]}, features) == [1, 0]


def test_named_classes_take_indices_and_booleans():
    """GLUE's integers and a JSON file's true and false stand for classes whose names the user gives."""
    task = TaskConfig("classification", ["text"], label_names=["no", "yes"])
    assert labels_of(task, {"label": [0, 1]}) == labels_of(task, {"label": [False, True]}) == [0, 1]


def test_multilabel_as_lists_and_as_columns():
    """The two ways to write the same labels must give the same targets."""
    lists = TaskConfig("multilabel", ["text"])
    columns = TaskConfig("multilabel", ["text"], label_column=["a", "b", "c"])
    expected = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert labels_of(lists, {"label": [["c", "a"], [], ["b"]]}) == expected
    assert labels_of(columns, {"a": [1, 0, 0], "b": [0, 0, 1], "c": [1, 0, 0]}) == expected
    assert labels_of(columns, {"a": [True, False, False], "b": [0.0, 0.0, 1.0], "c": [1, 0, 0]}) == expected
    features = {"label": List(ClassLabel(names=["a", "b", "c"]))}
    assert labels_of(lists, {"label": [[2, 0], [], [1]]}, features) == expected


def test_choice_by_index_or_by_column():
    """Data name the right choice by its place or by its column."""
    for label, expected in [(1, 1), (1.0, 1), ("second", 1), ("first", 0), (False, 0)]:
        assert (
            encode(one_row("choice", label=label), "t", task_configs()["choice"], TOKENIZER, 16)["labels"][0]
            == expected
        )


def test_numbers_are_read_as_written():
    """A CSV file may hold its numbers as text."""
    task = TaskConfig("regression", ["text"])
    assert labels_of(task, {"label": ["3.5", "-1", "2"]}) == [3.5, -1.0, 2.0]


def test_format_of_the_dataset_is_of_no_matter():
    """A dataset that the user set to NumPy gives arrays, whose labels are not the integers that they look like."""
    for name, rows in raw_sets(4).items():
        plain = encode(rows, name, task_configs()[name], TOKENIZER, 32)[:]
        for seen in (rows.with_format("numpy"), rows.with_format(columns=rows.column_names[:1])):
            assert encode(seen, name, task_configs()[name], TOKENIZER, 32)[:] == plain


ONE_OF = "A label must be one of [neg, pos] or its index; found "


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("polarity", {"label": "good"}, ONE_OF + "'good'."),
        ("polarity", {"label": 2}, ONE_OF + "2."),
        ("polarity", {"label": -1}, ONE_OF + "-1."),
        ("polarity", {"label": None}, ONE_OF + "None."),
        ("polarity", {"label": 0.5}, ONE_OF + "0.5."),
        ("overlap", {"score": "high"}, "A regression label must be a number; found 'high'."),
        ("overlap", {"score": None}, "A regression label must be a number; found None."),
        ("overlap", {"score": float("nan")}, "A regression label must be a finite number; found nan."),
        ("colors", {"tags": ["O"]}, "A row needs one label for each of its 2 words; found 1."),
        ("colors", {"tags": None}, "A row needs one label for each of its 2 words; found None."),
        (
            "colors",
            {"tags": ["O", "B-x"]},
            "A label must be one of [O, B-color] or its index; found 'B-x'. The labels of the column are [O, B-x].",
        ),
        (
            "choice",
            {"label": 2},
            "A label must be one of [first, second] or its index; found 2.",
        ),
        (
            "choice",
            {"label": -1},
            "A label must be one of [first, second] or its index; found -1.",
        ),
        ("topics", {"topics": "cat"}, "A multilabel label must be a list of labels; found 'cat'."),
        ("topics", {"topics": ["cow"]}, "A label must be one of [cat, dog, hat] or its index; found 'cow'."),
        (
            "topics",
            {"topics": [0, 1, 0, 1]},
            "A multilabel label must list each label that applies once; found [0, 1, 0, 1]. Vectors of 0 and 1 must "
            "all have the length of the label names, 3.",
        ),
        (
            "answer",
            {"answers": {"text": ["blue"], "answer_start": [4]}},
            "An answer must be a text that stands in its context at `answer_start`, counted in characters from 0; "
            "found 'blue' at 4.",
        ),
        (
            "answer",
            {"answers": {"text": [], "answer_start": []}},
            "`answers` must be {text: [...], answer_start: [...]} with an answer; found {'text': [], 'answer_start': "
            "[]}. Questions without an answer are not supported.",
        ),
        (
            "answer",
            {"answers": {"text": "red", "answer_start": 4}},
            "`answers` must be {text: [...], answer_start: [...]} with an answer; found {'text': 'red', "
            "'answer_start': 4}. Questions without an answer are not supported.",
        ),
    ],
)
def test_wrong_label_is_shown_with_its_task_column_and_row(name, changes, message):
    """A wrong label found in training, hours later, or scored as another class, would never be traced to its row."""
    good = {"tokens": ["red", "cat"], "tags": ["B-color", "O"]} if name == "colors" else {}
    if name == "answer":
        good = {"context": "the red cat", "answers": {"text": ["red"], "answer_start": [4]}}
    task, raw = task_configs()[name], {**raw_sets(1)[name][0], **good}
    wrong = Dataset.from_list([{**raw, **changes}])
    encode(Dataset.from_list([raw]), name, task, TOKENIZER, 32)
    (column,) = task.target_columns
    with pytest.raises(ConfigurationError) as error:
        encode(wrong, name, task, TOKENIZER, 32)
    assert str(error.value) == f"Task {name!r}, column {column!r}, row 0: {message} {HINT}"


def test_wrong_label_is_found_in_any_row():
    """The place inside a batch of the map would name a row that is right."""
    rows = Dataset.from_dict({"text": ["cat"] * 2500, "label": [*["neg"] * 2345, "bad", *["pos"] * 154]})
    with pytest.raises(ConfigurationError, match="row 2345: "):
        encode(rows, "t", task_configs()["polarity"], TOKENIZER, 8)


def test_zero_or_one_columns_hold_nothing_else():
    """A count of 2 in a column of a multilabel task would be a target above 1."""
    task = TaskConfig("multilabel", ["text"], label_column=["a", "b"])
    with pytest.raises(ConfigurationError) as error:
        labels_of(task, {"a": [0, 1], "b": [1, 2]})
    expected = "Task 't', column 'a', 'b', row 1: A column of a multilabel task must hold 0 or 1; found 2."
    assert str(error.value) == f"{expected} {HINT}"


# -- columns and texts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["left", "right", "score"])
def test_missing_column_is_named(column):
    """A `KeyError` from inside the map would not say which task reads the column."""
    rows = raw_sets(2)["overlap"].remove_columns(column)
    with pytest.raises(ConfigurationError) as error:
        encode(rows, "overlap", task_configs()["overlap"], TOKENIZER, 16)
    left = ", ".join(rows.column_names)
    assert str(error.value) == f"Task 'overlap' reads the column {column!r}; its data has {left}."


@pytest.mark.parametrize(
    ("name", "changes", "wanted"),
    [
        ("polarity", {"text": None}, "a string"),
        ("polarity", {"text": 3}, "a string"),
        ("overlap", {"right": ["red", "cat"]}, "a string"),
        ("choice", {"second": None}, "a string"),
        ("answer", {"context": 1.5}, "a string"),
        ("colors", {"tokens": "red cat"}, "a list of words"),
        ("colors", {"tokens": [], "tags": []}, "a list of words"),
        ("colors", {"tokens": ["red", None], "tags": ["O", "O"]}, "a list of words"),
    ],
)
def test_text_that_is_no_text_is_shown(name, changes, wanted):
    """A missing text reaches the tokenizer as None, whose message names neither task nor row."""
    (column, value), *_ = changes.items()
    with pytest.raises(ConfigurationError) as error:
        encode(one_row(name, **changes), name, task_configs()[name], TOKENIZER, 16)
    found = f"Task {name!r}, column {column!r}, row 0: the text must be {wanted}; found {value!r}."
    assert str(error.value) == f"{found} {HINT}"


def test_what_is_found_is_shown_in_part():
    """One word that is missing among many fills the terminal with the others."""
    with pytest.raises(ConfigurationError) as error:
        encode(one_row("colors", tokens=[*["red"] * 10_000, None]), "colors", task_configs()["colors"], TOKENIZER, 16)
    assert len(str(error.value)) < 400


def test_empty_split_is_refused():
    """An empty split has no columns once it is mapped, and fails far away."""
    with pytest.raises(ConfigurationError) as error:
        encode(raw_sets(2)["polarity"].select([]), "polarity", task_configs()["polarity"], TOKENIZER, 16)
    assert str(error.value) == "Task 'polarity' needs at least one row in each of its splits; found an empty one."


def test_slow_tokenizer_is_refused():
    """A tokenizer in Python does not know the words behind its tokens."""

    class Slow:
        is_fast = False

    with pytest.raises(ConfigurationError) as error:
        encode(one_row("polarity"), "polarity", task_configs()["polarity"], Slow(), 16)
    expected = "The tokenizer must be a fast one, which knows the words behind its tokens; found Slow."
    assert str(error.value) == expected


# -- the cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """The list of calls of fast tokenizers, one entry each."""
    made, original = [], PreTrainedTokenizerFast.__call__

    def counted(self, *args, **kwargs):
        made.append(args)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", counted)
    return made


@pytest.fixture
def on_disk(tmp_path):
    """Name -> a function that loads a task's raw rows from disk, as another run would."""
    folders = {}
    for name, rows in raw_sets(8).items():
        rows.save_to_disk(tmp_path / name)
        folders[name] = tmp_path / name
    return {name: lambda folder=folder: load_from_disk(folder) for name, folder in folders.items()}


def test_same_data_and_arguments_are_tokenized_once(on_disk, calls):
    """A tokenizer remembers its last call: hashed as it is, it would tokenize everything again in every run."""
    for name, task in task_configs().items():
        first = encode(on_disk[name](), name, task, tiny_tokenizer(), 32)
        assert calls
        tokenizer = tiny_tokenizer()
        tokenizer("the cat " * 20, truncation=True, max_length=5, stride=1, padding="max_length")
        calls.clear()
        again = encode(on_disk[name](), name, task, tokenizer, 32)
        assert not calls, name
        assert again[:] == first[:]
        assert again._fingerprint == first._fingerprint


def left_truncating():
    tokenizer = tiny_tokenizer()
    tokenizer.truncation_side = "left"
    return tokenizer


def other_vocabulary():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["zebra"])
    return tokenizer


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 6},
        {"task": TaskConfig("classification", ["text"], label_names=["pos", "neg"])},
        {"with_labels": False},
        {"tokenizer": left_truncating()},
        {"tokenizer": other_vocabulary()},
        {"tokenizer": tiny_tokenizer(token_types=False)},
    ],
    ids=["max_length", "label_order", "with_labels", "truncation_side", "vocabulary", "token_types"],
)
def test_other_arguments_are_tokenized_anew(on_disk, calls, change):
    """Stale rows from the cache would be cut, labeled or typed as for another run, without a word."""
    arguments = {"task": task_configs()["polarity"], "tokenizer": tiny_tokenizer(), "max_length": 7}
    first = encode(on_disk["polarity"](), "polarity", **arguments)
    calls.clear()
    changed = encode(on_disk["polarity"](), "polarity", **{**arguments, **change})
    assert calls
    assert changed._fingerprint != first._fingerprint


def test_error_leaves_nothing_in_the_cache(on_disk):
    """Half of a split, cached before the error, would be taken for the whole in the next run."""
    task = TaskConfig("classification", ["text"], label_names=["neg", "other"])
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="found 'pos'"):
            encode(on_disk["polarity"](), "polarity", task, TOKENIZER, 16)


def test_batches_change_nothing_of_what_is_made():
    """Bug: at the seams of the batches that are tokenized and written, a row is lost, doubled or another's."""
    rows = Dataset.from_list(
        [{"text": f"the row of number {i % 97}", "label": ["no", "yes"][i % 2]} for i in range(4321)]
    )
    task = TaskConfig("classification", ["text"], label_names=["no", "yes"])
    encoded = encode(rows, "kind", task, TOKENIZER, 8)
    seams = (0, 499, 500, 1999, 2000, 4320)
    alone = [encode(rows.select([row]), "kind", task, TOKENIZER, 8)[0] for row in seams]
    assert [encoded[row] for row in seams] == alone
    assert encoded["labels"][:] == [row % 2 for row in range(4321)]
    assert count_truncated(encoded) == sum(encoded["truncated"])
