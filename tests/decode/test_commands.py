"""The commands that write, fill blanks and score: what they print, and their sentences."""

import contextlib
import dataclasses
import inspect
import json
import math
import re
import sys
import types

import jax
import numpy as np
import pytest
from absl import flags

from plm_jax import cli
from plm_jax.commands import fill_mask, generate, score
from plm_jax.commands import inspect as show
from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.decode.writer import Prompt
from plm_jax.evaluation import perplexity
from plm_jax.models.gpt import Gpt2
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.mlm import MLM
from plm_jax.runs import Run
from plm_jax.train.workdir import Workdir
from tests import toy_run
from tests.toy_run import TOY

GPT = dataclasses.replace(
  TOY,
  model=Gpt2(layers=1, width=16, heads=2, positions=32, dropout=0.0, attention_dropout=0.0),
  objectives=(CLM(),),
  data=dataclasses.replace(TOY.data, length=30, segments=PackedDocuments()),
  steps=20,
)
BERT = dataclasses.replace(TOY, objectives=(MLM(),))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """The directories of a GPT and of a BERT that were trained for seconds."""
  folder = tmp_path_factory.mktemp("runs")
  for name, experiment in (("gpt", GPT), ("bert", BERT)):
    prepared = toy_run.prepared()
    with Workdir(folder / name) as workdir:
      workdir.write_config(toy_run.program(experiment).experiment, {"reference": "toy.py:base"})
      prepared.tokenizer.save(workdir / "tokenizer")
    toy_run.run(folder / name, experiment)
  return folder


@pytest.fixture
def call(monkeypatch, capsys):
  """`call(module, *words) -> (exit code, stdout, stderr)` of `python -m MODULE WORDS`."""

  def run(module, *words):
    with own_flags(module):
      monkeypatch.setattr(sys, "argv", [module.__name__, *words])
      monkeypatch.setattr(module, "keep_compilations", lambda cache: None)
      with pytest.raises(SystemExit) as end:
        cli.run(module.main)
    out, err = capsys.readouterr()
    return end.value.code or 0, out, err

  return run


@contextlib.contextmanager
def own_flags(module):
  """The module's flags; other commands' of the same names stand aside meanwhile."""
  shared = [getattr(module, name, module) for name in ("launch", "server_flags")]
  sources = [inspect.getsource(m) for m in (module, *shared)]
  names = set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', "".join(sources)))
  aside = {
    n: (flags.FLAGS.find_module_defining_flag(n), flags.FLAGS[n]) for n in names if n in flags.FLAGS
  }
  for name in aside:
    delattr(flags.FLAGS, name)
  module.define_flags()
  try:
    yield
  finally:
    for name in names:
      delattr(flags.FLAGS, name)
    for name, (owner, flag) in aside.items():
      flags.FLAGS[name] = flag
      flags.FLAGS.register_flag_by_module(owner, flag)
      flags.FLAGS.register_key_flag_for_module(owner, flag)


def test_a_gpt_goes_on_from_its_prompts(call, runs, tmp_path):
  (tmp_path / "prompts.txt").write_text("w1\u2028w2\nw3\n", encoding="utf-8")
  (tmp_path / "shots.txt").write_text("w4 w5")
  words = (f"--model={runs / 'gpt'}", "--max_length=5", "--min_length=5")
  code, out, _ = call(generate, *words, "--prompt=w1 w2")
  assert code == 0 and out.startswith("w1 w2 w") and len(out.split()) == 7
  code, several, _ = call(
    generate, *words, f"--prompts={tmp_path / 'prompts.txt'}", "--temperature=1", "--samples=2"
  )
  assert [line for line in several.splitlines() if line.startswith("---")] == [
    "--- 1, text 1 of 2", "--- 1, text 2 of 2", "--- 2, text 1 of 2", "--- 2, text 2 of 2",
  ]  # fmt: skip
  shots = f"--shots={tmp_path / 'shots.txt'}"
  code, shown, _ = call(generate, *words, shots, "--prompt=w1 w2")
  assert code == 0 and shown.startswith("w1 w2 w") and len(shown.split()) == 7


def test_shots_stand_before_the_prompt(monkeypatch, tmp_path):
  (tmp_path / "shots.txt").write_text("a => b")
  monkeypatch.setattr(generate, "FLAGS", types.SimpleNamespace(shots=str(tmp_path / "shots.txt")))
  assert generate.with_shots("c =>") == "a => b\nc =>"


def test_a_terminal_is_shown_a_text_piece_by_piece_and_never_half_a_letter(capsys):
  class Letters:
    """A tokenizer whose second and third token are the bytes of one letter."""

    def decode(self, ids):
      return bytes({5: [65], 6: [195], 7: [169], 8: [66]}[i][0] for i in ids).decode(
        errors="replace"
      )

  terminal = generate.Terminal(Letters(), Prompt([5]), "A")
  for ids in ([8], [8, 6], [8, 6, 7]):
    terminal.show(ids)
  terminal.end([8, 6, 7, 8])
  assert capsys.readouterr().out == "AB\u00e9B\n"


