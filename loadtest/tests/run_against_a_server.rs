//! The simulator against a small server that speaks the real bytes over TCP.
//!
//! The server answers everything, charges one port of each device for a minute as soon as it has beaten, and leaves the
//! first copy of every end report unanswered. At the end every device must have connected, charged and settled.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use chargegate::protocol::ap3000::body::{Body as ApBody, ChargeControl};
use chargegate::protocol::ap3000::codes::RateMode;
use chargegate::protocol::ap3000::{self, Item, Magics};
use chargegate::protocol::bkv::body::{Body as BkvBody, Start};
use chargegate::protocol::bkv::{self, encode as bkv_encode};
use chargegate::protocol::{Direction, Step};
use chargegate_loadtest::device::{Behaviour, Request, Rudeness, SECOND_US};
use chargegate_loadtest::fleet::Protocol;
use chargegate_loadtest::run::{Extras, Plan, run, run_with};

fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || Connection::default().serve(stream.unwrap()));
        }
    });
    address
}

#[derive(Default)]
struct Connection {
    buffer: Vec<u8>,
    out: Vec<u8>,
    started: bool,
    end_reports: u32,
}

impl Connection {
    fn serve(&mut self, mut stream: TcpStream) {
        let mut chunk = [0; 4096];
        // The peer may go at any time.
        while let Ok(len @ 1..) = stream.read(&mut chunk) {
            self.buffer.extend_from_slice(&chunk[..len]);
            let buffer = std::mem::take(&mut self.buffer);
            let consumed =
                if buffer.starts_with(&[0xfc]) { self.handle_bkv(&buffer) } else { self.handle_ap3000(&buffer) };
            self.buffer = buffer[consumed..].to_vec();
            if stream.write_all(&self.out).is_err() {
                return;
            }
            self.out.clear();
        }
    }

    fn handle_ap3000(&mut self, buffer: &[u8]) -> usize {
        let (mut at, magics) = (0, Magics::default());
        loop {
            match ap3000::deframe(&buffer[at..], &magics) {
                Step::Item { item, consumed } => {
                    at += consumed;
                    if let Item::Frame(frame) = item {
                        self.answer_ap3000(&frame);
                    }
                }
                Step::Skip { consumed, .. } => at += consumed,
                Step::NeedMore => return at,
            }
        }
    }

