//! The table of paths: which method, who may call it, which query keys it takes.
//!
//! A row is all the API knows of a path before its handler runs. [`resolve`] is total: an unknown path, a wrong method, a path
//! parameter of the wrong form and an unknown query key are errors with a name. No I/O; parameters borrow the target.

use std::borrow::Cow;
use std::sync::LazyLock;

use smallvec::SmallVec;

use super::error::{ApiError, ErrorCode};
use super::message::{JSON, Method, split_target};
use crate::config::{NAME_CHARS_MAX, Scope, is_name};
use crate::model::CardNo;
use crate::time::unix_ms_of_rfc3339;

/// What the third parties' paths begin with.
pub const BASE: &str = "/api/v1/third";

/// What the operators' paths begin with.
pub const ADMIN_BASE: &str = "/api/v1/admin";

/// The path whose POST bodies are images.
pub const FIRMWARE_PATH: &str = "/api/v1/third/firmware";
/// Query keys of lists.
const PAGE_KEYS: [&str; 2] = ["page", "size"];
/// Entries of a page where `size` is left out, and at most.
const PAGE_SIZE: u32 = 20;
const PAGE_SIZE_MAX: u32 = 200;
/// Values of a query; beyond it lies no route's need.
const QUERY_KEYS_MAX: usize = 32;
/// Bytes of a name in a path: every character of the longest one escaped.
const NAME_BYTES_MAX: usize = NAME_CHARS_MAX * 12;

