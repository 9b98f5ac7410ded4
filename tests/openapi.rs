//! The description of the API says what the API does: every answer of a running gateway, and every event it tells, is held against
//! the document that describes it; what is not described fails.
//!
//! Schemas are read strictly here: a field that is not described is an error, though clients have to let one pass.

mod browser;
mod gateway;

use std::collections::BTreeSet;

use browser::Browser;
use chargegate::api::{error::ErrorCode, message::Method, openapi, route::ROUTES};
use gateway::{
    Answer, Engine, Gateway, KEY, until,
    wire::{Ap3000, Ap3000End, Bkv, wire_no},
};
use jsonschema::Validator;
use serde_json::{Value, json};

const CHARGER: &str = "40aace04";
const YARD: &str = "86100000000001";
const NOBODY: &str = "0000dead";
const CARD: &str = "7a8d05dd";

/// A running gateway and what is said of it.
struct Described {
    gateway: Gateway,
    document: Value,
    /// The document's components, read strictly.
    components: Value,
}

impl Described {
    fn start() -> Option<Self> {
        let variables = [("CHARGEGATE_CARDS_MODE", "local"), ("CHARGEGATE_QUEUE_PER_DEVICE_MAX", "1024")];
        let gateway = Gateway::start(Engine::Mio, &variables)?;
        let document = openapi::document();
        let mut components = document["components"].clone();
        for schema in components["schemas"].as_object_mut().expect("there are schemas").values_mut() {
            close(schema, true);
        }
        Some(Self { gateway, document, components })
    }

    /// The schema with everything it refers to.
    fn validator(&self, mut schema: Value) -> Validator {
        close(&mut schema, false);
        schema["components"] = self.components.clone();
        let options = jsonschema::options().should_validate_formats(true);
        options.build(&schema).unwrap_or_else(|error| panic!("{error} in {schema:#}"))
    }

    #[track_caller]
    fn check(&self, what: &str, schema: &Value, value: &Value) {
        let validator = self.validator(schema.clone());
        let wrong: Vec<String> =
            validator.iter_errors(value).map(|error| format!("{error} at {}", error.instance_path)).collect();
        assert!(wrong.is_empty(), "{what}: {wrong:#?}\n{value:#}");
    }

    /// Follows a reference to an answer.
    fn resolved<'a>(&'a self, answer: &'a Value) -> &'a Value {
        let reference = answer["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
        reference.map_or(answer, |pointer| self.document.pointer(pointer).expect("references lead somewhere"))
    }

    /// Asks, and holds the answer against the operation of this method and pattern. `values` stand for its parameters, in turn.
    #[track_caller]
    fn ask(&self, method: &str, pattern: &str, values: &[&str], query: &str, body: Option<&Value>) -> Answer {
        let path = filled(pattern, values) + query;
        let answer = self.gateway.request(method, &path, Some(KEY), body);
        self.check_answer(method, pattern, &answer);
        answer
    }

    #[track_caller]
    fn check_answer(&self, method: &str, pattern: &str, answer: &Answer) {
        let what = format!("{method} {pattern}: {}", answer.status);
        let operation = &self.document["paths"][pattern][method.to_ascii_lowercase()];
        assert!(operation.is_object(), "{what}: there is no such operation");
        let described = &operation["responses"][answer.status.to_string()];
        assert!(described.is_object(), "{what} is not described: {}", answer.text);
        let described = self.resolved(described);
        assert!(answer.headers.contains_key("x-request-id"), "{what}");
        let Some(content) = described["content"].as_object() else {
            assert_eq!(answer.text, "", "{what}");
            return;
        };
        let media_type = answer.headers["content-type"].to_str().expect("ASCII");
        let content = content.get(media_type).unwrap_or_else(|| panic!("{what}: {media_type}"));
        if media_type == "application/json" {
            self.check(&what, &content["schema"], &answer.body);
        }
    }

    /// GET, with `answer.status` as expected.
    #[track_caller]
    fn get(&self, pattern: &str, values: &[&str], query: &str, status: u16) -> Answer {
        let answer = self.ask("GET", pattern, values, query, None);
        assert_eq!(answer.status, status, "{pattern}{query}: {}", answer.text);
        answer
    }

    #[track_caller]
    fn post(&self, pattern: &str, values: &[&str], body: &Value, status: u16) -> Answer {
        let answer = self.ask("POST", pattern, values, "", Some(body));
        assert_eq!(answer.status, status, "{pattern} {body}: {}", answer.text);
        answer
    }
}

fn third(path: &str) -> String {
    format!("/api/v1/third{path}")
}

fn filled(pattern: &str, values: &[&str]) -> String {
    let mut values = values.iter();
    let part = |part: &str| if part.starts_with('{') { values.next().copied().unwrap_or("1") } else { part }.to_owned();
    pattern.split('/').map(part).collect::<Vec<_>>().join("/")
}

/// Refuses what a schema does not name. Inside `allOf` the whole says so, not its parts.
fn close(schema: &mut Value, is_part: bool) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(|item| close(item, false)),
        Value::Object(fields) => {
            let names_fields = ["properties", "allOf", "$ref"].iter().any(|word| fields.contains_key(*word));
            let is_open = fields.get("required").is_some_and(|names| *names == json!(["reason"]));
            for (word, inner) in fields.iter_mut() {
                match (word.as_str(), inner) {
                    ("properties", Value::Object(properties)) => {
                        properties.values_mut().for_each(|one| close(one, false))
                    }
                    ("allOf", Value::Array(parts)) => parts.iter_mut().for_each(|part| close(part, true)),
                    ("examples" | "enum" | "const" | "default" | "required", _) => {}
                    (_, inner) => close(inner, false),
                }
            }
            if names_fields && !is_part && !is_open {
                fields.insert("unevaluatedProperties".to_owned(), false.into());
            }
        }
        _ => {}
    }
}

