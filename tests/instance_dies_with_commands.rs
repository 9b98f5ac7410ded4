//! An instance is killed while it holds commands: no start is doubled, none is forgotten, and orders end as their devices say.
//!
//! Three gateways; devices connect to the second, which is killed, and come back at the third; the API is asked at the first. Before
//! the kill commands are brought to where it hurts:
//! - a start claimed and not written (the second gateway's pause between commands is long) is written by the third, once;
//! - a start written and not answered is never written again: the device is asked, and the charge goes on or times out by what it
//!   shows;
//! - a stop written and not answered still ends the charge.
//!
//! The same once more with Redis emptied at that moment.

mod cluster;
mod gateway;
mod services;

use chargegate::protocol::ap3000::codes::StartMode;
use cluster::{Cluster, Options, assert_tells};
use gateway::{
    until,
    wire::{Ap3000, Ap3000End, Bkv, BkvEnd, ap3000_frame, hole, wire_no},
};
use serde_json::{Value, json};

const API: usize = 0;
const DIES: usize = 1;
const TAKES_OVER: usize = 2;

const START_FULL: [u8; 9] = [0, 0, 0, 0, 0, 0, 1, 0, 0];
const STOP: [u8; 9] = [0, 0, 0, 0, 0, 0, 0, 0, 0];
/// A start by time, an hour, on socket 0 and hole 0.
const BKV_START: [u8; 11] = [0, 8, 0x07, 0, 0, 1, 1, 0, 60, 0, 0];
const VOICE: [u8; 8] = [0, 5, 0x1B, 0, 1, 1, 1, 0];
const HOLES_QUERY: [u8; 4] = [0, 1, 0x1D, 0];

#[test]
fn instance_dies_with_commands() {
    let options = Options {
        own: &[
            (DIES, "CHARGEGATE_AP3000_COMMAND_INTERVAL", "60s"),
            (TAKES_OVER, "CHARGEGATE_ORDERS_START_RESEND", "1s"),
            (TAKES_OVER, "CHARGEGATE_ORDERS_CONFIRM_TIMEOUT", "3s"),
            (TAKES_OVER, "CHARGEGATE_ORDERS_STOP_RESEND", "1s"),
        ],
        variables: &[("CHARGEGATE_AP3000_COMMAND_INTERVAL", "0ms")],
        ..Options::default()
    };
    let mut cluster = Cluster::start(3, &options);
    for (round, redis_emptied) in [false, true].into_iter().enumerate() {
        let mut held: Vec<Box<dyn Held>> = vec![
            Box::new(StartWritten::on(&cluster, &format!("40aace{round:02x}"), false)),
            Box::new(StartWritten::on(&cluster, &format!("43aace{round:02x}"), true)),
            Box::new(StartClaimed::on(&cluster, &format!("41aace{round:02x}"))),
            Box::new(StopWritten::on(&cluster, &format!("42aace{round:02x}"))),
            Box::new(BkvStartWritten::on(&cluster, &format!("8610000000010{round}"), false)),
            Box::new(BkvStartWritten::on(&cluster, &format!("8610000000020{round}"), true)),
            Box::new(BkvStartClaimed::on(&cluster, &format!("8610000000030{round}"))),
        ];
        let epochs: Vec<_> = held.iter().map(|device| cluster.epoch(&device.device_id())).collect();
        cluster.gateways[DIES].kill9();
        if redis_emptied {
            cluster.redis.flush();
        }
        for device in &mut held {
            device.comes_back(&cluster);
        }
        for (device, before) in held.iter().zip(epochs) {
            let device_id = device.device_id();
            assert!(cluster.epoch(&device_id) > before, "{device_id}");
            cluster.shows(API, &device_id, TAKES_OVER);
            let session = cluster.session(&device_id).expect("mirrored again");
            assert_eq!(session["epoch"], json!(cluster.epoch(&device_id)), "{session}");
        }
        cluster.gateways[DIES].start_again();
        cluster.is_ready(DIES);
    }
    let open = "SELECT id, device_id, kind, state FROM outbound_queue WHERE state IN ('queued', 'claimed')";
    assert!(cluster.rows(open).is_empty(), "{:?}", cluster.rows(open));
    let doubled = "SELECT order_no FROM outbound_queue WHERE kind = 'start' GROUP BY order_no HAVING count(*) > 1";
    assert!(cluster.rows(doubled).is_empty(), "{:?}", cluster.rows(doubled));
}

/// A device whose command is somewhere between the store and the device.
trait Held {
    fn device_id(&self) -> String;

    /// Connects to the gateway that takes over; what was ordered happens.
    fn comes_back(&mut self, cluster: &Cluster);
}