macro_rules! routes {
    ($($(#[$doc:meta])* $id:ident = $method:ident $pattern:expr, $scope:expr, $list:ident, [$($key:literal),*];)*) => {
        /// Names a handler.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum RouteId {
            $($(#[$doc])* $id,)*
        }

        /// All routes.
        pub const ROUTES: &[Route] = &[$(
            Route {
                id: RouteId::$id,
                method: Method::$method,
                pattern: $pattern,
                scope: $scope,
                list: $list,
                query: &[$($key),*],
            },
        )*];
    };
}

const READ: Option<Scope> = Some(Scope::Read);
const CONTROL: Option<Scope> = Some(Scope::Control);
const ADMIN: Option<Scope> = Some(Scope::Admin);
/// No key needed.
const OPEN: Option<Scope> = None;
const PAGED: bool = true;
const SINGLE: bool = false;

routes! {
    /// Creates an order and starts it.
    Charge = Post "/api/v1/third/devices/{device}/charge", CONTROL, SINGLE, [];
    /// Stops what runs on a port.
    StopPort = Post "/api/v1/third/devices/{device}/stop", CONTROL, SINGLE, [];
    DeviceList = Get "/api/v1/third/devices", READ, PAGED, ["online", "protocol", "printed_no", "search"];
    Device = Get "/api/v1/third/devices/{device}", READ, SINGLE, [];
    /// The live score, from memory.
    DeviceStatus = Get "/api/v1/third/devices/{device}/status", READ, SINGLE, [];
    /// As [`RouteId::Charge`], with the device in the body.
    OrderCreate = Post "/api/v1/third/order/create", CONTROL, SINGLE, [];
    OrderStopByBody = Post "/api/v1/third/order/stop", CONTROL, SINGLE, [];
    OrderCancelByBody = Post "/api/v1/third/order/cancel", CONTROL, SINGLE, [];
    OrderQuery = Get "/api/v1/third/order/query", READ, SINGLE, ["device_id", "port_no", "order_no"];
    OrderList = Get "/api/v1/third/orders", READ, PAGED,
        ["device_id", "port_no", "status", "business_no", "created_from", "created_to"];
    Order = Get "/api/v1/third/orders/{order}", READ, SINGLE, [];
    OrderEvents = Get "/api/v1/third/orders/{order}/events", READ, PAGED, [];
    /// All that is kept of how an order came about.
    OrderProof = Get "/api/v1/third/orders/{order}/proof", READ, SINGLE, [];
    OrderStop = Post "/api/v1/third/orders/{order}/stop", CONTROL, SINGLE, [];
    OrderCancel = Post "/api/v1/third/orders/{order}/cancel", CONTROL, SINGLE, [];
    /// The event log from a position.
    Events = Get "/api/v1/third/events", READ, SINGLE, ["after", "limit"];
    /// Who shares the store.
    Instances = Get "/api/v1/admin/instances", ADMIN, SINGLE, [];
    /// Commands on their way to devices.
    Queue = Get "/api/v1/admin/queue", ADMIN, PAGED, ["state", "device_id"];
    /// Least important level that is logged.
    LogLevel = Get "/api/v1/admin/log-level", ADMIN, SINGLE, [];
    LogLevelSet = Post "/api/v1/admin/log-level", ADMIN, SINGLE, [];
    /// Whether this instance sends its devices away.
    Drain = Get "/api/v1/admin/drain", ADMIN, SINGLE, [];
    DrainSet = Post "/api/v1/admin/drain", ADMIN, SINGLE, [];
    /// The sockets of devices.
    Connections = Get "/api/v1/admin/connections", ADMIN, PAGED, ["device_id", "listener", "protocol"];
    ConnectionFrames = Get "/api/v1/admin/connections/{name}/frames", ADMIN, SINGLE, [];
    /// The last frames of a device.
    Recorder = Get "/api/v1/admin/recorder/{device}", ADMIN, SINGLE, [];
    /// What went wrong between devices and the gateway.
    Anomalies = Get "/api/v1/admin/anomalies", ADMIN, PAGED, ["kind", "device_id"];
    Anomaly = Get "/api/v1/admin/anomalies/{name}", ADMIN, SINGLE, [];
    /// Closes the connection of a device.
    Disconnect = Post "/api/v1/admin/devices/{device}/disconnect", ADMIN, SINGLE, [];
    /// What this instance does now and did in the last ten minutes.
    Overview = Get "/api/v1/admin/overview", READ, SINGLE, ["since"];
    /// What an endpoint will not get unless it is delivered again.
    DeadLetterList = Get "/api/v1/admin/webhooks/{name}/dead", ADMIN, PAGED, [];
    DeadLetterRedrive = Post "/api/v1/admin/webhooks/{name}/redrive", ADMIN, SINGLE, [];
    DeadLetterPurge = Post "/api/v1/admin/webhooks/{name}/purge", ADMIN, SINGLE, [];
    /// Delivers a range of the log again.
    WebhookRedeliver = Post "/api/v1/admin/webhooks/{name}/redeliver", ADMIN, SINGLE, [];
    WebhookDeliveries = Get "/api/v1/admin/webhooks/{name}/deliveries", ADMIN, PAGED, ["outcome"];
    /// Deliveries of the event at a position, to all endpoints.
    EventDeliveries = Get "/api/v1/admin/events/{id}/deliveries", ADMIN, PAGED, [];
    /// Sends a test event.
    WebhookTest = Post "/api/v1/admin/webhooks/{name}/test", ADMIN, SINGLE, [];
    WebhookDisable = Post "/api/v1/admin/webhooks/{name}/disable", ADMIN, SINGLE, [];
    WebhookEnable = Post "/api/v1/admin/webhooks/{name}/enable", ADMIN, SINGLE, [];
    /// API keys of the configuration and of the store.
    KeyList = Get "/api/v1/admin/keys", ADMIN, PAGED, [];
    KeyCreate = Post "/api/v1/admin/keys", ADMIN, SINGLE, [];
    Key = Get "/api/v1/admin/keys/{name}", ADMIN, SINGLE, [];
    KeyUpdate = Post "/api/v1/admin/keys/{name}", ADMIN, SINGLE, [];
    KeyDelete = Delete "/api/v1/admin/keys/{name}", ADMIN, SINGLE, [];
    /// Replaces a key.
    KeyRotate = Post "/api/v1/admin/keys/{name}/rotate", ADMIN, SINGLE, [];
    /// Webhook endpoints of the configuration and of the store.
    WebhookList = Get "/api/v1/admin/webhooks", ADMIN, PAGED, [];
    WebhookCreate = Post "/api/v1/admin/webhooks", ADMIN, SINGLE, [];
    Webhook = Get "/api/v1/admin/webhooks/{name}", ADMIN, SINGLE, [];
    WebhookUpdate = Post "/api/v1/admin/webhooks/{name}", ADMIN, SINGLE, [];
    WebhookDelete = Delete "/api/v1/admin/webhooks/{name}", ADMIN, SINGLE, [];
    /// Replaces the secret that signs; the one before signs too.
    WebhookRotate = Post "/api/v1/admin/webhooks/{name}/rotate", ADMIN, SINGLE, [];
    CardList = Get "/api/v1/third/cards", READ, PAGED, ["state"];
    CardRegister = Post "/api/v1/third/cards", CONTROL, SINGLE, [];
    Card = Get "/api/v1/third/cards/{card}", READ, SINGLE, [];
    CardUpdate = Post "/api/v1/third/cards/{card}", CONTROL, SINGLE, [];
    /// Needs an idempotency key.
    CardRecharge = Post "/api/v1/third/cards/{card}/recharge", CONTROL, SINGLE, [];
    CardTransactions = Get "/api/v1/third/cards/{card}/transactions", READ, PAGED, [];
    /// Queues a named command.
    CommandCreate = Post "/api/v1/third/devices/{device}/commands", CONTROL, SINGLE, [];
    CommandList = Get "/api/v1/third/devices/{device}/commands", READ, PAGED, ["state"];
    Command = Get "/api/v1/third/devices/{device}/commands/{id}", READ, SINGLE, [];
    Params = Get "/api/v1/third/devices/{device}/params", READ, SINGLE, [];
    /// The code that starts a charge on a keypad.
    VerificationCode = Get "/api/v1/third/devices/{device}/verification-code", CONTROL, SINGLE, ["port_no"];
    ParamsSet = Post "/api/v1/third/devices/{device}/params", CONTROL, SINGLE, [];
    /// Settings of a device, which is registered where it was never seen.
    DeviceSettings = Post "/api/v1/third/devices/{device}", ADMIN, SINGLE, [];
    /// The network list of a gateway.
    SocketList = Get "/api/v1/third/devices/{device}/sockets", READ, SINGLE, [];
    SocketChange = Post "/api/v1/third/devices/{device}/sockets", CONTROL, SINGLE, [];
    SocketDelete = Delete "/api/v1/third/devices/{device}/sockets/{id}", CONTROL, SINGLE, [];
    /// Takes an image, whose bytes the guard has written to a file.
    FirmwareUpload = Post FIRMWARE_PATH, ADMIN, SINGLE, ["name", "version", "device_type"];
    FirmwareList = Get FIRMWARE_PATH, READ, PAGED, ["device_type"];
    OtaCreate = Post "/api/v1/third/devices/{device}/ota", CONTROL, SINGLE, [];
    OtaList = Get "/api/v1/third/ota", READ, PAGED, ["device_id", "state"];
    Ota = Get "/api/v1/third/ota/{id}", READ, SINGLE, [];
    OtaCancel = Delete "/api/v1/third/ota/{id}", CONTROL, SINGLE, [];
    Healthz = Get "/healthz", OPEN, SINGLE, [];
    Readyz = Get "/readyz", OPEN, SINGLE, [];
    Metrics = Get "/metrics", OPEN, SINGLE, [];
    /// The operators' console, a page.
    Console = Get "/", OPEN, SINGLE, [];
    /// The description of all of these, for machines.
    OpenApi = Get "/openapi.json", OPEN, SINGLE, [];
    /// The same as a page, and what belongs to it.
    Docs = Get "/docs", OPEN, SINGLE, [];
    DocsSlash = Get "/docs/", OPEN, SINGLE, [];
    DocsStart = Get "/docs/start.js", OPEN, SINGLE, [];
    DocsBundle = Get "/docs/swagger-ui-bundle.js", OPEN, SINGLE, [];
    DocsStyle = Get "/docs/swagger-ui.css", OPEN, SINGLE, [];
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub id: RouteId,
    pub method: Method,
    /// Segments; `{device}`, `{order}`, `{card}` and `{name}` stand for a parameter of that form.
    pub pattern: &'static str,
    /// What a key must have; `None` where none is needed.
    pub scope: Option<Scope>,
    /// Whether it takes `page` and `size`.
    list: bool,
    query: &'static [&'static str],
}

impl Route {
    /// Whether it takes `page` and `size`.
    pub const fn is_list(&self) -> bool {
        self.list
    }

    /// The query keys it takes, but for `page` and `size`.
    pub const fn query_keys(&self) -> &'static [&'static str] {
        self.query
    }

    fn takes(&self, key: &str) -> bool {
        self.query.contains(&key) || self.list && PAGE_KEYS.contains(&key)
    }
}

/// A path parameter, checked in form only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param<'a> {
    /// 8 lower-case hex digits (AP3000) or 14 decimal digits (BKV, GN).
    Device(&'a str),
    /// 16 upper-case letters and digits.
    Order(&'a str),
    /// 4 to 64 letters and digits.
    Card(&'a str),
    /// Of a key, an endpoint or an instance, as it stands in the path: percent escapes are decoded by [`Matched::name`].
    Name(&'a str),
}

/// A request that has a route.
#[derive(Debug)]
pub struct Matched<'a> {
    pub route: &'static Route,
    pub param: Option<Param<'a>>,
    /// The number behind it, if the route has one.
    pub id: Option<i64>,
    pub query: Query<'a>,
}

impl<'a> Matched<'a> {
    /// The device in the path, if the route has one.
    pub const fn device(&self) -> Option<&'a str> {
        match self.param {
            Some(Param::Device(id)) => Some(id),
            _ => None,
        }
    }

    /// The card in the path, if the route has one.
    pub const fn card(&self) -> Option<&'a str> {
        match self.param {
            Some(Param::Card(no)) => Some(no),
            _ => None,
        }
    }

    /// The order in the path, if the route has one.
    pub const fn order(&self) -> Option<&'a str> {
        match self.param {
            Some(Param::Order(no)) => Some(no),
            _ => None,
        }
    }

    /// The name in the path, decoded, if the route has one.
    pub fn name(&self) -> Option<Cow<'a, str>> {
        match self.param {
            Some(Param::Name(name)) => decode_path(name),
            _ => None,
        }
    }
}