/// The operations of the document: method, pattern, operation.
fn operations(document: &Value) -> impl Iterator<Item = (String, &String, &Value)> {
    let paths = document["paths"].as_object().expect("there are paths");
    paths.iter().flat_map(|(pattern, item)| {
        let item = item.as_object().expect("a path has operations");
        item.iter().map(move |(method, operation)| (method.to_ascii_uppercase(), pattern, operation))
    })
}

#[test]
fn every_route_and_every_error_code_is_in_the_document() {
    let document = openapi::document();
    for route in ROUTES {
        let operation = &document["paths"][route.pattern][route.method.as_str().to_ascii_lowercase()];
        assert!(operation["summary"].is_string(), "{} {}", route.method.as_str(), route.pattern);
        assert_eq!(operation["security"] != json!([]), route.scope.is_some(), "{}", route.pattern);
        let successes =
            operation["responses"].as_object().expect("answers").keys().filter(|status| status.starts_with(['2', '3']));
        assert!(successes.count() > 0, "{}", route.pattern);
    }
    assert_eq!(operations(&document).count(), ROUTES.len());
    let ids: BTreeSet<&str> =
        operations(&document).filter_map(|(.., operation)| operation["operationId"].as_str()).collect();
    assert_eq!(ids.len(), ROUTES.len(), "each has a name of its own");

    let text = document["components"]["schemas"]["ErrorCode"]["description"].as_str().expect("a text");
    let words = document["components"]["schemas"]["ErrorCode"]["enum"].as_array().expect("words");
    assert_eq!(words.len(), ErrorCode::ALL.len());
    for code in ErrorCode::ALL {
        assert!(words.contains(&code.as_str().into()) && text.contains(code.cause()), "{}", code.as_str());
    }
}

#[test]
fn the_document_is_openapi_3_1() {
    let rules: Value = serde_json::from_str(include_str!("../testdata/openapi/schema-3.1.json")).expect("it is JSON");
    let document = openapi::document();
    let validator = jsonschema::validator_for(&rules).expect("it is a schema");
    let wrong: Vec<String> =
        validator.iter_errors(&document).map(|error| format!("{error} at {}", error.instance_path)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (name, schema) in document["components"]["schemas"].as_object().expect("there are schemas") {
        assert!(jsonschema::meta::is_valid(schema), "{name}");
    }
}

#[test]
fn the_reference_of_errors_is_current() {
    let page = include_str!("../docs/api/errors.md");
    assert!(page == openapi::error_reference(), "make it anew: chargegate openapi --errors > docs/api/errors.md");
    for code in ErrorCode::ALL {
        assert!(page.contains(&format!("\n## {}\n", code.as_str())));
    }
}

/// What a body of a request may hold: the objects of a schema, and how to know which of them a value is.
fn variants<'a>(document: &'a Value, schema: &'a Value) -> Vec<&'a Value> {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).expect("references lead somewhere"),
        None => schema,
    };
    match schema["oneOf"].as_array() {
        Some(all) => all.iter().flat_map(|one| variants(document, one)).collect(),
        None => vec![schema],
    }
}