fn online(cluster: &Cluster, device_id: &str) -> Ap3000 {
    let device = Ap3000::online(cluster.gateways[DIES].devices, device_id, 1);
    cluster.shows(API, device_id, DIES);
    device
}

fn back(cluster: &Cluster, device_id: &str, state: u8) -> Ap3000 {
    let mut device = Ap3000::connect(cluster.gateways[TAKES_OVER].devices, device_id);
    device.beat(&[state]);
    device
}

/// The next frame that is neither a question for the port's state, which is answered, nor the answer to that.
fn frame(device: &mut Ap3000, state: u8) -> Vec<u8> {
    loop {
        let frame = device.line.frame();
        match frame[11] {
            0x81 => {
                device.heartbeat(&[state]);
            }
            0x21 => {}
            _ => return frame,
        }
    }
}

/// Answers questions for the port's state until something is so; nothing else is asked.
fn answers_until(device: &mut Ap3000, state: u8, is_so: impl Fn() -> bool) {
    until("it is so", || {
        if let Some(frame) = device.line.frame_soon() {
            match frame[11] {
                0x81 => {
                    device.heartbeat(&[state]);
                }
                command => assert_eq!(command, 0x21, "{frame:02x?}"),
            }
        }
        is_so().then_some(())
    });
}

/// Reads a command of the gateway, which must have this data, and returns its message id.
fn command(device: &mut Ap3000, state: u8, data: &[u8]) -> u16 {
    let frame = frame(device, state);
    let msg_id = u16::from_le_bytes([frame[9], frame[10]]);
    assert_eq!(frame, ap3000_frame(device.phy_id, msg_id, 0x82, data), "{frame:02x?}");
    msg_id
}

/// Sends a record, which is acknowledged.
fn settle(device: &mut Ap3000, state: u8, end: &Ap3000End) {
    let msg_id = device.settle(end);
    assert_eq!(frame(device, state), ap3000_frame(device.phy_id, msg_id, 0x03, &[0]));
}

fn order(cluster: &Cluster, device_id: &str) -> String {
    cluster.gateways[API].charge(device_id, &json!({"port_no": 1, "mode": "full"}))
}

fn with_number(head: &[u8], order_no: &str) -> Vec<u8> {
    [head, &wire_no(order_no)].concat()
}

/// The charge begins, and ends by itself.
fn charges_to_the_end(cluster: &Cluster, device: &mut Ap3000, order_no: &str, story: &[&str]) {
    let (api, number) = (&cluster.gateways[API], wire_no(order_no));
    device.report_charging(0, number, 300, 2);
    // What it said before its bind was answered is asked again.
    answers_until(device, 1, || api.order(order_no)["status_text"] == "charging");
    let (start_mode, reason) = (StartMode::ONLINE, 1);
    let end = Ap3000End { port: 0, order_no: number, start_mode, reason, duration_s: 600, energy: 10 };
    settle(device, 1, &end);
    let done = api.order_becomes(order_no, "completed");
    assert_eq!((&done["energy_wh"], &done["duration_seconds"]), (&json!(100), &json!(600)));
    assert_tells(api, order_no, story);
}

/// The acknowledgement of its start was lost; its reports tell that it runs.
const TAKEN: [&str; 5] = ["order.created", "charging.started", "charging.ended", "order.completed", "order.settled"];

const A_WHOLE_CHARGE: [&str; 6] =
    ["order.created", "order.confirmed", "charging.started", "charging.ended", "order.completed", "order.settled"];

/// The start is on the wire; whether the device took it nobody knows.
struct StartWritten {
    device: Ap3000,
    order_no: String,
    /// The device did.
    taken: bool,
}

impl StartWritten {
    fn on(cluster: &Cluster, device_id: &str, taken: bool) -> Self {
        let mut device = online(cluster, device_id);
        let order_no = order(cluster, device_id);
        device.expect_command(0x82, &with_number(&START_FULL, &order_no));
        command_is(cluster, &order_no, "start", "written");
        Self { device, order_no, taken }
    }
}

impl Held for StartWritten {
    fn device_id(&self) -> String {
        self.device.phy_id.to_string()
    }

    fn comes_back(&mut self, cluster: &Cluster) {
        let state = u8::from(self.taken);
        self.device = back(cluster, &self.device_id(), state);
        let api = &cluster.gateways[API];
        if self.taken {
            charges_to_the_end(cluster, &mut self.device, &self.order_no, &TAKEN);
            return;
        }
        answers_until(&mut self.device, state, || api.order(&self.order_no)["status_text"] == "timeout");
        assert_tells(api, &self.order_no, &["order.created", "order.timeout"]);
    }
}

/// The start waits behind another command, in the memory of the instance that dies.
struct StartClaimed {
    device: Ap3000,
    order_no: String,
}

