//! `/devices/{id}/charge` and `/order/create`: an order and its start.
//!
//! ```text
//! body ─> device ─> limits of its protocol ─> online ─> port ─> room ─> one transaction: order, event, start command ─> 202
//! ```
//!
//! Memory, this instance's or that of the one that has the device, refuses early; whether the port is free is decided by the transaction alone. It carries a deadline, so what is answered
//! `NOT_READY` for being late is not created afterwards.

use std::sync::Arc;

use serde_json::json;
use utoipa::ToSchema;

use super::body::Fields;
use super::call::{Call, Next, located, not_done, reading, submit};
use super::commands::admit;
use super::{Api, RETRY_AFTER_S, no_device, now};
use crate::api::error::{ApiError, ErrorCode};
use crate::api::live::Live;
use crate::api::message::Request;
use crate::api::overload::Reservation;
use crate::gateway::card::{CardMode, CardRefused};
use crate::gateway::charge::{self, ChargeError};
use crate::model::{CardNo, ChargeMode, ChargeSpec, DeviceId, FeePeriod, OrderNo, PortStatus, PowerTier, Priority};
use crate::store::{Created, Job, NewOrder, Outcome, Requester};

/// Fields of a charge.
const FIELDS: [&str; 10] = [
    "port_no",
    "mode",
    "duration_minutes",
    "energy_wh",
    "paid_cent",
    "tiers",
    "fee_periods",
    "service_fee_by_energy",
    "stop_when_full",
    "card_no",
];
/// Those of them that some modes do not have.
const FIELDS_OF_A_MODE: [&str; 5] = ["duration_minutes", "energy_wh", "tiers", "fee_periods", "service_fee_by_energy"];
const MODES: [&str; 5] = ["time", "energy", "full", "power", "service_fee"];

