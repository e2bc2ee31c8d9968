"""GLUE from TensorFlow Datasets, written once as the tab-separated files that glue_files.py reads.

The data sets glue/cola, ..., glue/ax are read as `plm_jax.data.tfds_text` reads every data set:
prepared as ArrayRecord in TFDS_DATA_DIR (`tfds build glue/cola --file_format=array_record`).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from pathlib import Path

from plm_jax.data.tfds_text import TfdsText, open_tfds, string_of
from plm_jax.errors import UserError
from plm_jax.tasks.glue_files import DIAGNOSTIC, PARTS, Part

_PAIRED = ("_matched", "_mismatched")  # MNLI's two dev and test splits


def glue_folder(cache: Path) -> Path:
  """A folder with all parts of GLUE that TFDS has prepared. Errors: `UserError` if it has none."""
  sets: dict[str, TfdsText] = {}
  missing: list[UserError] = []
  for name in (*PARTS, "ax"):
    try:
      sets[name] = open_tfds(f"tfds:glue/{name}", cache / "tfds")
    except UserError as error:
      missing.append(error)
  if not sets:
    raise missing[0]
  prints = [f"{name}:{data.fingerprint()}" for name, data in sets.items()]
  place = cache / "glue" / hashlib.sha256("\n".join(prints).encode()).hexdigest()[:16]
  for name, data in sets.items():
    part = PARTS["mnli"]._replace(folder=DIAGNOSTIC[0]) if name == "ax" else PARTS[name]
    if not (place / part.folder).is_dir():
      _write(name, data, part, place)
  return place


def _write(name: str, data: TfdsText, part: Part, place: Path) -> None:
  """The files of a part; the folder appears when all of them are written."""
  place.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=place.parent, prefix=".preparing-") as scratch:
    folder = Path(scratch) / part.folder
    folder.mkdir()
    for split, file in _splits(name):
      lines = _lines(data._replace(split=split), part, labelled=not file.startswith("test"))
      (folder / file).write_text(lines, encoding="utf-8", newline="")
    with contextlib.suppress(OSError):  # another process was faster, with the same text
      folder.rename(place / part.folder)


def _splits(name: str) -> list[tuple[str, str]]:
  """(split of TFDS, file of GLUE)."""
  if name == "ax":
    return [("test", "test.tsv")]
  sides = _PAIRED if name == "mnli" else ("",)
  pairs = [(f"{split}{side}", f"{file}{side}.tsv") for side in sides
           for split, file in (("validation", "dev"), ("test", "test"))]  # fmt: skip
  return [("train", "train.tsv"), *pairs]


def _lines(data: TfdsText, part: Part, labelled: bool) -> str:
  """The text of a file, in the order of GLUE's own; classes are numbered as in `Part.classes`."""
  rows = [("index", *part.texts, *([part.label] if labelled else []))]
  for record in sorted(data.records(), key=lambda record: int(record["idx"])):
    texts = (re.sub(r"[\t\r\n]", " ", string_of(record[name])) for name in part.names)
    label = record["label"]
    target = part.classes[int(label)] if labelled and part.classes else f"{float(label):.3f}"
    rows.append((str(int(record["idx"])), *texts, *([target] if labelled else [])))
  return "".join("\t".join(row) + "\n" for row in rows)
