//! Jobs of firmware and its way to devices.

use super::Idempotency;
use crate::model::{DeviceId, Firmware, FtpSource, OtaMethod, OtaState, OtaTask};

/// What changes firmware or an update. Dropped: an API call answers `NOT_READY`; a shard submits again after 1 s; the driver's
/// next look expires what is due.
#[derive(Clone, Debug)]
pub enum OtaJob {
    /// An image is in its file.
    AddFirmware(NewFirmware),
    /// A third party wants a device updated.
    Create(NewOtaTask),
    /// A third party wants an update ended.
    Cancel {
        /// The task.
        id: i64,
        /// Now, Unix ms.
        at: i64,
    },
    /// A shard, or whoever loads images, tells of a task.
    Update(OtaUpdate),
    /// Ends what is overdue.
    Expire {
        /// Now, Unix ms.
        at: i64,
        /// Open tasks that were created before this.
        created_before: i64,
        /// Tasks by FTP whose file was named to the device before this.
        ftp_sent_before: i64,
    },
}

/// An image in its file.
#[derive(Clone, Debug)]
pub struct NewFirmware {
    /// Of the image. One that is stored already stays as it is.
    pub sha256: [u8; 32],
    /// Bytes.
    pub size: u32,
    /// Chosen by the operator.
    pub name: String,
    /// Hundredths.
    pub version: Option<u16>,
    /// Device type.
    pub device_type: Option<u8>,
    /// Now, Unix ms.
    pub at: i64,
}

/// An update to begin; the method can send this image.
#[derive(Clone, Debug)]
pub struct NewOtaTask {
    /// The device; it must have a row.
    pub device_id: DeviceId,
    /// How.
    pub method: OtaMethod,
    /// Row of the image, where the gateway sends one.
    pub firmware_id: Option<i64>,
    /// Where the device fetches it from, where it does.
    pub ftp: Option<FtpSource>,
    /// A verification packet follows.
    pub verification: bool,
    /// Also while an order is active.
    pub force: bool,
    /// Packets in all; 0 where none are sent.
    pub packets_total: u16,
    /// Now, Unix ms.
    pub at: i64,
    /// Request that made it.
    pub request_id: String,
    /// As [`NewOrder::idempotency`](super::NewOrder::idempotency); the answer is
    /// [`payload::ota_accepted`](super::payload::ota_accepted).
    pub idempotency: Option<Idempotency>,
}

/// A task moves on.
#[derive(Clone, Debug)]
pub struct OtaUpdate {
    /// The task.
    pub id: i64,
    /// Its device.
    pub device_id: DeviceId,
    /// Epoch of the binding that tells of it.
    pub epoch: i64,
    /// Chosen by who submits it; comes back.
    pub ticket: u64,
    /// What happened.
    pub step: OtaStep,
    /// When, Unix ms.
    pub at: i64,
}

/// What happened to a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OtaStep {
    /// Its first frame since it was begun or taken up again is on the wire. A task that is taken up again and again without
    /// coming further fails.
    Sent {
        /// The device's firmware at that time.
        firmware_before: Option<String>,
    },
    /// The device has so many packets; with all of them it is done. 0: it starts over.
    Acked(u16),
    /// Done.
    Done,
    /// Failed, one word.
    Failed(&'static str),
}

/// What an [`OtaJob`] came to.
#[derive(Clone, Debug)]
pub enum OtaOutcome {
    /// Of [`OtaJob::AddFirmware`].
    Firmware {
        /// The image.
        firmware: Firmware,
        /// False: it was stored before.
        added: bool,
    },
    /// Of [`OtaJob::Create`]: committed.
    Created(OtaTask),
    /// Of [`OtaJob::Create`]: this task of the device is open.
    Busy(OtaTask),
    /// Of [`OtaJob::Create`]: there is no such device.
    NoDevice,
    /// Of [`OtaJob::Cancel`]: as it is now.
    Cancelled(OtaTask),
    /// Of [`OtaJob::Cancel`]: it had ended before.
    Ended(OtaTask),
    /// Of [`OtaJob::Cancel`]: there is no such task.
    NoTask,
    /// Of [`OtaJob::Update`].
    Updated {
        /// As submitted.
        id: i64,
        /// As submitted.
        device_id: DeviceId,
        /// As submitted.
        ticket: u64,
        /// Where the task stands now; [`OtaState::Failed`] too where it is gone.
        state: OtaState,
    },
    /// Of [`OtaJob::Expire`]: what it ended.
    Expired(Vec<OtaTask>),
}

/// Restricts a list of tasks.
#[derive(Clone, Debug, Default)]
pub struct OtaFilter {
    /// Only this device.
    pub device_id: Option<DeviceId>,
    /// Only this state.
    pub state: Option<OtaState>,
}

/// How an image is named by a third party.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirmwareKey {
    /// By its row.
    Id(i64),
    /// By its hash.
    Sha256([u8; 32]),
}
