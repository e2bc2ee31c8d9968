"""Writes text with a model of this project: a left-to-right model or an encoder-decoder.

  python -m plm_jax.generate --model=runs/gpt_tiny --prompt="The function returns"
  python -m plm_jax.generate --model=DIR --prompt="Once" --temperature=0.8 --top_p=0.9 --samples=3
  python -m plm_jax.generate --model=DIR --prompts=FILE --beams=4 --length_penalty=0.6
  python -m plm_jax.generate --model=DIR --shots=examples.txt --prompt="sea otter =>"

Without a prompt a left-to-right model starts a new text. Without a temperature every token is the
most probable one; equal seeds and prompts give equal texts. A terminal shows a single text growing.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from plm_jax import cli
from plm_jax.data.corpora import default_cache
from plm_jax.data.tokenizers import Tokenizer
from plm_jax.decode.rules import Rules
from plm_jax.decode.writer import Prompt, ShownText, continuation, encode_prompts, opening, write
from plm_jax.errors import UserError
from plm_jax.export.to_run import run_directory
from plm_jax.runs import Run, check_predicts_tokens
from plm_jax.train.process import keep_compilations

FLAGS = flags.FLAGS
_SAMPLES = 100_000  # all texts are in memory until the last is written


def define_flags() -> None:
  flags.DEFINE_string("model", None, "The directory of a run, or of an imported model.")
  flags.DEFINE_multi_string("prompt", [], "A text to go on from. Repeatable.")
  flags.DEFINE_string("prompts", None, "A file with a prompt in every line.")
  flags.DEFINE_string("shots", None, "A file of examples, put before every prompt.")
  flags.DEFINE_float("temperature", 0.0, "0: take the most probable token; above: draw one.")
  flags.DEFINE_integer("top_k", 0, "Draw among this many most probable tokens; 0 is all.")
  flags.DEFINE_float("top_p", 1.0, "Draw among the fewest tokens with this total probability.")
  flags.DEFINE_integer("beams", 1, "Search for the most probable text with this many beams.")
  flags.DEFINE_float("length_penalty", 1.0, "Beams: compare log p / length^penalty.")
  flags.DEFINE_float("repetition_penalty", 1.0, "Above 1: earlier tokens become less likely.")
  flags.DEFINE_integer("min_length", 0, "New tokens at least.")
  flags.DEFINE_integer("max_length", 64, "New tokens at most.")
  flags.DEFINE_integer("samples", 1, "Texts for every prompt: drawn ones, or the best beams.")
  flags.DEFINE_integer("seed", 0, "Seed of the drawn tokens.")


def main() -> None:
  if not FLAGS.model:
    raise UserError("--model=DIR, the directory of a run, is needed.")
  rules = rules_of_flags()
  if not 1 <= FLAGS.samples <= _SAMPLES or not 0 <= FLAGS.seed < 2**32:
    raise UserError(
      f"--samples={FLAGS.samples} must be from 1 to {_SAMPLES}, and --seed={FLAGS.seed} at least 0 "
      "and below 2**32."
    )
  shown = prompts_of_flags()
  keep_compilations(default_cache())
  run = Run.load(run_directory(FLAGS.model))
  prompts = prompts_of(run, [*map(with_shots, shown)])
  single = len(prompts) * FLAGS.samples == 1
  streams = single and rules.beams == 1 and sys.stdout.isatty()
  terminal = Terminal(run.tokenizer, prompts[0], shown[0]) if streams else None
  written = write(
    *(run.params, run.config, run.tokenizer, run.compute, prompts, rules),
    samples=FLAGS.samples,
    seed=FLAGS.seed,
    watch=terminal.show if terminal else None,
  )
  if terminal:
    terminal.end(written[0][0].ids)
    return
  for number, (text, prompt, outputs) in enumerate(zip(shown, prompts, written, strict=True), 1):
    for sample, output in enumerate(outputs, 1):
      if not single:
        print(f"--- {number}" + (f", text {sample} of {len(outputs)}" if len(outputs) > 1 else ""))
      print(opening(text, prompt) + continuation(run.tokenizer, prompt, output.ids))


def generate(
  run: Run, prompts: Sequence[str] = ("",), samples: int = 1, seed: int = 0, **rules: Any
) -> list[list[str]]:
  """For every prompt, `samples` texts, each with its prompt (without it from an encoder-decoder).
  rules: fields of `Rules`, such as max_length and temperature."""
  encoded = prompts_of(run, prompts)
  written = write(
    *(run.params, run.config, run.tokenizer, run.compute, encoded, Rules(**rules)),
    samples=samples,
    seed=seed,
  )
  return [
    [opening(text, prompt) + continuation(run.tokenizer, prompt, one.ids) for one in outputs]
    for text, prompt, outputs in zip(prompts, encoded, written, strict=True)
  ]


def prompts_of(run: Run, texts: Sequence[str]) -> list[Prompt]:
  """Errors: `UserError` if the run generates no text, or an encoder-decoder has nothing to read."""
  check_predicts_tokens(run)
  prompts = encode_prompts(run.params, run.config, run.tokenizer, list(texts))
  if prompts[0].source is not None and list(texts) == [""]:
    raise UserError("an encoder-decoder needs a text to read: give a prompt.")
  return prompts


def rules_of_flags() -> Rules:
  try:
    return Rules(**{field.name: FLAGS[field.name].value for field in dataclasses.fields(Rules)})
  except UserError as error:
    raise UserError(f"--{error}.") from None


def prompts_of_flags() -> list[str]:
  """The prompts; one empty one without flags. Errors: `UserError` for empty prompts, bad files."""
  prompts = list(FLAGS.prompt)
  if FLAGS.prompts:
    lines = cli.read_lines(FLAGS.prompts, "--prompts")
    prompts += lines
    if lines in ([], [""]):
      raise UserError(f"--prompts={FLAGS.prompts} is empty; expected a prompt in every line.")
  for number, prompt in enumerate(prompts, 1):
    if not prompt.strip():
      raise UserError(f"prompt {number} is empty; leave --prompt out to start a new text.")
  return prompts or [""]


def with_shots(prompt: str) -> str:
  """The prompt after the examples."""
  if not FLAGS.shots:
    return prompt
  shots = cli.read_text(FLAGS.shots, "--shots")
  return shots + ("" if shots.endswith("\n") else "\n") + prompt


class Terminal:
  """Shows a text while it grows."""

  def __init__(self, tokenizer: Tokenizer, prompt: Prompt, text: str):
    self._text = ShownText(tokenizer, prompt)
    print(opening(text, prompt), end="", flush=True)

  def show(self, ids: list[int]) -> None:
    print(self._text.further(ids), end="", flush=True)

  def end(self, ids: list[int]) -> None:
    print(self._text.further(ids, ended=True), flush=True)


if __name__ == "__main__":
  cli.run(main)
