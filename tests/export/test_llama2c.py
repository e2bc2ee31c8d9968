"""A real checkpoint writes the text that its authors published, here and in transformers."""

import dataclasses
import re
import struct

import jax
import numpy as np
import pytest

from plm_jax.data.tokenizers import Unigram
from plm_jax.errors import UserError
from plm_jax.export import hf, llama2c
from plm_jax.models.compute import Compute
from plm_jax.models.llama import STORIES_260K
from tests.export.peers import difference, outputs

STEPS = 256  # run.c's default


@pytest.fixture(scope="module")
def stories(shared_data):
  return llama2c.load(shared_data("ckpt", "stories260K", "stories260K.bin"))


@pytest.fixture(scope="module")
def greedy(stories):
  """The ids that the model writes after <s>, as run.c does at temperature 0."""

  @jax.jit
  def write(params):
    generator = params.generator(Compute(dtype="float32"))

    def step(carry, _):
      token_B, cache = carry
      logits_BV, cache = generator.extend(token_B[:, None], cache)
      token_B = logits_BV.argmax(-1).astype(np.int32)
      return (token_B, cache), token_B[0]

    start = np.ones(1, np.int32), generator.start({"pad": np.zeros(1, np.int32)}, STEPS)
    return jax.lax.scan(step, start, length=STEPS)[1]

  return np.asarray(write(stories.params))


def test_its_sizes_and_its_parameters_are_the_published_ones(stories):
  assert stories.config == dataclasses.replace(STORIES_260K, vocab_size=512)
  assert sum(x.size for x in jax.tree.leaves(stories.params)) == 260_032


def test_the_published_text_comes_out_exactly(greedy, shared_data):
  page = shared_data("ckpt", "stories260K", "stories260K.md").read_text()
  published = re.search(r"-t 0\.0\n(.*?)\n```", page, re.S)[1]
  tokenizer = Unigram(path=str(shared_data("ckpt", "stories260K", "tok512.model"))).load()
  written = tokenizer.decode(greedy.tolist())
  assert written.startswith("Once upon a time")
  assert written == published


def test_the_exported_directory_is_a_llama_of_transformers(stories, greedy, peers, tmp_path):
  hf.save(stories, tmp_path / "llama")
  reference, report = peers.LlamaForCausalLM.from_pretrained(
    tmp_path / "llama", output_loading_info=True
  )
  assert not any(report.values()), report
  inputs = {"input_ids": np.array([[1, *greedy[:60]], [1, *greedy[60:120]]])}
  theirs = outputs(reference.eval(), inputs)
  theirs.pop("past_key_values", None)
  found = hf.run(stories, **inputs)
  assert difference(found, theirs, np.ones((2, 61), int)) < 1e-4
  assert hf.load(tmp_path / "llama").config == stories.config


@pytest.mark.parametrize("change", [b"", b"x" * 27, struct.pack("<7i", *[0] * 7)])
def test_what_is_no_such_file_is_one_sentence(change, tmp_path):
  (tmp_path / "model.bin").write_bytes(change)
  with pytest.raises(UserError, match=r"not a llama2\.c file"):
    llama2c.load(tmp_path / "model.bin")


def test_a_file_that_was_cut_off_is_one_sentence(tmp_path):
  (tmp_path / "model.bin").write_bytes(struct.pack("<7i", 8, 16, 1, 2, 1, 32, 16) + bytes(100))
  with pytest.raises(UserError, match="has 128 bytes, but its header needs"):
    llama2c.load(tmp_path / "model.bin")
