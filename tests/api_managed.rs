//! Keys and endpoints over the API: what is taken, what is refused, what is shown, and when it is in force.

mod api;

use api::{ALL, Answer, Rig, key};
use chargegate::{
    config::{Scope, Secret, WebhookEndpoint},
    managed::Configured,
};
use serde_json::{Value, json};

const KEYS: &str = "/api/v1/admin/keys";
const WEBHOOKS: &str = "/api/v1/admin/webhooks";
const DEVICES: &str = "/api/v1/third/devices";

fn post(rig: &Rig, path: &str, body: &Value) -> Answer {
    rig.send("POST", path, Some(ALL), Some(&body.to_string()))
}

fn get(rig: &Rig, path: &str) -> Answer {
    rig.send("GET", path, Some(ALL), None)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

/// A rig whose configuration has an endpoint, beside the key that may do everything.
fn rig() -> Rig {
    let rig = Rig::new([key("reader", [Scope::Read])]);
    let before = rig.api.managed.configured();
    let endpoint = WebhookEndpoint {
        name: "erp.example/hooks".to_owned(),
        url: "https://erp.example/hooks".to_owned(),
        secret: Secret::new("configured"),
        secret_previous: None,
        api_key: None,
        events: Vec::new(),
    };
    rig.api.managed.configure(Configured { endpoints: vec![endpoint], ..(*before).clone() });
    rig
}

#[test]
fn a_key_is_good_when_it_is_answered_and_void_when_it_is_gone() {
    let rig = rig();
    let uses = |key: &str, path: &str| rig.send("GET", path, Some(key), None).status;
    let made = post(&rig, KEYS, &json!({"name": "bill/ing", "scopes": ["read", "admin"], "rate_per_s": 50})).data(201);
    let first = text(&made["key"]);
    assert!(first.starts_with("cg_") && first.len() == 67, "{first}");
    assert!(made.get("hmac_secret").is_none());
    assert_eq!((uses(&first, DEVICES), uses(&first, KEYS)), (200, 200));

    let path = format!("{KEYS}/bill%2Fing");
    let seen = get(&rig, &path).data(200);
    assert_eq!(
        seen,
        json!({
            "name": "bill/ing", "source": "store", "scopes": ["read", "admin"], "require_hmac": false, "ip_allow": [],
            "rate_per_s": 50, "burst": 0, "created_at": made["created_at"], "updated_at": made["updated_at"],
        })
    );

    let second = text(&post(&rig, &format!("{path}/rotate"), &json!({})).data(200)["key"]);
    assert_ne!(first, second);
    assert_eq!((uses(&first, DEVICES), uses(&second, DEVICES)), (401, 200));

    let narrowed = post(&rig, &path, &json!({"scopes": ["read"]})).data(200);
    assert_eq!((&narrowed["scopes"], &narrowed["rate_per_s"]), (&json!(["read"]), &json!(50)));
    assert!(narrowed.get("key").is_none());
    assert_eq!((uses(&second, DEVICES), uses(&second, KEYS)), (200, 403));
    let elsewhere = post(&rig, &path, &json!({"ip_allow": ["192.0.2.7"]})).data(200);
    assert_eq!(elsewhere["ip_allow"], json!(["192.0.2.7/32"]));
    assert_eq!(uses(&second, DEVICES), 403);

    let gone = rig.send("DELETE", &path, Some(ALL), None).data(200);
    assert_eq!(gone["name"], "bill/ing");
    assert_eq!(uses(&second, DEVICES), 401);
    for (method, path) in [("GET", path.clone()), ("DELETE", path.clone()), ("POST", format!("{path}/rotate"))] {
        rig.send(method, &path, Some(ALL), None).error(404, "NOT_FOUND");
    }
}

#[test]
fn both_sources_are_listed_and_the_configuration_is_read_only() {
    let rig = rig();
    post(&rig, KEYS, &json!({"name": "billing"})).data(201);
    let list = get(&rig, &format!("{KEYS}?size=2")).data(200);
    let names = |list: &Value| -> Vec<(String, String)> {
        let items = list["items"].as_array().expect("a list").iter();
        items.map(|item| (text(&item["name"]), text(&item["source"]))).collect()
    };
    let pair = |name: &str, source: &str| (name.to_owned(), source.to_owned());
    assert_eq!((names(&list), &list["total"]), (vec![pair("all", "config"), pair("billing", "store")], &json!(3)));
    let rest = get(&rig, &format!("{KEYS}?size=2&page=2")).data(200);
    assert_eq!(names(&rest), [pair("reader", "config")]);
    assert_eq!(get(&rig, &format!("{KEYS}/reader")).data(200)["scopes"], json!(["read"]));

    for name in ["reader", "billing"] {
        post(&rig, KEYS, &json!({ "name": name })).error(409, "NAME_TAKEN");
    }
    for (method, path, body) in [
        ("POST", format!("{KEYS}/reader"), Some(r#"{"rate_per_s": 1}"#)),
        ("POST", format!("{KEYS}/reader/rotate"), None),
        ("DELETE", format!("{KEYS}/reader"), None),
        ("POST", format!("{WEBHOOKS}/erp.example%2Fhooks"), Some(r#"{"events": []}"#)),
        ("POST", format!("{WEBHOOKS}/erp.example%2Fhooks/rotate"), None),
        ("DELETE", format!("{WEBHOOKS}/erp.example%2Fhooks"), None),
    ] {
        let message = rig.send(method, &path, Some(ALL), body).error(409, "READ_ONLY");
        assert!(message.ends_with("is of the configuration: change it there"), "{message}");
    }
    post(&rig, WEBHOOKS, &json!({"name": "erp.example/hooks", "url": "https://x.example"})).error(409, "NAME_TAKEN");
    for (path, name) in [(WEBHOOKS.to_owned(), None), (format!("{WEBHOOKS}/erp.example%2Fhooks"), Some("erp"))] {
        let answer = get(&rig, &path);
        assert!(!answer.text.contains("configured"), "{}", answer.text);
        let endpoint = if name.is_some() { answer.data(200) } else { answer.data(200)["items"][0].clone() };
        assert_eq!((&endpoint["source"], &endpoint["secrets"]), (&json!("config"), &json!(1)));
    }
    // A name the configuration has lost is free, and the key behind it void.
    rig.api.managed.configure(Configured { keys: vec![key("all", [Scope::Admin])], ..Configured::default() });
    post(&rig, KEYS, &json!({"name": "reader"})).data(201);
    assert_eq!(rig.send("GET", DEVICES, Some("key-reader"), None).status, 401);
}

#[test]
fn a_signing_key_shows_its_secret_where_it_is_made() {
    let rig = rig();
    let made = post(&rig, KEYS, &json!({"name": "signer", "require_hmac": true})).data(201);
    let (api_key, secret) = (text(&made["key"]), text(&made["hmac_secret"]));
    assert_eq!(secret.len(), 64);
    let refused = rig.send("GET", DEVICES, Some(&api_key), None).error(401, "UNAUTHORIZED");
    assert!(refused.contains("must sign"), "{refused}");

    let path = format!("{KEYS}/signer");
    let same = post(&rig, &path, &json!({"require_hmac": true})).data(200);
    assert!(same.get("hmac_secret").is_none(), "it had one: {same}");
    let free = post(&rig, &path, &json!({"require_hmac": false})).data(200);
    assert!(free.get("hmac_secret").is_none(), "{free}");
    assert_eq!(rig.send("GET", DEVICES, Some(&api_key), None).status, 200);
    let again = post(&rig, &path, &json!({"require_hmac": true})).data(200);
    assert!(again["hmac_secret"].is_string() && again["hmac_secret"] != secret.as_str(), "{again}");
    let rotated = post(&rig, &format!("{path}/rotate"), &json!({})).data(200);
    assert!(rotated["key"].is_string() && rotated["hmac_secret"] != again["hmac_secret"], "{rotated}");
    let list = get(&rig, KEYS).text;
    for hidden in [&api_key, &secret, &text(&rotated["key"]), &text(&rotated["hmac_secret"])] {
        assert!(!list.contains(hidden.as_str()), "{list}");
    }
}

#[test]
fn bodies_are_read_by_the_rules_of_the_configuration() {
    let rig = rig();
    for (body, message) in [
        (json!({}), "name is missing"),
        (json!({"name": ""}), "name must be 1 to 128 printable characters, got \"\""),
        (json!({"name": "a\nb"}), "name must be 1 to 128 printable characters, got \"a\\nb\""),
        (
            json!({"name": "a", "scopes": ["write"]}),
            "scopes[0] must be one of \"read\", \"control\", \"admin\", got \"write\"",
        ),
        (json!({"name": "a", "scopes": "read"}), "scopes must be an array of 0..=3 texts, got \"read\""),
        (
            json!({"name": "a", "ip_allow": ["10.0.0.1/8"]}),
            "ip_allow[0] must be a network like 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32, got \"10.0.0.1/8\"",
        ),
        (json!({"name": "a", "rate_per_s": -1}), "rate_per_s must be a whole number in 0..=1000000, got -1"),
        (json!({"name": "a", "require_hmac": "yes"}), "require_hmac must be true or false, got \"yes\""),
        (
            json!({"name": "a", "key": "chosen"}),
            "field key is not known, there are name, scopes, require_hmac, ip_allow, rate_per_s, burst",
        ),
    ] {
        assert_eq!(post(&rig, KEYS, &body).error(400, "INVALID_PARAMETER"), message, "{body}");
    }
    let endpoint = |field: &str, value: Value| {
        let mut body = json!({"name": "a", "url": "https://a.example/"});
        body[field] = value;
        post(&rig, WEBHOOKS, &body).error(400, "INVALID_PARAMETER")
    };
    let url = "url must be an http or https URL of at most 2048 bytes without user and fragment, got";
    for (field, value, message) in [
        ("url", Value::Null, "url is missing".to_owned()),
        ("url", json!("ftp://a.example"), format!("{url} \"ftp://a.example\"")),
        ("url", json!("https://u:p@a.example"), format!("{url} \"https://u:***@a.example\"")),
        ("url", json!("http://10.1.2.3/x"), "url is refused: target address 10.1.2.3 is private".to_owned()),
        ("url", json!("http://[::1]/x"), "url is refused: target address ::1 is loopback".to_owned()),
        (
            "events",
            json!(["orders.*"]),
            "events[0] must be \"*\", a group like \"order.*\", or an event type, got \"orders.*\"".to_owned(),
        ),
        (
            "secret",
            json!("whsec_!"),
            "secret must be \"whsec_\" and base64, or any other text, got no base64 after \"whsec_\"".to_owned(),
        ),
        ("secret", json!(12345), "secret must be \"whsec_\" and base64, or any other text, got a number".to_owned()),
        (
            "secret",
            json!("file:/etc/passwd"),
            "secret must be the secret itself: files are for the configuration".to_owned(),
        ),
        ("secret", json!("x".repeat(4_097)), "secret must have at most 4096 bytes".to_owned()),
        ("api_key", json!("two words"), "api_key must be ASCII without spaces, got other characters".to_owned()),
        ("colour", json!("red"), "field colour is not known, there are name, url, events, secret, api_key".to_owned()),
    ] {
        assert_eq!(endpoint(field, value), message);
    }
    assert_eq!(get(&rig, KEYS).data(200)["total"], 2);
    assert_eq!(get(&rig, WEBHOOKS).data(200)["total"], 1);
    post(&rig, KEYS, &json!({"name": "k"})).data(201);
    let message = post(&rig, &format!("{KEYS}/k"), &json!({})).error(400, "INVALID_PARAMETER");
    assert!(message.starts_with("body changes nothing: "), "{message}");
    get(&rig, &format!("{KEYS}/%ff")).error(400, "INVALID_PARAMETER");
    for key in ["key-reader", "nobody"] {
        assert!([401, 403].contains(&rig.send("GET", KEYS, Some(key), None).status), "only for admins");
    }
}

#[test]
fn nobody_locks_all_admins_out() {
    let rig = rig();
    let root = text(&post(&rig, KEYS, &json!({"name": "root", "scopes": ["admin"]})).data(201)["key"]);
    post(&rig, KEYS, &json!({"name": "other", "scopes": ["read"]})).data(201);
    // From now on the store has the only key of an admin.
    rig.api.managed.configure(Configured { keys: vec![key("reader", [Scope::Read])], ..Configured::default() });
    let path = format!("{KEYS}/root");
    let refused = |answer: Answer| {
        let message = answer.error(409, "LAST_ADMIN");
        assert_eq!(message, "key \"root\" is the last one with the scope admin: make another one first");
    };
    let change = |body: &str| rig.send("POST", &path, Some(&root), Some(body));
    refused(rig.send("DELETE", &path, Some(&root), None));
    refused(change(r#"{"scopes": ["read", "control"]}"#));
    refused(change(r#"{"ip_allow": ["192.0.2.0/24"]}"#));
    change(r#"{"ip_allow": ["127.0.0.0/8"], "scopes": ["read", "admin"]}"#).data(200);
    // Others may go, and with a second admin so may the first.
    rig.send("DELETE", &format!("{KEYS}/other"), Some(&root), None).data(200);
    let second = rig.send("POST", KEYS, Some(&root), Some(r#"{"name": "second", "scopes": ["admin"]}"#)).data(201);
    rig.send("DELETE", &path, Some(&root), None).data(200);
    assert_eq!(rig.send("GET", KEYS, Some(&root), None).status, 401);
    assert_eq!(rig.send("GET", KEYS, Some(&text(&second["key"])), None).status, 200);
}

#[test]
fn a_repeated_request_is_not_shown_the_secret() {
    let rig = rig();
    let body = json!({"name": "once", "require_hmac": true});
    let first = rig.send_once(KEYS, ALL, "k-1", Some(&body)).data(201);
    let again = rig.send_once(KEYS, ALL, "k-1", Some(&body));
    assert_eq!(again.headers.get("idempotency-replayed").map(String::as_str), Some("true"));
    let again = again.data(201);
    assert_eq!(again["name"], "once");
    assert!(again.get("key").is_none() && again.get("hmac_secret").is_none(), "{again}");
    let rotate = format!("{KEYS}/once/rotate");
    let rotated = rig.send_once(&rotate, ALL, "k-2", None).data(200);
    assert!(rig.send_once(&rotate, ALL, "k-2", None).data(200).get("key").is_none());
    let kept = rig.send("GET", DEVICES, Some(&text(&rotated["key"])), None);
    assert!(kept.error(401, "UNAUTHORIZED").contains("must sign"), "a repetition does not rotate again");
    rig.send_once(KEYS, ALL, "k-1", Some(&json!({"name": "twice"}))).error(422, "IDEMPOTENCY_MISMATCH");

    let endpoint = json!({"name": "erp", "url": "https://erp.example"});
    let made = rig.send_once(WEBHOOKS, ALL, "k-3", Some(&endpoint)).data(201);
    assert!(rig.send_once(WEBHOOKS, ALL, "k-3", Some(&endpoint)).data(201).get("secret").is_none());

    // Nothing of it is in the file but what signing needs.
    let database = rusqlite::Connection::open(rig.database()).unwrap();
    let answers: String = database
        .query_row("SELECT group_concat(CAST(response AS TEXT)) FROM idempotency_keys", [], |row| row.get(0))
        .unwrap();
    for secret in [&first["key"], &first["hmac_secret"], &rotated["key"], &rotated["hmac_secret"], &made["secret"]] {
        assert!(!answers.contains(&text(secret)), "{answers}");
    }
}

#[test]
fn an_endpoint_is_made_changed_rotated_and_removed() {
    let rig = rig();
    let made =
        post(&rig, WEBHOOKS, &json!({"name": "erp", "url": "https://new.example/a?b=c", "api_key": "sent"})).data(201);
    let secret = text(&made["secret"]);
    assert!(secret.starts_with("whsec_"), "{secret}");
    assert_eq!((&made["api_key"], &made["secrets"], &made["events"]), (&json!(true), &json!(1), &json!([])));
    let given = json!({"name": "other", "url": "https://other.example", "secret": "my own", "events": ["order.*"]});
    let given = post(&rig, WEBHOOKS, &given).data(201);
    assert!(given.get("secret").is_none(), "{given}");
    assert_eq!(get(&rig, WEBHOOKS).data(200)["total"], 3);

    let path = format!("{WEBHOOKS}/erp");
    let rotated = post(&rig, &format!("{path}/rotate"), &json!({})).data(200);
    assert_eq!(rotated["secrets"], 2);
    assert_ne!(text(&rotated["secret"]), secret);
    let message = post(&rig, &path, &json!({"secret_previous": "x"})).error(400, "INVALID_PARAMETER");
    assert_eq!(message, "secret_previous must be null: a new secret is given to …/rotate");
    let changed = json!({"secret_previous": null, "api_key": null, "events": ["*"], "url": "https://new.example/b"});
    let changed = post(&rig, &path, &changed).data(200);
    assert_eq!(
        (&changed["secrets"], &changed["api_key"], &changed["events"]),
        (&json!(1), &json!(false), &json!(["*"]))
    );
    assert_eq!(changed["url"], "https://new.example/b");
    let own = post(&rig, &format!("{path}/rotate"), &json!({"secret": "chosen"})).data(200);
    assert!(own["secrets"] == 2 && own.get("secret").is_none(), "{own}");
    let seen = get(&rig, &path);
    assert!(!seen.text.contains("chosen") && !seen.text.contains("whsec_"), "{}", seen.text);
    let names = rig.api.managed.endpoints().into_iter().map(|endpoint| endpoint.name).collect::<Vec<_>>();
    assert_eq!(names, ["erp.example/hooks", "erp", "other"], "what the pusher is given");
    rig.send("DELETE", &path, Some(ALL), None).data(200);
    get(&rig, &path).error(404, "NOT_FOUND");
    assert_eq!(rig.api.managed.endpoints().len(), 2);
}
