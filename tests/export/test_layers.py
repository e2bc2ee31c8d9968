"""States and attention weights of every layer are those of transformers."""

import numpy as np
import pytest

from plm_jax.export import hf
from plm_jax.export.tensors import read_safetensors
from tests.export.golden.record import CASES, FOLDER


def inputs_of(case):
  example = read_safetensors(FOLDER / case / "example")
  return {n.removeprefix("inputs."): a for n, a in example.items() if n.startswith("inputs.")}


def cases():
  """BERT and T5 always; one of each further family if slow tests run."""
  slow = "albert electra distilbert modernbert roberta gpt1 gpt2 llama t5_tokens bart mbart"
  return ["bert", "t5", *(pytest.param(case, marks=pytest.mark.slow) for case in slow.split())]


@pytest.mark.parametrize("case", cases())
def test_every_layer_gives_the_states_and_weights_of_transformers(case, peers):
  torch = pytest.importorskip("torch")
  inputs = inputs_of(case)
  kind = getattr(peers, CASES[case][0])
  theirs = kind.from_pretrained(FOLDER / case, attn_implementation="eager").eval()
  wanted = {"output_hidden_states": True, "output_attentions": True}
  with torch.no_grad():
    expected = theirs(**{n: torch.tensor(a) for n, a in inputs.items()}, **wanted)
  ours = hf.run(hf.load(FOLDER / case), **inputs, **wanted)
  names = {n for n, x in expected.items() if isinstance(x, tuple) and x}
  assert {n for n, x in ours.items() if isinstance(x, tuple)} == names
  assert any(n.endswith("hidden_states") for n in names)
  for name in names:
    assert len(ours[name]) == len(expected[name]) > 0
    is_decoder = name.startswith(("decoder", "cross"))
    mask = inputs["decoder_attention_mask" if is_decoder else "attention_mask"] == 1
    for our, their in zip(ours[name], expected[name]):
      their = their.numpy()
      assert our.shape == their.shape and our.dtype == np.float32
      if name.endswith("attentions"):
        our, their = (x.transpose(0, 2, 1, 3) for x in (our, their))
      np.testing.assert_allclose(our[mask], their[mask], atol=1e-5, err_msg=name)


def test_weights_sum_to_one_and_no_token_sees_padding():
  inputs = inputs_of("bert")
  outputs = hf.run(hf.load(FOLDER / "bert"), **inputs, output_attentions=True)
  assert "hidden_states" not in outputs and len(outputs["attentions"]) == 2
  for weights_BNTS in outputs["attentions"]:
    np.testing.assert_allclose(weights_BNTS.sum(axis=-1), 1, atol=1e-6)
    padding = np.broadcast_to(inputs["attention_mask"][:, None, None] == 0, weights_BNTS.shape)
    assert not weights_BNTS[padding].any()
