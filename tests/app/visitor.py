"""HTTP client for the web app."""

import json
from pathlib import Path

import httpx

API = "gradio_api"


class Visitor:
    """HTTP client that makes the requests of the page's script."""

    def __init__(self, url):
        self.http = httpx.Client(base_url=url, timeout=120)

    def upload(self, content, name="image.png"):
        return self.http.post(f"{API}/upload", files={"files": (name, content)})

    def call(self, name, *data):
        return self.http.post(f"{API}/call/{name}", json={"data": list(data)})

    def answer(self, name, *data):
        """Return ("complete", values) or ("error", reason), or ("refused", status, reason)."""
        response = self.call(name, *data)
        if response.status_code != 200:
            return "refused", response.status_code, response.json()["detail"]
        event = response.json()["event_id"]
        kind = None
        with self.http.stream("GET", f"{API}/call/{name}/{event}") as stream:
            for line in stream.iter_lines():
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: ") and kind in ("complete", "error"):
                    return kind, json.loads(line.removeprefix("data: "))
        return "lost", None

    def image(self, path):
        (place,) = self.upload(Path(path).read_bytes()).json()
        return {"path": place, "meta": {"_type": "gradio.FileData"}}
