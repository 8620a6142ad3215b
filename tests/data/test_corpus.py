"""Corpora: no token lost, none invented, none padded but in the last block; mixed exactly."""

from __future__ import annotations

import dataclasses
import json
import lzma
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.batches import Batches
from research.data.corpus import Corpus
from research.data.documents import Reader
from research.data.duplicates import Exact, MinHash
from research.data.formats import Bad
from research.data.mixture import Mixture
from research.data.quality import Length
from research.data.tokenize import SPECIAL, load_tokenizer
from research.data.wordpiece import train_wordpiece
from research.errors import ConfigError, DataError

DATA = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[3] / "shared"))
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "while",
    "unbelievable",
    "rain",
    "was",
    "falling,",
    "naïve",
    "café",
    "雪",
    "😀",
    "it?",
]


def document(number: int) -> str:
    """A text of 1 to 40 words, its own."""
    rng = np.random.default_rng(number)
    return f"{number} " + " ".join(rng.choice(WORDS, rng.integers(1, 40)))


TEXTS = [document(i) for i in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus")
    (path / "train.txt").write_text("\n".join(TEXTS) + "\n")
    train_wordpiece(TEXTS, 120, path / "tokenizer.json")
    return path


def corpus(folder: Path, **changes: object) -> Corpus:
    made = Corpus(
        train=str(folder / "train.txt"),
        tokenizer=str(folder / "tokenizer.json"),
        max_length=32,
        cache=str(folder / "cache"),
    )
    return dataclasses.replace(made, **changes)


def documents_in(batches: Batches, steps: int) -> dict[int, list[int]]:
    """The tokens of each document, put together again from what batches hold of it."""
    pieces: dict[int, list[int]] = {}
    for step in range(steps):
        batch = batches.batch(step)
        for row, slot in np.argwhere(batch["ids"] >= 0):
            span = slice(batch["starts"][row, slot], None)
            length = batch["lengths"][row, slot]
            assert (batch["segments"][row, span][:length] == slot + 1).all()
            assert batch["positions"][row, span][:length].tolist() == list(range(length))
            pieces[batch["ids"][row, slot]] = batch["tokens"][row, span][:length].tolist()
    found: dict[int, list[int]] = {}
    for piece in sorted(pieces):
        document = int(batches.examples.encoded.row_of[piece])
        found[document] = found.get(document, []) + pieces[piece]
    return found


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_every_document_is_there_whole_in_pieces_of_its_own(folder: Path, layout: str) -> None:
    batches = corpus(folder, layout=layout).open("train", 8)
    tokenizer = load_tokenizer(str(folder / "tokenizer.json"))
    assert documents_in(batches, batches.steps) == {
        i: tokenizer.encode(text).ids for i, text in enumerate(TEXTS)
    }


def test_only_the_last_block_is_padded(folder: Path) -> None:
    batches = corpus(folder).open("train", 8)
    rows = np.concatenate([batches.batch(step)["segments"] for step in range(batches.steps)])
    used = rows[rows.any(axis=1)]
    assert (used[:-1] > 0).all()
    assert 0 < (used[-1] > 0).sum() <= 32
    assert batches.padding == pytest.approx((used == 0).mean())
    assert len(batches.shapes) == 1
    assert batches.rows == len(used) == -(-int(batches.lengths.sum()) // 32)


def test_a_block_can_be_one_segment_with_a_token_between_documents(folder: Path) -> None:
    data = corpus(folder, segments="blocks", end="[SEP]")
    batches = data.open("train", 4)
    tokenizer = load_tokenizer(str(folder / "tokenizer.json"))
    stream = [
        token for t in TEXTS for token in [*tokenizer.encode(t, add_special_tokens=False).ids, 3]
    ]
    rows = [row for s in range(batches.steps) for row in batches.batch(s)["tokens"]]
    assert np.concatenate(rows)[: len(stream)].tolist() == stream
    batch = batches.batch(0)
    assert (batch["segments"] == 1).all()
    assert (batch["positions"] == np.arange(32)).all()
    with pytest.raises(ConfigError, match="no token '<eot>'"):
        corpus(folder, end="<eot>").open("train", 4)


@pytest.mark.parametrize("segments", ["documents", "blocks"])
def test_bytes_are_those_of_the_documents(folder: Path, segments: str) -> None:
    examples = corpus(folder, segments=segments).examples("train")
    assert examples.slots["bytes"].sum() == sum(len(text.encode()) for text in TEXTS)
    if segments == "documents":
        found = np.bincount(examples.encoded.row_of, examples.slots["bytes"])
        assert found.tolist() == [len(text.encode()) for text in TEXTS]


def test_bytes_of_a_piece_are_those_its_tokens_stand_for(folder: Path) -> None:
    """A tokenizer of one token a word: a piece's text can be read off the words."""
    examples = corpus(folder, max_length=7).examples("train")
    tokenizer = load_tokenizer(str(folder / "tokenizer.json"))
    encoded = examples.encoded
    for document in range(0, 60, 7):
        pieces = np.flatnonzero(encoded.row_of == document)
        text, offsets = TEXTS[document], tokenizer.encode(TEXTS[document]).offsets[1:-1]
        token = end = 0
        for piece in pieces:
            kinds = encoded.words[encoded.offsets[piece] : encoded.offsets[piece + 1]]
            token += int((kinds != SPECIAL).sum())
            last = token == len(offsets)
            begin, end = end, len(text) if last else offsets[token - 1][1] if token else 0
            assert examples.slots["bytes"][piece] == len(text[begin:end].encode())


def test_pieces_begin_words_and_special_tokens_are_none(folder: Path) -> None:
    data = corpus(folder, words=True)
    batch = data.open("train", 64).batch(0)
    starts = (batch["positions"] == 0) & (batch["segments"] > 0)
    special = np.isin(batch["tokens"], [2, 3]) & (batch["segments"] > 0)
    assert (batch["words"][special] == -1).all()
    assert (batch["words"][starts & ~special] == 0).all()
    steps = np.diff(batch["words"], axis=1)[(np.diff(batch["segments"], axis=1) == 0)]
    assert steps.max() <= 1


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.floats(0.05, 10)), min_size=1, max_size=5),
    st.integers(0, 50),
)
def test_mixtures_draw_exact_shares_and_everything_before_anything_again(
    sources: list[tuple[int, float]], epoch: int
) -> None:
    sizes, weights = zip(*sources)
    mixture = Mixture(sizes, weights)
    shares = np.array(weights) / sum(weights) * sum(sizes)
    assert sum(mixture.counts) == sum(sizes)
    assert (np.abs(np.array(mixture.counts) - shares) < 1).all()
    ends = np.cumsum(sizes)
    order = mixture.order(7, epoch)
    drawn = np.bincount(np.searchsorted(ends, order, side="right"), minlength=len(sizes))
    assert tuple(drawn) == mixture.counts
    np.testing.assert_array_equal(order, mixture.order(7, epoch))
    total = sum(np.bincount(mixture.order(7, e), minlength=ends[-1]) for e in range(6))
    for units in np.split(total, ends[:-1]):
        assert units.max() - units.min() <= 1


