//! The description of the API for machines: OpenAPI 3.1, built from the route table.
//!
//! ```text
//! ROUTES ──row──> parameters, scope, common errors ─┐
//! routes::operation(RouteId) ──arm──> the rest ─────┼──> document()
//! ErrorCode, EventType, types' schemas ─────────────┘
//! ```
//!
//! - [`page`] is `/openapi.json` and `/docs` as they are sent; [`errors`] is the page of error codes.
//!
//! A route without an arm in [`routes`] does not compile. What the document says is held against live answers by `tests/openapi.rs`.

mod errors;
mod events;
mod form;
mod operation;
mod page;
mod routes;
mod schema;
mod types;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::error::ErrorCode;
use super::route::ROUTES;
pub use errors::reference as error_reference;
pub use page::{File, file};

use operation::Tag;
use schema::{Role, Schemas, Shape};

use crate::time::Rfc3339;

const DESCRIPTION: &str = "\
Charging devices (AP3000, BKV, GN) for third-party systems.

Every answer but those of the health paths has one envelope: `code` 0 and `data` for a success, the HTTP status as `code` and a word \
in `error` for a failure. Branch on status and `error`; `message` is for people. What each code means and what to do about it stands \
with the answers of each operation, and for all of them with the schema `ErrorCode`. Times are RFC 3339 in UTC with milliseconds, money is \
integer cents, energy integer Wh, power tenths of a watt (`_dw`), voltage tenths of a volt (`_dv`), current mA.

Query keys and body fields that are not described are refused, and so is one given twice; `null` in a body counts as left out. HEAD \
works wherever GET does.";

/// The document.
pub fn document() -> Value {
    build().0
}

fn build() -> (Value, Vec<String>) {
    let mut schemas = Schemas::default();
    let mut responses = BTreeMap::new();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in ROUTES {
        let operation = routes::operation(route.id).document(route, &mut schemas, &mut responses);
        let method = route.method.as_str().to_ascii_lowercase();
        paths.entry(route.pattern).or_default().insert(method, operation);
    }
    schemas.add(&Shape::of::<Rfc3339>(), Role::Told);
    let webhooks = events::webhooks(&mut schemas);
    schemas.put("RequestId", request_id(), Role::Told);
    schemas.put("ErrorCode", error_code(), Role::Told);
    schemas.put("Error", error(), Role::Told);
    let conflicts = std::mem::take(&mut schemas.conflicts);
    let tags: Vec<Value> =
        Tag::ALL.iter().map(|(tag, text)| json!({"name": format!("{tag:?}"), "description": text})).collect();
    let document = json!({
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "chargegate",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0 OR MIT", "identifier": "Apache-2.0 OR MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": tags,
        "paths": paths,
        "webhooks": webhooks,
        "components": {
            "schemas": schemas.into_json(),
            "responses": responses,
            "parameters": parameters(),
            "headers": headers(),
            "securitySchemes": security_schemes(),
        },
    });
    (document, conflicts)
}

fn error_code() -> Value {
    let words: Vec<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    let mut text = "What went wrong. A code never changes its meaning.\n\n| status | code | cause | what to do |\n|---|---|---|---|\n".to_owned();
    for code in ErrorCode::ALL {
        text.push_str(&format!("| {} | `{}` | {} | {} |\n", code.status(), code.as_str(), code.cause(), code.remedy()));
    }
    json!({"type": "string", "enum": words, "description": text})
}

fn error() -> Value {
    json!({
        "type": "object",
        "description": "An error answer.",
        "properties": {
            "code": {"type": "integer", "minimum": 400, "maximum": 599, "description": "The HTTP status."},
            "error": {"$ref": "#/components/schemas/ErrorCode"},
            "message": {"type": "string", "description": "For people: field, limit and value."},
            "data": {"type": ["object", "null"], "description": "What the code's description names; else `null`."},
            "request_id": {"$ref": "#/components/schemas/RequestId"},
            "timestamp": {"$ref": "#/components/schemas/Time"},
        },
        "required": ["code", "error", "message", "data", "request_id", "timestamp"],
    })
}

