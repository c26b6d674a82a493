"""The HTTP client against servers that are down, slow, wrong or hostile, over real sockets."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from edgetune.core.errors import AddressError, EdgetuneError, ModelError, UsageError
from edgetune.runners.http_client import Answer, Call, HttpClient, refusal, shortened
from tests.unit.runners.raw_server import RawServer, Reply, Request, http

SOON_S = 0.3


def _ask(server: RawServer, *, max_bytes: int = 1000, timeout_s: float = 5) -> Answer:
    client = HttpClient(server.url, timeout_s)
    try:
        return client.ask(Call("GET", "/", max_bytes=max_bytes))
    finally:
        client.close()


def _check_words(error: EdgetuneError, url: str) -> None:
    """One line that names the server."""
    assert url in error.message
    assert error.message == shortened(error.message, 1000)
    assert error.message.endswith(".")


class TestUrl:
    @pytest.mark.parametrize(
        ("given", "shown"),
        [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
            ("HTTP://Device.Local", "http://device.local"),
            ("https://device.local:", "https://device.local"),
            ("http://[::1]:8000", "http://[::1]:8000"),
        ],
    )
    def test_scheme_host_and_port_are_enough(self, given: str, shown: str) -> None:
        assert HttpClient(given, 1).url == shown

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("", "the scheme is '', expected http or https"),
            ("127.0.0.1:8000", "the scheme is '', expected http or https"),
            ("localhost:8000", "the scheme is 'localhost', expected http or https"),
            ("ftp://host", "the scheme is 'ftp', expected http or https"),
            ("grpc://host:8001", "the scheme is 'grpc', expected http or https"),
            ("http://", "it names no host"),
            ("http://:8000", "it names no host"),
            ("http://host:0", "it names no port"),
            ("http://host:99999", "Port out of range"),
            ("http://host:port", "is no URL"),
            ("http://[::1", "is no URL"),
            ("http://a..b", "is no URL"),
            ("http://host:8000/v2", "it goes on after the host and port"),
            ("http://host:8000?x=1", "it goes on after the host and port"),
            ("http://host:8000#x", "it goes on after the host and port"),
            ("http://ho st", "white space"),
            ("http://host\n", "white space"),
            ("http://host\x00", "white space or control characters"),
            ("http://anna:secret@host", "a user name or password"),
            ("http://anna:secret@host:port", "a user name or password"),
        ],
    )
    def test_anything_else_is_refused(self, url: str, words: str) -> None:
        with pytest.raises(UsageError, match=words) as caught:
            HttpClient(url, 1)
        assert "http://127.0.0.1:8000" in caught.value.hint
        assert "secret" not in caught.value.message
        assert len(caught.value.message.splitlines()) == 1

    @pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
    def test_a_timeout_is_a_time(self, timeout_s: float) -> None:
        with pytest.raises(UsageError, match="expected a number of seconds above 0"):
            HttpClient("http://host", timeout_s)


class TestNoConnection:
    def test_nothing_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(AddressError, match="nothing listens at http://127") as caught:
            HttpClient(url, 1).ask(Call("GET", "/"))
        _check_words(caught.value, url)
        assert "edgetune serve" in caught.value.hint

    def test_an_unknown_host(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        with pytest.raises(AddressError, match="the host name 'nowhere' is not known here: Name or service") as caught:
            HttpClient("http://nowhere:8000", 1).ask(Call("GET", "/"))
        _check_words(caught.value, "http://nowhere:8000")

    def test_a_host_that_takes_no_connection(self) -> None:
        """A listener whose queue is full drops what comes, as a host behind a firewall does."""
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            address = full.getsockname()
            waiting = [socket.socket() for _ in range(4)]
            for sock in waiting:
                sock.setblocking(False)
                sock.connect_ex(address)
            with pytest.raises(AddressError, match=r"took no connection within 0\.3 s"):
                HttpClient(f"http://127.0.0.1:{address[1]}", SOON_S).ask(Call("GET", "/"))
            for sock in waiting:
                sock.close()

    def test_https_where_http_is_spoken(self) -> None:
        """The server sees no request, says so in plain text, and closes."""
        with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
            done = pool.submit(_answer_once, listener, http(b"", "400 Bad Request"))
            client = HttpClient(f"https://127.0.0.1:{listener.getsockname()[1]}", 5)
            with pytest.raises(AddressError, match=r"no TLS connection: .*SSL") as caught:
                client.ask(Call("GET", "/"))
            done.result(timeout=10)
        assert "http:// in place of https://" in caught.value.hint


def _answer_once(listener: socket.socket, reply: bytes, reads: bool = True) -> None:
    """Answers before it has read what was asked, and then reads that, or closes, which resets the connection."""
    connection, _ = listener.accept()
    with connection:
        connection.sendall(reply)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while connection.recv(1 << 16) and reads:
                pass


def _endless(head: bytes, part: bytes) -> Callable[[Request], Iterator[bytes]]:
    def reply(_: Request) -> Iterator[bytes]:
        yield head
        while True:
            yield part

    return reply


OK = b"HTTP/1.1 200 OK\r\n"


class TestAnswers:
    def test_a_good_one(self) -> None:
        with RawServer({"/": http(b"abc", X_Kind="good")}) as server:
            answer = _ask(server)
        assert (answer.status, answer.body, answer.headers["x-kind"]) == (200, b"abc", "good")
        assert server.requests[0].headers["accept-encoding"] == "identity"

    def test_one_in_chunks_and_one_until_the_end(self) -> None:
        chunked = OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
        with RawServer({"/": chunked}) as server:
            assert _ask(server).body == b"abc"
        with RawServer({"/": OK + b"\r\nabc"}, keeps=False) as server:
            assert _ask(server).body == b"abc"

    @pytest.mark.parametrize(
        ("reply", "words"),
        [
            (b"SSH-2.0-OpenSSH_9.6\r\n", "no HTTP: BadStatusLine: SSH-2.0"),
            (b"\x00\xff\x1b[31m\r\n", "no HTTP: BadStatusLine"),
            (b"HTTP/1.1 two hundred\r\n\r\n", "no HTTP: BadStatusLine"),
            (OK + b"X: y\r\n" * 200 + b"\r\n", "no HTTP: HTTPException: got more than 100 headers"),
            (OK + b"X: " + b"y" * 70000, "no HTTP: LineTooLong"),
            (b"", "closed without an answer"),
            (OK + b"Content-Length: 10\r\n\r\nabc", "the answer ends after 3 of 10 bytes"),
            (OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\nabc", "ended in the middle of the answer"),
            (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc", "ended in the middle of the answer"),
            (http(b"abc", Content_Encoding="gzip"), "encoded as 'gzip', expected plain bytes"),
            (http(b"x" * 1001), "the answer has 1001 bytes, at most 1000 were expected"),
            (OK + b"\r\n" + b"x" * 1001, "the answer has more than 1000 bytes"),
            (OK + b"Content-Length: 99999999999999\r\n\r\n", "99999999999999 bytes, at most 1000"),
            (http(b"", "302 Found", Location="http://other/"), "HTTP 302, a redirect to http://other/, which is not"),
            (http(b"", "308 Permanent Redirect"), "HTTP 308, a redirect to nowhere"),
        ],
        ids=["ssh", "noise", "status", "headers", "long header", "nothing", "short", "short chunk", "bad chunk", "gzip",
             "large", "large to the end", "announced large", "redirect", "redirect nowhere"],
    )  # fmt: skip
    def test_a_bad_one_is_told_in_one_line(self, reply: bytes, words: str) -> None:
        with RawServer({"/": reply}, keeps=False) as server:
            with pytest.raises(ModelError, match=words) as caught:
                _ask(server)
            _check_words(caught.value, server.url)

    @pytest.mark.parametrize(
        "reply",
        [
            _endless(OK + b"\r\n", b"x" * 65536),
            _endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
        ],
        ids=["to the end", "chunked"],
    )
    def test_an_endless_one_is_left(self, reply: Reply) -> None:
        with RawServer({"/": reply}) as server:
            with pytest.raises(ModelError, match="more than 100000 bytes, at most 100000 were expected"):
                _ask(server, max_bytes=100_000, timeout_s=20)
            server.pause(0.1)
        assert server.sent < 20e6  # what the sockets' buffers took; unbounded, it would be gigabytes

    @pytest.mark.parametrize("head", [b"", b"HT", OK, OK + b"Content-Length: 9\r\n\r\n"], ids=str)
    @pytest.mark.parametrize("pause_s", [60, SOON_S / 5], ids=["hangs", "drips"])
    def test_a_slow_one_is_not_waited_for(self, head: bytes, pause_s: float) -> None:
        """A byte now and then keeps each read short, and the whole without end."""

        def reply(_: Request) -> Iterator[bytes]:
            yield head
            for _step in range(400):
                server.pause(pause_s)
                yield b"x" if head else b"H"

        with RawServer({"/": reply}) as server:
            began = time.monotonic()
            with pytest.raises(ModelError, match=r"no whole answer within 0\.3 s") as caught:
                _ask(server, timeout_s=SOON_S)
            assert time.monotonic() - began < 10 * SOON_S
            _check_words(caught.value, server.url)

    def test_an_error_is_an_answer_of_which_the_beginning_is_kept(self) -> None:
        with RawServer({"/": http(b"e" * 200_000, "500 Oops")}) as server:
            answer = _ask(server)
        assert answer.status == 500
        assert 65536 < len(answer.body) < 200_000
        assert refusal(answer) == f"{server.url} (GET /): HTTP 500: {'e' * 300}...".rstrip(".") + "."

    def test_the_words_of_an_error_fit_a_terminal(self) -> None:
        with RawServer({"/": http({"error": "no\x1b[2Jgood\r\nmodel  here."}, "404 Not Found")}) as server:
            assert refusal(_ask(server)) == f"{server.url} (GET /): HTTP 404: no [2Jgood model here."
        with RawServer({"/": http(b"", "502 Bad Gateway")}) as server:
            assert refusal(_ask(server)) == f"{server.url} (GET /): HTTP 502: without a word."


class TestBusy:
    def test_one_more_try_after_the_pause(self) -> None:
        replies = iter([http({"error": "busy"}, "503 Busy", Retry_After="1"), http(b"ok")])
        with RawServer({"/": lambda _: [next(replies)]}) as server:
            began = time.monotonic()
            assert _ask(server).body == b"ok"
        assert 1 <= time.monotonic() - began < 5

    def test_and_no_third(self) -> None:
        with RawServer({"/": http({"error": "busy"}, "503 Busy", Retry_After="0")}) as server:
            assert _ask(server).status == 503
        assert len(server.requests) == 2


class TestKeptConnection:
    def test_one_connection_serves_all_calls(self) -> None:
        with RawServer({"/": http(b"ok"), "/e": http(b"no", "404 Not Found")}) as server:
            client = HttpClient(server.url, 5)
            assert [client.ask(Call("GET", path)).status for path in ("/", "/e", "/", "/")] == [200, 404, 200, 200]
            client.close()
        assert (server.connections, client.connections) == (1, 1)

    def test_one_that_the_server_closed_is_made_again(self) -> None:
        with RawServer({"/": http(b"ok")}, keeps=False) as server:
            client = HttpClient(server.url, 5)
            for _ in range(3):
                assert client.ask(Call("POST", "/", b"x" * 100_000)).body == b"ok"
                server.pause(0.05)
            client.close()
        assert (server.connections, client.connections, len(server.requests)) == (3, 3, 3)

    def test_a_server_that_breaks_off_is_asked_twice_and_no_more(self) -> None:
        replies = iter([http(b"ok")])

        def reply(_: Request) -> Iterator[bytes]:
            yield next(replies, b"")
            if len(server.requests) > 1:
                raise ConnectionResetError

        with RawServer({"/": reply}) as server:
            client = HttpClient(server.url, 5)
            assert client.ask(Call("GET", "/")).body == b"ok"
            with pytest.raises(ModelError, match="closed without an answer"):
                client.ask(Call("GET", "/"))
        assert len(server.requests) == 3

    @pytest.mark.parametrize("status", ["200 OK", "500 Oops"])
    def test_after_an_answer_that_was_left_the_next_is_not_its_rest(self, status: str) -> None:
        replies = iter([http(b"x" * 300_000, status), http(b"mine")])
        with RawServer({"/": lambda _: [next(replies)]}) as server:
            client = HttpClient(server.url, 5)
            with contextlib.suppress(ModelError):  # too large, where it is no error
                assert client.ask(Call("GET", "/", max_bytes=10)).status == 500
            assert client.ask(Call("GET", "/")).body == b"mine"
            client.close()

    @pytest.mark.parametrize("reads", [True, False], ids=["reads on", "closes at once"])
    def test_an_answer_before_the_body_was_read_is_seen(self, reads: bool) -> None:
        """As a server answers 413 by the announced length alone."""
        with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
            done = pool.submit(_answer_once, listener, http({"error": "too large"}, "413 Too Large"), reads)
            client = HttpClient(f"http://127.0.0.1:{listener.getsockname()[1]}", 5)
            answer = client.ask(Call("POST", "/", b"x" * 5_000_000))
            client.close()
            done.result(timeout=10)
        assert (answer.status, answer.body) == (413, b'{"error": "too large"}')
