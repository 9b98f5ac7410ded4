//! Firmware rows, and the tasks that bring an image to a device.
//!
//! A task's row decides: who pushes learns from each answer whether it still may.

use super::{
    apply::Tx,
    conn::{Conn, Row, all, one, run, scalar},
    row::device_id,
};
use crate::{
    model::{DeviceId, EventType, Firmware, FtpSource, OtaMethod, OtaState, OtaTask, ota_progress},
    store::{
        FirmwareKey, NewFirmware, NewOtaTask, OtaJob, OtaOutcome, OtaStep, OtaUpdate, Outcome, StoreError,
        payload::{self, OtaObject},
    },
};

/// Times a task is taken up again without coming further before it fails.
const STALLS_MAX: u32 = 10;
/// Percent between two events of a task that goes on.
const PERCENT_PER_EVENT: u8 = 5;
/// Tasks ended per call.
const EXPIRED_MAX: u32 = 200;

/// Columns in the order [`firmware`] reads them.
macro_rules! firmware_columns {
    () => {
        "f.firmware_id, f.sha256, f.size, f.name, f.version, f.device_type, f.created_at"
    };
}
/// Columns and tables in the order [`task`] reads them; those of the image first.
macro_rules! task_columns {
    () => {
        "f.firmware_id, f.sha256, f.size, f.name, f.version, f.device_type, f.created_at, t.task_id, t.device_id, \
         t.method, t.ftp_host, t.ftp_port, t.ftp_file, t.verification, t.force, t.state, t.reason, t.packets_total, \
         t.packets_acked, t.firmware_before, t.sent_at, t.ended_at, t.created_at, t.updated_at"
    };
}
macro_rules! task_tables {
    () => {
        "ota_tasks t LEFT JOIN firmware f ON f.firmware_id = t.firmware_id"
    };
}
pub(super) use {firmware_columns, task_columns, task_tables};

pub(super) fn firmware(row: &Row<'_>) -> Result<Firmware, StoreError> {
    Ok(Firmware {
        id: row.get(0)?,
        sha256: row.get(1)?,
        size: row.get(2)?,
        name: row.get(3)?,
        version: row.get(4)?,
        device_type: row.get(5)?,
        created_at: row.get(6)?,
    })
}

pub(super) fn task(row: &Row<'_>) -> Result<OtaTask, StoreError> {
    let method: String = row.get(9)?;
    let host: Option<String> = row.get(10)?;
    let ftp = match host {
        None => None,
        Some(host) => Some(FtpSource {
            host: host.parse().map_err(|_| row.corrupt(10, &host))?,
            port: row.get(11)?,
            file: row.get(12)?,
        }),
    };
    Ok(OtaTask {
        id: row.get(7)?,
        device_id: device_id(row, 8)?,
        method: OtaMethod::from_word(&method).ok_or_else(|| row.corrupt(9, &method))?,
        firmware: if row.get::<Option<i64>>(0)?.is_some() { Some(firmware(row)?) } else { None },
        ftp,
        verification: row.get(13)?,
        force: row.get(14)?,
        state: OtaState::from_code(row.get(15)?).ok_or_else(|| row.corrupt(15, "out of range"))?,
        reason: row.get(16)?,
        packets_total: row.get(17)?,
        packets_acked: row.get(18)?,
        firmware_before: row.get(19)?,
        sent_at: row.get(20)?,
        ended_at: row.get(21)?,
        created_at: row.get(22)?,
        updated_at: row.get(23)?,
    })
}

/// One image.
pub(super) fn find_firmware(conn: Conn<'_>, key: FirmwareKey) -> Result<Option<Firmware>, StoreError> {
    match key {
        FirmwareKey::Id(id) => one(
            conn,
            concat!("SELECT ", firmware_columns!(), " FROM firmware f WHERE f.firmware_id = $1"),
            [id],
            firmware,
        ),
        FirmwareKey::Sha256(sha256) => one(
            conn,
            concat!("SELECT ", firmware_columns!(), " FROM firmware f WHERE f.sha256 = $1"),
            [sha256],
            firmware,
        ),
    }
}

/// One task.
pub(super) fn find_task(conn: Conn<'_>, id: i64) -> Result<Option<OtaTask>, StoreError> {
    one(conn, concat!("SELECT ", task_columns!(), " FROM ", task_tables!(), " WHERE t.task_id = $1"), [id], task)
}

/// The open task of a device.
pub(super) fn open_task(conn: Conn<'_>, device_id: DeviceId) -> Result<Option<OtaTask>, StoreError> {
    one(
        conn,
        concat!(
            "SELECT ",
            task_columns!(),
            " FROM ",
            task_tables!(),
            " WHERE t.device_id = $1 AND t.state IN (0, 1, 2)"
        ),
        [device_id.to_string()],
        task,
    )
}

