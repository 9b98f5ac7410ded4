//! Every named command and parameter, from the request to the bytes on the device's socket and back to what can be read of it.
//!
//! The real process and a scripted device that checks each frame byte for byte against the vendor documents' tables.

#[macro_use]
mod gateway;

use gateway::{
    Engine, Gateway, until,
    wire::{Ap3000, Bkv, BkvEnd, ap3000_frame, hole, wire_no},
};
use serde_json::{Value, json};

const CHARGER: &str = "40aace04";
const GATEWAY: &str = "86100000000001";

on_both_engines! {
    every_ap3000_command_is_sent_as_documented
    bkv_commands_are_sent_as_documented
    parameters_are_read_set_and_read_back
    socket_parameters_are_set_and_read_back
    a_command_waits_for_its_device
    what_a_protocol_cannot_do_is_said
    readings_of_the_guide_are_configured
}

/// Queues a command and gives its id.
fn command(gateway: &Gateway, device_id: &str, body: &Value) -> i64 {
    let answer = gateway.post(&format!("devices/{device_id}/commands"), body);
    assert_eq!(answer.status, 202, "{}", answer.text);
    assert_eq!(answer.data()["command"], body["command"]);
    assert_eq!(answer.data()["state"], "queued");
    answer.data()["command_id"].as_i64().expect("an id")
}

/// Waits until a command is in a state, and gives it.
fn command_becomes(gateway: &Gateway, device_id: &str, id: i64, state: &str) -> Value {
    until(&format!("command {id} is {state}"), || {
        let command = gateway.get(&format!("devices/{device_id}/commands/{id}")).data().clone();
        (command["state"] == state).then_some(command)
    })
}

/// The device replies to a command of the gateway.
fn reply(device: &mut Ap3000, msg_id: u16, command: u8, data: &[u8]) {
    let frame = ap3000_frame(device.phy_id, msg_id, command, data);
    device.line.send(&frame);
}

fn reply_bkv(device: &mut Bkv, command: u16, sequence: u32, payload: &[u8]) {
    use chargegate::protocol::{Direction, bkv::encode};
    device.send(|out, id| encode::frame(out, Direction::Up, command, sequence, id, |out| out.extend(payload)));
}

fn padded(text: &str, len: usize) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(len, 0);
    bytes
}

