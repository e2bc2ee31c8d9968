"""Every route answers as the functions of the commands do, and refuses bad input in a sentence."""

import asyncio
import itertools
import json

import httpx
import numpy as np
import pytest

from plm_jax.commands.encode import encode
from plm_jax.commands.fill_mask import fill_mask
from plm_jax.commands.generate import generate
from plm_jax.tasks import predicting
from tests.serving.conftest import Server

PROMPTS = ["the cat", "a small", "stone", "river road"]
TEXTS = ["the cat", "a small old river house", "stone", "the cat and the house by the river road"]


def ask(server, *requests, **headers):
  """The responses to (method, path, body) that are sent at once. body: JSON, or bytes."""

  async def one(client, method, path, body=None):
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    return await client.request(method, path, content=content)

  async def every():
    transport = httpx.ASGITransport(server.app, raise_app_exceptions=False)
    base = {"content-type": "application/json", **headers}
    async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=base) as client:
      return await asyncio.gather(*(one(client, *request) for request in requests))

  return asyncio.run(every())


def post(server, path, **body):
  """The one response to a body."""
  (response,) = ask(server, ("POST", path, body))
  return response


def sentence(response):
  """The message of an error, which has OpenAI's schema."""
  return response.json()["error"]["message"]


def run_named(server, name):
  return next(model.run for model in server.models if model.name == name)


@pytest.mark.parametrize("name", ["classifier", "tagger"])
def test_predictions_are_those_of_the_task_for_one_text_and_for_many_at_once(server, name):
  run = run_named(server, name)
  task, trained = predicting.task_of(run), predicting.trained(run)
  items = [task.parse(text, "text") for text in TEXTS]
  expected = task.predict(trained, task.encode(items, run.tokenizer))
  whole = post(server, "/predict", inputs=TEXTS, model=name).json()["predictions"]
  single = ask(server, *(("POST", "/predict", {"inputs": text, "model": name}) for text in TEXTS))
  for made in (whole, [response.json()["predictions"][0] for response in single]):
    assert [rounded(one) for one in made] == [rounded(one) for one in expected]


def rounded(value):
  """Batches of other shapes differ in the last digits."""
  if isinstance(value, dict):
    return {name: rounded(each) for name, each in value.items()}
  if isinstance(value, list):
    return [rounded(each) for each in value]
  return round(value, 4) if isinstance(value, float) else value


def test_an_example_may_be_an_object_with_the_columns_of_the_training_file(server):
  one, other = (
    post(server, "/predict", inputs=inputs, model="classifier").json()["predictions"]
    for inputs in ({"text": TEXTS[1]}, TEXTS[1])
  )
  assert one == other


def test_vectors_and_embeddings_are_those_of_the_command(server):
  expected = encode(run_named(server, "bert"), TEXTS)
  vectors = post(server, "/encode", inputs=TEXTS, model="bert").json()["vectors"]
  body = post(server, "/v1/embeddings", input=TEXTS, model="bert").json()
  np.testing.assert_allclose(vectors, expected, atol=1e-5)
  assert [entry["embedding"] for entry in body["data"]] == vectors
  assert body["usage"]["prompt_tokens"] > len(TEXTS)


def test_fillers_are_those_of_the_command(server):
  texts = ["the [MASK] house", "[MASK] and [MASK] by the river road"]
  fillers = post(server, "/fill_mask", inputs=texts, model="bert", best=3).json()["fillers"]
  expected = fill_mask(run_named(server, "bert"), texts, 3)
  assert [[[f["token"] for f in blank] for blank in text] for text in fillers] == [
    [[f.token for f in blank] for blank in text] for text in expected
  ]


def test_attention_rows_sum_to_one_over_the_tokens(server):
  body = post(server, "/attention", input=TEXTS[3], model="bert", head=2).json()
  weights = np.array(body["weights"])
  assert weights.shape == (len(body["tokens"]),) * 2 and body["heads"] == 2
  np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-2)


RULES = [
  {"max_length": 12},
  {"max_length": 12, "temperature": 1.0, "seed": 3},
  {"max_length": 9, "temperature": 0.7, "top_k": 5, "seed": 4, "min_length": 9},
  {"max_length": 20, "temperature": 1.2, "top_p": 0.8, "repetition_penalty": 1.3, "seed": 5},
]


def test_texts_that_grow_together_are_those_of_the_command(server):
  run = run_named(server, "gpt")
  expected = [generate(run, [text], **rules)[0] for text, rules in zip(PROMPTS, RULES)]
  responses = ask(
    server,
    *(("POST", "/generate", {"prompt": t, **rules}) for t, rules in zip(PROMPTS, RULES)),
  )
  assert [response.json()["texts"] for response in responses] == expected


def test_samples_of_a_prompt_differ_and_are_those_of_the_command(server):
  rules = {"temperature": 1.5, "max_length": 8, "seed": 1}
  texts = post(server, "/generate", prompt=PROMPTS[:2], samples=3, **rules).json()["texts"]
  run = run_named(server, "gpt")
  assert texts == [*itertools.chain(*generate(run, PROMPTS[:2], samples=3, **rules))]
  assert len(set(texts)) == 6


