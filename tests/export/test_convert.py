"""A published model becomes a run that everything else takes, and a run what transformers loads."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import sentencepiece as spm

from plm_jax import overrides
from plm_jax.commands import convert
from plm_jax.data.tokenizers import Unigram, WordPiece, load_tokenizer
from plm_jax.data.vocab import Vocab
from plm_jax.errors import UserError
from plm_jax.export import hf
from plm_jax.export.from_run import electra_part, from_run, special_tokens, write_directory
from plm_jax.export.published_tokenizer import (
  PUBLISHED_PIECES,
  check_not_mbart_50,
  has_class,
  read_tokenizer,
  with_sentinels,
)
from plm_jax.export.tensors import write_safetensors
from plm_jax.export.to_run import with_languages, write_run
from plm_jax.models.albert import Albert
from plm_jax.models.bart import Bart, MBart
from plm_jax.models.bert import Bert
from plm_jax.models.compute import Compute
from plm_jax.models.electra import Electra
from plm_jax.models.gpt import Gpt2
from plm_jax.models.parameters import head_patterns
from plm_jax.models.roberta import Roberta
from plm_jax.models.t5 import T5
from plm_jax.runs import Run, RunInfo, check_predicts_tokens
from plm_jax.tasks.rows import LabelledBatches, framed_rows
from plm_jax.train.checkpoint import Checkpoints, restore_parameters
from tests import toy_run
from tests.export.peers import initial

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tokenizer():
  lines = toy_run.text().read_text().splitlines()
  return WordPiece(vocab_size=90).train(line for line in lines if line)


@pytest.fixture(scope="module")
def public(tokenizer, tmp_path_factory):
  """A directory as transformers writes it, of a random BERT with more rows than tokens."""
  folder = tmp_path_factory.mktemp("public") / "bert"
  config = Bert(layers=2, width=12, heads=3, vocab_size=tokenizer.vocab.size + 5, positions=40)
  params = initial(config, {"mlm": 0})
  hf.save(hf.Pretrained(config, params, None, {"pad_token_id": 0}), folder)
  tokenizer.backend.write(folder)
  (folder / "tokenizer.json").unlink()  # vocab.txt alone, as of old
  return folder


@pytest.fixture(scope="module")
def run(public, tokenizer, tmp_path_factory):
  folder = tmp_path_factory.mktemp("run") / "bert"
  write_run(hf.load(public), read_tokenizer(public), folder, public)
  return folder


def command(*arguments, folder):
  environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
  return subprocess.run(
    [sys.executable, *map(str, arguments)],
    cwd=folder,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )


def test_an_imported_run_has_the_model_the_tokenizer_and_the_numbers(public, run, tokenizer):
  found, imported = Run.load(run), hf.load(public)
  assert found.config == imported.config
  assert found.tokenizer.fingerprint == tokenizer.fingerprint
  jax.tree.map(np.testing.assert_array_equal, found.params, imported.params)
  back = from_run(Run.load(run))
  assert back.document == imported.document and back.architecture == "BertForMaskedLM"


def test_a_published_model_that_predicts_no_tokens_is_one_sentence(public, tokenizer, tmp_path):
  config = hf.load(public).config
  bare = hf.Pretrained(config, initial(config, {"pooler": 0}))
  write_run(bare, tokenizer, tmp_path / "bare", public)
  with pytest.raises(UserError, match="is a BertModel, which has no head that predicts tokens"):
    check_predicts_tokens(Run.load(tmp_path / "bare"))


def test_a_run_exported_again_is_the_same_directory(public, run, tmp_path):
  write_directory(from_run(Run.load(run)), RunInfo.read(run).tokenizer, tmp_path / "again")
  for name in ("model.safetensors", "vocab.txt", "config.json"):
    assert (tmp_path / "again" / name).read_bytes() == (public / name).read_bytes(), name


def test_a_classifier_of_the_mean_goes_to_sentence_transformers_and_back(
  tokenizer, tmp_path, capsys
):
  config = Bert(layers=1, width=12, heads=3, vocab_size=90, positions=40, classifier="mean")
  experiment = dataclasses.replace(toy_run.TOY, model=config)  # rows of 27 tokens
  params, document = initial(config, {"classes": 3}), {"classes": ["bad", "fair", "good"]}
  out, parts = tmp_path / "out", {"experiment": experiment, "tokenizer": tokenizer}
  model = from_run(Run(**parts, params=params, document=document))
  write_directory(model, tokenizer, out, trained_here=True)
  sentence = f'SentenceTransformer("{out}").encode(texts) gives the 3 class scores (logits)'
  assert sentence in capsys.readouterr().out
  write_run(hf.load(out), tokenizer, tmp_path / "run", out)
  again = from_run(Run.load(tmp_path / "run"))
  assert again.config.classifier == "mean" and again.pooling.length == 27
  assert list(again.document["id2label"].values()) == document["classes"]
  for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(again.params), strict=True):
    np.testing.assert_array_equal(before, after)


def test_fine_tuning_takes_the_encoder_and_draws_its_own_head(run):
  source = RunInfo.read(run)
  fresh = initial(source.experiment.model, {"classes": 3}, seed=1)
  restored = restore_parameters(run, fresh, head_patterns(), head_patterns())
  assert {name.split("/")[0] for name in restored.fresh} == {"classes", "pooler"}
  assert {name.split("/")[0] for name in restored.unused} == {"mlm"}


def test_fine_tuning_draws_its_head_where_a_published_classifier_has_other_classes(tmp_path):
  config = Bert(layers=1, width=8, heads=2, vocab_size=20, positions=8)
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    stored = initial(config, {"pooler": 0, "classes": 2})
    checkpoints.save(0, {"params": stored}, {})
  fresh = initial(config, {"pooler": 0, "classes": 3}, seed=1)
  restored = restore_parameters(tmp_path, fresh, head_patterns(), head_patterns())
  assert restored.fresh == ["classes/bias", "classes/kernel"] and not restored.unused
  assert restored.params.classes.bias.shape == (3,)
  with pytest.raises(UserError, match=r"classes/bias should be float32\[3\] and is float32\[2\]"):
    restore_parameters(tmp_path, fresh)


@pytest.mark.slow
def test_pretraining_goes_on_from_a_published_model(run, tmp_path):
  arguments = (
    *("--budget=smoke", f"--from={run}", "--workdir=on", f"--set=data.source={toy_run.text()}"),
    *("--set=steps=2", "--set=optim.warmup=1", "--set=global_batch=8", "--cache=cache"),
  )
  done = command(ROOT / "run_pretrain.py", *arguments, folder=tmp_path)
  assert done.returncode == 0, done.stderr
  before, after = RunInfo.read(run), RunInfo.read(tmp_path / "on")
  assert after.experiment.model == before.experiment.model
  assert after.experiment.data.length <= 40
  assert (tmp_path / "on" / "checkpoints" / "2").is_dir()


@pytest.mark.slow
def test_blanks_are_filled_by_a_published_model(run, tmp_path):
  done = command(
    *("-m", "plm_jax.fill_mask", f"--model={run}", "--text=[MASK] a b"), folder=tmp_path
  )
  assert done.returncode == 0, done.stderr
  assert "[MASK] a b" in done.stdout


@pytest.mark.slow
def test_the_command_converts_there_and_back(public, tmp_path):
  for words in ((public, "run"), ("run", "again")):
    done = command("-m", "plm_jax.convert", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Bert, BertForMaskedLM" in done.stdout
  done = command("-m", "plm_jax.convert", public, "again", folder=tmp_path)
  assert done.returncode == 2
  assert done.stderr == "error: again already exists; choose a new or empty directory.\n"


@pytest.mark.slow
def test_transformers_reads_what_a_run_was_exported_to(tokenizer, peers, tmp_path):
  toy_run.run(tmp_path / "run")
  toy_run.prepared().tokenizer.save(tmp_path / "run" / "tokenizer")
  document = {"format": 1, "experiment": overrides.to_json(toy_run.program().experiment)}
  (tmp_path / "run" / "config.json").write_text(json.dumps(document))
  exported = from_run(Run.load(tmp_path / "run"))
  own = toy_run.prepared().tokenizer
  write_directory(exported, own, tmp_path / "out")
  model, report = peers.BertForPreTraining.from_pretrained(
    tmp_path / "out", output_loading_info=True
  )
  assert not any(report.values()), report
  theirs = peers.AutoTokenizer.from_pretrained(tmp_path / "out")
  sentence = toy_run.text().read_text().splitlines()[0]
  ids = theirs(sentence)["input_ids"]
  assert ids[1:-1] == own.encode(sentence).tolist()
  segments = [0] * len(ids) + [1] * (len(ids) - 1)
  assert theirs(sentence, sentence)["token_type_ids"] == segments
  assert model.config.pad_token_id == own.vocab.pad


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
  (tmp_path / "file").touch()
  sentence = r"file/x cannot be written \(Not a directory\); free space or choose another DST"
  with pytest.raises(UserError, match=sentence), convert.new_directory(tmp_path / "file" / "x"):
    pass


@pytest.mark.parametrize("was_there", [True, False])
def test_nothing_is_left_where_writing_fails(was_there, tmp_path):
  target = tmp_path / "new"
  if was_there:
    target.mkdir()
  with pytest.raises(UserError, match="No space left on device"), convert.new_directory(target):
    (target / "checkpoints").mkdir()
    (target / "checkpoints" / "half").touch()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  assert not any(target.iterdir()) if was_there else not target.exists()


def test_weights_that_cannot_be_written_are_an_error_of_the_place(tmp_path):
  with pytest.raises(OSError, match="none"):
    write_safetensors(tmp_path / "none" / "model.safetensors", {"a": np.zeros(2)})


def pieces_of_toy_text(folder):
  """A SentencePiece model, the first three as in those of XLM-R and mBART."""
  lines = [line for line in toy_run.text().read_text().splitlines() if line]
  (folder / "text").write_text("\n".join(lines))
  spm.SentencePieceTrainer.train(
    input=str(folder / "text"),
    model_prefix=str(folder / "m"),
    vocab_size=60,
    hard_vocab_limit=False,
    minloglevel=5,
  )
  return folder / "m.model"


def test_mbart_50_is_refused_by_name(tmp_path):
  """Its tokens are 27 more, and its texts begin with their language."""
  tokenizer = read_tokenizer(pieces_of_toy_text(tmp_path), "mbart")
  size = tokenizer.vocab.size
  check_not_mbart_50(tokenizer, MBart(vocab_size=size))
  with pytest.raises(UserError, match=rf"{size + 27} tokens, 27 more .* mBART-50"):
    check_not_mbart_50(tokenizer, MBart(vocab_size=size + 27))


SMALL = {"layers": 1, "width": 8, "heads": 2, "positions": 40}
PIECES = {  # family -> its tokenizer here, the model of a vocabulary
  "albert": (Unigram(vocab_size=90, lowercase=True), Albert(embedding=8, **SMALL), {"mlm": 0}),
  "t5": (Unigram(vocab_size=90, layout="t5", sentinels=9), T5(**SMALL), {"lm": 0}),
  "xlm-roberta": (None, Roberta(**SMALL), {"mlm": 0}),
  "mbart": (None, MBart(**SMALL), {"lm": 0}),
}


@pytest.mark.parametrize("family", PIECES)
def test_transformers_reads_the_pieces_of_a_run_and_so_do_we(family, peers, tmp_path):
  make, config, heads = PIECES[family]
  lines = [line for line in toy_run.text().read_text().splitlines() if line]
  pieces = pieces_of_toy_text(tmp_path) if make is None else None
  own = make.train(lines) if pieces is None else read_tokenizer(pieces, family)
  config = dataclasses.replace(config, vocab_size=own.vocab.size)
  params = config.init(jax.random.key(0), heads)
  model = hf.Pretrained(config, params, None, {"model_type": family})
  write_directory(model, own, tmp_path / "out")
  theirs = peers.AutoTokenizer.from_pretrained(tmp_path / "out")
  ids = own.encode(lines[0]).tolist()
  assert theirs(lines[0], add_special_tokens=False)["input_ids"] == ids
  last = own.token(own.vocab.size - 1)  # a sentinel, or the mask
  assert theirs.convert_tokens_to_ids(last) == own.vocab.size - 1
  again = with_sentinels(read_tokenizer(tmp_path / "out", family), config)
  assert again.pieces == own.pieces and again.encode(lines[0]).tolist() == ids


def test_an_mbart_that_translates_begins_with_the_language_of_its_config():
  """As mbart-large-en-ro: sources end with en_XX, and the decoder begins with ro_RO."""
  roles = {"bos": 0, "eos": 2, "languages": {"en_XX": 30, "ro_RO": 31}}
  vocab = Vocab(size=40, special=np.zeros(40, bool), word_start=None, **roles)
  config = MBart(vocab_size=40, **SMALL)
  params = initial(config, {"lm": 0})
  for start, expected in ((31, [7, 2, 30, 31]), (30, [7, 2, 30, 30]), (2, [7, 2, 30, 30])):
    model = hf.Pretrained(config, params, None, {"decoder_start_token_id": start})
    found = with_languages(model, SimpleNamespace(vocab=vocab))
    assert [*found.source_ids([7], vocab), *found.decoder_start(vocab)] == expected


def test_pieces_that_transformers_would_read_otherwise_do_not_get_its_names(shared_data):
  lines = [line for line in toy_run.text().read_text().splitlines() if line]
  of = {layout: Unigram(vocab_size=90, layout=layout).train(lines) for layout in ("albert", "t5")}
  found = {(f, layout) for f in PUBLISHED_PIECES for layout in of}
  found = {(f, layout) for f, layout in found if has_class(f, of[layout])}
  assert found == {("albert", "albert"), ("t5", "t5")}
  lowered = Unigram(vocab_size=90, layout="t5", lowercase=True).train(lines)
  assert not has_class("t5", lowered)
  assert has_class("llama", load_tokenizer(shared_data("ckpt", "stories260K", "tok512.model")))


def test_a_lower_case_that_is_no_truth_value_is_one_sentence(tmp_path):
  (tmp_path / "vocab.txt").write_text("[UNK]\na\n")
  (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": "maybe"}')
  with pytest.raises(UserError, match="sets do_lower_case='maybe'; expected true or false"):
    read_tokenizer(tmp_path)


def test_sentinels_behind_word_pieces_are_in_the_file_for_transformers(peers, tmp_path):
  lines = [line for line in toy_run.text().read_text().splitlines() if line]
  own = WordPiece(vocab_size=90, sentinels=9).train(lines)
  config = T5(vocab_size=own.vocab.size, **SMALL)
  model = hf.Pretrained(config, initial(config, {"lm": 0}))
  write_directory(model, own, tmp_path / "out")
  theirs = peers.AutoTokenizer.from_pretrained(tmp_path / "out")
  assert theirs.convert_tokens_to_ids("<extra_id_0>") == own.vocab.sentinels[0]
  again = with_sentinels(read_tokenizer(tmp_path / "out", "t5"), config)
  assert again.fingerprint == own.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("config", [T5, Gpt2])
def test_a_classifier_reads_texts_in_transformers_as_it_did_in_training(config, peers, tmp_path):
  """T5's "text </s>", and "</s> text </s>" of a GPT-2 with one token for both ends."""
  import torch

  lines = [line for line in toy_run.text().read_text().splitlines() if line]
  own = WordPiece(vocab_size=90).train(lines)
  if config is Gpt2:
    own.vocab = dataclasses.replace(own.vocab, bos=own.vocab.sep, eos=own.vocab.sep, cls=None)
  config = config(vocab_size=own.vocab.size, initializer_range=0.5, **SMALL)
  params = initial(config, {"classes": 3})
  model = hf.Pretrained(config, params, None, special_tokens(own, config))
  write_directory(model, own, tmp_path / "out", trained_here=True)
  rows = framed_rows([(own.encode(lines[0]),)], config, own, 40)
  (batch,) = LabelledBatches(rows, seed=0, global_batch=1).evaluation()
  theirs = peers.AutoTokenizer.from_pretrained(tmp_path / "out")(lines[0])["input_ids"]
  assert theirs == batch["input_ids"][0, : batch["length"][0]].tolist()
  classifier = peers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
  compute = Compute(dtype="float32")
  ours = params.class_logits(params(batch, compute), batch, None)
  with torch.no_grad():
    logits = classifier(torch.tensor([theirs])).logits.numpy()
  np.testing.assert_allclose(ours, logits, atol=1e-4)