fn every_ap3000_command_is_sent_as_documented(engine: Engine) {
    // Twenty commands, and no module that loses those that come too fast.
    let variables = [("CHARGEGATE_AP3000_COMMAND_INTERVAL", "0ms")];
    let Some(gateway) = Gateway::start(engine, &variables) else { return };
    let mut device = Ap3000::online(gateway.devices, CHARGER, 2);
    gateway.knows_port(CHARGER, 2);
    let order_no = "THD6H0BG6NY8TR00";
    let server = [&[0x70, 0x17, 3, 1][..], &padded("gate.example", 46)].concat();
    let cases: Vec<(Value, u8, Vec<u8>)> = vec![
        (json!({"command": "clear_storage"}), 0x88, vec![]),
        (json!({"command": "locate", "seconds": 10}), 0x96, vec![10]),
        (json!({"command": "play_voice", "interrupt": true, "segments": [1, 2]}), 0x89, vec![1, 2, 1, 2]),
        (json!({"command": "modify_charge", "port_no": 2, "duration_seconds": 7200}), 0x8A, vec![0, 1, 0x20, 0x1C]),
        (
            json!({"command": "modify_charge", "port_no": 1, "duration_seconds": 60, "stop_when_full": true}),
            0x8A,
            vec![1, 0, 60, 0],
        ),
        (json!({"command": "modify_charge", "port_no": 1, "energy_wh": 1350}), 0x8A, vec![2, 0, 135, 0]),
        (json!({"command": "eeprom_write", "address": 258, "data": "a1b2"}), 0x8C, vec![2, 1, 2, 0xA1, 0xB2]),
        (json!({"command": "temporary_qr", "text": "pay me"}), 0x95, padded("pay me", 200)),
        (json!({"command": "open_door", "port_no": 2}), 0x98, vec![0, 1]),
        (json!({"command": "host_reboot"}), 0x31, vec![]),
        (json!({"command": "module_reboot"}), 0x32, vec![]),
        (json!({"command": "clear_sub_device_update_data"}), 0x33, vec![]),
        (
            json!({"command": "set_server_address", "address": "gate.example", "port": 6000, "module_type": 3}),
            0x34,
            server,
        ),
        (
            json!({"command": "set_fsk_params", "frequency": 470, "sub_devices": ["40aace04", "3b37ab04"]}),
            0x3A,
            vec![0xD6, 1, 0, 0, 0, 2, 0x40, 0xAA, 0xCE, 4, 0x3B, 0x37, 0xAB, 4],
        ),
        (json!({"command": "reboot"}), 0x87, vec![]),
    ];
    for (body, code, data) in cases {
        let id = command(&gateway, CHARGER, &body);
        let msg_id = device.expect_command(code, &data);
        reply(&mut device, msg_id, code, &[0]);
        let done = command_becomes(&gateway, CHARGER, id, "acked");
        assert_eq!((&done["result"], &done["attempts"]), (&json!({"result": 0}), &json!(1)), "{body}");
    }
    // The cabinet's reply carries the order, the storage's its bytes.
    let id = command(&gateway, CHARGER, &json!({"command": "stop_keep_door", "port_no": 1, "order_no": order_no}));
    let number = wire_no(order_no);
    let msg_id = device.expect_command(0x72, &[&[0][..], &number].concat());
    reply(&mut device, msg_id, 0x72, &[&[0][..], &number].concat());
    command_becomes(&gateway, CHARGER, id, "acked");
    let id = command(&gateway, CHARGER, &json!({"command": "eeprom_read", "address": 16, "length": 3}));
    let msg_id = device.expect_command(0x8B, &[16, 0, 3]);
    reply(&mut device, msg_id, 0x8B, &[0, 0xCA, 0xFE, 0x01]);
    assert_eq!(command_becomes(&gateway, CHARGER, id, "acked")["result"]["eeprom_data"], "cafe01");
    // Asked for its status, the device reports; told to update itself, it says nothing.
    let id = command(&gateway, CHARGER, &json!({"command": "query_status"}));
    device.expect_command(0x81, &[]);
    device.beat(&[0, 0]);
    assert_eq!(command_becomes(&gateway, CHARGER, id, "acked")["result"]["port_count"], 2);
    let id = command(&gateway, CHARGER, &json!({"command": "trigger_self_update"}));
    device.expect_command(0xE4, &[]);
    command_becomes(&gateway, CHARGER, id, "acked");
    // A refusal is shown as the device's.
    let id = command(&gateway, CHARGER, &json!({"command": "modify_charge", "port_no": 1, "duration_seconds": 5}));
    let msg_id = device.expect_command(0x8A, &[0, 0, 5, 0]);
    reply(&mut device, msg_id, 0x8A, &[1]);
    let refused = command_becomes(&gateway, CHARGER, id, "refused");
    assert_eq!((&refused["reason"], &refused["result"]), (&json!("device_refused"), &json!({"result": 1})));
    let listed = gateway.get(&format!("devices/{CHARGER}/commands?size=3"));
    assert_eq!(listed.data()["total"], 20);
    assert_eq!(listed.data()["items"][0]["command_id"], id);
}

fn bkv_commands_are_sent_as_documented(engine: Engine) {
    let Some(gateway) = Gateway::start(engine, &[]) else { return };
    let mut device = Bkv::standalone(gateway.devices, GATEWAY);
    gateway.knows_port(GATEWAY, 2);
    let body = json!({
        "command": "set_voice", "socket": 254, "buzzer": false, "voice": true,
        "periods": [{"start_hour": 8, "start_minute": 0, "end_hour": 22, "end_minute": 30}],
    });
    let id = command(&gateway, GATEWAY, &body);
    let sequence = device.expect_command(0x0015, &[0, 9, 0x1B, 254, 1, 0, 1, 1, 8, 0, 22, 30]);
    reply_bkv(&mut device, 0x0015, sequence, &[0, 3, 0x1B, 254, 1, 1]);
    command_becomes(&gateway, GATEWAY, id, "acked");
    // A query is answered by 1D, 1C or a push of that socket.
    for sub in [0x1D, 0x1C] {
        let id = command(&gateway, GATEWAY, &json!({"command": "query_socket", "socket": 0}));
        let sequence = device.expect_command(0x0015, &[0, 1, 0x1D, 0]);
        let state = [0, 1, 2, 25, 20, 0, 0x80, 0, 0, 8, 0xE3, 0, 0, 0, 0, 0, 0, 0, 0];
        reply_bkv(&mut device, 0x0015, sequence, &[&[0, 19, sub][..], &state].concat());
        assert_eq!(command_becomes(&gateway, GATEWAY, id, "acked")["attempts"], 1);
    }
    let id = command(&gateway, GATEWAY, &json!({"command": "query_socket", "socket": 0}));
    device.expect_command(0x0015, &[0, 1, 0x1D, 0]);
    device.push(0, &[hole(0, 0x80, 0)]);
    command_becomes(&gateway, GATEWAY, id, "acked");
    let id = command(&gateway, GATEWAY, &json!({"command": "set_voice", "socket": 0, "buzzer": true, "voice": true}));
    let sequence = device.expect_command(0x0015, &[0, 5, 0x1B, 0, 1, 1, 1, 0]);
    reply_bkv(&mut device, 0x0015, sequence, &[0, 3, 0x1B, 0, 1, 0]);
    command_becomes(&gateway, GATEWAY, id, "refused");
}