def test_a_mixture_of_corpora_is_drawn_by_its_weights(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": document(i)}) + "\n" for i in range(100, 130)))
    weights = ((str(folder / "train.txt"), 1.0), (str(other), 3.0))
    data = corpus(folder, train="", mixture=weights)
    batches = data.open("train", 4, steps=100, seed=3)
    first, second = batches.examples.mixture.sizes
    assert first > second
    period = -(-batches.rows // 4)
    rows = [batches.batch(s)["sources"][:, 0] for s in range(period)]
    count = int((np.concatenate(rows)[: batches.rows] == 1).sum())
    assert abs(count - 0.75 * batches.rows) <= 1
    alone = [documents_in(corpus(folder, train=s).open("train", 999), 1) for s, _ in weights]
    together = documents_in(data.open("train", 4), period)
    assert together[0] == alone[0][0]
    assert together[60] == alone[1][0]
    again = data.open("train", 4, steps=100, seed=3)
    np.testing.assert_array_equal(batches.batch(57)["tokens"], again.batch(57)["tokens"])
    evener = dataclasses.replace(data, mixture=tuple((s, 1.0) for s, _ in weights))
    assert evener.open("train", 4, steps=100, seed=3).fingerprint != batches.fingerprint


def test_a_text_file_is_lines_paragraphs_or_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\n\n \nthree\n\nfour\nfive")
    expected = {
        "line": ["one", "two", "three", "four", "five"],
        "paragraph": ["one\ntwo", "three", "four\nfive"],
        "file": ["one\ntwo\n\n \nthree\n\nfour\nfive"],
    }
    for document, texts in expected.items():
        assert list(Reader(document=document).read(str(path))) == texts
    path.write_bytes(b"one\n\ntw\xff\nmore\n\nthree\n")
    for document in ("paragraph", "file"):
        with pytest.raises(DataError, match=r"a\.txt:3: not UTF-8 at byte 3"):
            list(Reader(document=document).read(str(path)))
    found = list(Reader(document="paragraph", max_bad_rows=1).read(str(path)))
    assert [text for text in found if not isinstance(text, Bad)] == ["one", "three"]


def test_a_folder_is_all_files_below_it(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "b.txt").write_text("b1\nb2\n")
    (tmp_path / "notes.md").write_text("not read\n")
    (tmp_path / "deep" / "a.jsonl").write_text('{"text": "a", "meta": [1]}\n')
    (tmp_path / "deep" / "er" / "c.txt.xz").write_bytes(lzma.compress(b"c\n"))
    with zipfile.ZipFile(tmp_path / "deep" / "z.zip", "w") as archive:
        archive.writestr("inside/d.txt", "d1\nd2\n")
    assert list(Reader().read(str(tmp_path))) == ["b1", "b2", "a", "c", "d1", "d2"]
    assert list(Reader(limit=3).read(str(tmp_path))) == ["b1", "b2", "a"]


def test_what_is_left_out_is_counted_by_reason(folder: Path, tmp_path: Path) -> None:
    train, dev = tmp_path / "train.txt", tmp_path / "dev.txt"
    long = " ".join(f"word{i}" for i in range(40))
    train.write_text("\n".join([TEXTS[0], "short", TEXTS[1], long, TEXTS[0].upper(), f"{long} x"]))
    dev.write_text(f"before {TEXTS[1]} after\n")
    data = corpus(folder, train=str(train), dev=str(dev), filters=(Length(fewest=2),), overlap=6)
    assert len(TEXTS[1].split()) > 6
    for finder, copies in ((None, 0), (Exact(), 1), (MinHash(), 2)):
        changed = dataclasses.replace(data, duplicates=finder)
        stats = changed.open("train", 4).stats()
        assert stats["left out: under 2 words"] == 1
        assert stats["left out: share 6 words with dev or test"] == 1
        assert stats.get(f"left out: {finder.reason}" if finder else "", 0) == copies
        rows = changed.examples("train").encoded.row_of
        assert len(np.unique(rows)) == 4 - copies
        assert "left out: under 2 words" not in changed.open("dev", 4).stats()


def test_new_rows_are_examples_in_their_order(folder: Path) -> None:
    data = corpus(folder)
    batches = data.encode_rows([TEXTS[3], {"text": TEXTS[4]}], 2)
    assert batches.batch(0)["ids"][:, 0].tolist() == [0, 1]
    with pytest.raises(DataError, match="rows:2: 'text' is not a text, or empty"):
        data.encode_rows([TEXTS[3], {"txt": "x"}])
    assert data.quote("train", 0).startswith("0 ")


def test_bad_input_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    empty, broken, unknown = (tmp_path / n for n in ("empty.txt", "broken.txt", "odd.parquet"))
    empty.write_text("\n \n")
    broken.write_bytes(b"fine\nbro\xffken\n")
    unknown.write_text("x")
    (tmp_path / "nothing").mkdir()
    cases: list[tuple[dict[str, object], str]] = [
        ({"train": str(empty)}, "holds no documents to learn from"),
        ({"train": str(broken)}, r"broken.txt:2: not UTF-8 at byte 4"),
        ({"train": str(unknown)}, "the suffix is none of"),
        ({"train": str(tmp_path / "nothing")}, "the folder holds no file that ends in"),
        ({"filters": (Length(fewest=99),)}, "left out: 60 under 99 words"),
        ({"mixture": (("a", 1.0),)}, "data.mixture and data.train are both set"),
        ({"train": "", "mixture": (("a.txt", 0.0),)}, "a.txt has weight 0.0, expected over 0"),
        ({"overlap": 5}, "neither data.dev nor data.test"),
        ({"row_length": 16}, "row_length is 16, but the longest row has 32"),
    ]
    for changes, sentence in cases:
        with pytest.raises((ConfigError, DataError), match=sentence):
            corpus(folder, **changes).open("train", 4)


@pytest.mark.skipif(not DATA.is_dir(), reason="GRAFT_DATA: the real data sets are not here")
def test_real_speeches_are_documents(folder: Path) -> None:
    data = corpus(
        folder,
        train=str(DATA / "data/lm/state_union.zip"),
        document="file",
        max_length=512,
        limit=4,
    )
    batches = data.open("train", 4)
    with zipfile.ZipFile(data.train) as archive:
        names = [name for name in archive.namelist() if name.endswith(".txt")][:4]
        expected = sum(len(archive.read(name).decode().strip().encode()) for name in names)
    assert len(np.unique(batches.examples.encoded.row_of)) == 4
    assert batches.examples.slots["bytes"].sum() == pytest.approx(expected, rel=0.02)
    assert batches.padding < 1 / batches.rows
