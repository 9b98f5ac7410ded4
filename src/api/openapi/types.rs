//! Schemas of the values that occur everywhere: ids, times, and the words of states.
//!
//! They are here and not with their types, so that model and core need not know of the document.

use std::borrow::Cow;

use utoipa::openapi::schema::{Object, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::{KnownFormat, RefOr};
use utoipa::{PartialSchema, ToSchema};

use crate::model::{
    CardNo, CardState, ChargeMode, CommandState, DeviceId, EventType, OrderNo, OrderStatus, OtaMethod, OtaState,
    PortStatus, Protocol, ServerId, TransactionKind,
};
use crate::time::Rfc3339;

fn text(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).description(Some(description))
}

fn schema(object: impl Into<Object>) -> RefOr<Schema> {
    RefOr::T(Schema::Object(object.into()))
}

macro_rules! schemas {
    ($($type:ty, $name:literal => $object:expr;)*) => { $(
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                schema($object)
            }
        }

        impl ToSchema for $type {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed($name)
            }
        }
    )* };
}

schemas! {
    DeviceId, "DeviceId" => text("A device: 8 lower-case hex digits (AP3000) or 14 digits (BKV, GN).")
        .pattern(Some("^([0-9a-f]{8}|[0-9]{14})$")).examples(["40aace04", "82231214002700"]);
    OrderNo, "OrderNo" => text("An order's number: 16 upper-case letters and digits.")
        .pattern(Some("^[0-9A-Z]{16}$")).examples(["THD6H0BG6NY8TR00"]);
    CardNo, "CardNo" => text("A card's number: 4 to 64 letters and digits. An AP3000 M1 card is its UID of 8 hex digits, in lower case.")
        .pattern(Some("^[0-9A-Za-z]{4,64}$")).examples(["7a8d05dd"]);
    ServerId, "InstanceName" => text("The name of a gateway instance.").examples(["01a205c0-cf9d-7816-a490-72671c7befaf"]);
    Rfc3339, "Time" => text("A time: RFC 3339, UTC, milliseconds.")
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime))).examples(["2026-11-23T00:14:13.502Z"]);
    Protocol, "Protocol" => text("What a device speaks.").enum_values(Some(Protocol::ALL.map(Protocol::as_str)));
    OrderStatus, "OrderStatus" => text("Where an order stands, in one word.")
        .enum_values(Some(OrderStatus::ALL.map(OrderStatus::as_str)));
    PortStatus, "PortStatus" => text("What a port is doing, in one word.")
        .enum_values(Some(PortStatus::ALL.map(PortStatus::as_str)));
    ChargeMode, "ChargeMode" => text("What bounds a charge.").enum_values(Some(["time", "energy", "full", "power", "service_fee"]));
    CardState, "CardState" => text("What a card is told when it is swiped, in one word. Only `normal` charges.")
        .enum_values(Some(CardState::ALL.iter().map(|state| state.as_str())));
    TransactionKind, "TransactionKind" => text("What moved a card's balance.").enum_values(Some(["recharge", "charge"]));
    CommandState, "CommandState" => text("Where a command stands.")
        .enum_values(Some(["queued", "claimed", "written", "acked", "refused", "expired", "withdrawn", "dead"]));
    OtaMethod, "OtaMethod" => text("How firmware reaches a device: the AP3000 command, `self_update` (E4), or `ftp` (BKV, GN).")
        .enum_values(Some(OtaMethod::ALL.map(OtaMethod::as_str)));
    OtaState, "OtaState" => text("Where an update stands, in one word.").enum_values(Some(OtaState::ALL.map(OtaState::as_str)));
    EventType, "EventType" => text("What happened.").enum_values(Some(EventType::ALL.map(EventType::as_str)));
}
