"""Files as they may lie on a disk: nothing is waited for, and JSON has bounds."""

import json
import os

import pytest

from plm_jax.errors import UserError
from plm_jax.files import JSON_DEPTH, open_file, parse_json, read_bytes, read_json, write_file


def test_what_is_no_file_is_named_and_never_waited_for(tmp_path):
  os.mkfifo(tmp_path / "fifo")
  for path, kind in ((tmp_path / "fifo", "FIFO"), ("/dev/zero", "device"), (tmp_path, "folder")):
    for read in (open_file, read_json):
      with pytest.raises(UserError, match=f"{path} is a {kind}; expected a file"):
        read(path)


def test_a_file_beyond_its_bound_is_not_read(tmp_path):
  with open(tmp_path / "large", "wb") as file:
    file.truncate(1 << 40)
  with pytest.raises(UserError, match="expected at most 100"):
    read_bytes(tmp_path / "large", 100)


@pytest.mark.parametrize(
  "text", ["[" * 100_000, "[" * 200 + "]" * 200, '{"a":' * 101 + "1" + "}" * 101]
)
def test_json_that_is_nested_too_deep_is_a_sentence(text):
  with pytest.raises(UserError, match=f"x.json cannot be read: .*more than {JSON_DEPTH} deep"):
    parse_json(text, "x.json")


def test_json_of_the_depth_that_is_allowed_is_read(tmp_path):
  value = 1
  for _ in range(JSON_DEPTH):
    value = [value]
  (tmp_path / "x.json").write_text(json.dumps(value))
  assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" + b"9" * 10_000 + b"]"])
def test_what_is_no_json_is_a_sentence(tmp_path, content):
  (tmp_path / "x.json").write_bytes(content)
  with pytest.raises(UserError, match=r"x\.json cannot be read: "):
    read_json(tmp_path / "x.json")


@pytest.mark.parametrize("place", ["file.txt", "file.txt.partial"])
def test_a_fifo_in_the_place_of_a_file_is_replaced(tmp_path, place):
  os.mkfifo(tmp_path / place)
  write_file(tmp_path / "file.txt", "text")
  assert (tmp_path / "file.txt").read_text() == "text"
  assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
