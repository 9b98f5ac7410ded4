//! A live device as requests see it: by this instance's memory, or by the mirror of the instance that has it. What is checked of a
//! device is checked of this, so that it is the same wherever the request came in.

use std::sync::Arc;

use crate::cluster::sessions::{RemoteDevice, Sessions};
use crate::cluster::{LinkError, ServerId};
use crate::gateway::directory::{Directory, Entry, PortCell, PortState, Score};
use crate::model::{DeviceId, Protocol};

/// What is known of a device that some instance has, or had last.
#[derive(Clone, Debug)]
pub enum Live {
    /// This one.
    Local(Arc<Entry>),
    /// Another one.
    Remote {
        /// What that one told.
        device: Box<RemoteDevice>,
        /// How long a TCP close or an ACK timeout counts against the score, ms.
        penalty_ms: i64,
    },
}

impl Live {
    /// The device.
    pub fn device_id(&self) -> DeviceId {
        match self {
            Self::Local(entry) => entry.device_id(),
            Self::Remote { device, .. } => device.device_id(),
        }
    }

    /// Its protocol.
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::Local(entry) => entry.protocol(),
            Self::Remote { device, .. } => device.protocol(),
        }
    }

    /// Whether a socket of a living instance carries it.
    pub fn connected(&self) -> bool {
        match self {
            Self::Local(entry) => entry.connected(),
            Self::Remote { device, .. } => device.connected(),
        }
    }

    /// The score and its parts at `at` (Unix ms).
    pub fn score(&self, at: i64) -> Score {
        match self {
            Self::Local(entry) => entry.score(at),
            Self::Remote { device, penalty_ms } => device.clocks().score(at, *penalty_ms),
        }
    }

    /// Whether the id is one that damaged devices fall back to: it takes no orders.
    pub fn is_fallback(&self) -> bool {
        match self {
            Self::Local(entry) => entry.is_fallback(),
            Self::Remote { device, .. } => device.is_fallback(),
        }
    }

    /// Epoch for commands that are claimed with the row that makes them: only by the instance that has the device.
    pub fn live_epoch(&self) -> Option<i64> {
        self.local().and_then(Entry::live_epoch)
    }

    /// Commands accepted for the device and not yet written.
    pub fn waiting(&self) -> u32 {
        match self {
            Self::Local(entry) => entry.waiting(),
            Self::Remote { device, .. } => device.waiting(),
        }
    }

    /// One port.
    pub fn port(&self, port_no: u16) -> Option<PortState> {
        match self {
            Self::Local(entry) => entry.port(port_no),
            Self::Remote { device, .. } => device.ports().find(|port| port.port_no == port_no),
        }
    }

    /// Its ports by number.
    pub fn ports(&self) -> Vec<PortState> {
        match self {
            Self::Local(entry) => entry.ports().iter().map(PortCell::load).collect(),
            Self::Remote { device, .. } => device.ports().collect(),
        }
    }

    /// Unix ms of the last inbound bytes; 0: not known.
    pub fn last_seen(&self) -> i64 {
        match self {
            Self::Local(entry) => entry.last_seen(),
            Self::Remote { device, .. } => device.clocks().last_seen,
        }
    }

    /// Unix ms of the last bind; 0: not known.
    pub fn connected_at(&self) -> i64 {
        match self {
            Self::Local(entry) => entry.connected_at(),
            Self::Remote { device, .. } => device.connected_at(),
        }
    }

    /// Radio signal as the device sent it.
    pub fn signal(&self) -> Option<u8> {
        match self {
            Self::Local(entry) => entry.signal(),
            Self::Remote { device, .. } => device.signal(),
        }
    }

    /// Firmware text.
    pub fn firmware(&self) -> Option<String> {
        match self {
            Self::Local(entry) => entry.firmware(),
            Self::Remote { device, .. } => device.firmware().map(str::to_owned),
        }
    }

    /// Device type, or host type (AP3000).
    pub fn device_type(&self) -> Option<u8> {
        match self {
            Self::Local(entry) => entry.device_type(),
            Self::Remote { device, .. } => device.device_type(),
        }
    }

    /// SIM number.
    pub fn iccid(&self) -> Option<String> {
        match self {
            Self::Local(entry) => entry.iccid(),
            Self::Remote { device, .. } => device.iccid().map(str::to_owned),
        }
    }

    /// The instance whose socket carries it; `own` is this one's name.
    pub fn instance<'a>(&'a self, own: &'a ServerId) -> Option<&'a ServerId> {
        match self {
            _ if !self.connected() => None,
            Self::Local(_) => Some(own),
            Self::Remote { device, .. } => Some(device.server()),
        }
    }

    /// This instance's own entry of it.
    pub fn local(&self) -> Option<&Entry> {
        match self {
            Self::Local(entry) => Some(entry),
            Self::Remote { .. } => None,
        }
    }
}