/// Finds the route of a target and checks what can be checked without a handler.
///
/// # Errors
/// `NOT_FOUND`, `METHOD_NOT_ALLOWED` with `Allow`, `INVALID_PARAMETER` naming the parameter or query key.
pub fn resolve(method: Method, target: &str) -> Result<Matched<'_>, ApiError> {
    let (path, query) = split_target(target);
    let asked = if method == Method::Head { Method::Get } else { method };
    let Some(Found { routes, param, id }) = TREE.find(path) else {
        return Err(ApiError::new(ErrorCode::NotFound, format!("there is no {path}")));
    };
    let Some(route) = routes.iter().find(|route| route.method == asked) else {
        let mut allow: Vec<&str> = routes.iter().map(|route| route.method.as_str()).collect();
        if allow.contains(&"GET") {
            allow.push("HEAD");
        }
        return Err(ApiError::method_not_allowed(method.as_str(), path, allow.join(", ")));
    };
    if let Some(param) = param {
        check_form(param)?;
    }
    let id = match id.map(|id| (id, id.parse())) {
        None => None,
        Some((_, Ok(id))) => Some(id),
        Some((id, Err(_))) => return Err(ApiError::invalid(format!("id in the path must be a number, got {id:?}"))),
    };
    let query = Query::parse(query.unwrap_or_default())?;
    if let Some((key, _)) = query.0.iter().find(|(key, _)| !route.takes(key)) {
        return Err(ApiError::invalid(format!("query key {key:?} is not known here")));
    }
    Ok(Matched { route, param, id, query })
}

