"""A stand-in for Google Cloud Storage on this machine: PyPI's emulator, mended in three places.

It serves requests side by side, it answers with an object's generation, and it keeps to
conditions on it: without those a lease could not be tested.
"""

import contextlib
import functools
import http.server
import json
import os
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs, unquote, urlsplit

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.server import RequestHandler, create_server

BUCKET = "bucket"


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

    def _answer(self, answer) -> None:
        with self.turn:
            asked = parse_qs(urlsplit(self.path).query).get("ifGenerationMatch")
            if asked and self._generation() != asked[0]:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                self._refuse()
            else:
                answer()

    def _refuse(self) -> None:
        body = json.dumps({"error": {"code": 412, "message": "conditionNotMet"}}).encode()
        self.send_response(412)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        if self.command == "GET" and "/o/" in self.path:
            self.send_header("x-goog-generation", self._generation())
        super().end_headers()

    def _generation(self) -> str:
        parts = urlsplit(self.path)
        name = parts.path.partition("/o/")[2] or parse_qs(parts.query).get("name", [""])[0]
        with contextlib.suppress(NotFound):
            return self.storage.get_file_obj(BUCKET, unquote(name))["generation"]
        return "0"


@contextlib.contextmanager
def served() -> Iterator[dict[str, str]]:
    """Serves an empty bucket; yields the environment in which it is Google's."""
    made = create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    handler = functools.partial(_Handler, made._storage)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"http://127.0.0.1:{server.server_port}"
        yield {
            "STORAGE_EMULATOR_HOST": where,
            "TENSORSTORE_GCS_HTTP_URL": where,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "GOOGLE_CLOUD_PROJECT": "none",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
        server.shutdown()


if __name__ == "__main__":
    with served() as environment:
        print(*(f"export {k}={v}" for k, v in environment.items()), sep="\n", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait(float(os.environ.get("SECONDS", "600")))