@pytest.mark.parametrize("config", [T5, Bart, Gpt2])
def test_a_model_that_writes_reads_prompts_in_transformers_as_it_does_here(config, peers, tmp_path):
  """T5's "text </s>", BART's "<s> text </s>" and GPT's "<s> text", which goes on."""
  own = WordPiece(vocab_size=90).train(toy_run.text().read_text().splitlines())
  config = config(vocab_size=own.vocab.size, **SMALL)
  model = hf.Pretrained(config, initial(config, {"lm": 0}))
  write_directory(model, own, tmp_path / "out", trained_here=True)
  tokens = own.encode("bab cab")
  is_decoder = isinstance(config, Gpt2)
  ours = [own.vocab.cls, *tokens] if is_decoder else config.source_ids(list(tokens), own.vocab)
  theirs = peers.AutoTokenizer.from_pretrained(tmp_path / "out")
  assert theirs("bab cab")["input_ids"] == [int(i) for i in ours]


@pytest.mark.parametrize(
  "entry", [None, {}, {"config": {}, "architecture": "BertForMaskedLM", "heads": {"mlm": "x"}}]
)
def test_a_damaged_record_of_an_import_is_one_sentence(entry, run, tmp_path):
  document = json.loads((run / "config.json").read_text())
  if entry is not None:
    entry = document["public"] | entry if entry else entry
  (tmp_path / "config.json").write_text(json.dumps(document | {"public": entry}))
  with pytest.raises(UserError, match='has a damaged entry "public", which names the published'):
    RunInfo.read(tmp_path)