/// The table as a tree of segments: a path is looked up in as many steps as it has segments, not in as many as there are routes.
static TREE: LazyLock<Node> = LazyLock::new(|| {
    let mut root = Node::default();
    for route in ROUTES {
        root.insert(route);
    }
    root
});

/// What may follow the segments before it. Where a literal and a parameter could both stand, the literal does, as a test makes sure is
/// never asked.
#[derive(Default)]
struct Node {
    literals: Vec<(&'static str, Node)>,
    parameter: Option<(Parameter, Box<Node>)>,
    /// The routes that end here, one for each method.
    routes: Vec<&'static Route>,
}

/// What a `{…}` of a pattern stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parameter {
    Device,
    Order,
    Card,
    Name,
    Id,
}

impl Parameter {
    fn of(segment: &str) -> Option<Self> {
        Some(match segment {
            "{device}" => Self::Device,
            "{order}" => Self::Order,
            "{card}" => Self::Card,
            "{name}" => Self::Name,
            "{id}" => Self::Id,
            _ => return None,
        })
    }
}

/// A path that the table has, and what stands in it for the parameter and the number.
struct Found<'a> {
    routes: &'static [&'static Route],
    param: Option<Param<'a>>,
    id: Option<&'a str>,
}

impl Node {
    fn insert(&mut self, route: &'static Route) {
        let mut node = self;
        for segment in route.pattern.split('/') {
            node = match Parameter::of(segment) {
                Some(parameter) => {
                    let (known, next) = node.parameter.get_or_insert_with(|| (parameter, Box::default()));
                    debug_assert_eq!(*known, parameter, "{} says what stands there", route.pattern);
                    next
                }
                None => {
                    let place = node.literals.iter().position(|(literal, _)| *literal == segment);
                    let place = place.unwrap_or_else(|| {
                        node.literals.push((segment, Self::default()));
                        node.literals.len() - 1
                    });
                    &mut node.literals[place].1
                }
            };
        }
        node.routes.push(route);
    }

