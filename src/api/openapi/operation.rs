//! What the document says of one route, and how that becomes JSON.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::form::Form;
use super::schema::{Role, Schemas, Shape};
use crate::api::error::ErrorCode;
use crate::api::message::{JSON, Method};
use crate::api::route::{BASE, Route};

/// Groups of operations, in the order of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    Charging,
    Orders,
    Devices,
    Cards,
    Commands,
    Firmware,
    Events,
    Keys,
    Webhooks,
    Operation,
    Health,
}

impl Tag {
    pub(super) const ALL: [(Self, &'static str); 11] = [
        (Self::Charging, "Start, stop and cancel charges."),
        (Self::Orders, "What became of a charge."),
        (Self::Devices, "What is known of devices and their ports, live and stored."),
        (Self::Cards, "Accounts of cards, their money and what moved it."),
        (Self::Commands, "Named commands, parameters and network lists of devices."),
        (Self::Firmware, "Images, and the updates that bring them to devices."),
        (Self::Events, "The log that webhooks are delivered from."),
        (Self::Keys, "API keys: who may call what."),
        (Self::Webhooks, "Webhook endpoints and what was delivered to them."),
        (Self::Operation, "For operators: instances, connections, queues, frames."),
        (Self::Health, "For machines: no key, no envelope."),
    ];
}

/// What a success is.
enum Data {
    /// The envelope around a value.
    Enveloped(Shape),
    /// A value as it is.
    Plain(Shape),
    /// A text of this media type.
    Text(&'static str),
    None,
}

struct Success {
    status: u16,
    text: &'static str,
    data: Data,
}

/// An operation: what its arm in [`routes`](super::routes) says of it. What follows from the [`Route`] is added by [`Operation::document`].
#[must_use]
pub(super) struct Operation {
    tag: Tag,
    summary: &'static str,
    text: &'static str,
    query: Vec<(&'static str, Form, &'static str)>,
    body: Option<Shape>,
    body_required: bool,
    media_type: &'static str,
    examples: Vec<(&'static str, Value)>,
    needs_idempotency_key: bool,
    successes: Vec<Success>,
    errors: Vec<ErrorCode>,
}

impl Operation {
    pub(super) const fn new(tag: Tag, summary: &'static str) -> Self {
        Self {
            tag,
            summary,
            text: "",
            query: Vec::new(),
            body: None,
            body_required: true,
            media_type: JSON,
            examples: Vec::new(),
            needs_idempotency_key: false,
            successes: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// More than the summary says; Markdown.
    pub(super) fn text(self, text: &'static str) -> Self {
        Self { text, ..self }
    }

    /// A query key of the route's row; `page` and `size` come by themselves. Text that begins with "Required" makes it so.
    pub(super) fn query(mut self, key: &'static str, form: Form, text: &'static str) -> Self {
        self.query.push((key, form, text));
        self
    }

    /// A JSON body, which must be there.
    pub(super) fn body<T: ToSchema>(self) -> Self {
        Self { body: Some(Shape::of::<T>()), ..self }
    }

    /// A JSON body, which may be left out.
    pub(super) fn optional_body<T: ToSchema>(self) -> Self {
        Self { body_required: false, ..self.body::<T>() }
    }

    /// A body that is taken as it is.
    pub(super) fn bytes(self, media_type: &'static str) -> Self {
        Self { body: Some(Shape::bytes()), media_type, ..self }
    }

    /// A body the handler takes. Together the examples show every field: the tests send them, with fields added that are not known.
    pub(super) fn example(mut self, name: &'static str, body: Value) -> Self {
        self.examples.push((name, body));
        self
    }

    /// The `Idempotency-Key` may not be left out.
    pub(super) fn needs_idempotency_key(self) -> Self {
        Self { needs_idempotency_key: true, ..self }
    }

    fn success(mut self, status: u16, text: &'static str, data: Data) -> Self {
        self.successes.push(Success { status, text, data });
        self
    }

    /// 200 with `T` in the envelope.
    pub(super) fn ok<T: ToSchema>(self) -> Self {
        self.success(200, "Done.", Data::Enveloped(Shape::of::<T>()))
    }

    /// 201 with `T` in the envelope.
    pub(super) fn created<T: ToSchema>(self) -> Self {
        self.success(201, "Created.", Data::Enveloped(Shape::of::<T>()))
    }

    /// 202 with `T` in the envelope: committed, and done later.
    pub(super) fn accepted<T: ToSchema>(self) -> Self {
        let text = "Committed. What becomes of it is told by events.";
        self.success(202, text, Data::Enveloped(Shape::of::<T>()))
    }

    /// 200 with a page of `T` in the envelope: `{items, total, page, size}`.
    pub(super) fn page<T: ToSchema>(self) -> Self {
        self.success(200, "A page of the list.", Data::Enveloped(Shape::page::<T>()))
    }

    /// 200 with an array of `T` in the envelope.
    pub(super) fn array<T: ToSchema>(self) -> Self {
        self.success(200, "All of them.", Data::Enveloped(Shape::array::<T>()))
    }

    /// An answer without envelope.
    pub(super) fn plain<T: ToSchema>(self, status: u16, text: &'static str) -> Self {
        self.success(status, text, Data::Plain(Shape::of::<T>()))
    }

    /// A JSON object of a format of its own.
    pub(super) fn object(self, text: &'static str) -> Self {
        self.success(200, text, Data::Plain(Shape::object()))
    }

    /// An answer of another media type than JSON.
    pub(super) fn other(self, status: u16, text: &'static str, media_type: &'static str) -> Self {
        self.success(status, text, Data::Text(media_type))
    }

    /// An answer without a body.
    pub(super) fn empty(self, status: u16, text: &'static str) -> Self {
        self.success(status, text, Data::None)
    }

    /// Codes beside those that every route of its kind can answer with.
    pub(super) fn errors(mut self, codes: &[ErrorCode]) -> Self {
        self.errors.extend_from_slice(codes);
        self
    }

    /// Keys this operation describes.
    #[cfg(test)]
    pub(super) fn query_keys(&self) -> Vec<&'static str> {
        self.query.iter().map(|(key, ..)| *key).collect()
    }

    /// The codes the route can answer with: its own and those of every route like it.
    pub(super) fn codes(&self, route: &Route) -> Vec<ErrorCode> {
        use ErrorCode as E;
        let mut codes = vec![
            E::InvalidParameter,
            E::MethodNotAllowed,
            E::RequestTimeout,
            E::PayloadTooLarge,
            E::Internal,
            E::NotReady,
        ];
        if route.scope.is_some() {
            codes.extend([E::Unauthorized, E::Forbidden, E::RateLimited]);
            match route.method {
                Method::Post => {
                    codes.extend([E::UnsupportedMediaType, E::IdempotencyInProgress, E::IdempotencyMismatch])
                }
                Method::Delete => codes.push(E::UnsupportedMediaType),
                _ => {}
            }
        }
        codes.extend_from_slice(&self.errors);
        codes.sort_unstable();
        codes.dedup();
        codes
    }

    /// The operation object. Schemas and answers it shares with others go into `schemas` and `responses`.
    pub(super) fn document(
        &self,
        route: &Route,
        schemas: &mut Schemas,
        responses: &mut BTreeMap<String, Value>,
    ) -> Value {
        let mut operation = Map::new();
        operation.insert("operationId".into(), operation_id(route).into());
        operation.insert("tags".into(), json!([format!("{:?}", self.tag)]));
        operation.insert("summary".into(), self.summary.into());
        let scope = match route.scope {
            Some(scope) => format!("Scope `{}`.", scope.as_str()),
            None => "No key needed.".to_owned(),
        };
        let text = if self.text.is_empty() { scope } else { format!("{}\n\n{scope}", self.text) };
        operation.insert("description".into(), text.into());
        let security =
            if route.scope.is_some() { json!([{"key": []}, {"key": [], "signature": []}]) } else { json!([]) };
        operation.insert("security".into(), security);
        operation.insert("parameters".into(), self.parameters(route, schemas).into());
        if let Some(body) = &self.body {
            let mut content = Map::from_iter([("schema".to_owned(), schemas.add(body, Role::Asked))]);
            let examples = self.examples.iter().map(|(name, value)| ((*name).to_owned(), json!({"value": value})));
            let examples: Map<String, Value> = examples.collect();
            if !examples.is_empty() {
                content.insert("examples".into(), examples.into());
            }
            let body = json!({"required": self.body_required, "content": {self.media_type: content}});
            operation.insert("requestBody".into(), body);
        }
        operation.insert("responses".into(), self.responses(route, schemas, responses).into());
        operation.into()
    }

    fn parameters(&self, route: &Route, schemas: &mut Schemas) -> Vec<Value> {
        let mut parameters = Vec::new();
        for name in route.pattern.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
            let (form, text) = match name {
                "device" => (Form::of::<crate::model::DeviceId>(), "The device."),
                "order" => (Form::of::<crate::model::OrderNo>(), "The order."),
                "card" => (Form::of::<crate::model::CardNo>(), "The card."),
                "name" => (Form::name(), "The name."),
                _ => (Form::number(0..=i64::MAX), "The number."),
            };
            let schema = form.schema(schemas);
            parameters
                .push(json!({"name": name, "in": "path", "required": true, "description": text, "schema": schema}));
        }
        for (key, form, text) in &self.query {
            let required = text.starts_with("Required");
            let schema = form.schema(schemas);
            parameters
                .push(json!({"name": key, "in": "query", "required": required, "description": text, "schema": schema}));
        }
        let mut shared = Vec::new();
        if route.is_list() {
            shared.extend(["page", "size"]);
        }
        if route.scope.is_some() && route.method == Method::Post {
            shared.push(if self.needs_idempotency_key { "idempotency_key_required" } else { "idempotency_key" });
        }
        shared.push("request_id");
        parameters.extend(shared.iter().map(|name| json!({"$ref": format!("#/components/parameters/{name}")})));
        parameters
    }

