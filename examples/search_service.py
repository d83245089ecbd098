"""An HTTP search service that follows the store.

    python examples/search_service.py s3://music/releases 8000
    curl 'localhost:8000/search?q=rainy+sunday+piano&k=5'

A thread looks for a newer release once a minute. A damaged release is refused, and the old one is still served.
"""

import json
import logging
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from indexing import LiveRelease
from indexing.errors import ConfigError, NightcrateError


def make_server(live: LiveRelease, port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            try:
                hits = live.search(asked.get("q", [""])[0], k=int(asked.get("k", ["10"])[0]))
                code, answer = 200, [{"item_id": hit.item_id, "score": hit.score, **hit.metadata} for hit in hits]
            except (ConfigError, ValueError) as error:  # a blank query, or a k that is not a number or too large
                code, answer = 400, [{"error": str(error)}]
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer, default=str).encode())

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def follow(live: LiveRelease, every_s: float) -> None:
    while True:
        time.sleep(every_s)
        try:
            live.refresh()
        except NightcrateError as error:
            logging.error("still serving the old release: %s", error)


if __name__ == "__main__":
    live = LiveRelease(sys.argv[1])
    threading.Thread(target=follow, args=(live, 60), daemon=True).start()
    make_server(live, int(sys.argv[2])).serve_forever()