macro_rules! charge_request {
    ($(#[$attribute:meta])* $name:ident { $($(#[$of_field:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$attribute])*
        #[derive(ToSchema)]
        #[expect(dead_code, reason = "a schema: the body is read field by field")]
        pub(in crate::api) struct $name {
            $($(#[$of_field])* $field: $type,)*
            /// The port, from 1.
            #[schema(minimum = 1)]
            port_no: u16,
            /// What bounds the charge. AP3000 has `time`, `energy` and `full`; BKV and GN have `time`, `energy`, `power` and `service_fee`.
            mode: ChargeMode,
            /// For `time`: 1 to 1092 (AP3000), 1 to 900 (BKV, GN).
            #[schema(minimum = 1, maximum = 1092)]
            duration_minutes: Option<u16>,
            /// For `energy`, Wh: 10 to 655350 in steps of 10 (AP3000), 1 to 65535 (BKV, GN).
            #[schema(minimum = 1, maximum = 655350)]
            energy_wh: Option<u32>,
            /// Cents, kept with the order; at most 65535 for `power` and `service_fee`.
            #[schema(maximum = 4294967295_u32)]
            paid_cent: Option<u32>,
            /// For `power`: prices by power.
            #[schema(min_items = 1, max_items = 5)]
            tiers: Option<Vec<TierRequest>>,
            /// For `service_fee`: prices by time of day, rising; the last one ends at 23:59.
            #[schema(min_items = 1, max_items = 42)]
            fee_periods: Option<Vec<PeriodRequest>>,
            /// For `service_fee`: whether the service fee is per kWh; else it is per hour.
            #[schema(default = true)]
            service_fee_by_energy: Option<bool>,
            /// AP3000: whether it also ends when the battery is full.
            #[schema(default = false)]
            stop_when_full: Option<bool>,
            /// The card that pays: what the charge can cost is held with the order. Needs `cards.mode = "local"`.
            card_no: Option<CardNo>,
        }
    };
}

charge_request! {
    /// The body of `/devices/{device}/charge`. A field that belongs to another mode is refused.
    ChargeRequest {}
}

charge_request! {
    /// The body of `/order/create`: that of `/devices/{device}/charge`, and the device.
    CreateRequest {
        /// The device.
        device_id: DeviceId,
    }
}

/// A power tier.
#[derive(ToSchema)]
#[schema(as = PowerTier)]
#[expect(dead_code, reason = "a schema: the body is read field by field")]
struct TierRequest {
    /// Up to this power, 0.1 W.
    power_dw: u16,
    /// Cents for `minutes`.
    price_cent: u16,
    /// Minutes.
    minutes: u16,
}

/// A period of the day.
#[derive(ToSchema)]
#[schema(as = FeePeriod)]
#[expect(dead_code, reason = "a schema: the body is read field by field")]
struct PeriodRequest {
    /// Hour of its end.
    #[schema(maximum = 23)]
    end_hour: u8,
    /// Minute of its end.
    #[schema(maximum = 59)]
    end_minute: u8,
    /// Cents per kWh.
    electricity_cent: u16,
    /// Cents of service fee.
    service_cent: u16,
}

/// Creates an order. `device_id` is that of the path; without one, the body names it.
pub(super) fn create(api: &Arc<Api>, device_id: Option<DeviceId>, request: &Request) -> Result<Next, ApiError> {
    let mut fields = Fields::of(request)?;
    let (device_id, known) = match device_id {
        Some(device_id) => (device_id, FIELDS.to_vec()),
        None => {
            let given = fields.device_id()?;
            (fields.required("device_id", given)?, [&["device_id"], &FIELDS[..]].concat())
        }
    };
    let (port_no, spec, card_no) = read_charge(fields, known)?;
    if card_no.is_some() && api.cards.mode != CardMode::Local {
        let message = "card_no is not supported: cards.mode is not local, so this gateway keeps no card accounts";
        return Err(ApiError::new(ErrorCode::NotSupported, message));
    }
    let request_id = request.request_id.clone();
    let wish = Wish { device_id, port_no, spec, card_no, request_id };
    Ok(located(device_id, move |api, live| order(api, wish, live)))
}

/// What a request wants.
struct Wish {
    device_id: DeviceId,
    port_no: u16,
    spec: ChargeSpec,
    card_no: Option<CardNo>,
    request_id: String,
}

/// Checks a wish against what is known of its device.
fn order(api: &Arc<Api>, wish: Wish, live: Option<Live>) -> Result<Next, ApiError> {
    let Wish { device_id, port_no, spec, card_no, request_id } = wish;
    let Some(live) = live else {
        return Ok(reading::<()>(move |reader| {
            Err(if reader.device(device_id)?.is_some() { offline(device_id) } else { no_device(device_id) })
        }));
    };
    charge::check(&spec, live.protocol()).map_err(|error| {
        let code = match error {
            ChargeError::Range { .. } => ErrorCode::InvalidParameter,
            ChargeError::NotSupported { .. } => ErrorCode::NotSupported,
        };
        ApiError::new(code, error.to_string())
    })?;
    let at = now().unix_ms;
    check_online(&live, at)?;
    check_port(&live, port_no)?;
    let place = admit(api, Priority::Normal, live.waiting())?;
    let mut order = NewOrder {
        order_no: api.numbers.next(at),
        device_id,
        port_no,
        spec,
        epoch: live.live_epoch(),
        at,
        deadline: at.saturating_add(i64::try_from(api.store_timeout.as_millis()).unwrap_or(i64::MAX)),
        request_id,
        requester: Requester::default(),
        card_no,
        idempotency: None,
    };
    Ok(Box::new(move |call| {
        order.idempotency = call.idempotency().cloned();
        order.requester = call.requester();
        let job = Job::CreateOrder(Box::new(order));
        submit(call, job, move |call, outcome| answer(call, device_id, port_no, at, outcome, place));
    }))
}

/// Reads port and order out of the body.
fn read_charge(mut fields: Fields, known: Vec<&str>) -> Result<(u16, ChargeSpec, Option<CardNo>), ApiError> {
    let card_no = fields.card_no()?;
    let port_no = fields.port_no()?;
    let port_no = fields.required("port_no", port_no)?;
    let mode = fields.word("mode", &MODES)?;
    let word = fields.required("mode", mode)?;
    let mode = match word {
        "time" => {
            let minutes = fields.number("duration_minutes", 1..=u16::MAX)?;
            ChargeMode::Time { minutes: fields.required("duration_minutes", minutes)? }
        }
        "energy" => {
            let wh = fields.number("energy_wh", 1..=u32::MAX)?;
            ChargeMode::Energy { wh: fields.required("energy_wh", wh)? }
        }
        "power" => {
            let tiers = fields.objects("tiers")?;
            let tiers = fields.required("tiers", tiers)?;
            ChargeMode::Power { tiers: tiers.into_iter().map(read_tier).collect::<Result<_, _>>()? }
        }
        "service_fee" => {
            let periods = fields.objects("fee_periods")?;
            let periods = fields.required("fee_periods", periods)?;
            ChargeMode::ServiceFee {
                periods: periods.into_iter().map(read_period).collect::<Result<_, _>>()?,
                by_energy: fields.flag("service_fee_by_energy")?.unwrap_or(true),
            }
        }
        _ => ChargeMode::Full,
    };
    let paid_cent = fields.number("paid_cent", 0..=u32::MAX)?;
    let stop_when_full = fields.flag("stop_when_full")?.unwrap_or(false);
    // What is left is not known at all, or belongs to another mode.
    if let Some(foreign) = FIELDS_OF_A_MODE.iter().find(|name| fields.has(name)) {
        return Err(ApiError::invalid(format!("{foreign} does not belong to mode {word}")));
    }
    fields.finish(&known)?;
    Ok((port_no, ChargeSpec { mode, paid_cent, stop_when_full }, card_no))
}

fn read_tier(mut fields: Fields) -> Result<PowerTier, ApiError> {
    let mut number = |name| {
        let given = fields.number(name, 0..=u16::MAX)?;
        fields.required(name, given)
    };
    let tier =
        PowerTier { power_dw: number("power_dw")?, price_cent: number("price_cent")?, minutes: number("minutes")? };
    fields.finish(&["power_dw", "price_cent", "minutes"])?;
    Ok(tier)
}

fn read_period(mut fields: Fields) -> Result<FeePeriod, ApiError> {
    let (end_hour, end_minute) = (fields.number("end_hour", 0..=23)?, fields.number("end_minute", 0..=59)?);
    let electricity_cent = fields.number("electricity_cent", 0..=u16::MAX)?;
    let service_cent = fields.number("service_cent", 0..=u16::MAX)?;
    let period = FeePeriod {
        end_hour: fields.required("end_hour", end_hour)?,
        end_minute: fields.required("end_minute", end_minute)?,
        electricity_cent: fields.required("electricity_cent", electricity_cent)?,
        service_cent: fields.required("service_cent", service_cent)?,
    };
    fields.finish(&["end_hour", "end_minute", "electricity_cent", "service_cent"])?;
    Ok(period)
}

fn offline(device_id: DeviceId) -> ApiError {
    ApiError::new(ErrorCode::DeviceOffline, format!("device {device_id} has no connection"))
}

/// A start needs a bound socket and a score of at least 50.
fn check_online(live: &Live, at: i64) -> Result<(), ApiError> {
    let device_id = live.device_id();
    if live.is_fallback() {
        let message =
            format!("{device_id} is a number that modules without one of their own share: it takes no orders");
        return Err(ApiError::new(ErrorCode::DeviceOffline, message));
    }
    if !live.connected() {
        return Err(offline(device_id));
    }
    let score = live.score(at);
    if !score.online() {
        let message = format!("device {device_id} is offline: its score is {}, a start needs 50", score.total());
        return Err(ApiError::new(ErrorCode::DeviceOffline, message));
    }
    Ok(())
}

fn check_port(live: &Live, port_no: u16) -> Result<(), ApiError> {
    let device_id = live.device_id();
    let Some(port) = live.port(port_no) else { return Err(no_port(device_id, port_no)) };
    match port.status {
        PortStatus::Charging => Err(busy(device_id, port_no, port.order_no)),
        PortStatus::Fault => {
            let message =
                format!("port {port_no} of {device_id} reports a fault (raw status 0x{:02x})", port.raw_status);
            Err(ApiError::new(ErrorCode::PortFault, message).with_data(json!({"raw_status": port.raw_status})))
        }
        PortStatus::Idle | PortStatus::Occupied | PortStatus::Finished | PortStatus::Unknown => Ok(()),
    }
}

pub(super) fn no_port(device_id: DeviceId, port_no: u16) -> ApiError {
    ApiError::new(ErrorCode::PortNotFound, format!("device {device_id} has no port {port_no}"))
}

fn busy(device_id: DeviceId, port_no: u16, holder: Option<OrderNo>) -> ApiError {
    let message = match holder {
        Some(holder) => format!("port {port_no} of {device_id} is held by order {holder}"),
        None => format!("port {port_no} of {device_id} is charging, for no order of this gateway"),
    };
    ApiError::new(ErrorCode::PortBusy, message).with_data(json!({"order_no": holder}))
}

/// Why the card that was to pay does not.
fn card_refused(refused: &CardRefused) -> ApiError {
    match refused {
        CardRefused::NotFound => ApiError::new(ErrorCode::CardNotFound, "card_no names no card"),
        CardRefused::Insufficient { free_cent, needed_cent } => {
            let message = format!("the card has {free_cent} cents free, the charge needs {needed_cent}");
            let data = json!({"free_cent": free_cent, "needed_cent": needed_cent});
            ApiError::new(ErrorCode::InsufficientBalance, message).with_data(data)
        }
        CardRefused::State(state) => {
            let data = json!({"state": state.code(), "state_text": state.as_str()});
            ApiError::invalid(format!("the card may not charge: it is {}", state.as_str())).with_data(data)
        }
    }
}

/// Answers when the store has decided. The place among the unwritten commands is given back here: the command is on its way to the
/// device's lane, which counts it from then on, or does not exist.
fn answer(call: Call, device_id: DeviceId, port_no: u16, at: i64, outcome: Outcome, place: Reservation) {
    drop(place);
    let created = match outcome {
        Outcome::Created(created) => *created,
        other => return call.error(&not_done(&other)),
    };
    match created {
        Created::Order { order, .. } => {
            log::info!(
                order_no:% = order.order_no, device_id:% = device_id, port_no, mode = order.spec.mode.as_str(),
                request_id = call.request_id();
                "order created"
            );
            call.accepted(&order, at);
        }
        Created::PortBusy { holder } => call.error(&busy(device_id, port_no, Some(holder))),
        Created::CardRefused(refused) => call.error(&card_refused(&refused)),
        Created::TooLate => {
            let waited = call.api().store_timeout.as_millis();
            let message = format!("the order was not stored within {waited} ms and was not created");
            call.error(&ApiError::not_ready(message, RETRY_AFTER_S));
        }
    }
}
