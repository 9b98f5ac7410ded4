//! One arm per route: what a row of the table does not say of it.
//!
//! An arm gives tag and summary, the form of each query key, the body with examples, the success, and the error codes beside the
//! common ones. Example bodies are sent by the tests as they are.

use serde_json::json;

use super::form::Form;
use super::operation::{Operation, Tag};
use crate::api::error::ErrorCode as E;
use crate::api::handlers::{
    cards, charge, commands, connections, deliveries, devices, drain, events, instances, keys, log_level, orders, ota,
    overview, proof, queue, recorder, sockets, webhooks,
};
use crate::api::route::RouteId;
use crate::model::{CardState, CommandState, DeviceId, OrderNo, OrderStatus, OtaState, Protocol};
use crate::store::payload::{
    Accepted, CardObject, Changed, CommandObject, EndpointObject, FirmwareObject, KeyObject, NetworkObject,
    OrderObject, OtaObject, ParamsObject, SettingsObject, ShownEndpoint, ShownKey, TransactionObject,
};
use crate::telemetry::health::{Liveness, Readiness};

/// Codes of a charge.
const CHARGE: [E; 9] = [
    E::DeviceOffline,
    E::NotSupported,
    E::InsufficientBalance,
    E::DeviceNotFound,
    E::PortNotFound,
    E::CardNotFound,
    E::PortBusy,
    E::PortFault,
    E::QueueOverloaded,
];
const CHARGED: &str = "202 means that order and start command are stored. What the device makes of it is told by events and by the \
    order. Nothing else may hold the port.";

