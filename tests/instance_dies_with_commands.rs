//! An instance is killed while it holds commands: no start is doubled, none is forgotten, and orders end as their devices say.
//!
//! Three gateways; devices connect to the second, which is killed, and come back at the third; the API is asked at the first. Before
//! the kill commands are brought to where it hurts: written and not answered, claimed and not written (the second gateway's pause
//! between commands is long). The same once more with Redis emptied at that moment. A start may come twice: with the same message id,
//! which is how its device knows it.

mod cluster;
mod gateway;
mod services;

use chargegate::protocol::ap3000::codes::StartMode;
use cluster::{Cluster, Options, assert_whole_story};
use gateway::{
    Gateway, until,
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
const HOLES_QUERY: [u8; 4] = [0, 1, 0x1D, 0];

#[test]
fn instance_dies_with_commands() {
    let options = Options {
        own: &[(DIES, "CHARGEGATE_AP3000_COMMAND_INTERVAL", "60s")],
        variables: &[("CHARGEGATE_AP3000_COMMAND_INTERVAL", "0ms")],
        ..Options::default()
    };
    let mut cluster = Cluster::start(3, &options);
    for (round, redis_emptied) in [false, true].into_iter().enumerate() {
        let mut held: Vec<Box<dyn Held>> = vec![
            Box::new(StartWritten::on(&cluster, &format!("40aace{round:02x}"))),
            Box::new(StartClaimed::on(&cluster, &format!("41aace{round:02x}"))),
            Box::new(StopWritten::on(&cluster, &format!("42aace{round:02x}"))),
            Box::new(BkvStartWritten::on(&cluster, &format!("8610000000010{round}"), false)),
            Box::new(BkvStartWritten::on(&cluster, &format!("8610000000020{round}"), true)),
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

fn order(cluster: &Cluster, device_id: &str) -> String {
    cluster.gateways[API].charge(device_id, &json!({"port_no": 1, "mode": "full"}))
}

fn with_number(head: &[u8], order_no: &str) -> Vec<u8> {
    [head, &wire_no(order_no)].concat()
}

/// The charge begins, and ends by itself.
fn charges_to_the_end(cluster: &Cluster, device: &mut Ap3000, order_no: &str) {
    let (api, number) = (&cluster.gateways[API], wire_no(order_no));
    device.report_charging(0, number, 300, 2);
    api.order_becomes(order_no, "charging");
    let (start_mode, reason) = (StartMode::ONLINE, 1);
    let end = Ap3000End { port: 0, order_no: number, start_mode, reason, duration_s: 600, energy: 10 };
    let msg_id = device.settle(&end);
    device.expect(msg_id, 0x03, &[0]);
    let done = api.order_becomes(order_no, "completed");
    assert_eq!((&done["energy_wh"], &done["duration_seconds"]), (&json!(100), &json!(600)));
    assert_whole_story(&api.events_of(order_no), &A_WHOLE_CHARGE);
}

const A_WHOLE_CHARGE: [&str; 6] =
    ["order.created", "order.confirmed", "charging.started", "charging.ended", "order.completed", "order.settled"];

/// The start is on the wire; whether the device took it nobody knows.
struct StartWritten {
    device: Ap3000,
    order_no: String,
    msg_id: u16,
}

impl StartWritten {
    fn on(cluster: &Cluster, device_id: &str) -> Self {
        let mut device = online(cluster, device_id);
        let order_no = order(cluster, device_id);
        let msg_id = device.expect_command(0x82, &with_number(&START_FULL, &order_no));
        command_is(cluster, &order_no, "start", "written");
        Self { device, order_no, msg_id }
    }
}

impl Held for StartWritten {
    fn device_id(&self) -> String {
        self.device.phy_id.to_string()
    }

    fn comes_back(&mut self, cluster: &Cluster) {
        self.device = back(cluster, &self.device_id(), 0);
        // Once more, as the same message.
        let again = self.device.expect_command(0x82, &with_number(&START_FULL, &self.order_no));
        assert_eq!(again, self.msg_id);
        self.device.answer(again, 0, 0, wire_no(&self.order_no));
        cluster.gateways[API].order_becomes(&self.order_no, "confirmed");
        charges_to_the_end(cluster, &mut self.device, &self.order_no);
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
        let msg_id = self.device.expect_command(0x82, &with_number(&START_FULL, &self.order_no));
        self.device.answer(msg_id, 0, 0, wire_no(&self.order_no));
        cluster.gateways[API].order_becomes(&self.order_no, "confirmed");
        charges_to_the_end(cluster, &mut self.device, &self.order_no);
    }
}

/// The stop of a charge is on the wire.
struct StopWritten {
    device: Ap3000,
    order_no: String,
    msg_id: u16,
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
        let msg_id = device.expect_command(0x82, &with_number(&STOP, &order_no));
        command_is(cluster, &order_no, "stop", "written");
        Self { device, order_no, msg_id }
    }
}

impl Held for StopWritten {
    fn device_id(&self) -> String {
        self.device.phy_id.to_string()
    }

    fn comes_back(&mut self, cluster: &Cluster) {
        self.device = back(cluster, &self.device_id(), 1);
        let again = self.device.expect_command(0x82, &with_number(&STOP, &self.order_no));
        assert_eq!(again, self.msg_id);
        let number = wire_no(&self.order_no);
        self.device.answer(again, 0, 0, number);
        let api = &cluster.gateways[API];
        api.order_becomes(&self.order_no, "stopped");
        let (start_mode, reason) = (StartMode::ONLINE, 7);
        let end = Ap3000End { port: 0, order_no: number, start_mode, reason, duration_s: 400, energy: 3 };
        let msg_id = self.device.settle(&end);
        self.device.expect(msg_id, 0x03, &[0]);
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
        assert_whole_story(&api.events_of(&self.order_no), &story);
    }
}

/// A BKV start is on the wire. It is never sent a second time blindly: its hole is asked first.
struct BkvStartWritten {
    device: Bkv,
    order_no: String,
    sequence: u32,
    /// The device took it before the instance died.
    taken: bool,
}

impl BkvStartWritten {
    fn on(cluster: &Cluster, gateway_id: &str, taken: bool) -> Self {
        let mut device = Bkv::standalone(cluster.gateways[DIES].devices, gateway_id);
        cluster.shows(API, gateway_id, DIES);
        let api = &cluster.gateways[API];
        let order_no = api.charge(gateway_id, &json!({"port_no": 1, "mode": "time", "duration_minutes": 60}));
        let sequence = device.expect_command(0x0015, &BKV_START);
        command_is(cluster, &order_no, "start", "written");
        Self { device, order_no, sequence, taken }
    }

    fn holes(&self) -> [chargegate::protocol::bkv::report::HoleBlock; 2] {
        [if self.taken { hole(0, 0x90, 7) } else { hole(0, 0x80, 0) }, hole(1, 0x80, 0)]
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
        let mut asked = 0;
        // Questions for its holes, and a start only behind one that said that nothing runs.
        let is_confirmed = |api: &Gateway, order_no: &str| {
            let status = api.order(order_no)["status_text"].clone();
            matches!(status.as_str(), Some("confirmed" | "charging"))
        };
        while !(self.taken && asked > 0 && is_confirmed(api, &self.order_no)) {
            let frame = self.device.line.frame();
            let sequence = u32::from_be_bytes([frame[6], frame[7], frame[8], frame[9]]);
            if frame[18..frame.len() - 3] == HOLES_QUERY {
                asked += 1;
                self.device.answer_query(sequence, 0, &self.holes());
                if self.taken {
                    api.order_becomes(&self.order_no, "charging");
                }
                continue;
            }
            assert_eq!(frame[18..frame.len() - 3], BKV_START, "{frame:02x?}");
            assert!(asked > 0 && !self.taken, "a start without a question");
            assert_eq!(sequence, self.sequence, "another start");
            self.device.answer(sequence, 0x07, 1, 0, 0, 7);
            break;
        }
        if !self.taken {
            api.order_becomes(&self.order_no, "confirmed");
            self.device.push(0, &[hole(0, 0x90, 7), hole(1, 0x80, 0)]);
            api.order_becomes(&self.order_no, "charging");
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
        assert_whole_story(&api.events_of(&self.order_no), &A_WHOLE_CHARGE);
    }
}

/// Waits until the command of an order is in a state.
fn command_is(cluster: &Cluster, order_no: &str, kind: &str, state: &str) {
    let query = format!("SELECT state FROM outbound_queue WHERE order_no = '{order_no}' AND kind = '{kind}'");
    until(&format!("the {kind} of {order_no} is {state}"), || {
        (cluster.value(&query).as_deref() == Some(state)).then_some(Value::Null)
    });
}
