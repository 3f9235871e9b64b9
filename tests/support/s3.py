"""An S3 server on this machine (moto's), which can be told to misbehave."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.test import Client
from werkzeug.wrappers import Response

STALL_SECONDS = 0.5

Fault = Callable[[Response], Response]


def unavailable(answer: Response) -> Response:  # noqa: ARG001
    return Response("<Error><Code>SlowDown</Code></Error>", status=503)


def forbidden(answer: Response) -> Response:  # noqa: ARG001
    return Response("<Error><Code>AccessDenied</Code></Error>", status=403)


def stalled(answer: Response) -> Response:
    time.sleep(STALL_SECONDS)
    return answer


def cut_off(answer: Response) -> Response:
    """Half of the body, and then the connection ends."""
    data = answer.get_data()
    headers = [(name, value) for name, value in answer.headers if name != "Content-Length"]
    half = [data[: len(data) // 2]]
    return Response(half, answer.status, [*headers, ("Content-Length", str(len(data)))])


def short(answer: Response) -> Response:
    """Half of the body, as if that were all."""
    data = answer.get_data()
    answer.set_data(data[: len(data) // 2])
    return answer


def flipped(answer: Response) -> Response:
    """One bit is another."""
    data = bytearray(answer.get_data())
    data[len(data) // 3] ^= 1
    answer.set_data(bytes(data))
    return answer


class _Quiet(WSGIRequestHandler):
    def log(self, *_: object) -> None:
        pass


class S3:
    """Attributes: endpoint; requests (paths of the GETs so far); fault, which befalls the next num_faults."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._client = Client(self._moto)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self.endpoint = f"http://127.0.0.1:{self._server.port}"
        self.clear()
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def clear(self) -> None:
        self.requests: list[str] = []
        self.fault: Fault | None = None
        self.num_faults = 0

    def misbehave(self, fault: Fault, *, num_times: int = 1_000) -> None:
        self.fault, self.num_faults = fault, num_times

    def _answer(self, environ: dict[str, Any], start: Any) -> Any:
        answer = Response.from_app(self._moto, environ)
        if environ["REQUEST_METHOD"] == "GET":
            self.requests.append(environ["PATH_INFO"])
            if self.fault and self.num_faults > 0:
                self.num_faults -= 1
                answer = self.fault(answer)
        return answer(environ, start)

    def put(self, bucket: str, key: str, data: bytes) -> None:
        assert (
            self._client.put(f"/{bucket}/{key}", self.endpoint, data=data, headers=_AUTH).status_code == 200
        )

    def upload(self, folder: Path, bucket: str, key: str) -> str:
        """Make the objects below `key` a copy of the folder; their URL."""
        assert self._client.put(f"/{bucket}", self.endpoint, headers=_AUTH).status_code == 200
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(bucket, f"{key}/{path.relative_to(folder)}", path.read_bytes())
        return f"s3://{bucket}/{key}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


_AUTH = {"Authorization": "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request"}


@contextlib.contextmanager
def serving() -> Iterator[S3]:
    server = S3()
    try:
        yield server
    finally:
        server.close()
