//! Images are stored once, a device has one open update, and its row decides where the update goes on.

mod services;
mod store;

use chargegate::{
    model::{DeviceId, Firmware, OtaMethod, OtaState, OtaTask},
    store::{
        FirmwareKey, Idempotency, Job, Latest, NewFirmware, NewOtaTask, OtaFilter, OtaJob, OtaOutcome, OtaStep,
        OtaUpdate, Outcome, payload,
    },
};
use serde_json::{Value, json};
use store::{Bench, T0, ap, bkv};

const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;

fn ota(bench: &Bench, job: OtaJob) -> OtaOutcome {
    match bench.run(Job::Ota(Box::new(job))) {
        Outcome::Ota(outcome) => *outcome,
        other => panic!("{other:?}"),
    }
}

fn firmware(bench: &Bench, byte: u8, name: &str) -> (Firmware, bool) {
    let new = NewFirmware {
        sha256: [byte; 32],
        size: 1_000,
        name: name.to_owned(),
        version: Some(205),
        device_type: Some(0x21),
        at: T0,
    };
    match ota(bench, OtaJob::AddFirmware(new)) {
        OtaOutcome::Firmware { firmware, added } => (firmware, added),
        other => panic!("{other:?}"),
    }
}

fn new_task(device_id: DeviceId, firmware_id: i64) -> NewOtaTask {
    NewOtaTask {
        device_id,
        method: OtaMethod::E0,
        firmware_id: Some(firmware_id),
        ftp: None,
        verification: true,
        force: false,
        packets_total: 40,
        at: T0,
        request_id: "r".to_owned(),
        idempotency: None,
    }
}

fn created(bench: &Bench, device_id: DeviceId) -> OtaTask {
    let (firmware, _) = firmware(bench, 7, "image");
    match ota(bench, OtaJob::Create(new_task(device_id, firmware.id))) {
        OtaOutcome::Created(task) => task,
        other => panic!("{other:?}"),
    }
}

fn step(bench: &Bench, task: &OtaTask, epoch: i64, step: OtaStep) -> OtaState {
    let update = OtaUpdate { id: task.id, device_id: task.device_id, epoch, ticket: 9, step, at: T0 + MINUTE };
    match ota(bench, OtaJob::Update(update)) {
        OtaOutcome::Updated { id, device_id, ticket, state } => {
            assert_eq!((id, device_id, ticket), (task.id, task.device_id, 9));
            state
        }
        other => panic!("{other:?}"),
    }
}

const fn sent() -> OtaStep {
    OtaStep::Sent { firmware_before: None }
}

fn now(bench: &Bench, task: &OtaTask) -> OtaTask {
    let id = task.id;
    bench.read(move |reader| reader.ota_task(id)).unwrap()
}

/// State and progress of each `ota.progress`.
fn told(bench: &Bench) -> Vec<(u64, u64)> {
    let events = bench.log().into_iter().filter(|event| event.event_type == "ota.progress");
    let number = |data: &Value, name: &str| data[name].as_u64().unwrap();
    events
        .map(|event| {
            assert!(event.sequence_no > 0 && event.order_no.is_none());
            let data: Value = serde_json::from_str(&event.data).unwrap();
            (number(&data, "state"), number(&data, "progress"))
        })
        .collect()
}

#[test]
fn the_same_image_is_the_same_row() {
    let bench = Bench::new();
    let (first, added) = firmware(&bench, 1, "first");
    assert!(added);
    assert_eq!(firmware(&bench, 1, "again"), (first.clone(), false), "its first name stays");
    let (second, _) = firmware(&bench, 2, "second");
    let page = bench.read(|reader| reader.firmware_list(None, 1, 10));
    assert_eq!((page.total, page.rows), (2, vec![second, first.clone()]));
    for key in [FirmwareKey::Id(first.id), FirmwareKey::Sha256([1; 32])] {
        assert_eq!(bench.read(move |reader| reader.firmware(key)), Some(first.clone()));
    }
    assert_eq!(bench.read(|reader| reader.firmware(FirmwareKey::Sha256([3; 32]))), None);
}

