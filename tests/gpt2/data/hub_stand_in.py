"""A small stand-in for the Hugging Face hub over loopback: the requests that its libraries make."""

import hashlib
import json
import threading
from base64 import b64decode
from collections.abc import Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@contextmanager
def hub(repositories, kind="datasets"):
    """Serve data sets, or "models": for each "owner/name" its files by path. What is uploaded with
    a token is served from then on; "me" is the only owner who may.

    Yields:
        The address for HF_ENDPOINT, and the list of files sent so far.
    """
    sent: list[str] = []
    root = "/datasets" if kind == "datasets" else ""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            for name, files in repositories.items():
                if path.startswith(f"/api/{kind}/{name}"):
                    return self._describe(path, name, files)
                if path.startswith(f"{root}/{name}/resolve/"):
                    return self._send_file(path.split("/resolve/")[1], files)
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

        def do_POST(self) -> None:
            path = urlsplit(self.path).path
            body = self.rfile.read(int(self.headers["Content-Length"]))
            name = "/".join(path.split("/")[3:5])
            if path == "/api/validate-yaml":
                valid = json.loads(body)["content"].startswith("---\nlicense: ")
                self._send_json({"errors": [] if valid else [{"message": "no license"}]})
            elif self.headers["Authorization"] != "Bearer of-me":
                self._send(401, b"{}", {"X-Error-Message": "no token"})
            elif path == "/api/repos/create":
                created = json.loads(body)
                name = f"{created.get('organization', 'me')}/{created['name']}"
                if not name.startswith("me/"):
                    self._send(403, b"{}", {"X-Error-Message": "not yours"})
                    return
                assert created.get("private") or created["visibility"] == "private"
                repositories.setdefault(name, {})
                self._send_json({"url": f"https://huggingface.co/{name}"})
            elif "/preupload/" in path:
                plain = {"uploadMode": "regular", "shouldIgnore": False}
                files = [{**plain, "path": file["path"]} for file in json.loads(body)["files"]]
                self._send_json({"files": files})
            else:
                entries = [json.loads(line) for line in body.splitlines()]
                for entry in (e["value"] for e in entries if e["key"] == "file"):
                    repositories[name][entry["path"]] = b64decode(entry["content"])
                url = f"https://huggingface.co/{name}/commit/{COMMIT}"
                self._send_json({"commitUrl": url, "commitOid": COMMIT})

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
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            else:
                self._send_json(list(entries.values()))

        def _send_file(self, revision_and_file: str, files: Mapping[str, bytes]) -> None:
            file = next((file for file in files if revision_and_file.endswith(f"/{file}")), None)
            if file is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            if self.command == "GET":
                sent.append(file)
            content, status, headers = files[file], 200, {"X-Repo-Commit": COMMIT}
            headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
            if ranged := self.headers.get("Range"):
                first, last = ranged.removeprefix("bytes=").split("-")
                end = min(int(last or len(content)), len(content) - 1)
                headers["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
                content, status = content[int(first) : end + 1], 206
            self._send(status, content, headers)

        def _send_json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
