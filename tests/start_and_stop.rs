//! A gateway starts with what it was told or says why not, serves until it is told to stop, and forgets nothing in between.
//!
//! The real process each time: exit codes and texts are what service managers and operators see.

#[macro_use]
mod gateway;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::Output,
};

use chargegate::protocol::ap3000::codes::StartMode;
use gateway::{
    Engine, Gateway, KEY, PATIENCE, binary, until,
    wire::{Ap3000, Ap3000End, Bkv, wire_no},
};
use serde_json::{Value, json};

const CHARGER: &str = "40aace04";
const GATEWAY: &str = "86100000000001";

on_both_engines! {
    a_running_gateway_says_that_it_is_ready
    a_stop_keeps_what_runs
    a_second_gateway_is_refused
}

/// A file, variables, and what the refusal must name.
type Refused<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);

/// Runs the binary to its end with a configuration that keeps it from starting.
fn refused(file: &str, variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join("chargegate.toml"), file).expect("written");
    let Output { status, stdout, stderr } =
        binary(directory.path()).envs(variables.iter().copied()).output().expect("the binary is built");
    assert!(stdout.is_empty(), "{}", String::from_utf8_lossy(&stdout));
    assert!(!directory.path().join("data").exists(), "nothing was begun");
    (status.code(), String::from_utf8(stderr).expect("UTF-8"))
}

