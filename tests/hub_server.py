"""A Hub of our own on 127.0.0.1: the HTTP API through which huggingface_hub, datasets and transformers read and push.

    with HubServer() as hub:
        hub.add_repo("dataset", "user/genomes", {"train.csv": b"sequence\\nACGT\\n"})
        subprocess.run([sys.executable, "read.py"], env=hub.environment(tmp_path))
        assert hub.repositories["dataset", "user/genomes"].files().keys() == {"train.csv"}

The clients read their settings at import, so only a process of its own can use it. Repositories live in memory. The
user NAME has the token `hf_NAME`, reads what is public or below `NAME/` and writes what is below `NAME/`. There are no
spaces, gated repositories, pull requests, pages of long listings or xet. Another module can add to `ROUTES`.
"""

import json
import os
import re
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from hub_pushing import PUSHING
from hub_reading import READING, Answer, Hub, HubError, Request


ROUTES = READING | PUSHING
CUT = "cut"  # in place of a status


class Handler(BaseHTTPRequestHandler):
    hub: "HubServer"
    protocol_version = "HTTP/1.1"  # keeps connections
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with suppress(ConnectionError):  # who streams stops when it has enough
            super().handle()

    def find_answer(self, body: bytes) -> Answer:
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        if url.netloc or self.command == "CONNECT":
            raise HubError(404, "There is no network beyond this Hub")
        for pattern, function in ROUTES.items():
            if match := re.fullmatch(pattern, f"{self.command} {url.path}"):
                groups = {name: text and unquote(text) for name, text in match.groupdict().items()}
                return function(Request(self.hub, query, self.headers, body), **groups)
        raise HubError(404, f"This Hub has no {self.command} {url.path}")

    def answer(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        fault = self.hub.take_fault(self.command, self.path)
        is_cut = fault == CUT
        if is_cut and self.command != "GET":
            self.rfile.read(size // 2)
            self.cut()
            return
        body = self.rfile.read(size)
        try:
            if fault and not is_cut:
                raise HubError(fault, "This Hub fails, as it was told")
            answer = self.find_answer(body)
        except HubError as error:
            answer = Answer({"error": str(error)}, error.status, error.headers)
        except Exception as error:
            self.hub.failures.append(error)
            answer = Answer({"error": repr(error)}, 400)  # a 500 would be retried for half a minute
        content = answer.content if isinstance(answer.content, bytes) else json.dumps(answer.content).encode()
        if not is_cut:
            self.hub.requests.append(f"{answer.status} {self.command} {self.path}")
        self.send_response_only(answer.status)  # prints nothing
        for name, value in (answer.headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if is_cut:
            self.wfile.write(content[: len(content) // 2])
            self.cut()
        else:
            self.wfile.write(content if self.command != "HEAD" else b"")

    def cut(self) -> None:
        self.hub.requests.append(f"cut {self.command} {self.path}")
        self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_CONNECT = answer


class HubServer(Hub):
    """The server as a context manager; `requests` logs what was asked for: "200 GET /api/models/user/name"."""

    def __init__(self):
        super().__init__()
        self.requests: list[str] = []
        self.failures: list[Exception] = []
        self.faults: list[tuple[int | str, str]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("OurHandler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.server.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(self, kind, *_) -> None:
        self.server.shutdown()
        self.server.server_close()
        if self.failures and kind is None:
            raise self.failures[0]

    def fail_next(self, status: int | str, times: int = 1, path_prefix: str = "/") -> None:
        """Answer the next `times` requests of paths that start so with `status`, and do nothing of what they ask.

        The prefix may name the method too: "PUT /lfs/". In place of a status, "cut" closes the connection when half
        of a GET's answer is sent or half of another request's body read. Clients wait 1, 2, 4, 8 and 8 s to retry.
        """
        with self.lock:
            self.faults += [(status, path_prefix)] * times

    def take_fault(self, method: str, path: str) -> int | str | None:
        with self.lock:
            for number, (_, prefix) in enumerate(self.faults):
                if path.startswith(prefix) or f"{method} {path}".startswith(prefix):
                    return self.faults.pop(number)[0]
        return None

    def environment(self, home: Path, user: str | None = None) -> dict[str, str]:
        """For a client process: this Hub, a cache of its own in `home`, `user`'s token, and no other network."""
        settings = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        settings |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | ({"HF_TOKEN": f"hf_{user}"} if user else {})
        # datasets asks at "datasets-server." before our address: as a proxy we refuse that and every other host.
        settings |= {"HTTP_PROXY": self.url, "HTTPS_PROXY": self.url, "NO_PROXY": "127.0.0.1"}
        others = re.compile("(HF|HUGGING|TRANSFORMERS)_.*|.*_proxy", re.IGNORECASE)
        return {name: value for name, value in os.environ.items() if not others.fullmatch(name)} | settings
