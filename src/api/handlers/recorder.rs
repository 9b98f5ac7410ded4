//! `/admin/recorder` and `/admin/anomalies`: what devices sent last and were sent, in words, and what went wrong with them.
//!
//! Both are in the memory of the shards of the instance that is asked. The shards are asked by way of
//! [`Inquiries`](crate::shard::Inquiries), on whose thread the answer is put together; no worker waits.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::json;
use utoipa::ToSchema;

use super::call::{Call, Next, located};
use super::{Api, List, RETRY_AFTER_S, body};
use crate::api::error::{ApiError, ErrorCode};
use crate::api::live::Live;
use crate::api::route::Query;
use crate::gateway::anomaly::Anomaly;
use crate::gateway::inquiry::{Answer, Question, Recalled};
use crate::gateway::recorder::{Ended, Recorded};
use crate::gateway::{ConnId, ShardId};
use crate::model::{DeviceId, ServerId};
use crate::protocol::ap3000::Magics;
use crate::protocol::explain::findings;
use crate::protocol::{Direction, Hex};
use crate::shard::Unanswered;
use crate::telemetry::label::{AnomalyKind, Label};
use crate::time::Rfc3339;

/// A connection of this process: shard, slot and generation, so that no later one has its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConnectionName {
    pub(super) shard: ShardId,
    pub(super) conn: ConnId,
}

impl fmt::Display for ConnectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.shard.0, self.conn.slot, self.conn.generation)
    }
}

impl Serialize for ConnectionName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for ConnectionName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('-');
        let mut next = || parts.next().filter(|part| part.bytes().all(|byte| byte.is_ascii_digit())).ok_or(());
        let shard = ShardId(next()?.parse().map_err(drop)?);
        let slot = next()?.parse().map_err(drop)?;
        let generation = next()?.parse().map_err(drop)?;
        if parts.next().is_some() { Err(()) } else { Ok(Self { shard, conn: ConnId { slot, generation } }) }
    }
}

/// A frame as it was on the wire, and in words.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct RecordedFrame {
    at: Rfc3339,
    /// `up` is device to server.
    #[schema(value_type = String, pattern = "^(up|down)$")]
    direction: &'static str,
    /// Its connection.
    #[schema(value_type = String)]
    connection: ConnectionName,
    /// The device's session; null: not known then, or several devices are on the connection.
    epoch: Option<u32>,
    /// Its bytes in hex, the first 512 of a longer one.
    raw: String,
    /// How many bytes it had.
    bytes: u32,
    /// `raw` is not all of it.
    truncated: bool,
    /// No frame, but bytes that were skipped on the way to one.
    skipped: bool,
    /// What stands in it, line by line, as `chargegate decode` says it.
    explained: Vec<String>,
}

impl RecordedFrame {
    fn new(shard: ShardId, recorded: &Recorded, magics: &Magics) -> Self {
        let Recorded { conn, label, length, raw } = recorded;
        Self {
            at: Rfc3339(label.at),
            direction: label.direction.as_str(),
            connection: ConnectionName { shard, conn: *conn },
            epoch: Some(label.epoch).filter(|epoch| *epoch > 0),
            raw: Hex(raw).to_string(),
            bytes: *length,
            truncated: (raw.len() as u64) < u64::from(*length),
            skipped: label.skipped,
            explained: explained(raw, magics, label.direction),
        }
    }
}

fn explained(raw: &[u8], magics: &Magics, direction: Direction) -> Vec<String> {
    let words = findings(raw, magics, Some(direction)).map(|finding| finding.to_string());
    words.flat_map(|words| words.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// A connection that ended, or that a device left.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct EndedConnection {
    #[schema(value_type = String)]
    connection: ConnectionName,
    at: Rfc3339,
    /// As in `chargegate_tcp_closed_total`; `replaced`: the device has a newer one.
    reason: &'static str,
}

/// The last frames of a device.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct Recording {
    device_id: DeviceId,
    /// Whose memory this is.
    instance: ServerId,
    /// It has a connection here now.
    connected: bool,
    /// Oldest first, 128 at most, over all connections that the device had here.
    frames: Vec<RecordedFrame>,
    /// Connections it had here, the last one first.
    ended: Vec<EndedConnection>,
}

