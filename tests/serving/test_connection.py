"""A connection: headers that come late, and bytes that are no HTTP, are answered in a sentence."""

import asyncio
import json

import pytest
import uvicorn
from uvicorn.server import ServerState

from plm_jax.serving.connection import MOST_HEADERS, Connection


class Clock:
  """An event loop whose timers fire when `tick` is called."""

  def __init__(self):
    self.create_task = asyncio.get_running_loop().create_task
    self._timers = []

  def call_later(self, seconds, call):
    loop = asyncio.get_running_loop()
    timer = asyncio.TimerHandle(0, call, (), loop)
    self._timers.append((seconds, timer))
    return timer

  def tick(self, most):
    """Fires the timers of at most so many seconds."""
    due = [timer for seconds, timer in self._timers if seconds <= most]
    self._timers = [(seconds, timer) for seconds, timer in self._timers if seconds > most]
    for timer in due:
      if not timer.cancelled():
        timer._run()


class Wire(asyncio.Transport):
  """A connection in memory: it keeps what was sent."""

  def __init__(self):
    super().__init__()
    self.sent, self.closed = b"", False

  def write(self, data):
    self.sent += data

  def close(self):
    self.closed = True

  def is_closing(self):
    return self.closed

  def pause_reading(self):
    pass

  def resume_reading(self):
    pass


async def echo(scope, receive, send):
  """An application that answers with the body."""
  body, more = b"", True
  while more:
    message = await receive()
    body, more = body + message["body"], message["more_body"]
  headers = [(b"content-length", str(len(body)).encode())]
  await send({"type": "http.response.start", "status": 200, "headers": headers})
  await send({"type": "http.response.body", "body": body})


SECONDS = 3  # for headers; uvicorn's timer of idle connections has 5


def opened():
  """(connection, wire, clock) of a new connection."""
  config = uvicorn.Config(echo, ws="none", lifespan="off", log_config=None)
  clock, wire = Clock(), Wire()
  connection = Connection(config, ServerState(), {}, _loop=clock, seconds=SECONDS)
  connection.connection_made(wire)
  return connection, wire, clock


async def idle():
  """Lets the tasks of the application run to their next wait."""
  for _ in range(10):
    await asyncio.sleep(0)


def answer(wire):
  """(status, message) of an error that ended the connection."""
  head, _, body = wire.sent.partition(b"\r\n\r\n")
  assert wire.closed and b"connection: close" in head
  return int(head.split()[1]), json.loads(body)["error"]["message"]


@pytest.mark.parametrize("begun", [b"G", b"GET / HTTP/1.1\r\nhost: x\r\nslow: "])
def test_headers_that_do_not_arrive_in_time_are_refused(begun):
  async def talk():
    connection, wire, clock = opened()
    connection.data_received(begun)
    clock.tick(SECONDS)
    return answer(wire)

  status, message = asyncio.run(talk())
  assert status == 408 and "headers" in message


def test_a_connection_without_a_request_is_closed_without_an_answer():
  async def talk():
    _, wire, clock = opened()
    clock.tick(SECONDS)
    assert wire.closed and not wire.sent

  asyncio.run(talk())


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_bytes_that_are_no_http_are_answered_in_json(data):
  async def talk():
    connection, wire, _ = opened()
    connection.data_received(data)
    return answer(wire)

  status, message = asyncio.run(talk())
  assert status == 400 and "HTTP" in message


def test_headers_have_a_limit_of_size():
  async def talk():
    connection, wire, _ = opened()
    connection.data_received(b"GET / HTTP/1.1\r\nhost: x\r\n")
    for number in range(20):
      assert not wire.closed
      connection.data_received(b"h%d: " % number + b"x" * 4000 + b"\r\n")
      if wire.closed:
        break
    assert number == MOST_HEADERS // 4000
    return answer(wire)

  status, message = asyncio.run(talk())
  assert status == 431 and "more than 65,536 bytes" in message


def test_the_time_for_headers_ends_no_request_that_is_answered():
  async def talk():
    connection, wire, clock = opened()
    connection.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\r\nab")
    clock.tick(SECONDS)  # the guard limits the time of a body
    await idle()
    connection.data_received(b"cd" + b"ef" + b"POST / HTTP/1.1\r\nhost: x\r\n")
    clock.tick(SECONDS)
    await idle()
    assert wire.sent.endswith(b"abcdef") and not wire.closed
    connection.data_received(b"content-length: 2\r\n\r\ngh")
    await idle()
    assert wire.sent.endswith(b"gh") and not wire.closed
    connection.data_received(b"POST")
    clock.tick(SECONDS)
    assert b"408" in wire.sent and wire.closed

  asyncio.run(talk())
