//! Anomalies: from where something is wrong to the list, with the frames that led to it.
//!
//! What a connection did is listed at once, because it may be closed next. What a device did is noted, and listed when the input is
//! through: a device knows no connection's frames.

use super::{Core, Cx};
use crate::{
    gateway::{
        CloseReason, ConnId, Now,
        anomaly::{ANOMALY_FRAMES_MAX, Anomaly, Noted, Subject},
        conn::Conn,
        slots::Key,
    },
    model::{DeviceId, Origin},
    store::{Settled, SettlementKey},
    telemetry::label::AnomalyKind,
};

/// AP3000 start mode of orders made by the server.
const ONLINE: u8 = 1;

impl Cx<'_> {
    /// A device did something wrong.
    pub(in crate::gateway) fn anomaly(
        &mut self,
        device_id: DeviceId,
        kind: AnomalyKind,
        detail: impl FnOnce() -> String,
    ) {
        self.shared.metrics.anomalies[kind].inc();
        if self.shared.anomalies.admit(self.now, Subject::Device(device_id), kind) {
            self.shared.anomalies.note(Noted { device_id, kind, detail: detail() });
        }
    }

    /// Says where a settlement did not go as settlements do.
    pub(super) fn judge_settled(&mut self, settled: &Settled) {
        let (device_id, names_order) = match settled.key {
            SettlementKey::Ap3000 { device_id, start_mode, order_ref, .. } => {
                (device_id, (start_mode == ONLINE).then_some(order_ref))
            }
            SettlementKey::Bkv { device_id, .. } => (device_id, None),
        };
        if settled.quarantined {
            return self.anomaly(device_id, AnomalyKind::SettlementQuarantined, || {
                "the settlement could not be applied; its bytes are in settlement_quarantine".to_owned()
            });
        }
        if !settled.stored {
            return;
        }
        let Some(order) = &settled.order else {
            return self.anomaly(device_id, AnomalyKind::SettlementOrphan, || {
                "no order of the device takes the settlement".to_owned()
            });
        };
        match (names_order, order.settlement_match.as_deref()) {
            (Some(order_ref), _) if order.origin == Origin::Device => {
                self.anomaly(device_id, AnomalyKind::SettlementOrphan, || {
                    format!(
                        "the settlement names order {:?}, which is none of the device's; kept as {}",
                        order_ref.escape_ascii().to_string(),
                        order.order_no
                    )
                });
            }
            (_, Some(matched @ ("inferred" | "recent"))) => {
                self.anomaly(device_id, AnomalyKind::SettlementMismatch, || {
                    let how = if matched == "inferred" { "by its times" } else { "among those that had ended" };
                    format!("the settlement fits no open order by its number; order {} was found {how}", order.order_no)
                });
            }
            _ => {}
        }
    }
}

impl Core {
    /// A connection did something wrong.
    pub(super) fn anomaly_on(&mut self, now: Now, key: Key, kind: AnomalyKind, detail: impl FnOnce() -> String) {
        self.shared.metrics.anomalies[kind].inc();
        let Some(conn) = self.conns.get(key) else { return };
        let device_id = match (&*conn.devices, conn.seldom().strangers.as_slice()) {
            ([device], _) => self.devices.get(*device).map(|device| device.id),
            ([], [stranger]) => Some(*stranger),
            _ => None,
        };
        let subject = device_id.map_or_else(|| Subject::Peer(conn.peer()), Subject::Device);
        if !self.shared.anomalies.admit(now, subject, kind) {
            return;
        }
        self.list_anomaly(now, device_id, Some(key), kind, detail());
    }

    /// Lists what devices did wrong during this input.
    #[inline]
    pub(super) fn list_noted(&mut self, now: Now) {
        if self.shared.anomalies.has_noted() {
            self.list_all_noted(now);
        }
    }

    #[cold]
    fn list_all_noted(&mut self, now: Now) {
        for Noted { device_id, kind, detail } in self.shared.anomalies.take_noted() {
            let conn = self.key_of(device_id).and_then(|key| self.devices.get(key)).and_then(|device| device.conn);
            self.list_anomaly(now, Some(device_id), conn, kind, detail);
        }
    }

    fn list_anomaly(
        &mut self,
        now: Now,
        device_id: Option<DeviceId>,
        conn: Option<Key>,
        kind: AnomalyKind,
        detail: String,
    ) {
        let peer = conn.and_then(|key| self.conns.get(key)).map(Conn::peer);
        let conn = conn.map(ConnId::from);
        let frames = self.recall(device_id, conn, ANOMALY_FRAMES_MAX).frames;
        self.shared.anomalies.push(Anomaly {
            id: 0,
            at: now.unix_ms,
            last_at: now.unix_ms,
            count: 1,
            device_id,
            conn,
            peer,
            kind,
            detail,
            frames,
        });
    }

    /// The anomaly that ends a connection for this reason.
    pub(super) const fn closed_by(reason: CloseReason) -> Option<(AnomalyKind, &'static str)> {
        match reason {
            CloseReason::Garbage => Some((AnomalyKind::GarbageClosed, "too large a share of its bytes was no frame")),
            CloseReason::WriteOverflow => {
                Some((AnomalyKind::WriteOverflow, "more waited to be written to it than is kept for a peer"))
            }
            CloseReason::Peer
            | CloseReason::Io
            | CloseReason::Idle
            | CloseReason::DetectTimeout
            | CloseReason::UnknownProtocol
            | CloseReason::WriteStalled
            | CloseReason::Replaced
            | CloseReason::NotAdmitted
            | CloseReason::LimitTotal
            | CloseReason::LimitPerIp
            | CloseReason::Drain
            | CloseReason::Admin => None,
        }
    }
}