impl StartClaimed {
    fn on(cluster: &Cluster, device_id: &str) -> Self {
        let mut device = online(cluster, device_id);
        let api = &cluster.gateways[API];
        let locate = json!({"command": "locate", "seconds": 1, "valid_seconds": 3600});
        let answer = api.post(&format!("devices/{device_id}/commands"), &locate);
        assert_eq!(answer.status, 202, "{}", answer.text);
        let msg_id = device.expect_command(0x96, &[1]);
        let frame = ap3000_frame(device.phy_id, msg_id, 0x96, &[0]);
        device.line.send(&frame);
        let order_no = order(cluster, device_id);
        command_is(cluster, &order_no, "start", "claimed");
        Self { device, order_no }
    }
}

impl Held for StartClaimed {
    fn device_id(&self) -> String {
        self.device.phy_id.to_string()
    }

    fn comes_back(&mut self, cluster: &Cluster) {
        self.device.line.expect_silent_end();
        self.device = back(cluster, &self.device_id(), 0);
        let msg_id = command(&mut self.device, 0, &with_number(&START_FULL, &self.order_no));
        self.device.answer(msg_id, 0, 0, wire_no(&self.order_no));
        cluster.gateways[API].order_becomes(&self.order_no, "confirmed");
        charges_to_the_end(cluster, &mut self.device, &self.order_no, &A_WHOLE_CHARGE);
    }
}

/// The stop of a charge is on the wire.
struct StopWritten {
    device: Ap3000,
    order_no: String,
}

impl StopWritten {
    fn on(cluster: &Cluster, device_id: &str) -> Self {
        // The pause between commands would keep the stop from being written.
        let mut device = Ap3000::online(cluster.gateways[TAKES_OVER].devices, device_id, 1);
        cluster.shows(API, device_id, TAKES_OVER);
        let order_no = order(cluster, device_id);
        let number = wire_no(&order_no);
        let msg_id = device.expect_command(0x82, &with_number(&START_FULL, &order_no));
        device.answer(msg_id, 0, 0, number);
        device.report_charging(0, number, 300, 2);
        cluster.gateways[API].order_becomes(&order_no, "charging");
        let mut device = Ap3000::connect(cluster.gateways[DIES].devices, device_id);
        device.beat(&[1]);
        cluster.shows(API, device_id, DIES);
        let stop = cluster.gateways[API].post(&format!("orders/{order_no}/stop"), &json!({}));
        assert_eq!(stop.status, 202, "{}", stop.text);
        command(&mut device, 1, &with_number(&STOP, &order_no));
        command_is(cluster, &order_no, "stop", "written");
        Self { device, order_no }
    }
}

impl Held for StopWritten {
    fn device_id(&self) -> String {
        self.device.phy_id.to_string()
    }

    fn comes_back(&mut self, cluster: &Cluster) {
        self.device = back(cluster, &self.device_id(), 1);
        // Once more; whether as the same message does not matter to a stop.
        let again = command(&mut self.device, 1, &with_number(&STOP, &self.order_no));
        let number = wire_no(&self.order_no);
        self.device.answer(again, 0, 0, number);
        let api = &cluster.gateways[API];
        api.order_becomes(&self.order_no, "stopped");
        let (start_mode, reason) = (StartMode::ONLINE, 7);
        let end = Ap3000End { port: 0, order_no: number, start_mode, reason, duration_s: 400, energy: 3 };
        settle(&mut self.device, 1, &end);
        assert_eq!(api.order(&self.order_no)["energy_wh"], 30);
        let story = [
            "order.created",
            "order.confirmed",
            "charging.started",
            "order.stopping",
            "charging.ended",
            "order.stopped",
            "order.settled",
        ];
        assert_tells(api, &self.order_no, &story);
    }
}

/// A BKV start is on the wire.
struct BkvStartWritten {
    device: Bkv,
    order_no: String,
    /// The device took it before the instance died.
    taken: bool,
}

impl BkvStartWritten {
    fn on(cluster: &Cluster, gateway_id: &str, taken: bool) -> Self {
        let mut device = Bkv::standalone(cluster.gateways[DIES].devices, gateway_id);
        cluster.shows(API, gateway_id, DIES);
        let api = &cluster.gateways[API];
        let order_no = api.charge(gateway_id, &json!({"port_no": 1, "mode": "time", "duration_minutes": 60}));
        device.expect_command(0x0015, &BKV_START);
        command_is(cluster, &order_no, "start", "written");
        Self { device, order_no, taken }
    }
}

impl Held for BkvStartWritten {
    fn device_id(&self) -> String {
        self.device.gateway_id.to_string()
    }