impl Tx<'_> {
    pub(super) fn ota(&mut self, job: &OtaJob) -> Result<Outcome, StoreError> {
        let outcome = match job {
            OtaJob::AddFirmware(new) => self.add_firmware(new)?,
            OtaJob::Create(new) => return self.create_task_once(new),
            OtaJob::Cancel { id, at } => self.cancel_task(*id, *at)?,
            OtaJob::Update(update) => {
                let state = self.update_task(update)?;
                let OtaUpdate { id, device_id, ticket, .. } = *update;
                OtaOutcome::Updated { id, device_id, ticket, state }
            }
            OtaJob::Expire { at, created_before, ftp_sent_before } => {
                OtaOutcome::Expired(self.expire_tasks(*at, *created_before, *ftp_sent_before)?)
            }
        };
        Ok(Outcome::Ota(Box::new(outcome)))
    }

    fn add_firmware(&self, new: &NewFirmware) -> Result<OtaOutcome, StoreError> {
        let added = run(
            self.conn,
            "INSERT INTO firmware (sha256, size, name, version, device_type, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
            (new.sha256, new.size, &new.name, new.version, new.device_type, new.at),
        )?;
        let firmware = find_firmware(self.conn, FirmwareKey::Sha256(new.sha256))?;
        let firmware = firmware.ok_or_else(|| StoreError::Statement("an image that was added is not there".into()))?;
        Ok(OtaOutcome::Firmware { firmware, added: added > 0 })
    }

    fn create_task_once(&mut self, new: &NewOtaTask) -> Result<Outcome, StoreError> {
        if let Some(earlier) = self.earlier(new.idempotency.as_ref())? {
            return Ok(Outcome::Repeated(earlier));
        }
        let outcome = self.create_task(new)?;
        if let (Some(asked), OtaOutcome::Created(task)) = (&new.idempotency, &outcome) {
            self.answered(asked, payload::ota_accepted(task, &new.request_id, new.at))?;
        }
        Ok(Outcome::Ota(Box::new(outcome)))
    }

    fn create_task(&mut self, new: &NewOtaTask) -> Result<OtaOutcome, StoreError> {
        let id = new.device_id.to_string();
        if scalar::<i64>(self.conn, "SELECT 1 FROM devices WHERE device_id = $1", [&id])?.is_none() {
            return Ok(OtaOutcome::NoDevice);
        }
        let ftp = new.ftp.as_ref();
        let inserted = run(
            self.conn,
            "INSERT INTO ota_tasks (device_id, method, firmware_id, ftp_host, ftp_port, ftp_file, verification, force, \
             state, packets_total, created_at, updated_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, $9, $10, $10) ON CONFLICT DO NOTHING",
            (
                &id,
                new.method.as_str(),
                new.firmware_id,
                ftp.map(|ftp| ftp.host.to_string()),
                ftp.map(|ftp| ftp.port),
                ftp.map(|ftp| &ftp.file),
                new.verification,
                new.force,
                new.packets_total,
                new.at,
            ),
        )?;
        let missing = || StoreError::Statement("a task that was created is not there".into());
        let task = open_task(self.conn, new.device_id)?.ok_or_else(missing)?;
        if inserted == 0 {
            return Ok(OtaOutcome::Busy(task));
        }
        self.tell_task(&task, new.at)?;
        Ok(OtaOutcome::Created(task))
    }

    fn cancel_task(&mut self, id: i64, at: i64) -> Result<OtaOutcome, StoreError> {
        let Some(task) = find_task(self.conn, id)? else { return Ok(OtaOutcome::NoTask) };
        // Its device's lock, which only now is known: what the device told meanwhile counts.
        self.counters(task.device_id)?;
        let Some(mut task) = find_task(self.conn, id)? else { return Ok(OtaOutcome::NoTask) };
        if task.state.is_final() {
            return Ok(OtaOutcome::Ended(task));
        }
        self.end_task(&mut task, OtaState::Failed, Some("cancelled"), at)?;
        Ok(OtaOutcome::Cancelled(task))
    }

    fn update_task(&mut self, update: &OtaUpdate) -> Result<OtaState, StoreError> {
        let Some(mut task) = find_task(self.conn, update.id)? else { return Ok(OtaState::Failed) };
        let at = update.at;
        if task.state.is_final() {
            return Ok(task.state);
        }
        // What the device said stays true; what a shard decided without it is for the owner to decide. The driver has no epoch.
        let decided = matches!(update.step, OtaStep::Sent { .. } | OtaStep::Failed(_));
        let fence = Some(update.epoch).filter(|epoch| decided && *epoch > 0);
        if self.fenced(task.device_id, fence)?.is_some() {
            return Ok(task.state);
        }
        match &update.step {
            OtaStep::Sent { firmware_before } => self.sent(&mut task, firmware_before.as_deref(), at)?,
            OtaStep::Acked(packets) if *packets >= task.packets_total => {
                task.packets_acked = task.packets_total;
                self.end_task(&mut task, OtaState::Done, None, at)?;
            }
            OtaStep::Acked(packets) => self.acked(&mut task, *packets, update)?,
            OtaStep::Done => self.end_task(&mut task, OtaState::Done, None, at)?,
            OtaStep::Failed(reason) => self.end_task(&mut task, OtaState::Failed, Some(reason), at)?,
        }
        Ok(task.state)
    }

    fn sent(&mut self, task: &mut OtaTask, firmware_before: Option<&str>, at: i64) -> Result<(), StoreError> {
        let stalls: Option<u32> = scalar(self.conn, "SELECT stalls FROM ota_tasks WHERE task_id = $1", [task.id])?;
        if stalls.unwrap_or(0) >= STALLS_MAX {
            return self.end_task(task, OtaState::Failed, Some("no_progress"), at);
        }
        let was_pending = task.state == OtaState::Pending;
        if was_pending {
            task.state = OtaState::Sent;
        }
        task.sent_at = task.sent_at.or(Some(at));
        task.firmware_before = task.firmware_before.take().or_else(|| firmware_before.map(str::to_owned));
        task.updated_at = at;
        run(
            self.conn,
            "UPDATE ota_tasks SET state = $2, sent_at = $3, firmware_before = $4, updated_at = $5, stalls = stalls + 1 \
             WHERE task_id = $1",
            (task.id, task.state.code(), task.sent_at, &task.firmware_before, at),
        )?;
        if was_pending { self.tell_task(task, at) } else { Ok(()) }
    }

    fn acked(&mut self, task: &mut OtaTask, packets: u16, update: &OtaUpdate) -> Result<(), StoreError> {
        let epoch: Option<i64> =
            scalar(self.conn, "SELECT session_epoch FROM devices WHERE device_id = $1", [task.device_id.to_string()])?;
        // An older binding's word is behind what the newer one has sent since.
        if epoch != Some(update.epoch) {
            return Ok(());
        }
        let (before, state_before) = (task.progress() / PERCENT_PER_EVENT, task.state);
        task.packets_acked = packets;
        task.updated_at = update.at;
        if packets > 0 {
            task.state = OtaState::InProgress;
        }
        run(
            self.conn,
            "UPDATE ota_tasks SET state = $2, packets_acked = $3, updated_at = $4, \
             stalls = CASE WHEN $3 > packets_best THEN 0 ELSE stalls END, packets_best = greatest(packets_best, $3) \
             WHERE task_id = $1",
            (task.id, task.state.code(), packets, update.at),
        )?;
        let percent = ota_progress(packets, task.packets_total) / PERCENT_PER_EVENT;
        if task.state != state_before || percent != before { self.tell_task(task, update.at) } else { Ok(()) }
    }

    fn end_task(
        &mut self,
        task: &mut OtaTask,
        state: OtaState,
        reason: Option<&str>,
        at: i64,
    ) -> Result<(), StoreError> {
        task.state = state;
        task.reason = reason.map(str::to_owned);
        task.ended_at = Some(at);
        task.updated_at = at;
        run(
            self.conn,
            "UPDATE ota_tasks SET state = $2, reason = $3, packets_acked = $4, ended_at = $5, updated_at = $5 \
             WHERE task_id = $1",
            (task.id, state.code(), reason, task.packets_acked, at),
        )?;
        self.tell_task(task, at)
    }

    fn expire_tasks(&mut self, at: i64, created_before: i64, ftp_sent_before: i64) -> Result<Vec<OtaTask>, StoreError> {
        let due = all(
            self.conn,
            concat!(
                "SELECT ",
                task_columns!(),
                " FROM ",
                task_tables!(),
                " WHERE t.state IN (0, 1, 2) AND (t.created_at < $1 OR t.method = 'ftp' AND t.sent_at < $2) LIMIT $3"
            ),
            (created_before, ftp_sent_before, EXPIRED_MAX),
            task,
        )?;
        let mut ended = Vec::with_capacity(due.len());
        for task in due {
            if !self.lock_device(task.device_id)? {
                continue;
            }
            let Some(mut task) = find_task(self.conn, task.id)?.filter(|task| !task.state.is_final()) else { continue };
            let reason = if task.method == OtaMethod::Ftp && task.sent_at.is_some() { "no_change" } else { "expired" };
            self.end_task(&mut task, OtaState::Failed, Some(reason), at)?;
            ended.push(task);
        }
        Ok(ended)
    }

    fn tell_task(&mut self, task: &OtaTask, at: i64) -> Result<(), StoreError> {
        self.device_event(task.device_id, EventType::OtaProgress, &OtaObject::from(task), at)
    }
}
