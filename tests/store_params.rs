//! Device parameters in the store: what is wanted, what the device says, and the commands between the two.

mod services;
mod store;

use chargegate::{
    model::{Ap3000Call, Command, CommandBody, CommandState, DeviceCall, DeviceId, GatewayCall},
    store::{Backstop, CommandUpdate, Job, Outcome, ParamRecord, WantedParams},
};
use serde_json::{Value, json};
use store::{Bench, T0, ap, bkv};

const SECOND: i64 = 1_000;

fn want(bench: &Bench, device_id: DeviceId, socket: u8, values: Value, at: i64) -> Vec<ParamRecord> {
    let values = values.as_object().unwrap().clone().into_iter().collect();
    let request_id = "r".to_owned();
    let wanted = WantedParams { device_id, socket, values, refresh: false, at, request_id, idempotency: None };
    match bench.run(Job::SetParams(Box::new(wanted))) {
        Outcome::Params(Some(params)) => params,
        other => panic!("{other:?}"),
    }
}

fn claim(bench: &Bench, device_id: DeviceId, epoch: i64, at: i64) -> Vec<Command> {
    match bench.run(Job::Claim { device_id, epoch, at }) {
        Outcome::Claimed { commands, .. } => commands,
        other => panic!("{other:?}"),
    }
}

/// The device's answer, and the command that follows from it.
fn answer(bench: &Bench, command: &Command, state: CommandState, result: Value, at: i64) -> Option<Command> {
    let result = Some(result.to_string());
    let update = CommandUpdate {
        device_id: command.device_id,
        id: command.id,
        epoch: command.epoch,
        state,
        order_no: None,
        attempts: 1,
        reason: None,
        result,
        at,
    };
    match bench.run(Job::Command(update)) {
        Outcome::Done => None,
        Outcome::Claimed { commands, .. } => commands.into_iter().next(),
        other => panic!("{other:?}"),
    }
}

fn call(command: &Command) -> &DeviceCall {
    let CommandBody::Call { call } = &command.body else { panic!("{command:?}") };
    call
}

fn is_query(command: &Command) -> bool {
    matches!(
        call(command),
        DeviceCall::Ap3000(Ap3000Call::QueryParams { .. }) | DeviceCall::Gateway(GatewayCall::QueryParams { .. })
    )
}

fn values(command: &Command) -> Value {
    match call(command) {
        DeviceCall::Ap3000(Ap3000Call::SetParams { values, .. })
        | DeviceCall::Gateway(GatewayCall::SetParams { values, .. }) => Value::Object(values.clone()),
        other => panic!("{other:?}"),
    }
}

fn stored(bench: &Bench, device_id: DeviceId) -> Vec<ParamRecord> {
    bench.read(move |reader| reader.params(device_id))
}

fn param<'a>(params: &'a [ParamRecord], name: &str) -> &'a ParamRecord {
    params.iter().find(|param| param.held.name == name).unwrap()
}

#[test]
fn a_group_is_read_set_and_read_back() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let params = want(&bench, ap(1), 0, json!({"max_duration_s": 7200}), T0);
    assert!(param(&params, "max_duration_s").held.is_pending());

    let query = claim(&bench, ap(1), epoch, T0).remove(0);
    assert!(is_query(&query), "half a group is not set: {query:?}");
    let had = json!({"max_duration_s": 36000, "overload_power": 800});
    let set = answer(&bench, &query, CommandState::Acked, had, T0 + 1).expect("the set");
    assert_eq!(values(&set), json!({"max_duration_s": 7200, "overload_power": 800}));
    let read_back = answer(&bench, &set, CommandState::Acked, json!({"result": 0}), T0 + 2).expect("the read-back");
    assert!(is_query(&read_back));
    let has = json!({"max_duration_s": 7200, "overload_power": 800});
    assert_eq!(answer(&bench, &read_back, CommandState::Acked, has, T0 + 3), None);
    let params = stored(&bench, ap(1));
    let confirmed = param(&params, "max_duration_s");
    assert!(!confirmed.held.is_pending() && confirmed.refused.is_none());
    assert_eq!((&confirmed.held.reported, confirmed.reported_at), (&Some(json!(7200)), Some(T0 + 3)));
}

