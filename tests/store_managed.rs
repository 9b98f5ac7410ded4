//! API keys and webhook endpoints of the admin API in the store: what a change leaves, what it refuses, and what is shown once.

mod services;
mod store;

use chargegate::{
    config::Secret,
    store::{
        ApiKeyRecord, DeliveryUpdate, Earlier, EndpointChange, EndpointRecord, Idempotency, Job, KeyChange,
        ManagedChange, ManagedJob, ManagedOutcome, ManagedRecord, NewApiKey, NewEndpoint, Outcome, ParkedDelivery,
    },
};
use serde_json::{Value, json};
use store::{Bench, T0, ap};

fn job(change: ManagedChange, at: i64) -> ManagedJob {
    ManagedJob { change, at, request_id: "request".to_owned(), idempotency: None }
}

fn run(bench: &Bench, change: ManagedChange, at: i64) -> ManagedOutcome {
    match bench.run(Job::Managed(Box::new(job(change, at)))) {
        Outcome::Managed(outcome) => *outcome,
        other => panic!("{other:?}"),
    }
}

fn key_of(outcome: ManagedOutcome) -> ApiKeyRecord {
    match outcome {
        ManagedOutcome::Done(ManagedRecord::Key(key)) => key,
        other => panic!("{other:?}"),
    }
}

fn endpoint_of(outcome: ManagedOutcome) -> EndpointRecord {
    match outcome {
        ManagedOutcome::Done(ManagedRecord::Endpoint(endpoint)) => endpoint,
        other => panic!("{other:?}"),
    }
}

fn new_key(name: &str, number: u8, scopes: &[&str]) -> ManagedChange {
    ManagedChange::CreateKey(api_key(name, [number; 32], scopes))
}

fn api_key(name: &str, key_sha256: [u8; 32], scopes: &[&str]) -> NewApiKey {
    NewApiKey {
        name: name.to_owned(),
        key_sha256,
        scopes: texts(scopes),
        require_hmac: false,
        hmac_secret: None,
        ip_allow: Vec::new(),
        rate_per_s: 0,
        burst: 0,
    }
}