/// The last frames of a connection.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct ConnectionRecording {
    #[schema(value_type = String)]
    connection: ConnectionName,
    /// Whose memory this is.
    instance: ServerId,
    /// It is open.
    connected: bool,
    /// Oldest first, 128 at most.
    frames: Vec<RecordedFrame>,
    /// How it ended, and before that, when a device left it.
    ended: Vec<EndedConnection>,
}

/// What several shards recall, as one.
#[derive(Default)]
struct Gathered {
    open: bool,
    frames: Vec<RecordedFrame>,
    ended: Vec<EndedConnection>,
}

impl Gathered {
    fn of(recalled: Vec<(ShardId, Recalled)>, magics: &Magics) -> Self {
        let mut gathered = Self::default();
        let mut ended: Vec<(ShardId, Ended)> = Vec::new();
        for (shard, recalled) in recalled {
            gathered.open |= recalled.open;
            gathered.frames.extend(recalled.frames.iter().map(|frame| RecordedFrame::new(shard, frame, magics)));
            ended.extend(recalled.ended.into_iter().map(|ended| (shard, ended)));
        }
        // Stable: what a shard saw in one millisecond keeps its order.
        gathered.frames.sort_by_key(|frame| frame.at);
        ended.sort_by_key(|(_, ended)| std::cmp::Reverse(ended.at));
        let excess = gathered.frames.len().saturating_sub(crate::gateway::inquiry::RECALLED_MAX);
        gathered.frames.drain(..excess);
        gathered.ended = ended
            .into_iter()
            .map(|(shard, ended)| EndedConnection {
                connection: ConnectionName { shard, conn: ended.conn },
                at: Rfc3339(ended.at),
                reason: ended.reason.as_str(),
            })
            .collect();
        gathered
    }

    const fn is_empty(&self) -> bool {
        !self.open && self.frames.is_empty() && self.ended.is_empty()
    }
}

/// The last frames of a device, over the connections it had to this instance.
pub(super) fn device(device_id: DeviceId) -> Next {
    unless_elsewhere(device_id, move |call, live| {
        let api = Arc::clone(call.api());
        let answered = Arc::clone(&api);
        api.inquiries.ask_all(Question::RecallDevice(device_id), move |answers| {
            let recalled = answers.map_err(ApiError::from).and_then(|answers| each(answers, recalled));
            let gathered = match recalled {
                Ok(recalled) => Gathered::of(recalled, &answered.magics),
                Err(error) => return call.error(&error),
            };
            if gathered.is_empty() && live.is_none() {
                let message = format!("this instance remembers nothing of device {device_id}");
                return call.error(&ApiError::new(ErrorCode::NotFound, message));
            }
            let Gathered { open, frames, ended } = gathered;
            let instance = answered.whereabouts.own().clone();
            call.success(200, &Recording { device_id, instance, connected: open, frames, ended });
        });
    })
}

/// The last frames of a connection, open or ended.
pub(super) fn connection(name: &str) -> Result<Next, ApiError> {
    let no_connection = format!("there is no connection {name}, and none is remembered");
    let no_connection = move || ApiError::new(ErrorCode::NotFound, no_connection);
    let Ok(connection) = name.parse::<ConnectionName>() else { return Err(no_connection()) };
    Ok(Box::new(move |call| {
        let api = Arc::clone(call.api());
        if connection.shard.0 >= api.inquiries.shards() {
            return call.error(&no_connection());
        }
        let answered = Arc::clone(&api);
        api.inquiries.ask_one(connection.shard, Question::RecallConnection(connection.conn), move |answer| {
            let found = answer.map_err(ApiError::from).and_then(recalled);
            let gathered = match found {
                Ok(found) => Gathered::of(vec![(connection.shard, found)], &answered.magics),
                Err(error) => return call.error(&error),
            };
            if gathered.is_empty() {
                return call.error(&no_connection());
            }
            let Gathered { open, frames, ended } = gathered;
            let instance = answered.whereabouts.own().clone();
            call.success(200, &ConnectionRecording { connection, instance, connected: open, frames, ended });
        });
    }))
}

