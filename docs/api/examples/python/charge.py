#!/usr/bin/env python3
"""Starts a charge, waits until it runs, stops it and prints the order. Python 3.8 or later, nothing to install.

    export CHARGEGATE_URL=http://127.0.0.1:7055 CHARGEGATE_KEY=...
    export CHARGEGATE_HMAC_SECRET=...          # only for keys that must sign
    ./charge.py 40aace04 1 30                  # device, port, minutes
"""
import hashlib
import hmac
import http.client
import json
import os
import sys
import time
import urllib.parse
import uuid

BASE = "/api/v1/third"
PATIENCE_S = 120


class ApiError(Exception):
    """The gateway said no. Branch on `code`; `message` is for people; quote `request_id` when you ask for help."""

    def __init__(self, status, body):
        self.status, self.code = status, body.get("error", "")
        self.message, self.data, self.request_id = body.get("message", ""), body.get("data"), body.get("request_id")
        super().__init__(f"{status} {self.code}: {self.message} (request {self.request_id})")


class Gateway:
    def __init__(self, url, key, secret=None):
        self.url, self.key, self.secret = urllib.parse.urlsplit(url), key, secret

    def call(self, method, path, body=None, once=None):
        """Makes a request and returns the `data` of its answer. Tries again where that is safe and makes sense: GET always,
        POST only with `once`, an Idempotency-Key, because then the gateway knows a repetition and does nothing twice."""
        payload = b"" if body is None else json.dumps(body).encode()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                status, headers, answer = self._send(method, BASE + path, payload, once)
            except (OSError, http.client.HTTPException) as error:
                # No answer: it may have taken effect or not. The same key finds out.
                if (method == "POST" and once is None) or time.monotonic() > deadline:
                    raise
                print(f"no answer ({error}), again", file=sys.stderr)
                time.sleep(1)
                continue
            if 200 <= status < 300:
                return answer["data"]
            error = ApiError(status, answer)
            later = status in (429, 503) or error.code == "IDEMPOTENCY_IN_PROGRESS"
            if not later or (method == "POST" and once is None) or time.monotonic() > deadline:
                raise error
            print(f"{error.code}, again", file=sys.stderr)
            time.sleep(int(headers.get("Retry-After", 1)))

    def _send(self, method, path, payload, once):
        headers = {"X-Api-Key": self.key}
        if payload:
            headers["Content-Type"] = "application/json"
        if once is not None:
            headers["Idempotency-Key"] = once
        if self.secret:
            # Each attempt has a nonce of its own: a nonce counts once.
            headers.update(signature(self.secret, method, path, payload))
        kind = http.client.HTTPSConnection if self.url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.url.hostname, self.url.port, timeout=10)
        try:
            connection.request(method, path, payload, headers)
            response = connection.getresponse()
            return response.status, response.headers, json.loads(response.read())
        finally:
            connection.close()

    def events(self, after):
        """The events of the log behind position `after`, as they come. Keep the last position you have dealt with, in the
        transaction in which you dealt with it, and begin there after a restart."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            page = self.call("GET", f"/events?after={after}&limit=500")
            yield from page["items"]
            after = page["next_after"]
            if not page["items"]:
                time.sleep(0.5)
        raise TimeoutError("the event did not come")


def signature(secret, method, path, payload, timestamp=None, nonce=None):
    """The headers of a signed request; `path` is path and query exactly as sent."""
    timestamp, nonce = timestamp or str(int(time.time())), nonce or uuid.uuid4().hex
    text = "\n".join([method, path, timestamp, nonce, hashlib.sha256(payload).hexdigest()])
    mac = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    return {"X-Timestamp": timestamp, "X-Nonce": nonce, "X-Signature": mac}


def main(device, port_no, minutes):
    env = os.environ
    gateway = Gateway(env["CHARGEGATE_URL"], env["CHARGEGATE_KEY"], env.get("CHARGEGATE_HMAC_SECRET"))
    page = 1
    while True:
        found = gateway.call("GET", f"/devices?online=true&page={page}&size=200")
        for one in found["items"]:
            print("online:", one["device_id"], one["protocol"], "score", one["score"])
        if page * found["size"] >= found["total"]:
            break
        page += 1

    # One key per thing your customer wants, made and stored before the first attempt. After a crash you repeat it.
    once = str(uuid.uuid4())
    wanted = {"port_no": port_no, "mode": "time", "duration_minutes": minutes, "paid_cent": 150}
    try:
        order = gateway.call("POST", f"/devices/{device}/charge", wanted, once)
    except ApiError as error:
        if error.code == "PORT_BUSY":
            sys.exit(f"port {port_no} is taken by order {error.data['order_no']}")
        if error.code == "DEVICE_OFFLINE":
            sys.exit("the device is not connected: try again when device.online came")
        raise
    order_no = order["order_no"]
    print("order:", order_no, order["status_text"])
    again = gateway.call("POST", f"/devices/{device}/charge", wanted, once)
    assert again["order_no"] == order_no, "the same key is the same order"

    # 202 said that the order is stored. What the device makes of it is told by events, the first of which has a position.
    history = gateway.call("GET", f"/orders/{order_no}/events")
    position = history["items"][0]["pos"] if history["items"] else 0
    for event in gateway.events(position):
        if event["order_no"] != order_no:
            continue
        print("event:", event["event_type"])
        if event["event_type"] == "charging.started":
            # A stop needs no key: repeated, it is answered the same. The key is what lets `call` try again.
            gateway.call("POST", f"/orders/{order_no}/stop", once=str(uuid.uuid4()))
        if event["event_type"] in ("order.failed", "order.timeout"):
            sys.exit(f"it did not charge: {event['data'].get('failure_reason')}")
        if event["event_type"] == "order.settled":
            # The totals are final: bill by this event and no other.
            total = event["data"]
            print("settled:", order_no, total["status_text"], total["duration_seconds"], "s", total["energy_wh"], "Wh")
            return


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