#[test]
fn what_is_wrong_with_a_configuration_is_named() {
    let postgres = [("CHARGEGATE_STORE_URL", "postgres://u:hunter2@h/d")];
    let redis = [("CHARGEGATE_QUEUE_URL", "redis://u:hunter2@h")];
    let keys = [("CHARGEGATE_API_KEYS", r#"[{"name": "a", "key": "hunter2""#)];
    let no_name = [("CHARGEGATE_API_KEYS", r#"[{"key": "hunter2"}]"#)];
    let no_scope = [("CHARGEGATE_API_KEYS", r#"[{"name": "a", "key": "hunter2", "scopes": ["write"]}]"#)];
    let url = [("CHARGEGATE_WEBHOOK_ENDPOINTS", r#"[{"url": "ftp://h/", "secret": "hunter2"}]"#)];
    let event = [("CHARGEGATE_WEBHOOK_ENDPOINTS", r#"[{"url": "http://h/", "secret": "s", "events": ["ordre.*"]}]"#)];
    let cases: &[Refused<'_>] = &[
        ("[device]\nlisten_gm = '127.0.0.1:1'", &[], &["device.listen_gm", "device.listen_gn"]),
        ("[devcie]\nlisten = '127.0.0.1:1'", &[], &["devcie", "device"]),
        ("[http]\nworkers = 257", &[], &["http.workers must be in 1..=256, got 257"]),
        ("[http]\nworkers = 'four'", &[], &["http.workers", "four"]),
        ("[http", &[], &["chargegate.toml"]),
        ("", &[("CHARGEGATE_SHARD_ENGINE", "uring")], &["shard.engine", "glommio", "uring"]),
        ("", &[("CHARGEGATE_DEVICE_LISTEN", "6000")], &["device.listen", "6000"]),
        ("", &[("CHARGEGATE_HTTP_HEAD_TIMEOUT", "5")], &["http.head_timeout", "5"]),
        ("", &[("CHARGEGATE_ORDERS_PREFIX", "thd")], &["orders.prefix", "thd"]),
        ("", &keys, &["CHARGEGATE_API_KEYS", "not JSON"]),
        ("", &no_name, &["api.keys[0]", "name"]),
        ("", &no_scope, &["scopes", "write"]),
        ("", &url, &["url"]),
        ("", &event, &["events", "ordre.*"]),
        ("", &postgres, &["store.url", "queue.url"]),
        ("", &redis, &["store.url", "queue.url"]),
    ];
    for (file, variables, words) in cases {
        let (code, stderr) = refused(file, variables);
        assert_eq!(code, Some(2), "{file} {variables:?}: {stderr}");
        for word in *words {
            assert!(stderr.contains(word), "{file} {variables:?} does not name {word}: {stderr}");
        }
        assert!(stderr.lines().all(|line| line.starts_with("error: ")), "{stderr}");
        assert!(!stderr.contains("hunter2"), "a secret is shown: {stderr}");
    }
}

fn a_running_gateway_says_that_it_is_ready(engine: Engine) {
    let Some(mut gateway) = Gateway::start(engine, &[]) else { return };
    let health = gateway.request("GET", "/healthz", None, None);
    assert_eq!(health.status, 200, "{}", health.text);
    let ready = gateway.request("GET", "/readyz", None, None);
    assert_eq!(ready.status, 200, "{}", ready.text);
    for component in ["database", "redis", "devices", "http"] {
        assert!(ready.text.contains(component), "{component}: {}", ready.text);
    }
    assert!(ready.text.contains("skipped"), "Redis has no part in it: {}", ready.text);
    assert!(gateway.log().contains(&format!("\"engine\":\"{engine}\"")), "{}", gateway.log());
    // Scraped as it is, and the lines are those of the text format.
    let metrics = gateway.request("GET", "/metrics", None, None);
    assert_eq!(metrics.status, 200);
    assert!(metrics.headers["content-type"].to_str().expect("ASCII").starts_with("text/plain"));
    let healthcheck = binary(gateway.directory())
        .arg("healthcheck")
        .env("CHARGEGATE_HTTP_LISTEN", gateway.http.to_string())
        .status()
        .expect("the binary is built");
    assert_eq!(healthcheck.code(), Some(0));
    assert_eq!(gateway.sigterm().code(), Some(0));
    let log = gateway.log();
    for stage in ["server id", "store", "redis", "sessions", "handlers", "http", "jobs", "listeners"] {
        assert!(log.lines().any(|line| line.contains("stage done") && line.contains(stage)), "{stage}: {log}");
    }
    assert!(log.lines().last().is_some_and(|line| line.contains("\"stopped\"")), "{log}");
}

fn a_stop_keeps_what_runs(engine: Engine) {
    let Some(mut gateway) = Gateway::start(engine, &[]) else { return };
    let mut device = Ap3000::online(gateway.devices, CHARGER, 2);
    gateway.knows_port(CHARGER, 2);
    let running = gateway.charge(CHARGER, &json!({"port_no": 1, "mode": "full"}));
    let number = wire_no(&running);
    let msg_id = device.expect_command(0x82, &[&[0, 0, 0, 0, 0, 0, 1, 0, 0], &number[..]].concat());
    device.answer(msg_id, 0, 0, number);
    device.report_charging(0, number, 30, 1);
    gateway.order_becomes(&running, "charging");
    let mut standalone = Bkv::standalone(gateway.devices, GATEWAY);
    gateway.knows_port(GATEWAY, 1);
    let confirmed = gateway.charge(GATEWAY, &json!({"port_no": 1, "mode": "time", "duration_minutes": 30}));
    let sequence = standalone.expect_command(0x0015, &[0, 8, 0x07, 0, 0, 1, 1, 0, 30, 0, 0]);
    standalone.answer(sequence, 0x07, 1, 0, 0, 4);
    gateway.order_becomes(&confirmed, "confirmed");
    let events = gateway.events();

    assert_eq!(gateway.sigterm().code(), Some(0));
    device.line.expect_end();
    standalone.line.expect_end();
    let gateway = gateway.restart();
    // The same orders, and nobody was told anything: our own absence ends no charge.
    assert_eq!(gateway.order(&running)["status_text"], "charging");
    assert_eq!(gateway.order(&confirmed)["status_text"], "confirmed");
    let later = gateway.events();
    assert_eq!(later[..events.len()], events);
    let about_orders = later[events.len()..].iter().find(|event| !event["order_no"].is_null());
    assert_eq!(about_orders, None);
    // A port is held by its order, before its device is back and after.
    let mut device = Ap3000::online(gateway.devices, CHARGER, 2);
    gateway.knows_port(CHARGER, 2);
    let busy = gateway.post(&format!("devices/{CHARGER}/charge"), &json!({"port_no": 1, "mode": "full"}));
    busy.refused(409, "PORT_BUSY");
    assert_eq!(busy.data()["order_no"], running);
    let (start_mode, reason) = (StartMode::ONLINE, 1);
    let end = Ap3000End { port: 0, order_no: number, start_mode, reason, duration_s: 900, energy: 9 };
    let msg_id = device.settle(&end);
    // Whatever it is asked about its ports on its return, the settlement is acknowledged.
    until("the settlement is acknowledged", || {
        let frame = device.line.frame();
        (frame == gateway::wire::ap3000_frame(device.phy_id, msg_id, 0x03, &[0])).then_some(())
    });
    assert_eq!(gateway.order(&running)["status_text"], "completed");
}

/// Environment variables of a gateway.
type Variables<'a> = &'a [(&'a str, &'a str)];

fn a_second_gateway_is_refused(engine: Engine) {
    let Some(gateway) = Gateway::start(engine, &[]) else { return };
    let other_data = gateway.directory().join("other");
    let other_data = other_data.to_str().expect("UTF-8");
    let (devices, http) = (gateway.devices.to_string(), gateway.http.to_string());
    // A database in use is a dependency that cannot be reached; an address in use is any other failure.
    let cases: [(Variables<'_>, &str, i32); 3] = [
        (&[], "chargegate.db", 3),
        (&[("CHARGEGATE_DATA_DIR", other_data), ("CHARGEGATE_DEVICE_LISTEN", &devices)], &devices, 1),
        (&[("CHARGEGATE_DATA_DIR", other_data), ("CHARGEGATE_HTTP_LISTEN", &http)], &http, 1),
    ];
    for (variables, named, code) in cases {
        let Err(failed) = gateway.start_beside(variables) else { panic!("{variables:?} started") };
        assert_eq!(failed.status.code(), Some(code), "{}", failed.stderr);
        let error = failed.stderr.lines().find(|line| line.contains("\"error\"")).unwrap_or_default();
        assert!(error.contains(named), "{named} is not named: {}", failed.stderr);
    }
    // The first goes on.
    Ap3000::online(gateway.devices, CHARGER, 1);
    gateway.knows_port(CHARGER, 1);
}

#[test]
fn the_first_start_makes_a_key_that_stays() {
    let gateway = Gateway::start(Engine::Mio, &[("CHARGEGATE_API_KEYS", "")]).expect("mio runs everywhere");
    let made = gateway.printed_key.clone().expect("a key is printed");
    let list = |gateway: &Gateway, key: &str| gateway.request("GET", "devices", Some(key), None).status;
    assert_eq!((list(&gateway, &made), list(&gateway, KEY)), (200, 401));
    let again = gateway.restart();
    assert_eq!(again.printed_key.as_deref(), Some(made.as_str()));
    assert_eq!(list(&again, &made), 200);
}

#[test]
fn a_reload_changes_keys_and_keeps_what_it_cannot_read() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("chargegate.toml");
    let write = |keys: &str| fs::write(&file, keys).expect("written");
    write("[[api.keys]]\nname = 'old'\nkey = 'old-key'\n");
    let config = file.to_str().expect("UTF-8");
    let variables = [("CHARGEGATE_API_KEYS", ""), ("CHARGEGATE_CONFIG", config)];
    let gateway = Gateway::start(Engine::Mio, &variables).expect("mio runs everywhere");
    let status = |key: &str| gateway.request("GET", "devices", Some(key), None).status;
    assert_eq!((status("old-key"), status("new-key")), (200, 401));

    write("[[api.keys]]\nname = 'new'\nkey = 'new-key'\n\n[http]\nworkers = 5\n");
    gateway.signal(libc::SIGHUP);
    until("the new key is a key", || (status("new-key") == 200).then_some(()));
    assert_eq!(status("old-key"), 401);
    let log = gateway.log();
    let told = |text: &str, key: &str| log.lines().any(|line| line.contains(text) && line.contains(key));
    assert!(told("changed", "api.keys") && told("next start", "http.workers"), "{log}");

    write("[[api.keys]]\nname = 'newer'\n");
    gateway.signal(libc::SIGHUP);
    until("the refusal is logged", || gateway.log().contains("not reloaded").then_some(()));
    assert_eq!(status("new-key"), 200);
}

/// One request as bytes; the status and the body of the answer.
fn raw(gateway: &Gateway, request: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(gateway.http).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    // Until its end, or until the whole body is there: not every refusal closes.
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && let Ok(body) = serde_json::from_str(body)
        {
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
            return (status.expect("a status line"), body);
        }
        let len = stream.read(&mut part).expect("an answer");
        assert_ne!(len, 0, "no answer: {text}");
        answer.extend_from_slice(&part[..len]);
    }
}

#[test]
fn every_refusal_is_in_the_envelope() {
    let keys = json!([
        {"name": "tests", "key": KEY},
        {"name": "reader", "key": "reading", "scopes": ["read"]},
        {"name": "elsewhere", "key": "elsewhere", "ip_allow": ["192.0.2.0/24"]},
        {"name": "signer", "key": "signing", "require_hmac": true, "hmac_secret": "s"},
    ]);
    let variables = [("CHARGEGATE_API_KEYS", keys.to_string())];
    let variables = [(variables[0].0, variables[0].1.as_str())];
    let gateway = Gateway::start(Engine::Mio, &variables).expect("mio runs everywhere");
    gateway.request("GET", "devices", None, None).refused(401, "UNAUTHORIZED");
    gateway.request("GET", "devices", Some("no key"), None).refused(401, "UNAUTHORIZED");
    gateway.request("GET", "devices", Some("signing"), None).refused(401, "UNAUTHORIZED");
    gateway.request("GET", "devices", Some("elsewhere"), None).refused(403, "FORBIDDEN");
    assert_eq!(gateway.request("GET", "devices", Some("reading"), None).status, 200);
    let charge = json!({"port_no": 1, "mode": "full"});
    let path = format!("devices/{CHARGER}/charge");
    let reader = gateway.request("POST", &path, Some("reading"), Some(&charge));
    assert!(reader.refused(403, "FORBIDDEN").contains("control"), "{}", reader.text);

    gateway.get("nothing").refused(404, "NOT_FOUND");
    gateway.get("/nothing").refused(404, "NOT_FOUND");
    gateway.get(&format!("devices/{CHARGER}")).refused(404, "DEVICE_NOT_FOUND");
    gateway.get("orders/THD0000000000000").refused(404, "ORDER_NOT_FOUND");
    let method = gateway.request("DELETE", "devices", Some(KEY), None);
    method.refused(405, "METHOD_NOT_ALLOWED");
    assert_eq!(method.headers["allow"], "GET, HEAD");
    for (path, named) in [
        ("devices?colour=red", "colour"),
        ("devices?size=201", "201"),
        ("events?after=-1", "-1"),
        ("devices/xyz", "xyz"),
        ("orders/short", "short"),
    ] {
        let answer = gateway.get(path);
        assert!(answer.refused(400, "INVALID_PARAMETER").contains(named), "{path}: {}", answer.text);
    }
    for (body, named) in [
        (json!({"mode": "full"}), "port_no"),
        (json!({"port_no": 0, "mode": "full"}), "port_no"),
        (json!({"port_no": 1, "mode": "fast"}), "fast"),
        (json!({"port_no": 1, "mode": "full", "colour": 1}), "colour"),
        (json!({"port_no": 1, "mode": "full", "duration_minutes": 1}), "duration_minutes"),
        (json!([]), "object"),
    ] {
        let answer = gateway.post(&path, &body);
        assert!(answer.refused(400, "INVALID_PARAMETER").contains(named), "{body}: {}", answer.text);
    }

    let post = |headers: &str, body: &str| {
        let head = format!("POST /api/v1/third/{path} HTTP/1.1\r\nHost: h\r\nX-Api-Key: {KEY}\r\n");
        let (status, answer) = raw(&gateway, &format!("{head}{headers}\r\n\r\n{body}"));
        assert_eq!(answer["code"], status, "{answer}");
        assert!(answer["message"].is_string() && answer["request_id"].is_string(), "{answer}");
        (status, answer["error"].as_str().expect("a code").to_owned())
    };
    let json = "Content-Type: application/json\r\nContent-Length:";
    assert_eq!(post(&format!("{json} 70000"), ""), (413, "PAYLOAD_TOO_LARGE".to_owned()));
    assert_eq!(post("Content-Type: text/plain\r\nContent-Length: 2", "{}"), (415, "UNSUPPORTED_MEDIA_TYPE".to_owned()));
    assert_eq!(post(&format!("{json} 3"), "{\"a"), (400, "INVALID_PARAMETER".to_owned()));
    assert_eq!(post("Transfer-Encoding: chunked", "0\r\n\r\n"), (400, "INVALID_PARAMETER".to_owned()));
    // Whoever is refused, others are served.
    assert_eq!(gateway.get("devices").status, 200);
}