fn request_id() -> Value {
    json!({
        "type": "string",
        "pattern": "^[A-Za-z0-9._-]{1,64}$",
        "description": "Names the request in the log; also the header `X-Request-Id`.",
    })
}

fn parameters() -> Value {
    let idempotency = |required: bool| {
        json!({
            "name": "Idempotency-Key",
            "in": "header",
            "required": required,
            "description": "The request takes effect once per key, method and path within 24 h; a repetition gets the first answer. \
                Only 2xx answers are kept.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
        })
    };
    let query = |name: &str, max: u32, default: u32, text: &str| {
        let schema = json!({"type": "integer", "minimum": 1, "maximum": max, "default": default});
        json!({"name": name, "in": "query", "description": text, "schema": schema})
    };
    let mut parameters = json!({
        "page": query("page", u32::MAX, 1, "The page, from 1."),
        "size": query("size", 200, 20, "Entries of a page."),
        "idempotency_key": idempotency(false),
        "idempotency_key_required": idempotency(true),
        "request_id": {
            "name": "X-Request-Id",
            "in": "header",
            "description": "A name for this request, repeated in the answer and in the log. One of another form is replaced.",
            "schema": {"type": "string"},
        },
    });
    if let Some(parameters) = parameters.as_object_mut() {
        parameters.extend(events::parameters());
    }
    parameters
}

fn headers() -> Value {
    let header = |text: &str, schema: Value| json!({"description": text, "schema": schema});
    let number = || json!({"type": "integer", "minimum": 0});
    json!({
        "X-Request-Id": {
            "description": "The request's own, if it was usable, else a new one.",
            "required": true,
            "schema": {"$ref": "#/components/schemas/RequestId"},
        },
        "Retry-After": header("Seconds after which trying again makes sense.", number()),
        "Allow": header("The methods the path has.", json!({"type": "string"})),
        "RateLimit-Limit": header("Requests that may come at once after a rest. Only for a key that has a rate, or where all keys have one.", number()),
        "RateLimit-Remaining": header("Requests that are left of them now.", number()),
        "RateLimit-Reset": header("Seconds until all of them are there again, if nothing more is asked.", number()),
        "Idempotency-Replayed": header("This is the answer of an earlier request with this key.", json!({"const": "true"})),
    })
}

fn security_schemes() -> Value {
    json!({
        "key": {
            "type": "apiKey",
            "in": "header",
            "name": "X-Api-Key",
            "description": "A key of the configuration, or one made by `POST /api/v1/admin/keys`. No scope implies another.",
        },
        "signature": {
            "type": "apiKey",
            "in": "header",
            "name": "X-Signature",
            "description": "Only keys with `require_hmac`; of others these headers are ignored. `X-Signature` is \
                hex(HMAC-SHA256(hmac_secret, METHOD \\n PATH \\n TIMESTAMP \\n NONCE \\n hex(SHA256(BODY)))), with `X-Timestamp` in Unix \
                seconds (300 s off at most) and `X-Nonce` of 1 to 128 characters, used once. PATH is path and query as sent. \
                `chargegate sign` makes all three.",
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_described_with_its_query_keys() {
        for route in ROUTES {
            let mut described = routes::operation(route.id).query_keys();
            described.sort_unstable();
            let mut taken = route.query_keys().to_vec();
            taken.sort_unstable();
            assert_eq!(described, taken, "{:?}", route.id);
        }
    }

    #[test]
    fn a_name_has_one_schema_and_every_reference_its_target() {
        let (document, conflicts) = build();
        assert_eq!(conflicts, Vec::<String>::new());
        let mut references = Vec::new();
        collect(&document, &mut references);
        assert!(references.len() > 100);
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap_or_default();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    fn collect(value: &Value, references: &mut Vec<String>) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| collect(item, references)),
            Value::Object(fields) => {
                if let Some(Value::String(reference)) = fields.get("$ref") {
                    references.push(reference.clone());
                }
                fields.values().for_each(|inner| collect(inner, references));
            }
            _ => {}
        }
    }
}
