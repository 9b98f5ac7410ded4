//! `/admin/connections`: the sockets of devices, and closing one.
//!
//! A shard looks at 1,024 slots for one answer, so a list goes from answer to answer, over the shards in turn. Connections that
//! come and go meanwhile are in it or not.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use utoipa::ToSchema;

use super::body::{self, Fields};
use super::call::{Call, Next};
use super::recorder::{ConnectionName, mixed_up, unless_elsewhere};
use super::{List, RETRY_AFTER_S, audit, now};
use crate::api::error::{ApiError, ErrorCode};
use crate::api::live::Live;
use crate::api::message::Request;
use crate::api::route::{Page, Query};
use crate::gateway::directory::Entry;
use crate::gateway::inquiry::{Answer, ConnectionFilter, ConnectionInfo, Question};
use crate::gateway::{Listener, ShardId};
use crate::model::{DeviceId, Protocol};
use crate::time::Rfc3339;

/// A list that is not together by then is given up.
const LIST_PATIENCE: Duration = Duration::from_secs(5);

/// A device's socket.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct DeviceConnection {
    #[schema(value_type = String)]
    connection: ConnectionName,
    /// The thread that owns it.
    shard: u16,
    #[schema(value_type = String)]
    peer: IpAddr,
    /// `devices` (`device.listen`) or `gn` (`device.listen_gn`).
    listener: &'static str,
    /// Null: its first bytes have not come.
    protocol: Option<Protocol>,
    /// Those it carries: none before the first frame, several on the socket of a host.
    devices: Vec<DeviceId>,
    connected_at: Rfc3339,
    /// When the last byte came.
    last_seen_at: Rfc3339,
    bytes_in: u64,
    bytes_out: u64,
    /// Of `bytes_in`, bytes that were no frame.
    garbage_bytes: u64,
    /// The peer does not drain what was written to it.
    blocked: bool,
}

impl DeviceConnection {
    fn new(shard: ShardId, info: ConnectionInfo) -> Self {
        Self {
            connection: ConnectionName { shard, conn: info.conn },
            shard: shard.0,
            peer: info.peer,
            listener: listener_word(info.listener),
            protocol: info.protocol,
            devices: info.devices,
            connected_at: Rfc3339(info.connected_at),
            last_seen_at: Rfc3339(info.last_seen_at),
            bytes_in: info.bytes_in,
            bytes_out: info.bytes_out,
            garbage_bytes: info.garbage_bytes,
            blocked: info.blocked,
        }
    }
}

pub(in crate::api) const LISTENERS: [&str; 2] = ["devices", "gn"];

const fn listener_word(listener: Listener) -> &'static str {
    match listener {
        Listener::Devices => LISTENERS[0],
        Listener::Gn => LISTENERS[1],
    }
}

/// A list that grows from answer to answer.
struct Listing {
    call: Call,
    filter: ConnectionFilter,
    page: Page,
    items: Vec<DeviceConnection>,
    total: u64,
    shard: ShardId,
    from: u32,
    until: Instant,
}

impl Listing {
    fn go_on(self) {
        let inquiries = Arc::clone(&self.call.api().inquiries);
        if self.shard.0 >= inquiries.shards() {
            return self.call.success(200, &List::new(self.items, self.total, self.page));
        }
        let skipped = u64::from(self.page.page - 1) * u64::from(self.page.size);
        let question = Question::Connections {
            filter: self.filter,
            from: self.from,
            skip: skipped.saturating_sub(self.total),
            limit: (self.page.size as usize).saturating_sub(self.items.len()),
        };
        inquiries.ask_one(self.shard, question, move |answer| match answer {
            Ok(Answer::Connections(found)) => self.take(found.connections, found.matched, found.next),
            Ok(other) => self.call.error(&mixed_up(&other)),
            Err(unanswered) => self.call.error(&unanswered.into()),
        });
    }

    fn take(mut self, found: Vec<ConnectionInfo>, matched: u64, next: Option<u32>) {
        self.total += matched;
        let shard = self.shard;
        self.items.extend(found.into_iter().map(|info| DeviceConnection::new(shard, info)));
        match next {
            Some(from) => self.from = from,
            None => (self.shard, self.from) = (ShardId(shard.0.saturating_add(1)), 0),
        }
        if now().instant >= self.until {
            let error = ApiError::not_ready("the shards are too busy to list their connections", RETRY_AFTER_S);
            return self.call.error(&error);
        }
        self.go_on();
    }
}

/// The connections of this instance, by shard and slot.
pub(super) fn list(query: &Query<'_>) -> Result<Next, ApiError> {
    let page = query.page()?;
    let listener = match query.value("listener") {
        None => None,
        Some("devices") => Some(Listener::Devices),
        Some("gn") => Some(Listener::Gn),
        Some(other) => return Err(ApiError::invalid(format!("listener must be devices or gn, got {other:?}"))),
    };
    let protocol = query.value("protocol").map(|word| {
        Protocol::from_word(word)
            .ok_or_else(|| ApiError::invalid(format!("protocol must be ap3000, bkv or gn, got {word:?}")))
    });
    let device_id = query.value("device_id").map(|text| body::device_id("device_id", text)).transpose()?;
    let filter = ConnectionFilter { device_id, listener, protocol: protocol.transpose()? };
    Ok(Box::new(move |call| {
        let until = now().instant + LIST_PATIENCE;
        Listing { call, filter, page, items: Vec::new(), total: 0, shard: ShardId(0), from: 0, until }.go_on();
    }))
}

/// A connection that was closed.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct DisconnectedDevice {
    device_id: DeviceId,
    #[schema(value_type = String)]
    connection: ConnectionName,
    /// All devices it carried: on the socket of a host, its sub-devices too.
    devices: Vec<DeviceId>,
}

/// Closes the connection of a device, which is expected to come back.
pub(super) fn disconnect(device_id: DeviceId, request: &Request) -> Result<Next, ApiError> {
    Fields::none(request)?;
    Ok(unless_elsewhere(device_id, move |call, live| {
        let offline =
            move || ApiError::new(ErrorCode::DeviceOffline, format!("device {device_id} has no connection here"));
        let owner = live.as_ref().and_then(Live::local).and_then(Entry::owner);
        let Some(owner) = owner else { return call.error(&offline()) };
        let inquiries = Arc::clone(&call.api().inquiries);
        inquiries.ask_one(owner.shard(), Question::Disconnect(device_id), move |answer| match answer {
            Ok(Answer::Disconnected(Some(closed))) => {
                audit::done(&call, "disconnect", device_id);
                let connection = ConnectionName { shard: owner.shard(), conn: closed.conn };
                call.success(200, &DisconnectedDevice { device_id, connection, devices: closed.devices });
            }
            Ok(Answer::Disconnected(None)) => call.error(&offline()),
            Ok(other) => call.error(&mixed_up(&other)),
            Err(unanswered) => call.error(&unanswered.into()),
        });
    }))
}