def test_a_bert_fills_every_blank_of_a_text(call, runs):
  words = (f"--model={runs / 'bert'}", "--text=w1 [MASK] w2 [MASK]", "--text=[MASK] w3")
  code, out, _ = call(fill_mask, *words, "--best=3")
  assert code == 0
  lines = out.splitlines()
  assert lines[0] == "w1 [MASK] w2 [MASK]" and lines[3] == "[MASK] w3" and len(lines) == 5
  assert all(len(lines[i].split(",")) == 3 for i in (1, 2, 4))


@pytest.fixture(scope="module")
def gpt(runs):
  return Run.load(runs / "gpt")


def test_the_perplexity_of_a_short_text_is_that_of_the_forward_pass(gpt):
  text = "w1 w2 w3 w4 w1"
  ids = np.array([[gpt.tokenizer.vocab.cls, *gpt.tokenizer.encode(text)]], np.int32)
  logits = gpt.params.token_logits(gpt.params({"input_ids": ids}, gpt.compute))
  log_p = np.asarray(jax.nn.log_softmax(logits))[0, np.arange(5), ids[0, 1:]]
  found = perplexity.perplexity(gpt, text)
  assert found["tokens"] == 5
  assert found["perplexity"] == pytest.approx(math.exp(-log_p.mean()), rel=1e-4)
  assert found["bits per byte"] == pytest.approx(-log_p.sum() / math.log(2) / 14, rel=1e-4)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("count", [1, 30, 31, 32, 47, 200])
def test_windows_predict_every_token_once(gpt, count, overlap):
  tokens = np.random.default_rng(0).integers(5, 20, count).astype(np.int32)
  part, row, position = perplexity.windows(gpt, tokens, overlap)
  np.testing.assert_array_equal(part["input_ids"][row, position], tokens)
  assert part["input_ids"].shape[1] <= 32 and (position < part["length"][row]).all()
  if overlap:  # all but the first window's are predicted from half a window at least
    assert (position[row > 0] > 15).all()


def test_any_model_is_scored_and_blimp_is_read(call, runs, tmp_path):
  (tmp_path / "pairs.jsonl").write_text(
    "".join(
      json.dumps({"sentence_good": f"w{i} w2", "sentence_bad": f"w2 w{i}"}) + "\n" for i in (3, 4)
    )
  )
  words = ("--text=w1 w2 w3", f"--blimp={tmp_path}")
  for name, metric in (("gpt", "\nperplexity"), ("bert", "\npseudo-perplexity")):
    code, out, _ = call(score, f"--model={runs / name}", *words)
    assert code == 0 and metric in out and "blimp/pairs" in out


@pytest.mark.parametrize(
  ("module", "words", "said"),
  [
    (generate, ("--model=GPT", "--prompt="), "prompt 1 is empty"),
    (generate, ("--model=GPT", "--prompt= "), "prompt 1 is empty"),
    (generate, ("--model=GPT", "--prompt=" + "w1 " * 40), "has 41 tokens.*32 at most"),
    (generate, ("--model=GPT", "--prompt=w1", "--top_k=3"), "give a temperature"),
    (generate, ("--model=GPT", "--prompts=none.txt"), "none.txt cannot be read"),
    (generate, ("--model=GPT", "--prompt=w1", "--samples=2"), "give a temperature"),
    (generate, ("--model=BERT", "--prompt=w1"), "fill_mask"),
    (generate, ("--model=EMPTY", "--prompt=w1"), "is not the directory of a run"),
    (generate, ("--prompt=w1",), "--model=DIR"),
    (fill_mask, ("--model=BERT", "--text=w1"), r"no \[MASK\]"),
    (fill_mask, ("--model=BERT", "--text=" + "[MASK] " * 40), "has 42 tokens"),
    (fill_mask, ("--model=GPT", "--text=[MASK]"), "plm_jax.generate"),
    (generate, ("--model=GPT", "--prompt=w1", "--beams=3000000000"), "beams=3000000000 is more"),
    (generate, ("--model=GPT", "--prompt=w1", "--samples=1000000000"), "from 1 to 100000"),
    (generate, ("--model=GPT", "--prompt=w1", "--temperature=1e300"), "temperature=1e.300 must be"),
    (score, ("--model=GPT",), "--text or --file"),
    (score, ("--model=GPT", "--blimp=EMPTY", "--blimp_pairs=0"), "blimp_pairs=0 must be at least"),
    (score, ("--model=GPT", "--text=w1", "--blimp_pairs=3"), "goes with --blimp"),
    (score, ("--model=GPT", "--file=none.txt"), "none.txt cannot be read"),
    (score, ("--model=GPT", "--file=/dev/zero"), "/dev/zero is a device; expected a file of text"),
  ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(call, runs, tmp_path, module, words, said):
  places = {"GPT": runs / "gpt", "BERT": runs / "bert", "EMPTY": tmp_path}
  words = [
    f"--model={places[w.removeprefix('--model=')]}" if w.startswith("--model=") else w
    for w in words
  ]
  code, out, err = call(module, *words)
  assert (code, out) == (2, "") and re.search(said, err) and err.count("\n") == 1


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (("--text=w1", "--out=none/x.png"), "there is no folder none; make it"),
    (("--tokens=w1", "--out=x.png"), "--out=x.png is the picture of --text"),
  ],
)
def test_a_picture_that_cannot_be_written_is_refused_before_the_model_is_loaded(call, words, said):
  code, out, err = call(show, "--model=none", *words)
  assert (code, out) == (2, "") and said in err and err.count("\n") == 1
