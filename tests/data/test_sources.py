"""The readers: what is whole comes back whole, and every damage is named by file and line."""

import bz2
import gzip
import io
import json
import lzma
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.sources import read_rows, signature
from research.errors import ConfigError, DataError

DATA = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[3] / "shared")) / "data"
COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}
ROWS = [
    {"text": "plain", "label": "a"},
    {"text": "two\u2028lines, no: one", "label": "b"},
    {"text": "snow ☃ 雪", "label": "c"},
    {"text": " 'quotes' and spaces ", "label": "a b"},
]


def written(format: str, rows: list[dict[str, str]]) -> bytes:
    """A file of the format, written independently of the readers."""
    if format == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if format == "json":
        return json.dumps(rows, indent=1).encode()
    if format == "tsv":
        lines = ["text\tlabel", *(f"{row['text']}\t{row['label']}" for row in rows)]
        return "\n".join(lines).encode()
    quoted = [[value.replace('"', '""') for value in row.values()] for row in rows]
    return "\n".join(["text,label", *(f'"{a}","{b}"' for a, b in quoted)]).encode()


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("format", ["jsonl", "json", "csv", "tsv"])
def test_formats_bring_back_what_was_written(tmp_path, format, compression):
    path = tmp_path / f"rows.{format}{compression}"
    path.write_bytes(COMPRESS[compression](written(format, ROWS)))
    rows = read_rows(str(path))
    assert list(rows) == ROWS
    assert not rows.dropped


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_marks_are_no_text(tmp_path, end, bom):
    for format in ("jsonl", "csv", "tsv"):
        path = tmp_path / f"rows.{format}"
        path.write_bytes(bom + written(format, ROWS).decode().replace("\n", end).encode())
        assert list(read_rows(str(path))) == ROWS


