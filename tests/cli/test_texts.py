"""Files of texts for the command line: every form is read as it stands, and what is wrong is said with its line."""

import io
import sys

import pytest

from lineas_cli.texts import Texts, read


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_a_line_is_a_text_whatever_ends_it(tmp_path):
    path = write(tmp_path, "a.txt", "one \n\n two\r\nthree\x0b\u2028more\rfour")
    assert read(path) == Texts(["one ", " two", "three\x0b\u2028more", "four"], empty=1)


@pytest.mark.parametrize("end", ["", "\n"])
def test_the_last_line_needs_no_end_and_makes_no_empty_text(tmp_path, end):
    assert read(write(tmp_path, "a", "one\ntwo" + end)) == Texts(["one", "two"], empty=0)


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert read(write(tmp_path, "a.txt", b"\xef\xbb\xbfcaf\xc3\xa9\n")).texts == ["café"]
    assert read(write(tmp_path, "a.csv", b"\xef\xbb\xbftext\ncaf\xc3\xa9\n")).texts == ["café"]


def test_a_column_is_read_with_its_quotes_commas_and_line_ends(tmp_path):
    path = write(tmp_path, "a.csv", 'id,text\n1,"a, ""b""\nc"\n2,\n\n3,d\n')
    assert read(path) == Texts(['a, "b"\nc', "d"], empty=1)
    assert read(path, column="id").texts == ["1", "2", "3"]
    assert read(write(tmp_path, "a.tsv", "id\tx\n1\ta, b\n"), column="x").texts == ["a, b"]


def test_a_text_may_be_longer_than_the_csv_module_likes(tmp_path):
    assert read(write(tmp_path, "a.csv", f"text\n{'x' * 200_000}\n")).texts == ["x" * 200_000]


def test_json_lines_hold_strings_objects_and_chats(tmp_path):
    chat = [{"role": "user", "content": "Hello"}]
    path = write(
        tmp_path, "a.jsonl", '"one\\u2028"\n{"text": "two\u2028"}\n\n{"text": [{"role": "user", "content": "Hello"}]}\n'
    )
    assert read(path).texts == ["one\u2028", "two\u2028", chat]
    assert read(write(tmp_path, "b.jsonl", '{"a": "x", "text": "y"}'), field="a").texts == ["x"]


def test_where_the_name_tells_nothing_the_option_does(tmp_path, monkeypatch):
    assert read(write(tmp_path, "a", "x,text\n1,2\n")).texts == ["x,text", "1,2"]
    assert read(write(tmp_path, "a", "x,text\n1,2\n"), column="x").texts == ["1"]
    assert read(write(tmp_path, "a", '{"x": "1"}\n'), field="x").texts == ["1"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n")))
    assert read("-").texts == ["a", "b"]


def test_a_pair_of_files_may_have_both_options(tmp_path):
    options = {"column": "x", "field": "y"}
    assert read(write(tmp_path, "a.csv", "x\n1\n"), **options).texts == ["1"]
    assert read(write(tmp_path, "a.jsonl", '{"y": "2"}\n'), **options).texts == ["2"]
    with pytest.raises(ValueError, match="a column and a field were given"):
        read(write(tmp_path, "a", "x\n1\n"), **options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "a.txt: expected texts, got an empty file"),
        ("a.txt", " \n\n", "a.txt: expected texts, got only empty ones"),
        ("a.csv", "", "a.csv: no column 'text'; it has none"),
        ("a.csv", "text\n", "a.csv: expected texts, got an empty file"),
        ("a.csv", "id;text\n1;2\n", "a.csv: no column 'text'; it has 'id;text'"),
        ("a.csv", "id,text\n1,2\n3\n", "a.csv, line 3: expected 2 fields, got 1"),
        ("a.csv", "id,text\n1,2,3\n", "a.csv, line 2: expected 2 fields, got 3"),
        ("a.csv", 'text\n"one\ntwo\n', "a.csv, line 3: not CSV: unexpected end of data"),
        ("a.jsonl", '"a"\n{"text": 1,}\n', "a.jsonl, line 2: not JSON: .* \\(column 1"),
        ("a.jsonl", '{"id": 1, "body": "x"}', "a.jsonl, line 1: no field 'text'; it has 'id', 'body'"),
        ("a.jsonl", '\n{"text": null}', "a.jsonl, line 2: expected a string, or a chat .*, got None"),
        ("a.jsonl", '["a", "b"]', "a.jsonl, line 1: expected a string, or a chat .*, got \\['a', 'b'\\]"),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1: expected a text, got JSON that is nested without end"),
        ("a.txt", b"one\ntwo\ncaf\xe9\n", "a.txt, line 3: expected UTF-8, got the byte 0xe9; .* iconv"),
        ("a.csv", "text\n1\n".encode("utf-16"), "a.csv, line 1: expected UTF-8, got the byte 0xff"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_the_file_and_the_line(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path, name, content))


def test_a_missing_file_and_a_folder_are_errors_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(str(tmp_path / "none.txt"))
    with pytest.raises(OSError, match="folder|directory|denied|Permission"):
        read(str(tmp_path))
