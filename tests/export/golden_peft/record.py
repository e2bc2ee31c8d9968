"""Tiny random adapters of peft on the models of tests/export/golden, with their outputs, so that
parity stays tested where peft is not installed. Generation anew, which needs torch and peft, by

    python -m tests.export.golden_peft.record [FOLDER ...]
"""

import shutil
import sys
from pathlib import Path

import numpy as np

from plm_jax.export.tensors import read_json, read_safetensors, write_safetensors
from tests.export.golden.record import FOLDER as BASES

FOLDER = Path(__file__).parent
LORA, IA3 = "LoraConfig", "IA3Config"
PROMPT, PREFIX = "PromptTuningConfig", "PrefixTuningConfig"
# peft takes the sizes of encoder and width, and the prefix is the decoder's.
OF_DECODER = {
  "t5": {"token_dim": 12, "num_layers": 1, "num_attention_heads": 3},
  "bart": {"num_layers": 1, "num_attention_heads": 2},
}
# Folder -> base, class of peft's configuration, and its options.
CASES = {
  "bert_lora": (
    "bert_bin",
    LORA,
    {
      "r": 2,
      "target_modules": ["query", "attention.output.dense"],
      "task_type": "TOKEN_CLS",
      "bias": "lora_only",
      "rank_pattern": {"layer.1.attention.self.query": 3},
      "alpha_pattern": {"query": 5},
      "layers_to_transform": [1],
    },
  ),
  "bert_dora": ("bert", LORA, {"r": 2, "use_dora": True, "modules_to_save": ["pooler"]}),
  "roberta_ia3": ("roberta", IA3, {}),
  "gpt2_lora": (
    "gpt2",
    LORA,
    {"r": 2, "use_rslora": True, "target_modules": ["c_attn", "c_proj", "c_fc"]},
  ),
  "gpt2_dora": ("gpt2", LORA, {"r": 2, "use_dora": True}),
  "gpt2_ia3": ("gpt2", IA3, {}),
  "llama_lora": ("llama", LORA, {"r": 3, "lora_alpha": 7, "task_type": "CAUSAL_LM"}),
  "llama_ia3": ("llama", IA3, {"task_type": "CAUSAL_LM"}),
  "t5_lora": ("t5", LORA, {"r": 2, "target_modules": ["q", "k", "v", "o", "wi", "wo"]}),
  "t5_ia3": ("t5_v1_1", IA3, {"feedforward_modules": ["wo"], "target_modules": ["k", "v", "wo"]}),
  "bart_lora": ("bart", LORA, {"r": 2, "task_type": "SEQ_2_SEQ_LM"}),
  "bart_ia3": ("bart", IA3, {}),
  **{
    f"{base.removesuffix('_bin')}_{name}": (
      base,
      kind,
      {"num_virtual_tokens": 3, "task_type": task}
      | (OF_DECODER.get(base, {}) if kind == PREFIX else {}),
    )
    for name, kind in (("prompt", PROMPT), ("prefix", PREFIX))
    for base, task in (
      ("bert_bin", "TOKEN_CLS"),
      ("xlm_roberta", "SEQ_CLS"),
      ("gpt2", "CAUSAL_LM"),
      ("llama", "CAUSAL_LM"),
      ("t5", "SEQ_2_SEQ_LM"),
      ("bart", "SEQ_2_SEQ_LM"),
    )
    if kind == PROMPT or task.endswith("_LM")  # encoders of transformers 5 take no prefix
  },
}


def inputs_of(case: str) -> dict[str, np.ndarray]:
  """The recorded inputs of the base; with a prompt, positions are defined in whole rows only, where
  peft and transformers count them."""
  base, kind, _ = CASES[case]
  example = read_safetensors(BASES / base / "example")
  inputs = {n.removeprefix("inputs."): a for n, a in example.items() if n.startswith("inputs.")}
  if kind in (PROMPT, PREFIX):
    inputs |= {n: np.ones_like(a) for n, a in inputs.items() if n.endswith("attention_mask")}
    inputs = {name: array[:, :6] for name, array in inputs.items()}  # room for the prompt
  return inputs


def record(transformers, case: str, folder: Path) -> None:
  """Writes a random adapter and its outputs, both by peft."""
  import peft
  import torch

  from tests.export.peers import outputs

  base, kind, options = CASES[case]
  torch.manual_seed(0)
  architecture = read_json(BASES / base / "config.json")["architectures"][0]
  model = getattr(transformers, architecture).from_pretrained(BASES / base)
  model = peft.get_peft_model(model, getattr(peft, kind)(**options)).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.requires_grad:
        parameter.add_(0.3 * torch.randn_like(parameter))
  model.save_pretrained(folder)
  (folder / "README.md").unlink()
  inputs = inputs_of(case)
  length = inputs["input_ids"].shape[1]
  expected = {
    name: array[:, -length:] if array.ndim == 3 else array  # without the states of a prompt
    for name, array in outputs(model, inputs).items()
  }
  write_safetensors(folder / "example", {f"outputs.{n}": a for n, a in expected.items()})


def main(*chosen: str) -> None:
  """chosen: folders; without any, all."""
  import transformers

  transformers.logging.set_verbosity_error()
  for case in CASES:
    if not chosen or case in chosen:
      shutil.rmtree(FOLDER / case, ignore_errors=True)
      record(transformers, case, FOLDER / case)
      size = sum(file.stat().st_size for file in (FOLDER / case).iterdir())
      print(f"{case}: {size / 1024:.0f} KB")


if __name__ == "__main__":
  main(*sys.argv[1:])
