//! The network list of a gateway, from the stored list to the bytes and back: the core and the real store.

mod fleet;

use chargegate::{
    gateway::{
        ConnId,
        network::{Given, NetworkList, SocketState},
    },
    model::{DeviceId, PortStatus, Protocol},
    store::{Job, NetworkChange, NetworkJob, Networked, Outcome, Settings},
};
use fleet::{Gateway, bkv, bkv_heartbeat, bkv_up, packet, tag};
use serde_json::json;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const NETWORK: u16 = 0x05;

fn given(socket: u8) -> Given {
    Given { socket, mac: [0, 0, 0, 0, 0xAA, socket], uid: Some(format!("uid-{socket}")) }
}

/// The bytes of an entry of 08 or 09.
fn entry(socket: u8) -> Vec<u8> {
    [&[socket][..], &given(socket).mac].concat()
}

fn change(gateway: &mut Gateway, id: DeviceId, change: NetworkChange) -> Networked {
    let job = NetworkJob {
        device_id: id,
        change,
        at: gateway.now().unix_ms,
        request_id: "request".to_owned(),
        idempotency: None,
    };
    match gateway.call(Job::Network(Box::new(job))) {
        Outcome::Networked(networked) => networked,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn changed(gateway: &mut Gateway, id: DeviceId, what: NetworkChange) -> NetworkList {
    match change(gateway, id, what) {
        Networked::Changed(told) => told.list,
        other => panic!("{other:?}"),
    }
}

fn refresh(sockets: &[u8]) -> NetworkChange {
    NetworkChange::Replace { channel: 7, sockets: sockets.iter().map(|socket| given(*socket)).collect() }
}

fn connect(gateway: &mut Gateway, id: DeviceId) -> ConnId {
    let conn = gateway.connect();
    gateway.receive(conn, &bkv_heartbeat(id));
    conn
}

/// The network commands written since the last call: sequence, sub-command, body.
fn commands(gateway: &mut Gateway, conn: ConnId) -> Vec<(u32, u8, Vec<u8>)> {
    let frames = gateway.bkv_frames(conn);
    let network = frames.into_iter().filter(|(command, ..)| *command == NETWORK);
    network.map(|(_, sequence, payload)| (sequence, payload[2], payload[3..].to_vec())).collect()
}

/// The one network command written since the last call.
#[track_caller]
fn command(gateway: &mut Gateway, conn: ConnId) -> (u32, u8, Vec<u8>) {
    let mut all = commands(gateway, conn);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn answer(gateway: &mut Gateway, conn: ConnId, id: DeviceId, (sequence, sub, _): &(u32, u8, Vec<u8>), result: u8) {
    gateway.receive(conn, &bkv_up(id, NETWORK, *sequence, &[0, 1, *sub, result]));
}

fn states(gateway: &Gateway, id: DeviceId) -> String {
    let query = format!(
        "SELECT coalesce(group_concat(socket || ' ' || state, ', '), '') FROM \
         (SELECT * FROM gateway_sockets WHERE device_id = '{id}' ORDER BY socket)"
    );
    gateway.value(&query).unwrap()
}

fn ports(gateway: &Gateway, id: DeviceId) -> Vec<u16> {
    gateway.entry(id).ports().iter().map(|port| port.port_no).collect()
}

/// A connected gateway that has confirmed these sockets.
fn listed(gateway: &mut Gateway, id: DeviceId, sockets: &[u8]) -> ConnId {
    let conn = connect(gateway, id);
    gateway.take_written();
    changed(gateway, id, refresh(sockets));
    let sent = command(gateway, conn);
    answer(gateway, conn, id, &sent, 1);
    conn
}

fn push(id: DeviceId, socket: u8, status: u8) -> Vec<u8> {
    let hole = |hole| tag(0x5B, &[tag(0x08, &[hole]), tag(0x09, &[status])].concat());
    packet(id, 0x1017, &tag(0x94, &[tag(0x4A, &[socket]), hole(0), hole(1)].concat()))
}

#[test]
fn a_list_is_sent_at_once_and_confirmed_by_the_gateway() {
    for protocol in [Protocol::Bkv, Protocol::Gn] {
        let mut gateway = Gateway::new();
        let settings = gateway.settings(bkv(1));
        gateway.call(Job::Settings(Box::new(Settings { protocol: Some(protocol), ..settings })));
        let conn = connect(&mut gateway, bkv(1));
        gateway.take_written();
        let list = changed(&mut gateway, bkv(1), refresh(&[1, 3]));
        assert!(!list.is_confirmed());
        assert_eq!(ports(&gateway, bkv(1)), [1, 2, 5, 6], "ports come with their sockets");
        assert!(gateway.entry(bkv(1)).networked());
        let sent = command(&mut gateway, conn);
        assert_eq!((sent.1, &sent.2), (0x08, &[&[7][..], &entry(1), &entry(3)].concat()));
        assert_ne!(sent.0, 0);
        assert_eq!(states(&gateway, bkv(1)), "1 desired, 3 desired");
        gateway.pass(3 * SECOND);
        answer(&mut gateway, conn, bkv(1), &sent, 1);
        assert_eq!(states(&gateway, bkv(1)), "1 confirmed, 3 confirmed");
        let row = gateway.value("SELECT kind || ' ' || state FROM outbound_queue ORDER BY id DESC LIMIT 1");
        assert_eq!(row.as_deref(), Some("network_refresh acked"));
        gateway.pass(MINUTE);
        assert!(commands(&mut gateway, conn).is_empty(), "nothing more to do");
        // The gateway that has its list is not told again.
        gateway.disconnect(conn);
        let conn = connect(&mut gateway, bkv(1));
        assert!(commands(&mut gateway, conn).is_empty());
    }
}

#[test]
fn sockets_are_added_and_removed_one_at_a_time() {
    let mut gateway = Gateway::new();
    let conn = listed(&mut gateway, bkv(1), &[1]);
    changed(&mut gateway, bkv(1), NetworkChange::Add(given(2)));
    changed(&mut gateway, bkv(1), NetworkChange::Add(given(250)));
    assert_eq!(ports(&gateway, bkv(1)), [1, 2, 3, 4, 499, 500]);
    let first = command(&mut gateway, conn);
    assert_eq!((first.1, &first.2), (0x09, &entry(2)));
    answer(&mut gateway, conn, bkv(1), &first, 1);
    let second = command(&mut gateway, conn);
    assert_eq!((second.1, &second.2), (0x09, &entry(250)));
    answer(&mut gateway, conn, bkv(1), &second, 1);
    assert_eq!(states(&gateway, bkv(1)), "1 confirmed, 2 confirmed, 250 confirmed");
    changed(&mut gateway, bkv(1), NetworkChange::Remove(2));
    assert_eq!(ports(&gateway, bkv(1)), [1, 2, 499, 500], "its ports take no orders any more");
    let removal = command(&mut gateway, conn);
    assert_eq!((removal.1, &removal.2), (0x0A, &vec![2]));
    // What the socket still reports does not bring its ports back.
    gateway.receive(conn, &push(bkv(1), 2, 0x80));
    gateway.pass(4 * SECOND);
    assert_eq!(ports(&gateway, bkv(1)), [1, 2, 499, 500]);
    assert_eq!(gateway.value("SELECT count(*) || '' FROM ports WHERE socket = 2").as_deref(), Some("0"));
    answer(&mut gateway, conn, bkv(1), &removal, 1);
    assert_eq!(states(&gateway, bkv(1)), "1 confirmed, 250 confirmed");
    assert!(matches!(change(&mut gateway, bkv(1), NetworkChange::Remove(2)), Networked::NotListed));
    // Added again, it reports again.
    changed(&mut gateway, bkv(1), NetworkChange::Add(given(2)));
    gateway.receive(conn, &push(bkv(1), 2, 0x80));
    assert_eq!(gateway.entry(bkv(1)).port(3).map(|port| port.status), Some(PortStatus::Idle));
}

#[test]
fn a_list_for_a_gateway_that_is_away_goes_out_when_it_comes() {
    let mut gateway = Gateway::new();
    let settings = gateway.settings(bkv(1));
    gateway.call(Job::Settings(Box::new(settings)));
    changed(&mut gateway, bkv(1), refresh(&[1]));
    // Another list before it came: the first is taken back.
    changed(&mut gateway, bkv(1), refresh(&[2]));
    let conn = connect(&mut gateway, bkv(1));
    let sent = command(&mut gateway, conn);
    assert_eq!(sent.2, [&[7][..], &entry(2)].concat());
    assert_eq!(ports(&gateway, bkv(1)), [3, 4]);
    answer(&mut gateway, conn, bkv(1), &sent, 1);
    assert_eq!(states(&gateway, bkv(1)), "2 confirmed");
    let rows = gateway.value("SELECT group_concat(state || coalesce(' ' || reason, ''), ', ') FROM outbound_queue");
    assert_eq!(rows.as_deref(), Some("withdrawn superseded, acked"));
}

#[test]
fn a_list_whose_answer_was_lost_is_sent_again_at_the_next_bind() {
    let mut gateway = Gateway::new();
    let conn = connect(&mut gateway, bkv(1));
    gateway.take_written();
    changed(&mut gateway, bkv(1), refresh(&[1, 2]));
    let lost = command(&mut gateway, conn);
    gateway.disconnect(conn);
    let conn = connect(&mut gateway, bkv(1));
    let again = command(&mut gateway, conn);
    assert_eq!(again, lost, "the same command: one answer is as good as the other");
    answer(&mut gateway, conn, bkv(1), &again, 1);
    assert_eq!(states(&gateway, bkv(1)), "1 confirmed, 2 confirmed");
    gateway.pass(5 * MINUTE);
    assert!(commands(&mut gateway, conn).is_empty());
}

#[test]
fn a_list_that_changed_while_the_gateway_was_away_is_sent_as_it_is_now() {
    let mut gateway = Gateway::new();
    let conn = connect(&mut gateway, bkv(1));
    gateway.take_written();
    changed(&mut gateway, bkv(1), refresh(&[1, 2]));
    let lost = command(&mut gateway, conn);
    gateway.disconnect(conn);
    changed(&mut gateway, bkv(1), refresh(&[3]));
    let conn = connect(&mut gateway, bkv(1));
    let sent = command(&mut gateway, conn);
    assert_eq!((sent.1, &sent.2), (0x08, &[&[7][..], &entry(3)].concat()));
    assert_ne!(sent.0, lost.0);
    // The answer to the lost one confirms nothing.
    answer(&mut gateway, conn, bkv(1), &lost, 1);
    assert_eq!(states(&gateway, bkv(1)), "1 removing, 2 removing, 3 desired");
    answer(&mut gateway, conn, bkv(1), &sent, 1);
    assert_eq!(states(&gateway, bkv(1)), "3 confirmed");
    gateway.pass(5 * MINUTE);
    assert!(commands(&mut gateway, conn).is_empty());
}

#[test]
fn a_silent_gateway_is_told_again_and_then_at_the_next_bind() {
    let mut gateway = Gateway::new();
    let conn = connect(&mut gateway, bkv(1));
    gateway.take_written();
    changed(&mut gateway, bkv(1), NetworkChange::Add(given(1)));
    let first = command(&mut gateway, conn);
    for _ in 0..8 {
        gateway.pass(30 * SECOND);
        gateway.receive(conn, &bkv_heartbeat(bkv(1)));
    }
    let again = commands(&mut gateway, conn);
    assert!((2..6).contains(&again.len()), "{again:?}");
    assert!(again.iter().all(|sent| *sent == first), "the same command: {again:?}");
    let state = gateway.value("SELECT state || ' ' || refused FROM gateway_sockets");
    assert_eq!(state.as_deref(), Some("desired no_reply"));
    gateway.disconnect(conn);
    let conn = connect(&mut gateway, bkv(1));
    let fresh = command(&mut gateway, conn);
    assert_eq!((fresh.1, &fresh.2), (0x09, &entry(1)));
    answer(&mut gateway, conn, bkv(1), &fresh, 1);
    assert_eq!(states(&gateway, bkv(1)), "1 confirmed");
}

#[test]
fn what_a_gateway_refuses_is_shown_and_holds_up_nothing() {
    let mut gateway = Gateway::new();
    let conn = listed(&mut gateway, bkv(1), &[1]);
    changed(&mut gateway, bkv(1), NetworkChange::Add(given(2)));
    changed(&mut gateway, bkv(1), NetworkChange::Add(given(3)));
    let second = command(&mut gateway, conn);
    answer(&mut gateway, conn, bkv(1), &second, 0);
    let third = command(&mut gateway, conn);
    assert_eq!(third.2, entry(3));
    answer(&mut gateway, conn, bkv(1), &third, 1);
    assert_eq!(states(&gateway, bkv(1)), "1 confirmed, 2 desired, 3 confirmed");
    let refused = gateway.value("SELECT refused FROM gateway_sockets WHERE socket = 2");
    assert_eq!(refused.as_deref(), Some("device_refused"));
    assert!(commands(&mut gateway, conn).is_empty());
    gateway.disconnect(conn);
    let conn = connect(&mut gateway, bkv(1));
    assert_eq!(command(&mut gateway, conn).2, [&[7][..], &entry(1), &entry(2), &entry(3)].concat());
}

#[test]
fn a_very_large_list_is_split() {
    let mut gateway = Gateway::new();
    let conn = connect(&mut gateway, bkv(1));
    gateway.take_written();
    let numbers: Vec<u8> = (1..=250).collect();
    changed(&mut gateway, bkv(1), refresh(&numbers));
    assert_eq!(ports(&gateway, bkv(1)).len(), 500);
    let mut sent = command(&mut gateway, conn);
    assert_eq!((sent.1, sent.2.len()), (0x08, 1 + 128 * 7));
    for number in 129..=250 {
        answer(&mut gateway, conn, bkv(1), &sent, 1);
        sent = command(&mut gateway, conn);
        assert_eq!((sent.1, &sent.2), (0x09, &entry(number)));
    }
    answer(&mut gateway, conn, bkv(1), &sent, 1);
    assert!(!states(&gateway, bkv(1)).contains("desired"));
}

#[test]
fn a_socket_with_an_active_order_stays() {
    let mut gateway = Gateway::new();
    let conn = listed(&mut gateway, bkv(1), &[1, 2]);
    gateway.receive(conn, &push(bkv(1), 2, 0x80));
    let order = gateway.charge(bkv(1), 4);
    for what in [NetworkChange::Remove(2), refresh(&[1])] {
        let Networked::Busy { socket, port_no, holder } = change(&mut gateway, bkv(1), what) else { panic!() };
        assert_eq!((socket, port_no, holder), (2, 4, order));
    }
    assert_eq!(states(&gateway, bkv(1)), "1 confirmed, 2 confirmed");
    assert_eq!(ports(&gateway, bkv(1)), [1, 2, 3, 4]);
    changed(&mut gateway, bkv(1), NetworkChange::Remove(1));
}

#[test]
fn a_standalone_device_becomes_networked_by_its_list() {
    let mut gateway = Gateway::new();
    let conn = connect(&mut gateway, bkv(1));
    gateway.receive(conn, &push(bkv(1), 0, 0x80));
    gateway.pass(4 * SECOND);
    gateway.take_written();
    let port = gateway.entry(bkv(1)).port(1).unwrap();
    assert_eq!((port.socket, port.status), (Some(0), PortStatus::Idle));
    changed(&mut gateway, bkv(1), refresh(&[1]));
    let port = gateway.entry(bkv(1)).port(1).unwrap();
    assert_eq!((port.socket, port.status), (Some(1), PortStatus::Idle), "the same hole by its new address");
    let sent = command(&mut gateway, conn);
    answer(&mut gateway, conn, bkv(1), &sent, 1);
    gateway.charge(bkv(1), 2);
    let start = gateway.bkv_frames(conn).into_iter().find(|(command, ..)| *command == 0x15).expect("a start");
    assert_eq!(start.2[3..5], [1, 1], "socket 1, hole B");
    assert_eq!(gateway.value("SELECT group_concat(socket) FROM ports").as_deref(), Some("1,1"));
}

#[test]
fn sockets_that_were_only_seen_go_with_the_first_list() {
    let mut gateway = Gateway::new();
    let conn = connect(&mut gateway, bkv(1));
    gateway.receive(conn, &push(bkv(1), 5, 0x80));
    gateway.pass(4 * SECOND);
    gateway.take_written();
    assert_eq!(ports(&gateway, bkv(1)), [9, 10]);
    changed(&mut gateway, bkv(1), refresh(&[1]));
    assert_eq!(ports(&gateway, bkv(1)), [1, 2]);
    let sent = command(&mut gateway, conn);
    gateway.receive(conn, &push(bkv(1), 5, 0x80));
    assert_eq!(ports(&gateway, bkv(1)), [1, 2]);
    answer(&mut gateway, conn, bkv(1), &sent, 1);
    assert_eq!(states(&gateway, bkv(1)), "1 confirmed");
}

#[test]
fn a_list_that_is_reported_up_is_no_answer() {
    let mut gateway = Gateway::new();
    let conn = connect(&mut gateway, bkv(1));
    gateway.take_written();
    changed(&mut gateway, bkv(1), refresh(&[1]));
    let sent = command(&mut gateway, conn);
    // Unconfirmed variant: a count of one, and an entry of 14 bytes.
    let list = [&[0, 15, 0x08, 1][..], &[9; 14]].concat();
    gateway.receive(conn, &bkv_up(bkv(1), NETWORK, sent.0, &list));
    assert_eq!(states(&gateway, bkv(1)), "1 desired");
    answer(&mut gateway, conn, bkv(1), &sent, 1);
    assert_eq!(states(&gateway, bkv(1)), "1 confirmed");
}

#[test]
fn a_change_while_a_command_is_under_way_waits_for_its_answer() {
    let mut gateway = Gateway::new();
    let conn = connect(&mut gateway, bkv(1));
    gateway.take_written();
    changed(&mut gateway, bkv(1), refresh(&[1, 2]));
    let first = command(&mut gateway, conn);
    let list = changed(&mut gateway, bkv(1), NetworkChange::Remove(2));
    assert_eq!(list.sockets[1].state, SocketState::Removing);
    assert!(commands(&mut gateway, conn).is_empty());
    answer(&mut gateway, conn, bkv(1), &first, 1);
    // The list was given as a whole, and changed: it is sent as a whole.
    let second = command(&mut gateway, conn);
    assert_eq!((second.1, &second.2), (0x08, &[&[7][..], &entry(1)].concat()));
    answer(&mut gateway, conn, bkv(1), &second, 1);
    assert_eq!(states(&gateway, bkv(1)), "1 confirmed");
}

#[test]
fn an_empty_list_is_a_list() {
    let mut gateway = Gateway::new();
    let conn = listed(&mut gateway, bkv(1), &[1]);
    let list = changed(&mut gateway, bkv(1), refresh(&[]));
    assert!(!list.is_confirmed());
    assert!(ports(&gateway, bkv(1)).is_empty());
    let sent = command(&mut gateway, conn);
    assert_eq!((sent.1, &sent.2), (0x08, &vec![7]));
    // Not confirmed, it goes out again at the bind, though no socket is left to say so.
    gateway.disconnect(conn);
    let conn = connect(&mut gateway, bkv(1));
    let again = command(&mut gateway, conn);
    assert_eq!((again.1, &again.2), (0x08, &vec![7]));
    answer(&mut gateway, conn, bkv(1), &again, 1);
    assert_eq!(states(&gateway, bkv(1)), "");
    assert!(matches!(change(&mut gateway, bkv(9), refresh(&[])), Networked::NoDevice));
    assert_eq!(gateway.events(bkv(1), "device.alarm"), Vec::<serde_json::Value>::new());
    assert_eq!(json!(gateway.value("SELECT network_refresh || '' FROM devices")), json!("0"));
}