    fn find<'a>(&'static self, path: &'a str) -> Option<Found<'a>> {
        let (mut node, mut param, mut id) = (self, None, None);
        for segment in path.split('/') {
            if let Some((_, next)) = node.literals.iter().find(|(literal, _)| *literal == segment) {
                node = next;
                continue;
            }
            let (parameter, next) = node.parameter.as_ref().filter(|_| !segment.is_empty())?;
            match parameter {
                Parameter::Device => param = Some(Param::Device(segment)),
                Parameter::Order => param = Some(Param::Order(segment)),
                Parameter::Card => param = Some(Param::Card(segment)),
                Parameter::Name => param = Some(Param::Name(segment)),
                Parameter::Id => id = Some(segment),
            }
            node = next;
        }
        if node.routes.is_empty() { None } else { Some(Found { routes: &node.routes, param, id }) }
    }
}

fn check_form(param: Param<'_>) -> Result<(), ApiError> {
    match param {
        Param::Device(id) => check_device_id("device id in the path", id),
        Param::Order(no) => check_order_no("order number in the path", no),
        Param::Card(no) => check_card_no("card number in the path", no),
        Param::Name(name) => {
            let decoded = decode_path(name).filter(|_| name.len() <= NAME_BYTES_MAX);
            let decoded = decoded.ok_or_else(|| {
                let shown: String = name.chars().take(NAME_CHARS_MAX).collect();
                ApiError::invalid(format!("name in the path must be percent-encoded UTF-8, got {shown:?}"))
            })?;
            check_name("name in the path", &decoded)
        }
    }
}

