"""Index tables as spreadsheets write them: what is read, and that a bad row costs itself only."""

import pytest

from musicldm.scores.index import plain_path, read_index

COLUMNS = ["path", "source", "licence", "piece_id", "title", "composer", "genre", "tempo_bpm", "tempo_source",
           "time_signature", "key"]  # fmt: skip
HEADER = ",".join(COLUMNS)
GOOD = "b.mid,s,CC0,p2,T,B,folk,120,stated,4/4,C"


def table(path, *lines: str, end: str = "\n", encoding: str = "utf-8"):
    path.write_bytes((end.join(lines) + end).encode(encoding))
    return path


def test_an_index_without_its_columns_is_refused(tmp_path):
    path = table(tmp_path / "index.csv", "path,title", "a.mid,A")
    with pytest.raises(ValueError, match=r"index\.csv lacks the columns source, licence"):
        read_index(path)
    with pytest.raises(ValueError, match="has the columns key twice"):
        read_index(table(path, f"{HEADER}, Key ", GOOD))
    with pytest.raises(ValueError, match="lacks the columns path"):
        read_index(table(path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_spellings_of_spreadsheets_are_read(tmp_path, encoding, separator, end):
    header = separator.join([" Path ", *(name.upper() for name in COLUMNS[1:]), "remark"])
    tempo = '"98,5"' if separator != "," else "98.5"
    row = ["b.mid", " s ", "CC0", "p2", "T\u2028t\x0bt\x85é", "B", "folk", tempo, "stated", "4/4", "C", ""]
    lines = ["sep=" + separator, "", header, separator.join(row), separator * 11, ""]
    index = read_index(table(tmp_path / "index.csv", *lines, end=end, encoding=encoding))
    assert index.faults == []
    assert index.rows["b.mid"] == {
        "path": "b.mid", "source": "s", "licence": "CC0", "piece_id": "p2", "title": "T\u2028t\x0bt\x85é",
        "composer": "B", "genre": "folk", "tempo_bpm": "98.5", "tempo_source": "stated", "time_signature": "4/4",
        "key": "C", "remark": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a.mid,s,CC0,p1", "4 cells for 11 columns; column title, composer, genre"),
        ("a.mid,s,CC0,p1,Do, re,B,folk,120,stated,4/4,C", "12 cells for 11 columns"),
        ('a.mid,s,CC0,p1,"Open,B,folk,120,stated,4/4,C', "column title: a quote is not closed"),
        ("a.mid,s,CC0,p1,T,B,folk,0,stated,4/4,C", "column tempo_bpm: '0' is not a tempo"),
        ("a.mid,s,CC0,p1,T,B,folk,fast,stated,4/4,C", "column tempo_bpm: 'fast'"),
        ("a.mid,s,CC0,p1,T,B,folk,nan,stated,4/4,C", "column tempo_bpm: 'nan'"),
        ("a.mid,s,CC0,p1,T,B,folk,inf,file,4/4,C", "column tempo_bpm: 'inf'"),
        ("a.mid,s,CC0,p1,T,B,folk,-90,stated,4/4,C", "column tempo_bpm: '-90'"),
        ("a.mid,s,CC0,p1,T,B,folk,120,stated,waltz,C", "column time_signature: 'waltz'"),
        ("a.mid,s,CC0,p1,T,B,folk,120,stated,4/0,C", "column time_signature: '4/0'"),
        ("a.mid,s,CC0,p1,T,B,folk,120,stated,4/4,H dur", "column key: 'H dur' is not a key"),
        (",s,CC0,p1,T,B,folk,120,stated,4/4,C", "column path is empty"),
    ],
)
def test_a_bad_row_is_named_with_line_and_column(tmp_path, row, words):
    index = read_index(table(tmp_path / "index.csv", HEADER, row, GOOD))
    assert list(index.rows) == ["b.mid"]
    ((path, fault),) = index.faults
    assert path == row.split(",")[0]
    assert f"index.csv, line 2: {words}" in fault


def test_an_open_quote_costs_one_line_and_a_closed_one_may_go_over_several(tmp_path):
    opened = 'a.mid,s,CC0,p1,"Open,B,folk,120,stated,4/4,C'
    two_lines = 'c.mid,s,CC0,p3,"One\nTwo, ""three""",B,folk,120,stated,4/4,C'
    words_after = 'd.mid,s,CC0,p4,"Heroes" (live),B,folk,120,stated,4/4,C'
    inches = 'e.mid,s,CC0,p5,7" Single,B,folk,120,stated,4/4,C'
    lines = [HEADER, opened, *[GOOD.replace("b.mid", f"b{i}.mid") for i in range(30)], two_lines, words_after, inches]
    index = read_index(table(tmp_path / "index.csv", *lines))
    assert [path for path, _ in index.faults] == ["a.mid"]
    assert len(index.rows) == 33
    titles = [index.rows[f"{name}.mid"]["title"] for name in "cde"]
    assert titles == ['One\nTwo, "three"', "Heroes (live)", '7" Single']


def test_a_table_in_another_encoding_is_refused_by_name_and_line(tmp_path):
    path = table(tmp_path / "index.csv", HEADER, GOOD, GOOD.replace("T", "é"), encoding="latin-1")
    with pytest.raises(ValueError, match=r"index\.csv is not in UTF-8 \(line 3\)"):
        read_index(path)
    path.write_bytes(b"\0\1\2")
    with pytest.raises(ValueError, match=r"index\.csv is no table of text"):
        read_index(path)


def test_a_tempo_that_is_not_trusted_may_say_anything(tmp_path):
    row = GOOD.replace("120,stated", "quick,estimated")
    assert read_index(table(tmp_path / "index.csv", HEADER, row)).faults == []


def test_paths_have_one_plain_spelling():
    spellings = ("a/é.mid", "./a/é.mid", "a\\é.mid", "/a/é.mid", "a/x/../é.mid", "a//e\u0301.mid")
    assert {plain_path(path) for path in spellings} == {"a/é.mid"}