/// Waits until nothing is pending, and gives the parameters by name.
fn params_settle(gateway: &Gateway, device_id: &str) -> Value {
    until("no parameter is pending", || {
        let answer = gateway.get(&format!("devices/{device_id}/params"));
        let all = answer.data();
        (all["pending"] == false).then(|| {
            let by_name = all["params"].as_array().expect("a list").iter();
            by_name.map(|param| (param["name"].as_str().expect("a name").to_owned(), param.clone())).collect()
        })
    })
}

fn parameters_are_read_set_and_read_back(engine: Engine) {
    let Some(gateway) = Gateway::start(engine, &[]) else { return };
    let mut device = Ap3000::online(gateway.devices, CHARGER, 2);
    gateway.knows_port(CHARGER, 2);
    let wanted = json!({"params": {"heartbeat_interval_s": 60}});
    let answer = gateway.post(&format!("devices/{CHARGER}/params"), &wanted);
    assert_eq!((answer.status, &answer.data()["pending"]), (202, &json!(true)), "{}", answer.text);
    // The rest of the group is not known: it is read before it is set.
    let msg_id = device.expect_command(0x90, &[]);
    let had = [3, 0, 10, 0, 20, 8, 7, 0x10, 0x0E, 180, 0];
    reply(&mut device, msg_id, 0x90, &had);
    let has = [3, 0, 10, 0, 20, 8, 7, 0x10, 0x0E, 60, 0];
    let msg_id = device.expect_command(0x83, &has);
    // Once, 10 s may pass before its reply; a wrong id answers nothing.
    reply(&mut device, msg_id.wrapping_add(1), 0x83, &[0]);
    reply(&mut device, msg_id, 0x83, &[0]);
    let msg_id = device.expect_command(0x90, &[]);
    reply(&mut device, msg_id, 0x90, &has);
    let params = params_settle(&gateway, CHARGER);
    assert_eq!(params["heartbeat_interval_s"]["reported"], 60);
    assert_eq!(params["heartbeat_interval_s"]["desired"], 60);
    assert_eq!((&params["float_percent"]["reported"], &params["float_percent"]["desired"]), (&json!(20), &Value::Null));

    // A group that cannot be read is confirmed by its reply; what the device refuses is said.
    for (body, code, data, result) in [
        (json!({"params": {"mute": 1}}), 0x97, vec![1], 0),
        (json!({"params": {"work_mode": 1}}), 0x8D, vec![1], 1),
        (
            json!({"params": {"screen_type": 1, "qr_text": "http://x/"}}),
            0x8E,
            [&[1, 0, 0, 0][..], &padded("http://x/", 72)].concat(),
            0,
        ),
    ] {
        let answer = gateway.post(&format!("devices/{CHARGER}/params"), &body);
        assert_eq!(answer.status, 202, "{}", answer.text);
        let msg_id = device.expect_command(code, &data);
        reply(&mut device, msg_id, code, &[result]);
    }
    let params = params_settle(&gateway, CHARGER);
    assert_eq!(params["mute"]["reported"], 1);
    assert_eq!(
        (&params["work_mode"]["refused"], &params["work_mode"]["reported"]),
        (&json!("device_refused"), &Value::Null)
    );
    assert_eq!(params["qr_text"]["reported"], "http://x/");

    // Asked what it has, without a wish.
    let answer = gateway.post(&format!("devices/{CHARGER}/params"), &json!({"refresh": true}));
    assert_eq!(answer.status, 202, "{}", answer.text);
    let card = [0, 0x15, 0x91, 0x85, 0x19, 0x18, 0x80, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF];
    for (code, data) in [(0x90, &has[..]), (0x91, &[0; 23]), (0x92, &[0xA0, 0x8C, 0x20, 3]), (0x93, &card)] {
        let msg_id = device.expect_command(code, &[]);
        reply(&mut device, msg_id, code, data);
    }
    until("all groups are reported", || {
        let all = gateway.get(&format!("devices/{CHARGER}/params"));
        let list = all.data()["params"].as_array()?;
        list.iter().any(|param| param["name"] == "user_card_key" && param["reported"] == "159185191880").then_some(())
    });
}

