"""GPT-1's published vocabulary has no token that begins or ends a text: what is done without."""

import json
import math

import jax
import numpy as np
import pytest

from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.decode.rules import Rules
from plm_jax.decode.writer import continuation, encode_prompts, write
from plm_jax.errors import UserError
from plm_jax.evaluation.minimal_pairs import framed, log_likelihood
from plm_jax.evaluation.perplexity import perplexity, windows
from plm_jax.experiment_flags import chosen_experiment
from plm_jax.export import hf
from plm_jax.export.published_tokenizer import read_tokenizer
from plm_jax.export.to_run import write_run
from plm_jax.models.gpt import Gpt1
from plm_jax.runs import Run, RunInfo
from tests.export.peers import initial

TEXT = "w1 w2 w3 w4 w1"
POSITIONS = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run that was imported: a random GPT-1 whose tokens are the words w0 to w9 and their parts."""
  folder = tmp_path_factory.mktemp("gpt1")
  digits = [str(d) for d in range(10)]
  names = ["<unk>", "w", *digits, *(f"{d}</w>" for d in digits), *(f"w{d}</w>" for d in digits)]
  (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
  (folder / "merges.txt").write_text("".join(f"w {d}</w>\n" for d in digits))
  config = Gpt1(layers=1, width=16, heads=2, vocab_size=len(names), positions=POSITIONS)
  model = hf.Pretrained(config, initial(config, {"lm": 0}))
  write_run(model, read_tokenizer(folder), folder / "run", folder)
  return folder / "run"


@pytest.fixture(scope="module")
def trained(run):
  return Run.load(run)


def log_p_of(trained, ids):
  """log p of ids[1:], each given those before it."""
  ids = np.array([ids], np.int32)

  @jax.jit
  def log_p(params, ids):
    return jax.nn.log_softmax(params.token_logits(params({"input_ids": ids}, trained.compute)))

  table = np.asarray(log_p(trained.params, ids))
  return table[0, np.arange(ids.shape[1] - 1), ids[0, 1:]]


@pytest.mark.parametrize("rules", [Rules(max_length=5), Rules(max_length=5, beams=3)])
def test_a_prompt_is_continued_to_the_length(trained, rules):
  (prompt,) = encode_prompts(trained.params, trained.config, trained.tokenizer, ["w1 w2"])
  assert trained.tokenizer.tokens(prompt.ids) == ["w1</w>", "w2</w>"]
  model = trained.params, trained.config, trained.tokenizer, trained.compute
  ((text,),) = write(*model, [prompt], rules)
  assert len(text.ids) == 5
  if rules.beams == 1:
    assert text.score == pytest.approx(log_p_of(trained, [*prompt.ids, *text.ids])[1:].sum(), 1e-4)
  assert continuation(trained.tokenizer, prompt, text.ids).startswith(" ")


def test_a_text_of_its_own_is_refused_in_a_sentence(trained):
  with pytest.raises(UserError, match=r"prompt 1 has no tokens, .* give a --prompt with words"):
    encode_prompts(trained.params, trained.config, trained.tokenizer, [""])


def test_all_tokens_but_the_first_are_scored(trained):
  found = perplexity(trained, TEXT)
  log_p = log_p_of(trained, trained.tokenizer.encode(TEXT))
  assert found["tokens"] == len(log_p) == 4
  assert found["perplexity"] == pytest.approx(math.exp(-log_p.mean()), rel=1e-4)
  # "w1" is neither predicted nor counted.
  bits = -log_p.sum() / math.log(2) / (len(TEXT) - 2)
  assert found["bits per byte"] == pytest.approx(bits, rel=1e-4)
  with pytest.raises(UserError, match="the text has one token"):
    perplexity(trained, "w1")


@pytest.mark.parametrize("count", [2, 11, 12, 13, 40])
def test_windows_predict_every_token_but_the_first_once(trained, count):
  tokens = np.random.default_rng(0).integers(1, 30, count).astype(np.int32)
  part, row, position = windows(trained, tokens, overlap=True)
  np.testing.assert_array_equal(part["input_ids"][row, position], tokens[1:])
  assert part["input_ids"].shape[1] <= POSITIONS and (position < part["length"][row]).all()
  assert (position[row > 0] >= POSITIONS // 2).all() and position.min() == 1


def test_a_sentence_scores_the_sum_over_all_its_tokens_but_the_first(trained):
  sentences = [TEXT, "w5 w6"]
  found = log_likelihood(trained, framed(trained, sentences))
  expected = [log_p_of(trained, trained.tokenizer.encode(s)).sum() for s in sentences]
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_pretraining_goes_on_with_documents_that_nothing_frames(run):
  source = RunInfo.read(run)
  assert source.experiment.data.segments == PackedDocuments(framed=False)
  chosen = ("experiments/gpt.py:base", "", "smoke")
  experiment, _ = chosen_experiment(*chosen, [], None, source)
  assert experiment.data.segments == PackedDocuments(framed=False)
  asked = ["data.segments.framed=true"]
  assert chosen_experiment(*chosen, asked, None, source)[0].data.segments.framed
