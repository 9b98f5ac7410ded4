//! Webhooks: what the gateway sends for each type of event.
//!
//! The data of most events are the objects of the API. The others are made where they happen, out of values; the structs here only
//! describe them, and `tests/openapi.rs` holds live events against them.

use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::schema::{Role, Schemas, Shape};
use crate::api::handlers::events::EventObject;
use crate::api::message::JSON;
use crate::model::{CommandState, DeviceId, EventType, OrderNo, PortStatus, Protocol};
use crate::store::payload::{CardSwiped, OrderEvent, OtaObject, TransactionObject};
use crate::time::Rfc3339;
use crate::webhook::TEST_EVENT;

macro_rules! described {
    ($($(#[$attribute:meta])* $name:ident { $($(#[$of_field:meta])* $field:ident: $type:ty,)* })*) => { $(
        $(#[$attribute])*
        #[derive(ToSchema)]
        #[expect(dead_code, reason = "a schema: the event is made where it happens")]
        pub(super) struct $name { $($(#[$of_field])* $field: $type,)* }
    )* };
}

described! {
    /// A device that was never seen before, or was registered by its settings.
    DeviceRegistered {
        device_id: DeviceId,
        protocol: Protocol,
        printed_no: Option<u32>,
        online: bool,
        last_seen_at: Option<Rfc3339>,
        connected_at: Option<Rfc3339>,
        /// None yet.
        ports: Vec<Value>,
        /// None yet.
        active_orders: Vec<Value>,
    }
    /// A device went online or offline.
    DevicePresence {
        device_id: DeviceId,
        protocol: Protocol,
        online: bool,
        score: i32,
        last_seen_at: Rfc3339,
    }
    /// A device showed that it lives.
    DeviceHeartbeat {
        device_id: DeviceId,
        /// Radio signal, as sent.
        signal: Option<u8>,
        score: i32,
    }
    /// Something a person should know of. Beside `reason` it has what the reason needs: `order_no`, `port_no`, raw values.
    DeviceAlarm {
        /// What happened, one word.
        reason: String,
    }
    /// A port as it is now, and its status before.
    PortChange {
        device_id: DeviceId,
        port_no: u16,
        /// BKV/GN: the socket.
        socket: Option<u8>,
        /// BKV/GN: the hole of the socket, 0 or 1.
        hole: Option<u8>,
        #[schema(maximum = 5)]
        status: u8,
        status_text: PortStatus,
        /// As the device sent it.
        raw_status: u8,
        /// 0.1 W.
        power_dw: u16,
        /// mA.
        current_ma: u16,
        /// 0.1 V.
        voltage_dv: u16,
        /// Wh of the running charge.
        energy_wh: u32,
        /// Seconds of the running charge.
        charged_seconds: u32,
        order_no: Option<OrderNo>,
        updated_at: Option<Rfc3339>,
        #[schema(maximum = 5)]
        old_status: u8,
        #[schema(maximum = 5)]
        new_status: u8,
    }
    /// What an order has charged so far.
    ChargingProgress {
        order_no: OrderNo,
        device_id: DeviceId,
        port_no: u16,
        duration_seconds: u32,
        energy_wh: u32,
        /// 0.1 W; `null` where the device does not say.
        power_dw: Option<u16>,
    }
    /// A command that was given up.
    CommandDead {
        device_id: DeviceId,
        order_no: Option<OrderNo>,
        /// From 1; 0: it is for no port.
        port_no: u16,
        /// Its name.
        command: String,
        /// Writes.
        attempts: u8,
        /// Why, one word.
        reason: Option<String>,
    }
}

/// `data` of a type of event.
fn data(event: EventType) -> Shape {
    use EventType as T;
    match event {
        T::DeviceRegistered => Shape::of::<DeviceRegistered>(),
        T::DeviceOnline | T::DeviceOffline => Shape::of::<DevicePresence>(),
        T::DeviceAlarm => Shape::of::<DeviceAlarm>(),
        T::DeviceHeartbeat => Shape::of::<DeviceHeartbeat>(),
        T::PortStatusChanged => Shape::of::<PortChange>(),
        T::OrderCreated
        | T::OrderConfirmed
        | T::OrderTimeout
        | T::OrderCancelling
        | T::OrderCancelled
        | T::OrderStopping
        | T::OrderStopped
        | T::OrderCompleted
        | T::OrderFailed
        | T::OrderInterrupted
        | T::OrderResumed
        | T::OrderSettled
        | T::ChargingStarted
        | T::ChargingEnded => Shape::of::<OrderEvent<'_>>(),
        T::ChargingProgress => Shape::of::<ChargingProgress>(),
        T::CommandDead => Shape::of::<CommandDead>(),
        T::CardSwiped => Shape::of::<CardSwiped<'_>>(),
        T::CardTransaction => Shape::of::<TransactionObject<'_>>(),
        T::OtaProgress => Shape::of::<OtaObject<'_>>(),
    }
}

/// The `webhooks` of the document.
pub(super) fn webhooks(schemas: &mut Schemas) -> Value {
    schemas.add(&Shape::of::<CommandState>(), Role::Told);
    let event = schemas.add(&Shape::of::<EventObject>(), Role::Told);
    let webhooks = EventType::ALL.into_iter().map(|kind| {
        let data = schemas.add(&data(kind), Role::Told);
        let of_this_type = json!({
            "properties": {
                "event_type": {"const": kind.as_str()},
                "nonce": {"type": "string", "description": "That of `X-Nonce`: new for each attempt."},
                "data": data,
            },
            "required": ["nonce"],
        });
        let body = json!({"allOf": [event, of_this_type]});
        (kind.as_str().to_owned(), json!({"post": operation(kind.as_str(), DELIVERY, &body)}))
    });
    let test = (TEST_EVENT.to_owned(), json!({"post": operation(TEST_EVENT, TEST, &test_body())}));
    webhooks.chain([test]).collect::<Map<_, _>>().into()
}

const DELIVERY: &str = "Delivered at least once, those of one order, device or card in the order of `pos`. Check one of the two signatures \
    before anything else, and recognise repetitions by `event_id`.";
const TEST: &str =
    "Sent once when an operator asks for it, signed like any other. It is in no log, and nobody subscribes to it.";

/// The test event: no event of the log, so it has neither position nor key.
fn test_body() -> Value {
    let properties = json!({
        "event_id": {"type": "string"},
        "event_type": {"const": TEST_EVENT},
        "device_phy_id": {"type": "null"},
        "order_no": {"type": "null"},
        "sequence_no": {"const": 0},
        "pos": {"const": 0},
        "timestamp": {"$ref": "#/components/schemas/Time"},
        "nonce": {"type": "string"},
        "data": {
            "type": "object",
            "properties": {"endpoint": {"type": "string", "description": "Its name."}},
            "required": ["endpoint"],
        },
    });
    let required: Vec<&String> = properties.as_object().into_iter().flat_map(Map::keys).collect();
    json!({"type": "object", "required": required, "properties": properties})
}

fn operation(kind: &str, text: &str, body: &Value) -> Value {
    let header = |name: &str| json!({"$ref": format!("#/components/parameters/{name}")});
    json!({
        "operationId": format!("on_{}", kind.replace('.', "_")),
        "tags": ["Webhooks"],
        "summary": kind,
        "description": text,
        "security": [],
        "parameters": HEADERS.iter().map(|(name, ..)| header(name)).collect::<Vec<_>>(),
        "requestBody": {"required": true, "content": {JSON: {"schema": body}}},
        "responses": {
            "2XX": {"description": "Within 5 s: delivered."},
            "410": {"description": "Nothing more is sent to this endpoint until it is enabled again."},
            "4XX": {"description": "Refused: dead letter. 408, 409, 425 and 429 are tried again."},
            "default": {"description": "Tried again five times, after 1 s to 1 h and not before `Retry-After`; then dead letter."},
        },
    })
}

/// Headers of a delivery: name of the parameter, of the header, whether it is always there, and what it is.
const HEADERS: [(&str, &str, bool, &str); 7] = [
    ("webhook_x_timestamp", "X-Timestamp", true, "Unix seconds of the attempt."),
    ("webhook_x_nonce", "X-Nonce", true, "New for each attempt."),
    (
        "webhook_x_signature",
        "X-Signature",
        true,
        "hex(HMAC-SHA256(secret, \"POST\" \\n PATH \\n X-Timestamp \\n X-Nonce \\n hex(SHA256(body)))); PATH is path and query of the \
         endpoint's URL.",
    ),
    ("webhook_id", "webhook-id", true, "`event_id`."),
    ("webhook_timestamp", "webhook-timestamp", true, "Unix seconds of the attempt."),
    (
        "webhook_signature",
        "webhook-signature",
        true,
        "Standard Webhooks: `v1,` and base64(HMAC-SHA256(secret, webhook-id . webhook-timestamp . body)); two, separated by a space, \
         while the secret is changed.",
    ),
    ("webhook_api_key", "X-Api-Key", false, "The `api_key` of the endpoint, if it has one."),
];

/// The parameters that deliveries refer to.
pub(super) fn parameters() -> Vec<(String, Value)> {
    let parameter = |(name, header, required, text): &(&str, &str, bool, &str)| {
        let schema = json!({"type": "string"});
        let parameter =
            json!({"name": header, "in": "header", "required": required, "description": text, "schema": schema});
        ((*name).to_owned(), parameter)
    };
    HEADERS.iter().map(parameter).collect()
}
