"""Shows how a model's tokenizer cuts texts, and makes text of ids.

  python -m plm_jax.tokenize --model=runs/bert_tiny --text="a fine film"
  python -m plm_jax.tokenize --model=runs/bert_tiny --ids=5,17,9

A line of JSON for each text: pieces, ids, and offsets, the characters of the text from which each
piece was made (the first, and the one after the last). Every line of --file is a text. The special
tokens around a text are left out; --special reads names such as [MASK] in the text as tokens, then
without offsets, and writes those among --ids.

From Python: `from plm_jax.tokenize import tokenize; tokenize("runs/bert_tiny", ["a fine film"])`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from plm_jax import cli
from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.export.to_run import run_directory
from plm_jax.runs import RunInfo

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("model", None, "The directory of a run, or of an imported model.")
  flags.DEFINE_multi_string("text", [], "A text to cut. Repeatable.")
  flags.DEFINE_string("file", None, "A file whose lines are texts.")
  flags.DEFINE_string("ids", None, "Ids with commas between them, of which text is made.")
  flags.DEFINE_bool("special", False, "Names of special tokens are tokens.")


def tokenize(
  model: str | Path | Tokenizer, texts: Sequence[str], special: bool = False
) -> list[dict[str, Any]]:
  """{"text", "pieces", "ids", "offsets"} of every text; with `special` there are no offsets."""
  tokenizer = tokenizer_of(model)
  if special:
    rows, offsets = [tokenizer.encode(text, special=True) for text in texts], []
  else:
    rows, offsets = tokenizer.encode_offsets(texts)
  lines = [
    {"text": text, "pieces": tokenizer.tokens(ids), "ids": [int(i) for i in ids]}
    for text, ids in zip(texts, rows, strict=True)
  ]
  for line, spans in zip(lines, offsets):
    line["offsets"] = spans.tolist()
  return lines


def detokenize(model: str | Path | Tokenizer, ids: Sequence[int], special: bool = False) -> str:
  """The text of ids. special: whether names of special tokens are written."""
  tokenizer = tokenizer_of(model)
  size = tokenizer.vocab.size
  for i in ids:
    if not 0 <= i < size:
      raise UserError(f"the id {i} was given; the tokenizer has the ids 0 to {size - 1}.")
  return tokenizer.decode(ids, special)


def tokenizer_of(model: str | Path | Tokenizer) -> Tokenizer:
  return model if isinstance(model, Tokenizer) else RunInfo.read(run_directory(model)).tokenizer


def main() -> None:
  if not FLAGS.model:
    raise UserError("--model=DIR, the directory of a run, is needed.")
  if sum(bool(FLAGS[name].value) for name in ("text", "file", "ids")) != 1:
    raise UserError("give one of --text, --file and --ids.")
  if FLAGS.ids:
    print(detokenize(FLAGS.model, numbers(FLAGS.ids), FLAGS.special))
    return
  texts = FLAGS.text or cli.read_lines(FLAGS.file, "--file")
  for line in tokenize(FLAGS.model, texts, FLAGS.special):
    print(json.dumps(line, ensure_ascii=False))


def numbers(text: str) -> list[int]:
  try:
    return [int(word) for word in text.replace(",", " ").split()]
  except ValueError:
    raise UserError(f"--ids={text} was given; expected numbers such as 5,17,9.") from None


if __name__ == "__main__":
  cli.run(main)
