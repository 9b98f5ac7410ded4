//! Rows to values. A row that does not read back is [`StoreError::Corrupt`], never a default.
//!
//! Statements of the hot path have no `RETURNING` and do not insert from a query on their own table: SQLite opens a temporary
//! b-tree for either, which costs more than a second statement.

use std::str::FromStr;

use super::conn::Row;
use crate::{
    model::{
        Card, CardNo, CardState, CardTransaction, ChargeSpec, DeviceDetails, DeviceId, Order, OrderCard, OrderNo,
        OrderStatus, Origin, PortStatus, Priority, Protocol, ServerId, TransactionKind,
    },
    pricing::Tariff,
    store::{CommandRecord, DeviceRecord, EventRecord, PortRecord, StoreError},
};

/// Columns in the order [`order`] reads them.
macro_rules! order_columns {
    () => {
        "order_no, device_id, port_no, status, spec, origin, device_ref, business_no, start_time, end_time, \
         duration_seconds, energy_wh, amount_cent, end_reason, end_reason_raw, failure_reason, start_written_at, \
         stop_acked, settled_at, settlement_match, device_end_pending, sequence_no, request_id, created_at, status_at, \
         updated_at, card_no, tariff, hold_cent, hold_open, price_cent, charged_cent"
    };
}
/// Columns in the order [`port`] reads them.
macro_rules! port_columns {
    () => {
        "device_id, port_no, socket, hole, status, raw_status, power_dw, current_ma, voltage_dv, energy_wh, \
         charged_seconds, updated_at"
    };
}
/// Columns in the order [`device`] reads them.
macro_rules! device_columns {
    () => {
        "device_id, protocol, printed_no, last_seen_at, connected_at, signal, firmware, iccid, session_epoch, \
         name, extensions, fsk_frequency, imei, module_version, host_type, host, device_type"
    };
}
/// Columns in the order [`event`] reads them.
macro_rules! event_columns {
    () => {
        "e.pos, e.event_id, e.event_type, e.key, e.device_id, e.order_no, e.sequence_no, e.at, e.data"
    };
}
/// Columns in the order [`card`] reads them.
macro_rules! card_columns {
    () => {
        "card_no, state, tariff, expires_at, balance_cent, held_cent, sequence_no, created_at, updated_at"
    };
}
/// Columns in the order [`transaction`] reads them.
macro_rules! transaction_columns {
    () => {
        "id, card_no, kind, order_no, amount_cent, price_cent, unpaid_cent, balance_cent, reference, at"
    };
}
pub(super) use {card_columns, device_columns, event_columns, order_columns, port_columns, transaction_columns};

fn parsed<T: FromStr>(row: &Row<'_>, column: usize) -> Result<T, StoreError> {
    let text = row.text(column)?;
    text.parse().map_err(|_| row.corrupt(column, text))
}

pub(super) fn device_id(row: &Row<'_>, column: usize) -> Result<DeviceId, StoreError> {
    parsed(row, column)
}

pub(super) fn order_no(row: &Row<'_>, column: usize) -> Result<OrderNo, StoreError> {
    let text = row.text(column)?;
    OrderNo::parse(text).ok_or_else(|| row.corrupt(column, text))
}

pub(super) fn order_no_or_none(row: &Row<'_>, column: usize) -> Result<Option<OrderNo>, StoreError> {
    let text = row.text_or_null(column)?;
    text.map(|text| OrderNo::parse(text).ok_or_else(|| row.corrupt(column, text))).transpose()
}

pub(super) fn priority(row: &Row<'_>, column: usize) -> Result<Priority, StoreError> {
    Priority::from_code(row.get(column)?).ok_or_else(|| row.corrupt(column, "unknown"))
}

/// An instance, where there is one.
pub(super) fn server_id(row: &Row<'_>, column: usize) -> Result<Option<ServerId>, StoreError> {
    Ok(row.text_or_null(column)?.map(ServerId::new))
}

pub(super) fn protocol(row: &Row<'_>, column: usize) -> Result<Protocol, StoreError> {
    let text = row.text(column)?;
    Protocol::from_word(text).ok_or_else(|| row.corrupt(column, text))
}

pub(super) fn order(row: &Row<'_>) -> Result<Order, StoreError> {
    let status: u8 = row.get(3)?;
    let spec = row.text(4)?;
    let origin = row.text(5)?;
    Ok(Order {
        order_no: order_no(row, 0)?,
        device_id: device_id(row, 1)?,
        port_no: row.get(2)?,
        status: OrderStatus::from_code(status).ok_or_else(|| row.corrupt(3, "out of range"))?,
        spec: serde_json::from_str::<ChargeSpec>(spec).map_err(|_| row.corrupt(4, spec))?,
        origin: match origin {
            "api" => Origin::Api,
            "device" => Origin::Device,
            _ => return Err(row.corrupt(5, origin)),
        },
        device_ref: row.get(6)?,
        business_no: row.get(7)?,
        start_time: row.get(8)?,
        end_time: row.get(9)?,
        duration_seconds: row.get(10)?,
        energy_wh: row.get(11)?,
        amount_cent: row.get(12)?,
        end_reason: row.get(13)?,
        end_reason_raw: row.get(14)?,
        failure_reason: row.get(15)?,
        start_written_at: row.get(16)?,
        stop_acked: row.get(17)?,
        settled_at: row.get(18)?,
        settlement_match: row.get(19)?,
        device_end_pending: row.get(20)?,
        sequence_no: row.get(21)?,
        request_id: row.get(22)?,
        created_at: row.get(23)?,
        status_at: row.get(24)?,
        updated_at: row.get(25)?,
        card: order_card(row)?,
    })
}