/// The variant with the constants of a value.
fn variant_of<'a>(document: &'a Value, schema: &'a Value, value: &Value) -> Option<&'a Value> {
    variants(document, schema).into_iter().find(|variant| {
        let properties = variant["properties"].as_object();
        properties.is_some_and(|properties| {
            properties.iter().all(|(name, property)| {
                property["enum"]
                    .as_array()
                    .is_none_or(|words| value.get(name).is_none_or(|given| words.contains(given)))
            }) && value.as_object().is_some_and(|fields| fields.keys().all(|name| properties.contains_key(name)))
        })
    })
}

/// Names of a schema's fields.
fn names(schema: &Value) -> BTreeSet<String> {
    schema["properties"].as_object().map(|fields| fields.keys().cloned().collect()).unwrap_or_default()
}

/// The names that a refusal of an unknown field lists.
fn listed(message: &str) -> Option<BTreeSet<String>> {
    let (_, list) = message.split_once(" is not known, there are ")?;
    Some(list.split(", ").map(str::to_owned).collect())
}

/// Puts a field that nobody knows into each object of a body, one at a time: the path of the object, and the body.
fn with_unknown(value: &Value, schema: &Value, document: &Value) -> Vec<(String, BTreeSet<String>, Value)> {
    let Some(variant) = variant_of(document, schema, value) else { return Vec::new() };
    let mut bodies = Vec::new();
    let mut here = value.clone();
    here["unheard_of"] = json!(1);
    bodies.push((String::new(), names(variant), here));
    for (name, property) in variant["properties"].as_object().expect("an object has fields") {
        let Some(items) = value.get(name).and_then(Value::as_array) else { continue };
        for (index, item) in items.iter().enumerate() {
            for (_, known, inner) in with_unknown(item, &property["items"], document) {
                let mut body = value.clone();
                body[name][index] = inner;
                bodies.push((format!("{name}[{index}]."), known, body));
            }
        }
    }
    bodies
}

/// Bodies are read field by field, and described by a struct beside the reader: here the two meet. The reader takes every field that
/// is described, refuses any other, and in refusing it names exactly those that are described.
#[test]
fn bodies_are_read_as_they_are_described() {
    let Some(described) = Described::start() else { return };
    let document = &described.document;
    for device in [CHARGER, YARD] {
        described.post(&third("/devices/{device}"), &[device], &json!({"name": "of the test"}), 200);
    }
    for (method, pattern, operation) in operations(document) {
        let Some(content) = operation["requestBody"]["content"]["application/json"].as_object() else { continue };
        let schema = &content["schema"];
        let examples: Vec<&Value> =
            content["examples"].as_object().into_iter().flat_map(|all| all.values()).map(|one| &one["value"]).collect();
        assert!(!examples.is_empty(), "{pattern} has no example");

        let devices: &[&str] = if pattern.contains("{device}") { &[CHARGER, YARD] } else { &[""] };
        let path = |device: &str| {
            pattern.replace("{device}", device).replace("{card}", CARD).replace("{name}", "nobody").replace("{id}", "1")
        };
        let send = |device: &str, body: &Value| {
            let key = format!("{:x}", rand_of(&format!("{pattern}{device}{body}")));
            let answer = described.gateway.post_once(&path(device), &key, body);
            assert!(answer.status < 500, "{pattern} {body}: {}", answer.text);
            described.check_answer(&method, pattern, &answer);
            answer.body["message"].as_str().unwrap_or_default().to_owned()
        };

        let mut shown: BTreeSet<(usize, String)> = BTreeSet::new();
        for example in &examples {
            described.check(pattern, schema, example);
            let variant = variant_of(document, schema, example).expect("an example is of some variant");
            let index = variants(document, schema)
                .iter()
                .position(|one| std::ptr::eq(*one, variant))
                .expect("it is one of them");
            shown.extend(example.as_object().expect("an object").keys().map(|name| (index, name.clone())));
            let accepted = devices.iter().any(|device| !send(device, example).contains("is not known"));
            assert!(accepted, "{pattern} does not read {example}");
        }
        for (index, variant) in variants(document, schema).iter().enumerate() {
            let left: Vec<String> =
                names(variant).into_iter().filter(|name| !shown.contains(&(index, name.clone()))).collect();
            assert!(left.is_empty() || left == ["valid_seconds"], "{pattern}: no example shows {left:?}");

            // At least one example must come as far as the refusal of what nobody knows.
            let of_variant = examples
                .iter()
                .filter(|example| variant_of(document, schema, example).is_some_and(|one| std::ptr::eq(one, *variant)));
            let mut refused = 0;
            for example in of_variant {
                for (place, known, body) in with_unknown(example, schema, document) {
                    for device in devices {
                        let message = send(device, &body);
                        assert_ne!(message, "success", "{pattern} takes {body}");
                        if let Some(listed) = listed(&message) {
                            assert!(message.contains(&format!("{place}unheard_of")), "{message}");
                            assert_eq!(listed, known, "{pattern} {body}");
                            refused += 1;
                        }
                    }
                }
            }
            assert!(refused > 0, "{pattern} was never asked for what it does not know");
        }
    }
}

