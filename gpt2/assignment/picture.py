"""A picture of the demo page, taken by a browser without a window."""

import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from gpt2.demo.__main__ import HOST

_BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)  # fmt: skip
_SECONDS = 120  # that a browser may take
_VIRTUAL = 600_000_000  # milliseconds of the page's own clock, which runs on as texts are written


def take_picture(run: Path, prompt: str, path: Path, *, device: str) -> None:
    """Serve the demo page of `run` with `prompt` in it, and write a PNG of it to `path`.

    Raises:
        ValueError: there is no browser, the page cannot be served, or the browser fails.
    """
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise ValueError("there is no Chromium or Chrome here (on Debian: apt install chromium)")
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = str(free.getsockname()[1])
    words = [str(run), "--prompt", prompt, "--port", port, "--device", device]
    server = subprocess.Popen(
        [sys.executable, "-m", "gpt2.demo", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        if "http" not in server.stdout.readline():
            _, errors = server.communicate()
            raise ValueError(errors.strip().removeprefix("error: ") or "its server ended")
        with tempfile.TemporaryDirectory() as profile:
            _photograph(browser, f"http://{HOST}:{port}", profile, path)
    finally:
        server.kill()
        server.communicate()


def _photograph(browser: str, address: str, profile: str, path: Path) -> None:
    image = Path(profile) / "demo.png"
    options = [
        "--headless=new", "--disable-gpu", "--no-sandbox", "--disable-dev-shm-usage",
        "--hide-scrollbars", "--window-size=1300,950", f"--virtual-time-budget={_VIRTUAL}",
        f"--user-data-dir={profile}", f"--screenshot={image}",
    ]  # fmt: skip
    try:
        done = subprocess.run([browser, *options, address], capture_output=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{browser} took longer than {_SECONDS} seconds") from None
    if not image.is_file():
        raise ValueError(f"{browser} ended with status {done.returncode} and made none")
    shutil.copyfile(image, path)
