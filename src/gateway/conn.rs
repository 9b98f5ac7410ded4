//! A connection: which protocol it speaks, what is left of its last read, and the devices bound to it.

use std::net::IpAddr;

use smallvec::SmallVec;

use super::{effects::Listener, recorder::Trail, slots::Key};
use crate::model::DeviceId;

/// Devices one AP3000 socket may carry: a host with 50 sub-devices and itself, and some room.
pub(super) const DEVICES_MAX: usize = 64;
/// How long a socket does not take back an id that another process bound.
pub(super) const LOST_MS: u64 = 60_000;
/// Bytes held back while the store decides whether a device is admitted.
pub(super) const HELD_BYTES_MAX: usize = 8 * 1024;
/// Bytes received before the share of garbage is judged.
pub(super) const GARBAGE_JUDGED_BYTES: u64 = 1024;

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    /// Not decided yet.
    Detecting,
    Ap3000,
    Bkv,
}

/// Whether the devices of a connection may speak (admission `known`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Frames are handled, but for those of [`Conn::strangers`].
    Open,
    /// The store is being asked about this device; bytes wait.
    Asked(Key),
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) peer: IpAddr,
    pub(super) listener: Listener,
    pub(super) codec: Codec,
    pub(super) admission: Admission,
    /// Ids that are not admitted: their frames are counted and not answered. Judged once per connection.
    pub(super) strangers: Vec<DeviceId>,
    /// Frames of strangers.
    pub(super) stranger_frames: u32,
    /// Place in the order of accepting, over all shards.
    pub(super) accepted: u64,
    pub(super) opened_at: u64,
    /// Any byte.
    pub(super) last_rx: u64,
    /// Start of a frame whose end has not come; empty between frames.
    pub(super) tail: Vec<u8>,
    pub(super) tail_since: u64,
    /// Since when the peer does not drain; 0: it does.
    pub(super) blocked_since: u64,
    pub(super) received: u64,
    pub(super) garbage: u64,
    /// Bytes written to it.
    pub(super) sent: u64,
    /// Its last frame in the recorder.
    pub(super) trail: Trail,
    /// Epoch of its device, as far as it is known and there is one.
    pub(super) epoch: u32,
    /// The first frame of `tail` is in the recorder already.
    pub(super) first_recorded: bool,
    pub(super) devices: SmallVec<[Key; 1]>,
    /// It carries several devices, or did.
    pub(super) shared: bool,
    pub(super) iccid: Option<Box<str>>,
    /// Ids that another process bound, and until when this socket does not take them back (monotonic ms).
    lost: Vec<(DeviceId, u64)>,
    /// Live entry in the timer heap; `u64::MAX`: none.
    pub(super) armed: u64,
}

impl Conn {
    pub(super) fn new(peer: IpAddr, listener: Listener, accepted: u64, now_ms: u64) -> Self {
        Self {
            peer,
            listener,
            codec: Codec::Detecting,
            admission: Admission::Open,
            strangers: Vec::new(),
            stranger_frames: 0,
            accepted,
            opened_at: now_ms,
            last_rx: now_ms,
            tail: Vec::new(),
            tail_since: 0,
            blocked_since: 0,
            received: 0,
            garbage: 0,
            sent: 0,
            trail: Trail::default(),
            epoch: 0,
            first_recorded: false,
            devices: SmallVec::new(),
            shared: false,
            iccid: None,
            lost: Vec::new(),
            armed: u64::MAX,
        }
    }

    /// Another process bound the id. Frames that still come here do not take it back at once, else two sockets of one device
    /// would take it from each other for ever; after a while they do, because the other socket may be gone.
    pub(super) fn lose(&mut self, device_id: DeviceId, now_ms: u64) {
        self.lost.retain(|(id, until)| *id != device_id && *until > now_ms);
        self.lost.push((device_id, now_ms + LOST_MS));
    }

    /// Whether the id may not be bound here now.
    pub(super) fn has_lost(&self, device_id: DeviceId, now_ms: u64) -> bool {
        self.lost.iter().any(|(id, until)| *id == device_id && *until > now_ms)
    }

    /// Whether the store is being asked about one of its devices.
    pub(super) const fn is_asked(&self) -> bool {
        matches!(self.admission, Admission::Asked(_))
    }
}