    fn comes_back(&mut self, cluster: &Cluster) {
        self.device = Bkv::connect(cluster.gateways[TAKES_OVER].devices, &self.device_id());
        self.device.beat();
        let api = &cluster.gateways[API];
        let holes = [if self.taken { hole(0, 0x90, 7) } else { hole(0, 0x80, 0) }, hole(1, 0x80, 0)];
        let becomes = if self.taken { "charging" } else { "timeout" };
        let mut asked = 0;
        while api.order(&self.order_no)["status_text"] != becomes {
            let Some(frame) = self.device.line.frame_soon() else { continue };
            assert_eq!(frame[18..frame.len() - 3], HOLES_QUERY, "{frame:02x?}");
            asked += 1;
            let sequence = u32::from_be_bytes([frame[6], frame[7], frame[8], frame[9]]);
            self.device.answer_query(sequence, 0, &holes);
        }
        assert!(asked > 0, "nobody asked, so nobody knows");
        if !self.taken {
            assert_tells(api, &self.order_no, &["order.created", "order.timeout"]);
            return;
        }
        let end = BkvEnd { socket: 0, hole: 0, status: 0xB0, business_no: 7, energy_wh: 812, minutes: 60 };
        self.device.settle(&end);
        // A question that was under way may come before the answer.
        loop {
            let frame = self.device.line.frame();
            match &frame[18..frame.len() - 3] {
                [0, 2, 0x0C, 0, 1] => break,
                payload => assert_eq!(*payload, HOLES_QUERY, "{frame:02x?}"),
            }
        }
        let done = api.order_becomes(&self.order_no, "completed");
        assert_eq!((&done["energy_wh"], &done["business_no"]), (&json!(812), &json!(7)));
        // A charge with a new business number is an acknowledgement.
        assert_tells(api, &self.order_no, &A_WHOLE_CHARGE);
    }
}

/// The start waits behind as many commands as may be in flight at a time. Whether it was written nobody knows, so that the hole is
/// asked before it is.
struct BkvStartClaimed {
    device: Bkv,
    order_no: String,
}

impl BkvStartClaimed {
    const IN_FLIGHT_MAX: usize = 8;

    fn on(cluster: &Cluster, gateway_id: &str) -> Self {
        let mut device = Bkv::standalone(cluster.gateways[DIES].devices, gateway_id);
        cluster.shows(API, gateway_id, DIES);
        let api = &cluster.gateways[API];
        let voice = json!({"command": "set_voice", "socket": 0, "buzzer": true, "voice": true});
        for _ in 0..Self::IN_FLIGHT_MAX {
            let answer = api.post(&format!("devices/{gateway_id}/commands"), &voice);
            assert_eq!(answer.status, 202, "{}", answer.text);
            device.expect_command(0x0015, &VOICE);
        }
        let order_no = api.charge(gateway_id, &json!({"port_no": 1, "mode": "time", "duration_minutes": 60}));
        command_is(cluster, &order_no, "start", "claimed");
        Self { device, order_no }
    }
}

impl Held for BkvStartClaimed {
    fn device_id(&self) -> String {
        self.device.gateway_id.to_string()
    }

    fn comes_back(&mut self, cluster: &Cluster) {
        self.device = Bkv::connect(cluster.gateways[TAKES_OVER].devices, &self.device_id());
        self.device.beat();
        let mut asked = 0;
        loop {
            let frame = self.device.line.frame();
            let sequence = u32::from_be_bytes([frame[6], frame[7], frame[8], frame[9]]);
            match &frame[18..frame.len() - 3] {
                payload if *payload == HOLES_QUERY => {
                    asked += 1;
                    self.device.answer_query(sequence, 0, &[hole(0, 0x80, 0), hole(1, 0x80, 0)]);
                }
                payload if *payload == VOICE => {}
                payload => {
                    assert_eq!(*payload, BKV_START, "{frame:02x?}");
                    assert!(asked > 0, "a start without a question");
                    self.device.answer(sequence, 0x07, 1, 0, 0, 7);
                    break;
                }
            }
        }
        cluster.gateways[API].order_becomes(&self.order_no, "confirmed");
        let written = format!("SELECT start_written_at FROM orders WHERE order_no = '{}'", self.order_no);
        assert!(cluster.value(&written).is_some());
    }
}

/// Waits until the command of an order is in a state.
fn command_is(cluster: &Cluster, order_no: &str, kind: &str, state: &str) {
    let query = format!("SELECT state FROM outbound_queue WHERE order_no = '{order_no}' AND kind = '{kind}'");
    until(&format!("the {kind} of {order_no} is {state}"), || {
        (cluster.value(&query).as_deref() == Some(state)).then_some(Value::Null)
    });
}
