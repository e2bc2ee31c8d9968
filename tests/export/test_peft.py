"""Adapters of peft: the same outputs, and written adapters that peft reads."""

import json
import re
import shutil

import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.export import hf, peft
from plm_jax.export.tensors import read_safetensors, write_safetensors
from tests.export.golden.record import FOLDER as BASES
from tests.export.golden_peft.record import CASES, FOLDER, inputs_of, record
from tests.export.peers import difference, outputs


def gap(case, folder, adapter=None):
  """The largest difference between our outputs with an adapter and the recorded ones."""
  base = CASES[case][0]
  inputs = inputs_of(case)
  found = hf.run(peft.load(adapter or folder, hf.load(BASES / base)), **inputs)
  recorded = read_safetensors(folder / "example")
  expected = {n.removeprefix("outputs."): a for n, a in recorded.items()}
  unchanged = read_safetensors(BASES / base / "example")
  name = "logits" if "logits" in expected else "prediction_logits"
  before = unchanged[f"outputs.{name}"][:, : expected[name].shape[1]]
  assert not np.allclose(expected[name], before, atol=1e-2)
  source = "encoder_last_hidden_state"
  worst = 0.0
  if source in expected:
    own = {source: found.pop(source)}, {source: expected.pop(source)}
    worst = difference(*own, inputs["attention_mask"])
  mask = inputs.get("decoder_attention_mask", inputs["attention_mask"])
  return max(worst, difference(found, expected, mask))


# Of peft, which uses old names of transformers.
LIVE = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


FAST = ("bert_lora", "gpt2_ia3", "t5_prefix", "bart_prompt")
SOME_SLOW = [c if c in FAST else pytest.param(c, marks=pytest.mark.slow) for c in CASES]


@pytest.mark.parametrize("case", SOME_SLOW)
def test_a_recorded_adapter_gives_the_recorded_outputs_and_so_does_its_copy(case, tmp_path):
  assert gap(case, FOLDER / case) < 1e-5
  adapter, base = peft.read(FOLDER / case, hf.load(BASES / CASES[case][0]))
  peft.save(adapter, peft.with_trained(base, adapter), tmp_path / "copy")
  assert gap(case, FOLDER / case, tmp_path / "copy") < 1e-5


@LIVE
@pytest.mark.parametrize("case", CASES)
def test_peft_reads_a_written_adapter(peers, case, tmp_path):
  theirs = pytest.importorskip("peft")
  base = hf.load(BASES / CASES[case][0])
  adapter, base = peft.read(FOLDER / case, base)
  peft.save(adapter, peft.with_trained(base, adapter), tmp_path / "copy")
  reference = getattr(peers, base.architecture).from_pretrained(BASES / CASES[case][0])
  model = theirs.PeftModel.from_pretrained(reference, tmp_path / "copy").eval()
  made = outputs(model, inputs_of(case))
  recorded = read_safetensors(FOLDER / case / "example")
  for name, array in made.items():
    wanted = recorded[f"outputs.{name}"]
    np.testing.assert_allclose(array[:, -wanted.shape[1] :], wanted, atol=1e-5)


@LIVE
@pytest.mark.parametrize("case", ["bert_lora", "gpt2_dora", "llama_ia3"])
def test_the_recorded_numbers_are_those_of_the_installed_peft(peers, case, tmp_path):
  pytest.importorskip("peft")
  record(peers, case, tmp_path)
  assert gap(case, tmp_path) < 1e-5


def changed(case, folder, options=None, tensors=None):
  """A copy of a recorded adapter with other options or tensors."""
  shutil.copytree(FOLDER / case, folder)
  document = json.loads((folder / "adapter_config.json").read_text())
  (folder / "adapter_config.json").write_text(json.dumps(document | (options or {})))
  if tensors:
    old = read_safetensors(folder / "adapter_model.safetensors")
    write_safetensors(folder / "adapter_model.safetensors", tensors(old))
  return folder


@pytest.mark.parametrize(
  ("case", "options", "sentence"),
  [
    ("bert_dora", {"lora_bias": True}, "sets lora_bias=True, which this project does not support"),
    ("bert_dora", {"sauce": 1}, "sets sauce=1, which this project does not know"),
    ("bert_dora", {"peft_type": "VERA"}, "sets peft_type='VERA', which this project does not read"),
    ("bert_dora", {"r": "x"}, "expected a whole number"),
    ("llama_ia3", {"layer_replication": [[0, 1]]}, "sets layer_replication"),
  ],
)
def test_an_option_that_changes_the_model_is_refused_by_name(case, options, sentence, tmp_path):
  folder = changed(case, tmp_path / "a", options)
  with pytest.raises(UserError, match=re.escape(sentence)):
    peft.load(folder, hf.load(BASES / CASES[case][0]))


def test_an_adapter_of_another_base_is_refused(tmp_path):
  with pytest.raises(UserError, match=r"changes .*query, which is no linear map of the base's Rob"):
    peft.load(FOLDER / "bert_dora", hf.load(BASES / "roberta"))
  wider = changed(
    "bert_dora",
    tmp_path / "wide",
    tensors=lambda old: {n: np.pad(x, [(0, 1)] * x.ndim) for n, x in old.items()},
  )
  with pytest.raises(UserError, match=r"has the shape .* belongs to another base"):
    peft.load(wider, hf.load(BASES / "bert"))
