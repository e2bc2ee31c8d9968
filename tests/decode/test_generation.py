"""Generation: the cache changes nothing, and neither does what else is in a batch."""

import dataclasses
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.decode import writer
from plm_jax.decode.rules import Rules
from plm_jax.decode.writer import Prompt, bucket, write
from plm_jax.errors import UserError
from plm_jax.models.compute import Compute
from plm_jax.models.gpt import Gpt2
from plm_jax.models.llama import Llama
from tests.data.toy_store import CLS, SEP, toy_vocab

VOCAB, BOS = 30, 1
SIZES = {
  **{"vocab_size": VOCAB, "layers": 1, "width": 16, "positions": 40, "initializer_range": 0.6}
}
CONFIGS = {"gpt": Gpt2(heads=2, **SIZES), "llama": Llama(heads=4, kv_heads=2, **SIZES)}
IDS = [[CLS, 7, 8, 9], [CLS, 20], [CLS, 5, 6, 7, 8, 9, 10, 11], [CLS, 11, 11]]
PROMPTS = [Prompt(ids) for ids in IDS]


class Writer(NamedTuple):
  """The first arguments of `write`."""

  params: Any
  config: Any
  tokenizer: Any
  compute: Compute


def writer_of(config):
  """A model with random parameters."""
  params = jax.jit(lambda key: config.init(key, {"lm": 0}))(jax.random.key(3))
  return Writer(params, config, with_vocab(bos=BOS), Compute(dtype="float32"))


def with_vocab(**roles):
  """A tokenizer that has nothing but its vocabulary."""
  return types.SimpleNamespace(vocab=dataclasses.replace(toy_vocab(VOCAB), **roles))


@pytest.fixture(scope="module", params=CONFIGS)
def trained(request):
  return writer_of(CONFIGS[request.param])


@pytest.fixture(scope="module")
def gpt():
  return writer_of(CONFIGS["gpt"])


@jax.jit
def all_logits(model, ids):
  return model.token_logits(model({"input_ids": ids}, Compute(dtype="float32")))


def by_full_forward(trained, prompt, rules, length):
  """Greedy search without a cache, in numpy: the definition."""
  ids = list(prompt)
  for step in range(length):
    row = np.zeros((1, 40), np.int32)
    row[0, : len(ids)] = ids
    scores = np.array(all_logits(trained.params, row)[0, len(ids) - 1])
    seen = np.unique(ids)
    scores[seen] = np.where(
      scores[seen] > 0,
      scores[seen] / rules.repetition_penalty,
      scores[seen] * rules.repetition_penalty,
    )
    if step < rules.min_length:
      scores[[BOS, CLS, SEP]] = -np.inf
    token = int(scores.argmax())
    if token in (BOS, CLS, SEP):
      break
    ids.append(token)
  return ids[len(prompt) :]


@pytest.mark.parametrize(
  "rules",
  [Rules(max_length=12), Rules(max_length=12, repetition_penalty=1.5, min_length=12)],
  ids=["plain", "penalty and minimum"],
)
def test_greedy_search_is_the_argmax_of_the_full_forward_pass(trained, rules):
  found = write(*trained, PROMPTS, rules)
  expected = [by_full_forward(trained, ids, rules, 12) for ids in IDS]
  assert [texts[0].ids for texts in found] == expected


