"""A local file server that misbehaves in many ways."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves `content` at every path, with the fault `fault`; `ranges` has the range of every request."""

    def __init__(self, content=b""):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.fault, self.ranges = content, "", []

    def handle_error(self, request, client_address):
        """Clients that close the connection are part of the test."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/zips/file.zip"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        fault, content = self.server.fault, self.server.content
        self.server.ranges.append(self.headers.get("Range"))
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if fault.startswith("no ranges"):
            start = 0
        if fault in ("404", "503"):
            return self.send_error(int(fault))
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {0 if fault == 'wrong range' else start}-{len(content) - 1}/*")
        length = len(content) - start + {"too long": 1000, "too short": -1000}.get(fault, 0)
        if fault != "no length":
            self.send_header("Content-Length", "9" * 5000 if fault == "absurd length" else str(length))
        self.end_headers()
        body = content[start:]
        if (fault == "breaks off" and len(self.server.ranges) < 4) or (fault == "breaks off forever" and start == 0):
            body = body[: 10**6]
        elif fault == "breaks off forever":
            body = b""
        if fault == "no ranges, breaks off here and there":
            body = body[: 10**6 // (1 + len(self.server.ranges) % 2)]
        self.wfile.write(body[:length])
        return None

    def log_message(self, *_):
        pass