def test_txt_is_one_text_a_line(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_bytes("one\n\n  \ntwo\u2028still two\r\nthree".encode())
    rows = read_rows(str(path))
    assert [row["text"] for row in rows] == ["one", "two\u2028still two", "three"]
    assert [rows.where(i) for i in range(3)] == [f"{path}:{line}" for line in (1, 4, 5)]


def test_csv_quotes_lines_delimiters_and_quotes(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('text,label\n"a, ""b""\nc",1\nd,"2"\n,\n')
    rows = read_rows(str(path))
    assert list(rows) == [
        {"text": 'a, "b"\nc', "label": "1"},
        {"text": "d", "label": "2"},
        {"text": "", "label": ""},
    ]
    assert [rows.where(i) for i in range(3)] == [f"{path}:{line}" for line in (2, 4, 5)]


def test_tsv_is_unquoted_unless_told(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text('text\tlabel\n"a\t"b\n')
    assert read_rows(str(path))[0] == {"text": '"a', "label": '"b'}
    path.write_text('text\tlabel\n"a\tb"\tc\n')
    assert read_rows(str(path), quoting="csv")[0] == {"text": "a\tb", "label": "c"}


def test_long_fields_are_no_damage(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('text,label\n"' + "x" * 300_000 + '",1\n')
    assert len(read_rows(str(path))[0]["text"]) == 300_000


def test_json_numbers_stay_as_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"score": 5.000, "count": 7, "yes": true, "none": null, "list": [1]}\n')
    assert list(read_rows(str(path))) == [{"score": "5.000", "count": "7", "yes": "true"}]


def test_columns_name_a_file_without_header_and_need_keeps_a_few(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("a\tb\tc\nd\te\tf\n")
    rows = read_rows(str(path), columns=("x", "y", "z"), need=("z", "x"))
    assert list(rows) == [{"x": "a", "z": "c"}, {"x": "d", "z": "f"}]


def test_globs_commas_and_prefixes_join_files(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.data"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    source = f"{tmp_path}/*.jsonl,jsonl:{tmp_path}/c.data"
    rows = read_rows(source)
    assert [row["text"] for row in rows] == ["a.jsonl", "b.jsonl", "c.data"]
    assert rows.where(2) == f"{tmp_path / 'c.data'}:1"
    before = signature(source)
    (tmp_path / "a.jsonl").write_text('{"text": "changed"}\n')
    assert signature(source) != before


def test_zip_reads_known_members_and_writes_nothing(tmp_path):
    hostile = ["../../escape.jsonl", "/absolute.jsonl", "C:\\x.jsonl", "a/../../b.jsonl"]
    path = tmp_path / "box" / "rows.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README", "not rows")
        archive.writestr("deep/one.tsv", written("tsv", ROWS))
        archive.writestr("two.jsonl.gz", gzip.compress(written("jsonl", ROWS)))
        for name in hostile:
            archive.writestr(name, written("jsonl", ROWS[:1]))
    before = sorted(tmp_path.rglob("*"))
    rows = read_rows(str(path))
    assert list(rows) == ROWS + ROWS + ROWS[:1] * len(hostile)
    assert rows.where(0) == f"{path}/deep/one.tsv:2"
    assert sorted(tmp_path.rglob("*")) == before


GOOD = {
    "tsv": b"text\tlabel\none\ta\n%s\nlast\tb\n",
    "csv": b"text,label\none,a\n%s\nlast,b\n",
    "jsonl": b'{"text": "one", "label": "a"}\n%s\n{"text": "last", "label": "b"}\n',
    "json": b'[{"text": "one", "label": "a"},\n%s,\n{"text": "last", "label": "b"}]',
}
BAD_ROWS = [
    ("tsv", b"few", "1 columns, expected 2"),
    ("tsv", b"too\tmany\tcolumns", "3 columns, expected 2"),
    ("tsv", b"", "1 columns, expected 2"),
    ("tsv", b"bad \xff byte\ta", "not UTF-8 at byte 5"),
    ("tsv", b"nul \0 byte\ta", "a NUL byte at byte 5"),
    ("csv", b"few", "1 columns, expected 2"),
    ("csv", b"too,many,columns", "3 columns, expected 2"),
    ("csv", b"bad \xff byte,a", "not UTF-8"),
    ("csv", b"nul \0 byte,a", "a NUL byte"),
    ("csv", b'"open,a', "a quote is opened here and not closed"),
    ("csv", b'5" disk and 3" disk,a', "a stray quote in column 1"),
    ("csv", b'"closed" early,a', "a stray quote in column 1"),
    ("jsonl", b'{"text": "cut', "broken JSON"),
    ("jsonl", b"", "broken JSON"),
    ("jsonl", b'{"text": "x", "label": "a"} {}', "broken JSON"),
    ("jsonl", b'{"text": NaN, "label": "a"}', "NaN is not JSON"),
    ("jsonl", b'{"text": "x", "label": "a", "more": [[-Infinity]]}', "-Infinity is not JSON"),
    ("jsonl", b'{"text": "x", "text": "y", "label": "a"}', "the key 'text' occurs twice"),
    ("jsonl", b'{"text": "x", "label": "a", "in": {"k": 1, "k": 2}}', "the key 'k' occurs twice"),
    ("jsonl", b'["text", "label"]', "not a JSON object"),
    ("jsonl", b'{"text": "x"}', "no column 'label'"),
    ("jsonl", b'{"text": null, "label": "a"}', "'text' is null"),
    ("jsonl", b'{"text": ["x"], "label": "a"}', "'text' is a list"),
    ("jsonl", b'{"text": "\\ud800", "label": "a"}', "half a surrogate pair"),
    ("jsonl", b"[" * 100_000, "nested too deeply"),
    ("jsonl", b'{"text": "bad \xff", "label": "a"}', "not UTF-8"),
    ("json", b'{"text": Infinity, "label": "a"}', "Infinity is not JSON"),
    ("json", b'{"label": "a", "label": "b", "text": "x"}', "the key 'label' occurs twice"),
    ("json", b"7", "not a JSON object"),
    ("json", b'{"text": "x"}', "no column 'label'"),
]


@pytest.mark.parametrize(("format", "damage", "reason"), BAD_ROWS)
def test_a_bad_row_is_named_or_dropped_alone(tmp_path, format, damage, reason):
    path = tmp_path / f"rows.{format}"
    path.write_bytes(GOOD[format].replace(b"%s", damage))
    line = 3 if format in ("tsv", "csv") else 2
    need = ("text", "label")
    with pytest.raises(DataError) as caught:
        read_rows(str(path), need=need)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert reason in str(caught.value)
    rows = read_rows(str(path), need=need, max_bad_rows=1)
    assert [row["text"] for row in rows] == ["one", "last"]
    assert len(rows.dropped) == 1
    assert rows.dropped[0].startswith(f"{path}:{line}: ")


@pytest.mark.parametrize("allowed", [0, 1, 2, 3])
def test_one_bad_row_too_many_stops(tmp_path, allowed):
    path = tmp_path / "rows.tsv"
    path.write_bytes(b"text\tlabel\n" + b"good\ta\n" + b"bad\n" * (allowed + 1))
    with pytest.raises(DataError, match=f":{allowed + 3}: 1 columns"):
        read_rows(str(path), max_bad_rows=allowed)
    assert len(read_rows(str(path), max_bad_rows=allowed + 1)) == 1


FATAL = [
    ("rows.tsv", b"", "holds no rows"),
    ("rows.tsv", b"text\tlabel\n", "holds no rows"),
    ("rows.json", b"[]", "holds no rows"),
    ("rows.txt", b"\n\n", "holds no rows"),
    ("rows.tsv", b"text\ttext\na\tb\n", "two columns are called 'text'"),
    ("rows.tsv", b"words\tlabel\na\tb\n", "no column 'text' among words, label"),
    ("rows.csv", b'"text,label\na,b\n', "the header: a quote is opened here"),
    ("rows.json", b'{"text": "x"}', "expected a list of objects"),
    ("rows.json", b'[{"text": "x"}\n{"text": "y"}]', "expected a comma"),
    ("rows.json", b'[{"text": "x"},]', "a comma before the closing bracket"),
    ("rows.json", b'[{"text": "x"}] more', "after the list"),
    ("rows.json", b'[{"text": "x"},\n{"te', "rows.json:2: broken JSON"),
    ("rows.json", b'[{"text": "x\xff"}]', "not UTF-8"),
    ("rows.data", b"text\n", "the suffix is none of"),
    ("rows.zip", b"no archive", "cannot be read any further"),
    ("rows.tsv.gz", b"no archive", "cannot be read any further"),
    ("rows.tsv.xz", b"no archive", "cannot be read any further"),
    ("rows.tsv.bz2", b"no archive", "cannot be read any further"),
    *(
        (
            f"rows.tsv{suffix}",
            pack(b"text\n" + os.urandom(5000).hex().encode())[:-40],
            "any further",
        )
        for suffix, pack in COMPRESS.items()
        if suffix
    ),
]


@pytest.mark.parametrize(("name", "content", "reason"), FATAL)
def test_what_cannot_be_read_on_stops_whatever_is_allowed(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_rows(str(tmp_path / name), need=("text",), max_bad_rows=1000)
    assert str(caught.value).startswith(f"{tmp_path / name}:")
    assert reason in str(caught.value)


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_rows(str(tmp_path / "none.tsv"))
    with pytest.raises(DataError, match="is a directory"):
        read_rows(str(tmp_path))
    with pytest.raises(ConfigError, match="stdlib:nothing is none of"):
        read_rows("stdlib:nothing")
    with pytest.raises(ConfigError, match="is empty"):
        read_rows("")


def test_an_encrypted_or_memberless_zip_is_named(tmp_path):
    path = tmp_path / "rows.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README", "nothing")
    with pytest.raises(DataError, match="has no member"):
        read_rows(str(path))
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("rows.txt", "secret")
    raw = bytearray(memory.getvalue())
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(DataError, match="encrypted"):
        read_rows(str(path))


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def mutated(valid: bytes) -> st.SearchStrategy[bytes]:
    """Bytes, or a valid file with a piece replaced, removed or repeated."""
    spot = st.integers(0, len(valid))
    odd = st.sampled_from(
        [b'"', b"\n", b"\t", b",", b"\\", b"\xff", b"\0", b"{", b"[", b"\r", b"]"]
    )
    piece = st.lists(odd | st.binary(max_size=6), max_size=4).map(b"".join)
    cut = st.tuples(spot, spot, piece).map(
        lambda t: valid[: min(t[:2])] + t[2] + valid[max(t[:2]) :]
    )
    return cut | st.binary(max_size=200)


@pytest.mark.parametrize(
    "suffix", ["jsonl", "json", "csv", "tsv", "txt", "csv.gz", "tsv.xz", "zip"]
)
def test_readers_give_rows_or_a_data_error(box, suffix):
    valid = written({"txt": "tsv", "zip": "csv"}.get(suffix, suffix.split(".")[0]), ROWS * 3)
    if suffix == "zip":
        memory = io.BytesIO()
        with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("rows.csv", valid)
        valid = memory.getvalue()
    elif "." in suffix:
        valid = COMPRESS["." + suffix.split(".")[1]](valid)
    path = box / f"rows.{suffix}"

    @settings(max_examples=250, deadline=None)
    @given(mutated(valid), st.sampled_from([0, 2, 1000]))
    def check(content, allowed):
        path.write_bytes(content)
        try:
            rows = read_rows(str(path), max_bad_rows=allowed)
        except DataError as error:
            assert str(error).startswith(str(path))
            return
        assert len(rows) > 0
        assert len(rows.dropped) <= allowed
        assert all(type(value) is str for row in rows for value in row.values())

    check()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.text(st.characters(exclude_characters="\0\r", codec="utf-8"))] * 2),
        min_size=1,
        max_size=8,
    )
)
def test_csv_round_trips_any_text(box, pairs):
    rows = [{"text": a, "label": b} for a, b in pairs]
    path = box / "any.csv"
    path.write_bytes(written("csv", rows))
    assert list(read_rows(str(path))) == rows


@pytest.mark.skipif(not DATA.is_dir(), reason="GRAFT_DATA: the real data sets are not here")
def test_real_files_have_the_rows_they_are_known_to_have():
    sst = read_rows(f"{DATA}/glue/SST-2/train.part*.tsv.xz", need=("sentence", "label"))
    assert len(sst) == 67_349
    assert sum(row["label"] == "1" for row in sst) == 33_828 + 3_741
    banking = read_rows(f"{DATA}/intent/banking77/train.csv.xz")
    assert len(banking) == 10_003
    assert len({row["category"] for row in banking}) == 77
    sts = read_rows(f"{DATA}/glue/STS-B/dev.tsv.xz", need=("sentence1", "sentence2", "score"))
    assert len(sts) == 1_500
    mrpc = read_rows(f"tsv:{DATA}/glue/MRPC/msr_paraphrase_train.txt.xz")
    assert len(mrpc) == 4_076
    assert set(mrpc[0]) == {"Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"}


PARTS = {"train": [["a b", "x"], ["c", "y"]], "odd": [["only one"]], "more": [{"text": "d"}]}


def test_a_path_goes_on_into_an_object_of_lists(tmp_path):
    path = tmp_path / "all.json.gz"
    path.write_bytes(gzip.compress(json.dumps(PARTS, indent=1).encode()))
    rows = read_rows(f"{path}/train", columns=("text", "label"))
    assert list(rows) == [{"text": "a b", "label": "x"}, {"text": "c", "label": "y"}]
    assert [rows.where(i) for i in range(2)] == [f"{path}/train:{line}" for line in (3, 7)]
    both = read_rows(f"{path}/train,{path}/more", columns=("text", "label"), need=("text",))
    assert [row["text"] for row in both] == ["a b", "c", "d"]
    assert signature(f"{path}/train") == signature(str(path))
    for part, reason in {
        "odd": "all.json.gz/odd:13: 1 columns, expected 2",
        "nothing": "no key 'nothing' among train, odd, more",
    }.items():
        with pytest.raises(DataError, match=reason):
            read_rows(f"{path}/{part}", columns=("text", "label"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('["a"]', "expected an object with 'train'"),
        ('{"train" [["a", "b"]]}', "expected a colon"),
        ('{"dev": [1,, 2]}', "broken JSON"),
        ('{"train": {"a": 1}}', "expected a list of objects"),
        ('{"train": [["a", "b"]', "expected a comma or the closing bracket"),
        ("", "holds no rows"),
    ],
)
def test_a_broken_object_of_lists_is_named(tmp_path, text, reason):
    (tmp_path / "all.json").write_text(text)
    with pytest.raises(DataError, match=f"all.json.*: .*{reason}"):
        read_rows(f"{tmp_path}/all.json/train", columns=("text", "label"))


def test_a_path_goes_on_into_an_archive(tmp_path):
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, rows in (("train.tsv", ROWS[:3]), ("deep/dev.tsv", ROWS[3:])):
            archive.writestr(name, written("tsv", rows))
    assert list(read_rows(f"{path}/train.tsv")) == ROWS[:3]
    rows = read_rows(f"{path}/deep/dev.tsv")
    assert (list(rows), rows.where(0)) == (ROWS[3:], f"{path}/deep/dev.tsv:2")
    assert len(read_rows(str(path))) == 4
    with pytest.raises(DataError, match=r"all.zip:1: the archive has no member 'test.tsv'"):
        read_rows(f"{path}/test.tsv")
    (tmp_path / "rows.tsv").write_bytes(written("tsv", ROWS))
    with pytest.raises(DataError, match=r"only of a .zip or of a .json can a part be named"):
        read_rows(f"{tmp_path}/rows.tsv/train")


def test_records_without_names_take_those_of_the_columns(tmp_path):
    (tmp_path / "rows.jsonl").write_text('["a", "x"]\n["b", "y"]\n')
    rows = read_rows(str(tmp_path / "rows.jsonl"), columns=("text", "label"))
    assert list(rows) == [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