def lines_of(response):
  """The messages of server-sent events."""
  return [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]


def test_a_streamed_text_is_the_whole_text_in_parts(server):
  whole = post(server, "/generate", prompt="the", max_length=20).json()["texts"][0]
  messages = [
    json.loads(line)
    for line in lines_of(post(server, "/generate", prompt="the", max_length=20, stream=True))
  ]
  assert "".join(message.get("text", "") for message in messages) == whole
  assert len(messages) > 3 and messages[-1]["done"]


def test_completions_have_the_schema_of_openai_and_stream_to_done(server):
  given = {"prompt": "the", "max_tokens": 20, "temperature": 0, "model": "gpt"}
  body = post(server, "/v1/completions", **given).json()
  (choice,) = body["choices"]
  assert body["object"] == "text_completion" and choice["finish_reason"] in ("stop", "length")
  assert body["usage"]["completion_tokens"] <= 20
  *lines, end = lines_of(post(server, "/v1/completions", **given, stream=True))
  assert end == "[DONE]"
  choices = [json.loads(line)["choices"][0] for line in lines]
  assert "".join(c["text"] for c in choices) == choice["text"]
  assert choices[-1]["finish_reason"] == choice["finish_reason"]


def test_a_completion_ends_before_a_stop(server):
  given = {"prompt": "the", "max_tokens": 24, "temperature": 0}
  text = post(server, "/v1/completions", **given).json()["choices"][0]["text"]
  stop = text[len(text) // 2 : len(text) // 2 + 3]
  for stream in (False, True):
    response = post(server, "/v1/completions", **given, stop=[stop], stream=stream)
    parts = [json.loads(line) for line in lines_of(response)[:-1]] if stream else [response.json()]
    choices = [part["choices"][0] for part in parts]
    assert "".join(c["text"] for c in choices) == text[: text.index(stop)]
    assert choices[-1]["finish_reason"] == "stop"


def test_models_health_and_metrics_tell_of_the_server(server):
  models, health, metrics = ask(
    server, ("GET", "/v1/models"), ("GET", "/health"), ("GET", "/metrics")
  )
  abilities = {entry["id"]: entry["abilities"] for entry in models.json()["data"]}
  assert abilities["classifier"] == ["predict", "encode", "attention"]
  assert abilities["gpt"] == ["encode", "attention", "generate"]
  assert "fill_mask" in abilities["bert"]
  assert health.json()["status"] == "ok"
  assert 'plm_jax_requests_total{route="/predict",status="200"}' in metrics.text


BAD = {
  "no JSON": (400, b'{"inputs": ', "no JSON"),
  "half a letter": (400, b'{"inputs": "\xff"}', "cannot be read"),
  "deep": (400, b'{"inputs": ' + b"[" * 2000, "cannot be read"),
  "no body": (422, b"", "required"),
  "a number": (422, {"inputs": 5}, "inputs"),
  "a list of numbers": (422, {"inputs": [5]}, "inputs"),
  "an unknown field": (422, {"inputs": "x", "inptus": "x"}, "inptus"),
  "an object without a text": (422, {"inputs": {"text": None}}, "text"),
  "nothing": (422, {"inputs": []}, "0 texts"),
  "an empty text": (422, {"inputs": ""}, "empty"),
  "many texts": (422, {"inputs": ["x"] * 9}, "9 texts"),
  "half a surrogate": (422, {"inputs": "\ud800"}, ""),
  "many tokens": (413, {"inputs": "the cat " * 40}, "tokens"),
  "many characters": (413, {"inputs": "x" * 1100}, "1,100 characters"),
  "many bytes": (413, {"inputs": "x" * 5000}, "bytes"),
  "an unknown model": (404, {"inputs": "x", "model": "../runs"}, "there is no model"),
  "two texts": (422, {"inputs": [["a", "b"]]}, "2 texts"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_a_sentence_and_its_neighbour_is_answered(server, case):
  status, body, words = BAD[case]
  if isinstance(body, dict):
    body = {"model": "classifier", **body}
  good = ("POST", "/predict", {"inputs": "the cat", "model": "classifier"})
  before, bad, after = ask(server, good, ("POST", "/predict", body), good)
  assert (bad.status_code, words in sentence(bad)) == (status, True), sentence(bad)
  assert before.status_code == after.status_code == 200


def test_a_body_that_does_not_say_that_it_is_json_is_told_the_header(server):
  request = ("POST", "/predict", {"inputs": "x", "model": "classifier"})
  (response,) = ask(server, request, **{"content-type": "text/plain"})
  assert response.status_code == 415 and "content-type" in sentence(response)


def test_control_characters_are_text(server):
  response = post(server, "/predict", inputs="a\x00b\x1b[31m\u202e", model="classifier")
  assert response.status_code == 200


@pytest.mark.parametrize(
  ("path", "body", "words"),
  [
    ("/predict", {"inputs": "x", "model": "gpt"}, "cannot predict labels of texts; it can turn"),
    ("/generate", {"prompt": "x", "model": "bert"}, "cannot write text"),
    ("/fill_mask", {"inputs": "x [MASK]", "model": "gpt"}, "cannot fill blanks"),
    ("/fill_mask", {"inputs": "no blank", "model": "bert"}, "there is no [MASK]"),
    ("/fill_mask", {"inputs": "[MASK] " * 17, "model": "bert"}, "17 blanks"),
    ("/encode", {"inputs": "x"}, "several models can do this"),
    ("/attention", {"input": "x", "model": "bert", "head": 9}, "2 heads"),
    ("/generate", {"prompt": "x", "max_length": 1000}, "32 new tokens"),
    ("/generate", {"prompt": "x", "temperature": -1}, "temperature=-1"),
    ("/generate", {"prompt": "x", "beams": 4}, "no beam search"),
    ("/generate", {"prompt": ["x", "y"], "stream": True}, "one text can be streamed"),
    ("/generate", {"prompt": "x", "seed": -1}, "seed"),
    ("/v1/completions", {"prompt": "x", "stop": ["", "a"]}, "none empty"),
  ],
)
def test_a_request_that_a_model_cannot_answer_is_told_why(server, path, body, words):
  response = post(server, path, **body)
  assert response.status_code == 422 and words in sentence(response), sentence(response)


def test_unknown_routes_and_methods_are_named(server):
  missing, wrong = ask(server, ("GET", "/nothing"), ("GET", "/predict"))
  assert (missing.status_code, wrong.status_code) == (404, 405)
  assert "there is no GET /nothing" in sentence(missing)


def test_head_is_answered_as_get_without_a_body(server):
  page, health, predict = ask(server, ("HEAD", "/"), ("HEAD", "/health"), ("HEAD", "/predict"))
  (whole,) = ask(server, ("GET", "/"))
  assert (page.status_code, health.status_code, predict.status_code) == (200, 200, 405)
  assert page.headers == whole.headers and not page.content


def test_a_bad_input_among_several_is_named_by_its_number(server):
  several = [{"text": "the cat"}, {"stars": 5}, "a house"]
  told = post(server, "/predict", inputs=several, model="classifier")
  assert told.status_code == 422 and "file" not in sentence(told).lower()
  assert sentence(told).startswith("input 2: the input has no column for text: ")
  told = post(server, "/fill_mask", inputs=["[MASK]", "the cat"], model="bert")
  assert told.status_code == 422 and sentence(told).startswith("input 2: there is no [MASK]")


def test_no_request_compiles(server):
  heard = server.metrics
  heard.count_compilations()
  for path, body in [
    ("/predict", {"inputs": TEXTS, "model": "classifier"}),
    ("/predict", {"inputs": [" ".join(TEXTS)] * 3, "model": "tagger"}),
    ("/encode", {"inputs": TEXTS * 2, "model": "bert"}),
    ("/fill_mask", {"inputs": ["[MASK] a [MASK] b [MASK]"], "model": "bert"}),
    ("/attention", {"input": TEXTS[0], "model": "bert"}),
    ("/generate", {"prompt": PROMPTS, "max_length": 24, "temperature": 1, "top_k": 3}),
    ("/generate", {"prompt": "the cat by a road", "max_length": 32, "model": "gpt"}),
  ]:
    assert post(server, path, **body).status_code == 200
  assert "plm_jax_compilations_total 0.0" in heard.text().decode()


def test_a_length_that_is_left_out_is_no_more_than_the_server_writes(server):
  assert server.limits.tokens < 64
  made = post(server, "/generate", prompt="the cat")
  assert made.status_code == 200 and made.json()["texts"][0].startswith("the cat")
  told = post(server, "/generate", prompt="the cat", max_length=64)
  assert told.status_code == 422 and "32 new tokens at most" in sentence(told)


@pytest.mark.parametrize("inputs", [{"text": "\ud800"}, {"\ud800": "x"}])
def test_half_a_character_in_an_object_is_refused(server, inputs):
  told = post(server, "/predict", inputs=inputs, model="classifier")
  assert told.status_code == 422 and "half a character" in sentence(told)


def test_at_the_end_requests_that_still_wait_are_told_so():
  waiting = Server(["classifier"], start=False)  # nobody answers
  served = waiting.app.served

  async def both():
    transport = httpx.ASGITransport(waiting.app, raise_app_exceptions=False)
    base = {"content-type": "application/json"}
    async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=base) as client:
      request = asyncio.ensure_future(client.post("/predict", json={"inputs": "the cat"}))
      while not served._waiting:
        await asyncio.sleep(0)
      served.end()
      return await request

  told = asyncio.run(both())
  assert told.status_code == 503 and "the server ends" in sentence(told)
