"""The story runs, is measured and becomes a page."""

import json

import pytest

from experiments import history
from plm_jax.ablate.reporting import report
from plm_jax.ablate.sweeping import sweep
from tests import toy_run


def test_every_trained_arm_reads_as_many_tokens_as_the_ngram_model_counts():
  tokens = history.ngram().model.tokens
  vectors = ("n-gram", "word2vec", "glove", "fasttext")
  for arm in (arm for arm in history.ARMS if arm.name not in vectors):
    experiment = arm.experiment()
    assert experiment.steps * experiment.global_batch * experiment.data.length == tokens, arm.name
    assert experiment.data.tokenizer == history.TEXT.tokenizer


def test_in_the_same_time_an_arm_takes_the_steps_of_its_rate():
  for arm in history.story_in_time().arms[1:]:
    experiment = arm.experiment()
    tokens = experiment.steps * experiment.global_batch * experiment.data.length
    assert tokens / history.RATES[arm.name] == pytest.approx(history.SECONDS, rel=0.01)


@pytest.mark.slow
def test_a_sweep_of_two_generations_has_a_page_with_picture_cost_and_samples(tmp_path):
  out = tmp_path / "out"
  made = sweep(
    "experiments/history.py:story",
    out,
    budget="smoke",
    seeds=1,
    arms=("n-gram", "nnlm"),
    settings=(f"data.source={toy_run.text()}", "data.held_out=0.2", "global_batch=8"),
    cache=str(tmp_path / "cache"),
    inline=True,
    gaps=True,
    prompt="w1 w2",
  )
  assert made.failed == []
  lengths = {"tokens": 64, "microseconds": {"lstm": {"8": 2.0}, "gpt": {"8": 1.0}}}
  (out / "row_length.json").write_text(json.dumps(lengths))
  measured, files = report(out, tmp_path / "page")
  assert (tmp_path / "page/history.png").stat().st_size > 5_000
  assert all("gap_bits_per_byte" in measured.scores[arm][0] for arm in ("n-gram", "nnlm"))
  page = next(file for file in files if file.name == "report.md").read_text()
  assert "| n-gram | w1 w2" in page and "Length of rows" in page
  cost = next(line for line in page.split("\n") if line.startswith("| nnlm") and "5,120" in line)
  seconds = float(cost.split("|")[4])
  assert seconds > 0 and "2.6" in cost  # million operations per token