/// Something that went wrong between a device and the gateway.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct AnomalyObject {
    /// Shard and number; not used again.
    #[schema(value_type = String)]
    id: AnomalyName,
    /// The instance whose memory it is in.
    instance: ServerId,
    at: Rfc3339,
    /// The last time it happened again within a minute; those times have no entry of their own.
    last_at: Rfc3339,
    /// How often it happened from `at` to `last_at`.
    count: u64,
    /// Null: the connection has not said which device it carries, or carries several.
    device_id: Option<DeviceId>,
    /// Null: the device had none then.
    #[schema(value_type = Option<String>)]
    connection: Option<ConnectionName>,
    /// The connection's peer.
    #[schema(value_type = Option<String>)]
    peer: Option<std::net::IpAddr>,
    /// As in `chargegate_anomalies_total`.
    kind: &'static str,
    /// More of it, in words.
    detail: String,
    /// The last frames before, 16 at most, oldest first.
    frames: Vec<RecordedFrame>,
}

/// An anomaly of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AnomalyName {
    shard: ShardId,
    id: i64,
}

impl fmt::Display for AnomalyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.shard.0, self.id)
    }
}

impl Serialize for AnomalyName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for AnomalyName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (shard, id) = text.split_once('-').ok_or(())?;
        Ok(Self { shard: ShardId(shard.parse().map_err(drop)?), id: id.parse().map_err(drop)? })
    }
}

impl AnomalyObject {
    fn new(api: &Api, shard: ShardId, anomaly: &Anomaly) -> Self {
        Self {
            id: AnomalyName { shard, id: anomaly.id },
            instance: api.whereabouts.own().clone(),
            at: Rfc3339(anomaly.at),
            last_at: Rfc3339(anomaly.last_at),
            count: anomaly.count,
            device_id: anomaly.device_id,
            connection: anomaly.conn.map(|conn| ConnectionName { shard, conn }),
            peer: anomaly.peer,
            kind: anomaly.kind.as_str(),
            detail: anomaly.detail.clone(),
            frames: anomaly.frames.iter().map(|frame| RecordedFrame::new(shard, frame, &api.magics)).collect(),
        }
    }
}

/// The words of all kinds.
pub(in crate::api) fn anomaly_kinds() -> Vec<&'static str> {
    AnomalyKind::ALL.iter().map(|kind| kind.as_str()).collect()
}

/// What went wrong, the newest first.
pub(super) fn anomalies(query: &Query<'_>) -> Result<Next, ApiError> {
    let page = query.page()?;
    let kind = query.value("kind").map(|word| {
        let found = AnomalyKind::ALL.iter().find(|kind| kind.as_str() == word);
        found.ok_or_else(|| {
            let words = anomaly_kinds().join(", ");
            ApiError::invalid(format!("kind must be one of {words}, got {word:?}"))
        })
    });
    let kind = kind.transpose()?.copied();
    let device_id = query.value("device_id").map(|text| body::device_id("device_id", text)).transpose()?;
    Ok(every_anomaly(move |call, mut found| {
        let fits = |anomaly: &Anomaly| {
            kind.is_none_or(|kind| kind == anomaly.kind)
                && device_id.is_none_or(|device_id| Some(device_id) == anomaly.device_id)
        };
        found.retain(|(_, anomaly)| fits(anomaly));
        found.sort_by_key(|(shard, anomaly)| (std::cmp::Reverse(anomaly.at), *shard, std::cmp::Reverse(anomaly.id)));
        let total = found.len() as u64;
        let (skip, size) = (u64::from(page.page - 1) * u64::from(page.size), page.size as usize);
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let api = Arc::clone(call.api());
        let items = found.iter().skip(skip).take(size);
        let items = items.map(|(shard, anomaly)| AnomalyObject::new(&api, *shard, anomaly)).collect();
        call.success(200, &List::new(items, total, page));
    }))
}