#[test]
fn a_device_has_one_open_update() {
    let bench = Bench::new();
    let (image, _) = firmware(&bench, 7, "image");
    assert!(matches!(ota(&bench, OtaJob::Create(new_task(ap(1), image.id))), OtaOutcome::NoDevice));
    assert!(!bench.bind(ap(1), T0).has_ota);
    let task = created(&bench, ap(1));
    assert_eq!((task.state, task.progress(), task.firmware.as_ref()), (OtaState::Pending, 0, Some(&image)));
    assert!(bench.bind(ap(1), T0).has_ota, "the bind says so");
    match ota(&bench, OtaJob::Create(new_task(ap(1), image.id))) {
        OtaOutcome::Busy(open) => assert_eq!(open, task),
        other => panic!("{other:?}"),
    }
    bench.bind(ap(2), T0);
    let other = created(&bench, ap(2));
    let open = bench.read(|reader| reader.devices_with_open_ota(None, 10));
    assert_eq!(open, [ap(1), ap(2)]);
    assert_eq!(bench.read(|reader| reader.devices_with_open_ota(Some(ap(1)), 10)), [ap(2)]);

    let cancel = |id| ota(&bench, OtaJob::Cancel { id, at: T0 + MINUTE });
    match cancel(task.id) {
        OtaOutcome::Cancelled(task) => {
            assert_eq!((task.state, task.reason.as_deref()), (OtaState::Failed, Some("cancelled")));
            assert_eq!(task.ended_at, Some(T0 + MINUTE));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(cancel(task.id), OtaOutcome::Ended(_)));
    assert!(matches!(cancel(99), OtaOutcome::NoTask));
    assert_eq!(step(&bench, &task, 2, OtaStep::Acked(5)), OtaState::Failed, "its shard learns it");
    let next = created(&bench, ap(1));
    assert_eq!(bench.read(|reader| reader.open_ota_task(ap(1))), Some(next.clone()));

    let list = |filter: OtaFilter| {
        let page = bench.read(move |reader| reader.ota_tasks(&filter, 1, 10));
        assert_eq!(page.total, page.rows.len() as u64);
        page.rows.into_iter().map(|task| task.id).collect::<Vec<_>>()
    };
    assert_eq!(list(OtaFilter::default()), [next.id, other.id, task.id]);
    assert_eq!(list(OtaFilter { device_id: Some(ap(1)), state: None }), [next.id, task.id]);
    assert_eq!(list(OtaFilter { device_id: Some(ap(1)), state: Some(OtaState::Failed) }), [task.id]);
}

#[test]
fn progress_is_told_in_steps_of_five_percent() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let task = created(&bench, ap(1));
    let firmware_before = Some("V2.04".to_owned());
    assert_eq!(step(&bench, &task, epoch, OtaStep::Sent { firmware_before }), OtaState::Sent);
    for packet in 1..40 {
        assert_eq!(step(&bench, &task, epoch, OtaStep::Acked(packet)), OtaState::InProgress);
    }
    let task = now(&bench, &task);
    assert_eq!((task.packets_acked, task.progress(), task.sent_at), (39, 97, Some(T0 + MINUTE)));
    assert_eq!(task.firmware_before.as_deref(), Some("V2.04"));
    assert_eq!(step(&bench, &task, epoch, OtaStep::Acked(40)), OtaState::Done);
    let task = now(&bench, &task);
    assert_eq!((task.packets_acked, task.progress(), task.ended_at), (40, 100, Some(T0 + MINUTE)));
    let mut expected = vec![(0, 0), (1, 0), (2, 2)];
    expected.extend((1..20).map(|five| (2, five * 5)));
    expected.push((3, 100));
    assert_eq!(told(&bench), expected);
    // Replays change and tell nothing.
    for again in [OtaStep::Acked(40), OtaStep::Acked(3), sent(), OtaStep::Failed("x")] {
        assert_eq!(step(&bench, &task, epoch, again), OtaState::Done);
    }
    assert_eq!((now(&bench, &task), told(&bench).len()), (task, expected.len()));
}

#[test]
fn an_update_goes_on_where_it_was_after_a_restart() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let task = created(&bench, ap(1));
    step(&bench, &task, epoch, sent());
    step(&bench, &task, epoch, OtaStep::Acked(17));
    let bench = bench.reopen();
    let bound = bench.bind(ap(1), T0);
    assert!(bound.has_ota && bound.epoch > epoch);
    let open = bench.read(|reader| reader.open_ota_task(ap(1))).unwrap();
    assert_eq!((open.id, open.packets_acked, open.state), (task.id, 17, OtaState::InProgress));
    // What the binding before still had to say is behind that.
    assert_eq!(step(&bench, &task, epoch, OtaStep::Acked(18)), OtaState::InProgress);
    assert_eq!(now(&bench, &task).packets_acked, 17);
    step(&bench, &task, bound.epoch, OtaStep::Acked(0));
    assert_eq!(now(&bench, &task).packets_acked, 0, "the device wanted it from packet 1");
    // But that the device has all of it, or gave up, is true whoever says so.
    assert_eq!(step(&bench, &task, epoch, OtaStep::Acked(40)), OtaState::Done);
}

