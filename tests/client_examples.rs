//! The examples of `docs/api/examples` do what they say: each runs as a developer would run it, against a real gateway and a
//! simulated device.
//!
//! - The client signs its requests and goes through a proxy that loses the answer of its first charge and refuses the second try:
//!   it ends with 0, and there is one order, which was started, stopped and settled.
//! - The receiver gets the webhooks of that order from the gateway, which signs with two secrets; what is tampered with, too old or
//!   signed by somebody else is refused, what comes again is told apart.
//! - The worked examples of the guide are computed here.

mod gateway;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use chargegate::signature::{SignedRequest, standard_webhooks};
use chargegate_loadtest::device::{Ap3000Device, Behaviour, BkvDevice, Device};
use gateway::{Engine, Gateway, KEY, PATIENCE, driven::Driven, until};
use parking_lot::Mutex;
use serde_json::{Value, json};

/// The key of the examples, which must sign.
const SIGNED: &str = "key-of-the-examples";
const HMAC_SECRET: &str = "secret of the examples";
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// Plain text, and no base64.
const SECRET_PREVIOUS: &str = "the secret of last year";
const HOOK_PATH: &str = "/hooks?site=7";

#[test]
fn the_examples_for_curl_work() {
    let seen = tempfile::tempdir().expect("a temporary directory");
    let script = example("curl/verify-webhook.sh");
    let seen_at = seen.path().to_owned();
    let receiver = Receiver::of_server(move |path, headers, body| {
        let files = tempfile::tempdir().expect("a temporary directory");
        let (headers_at, body_at) = (files.path().join("headers"), files.path().join("body"));
        fs::write(&headers_at, headers).expect("written");
        fs::write(&body_at, body).expect("written");
        let mut command = Command::new(&script);
        command.arg(path).arg(headers_at).arg(body_at).env("SEEN", &seen_at);
        let output = secrets(&mut command).output().expect("bash runs it");
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let status = match output.status.code() {
            Some(0 | 10) => 204,
            Some(1) => 401,
            other => panic!("{other:?}: {}", String::from_utf8_lossy(&output.stderr)),
        };
        (status, text)
    });
    let device = Ap3000Device::new(1, 2, Behaviour::default());
    let id = device.phy_id().to_string();
    check(Command::new(example("curl/charge.sh")), &receiver, &id, device);
}

#[test]
fn the_examples_in_python_work() {
    let python = |script: &str| {
        let mut command = Command::new("python3");
        command.arg("-B").arg(example(script));
        command
    };
    let receiver = Receiver::of_program(python("python/receiver.py"));
    let device = BkvDevice::new(2, 0, Behaviour::default());
    let id = device.gateway_id().to_string();
    check(python("python/charge.py"), &receiver, &id, device);
}

#[test]
fn the_examples_in_go_work() {
    let programs = tempfile::tempdir().expect("a temporary directory");
    let path = format!("{}:/usr/local/go/bin", std::env::var("PATH").expect("there is one"));
    let built = Command::new("go")
        .args(["build", "-buildvcs=false", "-o"])
        .arg(programs.path())
        .args(["./charge", "./receiver"])
        .current_dir(example("go"))
        .env("PATH", path)
        .env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("go"))
        .env("GOTOOLCHAIN", "local")
        .output()
        .expect("go is there: scripts/install-services installs it");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let receiver = Receiver::of_program(Command::new(programs.path().join("receiver")));
    let client = Command::new(programs.path().join("charge"));
    let device = Ap3000Device::new(3, 2, Behaviour::default());
    let id = device.phy_id().to_string();
    check(client, &receiver, &id, device);
}

#[test]
fn the_examples_in_javascript_work() {
    let node = |script: &str| {
        let mut command = Command::new("node");
        command.arg(example(script));
        command
    };
    let receiver = Receiver::of_program(node("javascript/receiver.mjs"));
    let device = BkvDevice::new(4, 0, Behaviour::default());
    let id = device.gateway_id().to_string();
    check(node("javascript/charge.mjs"), &receiver, &id, device);
}

