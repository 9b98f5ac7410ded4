//! A third party's end of the webhooks: takes every delivery and remembers it, in the order of arrival.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
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

/// A running receiver. Each connection has a thread of its own: one that is kept makes no other wait.
pub(crate) struct Receiver {
    addr: SocketAddr,
    heard: Arc<Heard>,
}

struct Heard {
    deliveries: Mutex<Vec<Delivery>>,
    status: AtomicU16,
    /// Connections, to end them; `None`: the receiver has gone.
    open: Mutex<Option<Vec<TcpStream>>>,
}

impl Receiver {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of the kernel's choosing");
        let addr = listener.local_addr().expect("it is bound");
        let heard = Arc::new(Heard {
            deliveries: Mutex::default(),
            status: AtomicU16::new(204),
            open: Mutex::new(Some(Vec::new())),
        });
        let all = Arc::clone(&heard);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let Some(open) = &mut *all.open.lock().expect("no test holds it in a panic") else { return };
                open.extend(stream.try_clone());
                let heard = Arc::clone(&all);
                thread::spawn(move || {
                    let mut from = BufReader::new(&stream);
                    while heard.take(&mut from).is_some() {}
                });
            }
        });
        Self { addr, heard }
    }

    /// What it answers from now on; 204 at first.
    pub(crate) fn answer(&self, status: u16) {
        self.heard.status.store(status, Ordering::SeqCst);
    }

    /// Where it takes deliveries.
    pub(crate) fn url(&self) -> String {
        format!("http://{}{PATH}", self.addr)
    }

    /// The value of `CHARGEGATE_WEBHOOK_ENDPOINTS` that names it.
    pub(crate) fn endpoints(&self) -> String {
        json!([{"name": "receiver", "url": self.url(), "secret": SECRET}]).to_string()
    }

    /// Everything delivered so far, not checked.
    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        self.heard.deliveries.lock().expect("no test holds it in a panic").clone()
    }

    /// Everything delivered so far, checked.
    pub(crate) fn events(&self) -> Vec<Value> {
        let deliveries = self.heard.deliveries.lock().expect("no test holds it in a panic").clone();
        deliveries.iter().map(Delivery::verified).collect()
    }

    /// How often something was delivered.
    pub(crate) fn count(&self) -> usize {
        self.heard.deliveries.lock().expect("no test holds it in a panic").len()
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

impl Heard {
    /// Takes one delivery and answers it; `None`: nothing more comes.
    fn take(&self, from: &mut BufReader<&TcpStream>) -> Option<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if from.read_until(b'\n', &mut head).ok()? == 0 {
                return None;
            }
        }
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut fields);
        request.parse(&head).ok()?;
        let (method, target) = (request.method?.to_owned(), request.path?.to_owned());
        let field = |field: &httparse::Header<'_>| {
            let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
            Some((name, HeaderValue::from_bytes(field.value).ok()?))
        };
        let headers: HeaderMap = request.headers.iter().filter_map(field).collect();
        let mut body = vec![0; headers.get("content-length")?.to_str().ok()?.parse().ok()?];
        from.read_exact(&mut body).ok()?;
        self.deliveries.lock().expect("no test holds it in a panic").push(Delivery { method, target, headers, body });
        let status = self.status.load(Ordering::SeqCst);
        // A gateway that was killed takes no answer.
        write!(from.get_mut(), "HTTP/1.1 {status} Said\r\nContent-Length: 0\r\n\r\n").ok()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let open = self.heard.open.lock().expect("no test holds it in a panic").take();
        for stream in open.into_iter().flatten() {
            // It may have ended by itself.
            drop(stream.shutdown(Shutdown::Both));
        }
        // Ends the wait for the next connection.
        drop(TcpStream::connect(self.addr));
    }
}
