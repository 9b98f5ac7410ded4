//! Network lists: rows of `gateway_sockets`, their ports, and the one command under way. [`crate::gateway::network`] decides,
//! this writes.

use super::{
    apply::Tx,
    conn::{Conn, Row, all, one, run},
};
use crate::{
    gateway::network::{Answer, Listed, NetworkList, Refresh, SocketState},
    model::{Command, CommandBody, CommandState, DeviceCall, DeviceId, GatewayCall, OrderNo, port_of_socket},
    store::{NetworkChange, NetworkJob, NetworkTold, Networked, Outcome, StoreError, payload},
};

/// Columns in the order [`listed`] reads them.
macro_rules! socket_columns {
    () => {
        "socket, serial, uid, state, refused, confirmed_at, updated_at"
    };
}
pub(super) use socket_columns;

/// The list of a device; `None`: no such device.
pub(super) fn find(conn: Conn<'_>, device_id: DeviceId) -> Result<Option<NetworkList>, StoreError> {
    let id = device_id.to_string();
    let list = one(conn, "SELECT network_channel, network_refresh FROM devices WHERE device_id = $1", [&id], |row| {
        Ok(NetworkList { channel: row.get(0)?, refresh: refresh(row.get(1)?), sockets: Vec::new() })
    })?;
    let Some(mut list) = list else { return Ok(None) };
    list.sockets = sockets(conn, device_id)?;
    Ok(Some(list))
}

/// The sockets of a list, by number.
pub(super) fn sockets(conn: Conn<'_>, device_id: DeviceId) -> Result<Vec<Listed>, StoreError> {
    let sql = concat!("SELECT ", socket_columns!(), " FROM gateway_sockets WHERE device_id = $1 ORDER BY socket");
    all(conn, sql, [device_id.to_string()], listed)
}

/// As the column says.
pub(super) const fn refresh(column: u8) -> Refresh {
    match column {
        0 => Refresh::Done,
        1 => Refresh::Wanted,
        _ => Refresh::Failed,
    }
}

pub(super) fn listed(row: &Row<'_>) -> Result<Listed, StoreError> {
    let state = row.text(3)?;
    let state = SocketState::ALL.into_iter().find(|known| known.as_str() == state);
    Ok(Listed {
        socket: row.get(0)?,
        mac: row.get(1)?,
        uid: row.get(2)?,
        state: state.ok_or_else(|| StoreError::Corrupt("a socket's state is unknown".into()))?,
        refused: row.get(4)?,
        confirmed_at: row.get(5)?,
        updated_at: row.get(6)?,
    })
}

/// A network command that has not ended.
struct UnderWay {
    id: i64,
    body: CommandBody,
    written: bool,
}