/// The operation of a route.
pub(super) fn operation(route: RouteId) -> Operation {
    match route {
        RouteId::Charge => Operation::new(Tag::Charging, "Start a charge on a port")
            .text(CHARGED)
            .body::<charge::ChargeRequest>()
            .example("time", json!({"port_no": 1, "mode": "time", "duration_minutes": 60, "paid_cent": 150, "stop_when_full": true}))
            .example("energy", json!({"port_no": 1, "mode": "energy", "energy_wh": 1000, "card_no": "7a8d05dd"}))
            .example("power", json!({"port_no": 1, "mode": "power", "paid_cent": 150, "tiers": [{"power_dw": 2000, "price_cent": 100, "minutes": 240}]}))
            .example("service_fee", json!({"port_no": 1, "mode": "service_fee", "paid_cent": 150, "service_fee_by_energy": false,
                "fee_periods": [{"end_hour": 23, "end_minute": 59, "electricity_cent": 60, "service_cent": 20}]}))
            .accepted::<Accepted>()
            .errors(&CHARGE),
        RouteId::OrderCreate => Operation::new(Tag::Charging, "Start a charge on the device the body names")
            .text(CHARGED)
            .body::<charge::CreateRequest>()
            .example("time", json!({"device_id": "40aace04", "port_no": 1, "mode": "time", "duration_minutes": 60, "paid_cent": 150, "stop_when_full": true}))
            .example("energy", json!({"device_id": "40aace04", "port_no": 1, "mode": "energy", "energy_wh": 1000, "card_no": "7a8d05dd"}))
            .example("power", json!({"device_id": "82231214002700", "port_no": 1, "mode": "power", "tiers": [{"power_dw": 2000, "price_cent": 100, "minutes": 240}]}))
            .example("service_fee", json!({"device_id": "82231214002700", "port_no": 1, "mode": "service_fee", "service_fee_by_energy": false,
                "fee_periods": [{"end_hour": 23, "end_minute": 59, "electricity_cent": 60, "service_cent": 20}]}))
            .accepted::<Accepted>()
            .errors(&CHARGE),
        RouteId::StopPort => Operation::new(Tag::Charging, "Stop what runs on a port")
            .text("202 as well where it is being stopped already.")
            .body::<orders::StopRequest>()
            .example("port", json!({"port_no": 1}))
            .accepted::<Accepted>()
            .errors(&[E::DeviceNotFound, E::PortNotFound, E::OrderNotFound, E::OrderState]),
        RouteId::OrderStopByBody => Operation::new(Tag::Charging, "Stop the order the body names")
            .text("By `order_no`, or by `device_id` and `port_no`; if all are given, they must agree.")
            .body::<orders::OrderRequest>()
            .example("order", json!({"order_no": "THD6H0BG6Y60TR00"}))
            .example("port", json!({"device_id": "40aace04", "port_no": 1}))
            .accepted::<Accepted>()
            .errors(&[E::DeviceNotFound, E::PortNotFound, E::OrderNotFound, E::OrderState]),
        RouteId::OrderCancelByBody => Operation::new(Tag::Charging, "Cancel the order the body names")
            .text("For an order that does not charge yet. By `order_no`, or by `device_id` and `port_no`; if all are given, they must agree.")
            .body::<orders::OrderRequest>()
            .example("order", json!({"order_no": "THD6H0BG6Y60TR00"}))
            .example("port", json!({"device_id": "40aace04", "port_no": 1}))
            .accepted::<Accepted>()
            .errors(&[E::DeviceNotFound, E::PortNotFound, E::OrderNotFound, E::OrderState]),
        RouteId::OrderStop => Operation::new(Tag::Charging, "Stop an order")
            .text("No body, or `{}`. 202 as well where it is being stopped already.")
            .accepted::<Accepted>()
            .errors(&[E::OrderNotFound, E::OrderState]),
        RouteId::OrderCancel => Operation::new(Tag::Charging, "Cancel an order that does not charge yet")
            .text("No body, or `{}`. An order whose start is not on its way is `cancelled` at once.")
            .accepted::<Accepted>()
            .errors(&[E::OrderNotFound, E::OrderState]),

        RouteId::Order => Operation::new(Tag::Orders, "One order").ok::<OrderObject<'_>>().errors(&[E::OrderNotFound]),
        RouteId::OrderQuery => Operation::new(Tag::Orders, "The order of a number, or the active one of a port")
            .text("Give `order_no`, or `device_id` and `port_no`; if all are given, they must agree.")
            .query("order_no", Form::of::<OrderNo>(), "The order.")
            .query("device_id", Form::of::<DeviceId>(), "The device.")
            .query("port_no", Form::number(1..=65_535), "Its port.")
            .ok::<OrderObject<'_>>()
            .errors(&[E::OrderNotFound, E::DeviceNotFound]),
        RouteId::OrderList => Operation::new(Tag::Orders, "Orders, newest first")
            .query("device_id", Form::of::<DeviceId>(), "Only of this device.")
            .query("port_no", Form::number(1..=65_535), "Only of this port.")
            .text("Of those created in the same millisecond, the higher number comes first.")
            .query("status", Form::state::<OrderStatus>(10), "Only those that stand here, by word or number.")
            .query("business_no", Form::number(0..=65_535), "Only those that the device gave this number.")
            .query("created_from", Form::time(), "Only those created at this time or later.")
            .query("created_to", Form::time(), "Only those created before this time.")
            .page::<OrderObject<'_>>(),
        RouteId::OrderEvents => Operation::new(Tag::Orders, "Events of an order in their sequence")
            .page::<events::EventObject>()
            .errors(&[E::OrderNotFound]),
        RouteId::OrderProof => Operation::new(Tag::Orders, "All that is kept of how an order came about")
            .text("One timeline: requests, commands, frames as they were on the wire, the settlement, events, deliveries.")
            .ok::<proof::Proof>()
            .errors(&[E::OrderNotFound]),

        RouteId::DeviceList => Operation::new(Tag::Devices, "Devices by id")
            .query("online", Form::flag(), "Only those online, or only those offline.")
            .query("protocol", Form::of::<Protocol>(), "Only those that speak it.")
            .query("printed_no", Form::number(0..=4_294_967_295), "Only the one with this number under its QR code.")
            .query("search", Form::text(1..=64), "Only those whose id begins with it, whose name has it, or whose printed number it is.")
            .page::<devices::DeviceObject>(),
        RouteId::Device => Operation::new(Tag::Devices, "One device with its ports and active orders")
            .ok::<devices::DeviceObject>()
            .errors(&[E::DeviceNotFound]),
        RouteId::DeviceStatus => Operation::new(Tag::Devices, "The live status of a device, from memory")
            .ok::<devices::Status>()
            .errors(&[E::DeviceNotFound]),
        RouteId::DeviceSettings => Operation::new(Tag::Devices, "Set what is kept of a device")
            .text("A device that was never seen is registered.")
            .body::<sockets::SettingsRequest>()
            .example("gateway", json!({"protocol": "gn", "name": "yard 1", "extensions": false}))
            .example("host", json!({"fsk_frequency": 433}))
            .ok::<SettingsObject<'_>>()
            .errors(&[E::NotSupported]),
        RouteId::SocketList => Operation::new(Tag::Devices, "The network list of a gateway")
            .ok::<NetworkObject<'_>>()
            .errors(&[E::NotSupported, E::DeviceNotFound]),
        RouteId::SocketChange => Operation::new(Tag::Devices, "Replace the network list, or add to it")
            .text("202 means that it is stored; the gateway is told next, also over reconnects, and each socket shows whether it was taken.")
            .body::<sockets::NetworkRequest>()
            .example("refresh", json!({"action": "refresh", "channel": 1, "sockets": [{"socket": 1, "mac": "00aabbccdd01", "uid": "S001"}]}))
            .example("add", json!({"action": "add", "socket": 2, "mac": "00aabbccdd02", "uid": "S002"}))
            .accepted::<NetworkObject<'_>>()
            .errors(&[E::NotSupported, E::DeviceNotFound, E::PortBusy, E::QueueOverloaded]),
        RouteId::SocketDelete => Operation::new(Tag::Devices, "Take a socket out of the network list")
            .text("A socket whose port is held by an order cannot go.")
            .accepted::<NetworkObject<'_>>()
            .errors(&[E::NotSupported, E::NotFound, E::DeviceNotFound, E::PortBusy, E::QueueOverloaded]),

        RouteId::CardList => Operation::new(Tag::Cards, "Cards by number")
            .query("state", Form::state::<CardState>(18), "Only those in this state, by word or number.")
            .page::<CardObject<'_>>(),
        RouteId::CardRegister => Operation::new(Tag::Cards, "Register a card with an empty account")
            .body::<cards::CardRequest>()
            .example("balance", json!({"card_no": "7a8d05dd", "state": "normal"}))
            .example("monthly", json!({"card_no": "7a8d05de", "expires_at": "2027-01-31T16:00:00Z"}))
            .example("tariff", json!({"card_no": "7a8d05df", "tariff": "night"}))
            .created::<Changed<'_>>()
            .errors(&[E::CardExists]),
        RouteId::Card => Operation::new(Tag::Cards, "One card").ok::<CardObject<'_>>().errors(&[E::CardNotFound]),
        RouteId::CardUpdate => Operation::new(Tag::Cards, "Change a card's state, tariff or plan")
            .body::<cards::UpdateRequest>()
            .example("state", json!({"state": "please_unbind"}))
            .example("monthly", json!({"tariff": null, "expires_at": "2027-01-31T16:00:00Z"}))
            .ok::<Changed<'_>>()
            .errors(&[E::CardNotFound]),
        RouteId::CardRecharge => Operation::new(Tag::Cards, "Add money to a card")
            .needs_idempotency_key()
            .body::<cards::RechargeRequest>()
            .example("cash", json!({"amount_cent": 5000, "reference": "till 7"}))
            .ok::<Changed<'_>>()
            .errors(&[E::CardNotFound]),
        RouteId::CardTransactions => Operation::new(Tag::Cards, "Movements of a card's balance, newest first")
            .page::<TransactionObject<'_>>()
            .errors(&[E::CardNotFound]),

        RouteId::CommandCreate => Operation::new(Tag::Commands, "Send a named command to a device")
            .text("202 means that it is stored. It is written when the connection is free, or when the device comes back within `valid_seconds`. \
                What the device says to it is read from the command.")
            .body::<commands::CommandRequest>()
            .example("query_status", json!({"command": "query_status"}))
            .example("reboot", json!({"command": "reboot"}))
            .example("clear_storage", json!({"command": "clear_storage"}))
            .example("locate", json!({"command": "locate", "seconds": 10, "valid_seconds": 60}))
            .example("play_voice", json!({"command": "play_voice", "segments": [1, 2], "interrupt": true}))
            .example("modify_charge (time)", json!({"command": "modify_charge", "port_no": 1, "duration_seconds": 7200, "stop_when_full": true}))
            .example("modify_charge (energy)", json!({"command": "modify_charge", "port_no": 1, "energy_wh": 1500}))
            .example("eeprom_read", json!({"command": "eeprom_read", "address": 0, "length": 16}))
            .example("eeprom_write", json!({"command": "eeprom_write", "address": 0, "data": "cafe01"}))
            .example("temporary_qr", json!({"command": "temporary_qr", "text": "https://pay.example/1"}))
            .example("open_door", json!({"command": "open_door", "port_no": 1}))
            .example("stop_keep_door", json!({"command": "stop_keep_door", "port_no": 1, "order_no": "THD6H0BG6Y60TR00"}))
            .example("trigger_self_update", json!({"command": "trigger_self_update"}))
            .example("host_reboot", json!({"command": "host_reboot"}))
            .example("module_reboot", json!({"command": "module_reboot"}))
            .example("clear_sub_device_update_data", json!({"command": "clear_sub_device_update_data"}))
            .example("set_server_address", json!({"command": "set_server_address", "address": "gateway.example", "port": 7054, "module_type": 1, "second_socket": true}))
            .example("set_fsk_params", json!({"command": "set_fsk_params", "frequency": 433, "sub_devices": ["40aace05"]}))
            .example("query_socket", json!({"command": "query_socket", "socket": 1}))
            .example("set_voice", json!({"command": "set_voice", "socket": 254, "hole": 1, "buzzer": true, "voice": true,
                "periods": [{"start_hour": 22, "start_minute": 0, "end_hour": 6, "end_minute": 30}]}))
            .accepted::<CommandObject<'_>>()
            .errors(&[E::NotSupported, E::DeviceNotFound, E::QueueOverloaded]),
        RouteId::CommandList => Operation::new(Tag::Commands, "Commands of a device, newest first")
            .text("Starts and stops of orders are among them.")
            .query("state", Form::words(&CommandState::ALL.map(CommandState::as_str)), "Only those that stand here.")
            .page::<CommandObject<'_>>()
            .errors(&[E::DeviceNotFound]),
        RouteId::Command => Operation::new(Tag::Commands, "One command: its state, and what the device said")
            .ok::<CommandObject<'_>>()
            .errors(&[E::NotFound]),
        RouteId::Params => Operation::new(Tag::Commands, "Parameters of a device: desired and reported")
            .ok::<ParamsObject<'_>>()
            .errors(&[E::DeviceNotFound]),
        RouteId::ParamsSet => Operation::new(Tag::Commands, "Say what parameters of a device shall be")
            .text("The gateway brings the device there and keeps at it over reconnects.")
            .body::<commands::ParamsRequest>()
            .example("ap3000", json!({"params": {"heartbeat_interval_s": 60}}))
            .example("gateway", json!({"params": {"full_charge_delay_s": 600}, "socket": 1}))
            .example("refresh", json!({"refresh": true}))
            .accepted::<ParamsObject<'_>>()
            .errors(&[E::NotSupported, E::DeviceNotFound, E::QueueOverloaded]),
        RouteId::VerificationCode => Operation::new(Tag::Commands, "The code that starts a charge on a keypad model now")
            .text("AP3000 models with a keypad. It needs no connection.")
            .query("port_no", Form::number(1..=255), "Required: the port.")
            .ok::<commands::CodeObject>()
            .errors(&[E::NotSupported]),

        RouteId::FirmwareUpload => Operation::new(Tag::Firmware, "Upload an image")
            .text("The body is the image as it is, of at most `ota.firmware_max` bytes (8 MiB). 200 where this image was stored before; its first \
                name then stays. A verification packet needs `version` and `device_type`.")
            .query("name", Form::text(1..=64), "Required: a name for it.")
            .query("version", Form::pattern("^[Vv]?[0-9]{1,3}[.][0-9]{2}$"), "As the vendor writes it: `2.05`, at most 655.35.")
            .query("device_type", Form::pattern("^(0x[0-9A-Fa-f]{1,2}|[0-9]{1,3})$"), "The type it is for, as `33` or `0x21`.")
            .bytes("application/octet-stream")
            .ok::<FirmwareObject<'_>>()
            .created::<FirmwareObject<'_>>(),
        RouteId::FirmwareList => Operation::new(Tag::Firmware, "Images, newest first")
            .query("device_type", Form::pattern("^(0x[0-9A-Fa-f]{1,2}|[0-9]{1,3})$"), "Only those for this type.")
            .page::<FirmwareObject<'_>>(),
        RouteId::OtaCreate => Operation::new(Tag::Firmware, "Begin an update of a device")
            .text("A device has one open update. It goes on behind the last packet the device acknowledged, also after a lost connection, and rests \
                while an order is active.")
            .body::<ota::UpdateRequest>()
            .example("image", json!({"firmware": 1, "method": "e0", "verification": true, "force": false}))
            .example("hash", json!({"firmware": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}))
            .example("ftp", json!({"method": "ftp", "ftp_host": "192.0.2.10", "ftp_port": 21, "file": "gn.bin"}))
            .accepted::<OtaObject<'_>>()
            .errors(&[E::NotSupported, E::NotFound, E::DeviceNotFound, E::TaskState, E::QueueOverloaded]),
        RouteId::OtaList => Operation::new(Tag::Firmware, "Updates, newest first")
            .query("device_id", Form::of::<DeviceId>(), "Only of this device.")
            .query("state", Form::state::<OtaState>(4), "Only those that stand here, by word or number.")
            .page::<OtaObject<'_>>(),
        RouteId::Ota => Operation::new(Tag::Firmware, "One update").ok::<OtaObject<'_>>().errors(&[E::TaskNotFound]),
        RouteId::OtaCancel => Operation::new(Tag::Firmware, "End an update")
            .text("Asked again, the same answer.")
            .ok::<OtaObject<'_>>()
            .errors(&[E::TaskNotFound, E::TaskState]),

        RouteId::Events => Operation::new(Tag::Events, "The event log behind a position, in commit order")
            .text("Ask again with `next_after`; no items means that you have all there is.")
            .query("after", Form::number(0..=i64::MAX), "The position; left out: the beginning.")
            .query("limit", Form::number(1..=500), "Events at most; left out: 100.")
            .ok::<events::Log>(),

        RouteId::KeyList => Operation::new(Tag::Keys, "API keys by name, of the configuration and of the store").page::<KeyObject>(),
        RouteId::KeyCreate => Operation::new(Tag::Keys, "Make a key")
            .text("The key, and the secret of one that signs, stand in this answer and nowhere else. A repetition by `Idempotency-Key` is \
                answered without them: rotate the key if the first answer was lost. The key is in force with the answer on the instance \
                asked, and on the others at most two seconds later.")
            .body::<keys::NewKeyRequest>()
            .example("reader", json!({"name": "dashboard", "scopes": ["read"]}))
            .example("signing", json!({"name": "billing", "scopes": ["read", "control"], "require_hmac": true,
                "ip_allow": ["192.0.2.0/24"], "rate_per_s": 100, "burst": 200}))
            .created::<ShownKey<'_>>()
            .errors(&[E::NameTaken]),
        RouteId::Key => Operation::new(Tag::Keys, "One key").ok::<KeyObject>().errors(&[E::NotFound]),
        RouteId::KeyUpdate => Operation::new(Tag::Keys, "Change what a key may do")
            .text("What is left out stays. Where requests must be signed from now on, the answer shows the secret for it.")
            .body::<keys::KeyChangeRequest>()
            .example("narrow", json!({"scopes": ["read"], "ip_allow": ["192.0.2.7"]}))
            .example("limit", json!({"require_hmac": false, "rate_per_s": 10, "burst": 20}))
            .ok::<ShownKey<'_>>()
            .errors(&[E::NotFound, E::ReadOnly, E::LastAdmin]),
        RouteId::KeyDelete => Operation::new(Tag::Keys, "Remove a key")
            .ok::<ShownKey<'_>>()
            .errors(&[E::NotFound, E::ReadOnly, E::LastAdmin]),
        RouteId::KeyRotate => Operation::new(Tag::Keys, "Replace a key")
            .text("No body, or `{}`. The old key is void at once, and so is the secret of one that signs.")
            .ok::<ShownKey<'_>>()
            .errors(&[E::NotFound, E::ReadOnly]),

        RouteId::WebhookList => Operation::new(Tag::Webhooks, "Endpoints by name, of the configuration and of the store")
            .page::<EndpointObject>(),
        RouteId::WebhookCreate => Operation::new(Tag::Webhooks, "Make an endpoint")
            .text("It gets what is committed after it was made. A secret that is made stands in this answer and nowhere else; a repetition by \
                `Idempotency-Key` is answered without it.")
            .body::<webhooks::NewEndpointRequest>()
            .example("orders", json!({"name": "erp", "url": "https://erp.example/hooks", "events": ["order.*", "charging.ended"]}))
            .example("own_secret", json!({"name": "crm", "url": "https://crm.example/in?site=7", "secret": "a secret of your own",
                "api_key": "sent-as-X-Api-Key"}))
            .created::<ShownEndpoint<'_>>()
            .errors(&[E::NameTaken]),
        RouteId::Webhook => Operation::new(Tag::Webhooks, "One endpoint").ok::<EndpointObject>().errors(&[E::NotFound]),
        RouteId::WebhookUpdate => Operation::new(Tag::Webhooks, "Change an endpoint")
            .text("What is left out stays, and so does its place in the log. `null` takes `api_key` or `secret_previous` away.")
            .body::<webhooks::EndpointChangeRequest>()
            .example("events", json!({"url": "https://erp.example/hooks2", "events": ["order.*"], "api_key": null}))
            .example("rotated", json!({"secret_previous": null}))
            .ok::<ShownEndpoint<'_>>()
            .errors(&[E::NotFound, E::ReadOnly]),
        RouteId::WebhookDelete => Operation::new(Tag::Webhooks, "Remove an endpoint")
            .text("Its place in the log, its parked deliveries and its dead letters go with it.")
            .ok::<ShownEndpoint<'_>>()
            .errors(&[E::NotFound, E::ReadOnly]),
        RouteId::WebhookRotate => Operation::new(Tag::Webhooks, "Sign with another secret")
            .text("The secret before signs too, until it is taken away by `secret_previous: null`. The secret that is in use, given again, \
                changes nothing.")
            .body::<webhooks::EndpointRotateRequest>()
            .example("made", json!({}))
            .example("own", json!({"secret": "another secret of your own"}))
            .ok::<ShownEndpoint<'_>>()
            .errors(&[E::NotFound, E::ReadOnly]),

        RouteId::Drain => Operation::new(Tag::Operation, "Whether this instance sends its devices away").ok::<drain::DrainState>(),
        RouteId::DrainSet => Operation::new(Tag::Operation, "Send the devices of this instance away, or take them again")
            .text("Device connections are closed one after another, and none is accepted. Ask again to see how many are left.")
            .body::<drain::DrainBody>()
            .example("drain", json!({"draining": true}))
            .accepted::<drain::DrainState>(),
        RouteId::Queue => Operation::new(Tag::Operation, "Commands on their way to devices, newest first")
            .text("`by_priority` is of this instance, the rest of all. Ended commands are kept for days: `total` of a list counts to 10,000.")
            .query("state", Form::of::<CommandState>(), "Only those in this state. Left out: those that have not ended.")
            .query("device_id", Form::of::<DeviceId>(), "Only those of this device.")
            .ok::<queue::QueueBody>(),
        RouteId::LogLevel => Operation::new(Tag::Operation, "Least important level that this instance logs").ok::<log_level::LogLevelState>(),
        RouteId::LogLevelSet => Operation::new(Tag::Operation, "Log more or less, until the next reload or restart")
            .body::<log_level::LogLevelBody>()
            .example("debug", json!({"level": "debug"}))
            .ok::<log_level::LogLevelState>(),
        RouteId::DeadLetterList => Operation::new(Tag::Webhooks, "Dead letters of an endpoint, by position")
            .text("Events that an endpoint did not get: a final answer, or all attempts used up.")
            .page::<deliveries::DeadLetter>()
            .errors(&[E::NotFound]),
        RouteId::DeadLetterRedrive => Operation::new(Tag::Webhooks, "Deliver dead letters again")
            .text("With all their attempts. Among what is still to be delivered of a key, the order of positions holds.")
            .body::<deliveries::DeadLettersBody>()
            .example("some", json!({"positions": [17, 23]}))
            .example("all", json!({"all": true}))
            .ok::<deliveries::Count>()
            .errors(&[E::NotFound]),
        RouteId::DeadLetterPurge => Operation::new(Tag::Webhooks, "Delete dead letters")
            .body::<deliveries::DeadLettersBody>()
            .example("some", json!({"positions": [17, 23]}))
            .example("all", json!({"all": true}))
            .ok::<deliveries::Count>()
            .errors(&[E::NotFound]),
        RouteId::WebhookRedeliver => Operation::new(Tag::Webhooks, "Deliver a range of the event log again")
            .text("Events that the endpoint wants, up to its cursor: what lies beyond comes anyway, and so does what is parked. A request looks at \
                10,000 positions; `next_from_pos` goes on. While they are delivered, new events wait behind them.")
            .body::<deliveries::RedeliverBody>()
            .example("positions", json!({"from_pos": 1000, "to_pos": 2000}))
            .example("times", json!({"from": "2026-11-23T00:00:00Z", "to": "2026-11-23T06:00:00Z"}))
            .ok::<deliveries::Redelivered>()
            .errors(&[E::NotFound]),
        RouteId::WebhookDeliveries => Operation::new(Tag::Webhooks, "Attempts to deliver to an endpoint, newest first")
            .text("Kept for `retention.delivery_log`. `total` ends at 100,000.")
            .query("outcome", Form::of::<deliveries::DeliveryOutcomeWord>(), "Only those that ended so.")
            .page::<deliveries::DeliveryObject>()
            .errors(&[E::NotFound]),
        RouteId::EventDeliveries => Operation::new(Tag::Webhooks, "Attempts to deliver an event, to all endpoints")
            .text("`id` is the event's position in the log.")
            .page::<deliveries::DeliveryObject>()
            .errors(&[E::NotFound]),
        RouteId::WebhookTest => Operation::new(Tag::Webhooks, "Send a test event to an endpoint now")
            .text("A `webhook.test` event, signed and guarded like any other, also to an endpoint that is disabled. It is no part of the event log. \
                One at a time.")
            .ok::<crate::webhook::Tried>()
            .errors(&[E::NotFound, E::QueueOverloaded]),
        RouteId::WebhookDisable => Operation::new(Tag::Webhooks, "Send nothing more to an endpoint")
            .text("Its events are kept behind its cursor, for as long as events are kept. Answers with how it is doing then.")
            .optional_body::<deliveries::DisableBody>()
            .example("reason", json!({"reason": "moves to another site"}))
            .ok::<crate::webhook::EndpointState>()
            .errors(&[E::NotFound]),
        RouteId::WebhookEnable => Operation::new(Tag::Webhooks, "Go on sending to an endpoint")
            .text("Behind its cursor, or without its backlog. Also what ends the state that a 410 of the receiver began.")
            .optional_body::<deliveries::EnableBody>()
            .example("behind the cursor", json!({"skip_backlog": false}))
            .ok::<crate::webhook::EndpointState>()
            .errors(&[E::NotFound]),

        RouteId::Instances => Operation::new(Tag::Operation, "Instances that share the store, by name")
            .text("The list of one that is alone is empty.")
            .array::<instances::Instance>(),

        RouteId::Connections => Operation::new(Tag::Operation, "Sockets of devices to this instance")
            .query("device_id", Form::of::<DeviceId>(), "Only the one that carries it.")
            .query("listener", Form::words(&connections::LISTENERS), "Only those that came in there.")
            .query("protocol", Form::of::<Protocol>(), "Only those that speak it.")
            .page::<connections::DeviceConnection>(),
        RouteId::ConnectionFrames => Operation::new(Tag::Operation, "The last frames of a connection, in words")
            .text("Also of one that carried no device, or that ended a while ago.")
            .ok::<recorder::ConnectionRecording>()
            .errors(&[E::NotFound]),
        RouteId::Recorder => Operation::new(Tag::Operation, "The last frames of a device, in words")
            .text("From memory, over the connections it had to this instance. Where another instance has it, 404 names that one in                 `data.instance`. `chargegate decode --file` explains the answer offline.")
            .ok::<recorder::Recording>()
            .errors(&[E::NotFound]),
        RouteId::Anomalies => Operation::new(Tag::Operation, "What went wrong between devices and this instance, newest first")
            .text("The last 64 of each shard, with the frames before; one a minute of a device and kind.")
            .query("kind", Form::words(&recorder::anomaly_kinds()), "Only this kind.")
            .query("device_id", Form::of::<DeviceId>(), "Only of this device.")
            .page::<recorder::AnomalyObject>(),
        RouteId::Anomaly => Operation::new(Tag::Operation, "One of the things that went wrong")
            .ok::<recorder::AnomalyObject>()
            .errors(&[E::NotFound]),
        RouteId::Disconnect => Operation::new(Tag::Operation, "Close the connection of a device")
            .text("No body, or `{}`. The device is expected to connect again. Where another instance has it, 404 names that one in                 `data.instance`.")
            .ok::<connections::DisconnectedDevice>()
            .errors(&[E::NotFound, E::DeviceOffline]),
        RouteId::Overview => Operation::new(Tag::Operation, "What this instance does now, and ten minutes of it")
            .query("since", Form::time(), "Only the figures after this time.")
            .ok::<overview::Overview>(),
        RouteId::Console => Operation::new(Tag::Operation, "The operators' console, a page")
            .text("It has everything in it and asks the API like everybody else.")
            .other(200, "The page.", "text/html; charset=utf-8")
            .empty(304, "The page of `If-None-Match` is the one."),

        RouteId::OpenApi => Operation::new(Tag::Operation, "This document")
            .object("OpenAPI 3.1.")
            .errors(&[E::RateLimited])
            .empty(304, "The one of `If-None-Match` is the one."),
        RouteId::Docs => Operation::new(Tag::Operation, "This document as a page")
            .other(200, "The page.", "text/html; charset=utf-8")
            .empty(304, "The page of `If-None-Match` is the one."),
        RouteId::DocsSlash => Operation::new(Tag::Operation, "Leads to the page").empty(308, "It is at `/docs`."),
        RouteId::DocsStart | RouteId::DocsBundle => Operation::new(Tag::Operation, "A script of the page")
            .other(200, "The script.", "text/javascript; charset=utf-8")
            .errors(&[E::RateLimited])
            .empty(304, "The one of `If-None-Match` is the one."),
        RouteId::DocsStyle => Operation::new(Tag::Operation, "The style of the page")
            .other(200, "The style.", "text/css; charset=utf-8")
            .errors(&[E::RateLimited])
            .empty(304, "The one of `If-None-Match` is the one."),

        RouteId::Healthz => Operation::new(Tag::Health, "Whether every shard turns, for restarts")
            .plain::<Liveness>(200, "Every shard turns.")
            .plain::<Liveness>(500, "Some shard does not turn."),
        RouteId::Readyz => Operation::new(Tag::Health, "Whether devices and requests are served, for load balancers")
            .plain::<Readiness>(200, "They are.")
            .plain::<Readiness>(503, "They are not, and which part is why."),
        RouteId::Metrics => Operation::new(Tag::Health, "Metrics in Prometheus' text format")
            .other(200, "The metrics.", "text/plain; version=0.0.4; charset=utf-8"),
    }
}
