"""Tiny random models of transformers with their inputs and outputs, so that parity stays tested
where torch is not installed. Generation anew, which needs torch and transformers (and for
`bert_dense` sentence-transformers), by

    python -m tests.export.golden.record [FOLDER ...]
"""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
VOCAB = 23
BERT = {
  "vocab_size": VOCAB,
  "hidden_size": 6,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "intermediate_size": 9,
  "max_position_embeddings": 12,
}
DISTILBERT = {"vocab_size": VOCAB, "dim": 6, "n_layers": 2, "n_heads": 2, "hidden_dim": 9}
GPT = {"vocab_size": VOCAB, "n_embd": 6, "n_layer": 2, "n_head": 3, "n_positions": 12}
LLAMA = {**BERT, "hidden_size": 12, "num_key_value_heads": 1, "head_dim": 6}
T5 = {
  "vocab_size": VOCAB,
  "d_model": 6,
  "d_kv": 4,
  "d_ff": 8,
  "num_layers": 2,
  "num_decoder_layers": 1,
  "num_heads": 3,
}
BART = {
  "vocab_size": VOCAB,
  "d_model": 6,
  "encoder_layers": 2,
  "decoder_layers": 1,
  "encoder_attention_heads": 3,
  "decoder_attention_heads": 2,
  "encoder_ffn_dim": 8,
  "decoder_ffn_dim": 7,
  "max_position_embeddings": 12,
}
# Folder -> class and options.
CASES = {
  "bert": ("BertForPreTraining", BERT),
  "bert_bin": ("BertForTokenClassification", {**BERT, "num_labels": 4}),
  "roberta": ("RobertaForMaskedLM", {**BERT, "pad_token_id": 2}),
  "xlm_roberta": ("XLMRobertaForSequenceClassification", BERT),
  "albert": (
    "AlbertForPreTraining",
    {**BERT, "embedding_size": 4, "num_hidden_groups": 2, "inner_group_num": 2},
  ),
  "electra": ("ElectraForPreTraining", {**BERT, "embedding_size": 4}),
  "electra_generator": ("ElectraForMaskedLM", {**BERT, "embedding_size": 4}),
  "distilbert": (
    "DistilBertForQuestionAnswering",
    {**DISTILBERT, "max_position_embeddings": 12},
  ),
  "modernbert": (
    "ModernBertForMaskedLM",
    {**BERT, "hidden_size": 12, "num_hidden_layers": 4, "pad_token_id": 2, "local_attention": 4},
  ),
  "gpt1": ("OpenAIGPTLMHeadModel", GPT),
  "gpt2": ("GPT2LMHeadModel", {**GPT, "scale_attn_by_inverse_layer_idx": True}),
  "llama": (
    "LlamaForCausalLM",
    {**LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 50.0, "factor": 2.0}},
  ),
  "t5": ("T5ForConditionalGeneration", T5),
  "t5_v1_1": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}),
  "bart": ("BartForConditionalGeneration", BART),
  "mbart": ("MBartForConditionalGeneration", {**BART, "scale_embedding": True}),
  "t5_classes": ("T5ForSequenceClassification", {**T5, "decoder_start_token_id": 0}),
  "t5_tokens": ("T5ForTokenClassification", T5),
  "t5_answers": ("T5ForQuestionAnswering", {**T5, "decoder_start_token_id": 0}),
  "bart_classes": ("BartForSequenceClassification", BART),
  "mbart_answers": ("MBartForQuestionAnswering", BART),
  "gpt2_tokens": ("GPT2ForTokenClassification", GPT),
  "llama_answers": ("LlamaForQuestionAnswering", LLAMA),
}
DENSE = "bert_dense"  # of sentence-transformers: three classes from the mean of the states
# Whose decoder reads the source; classes are read where the rows end.
ON_SOURCES = ("t5_classes", "t5_tokens", "t5_answers", "bart_classes", "mbart_answers")


def inputs_of(case: str, config) -> dict[str, np.ndarray]:
  """Rows that are padded on every side."""
  from tests.export.peers import padded_rows

  rng = np.random.default_rng(len(case))
  inputs = {}
  both = getattr(config, "is_encoder_decoder", False) and case not in ON_SOURCES
  for name in ("input_ids", "decoder_input_ids")[: 2 if both else 1]:
    pad = 0 if config.pad_token_id is None else config.pad_token_id
    inputs[name], mask = padded_rows(rng, VOCAB, pad, length=9)
    inputs[name.replace("input_ids", "attention_mask")] = mask
  if case in ON_SOURCES:
    ids = inputs["input_ids"]
    ids[ids == config.eos_token_id] = VOCAB - 1
    ids[np.arange(len(ids)), [8, 5, 8, 6]] = config.eos_token_id
  if case in ("bert", "albert"):
    inputs["token_type_ids"] = rng.integers(0, 2, mask.shape)
  return inputs


def record_dense(transformers, folder: Path) -> None:
  """A directory and its outputs, both by sentence-transformers."""
  import sentence_transformers
  import torch
  from sentence_transformers.base.modules import Dense, Transformer
  from sentence_transformers.sentence_transformer.modules import Pooling

  from plm_jax.export.tensors import write_safetensors
  from tests.export.peers import outputs, published

  with tempfile.TemporaryDirectory() as body:
    published(transformers, "BertModel", body, **BERT)
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqr"]
    (Path(body) / "vocab.txt").write_text("\n".join(vocab))
    encoder = Transformer(body, max_seq_length=12)
    dense = Dense(6, 3, activation_function=torch.nn.Identity())
    model = sentence_transformers.SentenceTransformer(
      modules=[encoder, Pooling(6, "mean"), dense], device="cpu"
    )
    model.save_pretrained(str(folder), create_model_card=False)
  inputs = inputs_of("bert", encoder.model.config)
  with torch.no_grad():
    logits = model({name: torch.tensor(array) for name, array in inputs.items()})
  made = outputs(encoder.model, inputs) | {"logits": logits["sentence_embedding"].numpy()}
  recorded = {f"inputs.{name}": array for name, array in inputs.items()}
  recorded |= {f"outputs.{name}": array for name, array in made.items()}
  for name in ("config_sentence_transformers.json", "tokenizer.json", "tokenizer_config.json"):
    (folder / name).unlink(missing_ok=True)
  write_safetensors(folder / "example", recorded)


def main(*chosen: str) -> None:
  """chosen: folders; without any, all."""
  import torch
  import transformers

  from plm_jax.export.tensors import write_safetensors
  from tests.export.peers import outputs, published

  transformers.logging.set_verbosity_error()
  if not chosen or DENSE in chosen:
    shutil.rmtree(FOLDER / DENSE, ignore_errors=True)
    record_dense(transformers, FOLDER / DENSE)
  for case, (architecture, options) in CASES.items():
    if chosen and case not in chosen:
      continue
    folder = FOLDER / case
    shutil.rmtree(folder, ignore_errors=True)
    model = published(transformers, architecture, folder, **options)
    for name in folder.glob("generation_config.json"):
      name.unlink()
    if case == "bert_bin":
      torch.save(model.state_dict(), folder / "pytorch_model.bin")
      (folder / "model.safetensors").unlink()
    inputs = inputs_of(case, model.config)
    found = {f"inputs.{name}": array for name, array in inputs.items()}
    found |= {f"outputs.{name}": array for name, array in outputs(model, inputs).items()}
    write_safetensors(folder / "example", found)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{case}: {architecture}, {size / 1024:.0f} KB")


if __name__ == "__main__":
  main(*sys.argv[1:])