/// The numbers of the guide, so that who implements the signature has something to compare with.
#[test]
fn the_worked_examples_of_the_guide_are_right() {
    let guide = fs::read_to_string(docs().join("README.md")).expect("the guide");
    let signed = SignedRequest {
        method: "POST",
        path: "/api/v1/third/devices/40aace04/charge",
        timestamp: "1795392000",
        nonce: "n-1",
        body: br#"{"port_no":1,"mode":"time","duration_minutes":30}"#,
    };
    let webhook = br#"{"event_id":"01a205c0-f603-7c39-b29c-176f1b5b2ee8","event_type":"order.settled"}"#;
    let standard = standard_webhooks([SECRET], "01a205c0-f603-7c39-b29c-176f1b5b2ee8", 1_795_392_000, webhook);
    let gateway =
        SignedRequest { method: "POST", path: "/hooks", timestamp: "1795392000", nonce: "n-2", body: webhook };
    for (what, text) in [
        ("the body", String::from_utf8_lossy(signed.body).into_owned()),
        ("the signed text", signed.canonical()),
        ("the signature", format!("X-Signature: {}", signed.sign("topsecret"))),
        ("the webhook", String::from_utf8_lossy(webhook).into_owned()),
        ("webhook-signature", format!("webhook-signature: {standard}")),
        ("the webhook's X-Signature", format!("x-signature: {}", gateway.sign(SECRET))),
    ] {
        assert!(guide.contains(&text), "the guide does not have {what}:\n{text}");
    }
}

/// Runs the client against a gateway that calls the receiver, and looks at what both did.
fn check(mut client: Command, receiver: &Receiver, id: &str, device: impl Device + Send + 'static) {
    let keys = json!([
        {"name": "tests", "key": KEY},
        {"name": "examples", "key": SIGNED, "scopes": ["read", "control"], "require_hmac": true, "hmac_secret": HMAC_SECRET},
    ]);
    let url = format!("http://{}{HOOK_PATH}", receiver.addr);
    let endpoints = json!([{"name": "examples", "url": url, "secret": SECRET, "secret_previous": SECRET_PREVIOUS,
        "events": ["order.*", "charging.started"]}]);
    let gateway = Gateway::start(
        Engine::Mio,
        &[
            ("CHARGEGATE_API_KEYS", &keys.to_string()),
            ("CHARGEGATE_WEBHOOK_ENDPOINTS", &endpoints.to_string()),
            ("CHARGEGATE_WEBHOOK_ALLOW_PRIVATE_TARGETS", "true"),
        ],
    );
    let gateway = gateway.expect("epoll is always there");
    let _device = Driven::connect(gateway.devices, device);
    gateway.knows_port(id, 1);
    // Memory knows a device from its first frame on; lists are read from the store, which has it once its bind is committed.
    until("it is listed", || {
        let listed = gateway.get("devices?online=true");
        listed.data()["items"].as_array().into_iter().flatten().find(|device| device["device_id"] == id).map(drop)
    });
    let proxy = Proxy::start(gateway.http);
    let output = client
        .args([id, "1", "30"])
        .env("CHARGEGATE_URL", format!("http://{}", proxy.addr))
        .env("CHARGEGATE_KEY", SIGNED)
        .env("CHARGEGATE_HMAC_SECRET", HMAC_SECRET)
        .output()
        .expect("it is there: scripts/install-services installs it");
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{complained}\n{}", gateway.log());
    assert!(said.contains(&format!("online: {id} ")), "{said}");

    // One order, whatever happened on the way.
    let orders = gateway.get(&format!("orders?device_id={id}"));
    assert_eq!(orders.data()["total"], 1, "{}\n{said}\n{complained}", orders.text);
    let order = &orders.data()["items"][0];
    assert_eq!((&order["status_text"], &order["paid_cent"]), (&json!("stopped"), &json!(150)), "{order}");
    let order_no = order["order_no"].as_str().expect("a number");
    assert!(said.contains(&format!("settled: {order_no} stopped")), "{said}");
    let charges = proxy.charges.lock();
    assert!(charges.len() >= 4, "an answer lost, a refusal, a success, a repetition: {charges:?}");
    assert!(charges.iter().all(|charge| charge.once == charges[0].once && !charge.once.is_empty()), "{charges:?}");
    let mut nonces: Vec<_> = charges.iter().map(|charge| &charge.nonce).collect();
    nonces.sort();
    nonces.dedup();
    assert_eq!(nonces.len(), charges.len(), "a nonce counts once: {charges:?}");

    until("the order's webhooks came", || {
        let lines = receiver.lines.lock();
        let came = |event: &str| lines.iter().any(|line| *line == format!("event: {event} {order_no}"));
        ["order.created", "charging.started", "order.stopped", "order.settled"].into_iter().all(came).then_some(())
    });
    assert!(receiver.lines.lock().iter().all(|line| !line.starts_with("refused")), "{:?}", receiver.lines.lock());
    drop(gateway);
    receiver_tells_apart(receiver);
    // The answer may be there before the line.
    let refused = || receiver.lines.lock().iter().filter(|line| line.starts_with("refused")).count();
    until("the receiver told of every refusal", || (refused() >= 6).then_some(()));
    assert_eq!(refused(), 6, "{:?}", receiver.lines.lock());
}

