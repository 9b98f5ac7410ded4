//! A third party's end of the webhooks: takes every delivery and remembers it, in the order of arrival.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    thread,
};

use hmac::{Hmac, Mac as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use standardwebhooks::Webhook;
use tiny_http::{Response, Server};
use ureq::http::{HeaderMap, HeaderName, HeaderValue};

use super::until;

/// A secret as Standard Webhooks writes them.
pub(crate) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const PATH: &str = "/hooks/charging?site=7";

/// A delivery as it came.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    method: String,
    target: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Delivery {
    /// The body, after both signatures were checked: one by a Standard Webhooks library, one computed here from its description.
    pub(crate) fn verified(&self) -> Value {
        self.verified_by(SECRET)
    }

    /// Whether a secret, or one of two, signs it as Standard Webhooks describes.
    pub(crate) fn is_signed_by(&self, secret: &str) -> bool {
        let library = Webhook::new(secret).expect("a sound secret");
        library.verify(&self.body, &self.headers).is_ok()
    }

    /// The body as it came.
    pub(crate) fn body(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// The same as [`Delivery::verified`], where this secret is the first.
    pub(crate) fn verified_by(&self, secret: &str) -> Value {
        assert!(self.is_signed_by(secret), "no Standard Webhooks signature");

        let header = |name: &str| self.headers[name].to_str().expect("ASCII").to_owned();
        let (timestamp, nonce) = (header("X-Timestamp"), header("X-Nonce"));
        let hash = hex(&Sha256::digest(&self.body));
        let mut mac = <Hmac<Sha256>>::new_from_slice(secret.as_bytes()).expect("a key of any length");
        mac.update(format!("{}\n{}\n{timestamp}\n{nonce}\n{hash}", self.method, self.target).as_bytes());
        assert_eq!(header("X-Signature"), hex(&mac.finalize().into_bytes()));

        let body: Value = serde_json::from_slice(&self.body).expect("JSON");
        assert_eq!((body["event_id"].as_str(), body["nonce"].as_str()), (Some(&*header("webhook-id")), Some(&*nonce)));
        assert_eq!((self.method.as_str(), self.target.as_str()), ("POST", PATH));
        body
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A running receiver.
pub(crate) struct Receiver {
    server: Arc<Server>,
    deliveries: Arc<Mutex<Vec<Delivery>>>,
    status: Arc<AtomicU16>,
}

impl Receiver {
    pub(crate) fn start() -> Self {
        let server = Arc::new(Server::http("127.0.0.1:0").expect("a port of the kernel's choosing"));
        let deliveries = Arc::new(Mutex::new(Vec::new()));
        let status = Arc::new(AtomicU16::new(204));
        let (listening, taken, said) = (Arc::clone(&server), Arc::clone(&deliveries), Arc::clone(&status));
        thread::spawn(move || {
            for mut request in listening.incoming_requests() {
                let mut body = Vec::new();
                if request.as_reader().read_to_end(&mut body).is_err() {
                    continue;
                }
                let field = |field: &tiny_http::Header| {
                    let name = HeaderName::from_bytes(field.field.as_str().as_bytes()).ok()?;
                    Some((name, HeaderValue::from_str(field.value.as_str()).ok()?))
                };
                let headers = request.headers().iter().filter_map(field).collect();
                let (method, target) = (request.method().to_string(), request.url().to_owned());
                taken.lock().expect("no test holds it in a panic").push(Delivery { method, target, headers, body });
                // A gateway that was killed takes no answer.
                drop(request.respond(Response::empty(said.load(Ordering::SeqCst))));
            }
        });
        Self { server, deliveries, status }
    }

    /// What it answers from now on; 204 at first.
    pub(crate) fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// Where it takes deliveries.
    pub(crate) fn url(&self) -> String {
        let addr = self.server.server_addr().to_ip().expect("a TCP address");
        format!("http://{addr}{PATH}")
    }

    /// The value of `CHARGEGATE_WEBHOOK_ENDPOINTS` that names it.
    pub(crate) fn endpoints(&self) -> String {
        json!([{"name": "receiver", "url": self.url(), "secret": SECRET}]).to_string()
    }

    /// Everything delivered so far, not checked.
    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        self.deliveries.lock().expect("no test holds it in a panic").clone()
    }

    /// Everything delivered so far, checked.
    pub(crate) fn events(&self) -> Vec<Value> {
        let deliveries = self.deliveries.lock().expect("no test holds it in a panic").clone();
        deliveries.iter().map(Delivery::verified).collect()
    }

    /// How often something was delivered.
    pub(crate) fn count(&self) -> usize {
        self.deliveries.lock().expect("no test holds it in a panic").len()
    }

    /// Waits for the delivery of an order's `last` event, and returns all of that order.
    pub(crate) fn events_of(&self, order_no: &str, last: &str) -> Vec<Value> {
        until(&format!("{last} of {order_no} is delivered"), || {
            let mut events = self.events();
            events.retain(|event| event["order_no"] == order_no && event["event_type"] != "device.alarm");
            events.iter().any(|event| event["event_type"] == last).then_some(events)
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.unblock();
    }
}
