"""An HTTP server that gives prepared answers, for the tests of clients."""

import contextlib
import http.server
import json
import ssl
import threading
import time


class Prepared:
    """An HTTP server of one url; keeps what it received.

    Attributes:
        url: str, of its model.
        answers: list of callables that take the request handler, for one request each; the last one stays.
        received: list of parsed JSON, None for a GET.
        headers: list of the headers of each.
        connections: int, how many were opened.
    """

    def __init__(self):
        self.answers, self.received, self.headers, self.connections = [], [], [], 0
        prepared = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # keeps connections

            def setup(self):
                prepared.connections += 1
                super().setup()

            def do_GET(self):
                prepared.headers.append(self.headers)
                size = int(self.headers.get("Content-Length", 0))
                prepared.received.append(json.loads(self.rfile.read(size)) if size else None)
                answers = prepared.answers
                (answers.pop(0) if len(answers) > 1 else answers[0])(self)

            do_POST = do_GET

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/models/tiny/versions/3"


@contextlib.contextmanager
def running(tls: ssl.SSLContext | None = None):
    """Runs a server, over TLS where there is a context for it, until the block ends."""
    prepared = Prepared()
    if tls:
        prepared.server.socket = tls.wrap_socket(prepared.server.socket, server_side=True)
        prepared.url = prepared.url.replace("http:", "https:")
    thread = threading.Thread(target=prepared.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield prepared
    finally:
        prepared.server.shutdown()
        prepared.server.server_close()
        thread.join()


def reply(answer, status=200, **headers):
    content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()

    def send(handler):
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return send


def hang_up(handler):
    handler.close_connection = True


def stall(handler):
    time.sleep(1)
    hang_up(handler)