fn new_endpoint(name: &str) -> ManagedChange {
    ManagedChange::CreateEndpoint(NewEndpoint {
        name: name.to_owned(),
        url: "https://erp.example/hooks".to_owned(),
        secret: Secret::new("first"),
        api_key: Some(Secret::new("sent")),
        events: Vec::new(),
    })
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn no_change() -> KeyChange {
    KeyChange {
        scopes: None,
        require_hmac: None,
        hmac_secret: Secret::new("of the update"),
        ip_allow: None,
        rate_per_s: None,
        burst: None,
    }
}

fn update(name: &str, change: KeyChange) -> ManagedChange {
    ManagedChange::UpdateKey { name: name.to_owned(), change, needs_admin_beside: false }
}

fn revision(bench: &Bench) -> i64 {
    bench.read(|reader| reader.managed_revision())
}

fn keys(bench: &Bench) -> Vec<ApiKeyRecord> {
    bench.read(|reader| reader.api_keys())
}

#[test]
fn a_key_is_made_changed_rotated_and_removed_and_each_raises_the_revision() {
    let bench = Bench::new();
    assert_eq!((revision(&bench), keys(&bench)), (0, Vec::new()));
    let made = key_of(run(&bench, new_key("b/illing", 1, &["read"]), T0));
    assert_eq!((made.key_sha256, made.created_at, made.updated_at), ([1; 32], T0, T0));
    assert_eq!((revision(&bench), keys(&bench)), (1, vec![made.clone()]));
    assert_eq!(run(&bench, new_key("b/illing", 2, &["read"]), T0), ManagedOutcome::NameTaken);
    assert_eq!((revision(&bench), keys(&bench)), (1, vec![made.clone()]), "a refusal changes nothing");

    let change = KeyChange {
        scopes: Some(texts(&["read", "control"])),
        require_hmac: Some(true),
        ip_allow: Some(texts(&["192.0.2.0/24"])),
        rate_per_s: Some(7),
        burst: Some(9),
        ..no_change()
    };
    let changed = key_of(run(&bench, update("b/illing", change), T0 + 1));
    let expected = ApiKeyRecord {
        scopes: texts(&["read", "control"]),
        require_hmac: true,
        hmac_secret: Some(Secret::new("of the update")),
        ip_allow: texts(&["192.0.2.0/24"]),
        rate_per_s: 7,
        burst: 9,
        updated_at: T0 + 1,
        ..made
    };
    assert_eq!(changed, expected);
    let again = KeyChange { hmac_secret: Secret::new("another"), require_hmac: Some(true), ..no_change() };
    let again = key_of(run(&bench, update("b/illing", again), T0 + 2));
    assert_eq!(again.hmac_secret, Some(Secret::new("of the update")), "a secret that is there stays");

    let rotate = ManagedChange::RotateKey {
        name: "b/illing".to_owned(),
        key_sha256: [9; 32],
        hmac_secret: Secret::new("of the rotation"),
    };
    let rotated = key_of(run(&bench, rotate, T0 + 3));
    assert_eq!((rotated.key_sha256, rotated.hmac_secret.clone()), ([9; 32], Some(Secret::new("of the rotation"))));
    let unsigned = KeyChange { require_hmac: Some(false), ..no_change() };
    assert_eq!(key_of(run(&bench, update("b/illing", unsigned), T0 + 4)).hmac_secret, None);
    assert_eq!(revision(&bench), 5);

    let bench = bench.reopen();
    assert_eq!((revision(&bench), keys(&bench).len()), (5, 1));
    let delete = || ManagedChange::DeleteKey { name: "b/illing".to_owned(), needs_admin_beside: false };
    assert_eq!(key_of(run(&bench, delete(), T0 + 5)).name, "b/illing");
    assert_eq!((revision(&bench), keys(&bench)), (6, Vec::new()));
    for change in [delete(), update("b/illing", no_change())] {
        assert_eq!(run(&bench, change, T0 + 6), ManagedOutcome::NotFound);
    }
    assert_eq!(revision(&bench), 6);
}

#[test]
fn the_last_key_of_an_admin_stays_one_where_it_must() {
    let bench = Bench::new();
    key_of(run(&bench, new_key("root", 1, &["read", "admin"]), T0));
    key_of(run(&bench, new_key("reader", 2, &["read"]), T0));
    let narrow = |needs_admin_beside| {
        let change = KeyChange { scopes: Some(texts(&["read"])), ..no_change() };
        ManagedChange::UpdateKey { name: "root".to_owned(), change, needs_admin_beside }
    };
    let delete = |name: &str| ManagedChange::DeleteKey { name: name.to_owned(), needs_admin_beside: true };
    assert_eq!(run(&bench, delete("root"), T0), ManagedOutcome::LastAdmin);
    assert_eq!(run(&bench, narrow(true), T0), ManagedOutcome::LastAdmin);
    assert_eq!(revision(&bench), 2);
    key_of(run(&bench, delete("reader"), T0));

    key_of(run(&bench, new_key("other", 3, &["admin"]), T0));
    assert_eq!(key_of(run(&bench, narrow(true), T0)).scopes, texts(&["read"]));
    assert_eq!(run(&bench, delete("other"), T0), ManagedOutcome::LastAdmin);
    let delete = ManagedChange::DeleteKey { name: "other".to_owned(), needs_admin_beside: false };
    key_of(run(&bench, delete, T0));
}

#[test]
fn two_admins_do_not_remove_each_other() {
    let bench = Bench::new();
    key_of(run(&bench, new_key("a", 1, &["admin"]), T0));
    key_of(run(&bench, new_key("b", 2, &["admin"]), T0));
    let delete = |name: &str| {
        let change = ManagedChange::DeleteKey { name: name.to_owned(), needs_admin_beside: true };
        bench.submit(Job::Managed(Box::new(job(change, T0))))
    };
    let outcomes = [delete("a"), delete("b")].map(|outcome| outcome.recv_timeout(store::PATIENCE).unwrap());
    let refused =
        |outcome: &&Outcome| matches!(outcome, Outcome::Managed(outcome) if **outcome == ManagedOutcome::LastAdmin);
    assert_eq!(outcomes.iter().filter(refused).count(), 1, "{outcomes:?}");
    assert_eq!(keys(&bench).len(), 1);
}

#[test]
fn an_endpoint_is_made_changed_rotated_and_removed() {
    let bench = Bench::new();
    let made = endpoint_of(run(&bench, new_endpoint("erp"), T0));
    let stored = |bench: &Bench| bench.read(|reader| reader.webhook_endpoints());
    assert_eq!((revision(&bench), stored(&bench)), (1, vec![made.clone()]));
    assert_eq!((made.secret_previous.clone(), made.api_key.clone()), (None, Some(Secret::new("sent"))));
    assert_eq!(run(&bench, new_endpoint("erp"), T0), ManagedOutcome::NameTaken);

    let rotate = |secret: &str| ManagedChange::RotateEndpoint { name: "erp".to_owned(), secret: Secret::new(secret) };
    for _ in 0..2 {
        let rotated = endpoint_of(run(&bench, rotate("second"), T0 + 1));
        assert_eq!((rotated.secret, rotated.secret_previous), (Secret::new("second"), Some(Secret::new("first"))));
    }
    let change = |change| ManagedChange::UpdateEndpoint { name: "erp".to_owned(), change };
    let changed = endpoint_of(run(
        &bench,
        change(EndpointChange { api_key: Some(None), drop_previous: true, ..EndpointChange::default() }),
        T0 + 2,
    ));
    let expected = EndpointRecord { secret: Secret::new("second"), api_key: None, updated_at: T0 + 2, ..made };
    assert_eq!(changed, expected);
    let moved = EndpointChange {
        url: Some("http://erp.example/".to_owned()),
        events: Some(texts(&["order.*"])),
        ..EndpointChange::default()
    };
    let moved = endpoint_of(run(&bench, change(moved), T0 + 3));
    assert_eq!((moved.url.as_str(), moved.events), ("http://erp.example/", texts(&["order.*"])));

    let delete = || ManagedChange::DeleteEndpoint { name: "erp".to_owned() };
    endpoint_of(run(&bench, delete(), T0 + 4));
    assert_eq!(stored(&bench), []);
    for change in [delete(), rotate("third"), change(EndpointChange::default())] {
        assert_eq!(run(&bench, change, T0 + 5), ManagedOutcome::NotFound);
    }
}

#[test]
fn an_endpoint_begins_where_it_is_made_and_leaves_nothing() {
    let bench = Bench::new();
    let cursor = |bench: &Bench| bench.read(|reader| reader.endpoint("erp")).map(|progress| progress.cursor);
    bench.bind(ap(1), T0);
    bench.settle_down();
    let here = bench.read(|reader| reader.last_pos());
    assert!(here > 0, "binds are told");
    endpoint_of(run(&bench, new_endpoint("erp"), T0));
    assert_eq!(cursor(&bench), Some(here));

    bench.bind(ap(2), T0);
    bench.settle_down();
    let there = bench.read(|reader| reader.last_pos());
    assert!(there > here);
    let parked = ParkedDelivery {
        endpoint: "erp".to_owned(),
        pos: there,
        key: ap(2).to_string(),
        attempts: 1,
        next_at: T0,
        reason: "timeout".to_owned(),
    };
    let progress = || {
        let cursor = DeliveryUpdate::Cursor { endpoint: "erp".to_owned(), pos: there };
        bench.run(Job::Delivery(vec![DeliveryUpdate::Park(parked.clone()), cursor]))
    };
    drop(progress());
    let parked_rows = |bench: &Bench| bench.read(|reader| reader.parked("erp", 9)).len();
    assert_eq!((cursor(&bench), parked_rows(&bench)), (Some(there), 1));
    endpoint_of(run(&bench, ManagedChange::DeleteEndpoint { name: "erp".to_owned() }, T0));
    assert_eq!((cursor(&bench), parked_rows(&bench)), (None, 0));

    // Whoever delivered to it may have its last word after that.
    drop(progress());
    let before = revision(&bench);
    let forget = || ManagedChange::ForgetEndpoint { name: "erp".to_owned() };
    assert_eq!(run(&bench, forget(), T0), ManagedOutcome::Forgotten);
    assert_eq!((cursor(&bench), parked_rows(&bench), revision(&bench)), (None, 0, before));

    drop(progress());
    endpoint_of(run(&bench, new_endpoint("erp"), T0));
    assert_eq!((cursor(&bench), parked_rows(&bench)), (Some(there), 0), "a new one has nothing of the old");
    assert_eq!(run(&bench, forget(), T0), ManagedOutcome::Forgotten);
    assert_eq!(cursor(&bench), Some(there), "one that is there again is not forgotten");
}

#[test]
fn what_is_shown_once_is_not_kept_for_repetitions() {
    let bench = Bench::new();
    let asked = |key: &str, body: u8| Idempotency {
        api_key: "root".into(),
        route: "POST /api/v1/admin/keys".to_owned(),
        key: key.to_owned(),
        body_hash: [body; 32],
    };
    let once = |change, asked| {
        let job = ManagedJob { idempotency: Some(asked), ..job(change, T0) };
        bench.run(Job::Managed(Box::new(job)))
    };
    let signing = ManagedChange::CreateKey(NewApiKey {
        name: "signing".to_owned(),
        key_sha256: [5; 32],
        scopes: texts(&["read"]),
        require_hmac: true,
        hmac_secret: Some(Secret::new("of the signature")),
        ip_allow: Vec::new(),
        rate_per_s: 0,
        burst: 0,
    });
    assert!(matches!(once(signing.clone(), asked("1", 1)), Outcome::Managed(_)));
    let Outcome::Repeated(Earlier::Answer { status, body }) = once(signing.clone(), asked("1", 1)) else {
        panic!("it was answered");
    };
    assert_eq!(status, 201);
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&body["data"]["name"], &body["data"]["require_hmac"]), (&json!("signing"), &json!(true)));
    for secret in ["key", "hmac_secret"] {
        assert!(body["data"].get(secret).is_none(), "{body}");
    }
    assert!(matches!(once(signing.clone(), asked("1", 2)), Outcome::Repeated(Earlier::Mismatch)));
    // A refusal had no effect: its key may try again.
    let taken = once(signing, asked("2", 1));
    assert!(matches!(&taken, Outcome::Managed(outcome) if **outcome == ManagedOutcome::NameTaken), "{taken:?}");
    let rotate = ManagedChange::RotateEndpoint { name: "erp".to_owned(), secret: Secret::new("second") };
    endpoint_of(run(&bench, new_endpoint("erp"), T0));
    assert!(matches!(once(rotate.clone(), asked("2", 1)), Outcome::Managed(_)));
    let Outcome::Repeated(Earlier::Answer { status, body }) = once(rotate, asked("2", 1)) else {
        panic!("it was answered");
    };
    let body = String::from_utf8(body).unwrap();
    assert!(status == 200 && !body.contains("second") && body.contains(r#""secrets":2"#), "{body}");
}

#[test]
fn there_are_not_more_than_a_thousand() {
    let bench = Bench::new();
    let made: Vec<_> = (0..1_000_u32)
        .map(|number| {
            let mut key_sha256 = [0; 32];
            key_sha256[..4].copy_from_slice(&number.to_be_bytes());
            let change = ManagedChange::CreateKey(api_key(&format!("key {number}"), key_sha256, &[]));
            bench.submit(Job::Managed(Box::new(job(change, T0))))
        })
        .collect();
    for outcome in made {
        let outcome = outcome.recv_timeout(store::PATIENCE).unwrap();
        assert!(matches!(&outcome, Outcome::Managed(outcome) if matches!(**outcome, ManagedOutcome::Done(_))));
    }
    assert_eq!(run(&bench, new_key("one more", 255, &[]), T0), ManagedOutcome::Full { rows_max: 1_000 });
    assert_eq!(keys(&bench).len(), 1_000);
}