    fn responses(
        &self,
        route: &Route,
        schemas: &mut Schemas,
        shared: &mut BTreeMap<String, Value>,
    ) -> Map<String, Value> {
        let mut answers = Map::new();
        let repeats = route.scope.is_some() && route.method == Method::Post;
        for Success { status, text, data } in &self.successes {
            let mut headers = json!({"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}});
            if route.scope.is_some() {
                add_quota(&mut headers);
            }
            if repeats {
                headers["Idempotency-Replayed"] = json!({"$ref": "#/components/headers/Idempotency-Replayed"});
            }
            let mut answer = json!({"description": text, "headers": headers});
            let content = match data {
                Data::Enveloped(shape) => Some((JSON, enveloped(schemas.add(shape, Role::Told)))),
                Data::Plain(shape) => Some((JSON, schemas.add(shape, Role::Told))),
                Data::Text(media_type) => Some((*media_type, json!({"type": "string"}))),
                Data::None => None,
            };
            if let Some((media_type, schema)) = content {
                answer["content"] = json!({media_type: {"schema": schema}});
            }
            answers.insert(status.to_string(), answer);
        }
        for (status, codes) in by_status(&self.codes(route)) {
            let name = codes.iter().map(|code| code.as_str()).collect::<Vec<_>>().join(".");
            let name = if status == 431 { "HEAD_TOO_LARGE".to_owned() } else { name };
            let reference = json!({"$ref": format!("#/components/responses/{name}")});
            shared.entry(name).or_insert_with(|| error_response(status, &codes));
            // An open route tells in the same status what it found and that it could not look.
            match answers.get_mut(&status.to_string()) {
                Some(answer) => {
                    let own = answer["content"][JSON]["schema"].take();
                    answer["content"][JSON]["schema"] = json!({"anyOf": [own, error_schema(status, &codes)]});
                }
                None => drop(answers.insert(status.to_string(), reference)),
            }
        }
        answers
    }
}

/// A path without what all of its kind begin with.
pub(super) fn shown(pattern: &str) -> &str {
    pattern.strip_prefix(BASE).unwrap_or(pattern)
}

/// `deviceList` of `RouteId::DeviceList`.
pub(super) fn operation_id(route: &Route) -> String {
    let name = format!("{:?}", route.id);
    let (first, rest) = name.split_at(1);
    first.to_ascii_lowercase() + rest
}

/// The codes of each status. `INVALID_PARAMETER` has two: its own, and that of a head beyond the limits.
fn by_status(codes: &[ErrorCode]) -> BTreeMap<u16, Vec<ErrorCode>> {
    let mut statuses: BTreeMap<u16, Vec<ErrorCode>> = BTreeMap::new();
    for code in codes {
        statuses.entry(code.status()).or_default().push(*code);
        if *code == ErrorCode::InvalidParameter {
            statuses.entry(431).or_default().push(*code);
        }
    }
    statuses
}

fn enveloped(data: Value) -> Value {
    json!({
        "type": "object",
        "properties": {
            "code": {"const": 0},
            "message": {"const": "success"},
            "data": data,
            "request_id": {"$ref": "#/components/schemas/RequestId"},
            "timestamp": {"$ref": "#/components/schemas/Time"},
        },
        "required": ["code", "message", "data", "request_id", "timestamp"],
    })
}

fn error_schema(status: u16, codes: &[ErrorCode]) -> Value {
    let words: Vec<&str> = codes.iter().map(|code| code.as_str()).collect();
    let narrowed = json!({"properties": {"code": {"const": status}, "error": {"enum": words}}});
    json!({"allOf": [{"$ref": "#/components/schemas/Error"}, narrowed]})
}

fn error_response(status: u16, codes: &[ErrorCode]) -> Value {
    let text = |code: &ErrorCode| format!("`{}`: {} {}", code.as_str(), code.cause(), code.remedy());
    let description = codes.iter().map(text).collect::<Vec<_>>().join("\n\n");
    let mut headers = json!({"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}});
    add_quota(&mut headers);
    if codes.iter().any(|code| waits(*code)) {
        headers["Retry-After"] = json!({"$ref": "#/components/headers/Retry-After"});
    }
    if codes.contains(&ErrorCode::MethodNotAllowed) {
        headers["Allow"] = json!({"$ref": "#/components/headers/Allow"});
    }
    json!({"description": description, "headers": headers, "content": {JSON: {"schema": error_schema(status, codes)}}})
}

/// What callers with a rate are told in every answer.
fn add_quota(headers: &mut Value) {
    for name in ["RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"] {
        headers[name] = json!({"$ref": format!("#/components/headers/{name}")});
    }
}

/// Whether answers with this code may say when to try again.
fn waits(code: ErrorCode) -> bool {
    use ErrorCode as E;
    matches!(code, E::IdempotencyInProgress | E::RateLimited | E::QueueOverloaded | E::NotReady)
}