/// Checks the form of a name of a key, an endpoint or an instance, wherever it was given; `field` names it.
///
/// # Errors
/// `INVALID_PARAMETER` with the form and the value.
pub fn check_name(field: &str, name: &str) -> Result<(), ApiError> {
    if is_name(name) {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_CHARS_MAX).collect();
    Err(ApiError::invalid(format!("{field} must be 1 to {NAME_CHARS_MAX} printable characters, got {shown:?}")))
}

/// Checks the form of a device id, wherever it was given; `field` names it.
///
/// # Errors
/// `INVALID_PARAMETER` with the form and the value.
pub fn check_device_id(field: &str, id: &str) -> Result<(), ApiError> {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let ap3000 = id.len() == 8 && id.bytes().all(hex);
    let bkv = id.len() == 14 && id.bytes().all(|byte| byte.is_ascii_digit());
    if ap3000 || bkv {
        return Ok(());
    }
    Err(ApiError::invalid(format!("{field} must be 8 lower-case hex digits or 14 digits, got {id:?}")))
}

/// Checks the form of an order number, wherever it was given; `field` names it.
///
/// # Errors
/// `INVALID_PARAMETER` with the form and the value.
pub fn check_order_no(field: &str, no: &str) -> Result<(), ApiError> {
    if no.len() == 16 && no.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase()) {
        return Ok(());
    }
    Err(ApiError::invalid(format!("{field} must be 16 upper-case letters and digits, got {no:?}")))
}

/// Checks the form of a card number, wherever it was given; `field` names it. The number is not repeated: answers are logged.
///
/// # Errors
/// `INVALID_PARAMETER` with the form.
pub fn check_card_no(field: &str, no: &str) -> Result<(), ApiError> {
    if CardNo::parse(no).is_some() {
        return Ok(());
    }
    Err(ApiError::invalid(format!("{field} must be 4 to 64 letters and digits")))
}

/// Refuses a body that is not `application/json`.
///
/// # Errors
/// `UNSUPPORTED_MEDIA_TYPE` with the type found.
pub fn check_json(content_type: Option<&str>) -> Result<(), ApiError> {
    let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case(JSON) {
        return Ok(());
    }
    let message = format!("Content-Type must be {JSON}, got {:?}", content_type.unwrap_or_default());
    Err(ApiError::new(ErrorCode::UnsupportedMediaType, message))
}

/// Decoded query values, each key once.
#[derive(Debug, Default)]
pub struct Query<'a>(SmallVec<[(Cow<'a, str>, Cow<'a, str>); 4]>);

/// A page of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// From 1.
    pub page: u32,
    /// 1 to 200.
    pub size: u32,
}

impl<'a> Query<'a> {
    /// Decodes `key=value&…`: percent escapes, and `+` as a space.
    fn parse(text: &'a str) -> Result<Self, ApiError> {
        let mut query = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(key), Some(value)) = (decode(key), decode(value)) else {
                return Err(ApiError::invalid(format!("query {pair:?} must be percent-encoded UTF-8")));
            };
            if query.value(&key).is_some() {
                return Err(ApiError::invalid(format!("query key {key:?} is given twice")));
            }
            if query.0.len() == QUERY_KEYS_MAX {
                return Err(ApiError::invalid(format!("query must have at most {QUERY_KEYS_MAX} keys")));
            }
            query.0.push((key, value));
        }
        Ok(query)
    }

    /// The value of a key, `None` where it is not given.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(given, _)| given == key).map(|(_, value)| value.as_ref())
    }

    /// The value of a key, parsed.
    ///
    /// # Errors
    /// `INVALID_PARAMETER` with what was expected and the value.
    pub fn parsed<T: std::str::FromStr>(&self, key: &str, expected: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(_) => Err(ApiError::invalid(format!("{key} must be {expected}, got {value:?}"))),
        }
    }

    /// The value of a key that is a time in RFC 3339, in Unix ms.
    ///
    /// # Errors
    /// `INVALID_PARAMETER` with the value.
    pub fn time(&self, key: &str) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        unix_ms_of_rfc3339(value)
            .map(Some)
            .ok_or_else(|| ApiError::invalid(format!("{key} must be a time like 2026-01-31T08:00:00Z, got {value:?}")))
    }

    /// `page` and `size`.
    ///
    /// # Errors
    /// `INVALID_PARAMETER` where one is out of range.
    pub fn page(&self) -> Result<Page, ApiError> {
        let page = self.parsed("page", "a number from 1")?.unwrap_or(1);
        let size = self.parsed("size", "a number in 1..=200")?.unwrap_or(PAGE_SIZE);
        if page == 0 {
            return Err(ApiError::invalid("page must be a number from 1, got 0"));
        }
        if !(1..=PAGE_SIZE_MAX).contains(&size) {
            return Err(ApiError::invalid(format!("size must be in 1..={PAGE_SIZE_MAX}, got {size}")));
        }
        Ok(Page { page, size })
    }
}

