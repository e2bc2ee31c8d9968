"""The experiments of word vectors learn from a real text."""

import functools
from pathlib import Path

import jax
import pytest

import plm_jax
from experiments import fasttext, word2vec
from plm_jax import pretraining
from plm_jax.train import loop
from plm_jax.train.workdir import read_records

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.slow
@pytest.mark.parametrize("row", [word2vec.tiny, word2vec.cbow, fasttext.tiny, fasttext.cbow])
def test_the_held_out_loss_of_word_vectors_falls(tmp_path, row, monkeypatch):
  on_one = functools.partial(loop.compile_experiment, devices=jax.devices()[:1])
  monkeypatch.setattr(pretraining, "compile_experiment", on_one)
  experiment = f"{row.__module__.replace('.', '/')}.py:{row.__name__}"
  text = tmp_path / "docs.txt"
  text.write_text("\n\n".join(page.read_text() for page in sorted(DOCS.glob("*.md"))))
  settings = {"data.source": str(text), "data.held_out": 0.1, "model.width": 16}
  settings |= {"global_batch": 8, "optim.updates": 8, "schedule.evaluation_rows": 2, "steps": 40}
  plm_jax.pretrain(
    experiment, budget="smoke", settings=settings, workdir=tmp_path / "run", cache=tmp_path
  )
  losses = [
    record[f"{row().objectives[0].name}/loss"]
    for record in read_records(tmp_path / "run/metrics.jsonl")
    if record["split"] == "valid"
  ]
  assert losses[-1] < 0.98 * losses[0], losses
