//! The API threads against a small HTTP server that checks every signature and refuses each third charge.
//!
//! Devices need a server too, so that ports are free: one that acknowledges registrations and nothing else.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use chargegate::protocol::Step;
use chargegate::protocol::ap3000::{Item, Magics, deframe, encode};
use chargegate::signature::SignedRequest;
use chargegate_loadtest::api::{ApiPlan, Ask};
use chargegate_loadtest::device::Behaviour;
use chargegate_loadtest::fleet::Protocol;
use chargegate_loadtest::run::{Plan, run};

const SECRET: &str = "the secret of the key";

fn listen(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream.unwrap()));
        }
    });
    address
}

/// Answers 0x20, 0x21 and 0x22.
fn serve_device(mut stream: TcpStream) {
    let (mut chunk, mut buffer, mut out) = ([0; 4096], Vec::new(), Vec::new());
    while let Ok(len @ 1..) = stream.read(&mut chunk) {
        buffer.extend_from_slice(&chunk[..len]);
        let mut at = 0;
        while let Step::Item { item, consumed } = deframe(&buffer[at..], &Magics::default()) {
            at += consumed;
            match item {
                Item::Frame(frame) if frame.command == 0x22 => {
                    encode::time_reply(&mut out, &frame.header(), 0x22, 1_700_000_000);
                }
                Item::Frame(frame) => encode::result_reply(&mut out, &frame.header(), frame.command, 0),
                Item::Iccid(_) | Item::Link => {}
            }
        }
        buffer.drain(..at);
        if stream.write_all(&out).is_err() {
            return;
        }
        out.clear();
    }
}

fn serve_http(stream: &TcpStream, count: &AtomicU64, bad: &AtomicU64) {
    let (mut reader, mut writer) = (BufReader::new(stream), stream);
    loop {
        let (mut path, mut headers) = (String::new(), Vec::new());
        for number in 0.. {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            match line.trim() {
                "" => break,
                line if number == 0 => path = line.split(' ').nth(1).unwrap().to_owned(),
                line => headers.extend(line.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_owned()))),
            }
        }
        let header = |name: &str| headers.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value);
        let mut body = vec![0; header("content-length").parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        let signed = SignedRequest {
            method: "POST",
            path: &path,
            timestamp: header("x-timestamp"),
            nonce: header("x-nonce"),
            body: &body,
        };
        let expected = header("x-api-key") == "the key" && header("content-type") == "application/json";
        if !expected || !signed.verify(SECRET, header("x-signature")) {
            bad.fetch_add(1, Relaxed);
        }
        let (status, answer) = if count.fetch_add(1, Relaxed) % 3 == 2 {
            ("409 Conflict", r#"{"code":409,"error":"PORT_BUSY"}"#)
        } else {
            ("202 Accepted", r#"{"code":0,"data":{"order_no":"THD0000000000001"}}"#)
        };
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n", answer.len());
        if write!(writer, "{head}\r\n{answer}").is_err() {
            return;
        }
    }
}

#[test]
fn charges_are_asked_by_signed_requests() {
    let (count, bad) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let counters = (Arc::clone(&count), Arc::clone(&bad));
    let api = listen(move |stream| serve_http(&stream, &counters.0, &counters.1));
    let plan = Plan {
        connect: vec![listen(serve_device)],
        devices: 50,
        protocol: Protocol::Ap3000,
        ports: 2,
        sockets: 0,
        ramp_per_s: 1000,
        duration: Some(Duration::from_secs(2)),
        drain: Duration::from_secs(5),
        behaviour: Behaviour { time_factor: 60, ..Behaviour::default() },
        source_addresses: 0,
        rude: Vec::new(),
        threads: 1,
        api: Some(ApiPlan {
            bases: vec![format!("http://{api}")],
            ask: Ask::Charges,
            after: Duration::ZERO,
            key: "the key".to_owned(),
            secret: Some(SECRET.to_owned()),
            per_s: 30.0,
            minutes: 1..=1,
            stop_percent: 50,
            threads: 2,
            time_factor: 60,
            seed: 1,
        }),
    };
    let summary = run(&plan, &AtomicBool::new(false), |_, _| {}).unwrap();
    let asked = summary.api.clone().expect("the API was asked");
    assert_eq!(bad.load(Relaxed), 0, "{summary}");
    assert!(asked.charges_accepted > 0 && asked.stops > 0, "{summary}");
    assert_eq!(asked.charges + asked.stops, count.load(Relaxed), "{summary}");
    let accepted = asked.charges_accepted + asked.stops_accepted;
    assert_eq!(asked.refusals.get("PORT_BUSY").copied(), Some(count.load(Relaxed) - accepted), "{summary}");
}