def test_a_text_ends_before_the_first_token_that_ends_one(gpt):
  """Greedy search again, where a token that it found in the midst of a text is an end."""
  rules = Rules(max_length=12)
  before = [texts[0].ids for texts in write(*gpt, PROMPTS, rules)]
  longest = max(before, key=len)
  end = longest[len(longest) // 2]
  ended = gpt._replace(tokenizer=with_vocab(bos=BOS, sep=end))
  after = [texts[0].ids for texts in write(*ended, PROMPTS, rules)]
  assert after == [ids[: ids.index(end)] if end in ids else ids for ids in before]
  assert sum(map(len, after)) < sum(map(len, before))


def test_one_beam_is_greedy_search_and_more_beams_find_more_probable_texts(gpt):
  trained, one = gpt, Rules(max_length=12)
  greedy = write(*trained, PROMPTS, one)
  generator = writer.ready(trained.params, trained.compute, VOCAB)
  prompt, pad = writer.padded([t.ids for t in PROMPTS], left=True)
  limit = 40 - (prompt.shape[1] - pad)
  ends = writer.ends(trained.tokenizer.vocab, True)
  found = writer._search(generator, {"pad": pad}, prompt, limit, one, ends)
  assert [ids[0, : n[0]].tolist() for ids, n in zip(found.ids_BKL, found.length_BK)] == [
    texts[0].ids for texts in greedy
  ]
  several = write(*trained, PROMPTS, Rules(max_length=10, beams=4, length_penalty=0.0), samples=4)
  for best, alone in zip(several, greedy, strict=True):
    scores = [text.score for text in best]
    assert scores == sorted(scores, reverse=True) and len(best) == 4
    assert scores[0] >= alone[0].score - 1e-4 or len(alone[0].ids) >= 10


def test_a_wide_beam_finds_the_most_probable_text_of_all():
  """Of a vocabulary of 7 and texts of up to 3 tokens, every one can be tried."""
  config = dataclasses.replace(CONFIGS["gpt"], vocab_size=7)
  tokenizer = types.SimpleNamespace(vocab=toy_vocab(7))
  trained = writer_of(config)._replace(tokenizer=tokenizer)
  prompt = Prompt([CLS, 5, 6])
  every = [[a, b, c] for a in range(7) for b in range(7) for c in range(7)]
  rows = np.array([[CLS, 5, 6, *text] for text in every], np.int32)
  log_p = np.asarray(jax.nn.log_softmax(all_logits(trained.params, rows)))[:, 2:5]
  scores = {}
  for text, row in zip(every, log_p):
    end = next((i for i, token in enumerate(text) if token in (CLS, SEP)), None)
    counted = 3 if end is None else end + 1
    total = sum(row[i, text[i]] for i in range(counted))
    scores[tuple(text[: 3 if end is None else end])] = max(
      total / counted**0.7, scores.get(tuple(text[: 3 if end is None else end]), -np.inf)
    )
  ordered = sorted(scores.items(), key=lambda item: -item[1])
  rules = Rules(max_length=3, beams=49, length_penalty=0.7)
  found = write(*trained, [prompt], rules, samples=1)[0][0]
  assert tuple(found.ids) == ordered[0][0]
  assert found.score == pytest.approx(ordered[0][1], abs=1e-4)


@pytest.mark.parametrize(
  "rules",
  [
    Rules(max_length=12),
    Rules(max_length=9, temperature=0.8, top_k=9, top_p=0.9),
    Rules(max_length=10, beams=4, length_penalty=0.0),
  ],
  ids=["greedy", "drawn", "beams"],
)
def test_what_else_is_in_a_batch_changes_nothing(gpt, rules):
  together = write(*gpt, PROMPTS, rules, seed=5)
  # Its number is kept, since the draws of a text are those of its number.
  others = [Prompt([CLS, 6]), PROMPTS[1], Prompt([CLS, 9, 9, 9, 9]), PROMPTS[3]]
  elsewhere = write(*gpt, others, rules, seed=5)
  for number in (1, 3):
    assert elsewhere[number][0].ids == together[number][0].ids
  alone = write(*gpt, [PROMPTS[0]], rules, seed=5)
  assert alone[0][0].ids == together[0][0].ids
  assert len({tuple(texts[0].ids) for texts in together}) > 1


def test_a_seed_gives_the_same_texts_and_another_gives_others(gpt):
  rules = Rules(max_length=9, temperature=1.5, min_length=9)
  first, again = (write(*gpt, PROMPTS, rules, samples=3, seed=1) for _ in range(2))
  assert first == again
  assert first != write(*gpt, PROMPTS, rules, samples=3, seed=2)
  assert len({tuple(text.ids) for text in first[0]}) == 3


@pytest.mark.slow
def test_sampled_frequencies_follow_the_distribution(gpt):
  """Of the first token, at a temperature and among the 6 most probable: within 4 sigma each."""
  rules = Rules(max_length=1, temperature=1.7, top_k=6)
  scores = np.asarray(all_logits(gpt.params, np.array([IDS[0]], np.int32)))[0, -1]
  probabilities = np.asarray(jax.nn.softmax(rules.drawn_from(jnp.asarray(scores)[None])[0]))
  texts = write(*gpt, [PROMPTS[0]], rules, samples=1600)[0]
  drawn = np.bincount([t.ids[0] if t.ids else SEP for t in texts], minlength=VOCAB) / 1600
  expected = probabilities.copy()
  expected[[BOS, CLS, SEP]] = 0, 0, probabilities[[BOS, CLS, SEP]].sum()
  sigma = np.sqrt(expected * (1 - expected) / 1600)
  assert (np.abs(drawn - expected) <= 4 * sigma + 1e-9).all()
  assert (expected > 0.02).sum() >= 4


def test_many_prompts_take_one_compilation(gpt):
  rules = Rules(max_length=5)
  write(*gpt, [Prompt([CLS, 5])], rules)
  before = writer._begin._cache_size()
  for length in range(1, 8):
    write(*gpt, [Prompt([CLS, *range(5, 5 + length)])], rules)
  assert writer._begin._cache_size() == before
  assert [bucket(n) for n in (1, 8, 9, 16, 17, 100)] == [8, 8, 16, 16, 32, 128]


def test_a_text_ends_where_the_positions_do(gpt):
  long = Prompt([CLS, *([9] * 35)])
  found = write(*gpt, [long, PROMPTS[0]], Rules(max_length=20, min_length=20))
  assert [len(texts[0].ids) for texts in found] == [4, 20]
  beams = write(*gpt, [long], Rules(max_length=20, min_length=20, beams=2))
  assert len(beams[0][0].ids) == 4
  most = Rules(max_length=10**9, min_length=10**9)  # the cache is not of that size
  assert len(write(*gpt, [long], most)[0][0].ids) == 4


@pytest.mark.slow
def test_a_cache_that_grows_changes_no_text(gpt, monkeypatch):
  """From 8 columns to 16 and 31, which is all; watched at other places than those."""
  rules = Rules(max_length=24, min_length=24)
  whole, sizes = write(*gpt, PROMPTS, rules), []
  widened = writer._widened
  monkeypatch.setattr(writer, "_COLUMNS", 8)
  monkeypatch.setattr(
    writer, "_widened", lambda state, n: (sizes.append(n), widened(state, columns=n))[1]
  )
  grown = write(*gpt, PROMPTS, rules)
  assert [texts[0].ids for texts in grown] == [texts[0].ids for texts in whole]
  for ours, theirs in zip(grown, whole, strict=True):  # sums over other columns, in another order
    assert ours[0].score == pytest.approx(theirs[0].score, rel=1e-5)
  assert sizes == [16, 31]
  assert write(*gpt, PROMPTS[:1], rules, watch=lambda ids: None)[0][0].ids == whole[0][0].ids


def test_a_text_can_be_watched_while_it_grows(gpt):
  seen = []
  rules = Rules(max_length=20, min_length=20)
  found = write(*gpt, [PROMPTS[0]], rules, watch=lambda ids: seen.append(list(ids)))
  assert [len(ids) for ids in seen] == [8, 16]
  assert found[0][0].ids[:16] == seen[-1]
  assert found == write(*gpt, [PROMPTS[0]], rules)


def test_generation_stops_when_all_rows_have_ended(gpt):
  state = writer.grow(
    writer.ready(gpt.params, gpt.compute, VOCAB),
    {"pad": np.zeros(1, np.int32)}, np.array([[CLS, 5]]), np.array([30]), 0,
    np.zeros((1, 2), np.uint32), np.arange(VOCAB), Rules(max_length=30),
  )  # fmt: skip
  assert int(state.step) == 1 and bool(state.done_B.all())


def test_nothing_is_written_that_the_tokenizer_does_not_have(gpt):
  vocab = dataclasses.replace(toy_vocab(15), bos=BOS)
  small = gpt._replace(tokenizer=types.SimpleNamespace(vocab=vocab))
  rules = Rules(max_length=9, temperature=1.5, min_length=9)
  for found in (write(*gpt, PROMPTS, rules), write(*small, PROMPTS[:1], rules)):
    most = max(token for texts in found for token in texts[0].ids)
    assert (most < 15) == (len(found) == 1)


def test_prompts_that_the_model_cannot_read_are_refused(gpt):
  config = CONFIGS["gpt"]
  with pytest.raises(UserError, match=r"prompt 2 has 40 tokens.*40 at most"):
    writer.check_ids([5] * 40, config, 2)
  with pytest.raises(UserError, match=r"token id 30.*end at 29"):
    writer.check_ids([5, 30], config)
  with pytest.raises(UserError, match=r"samples=3.*1 beam"):
    write(*gpt, PROMPTS, Rules(), samples=3)


@pytest.mark.slow
@pytest.mark.parametrize(("beams", "penalty", "least"), [(1, 1.1, 2), (3, 1.1, 2), (3, 1.4, 7)])
def test_texts_are_those_of_transformers_generate(beams, penalty, least, gpt):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  from tests.models.test_decoder import ours_of_gpt
  from tests.models.torch_encoder import filled, randomised

  their_config = transformers.GPT2Config(
    **{"vocab_size": VOCAB, "n_positions": 40, "n_embd": 16, "n_layer": 1, "n_head": 2},
    **{"bos_token_id": CLS, "eos_token_id": SEP, "pad_token_id": 0, "initializer_range": 0.5},
  )
  theirs = randomised(torch, transformers.GPT2LMHeadModel(their_config))
  state = {k: v.numpy() for k, v in theirs.state_dict().items()}
  same = gpt._replace(params=filled(gpt.params, ours_of_gpt(state, CONFIGS["gpt"])))
  same = same._replace(tokenizer=with_vocab(cls=None, bos=None))
  width = max(map(len, IDS))
  ids = torch.tensor([[0] * (width - len(p)) + p for p in IDS])
  mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in IDS])
  expected = theirs.generate(
    ids, attention_mask=mask, max_new_tokens=10, num_beams=beams, do_sample=False,
    early_stopping=beams > 1, repetition_penalty=penalty, min_new_tokens=least, length_penalty=0.8,
  ).tolist()  # fmt: skip
  rules = Rules(
    max_length=10, beams=beams, repetition_penalty=penalty, min_length=least,
    **({"length_penalty": 0.8} if beams > 1 else {}),
  )  # fmt: skip
  found = write(*same, PROMPTS, rules)
  for ours, row in zip(found, expected, strict=True):
    new = row[width:]
    new = new[: new.index(SEP)] if SEP in new else new
    assert ours[0].ids == new