def test_an_import_of_an_unknown_architecture_is_one_sentence(run, tmp_path):
  shutil.copytree(run, tmp_path / "run")
  document = json.loads((run / "config.json").read_text())
  document["public"]["architecture"] = "BertForPoetry"
  (tmp_path / "run" / "config.json").write_text(json.dumps(document))
  with pytest.raises(UserError, match="'BertForPoetry', which bert does not have"):
    from_run(Run.load(tmp_path / "run"))


@pytest.mark.parametrize(
  ("source", "sentence"),
  [("nowhere", "nowhere does not exist"), ("empty", "not a published model.s directory")],
)
def test_what_is_no_model_is_one_sentence(source, sentence, tmp_path):
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match=sentence):
    convert.published(Path(source) if source == "nowhere" else tmp_path / source)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(public, tmp_path):
  larger = WordPiece(vocab_size=400).train(["".join(map(chr, range(200, 600)))])
  with pytest.raises(UserError, match="do not belong together"):
    write_run(hf.load(public), larger, tmp_path / "run", public)


def test_an_electra_is_exported_in_two_parts(tmp_path):
  config = Electra(layers=1, width=16, heads=2, embedding=8, vocab_size=20, positions=6)
  params = initial(config, {"mlm": 0, "rtd": 0})
  for part, architecture in (
    ("discriminator", "ElectraForPreTraining"),
    ("generator", "ElectraForMaskedLM"),
  ):
    hf.save(hf.Pretrained(*electra_part(config, params, part)), tmp_path / part)
    assert hf.load(tmp_path / part).architecture == architecture
  tables = [
    hf.load(tmp_path / part).params.embed.token.table[...]
    for part in ("discriminator", "generator")
  ]
  np.testing.assert_array_equal(*tables)