/// Sends what a gateway would not.
fn receiver_tells_apart(receiver: &Receiver) {
    let now = unix_s();
    let body =
        |id: &str| json!({"event_id": id, "event_type": "order.settled", "order_no": "THD0123456789ABC"}).to_string();
    let good = Hook { path: HOOK_PATH, signed_path: HOOK_PATH, secret: SECRET, at: now, body: body("one"), sent: None };
    assert_eq!(receiver.takes(&good), 204);
    assert!(receiver.says("event: order.settled THD0123456789ABC"));
    assert_eq!(receiver.takes(&Hook { at: now - 1, ..good.clone() }), 204, "taken, and nothing is done");
    assert!(receiver.says("repeated: order.settled"));
    let previous = Hook { secret: SECRET_PREVIOUS, body: body("two"), ..good.clone() };
    assert_eq!(receiver.takes(&previous), 204, "signed by the secret of before");
    for (why, hook) in [
        ("tampered with", Hook { sent: Some(body("other")), body: body("three"), ..good.clone() }),
        ("too old", Hook { at: now - 900, body: body("four"), ..good.clone() }),
        ("from the future", Hook { at: now + 900, body: body("five"), ..good.clone() }),
        ("signed by somebody else", Hook { secret: "guessed", body: body("six"), ..good.clone() }),
        ("sent elsewhere", Hook { signed_path: "/hooks?site=8", body: body("seven"), ..good.clone() }),
    ] {
        assert_eq!(receiver.takes(&hook), 401, "{why}");
    }
    let agent = agent();
    let bare = agent.post(format!("http://{}{HOOK_PATH}", receiver.addr)).send(body("eight")).expect("an answer");
    assert_eq!(bare.status().as_u16(), 401, "not signed at all");
}

/// A webhook of the tests' making.
#[derive(Clone)]
struct Hook {
    path: &'static str,
    signed_path: &'static str,
    secret: &'static str,
    at: i64,
    body: String,
    /// Sent in place of the body that is signed.
    sent: Option<String>,
}

/// Something that takes webhooks, and what it said to them.
struct Receiver {
    addr: SocketAddr,
    lines: Arc<Mutex<Vec<String>>>,
    child: Option<Child>,
}

impl Receiver {
    /// A program that serves HTTP.
    fn of_program(mut command: Command) -> Self {
        let command = secrets(command.arg("0")).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it is there: scripts/install-services installs it");
        let mut lines_of = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let first = lines_of.next().expect("a line").expect("UTF-8");
        let addr = first.strip_prefix("listening: http://").and_then(|addr| addr.parse().ok());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let said = Arc::clone(&lines);
        thread::spawn(move || lines_of.map_while(Result::ok).for_each(|line| said.lock().push(line)));
        Self { addr: addr.unwrap_or_else(|| panic!("no address: {first}")), lines, child: Some(child) }
    }

    /// A web server that asks `verify` with path, header lines and body.
    fn of_server(verify: impl Fn(&str, &str, &[u8]) -> (u16, String) + Send + 'static) -> Self {
        let server = tiny_http::Server::http("127.0.0.1:0").expect("a port of the kernel's choosing");
        let addr = server.server_addr().to_ip().expect("TCP");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let said = Arc::clone(&lines);
        thread::spawn(move || {
            for mut request in server.incoming_requests() {
                let mut body = Vec::new();
                request.as_reader().read_to_end(&mut body).expect("a whole body");
                let headers: String = request.headers().iter().map(|header| format!("{header}\r\n")).collect();
                let (status, line) = verify(request.url(), &headers, &body);
                said.lock().push(line);
                // A gateway that has ended takes no answer.
                drop(request.respond(tiny_http::Response::empty(status)));
            }
        });
        Self { addr, lines, child: None }
    }

