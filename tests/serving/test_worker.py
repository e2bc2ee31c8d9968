"""Batches of requests, a bounded queue, errors, timeouts, and clients that leave."""

import asyncio
import dataclasses
import queue
import threading

import httpx
import pytest

from plm_jax.decode.continuous import Text
from plm_jax.decode.rules import Rules
from plm_jax.errors import UserError
from plm_jax.serving.app import create_app
from plm_jax.serving.guard import Guard
from plm_jax.serving.limits import Limits, Refused
from plm_jax.serving.metrics import Metrics
from plm_jax.serving.worker import GrowingText, Worker

LIMITS = Limits(batch=8, wait=0.0, queue=16, slots=2)


class Doubled:
  """Doubles numbers. Each call waits for `go`; `calls` are the batches."""

  name = "double"

  def __init__(self):
    self.calls, self.begun, self.go = [], threading.Semaphore(0), threading.Event()

  def run(self, items):
    self.calls.append(list(items))
    self.begun.release()
    assert self.go.wait(60)
    if 13 in items:
      raise UserError("13 has no double")
    if 666 in items:
      raise ZeroDivisionError("a bug")
    return [2 * item for item in items]


@pytest.fixture
def worker():
  made = Worker("toy", LIMITS, Metrics(), None)
  made.start()
  yield made
  made.close(60)


async def until(semaphore):
  await asyncio.to_thread(semaphore.acquire)


def test_what_waits_is_computed_together_in_sizes_that_are_compiled(worker):
  kind = Doubled()

  async def main():
    first = worker.submit(kind, [(0, 8)])
    await until(kind.begun)  # the thread is busy now
    rest = [worker.submit(kind, [(n, 8)])[0] for n in range(1, 8)]
    longer = worker.submit(kind, [(100, 16)])
    kind.go.set()
    return await asyncio.gather(*first, *rest, *longer)

  assert asyncio.run(main()) == [*range(0, 16, 2), 200]
  assert kind.calls == [[0], [1, 2, 3, 4], [5, 6], [7], [100]]


def test_an_error_reaches_only_the_request_that_caused_it(worker, caplog):
  kind = Doubled()

  async def main():
    first = worker.submit(kind, [(0, 8)])
    await until(kind.begun)
    rest = worker.submit(kind, [(n, 8) for n in (1, 13, 2, 666)])
    kind.go.set()
    return await asyncio.gather(*first, *rest, return_exceptions=True)

  _, one, user, two, bug = asyncio.run(main())
  assert (one, two) == (2, 4)
  assert (user.status, user.sentence) == (422, "13 has no double")
  assert bug.status == 500 and "a bug" not in bug.sentence and "a bug" in caplog.text


def test_a_full_queue_refuses_and_then_takes_requests_again(worker):
  kind = Doubled()

  async def main():
    first = worker.submit(kind, [(0, 8)])
    await until(kind.begun)
    rest = worker.submit(kind, [(1, 8)] * 16)
    with pytest.raises(Refused) as refused:
      worker.submit(kind, [(99, 8)])
    kind.go.set()
    await asyncio.gather(*first, *rest)
    return refused.value, await worker.submit(kind, [(99, 8)])[0]

  refused, after = asyncio.run(main())
  assert refused.status == 429 and "16 places" in refused.sentence and after == 198


def test_the_work_of_a_client_that_has_left_is_dropped(worker):
  kind = Doubled()

  async def main():
    first = worker.submit(kind, [(0, 8)])
    await until(kind.begun)
    gone, kept = worker.submit(kind, [(1, 8), (2, 8)])
    gone.cancel()
    kind.go.set()
    return await asyncio.gather(*first, kept)

  assert asyncio.run(main()) == [0, 4]
  assert kind.calls == [[0], [2]]


class ToyBatch:
  """Texts of the tokens 0, 1, 2, ...; each step waits for `go`."""

  def __init__(self, slots=2):
    self.texts, self.go, self.slots = [], threading.Semaphore(0), slots

  @property
  def is_full(self):
    return len(self.texts) == self.slots

  def start(self, text):
    if text.prompt == "bad":
      raise UserError("no such prompt")
    text.ids.append(0)
    self.texts.append(text)

  def step(self):
    assert self.go.acquire(timeout=60)
    for text in self.texts:
      text.ids.append(len(text.ids))
      text.done = len(text.ids) >= text.rules.max_length
    self.texts = [text for text in self.texts if not text.done]

  def stop(self, text):
    text.done = True
    self.texts.remove(text)