#[test]
fn what_is_pending_is_sent_again_at_the_next_bind() {
    let bench = Bench::new();
    bench.bind(bkv(1), T0);
    want(&bench, bkv(1), 3, json!({"max_charge_min": 60}), T0);
    // The first command expires while the gateway is away.
    let later = T0 + 3_600 * SECOND;
    let backstop =
        Backstop { at: later, interrupts_from: later, offline_from: later, interrupt_grace: 0, offline_grace: 0 };
    assert!(matches!(bench.run(Job::Backstop(backstop)), Outcome::Backstop(_)));
    let bound = bench.bind(bkv(1), later + 40 * SECOND);
    assert_eq!(bound.commands.len(), 1);
    assert_eq!(values(&bound.commands[0]), json!({"max_charge_min": 60}));
    // And only once while it is under way.
    assert_eq!(bench.bind(bkv(1), later + 41 * SECOND).commands.len(), 1, "claimed again, not doubled");
}

#[test]
fn a_refusal_is_shown_and_not_repeated() {
    let bench = Bench::new();
    let epoch = bench.bind(bkv(1), T0).epoch;
    want(&bench, bkv(1), 1, json!({"power_limit_dw": 60000}), T0);
    let set = claim(&bench, bkv(1), epoch, T0).remove(0);
    assert_eq!(answer(&bench, &set, CommandState::Refused, json!({"ack": 0}), T0 + 1), None);
    let params = stored(&bench, bkv(1));
    assert_eq!(param(&params, "power_limit_dw").refused.as_deref(), Some("device_refused"));
    assert!(bench.bind(bkv(1), T0 + 10).commands.is_empty());
    // A new wish is a new attempt.
    let params = want(&bench, bkv(1), 1, json!({"power_limit_dw": 5000}), T0 + 20);
    assert!(param(&params, "power_limit_dw").held.is_pending());
}

#[test]
fn a_device_that_keeps_another_value_has_refused() {
    let bench = Bench::new();
    let epoch = bench.bind(bkv(1), T0).epoch;
    want(&bench, bkv(1), 1, json!({"max_charge_min": 900}), T0);
    let set = claim(&bench, bkv(1), epoch, T0).remove(0);
    let query = answer(&bench, &set, CommandState::Acked, json!({"ack": 1}), T0 + 1).unwrap();
    assert_eq!(answer(&bench, &query, CommandState::Acked, json!({"max_charge_min": 600}), T0 + 2), None);
    let params = stored(&bench, bkv(1));
    let kept = param(&params, "max_charge_min");
    assert_eq!(kept.refused.as_deref(), Some("device_kept_another_value"));
    assert_eq!((&kept.held.desired, &kept.held.reported), (&Some(json!(900)), &Some(json!(600))));
}

#[test]
fn groups_without_a_query_are_confirmed_by_their_reply() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    want(&bench, ap(1), 0, json!({"mute": 1, "work_mode": 0}), T0);
    for command in claim(&bench, ap(1), epoch, T0) {
        assert!(!is_query(&command));
        assert_eq!(answer(&bench, &command, CommandState::Acked, json!({"result": 0}), T0 + 1), None);
    }
    let params = stored(&bench, ap(1));
    assert_eq!(params.len(), 2);
    assert!(params.iter().all(|param| param.held.reported == param.held.desired && !param.held.is_pending()));
}

#[test]
fn a_newer_wish_is_not_answered_by_an_older_command() {
    let bench = Bench::new();
    let epoch = bench.bind(bkv(1), T0).epoch;
    want(&bench, bkv(1), 1, json!({"max_charge_min": 60}), T0);
    let first = claim(&bench, bkv(1), epoch, T0).remove(0);
    want(&bench, bkv(1), 1, json!({"max_charge_min": 90}), T0 + 1);
    let query = answer(&bench, &first, CommandState::Acked, json!({"ack": 1}), T0 + 2).unwrap();
    let second = answer(&bench, &query, CommandState::Acked, json!({"max_charge_min": 60}), T0 + 3).unwrap();
    assert_eq!(values(&second), json!({"max_charge_min": 90}));
}
