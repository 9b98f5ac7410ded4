#!/usr/bin/env node
// Receives webhooks and verifies them. Node 18 or later, nothing to install.
//
//   export WEBHOOK_SECRET=whsec_...            # as configured for the endpoint
//   export WEBHOOK_SECRET_PREVIOUS=...         # only while you change over
//   node receiver.mjs 8080

import { createHash, createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const TOLERANCE_S = 300;
const BODY_BYTES_MAX = 1 << 20;
const SECRETS = [process.env.WEBHOOK_SECRET, process.env.WEBHOOK_SECRET_PREVIOUS].filter(Boolean);

function equal(expected, given) {
  const [a, b] = [Buffer.from(expected), Buffer.from(given)];
  return a.length === b.length && timingSafeEqual(a, b);
}

/** The scheme of standardwebhooks.com: its libraries do the same. */
function standardWebhooks(secret, headers, body) {
  const key = secret.startsWith("whsec_") ? Buffer.from(secret.slice(6), "base64") : secret;
  const mac = createHmac("sha256", key).update(`${headers["webhook-id"]}.${headers["webhook-timestamp"]}.`).update(body);
  const expected = "v1," + mac.digest("base64");
  // There are two signatures while the endpoint has two secrets.
  return String(headers["webhook-signature"]).split(" ").some((one) => equal(expected, one));
}

/** The scheme of signed API requests; the key is the secret's text. */
function gatewayScheme(secret, path, headers, body) {
  const digest = createHash("sha256").update(body).digest("hex");
  const text = ["POST", path, headers["x-timestamp"], headers["x-nonce"], digest].join("\n");
  return equal(createHmac("sha256", secret).update(text).digest("hex"), String(headers["x-signature"]));
}

/** Whether the gateway sent this just now. One scheme is enough; here both must hold, each by one of our secrets. */
function verified(path, headers, body) {
  // A header that is missing is NaN here, and not fresh.
  const fresh = (name) => Math.abs(Date.now() / 1000 - Number(headers[name])) <= TOLERANCE_S;
  return (
    fresh("webhook-timestamp") &&
    fresh("x-timestamp") &&
    SECRETS.some((secret) => standardWebhooks(secret, headers, body)) &&
    SECRETS.some((secret) => gatewayScheme(secret, path, headers, body))
  );
}

// Events dealt with. Delivery is at least once, so an event may come again: hours later by a retry, within minutes by somebody
// who replays a request. In earnest this is a table with a unique column, written in the transaction of the effect.
const seen = new Set();

function isNew(eventId) {
  if (seen.has(eventId)) return false;
  seen.add(eventId);
  if (seen.size > 100_000) seen.delete(seen.values().next().value);
  return true;
}

function handle(path, headers, body) {
  // Before any JSON parser touches it.
  if (!verified(path, headers, body)) {
    console.log("refused: wrong signature or too old");
    return 401;
  }
  const event = JSON.parse(body);
  if (!isNew(event.event_id)) {
    console.log("repeated:", event.event_type, event.event_id);
    return 204;
  }
  // Here is your work: quick, or put into a queue of your own. Within 5 s answer 2xx; 503 has it sent again later; any other
  // 4xx says never again.
  console.log("event:", event.event_type, event.order_no ?? event.device_phy_id);
  return 204;
}

const server = createServer(async (request, response) => {
  try {
    const chunks = [];
    let length = 0;
    for await (const chunk of request) {
      length += chunk.length;
      if (length > BODY_BYTES_MAX) return response.writeHead(413, { Connection: "close" }).end();
      chunks.push(chunk);
    }
    const status = request.method === "POST" ? handle(request.url, request.headers, Buffer.concat(chunks)) : 405;
    response.writeHead(status).end();
  } catch (error) {
    console.error(error);
    response.writeHead(503).end();
  }
});

const port = process.argv[2];
if (port === undefined || SECRETS.length === 0) {
  console.error("usage: WEBHOOK_SECRET=… node receiver.mjs PORT");
  process.exit(2);
}
server.listen(Number(port), "127.0.0.1", () => console.log(`listening: http://127.0.0.1:${server.address().port}`));
