"""A small stand-in for the Hugging Face hub: the requests that fetching a model makes, locally."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

from tests.gpt2.data.loopback import Answers, serving

COMMIT = "c0ffee" + "0" * 34


@contextmanager
def model_hub(repository: str, files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve the model `repository` ("owner/name").

    Yields:
        The address for HF_ENDPOINT, and the list of files sent so far.
    """
    sent: list[str] = []

    class Handler(Answers):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            file = path.removeprefix(f"/{repository}/resolve/{COMMIT}/")
            if path.startswith(f"/api/models/{repository}/tree/"):
                self._send_json(
                    [
                        {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                        for name, content in files.items()
                    ]
                )
            elif path.startswith(f"/api/models/{repository}"):
                siblings = [{"rfilename": name} for name in files]
                self._send_json({"id": repository, "sha": COMMIT, "siblings": siblings})
            elif file in files:
                if self.command == "GET":
                    sent.append(file)
                etag = f'"{_etag(files[file])}"'
                self.send(200, files[file], {"ETag": etag, "X-Repo-Commit": COMMIT})
            else:
                self.send(404, b"", {"X-Error-Code": "RepoNotFound"})

        def _send_json(self, value: object) -> None:
            self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    with serving(Handler) as address:
        yield address, sent


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