def growing(length, heard, prompt="good"):
  text = Text(prompt, Rules(max_length=length))
  return GrowingText(text, lambda error: heard.put((text, list(text.ids), error)))


def test_texts_join_while_others_grow_and_stop_when_their_client_leaves():
  batch, heard = ToyBatch(), queue.Queue()
  worker = Worker("toy", LIMITS, Metrics(), batch)
  worker.start()
  long, short, late = growing(9, heard), growing(3, heard), growing(2, heard)
  worker.write([long, short, late])  # the third waits for a slot
  assert {heard.get()[0] for _ in range(2)} == {long.text, short.text}
  batch.go.release(2)
  assert [len(heard.get()[1]) for _ in range(4)] == [2, 2, 3, 3]
  assert heard.get()[0] is late.text and short.text.done
  long.is_wanted = False
  batch.go.release(1)  # the step that has begun
  batch.go.release(8)
  worker.close(60)
  assert len(long.text.ids) < 9 and late.text.done


def test_a_bad_prompt_spoils_no_other():
  batch, heard = ToyBatch(), queue.Queue()
  batch.go.release(9)
  worker = Worker("toy", LIMITS, Metrics(), batch)
  worker.start()
  bad, good = growing(3, heard, "bad"), growing(3, heard)
  worker.write([bad, good])
  worker.close(60)
  answers = [heard.get_nowait() for _ in range(heard.qsize())]
  assert [error.status for text, _, error in answers if text is bad.text] == [422]
  assert good.text.ids == [0, 1, 2]


# --- through the application ----------------------------------------------------------------------


@pytest.fixture
def held(server):
  """The application with a limit of time, and a classifier that waits for `go`."""
  kind, model = Doubled(), next(m for m in server.models if m.name == "classifier")
  kind.prepare = lambda text: (len(text), 8)
  limits = dataclasses.replace(server.limits, timeout=0.2)
  real, model.kinds = model.kinds, {**model.kinds, "predict": kind}
  metrics = Metrics()
  yield Guard(create_app(server.models, limits, metrics), limits, metrics, None), kind
  kind.go.set()
  model.kinds = real


@pytest.mark.slow
def test_a_request_without_an_answer_in_time_gets_503_and_is_dropped(held):
  app, kind = held

  async def main():
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
      body = {"inputs": "abc", "model": "classifier"}
      return [await client.post("/predict", json=body) for _ in range(2)]

  first, second = asyncio.run(main())
  assert first.status_code == second.status_code == 503
  assert "no answer within 0.2 seconds" in first.json()["error"]["message"]
  kind.go.set()
  assert kind.calls == [[3]]  # the second was cancelled while it waited
  assert first.headers["retry-after"] == "1"


def test_the_wait_of_a_client_that_leaves_ends(held):
  app, kind = held
  sent = []

  async def request(leaves):
    messages = [{"type": "http.request", "body": b'{"inputs": "abc", "model": "classifier"}'}]

    async def receive():
      if messages:
        return messages.pop()
      await leaves.wait()
      return {"type": "http.disconnect"}

    async def send(message):
      sent.append(message)

    scope = {
      "type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict",
      "query_string": b"", "http_version": "1.1", "scheme": "http", "server": ("x", 80),
      "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    await app(scope, receive, send)

  async def main():
    leaves = asyncio.Event()
    tasks = [asyncio.create_task(request(leaves)) for _ in range(2)]
    begun = asyncio.create_task(until(kind.begun))
    await asyncio.wait({begun, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    leaves.set()
    await asyncio.gather(*tasks)

  asyncio.run(main())
  assert [m["status"] for m in sent if m["type"] == "http.response.start"] == [499, 499]


@pytest.mark.parametrize(
  ("header", "status"), [({}, 401), ({"authorization": "Bearer no"}, 401),
                         ({"authorization": "Bearer secret"}, 200)]
)  # fmt: skip
def test_a_key_is_needed_for_the_models_and_not_for_the_page(server, header, status):
  metrics = Metrics()
  app = create_app(server.models, server.limits, metrics)
  locked = Guard(app, server.limits, metrics, "secret")

  async def main():
    transport = httpx.ASGITransport(locked)
    async with httpx.AsyncClient(
      transport=transport, base_url="http://x", headers=header
    ) as client:
      return [await client.get(path) for path in ("/v1/models", "/metrics", "/", "/health")]

  models, metrics, page, health = asyncio.run(main())
  assert models.status_code == metrics.status_code == status
  assert page.status_code == health.status_code == 200
  assert "'none'" in page.headers["content-security-policy"]