    /// What it answers.
    fn takes(&self, hook: &Hook) -> u16 {
        let id =
            serde_json::from_str::<Value>(&hook.body).expect("JSON")["event_id"].as_str().expect("a text").to_owned();
        let timestamp = hook.at.to_string();
        let nonce = format!("nonce of {id} at {timestamp}");
        let body = hook.body.as_bytes();
        let signed =
            SignedRequest { method: "POST", path: hook.signed_path, timestamp: &timestamp, nonce: &nonce, body };
        let request = agent()
            .post(format!("http://{}{}", self.addr, hook.path))
            .header("Content-Type", "application/json")
            .header("X-Timestamp", &timestamp)
            .header("X-Nonce", &nonce)
            .header("X-Signature", signed.sign(hook.secret))
            .header("webhook-id", &id)
            .header("webhook-timestamp", &timestamp)
            .header("webhook-signature", standard_webhooks([hook.secret], &id, hook.at, body));
        let sent = hook.sent.clone().unwrap_or_else(|| hook.body.clone());
        request.send(sent).expect("an answer").status().as_u16()
    }

    /// Waits until it says a line that begins so.
    fn says(&self, begin: &str) -> bool {
        until(begin, || self.lines.lock().iter().any(|line| line.starts_with(begin)).then_some(true))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// A request that orders a charge.
#[derive(Debug)]
struct Charge {
    once: String,
    nonce: String,
}

/// Between client and gateway: loses the answer to the first charge, refuses the second as an overloaded gateway does.
struct Proxy {
    addr: SocketAddr,
    charges: Arc<Mutex<Vec<Charge>>>,
}

impl Proxy {
    fn start(gateway: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of the kernel's choosing");
        let addr = listener.local_addr().expect("it listens");
        let charges = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&charges);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let seen = Arc::clone(&seen);
                // A client that goes away costs only its own request.
                thread::spawn(move || drop(relay(client, gateway, &seen)));
            }
        });
        Self { addr, charges }
    }
}

/// One request and its answer; then the connection ends.
fn relay(mut client: TcpStream, gateway: SocketAddr, charges: &Mutex<Vec<Charge>>) -> std::io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(client.try_clone()?);
    let (mut head, mut line) = (Vec::new(), String::new());
    while reader.read_line(&mut line)? > 2 {
        head.push(std::mem::take(&mut line).trim_end().to_owned());
    }
    let header = |name: &str| {
        let mut fields = head.iter().filter_map(|line| line.split_once(':'));
        fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value.trim())
    };
    let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let mut nth = 0;
    if head.first().is_some_and(|line| line.starts_with("POST ") && line.contains("/charge ")) {
        let mut charges = charges.lock();
        charges.push(Charge { once: header("idempotency-key").to_owned(), nonce: header("x-nonce").to_owned() });
        nth = charges.len();
    }
    if nth == 2 {
        let refusal =
            r#"{"code":503,"error":"NOT_READY","message":"try again","data":null,"request_id":"r","timestamp":"t"}"#;
        let length = refusal.len();
        return write!(
            client,
            "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{refusal}"
        );
    }
    let mut upstream = TcpStream::connect(gateway)?;
    let kept = head.iter().filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
    let lines: String = kept.map(|line| format!("{line}\r\n")).collect();
    upstream.write_all(format!("{lines}Connection: close\r\n\r\n").as_bytes())?;
    upstream.write_all(&body)?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    if nth == 1 {
        return Ok(());
    }
    client.write_all(&answer)
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/api")
}

fn example(path: &str) -> PathBuf {
    docs().join("examples").join(path)
}

fn secrets(command: &mut Command) -> &mut Command {
    command.env("WEBHOOK_SECRET", SECRET).env("WEBHOOK_SECRET_PREVIOUS", SECRET_PREVIOUS)
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build().into()
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn unix_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_secs()).expect("the end of an i64 is far")
}
