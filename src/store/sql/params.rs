//! Device parameters: desired, reported, and the commands between the two. [`params::next`] decides, this writes.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    apply::Tx,
    conn::{Conn, Row, all, run, scalar},
    event::json,
};
use crate::{
    gateway::params::{self, Group, Held},
    model::{Ap3000Call, Command, DeviceCall, DeviceId, GatewayCall, Protocol},
    store::{Outcome, ParamRecord, StoreError, WantedParams, payload},
};

/// Groups brought forward per bind: an answer brings the next forward.
const GROUPS_PER_BIND_MAX: usize = 8;

pub(super) fn find(conn: Conn<'_>, device_id: DeviceId) -> Result<Vec<ParamRecord>, StoreError> {
    all(
        conn,
        "SELECT socket, name, desired, reported, refused, desired_at, reported_at FROM device_params \
         WHERE device_id = $1 ORDER BY socket, name",
        [device_id.to_string()],
        record,
    )
}

fn record(row: &Row<'_>) -> Result<ParamRecord, StoreError> {
    let value = |column: usize| {
        let text = row.text_or_null(column)?;
        text.map(|text| serde_json::from_str(text).map_err(|_| StoreError::Corrupt(format!("a parameter is `{text}`"))))
            .transpose()
    };
    let refused: Option<String> = row.get(4)?;
    Ok(ParamRecord {
        socket: row.get(0)?,
        held: Held { name: row.get(1)?, desired: value(2)?, reported: value(3)?, refused: refused.is_some() },
        refused,
        desired_at: row.get(5)?,
        reported_at: row.get(6)?,
    })
}

const fn family(device_id: DeviceId) -> Protocol {
    match device_id {
        DeviceId::Ap3000(_) => Protocol::Ap3000,
        DeviceId::Gateway(_) => Protocol::Bkv,
    }
}

