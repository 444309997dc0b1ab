"""A small stand-in for the Hugging Face hub: the requests that `datasets` makes, over loopback."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

from tests.gpt2.data.loopback import Answers, serving

COMMIT = "c0ffee" + "0" * 34


@contextmanager
def hub(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """Serve data sets: for each "owner/name" its files by path.

    Yields:
        The address for HF_ENDPOINT, and the list of requests so far.
    """
    requests: list[str] = []

    class Handler(Answers):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            requests.append(path)
            for name, files in repositories.items():
                if path.startswith(f"/api/datasets/{name}"):
                    self._describe(path, name, files)
                    return
                if path.startswith(f"/datasets/{name}/resolve/"):
                    self._send_file(path.split("/resolve/")[1], files)
                    return
            self.send(404, b"", {"X-Error-Code": "RepoNotFound"})

        def _describe(self, path: str, name: str, files: Mapping[str, bytes]) -> None:
            if "/tree/" not in path:
                siblings = [{"rfilename": file} for file in files]
                info = {"id": name, "sha": COMMIT, "private": False, "disabled": False}
                self._send_json({**info, "gated": False, "tags": [], "siblings": siblings})
                return
            folder = path.split("/tree/")[1].partition("/")[2]
            prefix = f"{folder}/" if folder else ""
            entries: dict[str, dict[str, object]] = {}
            for file, content in files.items():
                if file.startswith(prefix):
                    child, _, deeper = file.removeprefix(prefix).partition("/")
                    entries[child] = {
                        "type": "directory" if deeper else "file",
                        "path": prefix + child,
                        "size": 0 if deeper else len(content),
                        "oid": hashlib.sha1(content).hexdigest(),
                    }
            if folder and not entries:
                self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            self._send_json(list(entries.values()))

        def _send_file(self, revision_and_file: str, files: Mapping[str, bytes]) -> None:
            file = next((file for file in files if revision_and_file.endswith(f"/{file}")), None)
            if file is None:
                self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            content, status, headers = files[file], 200, {"X-Repo-Commit": COMMIT}
            headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
            if ranged := self.headers.get("Range"):
                first, last = ranged.removeprefix("bytes=").split("-")
                end = min(int(last or len(content)), len(content) - 1)
                headers["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
                content, status = content[int(first) : end + 1], 206
            self.send(status, content, headers)

        def _send_json(self, value: object) -> None:
            self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    with serving(Handler) as address:
        yield address, requests