/// A number that is the same for the same text.
fn rand_of(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A charge by a card from order to settlement, on a device of each protocol, with everything that is to be seen of it.
#[test]
fn answers_and_events_are_as_they_are_described() {
    let Some(described) = Described::start() else { return };
    let gateway = &described.gateway;
    let mut charger = Ap3000::online(gateway.devices, CHARGER, 2);
    gateway.knows_port(CHARGER, 2);
    let _yard = Bkv::standalone(gateway.devices, YARD);
    gateway.knows_port(YARD, 2);

    described.post(&third("/cards"), &[], &json!({"card_no": CARD, "expires_at": "2027-01-31T16:00:00Z"}), 201);
    described.post(&third("/cards"), &[], &json!({"card_no": CARD}), 409);
    described.post(&third("/cards/{card}/recharge"), &[CARD], &json!({"amount_cent": 100}), 400);
    let charged = gateway.post_once(&third(&format!("/cards/{CARD}/recharge")), "once", &json!({"amount_cent": 5000}));
    described.check_answer("POST", &third("/cards/{card}/recharge"), &charged);
    assert_eq!(charged.status, 200, "{}", charged.text);
    let other = gateway.post_once(&third(&format!("/cards/{CARD}/recharge")), "once", &json!({"amount_cent": 1}));
    described.check_answer("POST", &third("/cards/{card}/recharge"), &other);
    assert_eq!(other.status, 422, "{}", other.text);

    let charge = third("/devices/{device}/charge");
    let body = json!({"port_no": 2, "mode": "time", "duration_minutes": 90});
    let order = described.post(&charge, &[CHARGER], &body, 202);
    let order_no = order.data()["order_no"].as_str().expect("a number").to_owned();
    described.post(&charge, &[CHARGER], &body, 409);
    described.post(&charge, &[NOBODY], &body, 404);
    described.post(&charge, &[CHARGER], &json!({"port_no": 9, "mode": "full"}), 404);
    described.post(&charge, &[CHARGER], &json!({"port_no": 1, "mode": "power", "tiers": []}), 400);
    described.post(&charge, &["XYZ"], &body, 400);
    let number = wire_no(&order_no);
    let msg_id = charger.expect_command(0x82, &[&[0, 0, 0, 0, 0, 1, 1, 0x18, 0x15], &number[..]].concat());
    charger.answer(msg_id, 0, 1, number);
    charger.report_charging(1, number, 300, 2);
    gateway.order_becomes(&order_no, "charging");
    // The client goes where `/docs/` leads.
    for route in ROUTES.iter().filter(|route| route.method == Method::Get && route.pattern != "/docs/") {
        for (device, card, order) in [(CHARGER, CARD, order_no.as_str()), (YARD, "none0000", "THD0000000000000")] {
            let value = |name: &str| match name {
                "{device}" => device,
                "{card}" => card,
                "{order}" => order,
                "{name}" => "nobody",
                _ => "1",
            };
            let values: Vec<&str> = route.pattern.split('/').filter(|part| part.starts_with('{')).map(value).collect();
            let query = match operation_query(route.pattern) {
                "order" => format!("?order_no={order}"),
                "port" => "?port_no=1".to_owned(),
                _ => String::new(),
            };
            let answer = described.ask("GET", route.pattern, &values, &query, None);
            assert!(answer.status < 500, "{}: {}", route.pattern, answer.text);
        }
        described.ask("GET", route.pattern, &["0", "0"], "?unheard_of=1", None);
    }
    described.post(&third("/orders/{order}/cancel"), &[&order_no], &json!({}), 409);
    let end = Ap3000End {
        port: 1,
        order_no: number,
        start_mode: chargegate::protocol::ap3000::codes::StartMode::ONLINE,
        reason: 1,
        duration_s: 5_000,
        energy: 123,
    };
    let msg_id = charger.settle(&end);
    charger.expect(msg_id, 0x03, &[0]);
    gateway.order_becomes(&order_no, "completed");
    charger.line.send(&[0; 8]);
    let anomaly = until("noise is an anomaly", || {
        let listed = described.get("/api/v1/admin/anomalies", &[], "?kind=noise", 200);
        listed.data()["items"][0]["id"].as_str().map(str::to_owned)
    });
    described.get("/api/v1/admin/anomalies/{name}", &[&anomaly], "", 200);
    let disconnect = "/api/v1/admin/devices/{device}/disconnect";
    let closed = described.post(disconnect, &[CHARGER], &json!({}), 200);
    let connection = closed.data()["connection"].as_str().expect("a name");
    described.get("/api/v1/admin/connections/{name}/frames", &[connection], "", 200);
    described.post(disconnect, &[CHARGER], &json!({}), 400);
    drop(charger);
    until("the device is told to be offline or busy", || {
        (described.get(&third("/devices/{device}/status"), &[CHARGER], "", 200).status == 200).then_some(())
    });

    described.post(&third("/devices/{device}/params"), &[CHARGER], &json!({"refresh": true}), 202);
    described.post(
        &third("/devices/{device}/params"),
        &[CHARGER],
        &json!({"params": {"heartbeat_interval_s": 60}}),
        202,
    );
    described.get(&third("/devices/{device}/params"), &[CHARGER], "", 200);
    let command = described.post(
        &third("/devices/{device}/commands"),
        &[CHARGER],
        &json!({"command": "locate", "seconds": 5}),
        202,
    );
    let command = command.data()["command_id"].to_string();
    described.get(&third("/devices/{device}/commands/{id}"), &[CHARGER, &command], "", 200);
    described.get(&third("/devices/{device}/commands"), &[CHARGER], "", 200);
    let list = json!({"action": "refresh", "channel": 1, "sockets": [{"socket": 1, "mac": "00aabbccdd01"}]});
    described.post(&third("/devices/{device}/sockets"), &[YARD], &list, 202);
    described.get(&third("/devices/{device}/sockets"), &[YARD], "", 200);
    described.ask("DELETE", &third("/devices/{device}/sockets/{id}"), &[YARD, "1"], "", None);
    described.ask("DELETE", &third("/devices/{device}/sockets/{id}"), &[YARD, "7"], "", None);

    let image = gateway.upload(&third("/firmware?name=charger&version=2.07&device_type=0x04"), Some(KEY), &[7; 1_000]);
    described.check_answer("POST", &third("/firmware"), &image);
    assert_eq!(image.status, 201, "{}", image.text);
    let update = json!({"firmware": image.data()["firmware_id"], "method": "e0"});
    let task = described.post(&third("/devices/{device}/ota"), &[CHARGER], &update, 202).data()["task_id"].to_string();
    described.post(&third("/devices/{device}/ota"), &[CHARGER], &update, 409);
    described.get(&third("/ota/{id}"), &[&task], "", 200);
    described.get(&third("/ota"), &[], "?state=pending", 200);
    assert_eq!(described.ask("DELETE", &third("/ota/{id}"), &[&task], "", None).status, 200);

    // Without a key, with a wrong type, and with too much.
    let status = filled(&third("/orders"), &[]);
    let unnamed = gateway.request("GET", &status, None, None);
    described.check_answer("GET", &third("/orders"), &unnamed);
    assert_eq!(unnamed.status, 401);
    let plain = gateway.upload(&third("/order/create"), Some(KEY), b"port_no=1");
    described.check_answer("POST", &third("/order/create"), &plain);
    assert_eq!(plain.status, 415, "{}", plain.text);
    let long = gateway.upload(&third("/order/create"), Some(KEY), &vec![b' '; 70_000]);
    described.check_answer("POST", &third("/order/create"), &long);
    assert_eq!(long.status, 413, "{}", long.text);

    let events = gateway.events();
    let kinds: BTreeSet<&str> = events.iter().filter_map(|event| event["event_type"].as_str()).collect();
    for kind in [
        "device.registered",
        "device.online",
        "card.transaction",
        "order.created",
        "order.settled",
        "charging.ended",
        "ota.progress",
        "port.status_changed",
    ] {
        assert!(kinds.contains(kind), "{kind} did not happen: {kinds:?}");
    }
    for event in events {
        let kind = event["event_type"].as_str().expect("a type");
        let body =
            &described.document["webhooks"][kind]["post"]["requestBody"]["content"]["application/json"]["schema"];
        let mut delivered = event.clone();
        delivered["nonce"] = json!("n-1");
        described.check(kind, body, &delivered);
    }
}

/// What a route cannot be asked without.
fn operation_query(pattern: &str) -> &'static str {
    match pattern {
        "/api/v1/third/order/query" => "order",
        "/api/v1/third/devices/{device}/verification-code" => "port",
        _ => "",
    }
}