    fn answer_ap3000(&mut self, frame: &ap3000::Frame<'_>) {
        use ap3000::encode;
        let header = frame.header();
        match ap3000::decode_body(frame, Direction::Up).unwrap() {
            ApBody::Registration(_) => encode::result_reply(&mut self.out, &header, 0x20, 0),
            ApBody::Heartbeat(_) => {
                encode::result_reply(&mut self.out, &header, 0x21, 0);
                if !std::mem::replace(&mut self.started, true) {
                    let start = ChargeControl::start(RateMode::TIMED, 1, 60, *b"0123456789ABCDEF");
                    let header = encode::Header { msg_id: 7, ..header };
                    encode::charge_control(&mut self.out, &header, &start);
                }
            }
            ApBody::Empty(_) => encode::time_reply(&mut self.out, &header, 0x22, 1_700_000_000),
            ApBody::Settlement(settlement) => {
                assert_eq!((settlement.port, settlement.duration_s), (1, 60));
                assert_eq!(settlement.order_no.0, *b"0123456789ABCDEF");
                encode::result_reply(&mut self.out, &header, 0x03, 0);
            }
            ApBody::ChargingReport(report) => assert_eq!(report.port, 1),
            ApBody::ChargeControlReply(reply) => assert_eq!(reply.result.0, 0),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn handle_bkv(&mut self, buffer: &[u8]) -> usize {
        let mut at = 0;
        loop {
            match bkv::deframe(&buffer[at..]) {
                Step::Item { item, consumed } => {
                    at += consumed;
                    self.answer_bkv(&item);
                }
                Step::Skip { consumed, .. } => at += consumed,
                Step::NeedMore => return at,
            }
        }
    }

    fn answer_bkv(&mut self, frame: &bkv::Frame<'_>) {
        use bkv::command::sub;
        let (out, id) = (&mut self.out, frame.gateway_id);
        match bkv::decode_body(frame).unwrap() {
            BkvBody::Heartbeat(_) => {
                bkv_encode::heartbeat_reply(out, id, 1_700_000_000);
                if !std::mem::replace(&mut self.started, true) {
                    bkv_encode::start(out, id, 9, &Start::time(0, 1, 1));
                }
            }
            BkvBody::Event(event) => bkv_encode::event_ack(out, id, event.packet.header, 0, true),
            BkvBody::Push(packet) => bkv_encode::push_ack(out, id, packet.header, true),
            BkvBody::StartReply(_, reply) => assert_eq!((reply.result, reply.hole, frame.sequence), (1, 1, 9)),
            BkvBody::ChargeEnd(_, end) => {
                assert_eq!((end.block.hole, end.block.charged_min, end.block.status.0), (1, 1, 0xb0));
                self.end_reports += 1;
                if self.end_reports > 1 {
                    bkv_encode::end_ack(out, id, sub::CARD_END, end.block.socket, true);
                }
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

fn plan(connect: SocketAddr) -> Plan {
    Plan {
        connect: vec![connect],
        devices: 20,
        protocol: Protocol::Mix,
        ports: 2,
        sockets: 0,
        ramp_per_s: 200,
        duration: Some(Duration::from_secs(5)),
        drain: Duration::from_secs(30),
        behaviour: Behaviour { heartbeat_us: SECOND_US, time_factor: 60, ..Behaviour::default() },
        source_addresses: 3,
        rude: Vec::new(),
        threads: 2,
        api: None,
    }
}

#[test]
fn every_device_connects_charges_and_settles() {
    let summary = run(&plan(serve()), &AtomicBool::new(false), |_, _| {}).unwrap();
    assert!(summary.ok, "{summary}");
    assert_eq!(summary.totals.ever_connected, 20, "{summary}");
    assert_eq!(summary.totals.charges_started, 20, "{summary}");
    assert_eq!(summary.totals.settled, 20, "{summary}");
    assert_eq!(summary.totals.malformed, 0, "{summary}");
    let settlement = Request::Settlement as usize;
    assert_eq!(summary.totals.given_up[settlement], 10, "each gateway reported twice: {summary}");
}

#[test]
fn no_server_is_a_failure() {
    // Bound, but closed again: nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let plan = Plan { duration: Some(Duration::from_millis(300)), ..plan(address) };
    let summary = run(&plan, &AtomicBool::new(false), |_, _| {}).unwrap();
    assert!(!summary.ok, "{summary}");
    assert_eq!(summary.never_connected, summary.totals.attempted, "{summary}");
}

#[test]
fn devices_connect_to_the_instances_in_turn() {
    // Of two instances one is down; the fleet begins at an odd index.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let plan =
        Plan { connect: vec![nobody, serve()], devices: 5, duration: Some(Duration::from_secs(1)), ..plan(nobody) };
    let extras = Extras { first_device: 101, ..Extras::default() };
    let summary = run_with(&plan, extras, &AtomicBool::new(false), |_, _| {}).unwrap();
    assert_eq!(summary.totals.ever_connected, 3, "101, 103 and 105: {summary}");
}

#[test]
fn rude_peers_connect_beside_the_devices() {
    let rude =
        vec![(Rudeness::Garbage, 2), (Rudeness::HalfFrames, 1), (Rudeness::Silent, 3), (Rudeness::SlowReader, 1)];
    let plan = Plan { duration: Some(Duration::from_secs(1)), devices: 0, rude, threads: 1, ..plan(serve()) };
    let mut connected = 0;
    run(&plan, &AtomicBool::new(false), |_, totals| connected = totals.rude_connected + totals.rude_closed).unwrap();
    assert!(connected >= 7, "{connected}");
}

#[test]
fn the_exit_status_tells_whether_devices_connected() {
    let simulate = |address: SocketAddr| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_chargegate-sim"));
        let connect = address.to_string();
        command.args(["run", "--connect", &connect, "--devices", "2", "--duration", "2500ms", "--json"]);
        command.output().unwrap()
    };
    let good = simulate(serve());
    assert_eq!(good.status.code(), Some(0));
    let summary: serde_json::Value = serde_json::from_slice(&good.stdout).unwrap();
    assert_eq!((summary["ok"].as_bool(), summary["devices"].as_u64()), (Some(true), Some(2)));
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(simulate(nobody).status.code(), Some(1));
}