impl Tx<'_> {
    /// Stores what is wanted and queues the first command towards it, or repeats what was answered.
    pub(super) fn set_params_once(&mut self, wanted: &WantedParams) -> Result<Outcome, StoreError> {
        if let Some(earlier) = self.earlier(wanted.idempotency.as_ref())? {
            return Ok(Outcome::Repeated(earlier));
        }
        let params = self.set_params(wanted)?;
        if let (Some(asked), Some(params)) = (&wanted.idempotency, &params) {
            let answer = payload::params_accepted(wanted.device_id, params, &wanted.request_id, wanted.at);
            self.answered(asked, answer)?;
        }
        Ok(Outcome::Params(params))
    }

    fn set_params(&mut self, wanted: &WantedParams) -> Result<Option<Vec<ParamRecord>>, StoreError> {
        let WantedParams { device_id, socket, at, .. } = *wanted;
        let id = device_id.to_string();
        let known: Option<i64> = scalar(self.conn, "SELECT 1 FROM devices WHERE device_id = $1", [&id])?;
        if known.is_none() {
            return Ok(None);
        }
        for (name, value) in &wanted.values {
            // The same wish again is a new wish: what was refused before is tried once more.
            run(
                self.conn,
                "INSERT INTO device_params (device_id, socket, name, desired, desired_at) VALUES ($1, $2, $3, $4, $5) \
                 ON CONFLICT (device_id, socket, name) DO UPDATE SET desired = excluded.desired, \
                 desired_at = excluded.desired_at, set_at = NULL, refused = NULL",
                (&id, socket, name, json(value)?, at),
            )?;
        }
        let held = self.held(device_id, socket)?;
        for group in Group::all(family(device_id)) {
            let query = wanted.refresh.then(|| group.query(socket)).flatten();
            if let Some(call) = params::next(group, socket, &held).or(query) {
                self.params_call(device_id, group, socket, call, None, at)?;
            }
        }
        find(self.conn, device_id).map(Some)
    }

    fn held(&self, device_id: DeviceId, socket: u8) -> Result<Vec<Held>, StoreError> {
        let all = find(self.conn, device_id)?;
        Ok(all.into_iter().filter(|param| param.socket == socket).map(|param| param.held).collect())
    }

    /// Queues a command of a group, unless one is under way: its answer says what comes next.
    fn params_call(
        &mut self,
        device_id: DeviceId,
        group: Group,
        socket: u8,
        call: DeviceCall,
        epoch: Option<i64>,
        at: i64,
    ) -> Result<Option<Command>, StoreError> {
        let waiting = all(
            self.conn,
            "SELECT body FROM outbound_queue WHERE device_id = $1 AND kind IN ('set_params', 'query_params') \
             AND is_open = TRUE AND not_after > $2",
            (device_id.to_string(), at),
            |row| row.get::<String>(0),
        )?;
        let of_group = |body: &String| {
            let body: Option<crate::model::CommandBody> = serde_json::from_str(body).ok();
            matches!(body, Some(crate::model::CommandBody::Call { call }) if Group::of_call(&call) == Some((group, socket)))
        };
        if waiting.iter().any(of_group) {
            return Ok(None);
        }
        self.follow_up(device_id, call, epoch, at)
    }

    /// Commands for what is still pending when a device comes back.
    pub(super) fn params_at_bind(
        &mut self,
        device_id: DeviceId,
        epoch: i64,
        at: i64,
    ) -> Result<Vec<Command>, StoreError> {
        let pending: Vec<u8> = all(
            self.conn,
            "SELECT DISTINCT socket FROM device_params WHERE device_id = $1 AND desired IS NOT NULL \
             AND refused IS NULL AND desired IS DISTINCT FROM reported ORDER BY socket",
            [device_id.to_string()],
            |row| row.get(0),
        )?;
        let mut commands = Vec::new();
        for socket in pending {
            let held = self.held(device_id, socket)?;
            for group in Group::all(family(device_id)) {
                if commands.len() == GROUPS_PER_BIND_MAX {
                    return Ok(commands);
                }
                if let Some(call) = params::next(group, socket, &held) {
                    commands.extend(self.params_call(device_id, group, socket, call, Some(epoch), at)?);
                }
            }
        }
        Ok(commands)
    }

    /// A device answered a command of a group; returns the next towards the desired values.
    #[expect(clippy::too_many_arguments, reason = "an answer and what it answers")]
    pub(super) fn params_answered(
        &mut self,
        device_id: DeviceId,
        group: Group,
        socket: u8,
        call: &DeviceCall,
        acked: bool,
        result: Option<&str>,
        at: i64,
    ) -> Result<Option<DeviceCall>, StoreError> {
        let id = device_id.to_string();
        let sent = match call {
            DeviceCall::Ap3000(Ap3000Call::SetParams { values, .. })
            | DeviceCall::Gateway(GatewayCall::SetParams { values, .. }) => Some(values),
            DeviceCall::Ap3000(_) | DeviceCall::Gateway(_) => None,
        };
        match (sent, acked) {
            // Only values that are still wanted: a newer wish is not answered by this.
            (Some(values), true) => {
                for (name, value) in values {
                    let readable = group.is_readable();
                    run(
                        self.conn,
                        "UPDATE device_params SET set_at = $5, reported = CASE WHEN $6 THEN reported ELSE desired END, \
                         reported_at = CASE WHEN $6 THEN reported_at ELSE $5 END \
                         WHERE device_id = $1 AND socket = $2 AND name = $3 AND desired = $4",
                        (&id, socket, name, json(value)?, at, readable),
                    )?;
                }
                if group.is_readable() {
                    return Ok(group.query(socket));
                }
            }
            (Some(values), false) => {
                for (name, value) in values {
                    run(
                        self.conn,
                        "UPDATE device_params SET refused = 'device_refused' \
                         WHERE device_id = $1 AND socket = $2 AND name = $3 AND desired = $4 AND desired IS DISTINCT FROM reported",
                        (&id, socket, name, json(value)?),
                    )?;
                }
            }
            (None, true) => {
                let reported: BTreeMap<String, Value> =
                    result.and_then(|result| serde_json::from_str(result).ok()).unwrap_or_default();
                for param in group.params() {
                    let Some(value) = reported.get(param.name) else { continue };
                    // An acknowledged value that reads back as another was not taken.
                    run(
                        self.conn,
                        "INSERT INTO device_params (device_id, socket, name, reported, reported_at) \
                         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (device_id, socket, name) DO UPDATE SET \
                         reported = excluded.reported, reported_at = excluded.reported_at, \
                         refused = CASE WHEN device_params.set_at IS NOT NULL \
                         AND device_params.desired IS DISTINCT FROM excluded.reported \
                         THEN 'device_kept_another_value' ELSE device_params.refused END",
                        (&id, socket, param.name, json(value)?, at),
                    )?;
                }
                // What the device does not report at all, it does not have.
                run(
                    self.conn,
                    "UPDATE device_params SET refused = 'device_does_not_report_it' WHERE device_id = $1 AND socket = $2 \
                     AND set_at IS NOT NULL AND desired IS NOT NULL AND refused IS NULL AND reported IS NULL \
                     AND name IN (SELECT value FROM json_array_elements_text($3::json))",
                    (&id, socket, json(&group.params().map(|param| param.name).collect::<Vec<_>>())?),
                )?;
            }
            (None, false) => {}
        }
        let held = self.held(device_id, socket)?;
        let next = params::next(group, socket, &held);
        // A query that was refused, or a set with nothing to add, must not go round for ever.
        Ok(next.filter(|next| next != call))
    }
}
