"""An S3 store of this machine's own, and a way to it that fails now and then."""

from __future__ import annotations

import http.client
import logging
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from moto.server import ThreadedMotoServer

KEY, SECRET = "AKIATESTONLY12345678", "not-a-real-secret/0123456789abcdefghijkl"
STALL_S = 4.0

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
_DENIED = b"<Error><Code>InvalidAccessKeyId</Code><Message>The key is not in our records.</Message></Error>"


@contextmanager
def s3_server() -> Iterator[str]:
    """Yield the address of an empty store."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def credentials(endpoint: str, **extra: str) -> dict[str, str]:
    """Environment in which a process finds the store and is let in."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
        **extra,
    }


@contextmanager
def flaky(endpoint: str, shares: dict[str, float], seed: int) -> Iterator[tuple[str, Counter[str]]]:
    """Yield the address of a proxy before a store, and the count of what it did to requests.

    Each request has a fault with the given chance: "busy" and "gateway" answer 503, with S3's own body and with none,
    "reset" drops the connection, "stall" says nothing for a while, "torn" breaks off in the middle of a body. Keys
    other than :data:`KEY` are refused.
    """
    chance, lock, seen = random.Random(seed), threading.Lock(), Counter[str]()
    store = urlsplit(endpoint)

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def serve(self) -> None:
            self.close_connection = True
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = self.fault()
            if fault in ("busy", "gateway"):
                self.answer(503, {}, _SLOW_DOWN if fault == "busy" else b"")
            elif fault == "denied":
                self.answer(403, {"Content-Type": "application/xml"}, _DENIED)
            elif fault == "reset":
                self.connection.shutdown(socket.SHUT_RDWR)
            elif fault == "stall":
                time.sleep(STALL_S)
            else:
                onward = http.client.HTTPConnection(store.hostname or "", store.port or 0, timeout=30)
                onward.request(self.command, self.path, body, dict(self.headers.items()))
                reply = onward.getresponse()
                data = reply.read()
                hop = ("connection", "transfer-encoding", "content-length", "date", "server")
                headers = {k: v for k, v in reply.getheaders() if k.lower() not in hop}
                size = reply.getheader("Content-Length") if self.command == "HEAD" else None
                self.answer(reply.status, headers, data, torn=fault == "torn", size=size)
                onward.close()

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = serve

        def fault(self) -> str:
            with lock:
                point, found = chance.random(), "none"
                for name, share in shares.items():
                    point -= share
                    if point < 0:
                        found = name
                        break
                if KEY not in self.headers.get("Authorization", ""):
                    found = "denied"
                elif found == "torn" and self.command != "GET":
                    found = "none"
                seen[found] += 1
            return found

        def answer(
            self, status: int, headers: dict[str, str], body: bytes, *, torn: bool = False, size: str | None = None
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", size or str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if torn else body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