impl Tx<'_> {
    /// Changes a network list, or repeats what was answered.
    pub(super) fn network_once(&mut self, job: &NetworkJob) -> Result<Outcome, StoreError> {
        if let Some(earlier) = self.earlier(job.idempotency.as_ref())? {
            return Ok(Outcome::Repeated(earlier));
        }
        let networked = self.network_change(job)?;
        if let (Some(asked), Networked::Changed(told)) = (&job.idempotency, &networked) {
            self.answered(asked, payload::network_accepted(job.device_id, &told.list, &job.request_id, job.at))?;
        }
        Ok(Outcome::Networked(networked))
    }

    fn network_change(&mut self, job: &NetworkJob) -> Result<Networked, StoreError> {
        let NetworkJob { device_id, at, .. } = *job;
        let Some(before) = find(self.conn, device_id)? else { return Ok(Networked::NoDevice) };
        let mut list = before.clone();
        match &job.change {
            NetworkChange::Replace { channel, sockets } => {
                let present = self.sockets_with_ports(device_id)?;
                list.replace(*channel, sockets, &present, at);
            }
            NetworkChange::Add(given) => {
                if let Err(taken) = list.add(given, at) {
                    return Ok(Networked::Taken(taken));
                }
            }
            NetworkChange::Remove(socket) => {
                if !list.remove(*socket, at) {
                    return Ok(Networked::NotListed);
                }
            }
        }
        let wanted: Vec<u8> = list.wanted().collect();
        let removed: Vec<u8> =
            list.sockets.iter().filter(|listed| !listed.is_wanted()).map(|listed| listed.socket).collect();
        if let Some((socket, port_no, holder)) = self.holder_among(device_id, &removed)? {
            return Ok(Networked::Busy { socket, port_no, holder });
        }
        self.save(device_id, &before, &list)?;
        self.set_ports(device_id, &wanted, &removed)?;
        let withdrawn = self.withdraw_unwanted(device_id, &list, at)?;
        self.network_advance(device_id, &list, None, at)?;
        Ok(Networked::Changed(Box::new(NetworkTold { device_id, list, withdrawn })))
    }

    /// Socket numbers that the device's ports show.
    fn sockets_with_ports(&self, device_id: DeviceId) -> Result<Vec<u8>, StoreError> {
        all(
            self.conn,
            "SELECT DISTINCT greatest(socket, 1) FROM ports WHERE device_id = $1 AND socket IS NOT NULL ORDER BY 1",
            [device_id.to_string()],
            |row| row.get(0),
        )
    }

    /// An order that still holds a port of one of these sockets.
    fn holder_among(&self, device_id: DeviceId, sockets: &[u8]) -> Result<Option<(u8, u16, OrderNo)>, StoreError> {
        let socket_of = |port_no: u16| u8::try_from(port_no.div_ceil(2)).unwrap_or(0);
        let holders = self.held_by(device_id)?.into_iter();
        let mut held = holders.map(|order| (socket_of(order.port_no), order.port_no, order.order_no));
        Ok(held.find(|(socket, ..)| sockets.contains(socket)))
    }

    fn save(&self, device_id: DeviceId, before: &NetworkList, list: &NetworkList) -> Result<(), StoreError> {
        let id = device_id.to_string();
        if (before.channel, before.refresh) != (list.channel, list.refresh) {
            run(
                self.conn,
                "UPDATE devices SET network_channel = $2, network_refresh = $3 WHERE device_id = $1",
                (&id, list.channel, list.refresh as u8),
            )?;
        }
        for gone in before.sockets.iter().filter(|old| list.sockets.iter().all(|new| new.socket != old.socket)) {
            run(self.conn, "DELETE FROM gateway_sockets WHERE device_id = $1 AND socket = $2", (&id, gone.socket))?;
        }
        for changed in list.sockets.iter().filter(|new| !before.sockets.contains(new)) {
            run(
                self.conn,
                "INSERT INTO gateway_sockets (device_id, socket, serial, uid, state, refused, confirmed_at, updated_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (device_id, socket) DO UPDATE SET \
                 serial = excluded.serial, uid = excluded.uid, state = excluded.state, refused = excluded.refused, \
                 confirmed_at = excluded.confirmed_at, updated_at = excluded.updated_at",
                (
                    &id,
                    changed.socket,
                    changed.mac,
                    &changed.uid,
                    changed.state.as_str(),
                    &changed.refused,
                    changed.confirmed_at,
                    changed.updated_at,
                ),
            )?;
        }
        Ok(())
    }

    /// Ports come into being with their sockets and go with them.
    fn set_ports(&self, device_id: DeviceId, wanted: &[u8], removed: &[u8]) -> Result<(), StoreError> {
        let id = device_id.to_string();
        if !wanted.is_empty() || !removed.is_empty() {
            run(self.conn, "UPDATE devices SET networked = TRUE WHERE device_id = $1", [&id])?;
            run(self.conn, "UPDATE ports SET socket = 1 WHERE device_id = $1 AND socket = 0", [&id])?;
        }
        for socket in removed {
            run(self.conn, "DELETE FROM ports WHERE device_id = $1 AND socket = $2", (&id, socket))?;
        }
        for &socket in wanted {
            for hole in 0..=1 {
                run(
                    self.conn,
                    "INSERT INTO ports (device_id, port_no, socket, hole, status, raw_status, power_dw, current_ma, \
                     voltage_dv, energy_wh, charged_seconds, updated_at) \
                     VALUES ($1, $2, $3, $4, 5, 0, 0, 0, 0, 0, 0, 0) ON CONFLICT DO NOTHING",
                    (&id, port_of_socket(socket, hole), socket, hole),
                )?;
            }
        }
        Ok(())
    }

    /// The network command under way.
    fn under_way(&self, device_id: DeviceId, at: i64) -> Result<Option<UnderWay>, StoreError> {
        one(
            self.conn,
            "SELECT q.id, q.body, q.state = 'written' FROM devices d JOIN outbound_queue q ON q.id = d.network_command \
             WHERE d.device_id = $1 \
             AND (q.state = 'written' OR (q.state IN ('queued', 'claimed') AND q.not_after > $2))",
            (device_id.to_string(), at),
            |row| {
                let body = row.text(1)?;
                let body = serde_json::from_str(body);
                let body = body.map_err(|_| StoreError::Corrupt("the body of a network command".into()))?;
                Ok(UnderWay { id: row.get(0)?, body, written: row.get(2)? })
            },
        )
    }

    /// Takes back a command that is not written yet and that the list does not want any more.
    fn withdraw_unwanted(&self, device_id: DeviceId, list: &NetworkList, at: i64) -> Result<Vec<i64>, StoreError> {
        let Some(command) = self.under_way(device_id, at)? else { return Ok(Vec::new()) };
        let wanted = of_network(&command.body).is_some_and(|call| list.still_wants(call));
        if command.written || wanted {
            return Ok(Vec::new());
        }
        self.end_network_command(command.id, CommandState::Withdrawn, "superseded", at)?;
        Ok(vec![command.id])
    }

    fn end_network_command(&self, id: i64, state: CommandState, reason: &str, at: i64) -> Result<(), StoreError> {
        run(
            self.conn,
            "UPDATE outbound_queue SET state = $2, reason = $3, updated_at = $4 \
             WHERE id = $1 AND state IN ('queued', 'claimed', 'written')",
            (id, state.as_str(), reason, at),
        )?;
        Ok(())
    }

    /// Queues the next command, unless one is under way: its answer says what comes next.
    fn network_advance(
        &mut self,
        device_id: DeviceId,
        list: &NetworkList,
        epoch: Option<i64>,
        at: i64,
    ) -> Result<Option<Command>, StoreError> {
        if self.under_way(device_id, at)?.is_some() {
            return Ok(None);
        }
        let Some(call) = list.next() else { return Ok(None) };
        let command = self.follow_up(device_id, DeviceCall::Gateway(call), epoch, at)?;
        run(
            self.conn,
            "UPDATE devices SET network_command = (SELECT max(id) FROM outbound_queue WHERE device_id = $1) \
             WHERE device_id = $1",
            [device_id.to_string()],
        )?;
        Ok(command)
    }

    /// Puts what a gateway that is there again lacks among the commands claimed for it.
    pub(super) fn network_at_bind(
        &mut self,
        device_id: DeviceId,
        before: &NetworkList,
        commands: &mut Vec<Command>,
        epoch: i64,
        at: i64,
    ) -> Result<(), StoreError> {
        if let Some(command) = self.under_way(device_id, at)? {
            let claimed = commands.iter().any(|claimed| claimed.id == command.id);
            let wanted = of_network(&command.body).is_some_and(|call| before.still_wants(call));
            if claimed && wanted {
                return Ok(());
            }
            // Written or not, it went with its connection, and is not what the list wants now.
            self.end_network_command(command.id, CommandState::Withdrawn, "superseded", at)?;
            commands.retain(|claimed| claimed.id != command.id);
        }
        let mut list = before.clone();
        list.at_bind();
        self.save(device_id, before, &list)?;
        commands.extend(self.network_advance(device_id, &list, Some(epoch), at)?);
        Ok(())
    }

    /// A network command came to its end; returns the next, claimed where the device's epoch is live.
    pub(super) fn network_answered(
        &mut self,
        ended: &Command,
        call: &GatewayCall,
        state: CommandState,
        at: i64,
    ) -> Result<Option<Command>, StoreError> {
        let device_id = ended.device_id;
        let current: Option<Option<i64>> = one(
            self.conn,
            "SELECT network_command FROM devices WHERE device_id = $1",
            [device_id.to_string()],
            |row| row.get(0),
        )?;
        // Another has taken its place: what this one did is not what the list wants.
        let Some(before) = find(self.conn, device_id)?.filter(|_| current.flatten() == Some(ended.id)) else {
            return Ok(None);
        };
        let answer = match state {
            CommandState::Acked => Answer::Ok,
            CommandState::Refused => Answer::No("device_refused"),
            CommandState::Expired => Answer::No("not_written_in_time"),
            _ => Answer::No("no_reply"),
        };
        let mut list = before.clone();
        list.answered(call, answer, at);
        self.save(device_id, &before, &list)?;
        self.network_advance(device_id, &list, Some(ended.epoch), at)
    }
}

/// The network command in a body, if it is one.
pub(super) fn of_network(body: &CommandBody) -> Option<&GatewayCall> {
    match body {
        CommandBody::Call { call: DeviceCall::Gateway(call) } if call.is_network() => Some(call),
        _ => None,
    }
}