/// Undoes the encoding of a query: percent escapes, and `+` for a space. `None` for a broken escape or bytes that are not UTF-8.
fn decode(text: &str) -> Option<Cow<'_, str>> {
    decode_with(text, b' ')
}

/// Undoes the encoding of a path, where `+` is itself.
fn decode_path(text: &str) -> Option<Cow<'_, str>> {
    decode_with(text, b'+')
}

fn decode_with(text: &str, plus: u8) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let value = digit(bytes.next())? * 16 + digit(bytes.next())?;
                u8::try_from(value).ok()?
            }
            b'+' => plus,
            other => other,
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(method: Method, target: &str) -> ApiError {
        resolve(method, target).unwrap_err()
    }

    #[test]
    fn every_row_resolves_to_itself() {
        for route in ROUTES {
            let target = route.pattern.replace("{device}", "40aace04").replace("{order}", "THD0123456789ABC");
            let target = target.replace("{id}", "7").replace("{card}", "04a1b2c3").replace("{name}", "erp");
            let matched = resolve(route.method, &target).unwrap();
            assert_eq!(matched.route.id, route.id);
            let named = ["{device}", "{order}", "{card}", "{name}"].iter().any(|name| route.pattern.contains(name));
            assert_eq!((matched.param.is_some(), matched.id.is_some()), (named, route.pattern.contains("{id}")));
            assert_eq!(route.scope.is_some(), route.pattern.starts_with("/api/v1/"), "{}", route.pattern);
            let slashed = format!("{target}/");
            assert_eq!(
                resolve(route.method, &slashed).is_ok(),
                route.id == RouteId::Docs,
                "only where people write it so"
            );
        }
    }

    #[test]
    fn no_segment_can_be_read_in_two_ways() {
        fn check(node: &Node, path: &str) {
            assert!(node.literals.is_empty() || node.parameter.is_none(), "a literal and a parameter below {path}/");
            for (literal, next) in &node.literals {
                check(next, &format!("{path}/{literal}"));
            }
            if let Some((parameter, next)) = &node.parameter {
                check(next, &format!("{path}/{parameter:?}"));
            }
            let methods = node.routes.iter().map(|route| route.method);
            assert_eq!(methods.clone().collect::<std::collections::HashSet<_>>().len(), methods.count(), "{path}");
        }
        check(&TREE, "");
        assert!(ROUTES.iter().all(|route| TREE.find(route.pattern).is_some()), "a pattern fits itself");
    }

    #[test]
    fn methods_other_than_a_path_has_are_named() {
        let error = error_of(Method::Delete, "/api/v1/third/devices");
        assert_eq!((error.code, error.allow.as_deref()), (ErrorCode::MethodNotAllowed, Some("GET, HEAD")));
        let error = error_of(Method::Get, "/api/v1/third/order/create");
        assert_eq!((error.code, error.allow.as_deref()), (ErrorCode::MethodNotAllowed, Some("POST")));
        assert_eq!(resolve(Method::Head, "/healthz").unwrap().route.id, RouteId::Healthz);
    }

    #[test]
    fn unknown_paths_are_not_found() {
        for path in
            ["/x", "/console", "/api", "/api/v1/third", "/api/v1/third/devices//status", "/healthz/x", "//healthz"]
        {
            assert_eq!(error_of(Method::Get, path).code, ErrorCode::NotFound, "{path}");
        }
    }

    #[test]
    fn parameters_have_a_form() {
        for id in ["40aace04", "82231214002700"] {
            let target = format!("/api/v1/third/devices/{id}");
            assert_eq!(resolve(Method::Get, &target).unwrap().device(), Some(id));
        }
        for id in ["40AACE04", "40aace0", "8223121400270", "8223121400270a", "%34"] {
            let error = error_of(Method::Get, &format!("/api/v1/third/devices/{id}"));
            assert_eq!(error.code, ErrorCode::InvalidParameter);
            assert!(error.message.contains(id));
        }
        let no = "THD0123456789ABC";
        let target = format!("/api/v1/third/orders/{no}/stop");
        assert_eq!(resolve(Method::Post, &target).unwrap().order(), Some(no));
        assert_eq!(error_of(Method::Get, "/api/v1/third/orders/THD").code, ErrorCode::InvalidParameter);
    }

    #[test]
    fn names_are_printable_and_decoded() {
        let name_of = |segment| {
            let param = Param::Name(segment);
            check_form(param).map(|()| {
                let query = Query::default();
                Matched { route: &ROUTES[0], param: Some(param), id: None, query }.name().map(Cow::into_owned)
            })
        };
        for (segment, name) in [
            ("billing", "billing"),
            ("erp.example%2Fhooks%2fnew", "erp.example/hooks/new"),
            ("a+b%20c%25", "a+b c%"),
            ("%e5%8f%b7", "号"),
        ] {
            assert_eq!(name_of(segment), Ok(Some(name.to_owned())), "{segment}");
        }
        let longest = "%e5%8f%b7".repeat(NAME_CHARS_MAX);
        assert!(name_of(&longest).is_ok());
        for segment in ["%", "%4", "%zz", "%ff", "a%00", "a%0ab", &"a".repeat(129), &format!("{longest}a")] {
            let error = name_of(segment).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidParameter, "{segment}");
            assert!(error.message.starts_with("name in the path must be "), "{error}");
        }
    }

    #[test]
    fn query_keys_are_known_once_and_decoded() {
        let list = "/api/v1/third/devices";
        let target = format!("{list}?printed_no=a%20b+%e5%8f%b7&page=2");
        let matched = resolve(Method::Get, &target).unwrap();
        assert_eq!(matched.query.value("printed_no"), Some("a b 号"));
        assert_eq!(matched.query.page(), Ok(Page { page: 2, size: 20 }));
        for (query, named) in
            [("?colour=red", "colour"), ("?page=1&page=2", "page"), ("?a=%", "a=%"), ("?a=%ff", "%ff")]
        {
            let error = error_of(Method::Get, &format!("{list}{query}"));
            assert_eq!(error.code, ErrorCode::InvalidParameter);
            assert!(error.message.contains(named), "{error}");
        }
        assert!(resolve(Method::Get, "/healthz?page=1").is_err(), "only lists have pages");
        assert!(resolve(Method::Get, "/healthz?").is_ok());
    }

    #[test]
    fn pages_have_bounds() {
        for (query, fits) in [
            ("size=200", true),
            ("size=201", false),
            ("size=0", false),
            ("page=0", false),
            ("page=x", false),
            ("size=-1", false),
            ("page=4294967296", false),
        ] {
            assert_eq!(Query::parse(query).unwrap().page().is_ok(), fits, "{query}");
        }
    }

    #[test]
    fn only_json_is_read() {
        for (content_type, fits) in [
            (Some("application/json"), true),
            (Some("Application/JSON ; charset=utf-8"), true),
            (Some("text/plain"), false),
            (Some("application/jsonp"), false),
            (None, false),
        ] {
            assert_eq!(check_json(content_type).is_ok(), fits, "{content_type:?}");
        }
    }
}