fn socket_parameters_are_set_and_read_back(engine: Engine) {
    let Some(gateway) = Gateway::start(engine, &[]) else { return };
    let mut device = Bkv::standalone(gateway.devices, GATEWAY);
    gateway.knows_port(GATEWAY, 2);
    let wanted = json!({"socket": 2, "params": {"max_charge_min": 600}});
    let answer = gateway.post(&format!("devices/{GATEWAY}/params"), &wanted);
    assert_eq!(answer.status, 202, "{}", answer.text);
    let id: chargegate::protocol::bkv::GatewayId = GATEWAY.parse().expect("an id");
    let packet = |sub: u8, sequence: u32, elements: &[u8]| {
        let mut payload = vec![4, 1, 1, 0x10, sub, 0x0A, 1, 2, 0, 0, 0, 0];
        payload.extend(sequence.to_be_bytes());
        payload.extend([9, 1, 3]);
        payload.extend(id.0);
        payload.extend(elements);
        payload
    };
    let frame = device.line.frame();
    let sequence = u32::from_be_bytes([frame[6], frame[7], frame[8], frame[9]]);
    let set = packet(0x11, sequence, &[3, 1, 0x4A, 2, 4, 1, 0x59, 2, 0x58]);
    assert_eq!(frame, gateway::wire::bkv_frame(id, 0x1000, sequence, &set), "{frame:02x?}");
    reply_bkv(&mut device, 0x1000, sequence, &packet(0x11, sequence, &[3, 1, 0x4A, 2, 3, 1, 0x0F, 1]));
    let frame = device.line.frame();
    let sequence = u32::from_be_bytes([frame[6], frame[7], frame[8], frame[9]]);
    let query = packet(0x12, sequence, &[3, 1, 0x4A, 2]);
    assert_eq!(frame, gateway::wire::bkv_frame(id, 0x1000, sequence, &query), "{frame:02x?}");
    let values = [3, 1, 0x4A, 2, 3, 1, 0x0F, 1, 4, 1, 0x59, 2, 0x58, 3, 1, 0x25, 0x55];
    reply_bkv(&mut device, 0x1000, sequence, &packet(0x12, sequence, &values));
    let params = params_settle(&gateway, GATEWAY);
    assert_eq!((&params["max_charge_min"]["reported"], &params["max_charge_min"]["socket"]), (&json!(600), &json!(2)));
    assert_eq!(params["high_temp_threshold"]["reported"], 0x55);
}

fn a_command_waits_for_its_device(engine: Engine) {
    let Some(gateway) = Gateway::start(engine, &[("CHARGEGATE_QUEUE_PER_DEVICE_MAX", "1")]) else { return };
    let device = Ap3000::online(gateway.devices, CHARGER, 2);
    gateway.knows_port(CHARGER, 2);
    device.line.hang_up();
    until("the device is gone", || (gateway.metric("chargegate_tcp_closed_total{reason=\"peer\"}") == 1).then_some(()));
    let id = command(&gateway, CHARGER, &json!({"command": "locate", "seconds": 3, "valid_seconds": 3600}));
    // No more of them wait for one device than is configured.
    let another = json!({"command": "locate", "seconds": 4});
    gateway.post(&format!("devices/{CHARGER}/commands"), &another).refused(503, "QUEUE_OVERLOADED");
    let mut device = Ap3000::connect(gateway.devices, CHARGER);
    let msg_id = device.heartbeat(&[0, 0]);
    device.expect(msg_id, 0x21, &[0]);
    let msg_id = device.expect_command(0x96, &[3]);
    reply(&mut device, msg_id, 0x96, &[0]);
    command_becomes(&gateway, CHARGER, id, "acked");
}

