"""Recorded models give the recorded outputs: parity with transformers where it is not installed."""

import json

import jax
import numpy as np
import pytest

from plm_jax.export import hf
from plm_jax.export.family import family_of_config
from plm_jax.export.options import Options
from plm_jax.export.tensors import read_safetensors
from plm_jax.models.albert import Albert
from plm_jax.models.bart import Bart, MBart
from plm_jax.models.bert import Bert
from plm_jax.models.distilbert import DistilBert
from plm_jax.models.electra import ElectraEncoder
from plm_jax.models.gpt import Gpt1, Gpt2
from plm_jax.models.llama import Llama
from plm_jax.models.mistral import Mistral
from plm_jax.models.modernbert import ModernBert
from plm_jax.models.qwen2 import Qwen2
from plm_jax.models.roberta import Roberta
from plm_jax.models.t5 import T5, T5v11
from tests.export.golden.record import CASES, DENSE, FOLDER
from tests.export.peers import difference


@pytest.mark.parametrize("case", [*CASES, DENSE])
def test_a_recorded_model_gives_the_recorded_outputs(case, tmp_path):
  model = hf.load(FOLDER / case)
  assert model.architecture == ("BertModel" if case == DENSE else CASES[case][0])
  example = read_safetensors(FOLDER / case / "example")
  inputs, expected = (
    {n.removeprefix(kind): a for n, a in example.items() if n.startswith(kind)}
    for kind in ("inputs.", "outputs.")
  )
  found = hf.run(model, **inputs)
  source = "encoder_last_hidden_state"
  if source in found:
    own = {source: found.pop(source)}, {source: expected.pop(source)}
    assert difference(*own, inputs["attention_mask"]) < 1e-5
  mask = inputs.get("decoder_attention_mask", inputs["attention_mask"])
  assert difference(found, expected, mask) < 1e-5
  hf.save(model, tmp_path / "back")
  again = hf.load(tmp_path / "back")
  jax.tree.map(np.testing.assert_array_equal, model.params, again.params)


PAPERS = (
  *(Bert, Roberta, DistilBert, Albert, ElectraEncoder, ModernBert),
  *(Gpt1, Gpt2, Llama, Qwen2, Mistral, T5, T5v11, Bart, MBart),
)


@pytest.mark.parametrize("paper", PAPERS)
def test_the_settings_of_every_paper_have_a_form_in_transformers_and_back(paper):
  config = paper(vocab_size=50)
  family = family_of_config(config)
  head = "lm" if hasattr(config, "norm_at") else "mlm"
  document = json.loads(json.dumps(family.document_of(config, {head: 0})))
  again, heads = family.model_of(Options(document, "config.json"), {head})
  assert heads == {head: 0}
  assert family.document_of(again, heads) == document


def test_every_recorded_model_is_compared():
  folders = {path.name for path in FOLDER.iterdir() if (path / "config.json").exists()}
  assert folders == {*CASES, DENSE}