fn order_card(row: &Row<'_>) -> Result<Option<Box<OrderCard>>, StoreError> {
    if row.text_or_null(26)?.is_none() {
        return Ok(None);
    }
    let tariff = row.text_or_null(27)?;
    let tariff = tariff.map(|text| serde_json::from_str::<Tariff>(text).map_err(|_| row.corrupt(27, text)));
    Ok(Some(Box::new(OrderCard {
        card_no: card_no(row, 26)?,
        tariff: tariff.transpose()?,
        hold_cent: row.get(28)?,
        hold_open: row.get(29)?,
        price_cent: row.get(30)?,
        charged_cent: row.get(31)?,
    })))
}

pub(super) fn card_no(row: &Row<'_>, column: usize) -> Result<CardNo, StoreError> {
    let text = row.text(column)?;
    CardNo::parse(text).ok_or_else(|| row.corrupt(column, "no card number"))
}

pub(super) fn card(row: &Row<'_>) -> Result<Card, StoreError> {
    Ok(Card {
        card_no: card_no(row, 0)?,
        state: CardState::from_code(row.get(1)?).ok_or_else(|| row.corrupt(1, "out of range"))?,
        tariff: row.get(2)?,
        expires_at: row.get(3)?,
        balance_cent: row.get(4)?,
        held_cent: row.get(5)?,
        sequence_no: row.get(6)?,
        created_at: row.get(7)?,
        updated_at: row.get(8)?,
    })
}

pub(super) fn transaction(row: &Row<'_>) -> Result<CardTransaction, StoreError> {
    let kind = row.text(2)?;
    Ok(CardTransaction {
        id: row.get(0)?,
        card_no: card_no(row, 1)?,
        kind: TransactionKind::from_word(kind).ok_or_else(|| row.corrupt(2, kind))?,
        order_no: order_no_or_none(row, 3)?,
        amount_cent: row.get(4)?,
        price_cent: row.get(5)?,
        unpaid_cent: row.get(6)?,
        balance_cent: row.get(7)?,
        reference: row.get(8)?,
        at: row.get(9)?,
    })
}

/// Columns in the order [`command_record`] reads them.
macro_rules! command_record_columns {
    () => {
        "id, device_id, order_no, body, state, attempts, reason, result, created_at, written_at, updated_at, not_after, \
         request_id"
    };
}
pub(super) use command_record_columns;

pub(super) fn command_record(row: &Row<'_>) -> Result<CommandRecord, StoreError> {
    let body = row.text(3)?;
    Ok(CommandRecord {
        id: row.get(0)?,
        device_id: device_id(row, 1)?,
        order_no: order_no_or_none(row, 2)?,
        body: serde_json::from_str(body).map_err(|_| row.corrupt(3, body))?,
        state: row.get(4)?,
        attempts: row.get(5)?,
        reason: row.get(6)?,
        result: row.get(7)?,
        created_at: row.get(8)?,
        written_at: row.get(9)?,
        updated_at: row.get(10)?,
        not_after: row.get(11)?,
        request_id: row.get(12)?,
    })
}

pub(super) fn port(row: &Row<'_>) -> Result<PortRecord, StoreError> {
    Ok(PortRecord {
        device_id: device_id(row, 0)?,
        port_no: row.get(1)?,
        socket: row.get(2)?,
        hole: row.get(3)?,
        status: PortStatus::from_code(row.get(4)?),
        raw_status: row.get(5)?,
        power_dw: row.get(6)?,
        current_ma: row.get(7)?,
        voltage_dv: row.get(8)?,
        energy_wh: row.get(9)?,
        charged_seconds: row.get(10)?,
        updated_at: row.get(11)?,
    })
}

pub(super) fn device(row: &Row<'_>) -> Result<DeviceRecord, StoreError> {
    Ok(DeviceRecord {
        device_id: device_id(row, 0)?,
        protocol: protocol(row, 1)?,
        printed_no: row.get(2)?,
        last_seen_at: row.get(3)?,
        connected_at: row.get(4)?,
        signal: row.get(5)?,
        firmware: row.get(6)?,
        iccid: row.get(7)?,
        session_epoch: row.get(8)?,
        details: details(row, 9)?,
        device_type: row.get(16)?,
    })
}

/// The details of a device from column `first` on, in the order of [`device_columns`].
pub(super) fn details(row: &Row<'_>, first: usize) -> Result<DeviceDetails, StoreError> {
    let host = row.text_or_null(first + 6)?;
    let host = host.map(|text| serde_json::from_str(text).map_err(|_| row.corrupt(first + 6, text))).transpose()?;
    Ok(DeviceDetails {
        name: row.get(first)?,
        extensions: row.get(first + 1)?,
        fsk_frequency: row.get(first + 2)?,
        imei: row.get(first + 3)?,
        module_version: row.get(first + 4)?,
        host_type: row.get(first + 5)?,
        host,
    })
}

pub(super) fn event(row: &Row<'_>) -> Result<EventRecord, StoreError> {
    Ok(EventRecord {
        pos: row.get(0)?,
        event_id: row.get(1)?,
        event_type: row.get(2)?,
        key: row.get(3)?,
        device_id: row.get(4)?,
        order_no: row.get(5)?,
        sequence_no: row.get(6)?,
        at: row.get(7)?,
        data: row.get(8)?,
    })
}
