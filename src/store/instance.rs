//! Jobs of the instances that share a store: who lives, who has which device, and who delivers to which endpoint.
//!
//! Times are the database's: clocks of instances are never compared with each other.

use crate::model::{DeviceId, ServerId};

/// What an instance says of itself or of others.
#[derive(Clone, Debug)]
pub enum InstanceJob {
    /// It is there. Dropped: the process does not start; later, its next beat says so.
    Join {
        /// The instance.
        server: ServerId,
        /// Of its build.
        version: String,
    },
    /// It is still there. Dropped: the next beat says so.
    Beat {
        /// The instance.
        server: ServerId,
        /// Devices' connections it has.
        connections: u32,
        /// It is about to leave.
        draining: bool,
    },
    /// It leaves; what it leaves behind is taken care of as if it had died. Dropped: it has died.
    Leave {
        /// The instance.
        server: ServerId,
    },
    /// Some of the devices of an instance are nobody's from now on. Dropped: submitted again.
    Release {
        /// The instance.
        server: ServerId,
    },
    /// Devices that this instance has, and that were taken for a dead one's. Dropped: their next bind says so.
    Adopt {
        /// The instance.
        server: ServerId,
        /// Each with the epoch it is bound under.
        devices: Vec<(DeviceId, i64)>,
    },
    /// Some of the devices of instances that died are nobody's from now on. Dropped: runs again in 10 s.
    Reap {
        /// Who asks; it is not dead.
        by: ServerId,
        /// Silence after which an instance is dead, ms.
        dead_after_ms: i64,
    },
}

/// What became of an [`InstanceJob`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstanceOutcome {
    /// It is known, or known again.
    Joined,
    /// Its beat was noted.
    Beaten {
        /// False: it was taken for dead, and has to join and adopt its devices again.
        known: bool,
    },
    /// It left, or its devices were adopted.
    Done,
    /// Instances whose devices are nobody's now.
    Released(Vec<Released>),
}

/// Devices that lost the instance that had them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// The instance.
    pub server: ServerId,
    /// Some of its devices.
    pub devices: Vec<DeviceId>,
    /// It had no more.
    pub all: bool,
}

/// An instance as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceRecord {
    /// Its name.
    pub server: ServerId,
    /// Unix ms.
    pub started_at: i64,
    /// Since it was heard of last, ms.
    pub beat_age_ms: i64,
    /// Of its build.
    pub version: String,
    /// It is about to leave.
    pub draining: bool,
    /// Devices' connections it had then.
    pub connections: u32,
}

/// One instance asks to be the one that delivers to an endpoint. Dropped: asked again before the lease ends.
#[derive(Clone, Debug)]
pub struct LeaseJob {
    /// Endpoint name.
    pub endpoint: String,
    /// Who asks.
    pub owner: ServerId,
    /// For how long from now on, ms; 0 gives it back.
    pub for_ms: i64,
}