#[test]
fn an_update_that_never_comes_further_fails() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let task = created(&bench, ap(1));
    let stall = || (0..10).all(|_| step(&bench, &task, epoch, sent()) != OtaState::Failed);
    assert!(stall());
    step(&bench, &task, epoch, OtaStep::Acked(3));
    assert!(stall(), "it came further");
    for back in [0, 1, 3] {
        step(&bench, &task, epoch, OtaStep::Acked(back));
    }
    assert_eq!(step(&bench, &task, epoch, sent()), OtaState::Failed);
    assert_eq!(now(&bench, &task).reason.as_deref(), Some("no_progress"));
}

#[test]
fn what_takes_too_long_fails() {
    let bench = Bench::new();
    bench.bind(ap(1), T0);
    let epoch = bench.bind(bkv(1), T0).epoch;
    let old = created(&bench, ap(1));
    let source = chargegate::model::FtpSource { host: [192, 0, 2, 1].into(), port: 21, file: "dtu.bin".to_owned() };
    let new = NewOtaTask {
        method: OtaMethod::Ftp,
        firmware_id: None,
        ftp: Some(source.clone()),
        packets_total: 0,
        at: T0 + MINUTE,
        ..new_task(bkv(1), 0)
    };
    let OtaOutcome::Created(fetched) = ota(&bench, OtaJob::Create(new)) else { panic!() };
    assert_eq!((fetched.ftp.as_ref(), fetched.firmware.as_ref()), (Some(&source), None));
    step(&bench, &fetched, epoch, sent());
    let expire = |created_before, ftp_sent_before| -> Vec<(i64, String)> {
        match ota(&bench, OtaJob::Expire { at: T0 + 60 * MINUTE, created_before, ftp_sent_before }) {
            OtaOutcome::Expired(tasks) => tasks.into_iter().map(|task| (task.id, task.reason.unwrap())).collect(),
            other => panic!("{other:?}"),
        }
    };
    let none = Vec::<(i64, String)>::new();
    assert_eq!(expire(T0, T0 + MINUTE), none);
    assert_eq!(expire(T0, T0 + MINUTE + 1), [(fetched.id, "no_change".to_owned())]);
    assert_eq!(expire(T0 + 1, T0), [(old.id, "expired".to_owned())]);
    assert_eq!(expire(T0 + 60 * MINUTE, T0 + 60 * MINUTE), none);
}

#[test]
fn a_request_that_is_sent_again_begins_one_update() {
    let bench = Bench::new();
    bench.bind(ap(1), T0);
    let (image, _) = firmware(&bench, 7, "image");
    let asked = Idempotency {
        api_key: "shop".into(),
        route: "POST /devices/00000001/ota".to_owned(),
        key: "k".to_owned(),
        body_hash: [1; 32],
    };
    let new = NewOtaTask { idempotency: Some(asked.clone()), ..new_task(ap(1), image.id) };
    let OtaOutcome::Created(task) = ota(&bench, OtaJob::Create(new.clone())) else { panic!() };
    match bench.run(Job::Ota(Box::new(OtaJob::Create(new)))) {
        Outcome::Repeated(chargegate::store::Earlier::Answer { status, body }) => {
            assert_eq!((status, body), (payload::ACCEPTED, payload::ota_accepted(&task, "r", T0).unwrap()));
        }
        other => panic!("{other:?}"),
    }
    let body: Value = serde_json::from_slice(&payload::ota_accepted(&task, "r", T0).unwrap()).unwrap();
    assert_eq!(body["data"]["firmware"]["sha256"], json!("07".repeat(32)));
    assert_eq!(body["data"]["firmware"]["version"], "V2.05");
}

#[test]
fn what_a_device_is_is_kept() {
    let bench = Bench::new();
    bench.bind(ap(1), T0);
    let latest = |device_type| Latest::Device {
        device_id: ap(1),
        last_seen_at: T0,
        offline_at: T0,
        signal: None,
        firmware: None,
        iccid: None,
        networked: false,
        device_type,
    };
    assert!(bench.store.coalesce(&mut vec![latest(Some(0x21)), latest(None)]));
    let bench = bench.reopen();
    assert_eq!(bench.read(|reader| reader.device(ap(1))).unwrap().device_type, Some(0x21));
}