/// Where devices are: in this instance's memory, and, where there are several instances, in the mirror of the others.
pub struct Whereabouts {
    directory: Arc<Directory>,
    own: ServerId,
    mirror: Option<Arc<Sessions>>,
}

impl Whereabouts {
    /// Of one instance alone, or of one that sees the others in `mirror`. `own` is its name.
    pub const fn new(directory: Arc<Directory>, own: ServerId, mirror: Option<Arc<Sessions>>) -> Self {
        Self { directory, own, mirror }
    }

    /// This instance's name.
    pub const fn own(&self) -> &ServerId {
        &self.own
    }

    /// Whether there may be other instances.
    pub const fn is_shared(&self) -> bool {
        self.mirror.is_some()
    }

    /// The device by memory, where memory knows best: it is connected here, or there is nobody else.
    pub fn here(&self, device_id: DeviceId) -> Option<Live> {
        let entry = self.directory.find(device_id)?;
        (entry.connected() || self.mirror.is_none()).then_some(Live::Local(entry))
    }

    /// Finds a device; `None`: no instance has told of it. `then` is called once, here where memory knows, else on any thread within
    /// half a second; it must not block.
    ///
    /// It is given an error where only another instance could have the device and the mirror does not answer.
    pub fn find(&self, device_id: DeviceId, then: impl FnOnce(Result<Option<Live>, LinkError>) + Send + 'static) {
        let entry = self.directory.find(device_id);
        let Some(mirror) = &self.mirror else { return then(Ok(entry.map(Live::Local))) };
        if entry.as_ref().is_some_and(|entry| entry.connected()) {
            return then(Ok(entry.map(Live::Local)));
        }
        let judge = self.judge();
        mirror.lookup(device_id, move |found| {
            then(match (found, entry) {
                (Err(_), Some(entry)) => Ok(Some(Live::Local(entry))),
                (found, entry) => found.map(|found| judge.newer(entry, found)),
            });
        });
    }

    /// Finds devices that are not connected here, as [`Whereabouts::find`] does, a page of them at once.
    pub fn find_elsewhere(
        &self,
        devices: Vec<DeviceId>,
        then: impl FnOnce(Result<Vec<Live>, LinkError>) + Send + 'static,
    ) {
        let Some(mirror) = &self.mirror else { return then(Ok(Vec::new())) };
        let (judge, directory) = (self.judge(), Arc::clone(&self.directory));
        mirror.lookup_many(devices, move |found| {
            let newer = |found: RemoteDevice| judge.newer(directory.find(found.device_id()), Some(found));
            then(found.map(|found| found.into_iter().filter_map(newer).collect()));
        });
    }

    fn judge(&self) -> Judge {
        Judge { own: self.own.clone(), penalty_ms: self.directory.penalty_ms() }
    }
}

/// Says whose word of a device counts.
struct Judge {
    own: ServerId,
    penalty_ms: i64,
}

impl Judge {
    /// What was told under the newer epoch. What this instance told itself, it knows better, or has forgotten for good.
    fn newer(&self, entry: Option<Arc<Entry>>, found: Option<RemoteDevice>) -> Option<Live> {
        let newer = |found: &RemoteDevice| {
            found.server() != &self.own && entry.as_ref().is_none_or(|entry| entry.epoch() < found.epoch())
        };
        match found.filter(newer) {
            Some(device) => Some(Live::Remote { device: Box::new(device), penalty_ms: self.penalty_ms }),
            None => entry.map(Live::Local),
        }
    }
}
