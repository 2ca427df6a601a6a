"""A stand-in for Google Cloud Storage on this machine: PyPI's emulator, mended in three places.

It answers side by side, with an object's generation, and it keeps to conditions on generations.
"""

import contextlib
import functools
import http.server
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.server import RequestHandler, create_server

NAME = "bucket"


class Bucket:
    """What is in the bucket, and the environment in which it is Google's."""

    def __init__(self, files: Any, port: int):
        self.files, where = files, f"http://127.0.0.1:{port}"
        self.before: Callable[[str], int] = lambda name: 200
        """Called with the name of an object that is to be written: 200 lets it be, another status
        is the answer; 0: there is none."""
        self.outage: int | None = None
        """None: there is none. Else all requests get this status; 0: they get no answer."""
        self.environment = {
            "STORAGE_EMULATOR_HOST": where,
            "TENSORSTORE_GCS_HTTP_URL": where,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "GOOGLE_CLOUD_PROJECT": "none",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def names(self) -> set[str]:
        """Names of the objects."""
        return {item["name"] for item in self.files.get_file_list(NAME)[0]}

    def read(self, name: str) -> bytes:
        """What an object holds."""
        return self.files.get_file(NAME, name)


class _Handler(RequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm, wbufsize = True, -1  # an answer is one packet
    turn = threading.Lock()

    def do_GET(self) -> None:  # noqa: N802
        self._answer(super().do_GET)

    def do_POST(self) -> None:  # noqa: N802
        self._answer(super().do_POST)

    def do_PUT(self) -> None:  # noqa: N802
        self._answer(super().do_PUT)

    def do_DELETE(self) -> None:  # noqa: N802
        self._answer(super().do_DELETE)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""

    def _answer(self, answer: Callable[[], None]) -> None:
        stream, body = self.rfile, self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        told = re.search(rb'"name": *"([^"]+)"', body[:2000])  # gcsfs says it in the body
        self._name = (
            unquote(parts.path.partition("/o/")[2])
            or query.get("name", [""])[0]
            or (told[1].decode() if told and self.command == "POST" else "")
        )
        while self._bucket.outage == 0:
            time.sleep(0.1)
        if status := self._bucket.outage:
            self._refuse(status)
            return
        writes = self.command == "POST" and "upload" in parts.path
        if writes and (status := self._bucket.before(self._name)) != 200:
            if status:
                self._refuse(status)
            self.close_connection = not status
            return
        with self.turn:
            asked = query.get("ifGenerationMatch")
            if asked and self._generation() != asked[0]:
                self._refuse(412)
            else:
                self.rfile = io.BytesIO(body)
                answer()
                self.rfile = stream

    def _refuse(self, status: int) -> None:
        body = json.dumps({"error": {"code": status, "message": "refused"}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        if self.command == "GET" and "/o/" in self.path:
            self.send_header("x-goog-generation", self._generation())
        super().end_headers()

    def _generation(self) -> str:
        with contextlib.suppress(NotFound):
            return self.storage.get_file_obj(NAME, self._name)["generation"]
        return "0"

    @property
    def _bucket(self) -> Bucket:
        return self.server.bucket  # pyright: ignore[reportAttributeAccessIssue]


@contextlib.contextmanager
def served() -> Iterator[Bucket]:
    """Serves an empty bucket for as long as the block runs."""
    files = create_server("127.0.0.1", 0, in_memory=True, default_bucket=NAME)._storage
    handler = functools.partial(_Handler, files)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.bucket = Bucket(files, server.server_port)  # pyright: ignore[reportAttributeAccessIssue]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.bucket  # pyright: ignore[reportAttributeAccessIssue]
        server.shutdown()