/// One of them.
pub(super) fn anomaly(name: &str) -> Result<Next, ApiError> {
    let no_anomaly = format!("there is no anomaly {name}, or newer ones have pushed it out");
    let no_anomaly = move || ApiError::new(ErrorCode::NotFound, no_anomaly);
    let Ok(name) = name.parse::<AnomalyName>() else { return Err(no_anomaly()) };
    Ok(every_anomaly(move |call, found| {
        let found = found.iter().find(|(shard, anomaly)| AnomalyName { shard: *shard, id: anomaly.id } == name);
        let object = found.map(|(shard, anomaly)| AnomalyObject::new(call.api(), *shard, anomaly));
        match object {
            Some(object) => call.success(200, &object),
            None => call.error(&no_anomaly()),
        }
    }))
}

fn every_anomaly(then: impl FnOnce(Call, Vec<(ShardId, Arc<Anomaly>)>) + Send + 'static) -> Next {
    Box::new(move |call| {
        let api = Arc::clone(call.api());
        api.inquiries.ask_all(Question::Anomalies, move |answers| {
            let found = answers.map_err(ApiError::from).and_then(|answers| {
                each(answers, |answer| match answer {
                    Answer::Anomalies(anomalies) => Ok(anomalies),
                    other => Err(mixed_up(&other)),
                })
            });
            match found {
                Ok(found) => {
                    let found = found.into_iter();
                    let found = found.flat_map(|(shard, list)| list.into_iter().map(move |anomaly| (shard, anomaly)));
                    then(call, found.collect());
                }
                Err(error) => call.error(&error),
            }
        });
    })
}

/// Goes on with a device that no other instance has; what is known of it is `None` where no instance has told of it.
pub(super) fn unless_elsewhere(device_id: DeviceId, then: impl FnOnce(Call, Option<Live>) + Send + 'static) -> Next {
    located(device_id, move |_, live| {
        if let Some(Live::Remote { device, .. }) = &live
            && device.connected()
        {
            let instance = device.server();
            let message = format!("device {device_id} is connected to instance {instance}: ask that one");
            return Err(ApiError::new(ErrorCode::NotFound, message).with_data(json!({"instance": instance})));
        }
        Ok(Box::new(move |call| then(call, live)))
    })
}

fn each<T>(
    answers: Vec<(ShardId, Answer)>,
    read: impl Fn(Answer) -> Result<T, ApiError>,
) -> Result<Vec<(ShardId, T)>, ApiError> {
    answers.into_iter().map(|(shard, answer)| Ok((shard, read(answer)?))).collect()
}

fn recalled(answer: Answer) -> Result<Recalled, ApiError> {
    match answer {
        Answer::Recalled(recalled) => Ok(recalled),
        other => Err(mixed_up(&other)),
    }
}

/// A shard answered something else.
pub(super) fn mixed_up(answer: &Answer) -> ApiError {
    log::error!("a shard answered another question: {answer:?}");
    ApiError::new(ErrorCode::Internal, "a shard gave no answer to this question")
}

impl From<Unanswered> for ApiError {
    fn from(unanswered: Unanswered) -> Self {
        Self::not_ready(unanswered.to_string(), RETRY_AFTER_S)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_and_others_are_none() {
        let conn = ConnId { slot: 59_999, generation: u32::MAX };
        let name = ConnectionName { shard: ShardId(1), conn };
        assert_eq!(name.to_string().parse(), Ok(name));
        let anomaly = AnomalyName { shard: ShardId(255), id: 1_767_225_600_123 };
        assert_eq!(anomaly.to_string().parse(), Ok(anomaly));
        for text in ["", "-", "1", "1-2", "1-2-3-4", "1-2--3", "1-+2-3", "65536-1-1", "1-2-4294967296", "a-b-c"] {
            assert_eq!(text.parse::<ConnectionName>(), Err(()), "{text}");
        }
        for text in ["", "-", "1", "1-", "65536-1", "1-9223372036854775808"] {
            assert_eq!(text.parse::<AnomalyName>(), Err(()), "{text}");
        }
    }
}
