#!/usr/bin/env node
// Starts a charge, waits until it runs, stops it and prints the order. Node 18 or later, nothing to install.
//
//   export CHARGEGATE_URL=http://127.0.0.1:7055 CHARGEGATE_KEY=...
//   export CHARGEGATE_HMAC_SECRET=...          # only for keys that must sign
//   node charge.mjs 40aace04 1 30              # device, port, minutes

import { createHash, createHmac, randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

const BASE = "/api/v1/third";
const PATIENCE_MS = 120_000;

/** The gateway said no. Branch on `code`; `message` is for people; quote `requestId` when you ask for help. */
class ApiError extends Error {
  constructor(status, body) {
    super(`${status} ${body.error}: ${body.message} (request ${body.request_id})`);
    Object.assign(this, { status, code: body.error, data: body.data, requestId: body.request_id });
  }
}

/** The headers of a signed request; `path` is path and query exactly as sent. */
export function signature(secret, method, path, body, timestamp = String(Math.floor(Date.now() / 1000)), nonce = randomUUID()) {
  const digest = createHash("sha256").update(body).digest("hex");
  const text = [method, path, timestamp, nonce, digest].join("\n");
  const mac = createHmac("sha256", secret).update(text).digest("hex");
  return { "X-Timestamp": timestamp, "X-Nonce": nonce, "X-Signature": mac };
}

class Gateway {
  constructor(url, key, secret) {
    Object.assign(this, { url: url.replace(/\/$/, ""), key, secret });
  }

  /**
   * Makes a request and returns the `data` of its answer. Tries again where that is safe and makes sense: GET always, POST only
   * with `once`, an Idempotency-Key, because then the gateway knows a repetition and does nothing twice.
   */
  async call(method, path, { body, once } = {}) {
    const payload = body === undefined ? "" : JSON.stringify(body);
    const repeatable = method === "GET" || once !== undefined;
    const deadline = Date.now() + PATIENCE_MS;
    for (;;) {
      let response, answer;
      try {
        response = await this.#send(method, BASE + path, payload, once);
        answer = await response.json();
      } catch (error) {
        // No answer: it may have taken effect or not. The same key finds out.
        if (!repeatable || Date.now() > deadline) throw error;
        console.error(`no answer (${error.cause?.code ?? error.message}), again`);
        await sleep(1_000);
        continue;
      }
      if (response.ok) return answer.data;
      const error = new ApiError(response.status, answer);
      const later = [429, 503].includes(error.status) || error.code === "IDEMPOTENCY_IN_PROGRESS";
      if (!later || !repeatable || Date.now() > deadline) throw error;
      console.error(`${error.code}, again`);
      await sleep(1_000 * Number(response.headers.get("Retry-After") ?? 1));
    }
  }

  #send(method, path, payload, once) {
    const headers = { "X-Api-Key": this.key };
    if (payload) headers["Content-Type"] = "application/json";
    if (once !== undefined) headers["Idempotency-Key"] = once;
    // Each attempt has a nonce of its own: a nonce counts once.
    if (this.secret) Object.assign(headers, signature(this.secret, method, path, payload));
    return fetch(this.url + path, { method, headers, body: payload || undefined, signal: AbortSignal.timeout(10_000) });
  }

  /**
   * The events of the log behind position `after`, as they come. Keep the last position you have dealt with, in the transaction
   * in which you dealt with it, and begin there after a restart.
   */
  async *events(after) {
    const deadline = Date.now() + PATIENCE_MS;
    while (Date.now() < deadline) {
      const page = await this.call("GET", `/events?after=${after}&limit=500`);
      yield* page.items;
      after = page.next_after;
      if (page.items.length === 0) await sleep(500);
    }
    throw new Error("the event did not come");
  }
}

async function main(device, portNo, minutes) {
  const { CHARGEGATE_URL, CHARGEGATE_KEY, CHARGEGATE_HMAC_SECRET } = process.env;
  const gateway = new Gateway(CHARGEGATE_URL, CHARGEGATE_KEY, CHARGEGATE_HMAC_SECRET);
  for (let page = 1, more = true; more; page += 1) {
    const found = await gateway.call("GET", `/devices?online=true&page=${page}&size=200`);
    for (const one of found.items) console.log("online:", one.device_id, one.protocol, "score", one.score);
    more = page * found.size < found.total;
  }

  // One key per thing your customer wants, made and stored before the first attempt. After a crash you repeat it.
  const once = randomUUID();
  const body = { port_no: portNo, mode: "time", duration_minutes: minutes, paid_cent: 150 };
  const order = await gateway.call("POST", `/devices/${device}/charge`, { body, once });
  console.log("order:", order.order_no, order.status_text);
  const again = await gateway.call("POST", `/devices/${device}/charge`, { body, once });
  if (again.order_no !== order.order_no) throw new Error("the same key is the same order");

  // 202 said that the order is stored. What the device makes of it is told by events, the first of which has a position.
  const history = await gateway.call("GET", `/orders/${order.order_no}/events`);
  for await (const event of gateway.events(history.items[0]?.pos ?? 0)) {
    if (event.order_no !== order.order_no) continue;
    console.log("event:", event.event_type);
    switch (event.event_type) {
      case "charging.started":
        // A stop needs no key: repeated, it is answered the same. The key is what lets `call` try again.
        await gateway.call("POST", `/orders/${order.order_no}/stop`, { once: randomUUID() });
        break;
      case "order.failed":
      case "order.timeout":
        throw new Error(`it did not charge: ${event.data.failure_reason}`);
      case "order.settled": {
        // The totals are final: bill by this event and no other.
        const { status_text, duration_seconds, energy_wh } = event.data;
        console.log("settled:", order.order_no, status_text, duration_seconds, "s", energy_wh, "Wh");
        return;
      }
    }
  }
}

const [device, portNo, minutes] = process.argv.slice(2);
if (minutes === undefined || !process.env.CHARGEGATE_URL || !process.env.CHARGEGATE_KEY) {
  console.error("usage: CHARGEGATE_URL=… CHARGEGATE_KEY=… node charge.mjs DEVICE PORT MINUTES");
  process.exit(2);
}
try {
  await main(device, Number(portNo), Number(minutes));
} catch (error) {
  if (!(error instanceof ApiError)) throw error;
  const hint = {
    PORT_BUSY: `the port is taken by order ${error.data?.order_no}`,
    DEVICE_OFFLINE: "the device is not connected: try again when device.online came",
  }[error.code];
  console.error(hint ?? error.message);
  process.exit(1);
}
