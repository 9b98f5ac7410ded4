#!/usr/bin/env python3
"""Receives webhooks and verifies them. Python 3.8 or later, nothing to install.

    export WEBHOOK_SECRET=whsec_...            # as configured for the endpoint
    export WEBHOOK_SECRET_PREVIOUS=...         # only while you change over
    ./receiver.py 8080
"""
import base64
import hashlib
import hmac
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

TOLERANCE_S = 300
BODY_BYTES_MAX = 1 << 20
SECRETS = [os.environ[name] for name in ("WEBHOOK_SECRET", "WEBHOOK_SECRET_PREVIOUS") if os.environ.get(name)]


def standard_webhooks(secret, headers, body):
    """The scheme of standardwebhooks.com: its libraries do the same."""
    key = base64.b64decode(secret[6:]) if secret.startswith("whsec_") else secret.encode()
    text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    # There are two signatures while the endpoint has two secrets.
    given = headers["webhook-signature"].split(" ")
    return any(hmac.compare_digest(expected.encode(), one.encode()) for one in given)


def gateway_scheme(secret, path, headers, body):
    """The scheme of signed API requests; the key is the secret's text."""
    digest = hashlib.sha256(body).hexdigest()
    text = "\n".join(["POST", path, headers["X-Timestamp"], headers["X-Nonce"], digest])
    expected = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected.encode(), headers["X-Signature"].encode())


def verified(path, headers, body):
    """Whether the gateway sent this just now. One scheme is enough; here both must hold, each by one of our secrets."""
    try:
        fresh = all(abs(time.time() - int(headers[name])) <= TOLERANCE_S for name in ("webhook-timestamp", "X-Timestamp"))
        standard = any(standard_webhooks(secret, headers, body) for secret in SECRETS)
        gateway = any(gateway_scheme(secret, path, headers, body) for secret in SECRETS)
    except (KeyError, TypeError, ValueError, AttributeError):
        return False  # a header is missing or is not what it should be
    return fresh and standard and gateway


class Seen:
    """Events dealt with. Delivery is at least once, so an event may come again: hours later by a retry, within minutes by
    somebody who replays a request. In earnest this is a table with a unique column, written in the transaction of the effect."""

    def __init__(self, size=100_000):
        self.lock, self.ids, self.size = Lock(), {}, size

    def add(self, event_id):
        with self.lock:
            if event_id in self.ids:
                return False
            self.ids[event_id] = True
            if len(self.ids) > self.size:
                del self.ids[next(iter(self.ids))]
            return True


class Receiver(BaseHTTPRequestHandler):
    seen = Seen()

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        if length > BODY_BYTES_MAX:
            return self.answer(413)
        body = self.rfile.read(length)
        # Before any JSON parser touches it.
        if not verified(self.path, self.headers, body):
            print("refused: wrong signature or too old", flush=True)
            return self.answer(401)
        event = json.loads(body)
        if not self.seen.add(event["event_id"]):
            print("repeated:", event["event_type"], event["event_id"], flush=True)
            return self.answer(204)
        # Here is your work: quick, or put into a queue of your own. Within 5 s answer 2xx; 503 has it sent again later;
        # any other 4xx says never again.
        print("event:", event["event_type"], event["order_no"] or event["device_phy_id"], flush=True)
        self.answer(204)

    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    if len(sys.argv) != 2 or not SECRETS:
        sys.exit(__doc__)
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver)
    print("listening:", "http://127.0.0.1:%d" % server.server_address[1], flush=True)
    server.serve_forever()
