//! A connection: which protocol it speaks, what is left of its last read, and the devices bound to it.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv6Addr},
};

use super::{effects::Listener, few::Keys, iccid::Iccid, recorder::Trail, slots::Key};
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

/// Bytes that wait for more, or for the store's answer.
#[derive(Debug)]
pub(super) struct Tail {
    /// At least one.
    pub(super) bytes: Vec<u8>,
    /// When the first of them came, or became the first (monotonic ms).
    pub(super) since: u64,
}

#[derive(Debug)]
pub(super) struct Conn {
    peer: Ipv6Addr,
    pub(super) listener: Listener,
    pub(super) codec: Codec,
    /// Place in the order of accepting, over all shards.
    pub(super) accepted: u64,
    pub(super) opened_at: u64,
    /// Any byte.
    pub(super) last_rx: u64,
    /// Start of a frame whose end has not come; nothing between frames.
    pub(super) tail: Option<Box<Tail>>,
    pub(super) received: u64,
    /// Bytes written to it.
    pub(super) sent: u64,
    /// Its last frame in the recorder.
    pub(super) trail: Trail,
    /// Epoch of its device, as far as it is known and there is one.
    pub(super) epoch: u32,
    /// The first frame of `tail` is in the recorder already.
    pub(super) first_recorded: bool,
    pub(super) devices: Keys,
    /// It carries several devices, or did.
    pub(super) shared: bool,
    /// SIM number that its module said; one of another form is kept with what is [seldom](Conn::seldom).
    iccid: Option<Iccid>,
    /// What most connections do not have.
    seldom: Option<Box<Seldom>>,
    /// Live entry in the timer heap; `u64::MAX`: none.
    pub(super) armed: u64,
}

/// Of a connection whose devices are not all admitted, whose peer sends garbage or does not drain, or that lost a device.
#[derive(Debug, Default)]
pub(super) struct Seldom {
    /// The store is being asked about this device (admission `known`); bytes wait.
    pub(super) asked: Option<Key>,
    /// Ids that are not admitted: their frames are counted and not answered. Judged once per connection.
    pub(super) strangers: Vec<DeviceId>,
    /// Frames of strangers.
    pub(super) stranger_frames: u32,
    /// Since when the peer does not drain; 0: it does.
    pub(super) blocked_since: u64,
    /// Bytes that were no frames.
    pub(super) garbage: u64,
    /// Ids that another process bound, and until when this socket does not take them back (monotonic ms).
    lost: Vec<(DeviceId, u64)>,
    iccid: Option<Box<str>>,
}

/// What a connection without any of it shows.
static NONE: Seldom = Seldom {
    asked: None,
    strangers: Vec::new(),
    stranger_frames: 0,
    blocked_since: 0,
    garbage: 0,
    lost: Vec::new(),
    iccid: None,
};

impl Seldom {
    fn is_empty(&self) -> bool {
        let Self { asked, strangers, stranger_frames, blocked_since, garbage, lost, iccid } = self;
        asked.is_none()
            && strangers.is_empty()
            && (*stranger_frames, *blocked_since, *garbage) == (0, 0, 0)
            && lost.is_empty()
            && iccid.is_none()
    }
}

impl Conn {
    pub(super) fn new(peer: IpAddr, listener: Listener, accepted: u64, now_ms: u64) -> Self {
        Self {
            peer: match peer {
                IpAddr::V4(peer) => peer.to_ipv6_mapped(),
                IpAddr::V6(peer) => peer,
            },
            listener,
            codec: Codec::Detecting,
            accepted,
            opened_at: now_ms,
            last_rx: now_ms,
            tail: None,
            received: 0,
            sent: 0,
            trail: Trail::default(),
            epoch: 0,
            first_recorded: false,
            devices: Keys::default(),
            shared: false,
            iccid: None,
            seldom: None,
            armed: u64::MAX,
        }
    }

    /// Its address.
    pub(super) fn peer(&self) -> IpAddr {
        self.peer.to_canonical()
    }

    /// What most connections do not have, to look at.
    pub(super) fn seldom(&self) -> &Seldom {
        self.seldom.as_deref().unwrap_or(&NONE)
    }

    /// What most connections do not have, to put something in.
    pub(super) fn seldom_mut(&mut self) -> &mut Seldom {
        self.seldom.get_or_insert_default()
    }

    /// Notes since when the peer does not drain; 0: it does again.
    pub(super) fn set_blocked(&mut self, since: u64) {
        // Most have nothing to put it in, and nothing to take out.
        if self.seldom().blocked_since != since {
            self.seldom_mut().blocked_since = since;
            self.tidy();
        }
    }

    /// The store is being asked about a device, or about none any more.
    pub(super) fn set_asked(&mut self, device: Option<Key>) {
        if self.seldom().asked != device {
            self.seldom_mut().asked = device;
            self.tidy();
        }
    }

    fn tidy(&mut self) {
        if self.seldom().is_empty() {
            self.seldom = None;
        }
    }

    /// SIM number that its module said.
    pub(super) fn iccid(&self) -> Option<Cow<'_, str>> {
        let text = self.seldom().iccid.as_deref();
        self.iccid.map(|iccid| Cow::Owned(iccid.text())).or_else(|| text.map(Cow::Borrowed))
    }

    pub(super) fn set_iccid(&mut self, text: &str) {
        self.iccid = Iccid::pack(text.as_bytes());
        if self.iccid.is_none() || self.seldom().iccid.is_some() {
            self.seldom_mut().iccid = self.iccid.is_none().then(|| text.into());
        }
    }

    /// Another process bound the id. Frames that still come here do not take it back at once, else two sockets of one device
    /// would take it from each other for ever; after a while they do, because the other socket may be gone.
    pub(super) fn lose(&mut self, device_id: DeviceId, now_ms: u64) {
        let lost = &mut self.seldom_mut().lost;
        lost.retain(|(id, until)| *id != device_id && *until > now_ms);
        lost.push((device_id, now_ms + LOST_MS));
    }

    /// Whether the id may not be bound here now.
    pub(super) fn has_lost(&self, device_id: DeviceId, now_ms: u64) -> bool {
        self.seldom().lost.iter().any(|(id, until)| *id == device_id && *until > now_ms)
    }

    /// Whether the store is being asked about one of its devices.
    pub(super) fn is_asked(&self) -> bool {
        self.seldom().asked.is_some()
    }
}