fn what_a_protocol_cannot_do_is_said(engine: Engine) {
    let Some(gateway) = Gateway::start(engine, &[]) else { return };
    let _charger = Ap3000::online(gateway.devices, CHARGER, 2);
    let _gateway = Bkv::standalone(gateway.devices, GATEWAY);
    gateway.knows_port(CHARGER, 2);
    gateway.knows_port(GATEWAY, 2);
    let of = |device_id: &str, path: &str| format!("devices/{device_id}/{path}");
    for (device_id, path, body, status, code, named) in [
        (GATEWAY, "commands", json!({"command": "reboot"}), 400, "NOT_SUPPORTED", "query_socket"),
        (CHARGER, "commands", json!({"command": "set_voice"}), 400, "NOT_SUPPORTED", "locate"),
        (CHARGER, "commands", json!({}), 400, "INVALID_PARAMETER", "command is missing"),
        (CHARGER, "commands", json!({"command": "locate", "seconds": 0}), 400, "INVALID_PARAMETER", "1..=255"),
        (CHARGER, "commands", json!({"command": "reboot", "now": true}), 400, "INVALID_PARAMETER", "now"),
        (
            CHARGER,
            "commands",
            json!({"command": "eeprom_write", "address": 1, "data": "xy"}),
            400,
            "INVALID_PARAMETER",
            "data",
        ),
        (CHARGER, "params", json!({"params": {"colour": 1}}), 400, "NOT_SUPPORTED", "params.colour"),
        (CHARGER, "params", json!({"params": {"float_percent": 0}}), 400, "INVALID_PARAMETER", "1..=100, got 0"),
        (GATEWAY, "params", json!({"params": {"max_charge_min": 1}}), 400, "INVALID_PARAMETER", "socket is missing"),
        (CHARGER, "params", json!({}), 400, "INVALID_PARAMETER", "params is missing"),
        ("40aace05", "commands", json!({"command": "reboot"}), 404, "DEVICE_NOT_FOUND", "40aace05"),
        ("40aace05", "params", json!({"params": {"mute": 1}}), 404, "DEVICE_NOT_FOUND", "40aace05"),
    ] {
        let answer = gateway.post(&of(device_id, path), &body);
        let message = answer.refused(status, code);
        assert!(message.contains(named), "{body}: {message}");
    }
    let code = gateway.get(&of(CHARGER, "verification-code?port_no=1"));
    assert_eq!(code.status, 200, "{}", code.text);
    let typed: u32 = code.data()["code"].as_str().filter(|code| code.len() == 6).expect("6 digits").parse().unwrap();
    let now = code.data()["valid_until"].as_str().expect("a time");
    assert!(typed < 1_000_000 && now > code.data()["valid_from"].as_str().expect("a time"));
    gateway.get(&of(GATEWAY, "verification-code?port_no=1")).refused(400, "NOT_SUPPORTED");
    gateway.get(&of(CHARGER, "verification-code?port_no=0")).refused(400, "INVALID_PARAMETER");
    gateway.get(&of(CHARGER, "commands/99")).refused(404, "NOT_FOUND");
    gateway.get(&of(CHARGER, "commands/x")).refused(400, "INVALID_PARAMETER");
}

/// The guide contradicts itself; which of its readings is used is configured.
fn readings_of_the_guide_are_configured(engine: Engine) {
    let variables = [("CHARGEGATE_BKV_POWER_START_COMMAND", "0005"), ("CHARGEGATE_BKV_CHARGE_END_ACK", "02")];
    let Some(gateway) = Gateway::start(engine, &variables) else { return };
    let mut device = Bkv::standalone(gateway.devices, GATEWAY);
    gateway.knows_port(GATEWAY, 2);
    let tier = json!({"power_dw": 2000, "price_cent": 25, "minutes": 60});
    let body = json!({"port_no": 1, "mode": "power", "paid_cent": 100, "tiers": [tier]});
    let order_no = gateway.charge(GATEWAY, &body);
    let sequence = device.expect_command(0x0005, &[0, 12, 0x17, 0, 0, 1, 0, 100, 1, 7, 0xD0, 0, 25, 0, 60]);
    // The reply may come under either word.
    reply_bkv(&mut device, 0x0005, sequence, &[0, 5, 0x17, 1, 0, 0, 0, 7]);
    gateway.order_becomes(&order_no, "confirmed");
    let end = BkvEnd { socket: 0, hole: 0, status: 0xB0, business_no: 7, energy_wh: 30, minutes: 60 };
    device.settle(&end);
    device.expect_answer(0x0015, &[0, 2, 2, 0, 1]);
    // Again, although it was acknowledged: both forms.
    device.settle(&end);
    device.expect_answer(0x0015, &[0, 2, 2, 0, 1]);
    device.expect_answer(0x0015, &[0, 2, 0x0C, 0, 1]);
}