#[test]
fn document_and_page_are_served_without_a_key() {
    let Some(described) = Described::start() else { return };
    let gateway = &described.gateway;
    let served = gateway.request("GET", "/openapi.json", None, None);
    assert_eq!((served.status, &served.body), (200, &described.document));
    for (path, content_type, part) in [
        ("/openapi.json", "application/json", "\"openapi\":\"3.1.0\""),
        ("/docs", "text/html; charset=utf-8", "docs/start.js"),
        ("/docs/", "text/html; charset=utf-8", "docs/start.js"),
        ("/docs/start.js", "text/javascript; charset=utf-8", "openapi.json"),
        ("/docs/swagger-ui.css", "text/css; charset=utf-8", ".swagger-ui"),
        ("/docs/swagger-ui-bundle.js", "text/javascript; charset=utf-8", "SwaggerUIBundle"),
    ] {
        let answer = gateway.request("GET", path, None, None);
        let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        assert_eq!((answer.status, header("content-type")), (200, content_type), "{path}");
        assert!(answer.text.contains(part), "{path}");
        assert_eq!((header("cache-control"), header("x-content-type-options")), ("no-cache", "nosniff"), "{path}");
        let policy = header("content-security-policy");
        assert_eq!(policy.contains("default-src 'none'"), path.starts_with("/docs") && !path.contains('.'), "{path}");
        assert!(!policy.contains("http"), "no other host");

        let again = ureq::get(format!("http://{}{path}", gateway.http)).header("If-None-Match", header("etag")).call();
        let mut again = again.expect("an answer");
        assert_eq!(
            (again.status().as_u16(), again.body_mut().read_to_string().expect("no body").len()),
            (304, 0),
            "{path}"
        );
    }
    for path in ["/docs/swagger-ui.css.map", "/docs/index.html", "/docs/../data"] {
        assert_eq!(gateway.request("GET", path, None, None).status, 404, "{path}");
    }
}

#[test]
fn the_page_shows_every_operation_and_asks_no_other_host() {
    let Some(described) = Described::start() else { return };
    let browser = Browser::start();
    browser.open(&format!("http://{}/docs/", described.gateway.http));
    let webhooks = described.document["webhooks"].as_object().expect("there are webhooks").len();
    let operations = operations(&described.document).count() + webhooks;
    browser.until("every operation is there", || {
        let shown = browser.run("return document.querySelectorAll('.opblock').length");
        (shown == operations).then_some(())
    });
    assert!(browser.text().contains("/api/v1/third/devices/{device}/charge"));
    let asked = browser.run("return performance.getEntriesByType('resource').map((one) => new URL(one.name)).filter((url) => url.protocol !== 'data:').map((url) => url.host)");
    for host in asked.as_array().expect("a list") {
        assert_eq!(host, &json!(described.gateway.http.to_string()), "{asked}");
    }
    assert_eq!(browser.complaints(), Vec::<String>::new());
}
