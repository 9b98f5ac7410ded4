//! The directory: which shard owns a device, and its live state. The one structure all threads share.
//!
//! ```text
//! device id ──▶ Arc<Entry> { owner + generation, epoch, clocks, ports }      64 striped maps
//!                 ▲ written by the owner shard alone, relaxed atomics, no lock
//!                 └ read by API threads and by other shards at bind
//! ```
//!
//! A stripe's lock is taken to find, add or remove an entry, for less than a microsecond; an entry's fields never need one.
//! A reader may see one field of a port newer than another: good for showing and for refusing early. Whether a port is free is
//! decided by the store's unique index, never here.

use std::{
    borrow::Borrow,
    hash::{BuildHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence},
    },
};

use crossbeam::queue::SegQueue;
use parking_lot::RwLock;
use rustc_hash::{FxBuildHasher, FxHashSet};

use super::{ShardId, iccid::Iccid};
use crate::{
    model::{DeviceDetails, DeviceId, HostValues, OrderNo, PortStatus, Protocol},
    store::PortRecord,
};

const STRIPES: usize = 64;
const NO_SHARD: u16 = u16::MAX;
/// Changed devices that may wait to be looked at.
const CHANGES_MAX: usize = 65_536;

/// Found by the id that the entry holds itself.
type Stripe = RwLock<FxHashSet<Known>>;

/// An entry as its stripe keeps it.
#[derive(Debug)]
struct Known(Arc<Entry>);

impl Borrow<DeviceId> for Known {
    fn borrow(&self) -> &DeviceId {
        &self.0.device_id
    }
}

impl Hash for Known {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.device_id.hash(state);
    }
}

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        self.0.device_id == other.0.device_id
    }
}

impl Eq for Known {}

/// All devices this process knows.
#[derive(Debug)]
pub struct Directory {
    stripes: Box<[Stripe]>,
    online: AtomicI64,
    timeout_ms: i64,
    common: Arc<Common>,
}

/// What all entries of a directory share.
#[derive(Debug)]
struct Common {
    penalty_ms: i64,
    changes: Option<Arc<Changes>>,
}

impl Default for Directory {
    fn default() -> Self {
        Self::new(60_000, 300_000)
    }
}

impl Directory {
    /// An empty directory. `timeout_ms`: silence after which a device is offline, until its shard sets its protocol's own.
    /// `penalty_ms`: how long a TCP close or an ACK timeout counts against the score.
    pub fn new(timeout_ms: i64, penalty_ms: i64) -> Self {
        let stripes = (0..STRIPES).map(|_| RwLock::default()).collect();
        let common = Arc::new(Common { penalty_ms, changes: None });
        Self { stripes, online: AtomicI64::new(0), timeout_ms, common }
    }

    /// The same, with a list of the devices whose state changed in a way that others are to see soon.
    #[must_use]
    pub fn with_changes(mut self) -> Self {
        let changes = Some(Arc::new(Changes::new(CHANGES_MAX)));
        self.common = Arc::new(Common { penalty_ms: self.common.penalty_ms, changes });
        self
    }

    /// The list, where there is one.
    pub fn changes(&self) -> Option<&Arc<Changes>> {
        self.common.changes.as_ref()
    }

    /// How long a TCP close or an ACK timeout counts against the score, ms.
    pub fn penalty_ms(&self) -> i64 {
        self.common.penalty_ms
    }

    fn stripe(&self, device_id: DeviceId) -> &Stripe {
        let hash = FxBuildHasher.hash_one(device_id);
        &self.stripes[(hash >> 58) as usize % STRIPES]
    }

    /// The device's entry.
    pub fn find(&self, device_id: DeviceId) -> Option<Arc<Entry>> {
        self.stripe(device_id).read().get(&device_id).map(|known| Arc::clone(&known.0))
    }

    /// Binds a device to a connection of `shard`. `accepted` is the connection's place in the order of accepting: the newest
    /// connection owns the device, an older one never takes it back while the newer lives.
    ///
    /// # Errors
    /// A newer connection is bound.
    pub fn bind(
        &self,
        device_id: DeviceId,
        protocol: Protocol,
        shard: ShardId,
        accepted: u64,
    ) -> Result<Taken, NewerConnection> {
        let mut stripe = self.stripe(device_id).write();
        let entry = match stripe.get(&device_id) {
            Some(Known(entry)) => Arc::clone(entry),
            None => {
                let entry = Arc::new(Entry::new(device_id, protocol, self.timeout_ms, Arc::clone(&self.common)));
                stripe.insert(Known(Arc::clone(&entry)));
                entry
            }
        };
        if entry.connected() && entry.accepted.load(Ordering::Relaxed) > accepted {
            return Err(NewerConnection);
        }
        entry.accepted.store(accepted, Ordering::Relaxed);
        let (owner, previous) = entry.take(shard);
        entry.connected.store(true, Ordering::Release);
        Ok(Taken { entry, owner, previous })
    }

    /// Forgets an entry that no shard owns.
    pub fn forget(&self, device_id: DeviceId) {
        let mut stripe = self.stripe(device_id).write();
        if stripe.get(&device_id).is_some_and(|known| known.0.owner().is_none()) {
            stripe.remove(&device_id);
        }
    }

    /// Calls `visit` for every entry, stripe by stripe.
    pub fn visit(&self, mut visit: impl FnMut(&Arc<Entry>)) {
        for stripe in &self.stripes {
            stripe.read().iter().for_each(|known| visit(&known.0));
        }
    }

    /// Devices declared online by their shards.
    pub fn online(&self) -> i64 {
        self.online.load(Ordering::Relaxed)
    }

    /// Counts a device that came online (1) or went offline (−1).
    pub fn count_online(&self, change: i64) {
        self.online.fetch_add(change, Ordering::Relaxed);
    }
}

/// Devices whose connection, ports or orders changed, each once until it is looked at. Anybody adds, one reads; no lock and no
/// system call.
#[derive(Debug)]
pub struct Changes {
    /// Grows with what waits; bounded by `devices_max`.
    devices: SegQueue<DeviceId>,
    devices_max: usize,
    /// Some found no room.
    overflow: AtomicBool,
}

impl Changes {
    const fn new(devices_max: usize) -> Self {
        Self { devices: SegQueue::new(), devices_max, overflow: AtomicBool::new(false) }
    }

    fn push(&self, device_id: DeviceId) {
        // Threads that see the last place at the same time all take it: a few more do no harm.
        if self.devices.len() < self.devices_max {
            self.devices.push(device_id);
        } else {
            self.overflow.store(true, Ordering::Release);
        }
    }

    /// Takes the next device. Its entry is [unmarked](Entry::unmark) before it is read.
    pub fn pop(&self) -> Option<DeviceId> {
        self.devices.pop()
    }

    /// Whether changes were left out since the last call: all entries are to be looked at.
    pub fn take_overflow(&self) -> bool {
        self.overflow.swap(false, Ordering::AcqRel)
    }
}

/// A device was bound.
#[derive(Debug)]
pub struct Taken {
    /// Its entry.
    pub entry: Arc<Entry>,
    /// The new owner.
    pub owner: Owner,
    /// The owner before.
    pub previous: Option<Owner>,
}

/// A connection accepted later carries the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewerConnection;

/// Who owns a device: a shard and the generation of the binding there, in one word: generation << 16 | shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(u64);

impl Owner {
    /// Owns nothing.
    pub(super) const NOBODY: Self = Self(NO_SHARD as u64);

    const fn new(shard: ShardId, generation: u64) -> Self {
        Self(generation << 16 | shard.0 as u64)
    }

    /// The shard.
    pub const fn shard(self) -> ShardId {
        ShardId(self.0 as u16)
    }

    /// Raised by one per bind, over all shards of the process; below 2^48.
    pub const fn generation(self) -> u64 {
        self.0 >> 16
    }

    fn is_shard(self) -> bool {
        self.shard().0 != NO_SHARD
    }
}

/// What a device told of itself as a host, a cabinet or a module.
#[derive(Debug, Default)]
struct Told {
    imei: Option<String>,
    module_version: Option<String>,
    host_type: Option<u8>,
    host: Option<Arc<HostValues>>,
    /// A SIM number of another form than they have.
    iccid: Option<Box<str>>,
}

/// What does not fit into atomics, under one lock: read by all, written when a device tells something new.
#[derive(Debug)]
struct Locked {
    ports: Arc<[PortCell]>,
    /// Most devices tell none of it.
    told: Option<Box<Told>>,
    iccid: Option<Iccid>,
}

/// Live state of one device.
#[derive(Debug)]
pub struct Entry {
    device_id: DeviceId,
    /// An [`Owner`].
    owner: AtomicU64,
    /// Place of the bound connection in the order of accepting.
    accepted: AtomicU64,
    /// 0 while the store has not answered the bind.
    epoch: AtomicI64,
    last_seen: AtomicI64,
    last_tcp_down: AtomicI64,
    last_ack_timeout: AtomicI64,
    connected_at: AtomicI64,
    /// Start of a minute of binds in Unix s << 24 | binds in it.
    binds: AtomicU64,
    firmware: AtomicU64,
    locked: RwLock<Locked>,
    common: Arc<Common>,
    timeout_ms: AtomicU32,
    waiting: AtomicU16,
    signal: AtomicU16,
    device_type: AtomicU16,
    protocol: AtomicU8,
    /// Declared online by an owner; survives a change of owner.
    online: AtomicBool,
    /// Whether a socket is bound right now.
    connected: AtomicBool,
    /// It is among the changed, or found no room there.
    marked: AtomicBool,
    /// What is not in the latest values yet, as bits of [`Untold`], and the two below.
    flags: AtomicU8,
}

/// BKV/GN: it addresses sockets ≥ 1.
const NETWORKED: u8 = 1 << 6;
/// Its id is one that damaged devices fall back to.
const FALLBACK: u8 = 1 << 7;

/// What a device says of itself once and not with each beat, and that is not in the latest values yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Untold(u8);

impl Untold {
    pub(super) const NOTHING: Self = Self(0);
    pub(super) const SIGNAL: Self = Self(1);
    pub(super) const FIRMWARE: Self = Self(2);
    pub(super) const ICCID: Self = Self(4);
    pub(super) const NETWORKED: Self = Self(8);
    pub(super) const DEVICE_TYPE: Self = Self(16);
    pub(super) const ALL: Self = Self(31);

    pub(super) const fn has(self, what: Self) -> bool {
        self.0 & what.0 != 0
    }
}

impl Entry {
    fn new(device_id: DeviceId, protocol: Protocol, timeout_ms: i64, common: Arc<Common>) -> Self {
        Self {
            device_id,
            owner: AtomicU64::new(Owner::NOBODY.0),
            accepted: AtomicU64::new(0),
            epoch: AtomicI64::new(0),
            last_seen: AtomicI64::new(0),
            last_tcp_down: AtomicI64::new(0),
            last_ack_timeout: AtomicI64::new(0),
            connected_at: AtomicI64::new(0),
            binds: AtomicU64::new(0),
            firmware: AtomicU64::new(0),
            locked: RwLock::new(Locked { ports: Arc::new([]), told: None, iccid: None }),
            common,
            timeout_ms: AtomicU32::new(within_u32(timeout_ms)),
            waiting: AtomicU16::new(0),
            signal: AtomicU16::new(u16::MAX),
            device_type: AtomicU16::new(u16::MAX),
            protocol: AtomicU8::new(protocol as u8),
            online: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            marked: AtomicBool::new(false),
            flags: AtomicU8::new(0),
        }
    }

    /// This is to go into the latest values.
    pub(super) fn tell(&self, what: Untold) {
        self.flags.fetch_or(what.0, Ordering::Relaxed);
    }

    /// Takes what is to go into the latest values.
    pub(super) fn take_untold(&self) -> Untold {
        match self.flags.load(Ordering::Relaxed) & Untold::ALL.0 {
            0 => Untold::NOTHING,
            // The owner before may be at it too.
            _ => Untold(self.flags.fetch_and(!Untold::ALL.0, Ordering::Relaxed) & Untold::ALL.0),
        }
    }

    /// Others are to see soon what changed.
    pub fn mark(&self) {
        if let Some(changes) = &self.common.changes
            && !self.marked.swap(true, Ordering::AcqRel)
        {
            changes.push(self.device_id);
        }
    }

    /// What changes from here on is marked again; whether something had.
    pub fn unmark(&self) -> bool {
        self.marked.swap(false, Ordering::AcqRel)
    }

    /// The device.
    pub const fn device_id(&self) -> DeviceId {
        self.device_id
    }

    /// Its protocol.
    pub fn protocol(&self) -> Protocol {
        let index = usize::from(self.protocol.load(Ordering::Relaxed));
        Protocol::ALL.get(index).copied().unwrap_or(Protocol::Bkv)
    }

    /// Sets the protocol the device's record names.
    pub fn set_protocol(&self, protocol: Protocol) {
        self.protocol.store(protocol as u8, Ordering::Relaxed);
    }

    /// The shard that owns the device, whether or not a socket is bound.
    pub fn owner(&self) -> Option<Owner> {
        Some(Owner(self.owner.load(Ordering::Acquire))).filter(|owner| owner.is_shard())
    }

    /// Makes `shard` the owner and returns it with the owner before.
    fn take(&self, shard: ShardId) -> (Owner, Option<Owner>) {
        let next = |word: u64| Owner::new(shard, Owner(word).generation() + 1).0;
        let before = self
            .owner
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| Some(next(word)))
            .unwrap_or_else(|word| word);
        self.epoch.store(0, Ordering::Release);
        (Owner(next(before)), Some(Owner(before)).filter(|owner| owner.is_shard()))
    }

    /// Gives the device up, unless another shard took it since.
    pub fn release(&self, owner: Owner) -> bool {
        let free = Owner::new(ShardId(NO_SHARD), owner.generation());
        self.owner.compare_exchange(owner.0, free.0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Epoch of the live binding; `None` without a socket or before the store answered.
    pub fn live_epoch(&self) -> Option<i64> {
        let epoch = self.epoch.load(Ordering::Acquire);
        (self.connected() && epoch > 0).then_some(epoch)
    }

    /// Epoch of the last binding here, also when its socket is gone; 0 while the store has not answered the bind.
    pub fn epoch(&self) -> i64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Set by the owner when the store answered the bind.
    pub fn set_epoch(&self, epoch: i64) {
        self.epoch.store(epoch, Ordering::Release);
        self.mark();
    }

    /// Place of the connection that is, or was last, bound in the order of accepting; tells connections of one process apart.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Whether a socket is bound.
    pub fn connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    /// Counts a bind at `at` (Unix ms), by whichever shard, and says how many there were in the running minute, which begins with
    /// the first.
    pub fn bound_again(&self, at: i64) -> u32 {
        const COUNT_BITS: u32 = 24;
        let second = u64::try_from(at / 1000).unwrap_or(0);
        let held = self.binds.load(Ordering::Relaxed);
        let (began, count) = (held >> COUNT_BITS, held & ((1 << COUNT_BITS) - 1));
        let (began, count) = if second.abs_diff(began) < 60 { (began, count + 1) } else { (second, 1) };
        self.binds.store(began << COUNT_BITS | count.min((1 << COUNT_BITS) - 1), Ordering::Relaxed);
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// A socket was bound at `at` (Unix ms).
    pub fn set_connected_at(&self, at: i64) {
        self.connected_at.store(at, Ordering::Relaxed);
    }

    /// The device counts as offline when nothing comes for this long, in 0..=49 days.
    pub fn set_timeout(&self, timeout_ms: i64) {
        self.timeout_ms.store(within_u32(timeout_ms), Ordering::Relaxed);
    }

    /// Silence after which it counts as offline, ms.
    pub fn timeout_ms(&self) -> i64 {
        i64::from(self.timeout_ms.load(Ordering::Relaxed))
    }

    /// When the device is offline if nothing more comes, Unix ms.
    pub fn offline_at(&self) -> i64 {
        self.last_seen().saturating_add(self.timeout_ms())
    }

    /// Whether an owner declared it online.
    pub fn declared_online(&self) -> bool {
        self.online.load(Ordering::Relaxed)
    }

    /// Declares it online or offline; whether that is news.
    pub fn declare(&self, online: bool) -> bool {
        self.online.swap(online, Ordering::Relaxed) != online
    }

    /// The bound socket went down at `at` (Unix ms).
    pub fn set_disconnected(&self, at: i64) {
        self.connected.store(false, Ordering::Release);
        self.last_tcp_down.store(at, Ordering::Relaxed);
        self.mark();
    }

    /// Bytes or a frame came at `at` (Unix ms).
    pub fn seen(&self, at: i64) {
        self.last_seen.store(at, Ordering::Relaxed);
    }

    /// A command's ACK timed out at `at` (Unix ms).
    pub fn ack_timed_out(&self, at: i64) {
        self.last_ack_timeout.store(at, Ordering::Relaxed);
        self.mark();
    }

    /// Unix ms when a socket that carried it last went down; 0: never in this process.
    pub fn last_tcp_down(&self) -> i64 {
        self.last_tcp_down.load(Ordering::Relaxed)
    }

    /// Unix ms when an ACK timed out last; 0: never in this process.
    pub fn last_ack_timeout(&self) -> i64 {
        self.last_ack_timeout.load(Ordering::Relaxed)
    }

    /// Unix ms of the last inbound bytes; 0: never in this process.
    pub fn last_seen(&self) -> i64 {
        self.last_seen.load(Ordering::Relaxed)
    }

    /// Unix ms of the last bind; 0: never in this process.
    pub fn connected_at(&self) -> i64 {
        self.connected_at.load(Ordering::Relaxed)
    }

    /// The score and its parts at `at` (Unix ms).
    pub fn score(&self, at: i64) -> Score {
        let clocks = Clocks {
            last_seen: self.last_seen(),
            last_tcp_down: self.last_tcp_down(),
            last_ack_timeout: self.last_ack_timeout(),
            timeout_ms: self.timeout_ms(),
        };
        clocks.score(at, self.common.penalty_ms)
    }

    /// BKV/GN: whether the device addresses sockets ≥ 1.
    pub fn networked(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & NETWORKED != 0
    }

    /// Once networked, for good.
    pub fn set_networked(&self) {
        if !self.networked() {
            self.flags.fetch_or(NETWORKED, Ordering::Relaxed);
            self.tell(Untold::NETWORKED);
        }
    }

    /// Whether the id is one that damaged devices fall back to: answered, but takes no orders.
    pub fn is_fallback(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & FALLBACK != 0
    }

    /// Marks an AP3000 fallback number.
    pub fn set_fallback(&self) {
        self.flags.fetch_or(FALLBACK, Ordering::Relaxed);
    }

    /// Radio signal as the device sent it.
    pub fn signal(&self) -> Option<u8> {
        u8::try_from(self.signal.load(Ordering::Relaxed)).ok()
    }

    /// Stores the radio signal.
    pub fn set_signal(&self, signal: u8) {
        if self.signal() != Some(signal) {
            self.signal.store(u16::from(signal), Ordering::Relaxed);
            self.tell(Untold::SIGNAL);
        }
    }

    /// Firmware as at most 8 ASCII characters.
    pub fn firmware(&self) -> Option<String> {
        let bytes = self.firmware.load(Ordering::Relaxed).to_be_bytes();
        let text: String = bytes
            .iter()
            .take_while(|byte| **byte != 0)
            .filter(|byte| byte.is_ascii_graphic())
            .map(|b| *b as char)
            .collect();
        (!text.is_empty()).then_some(text)
    }

    /// Stores the firmware text's first 8 bytes.
    pub fn set_firmware(&self, text: &[u8]) {
        let mut bytes = [0; 8];
        bytes.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
        let firmware = u64::from_be_bytes(bytes);
        if self.firmware.load(Ordering::Relaxed) != firmware {
            self.firmware.store(firmware, Ordering::Relaxed);
            self.tell(Untold::FIRMWARE);
        }
    }

    /// Device type, or host type, as an AP3000 device says it.
    pub fn device_type(&self) -> Option<u8> {
        u8::try_from(self.device_type.load(Ordering::Relaxed)).ok()
    }

    /// Stores the device type.
    pub fn set_device_type(&self, device_type: u8) {
        if self.device_type() != Some(device_type) {
            self.device_type.store(u16::from(device_type), Ordering::Relaxed);
            self.tell(Untold::DEVICE_TYPE);
        }
    }

    /// SIM number.
    pub fn iccid(&self) -> Option<String> {
        let locked = self.locked.read();
        locked.iccid.map(Iccid::text).or_else(|| locked.told.as_ref()?.iccid.as_deref().map(str::to_owned))
    }

    /// Stores the SIM number, where it is new: once per connection at most.
    pub fn set_iccid(&self, iccid: &str) {
        self.set_iccid_bytes(iccid.as_bytes());
    }

    /// Stores the SIM number of a heartbeat; allocates only when it changed, and not where it is one of twenty digits.
    pub fn set_iccid_bytes(&self, iccid: &[u8]) {
        let packed = Iccid::pack(iccid);
        let known = {
            let locked = self.locked.read();
            match packed {
                Some(_) => locked.iccid == packed,
                None => {
                    let told = locked.told.as_ref().and_then(|told| told.iccid.as_deref());
                    locked.iccid.is_none() && told.map(str::as_bytes) == Some(iccid)
                }
            }
        };
        if known {
            return;
        }
        self.tell(Untold::ICCID);
        let mut locked = self.locked.write();
        locked.iccid = packed;
        if packed.is_none() {
            locked.told.get_or_insert_default().iccid = Some(String::from_utf8_lossy(iccid).into());
        } else if let Some(told) = &mut locked.told {
            told.iccid = None;
        }
    }

    /// Number of the communication module.
    pub fn imei(&self) -> Option<String> {
        self.locked.read().told.as_ref()?.imei.clone()
    }

    /// Firmware of the communication module.
    pub fn module_version(&self) -> Option<String> {
        self.locked.read().told.as_ref()?.module_version.clone()
    }

    /// Host type; from a charger with a module of its own its device type.
    pub fn host_type(&self) -> Option<u8> {
        self.locked.read().told.as_ref()?.host_type
    }

    /// Latest values of a host.
    pub fn host(&self) -> Option<Arc<HostValues>> {
        self.locked.read().told.as_ref()?.host.clone()
    }

    /// Stores what a module tells of itself; `None` leaves what is known. Whether anything is new.
    pub fn set_module(&self, imei: Option<&str>, version: Option<&str>, host_type: Option<u8>) -> bool {
        let mut locked = self.locked.write();
        let told = locked.told.get_or_insert_default();
        let differs = |known: &Option<String>, new: Option<&str>| new.is_some() && known.as_deref() != new;
        let new = differs(&told.imei, imei)
            || differs(&told.module_version, version)
            || host_type.is_some() && told.host_type != host_type;
        if new {
            told.imei = imei.map(str::to_owned).or_else(|| told.imei.take());
            told.module_version = version.map(str::to_owned).or_else(|| told.module_version.take());
            told.host_type = host_type.or(told.host_type);
        }
        new
    }

    /// Replaces the latest values of a host.
    pub fn set_host(&self, host: Option<Arc<HostValues>>) {
        self.locked.write().told.get_or_insert_default().host = host;
    }

    /// Takes over what is stored, where this process has heard nothing newer.
    pub fn know_details(&self, stored: &DeviceDetails) {
        let DeviceDetails { imei, module_version, host_type, host, .. } = stored;
        if imei.is_none() && module_version.is_none() && host_type.is_none() && host.is_none() {
            return;
        }
        let mut locked = self.locked.write();
        let told = locked.told.get_or_insert_default();
        told.imei = told.imei.take().or_else(|| imei.clone());
        told.module_version = told.module_version.take().or_else(|| module_version.clone());
        told.host_type = told.host_type.or(*host_type);
        told.host = told.host.take().or_else(|| host.clone().map(Arc::new));
    }

    /// Commands accepted for the device and not yet written.
    pub fn waiting(&self) -> u32 {
        u32::from(self.waiting.load(Ordering::Relaxed))
    }

    /// Set by the owner as its lane grows and shrinks.
    pub fn set_waiting(&self, waiting: u32) {
        self.waiting.store(u16::try_from(waiting).unwrap_or(u16::MAX), Ordering::Relaxed);
    }

    /// The device's ports by number.
    pub fn ports(&self) -> Arc<[PortCell]> {
        Arc::clone(&self.locked.read().ports)
    }

    /// One port.
    pub fn port(&self, port_no: u16) -> Option<PortState> {
        self.locked.read().ports.iter().find(|cell| cell.port_no == port_no).map(PortCell::load)
    }

    /// Replaces the list of ports (rare: ports come into being by registration, network list or first report).
    pub fn set_ports(&self, ports: Vec<PortCell>) {
        self.locked.write().ports = ports.into();
        self.mark();
    }
}

/// A time limit as it is kept, ms.
fn within_u32(ms: i64) -> u32 {
    u32::try_from(ms.max(0)).unwrap_or(u32::MAX)
}

/// What the score is made of. Times are Unix ms; 0: never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// Last inbound bytes.
    pub last_seen: i64,
    /// A socket that carried the device went down.
    pub last_tcp_down: i64,
    /// An ACK timed out.
    pub last_ack_timeout: i64,
    /// Silence after which it counts as offline, ms.
    pub timeout_ms: i64,
}

impl Clocks {
    /// The score at `at` (Unix ms); a TCP close or an ACK timeout counts for `penalty_ms`.
    pub const fn score(&self, at: i64, penalty_ms: i64) -> Score {
        Score {
            alive: self.last_seen != 0 && at.saturating_sub(self.last_seen) < self.timeout_ms,
            tcp_down: self.last_tcp_down != 0 && at.saturating_sub(self.last_tcp_down) < penalty_ms,
            ack_timeout: self.last_ack_timeout != 0 && at.saturating_sub(self.last_ack_timeout) < penalty_ms,
        }
    }
}

/// Why a device counts as online or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Score {
    /// Seen within its protocol's timeout: 100, else 0.
    pub alive: bool,
    /// TCP went down within the penalty window: −20.
    pub tcp_down: bool,
    /// An ACK timed out within the penalty window: −30.
    pub ack_timeout: bool,
}

impl Score {
    /// The sum, never below 0.
    pub const fn total(self) -> i32 {
        let sum = self.base() + self.tcp_down_part() + self.ack_timeout_part();
        if sum < 0 { 0 } else { sum }
    }

    /// 100 or 0.
    pub const fn base(self) -> i32 {
        if self.alive { 100 } else { 0 }
    }

    /// −20 or 0.
    pub const fn tcp_down_part(self) -> i32 {
        if self.tcp_down { -20 } else { 0 }
    }

    /// −30 or 0.
    pub const fn ack_timeout_part(self) -> i32 {
        if self.ack_timeout { -30 } else { 0 }
    }

    /// A score of 50 or more.
    pub const fn online(self) -> bool {
        self.total() >= 50
    }
}

/// One port's live state, packed in six words; the owner shard writes, anybody reads.
#[derive(Debug)]
pub struct PortCell {
    /// From 1.
    pub port_no: u16,
    /// BKV/GN: 0 for a standalone device; [`NO_PART`]: not said.
    socket: u8,
    /// BKV/GN; [`NO_PART`]: not said.
    hole: u8,
    /// Not in the latest values yet; for its owner shard alone.
    dirty: AtomicBool,
    /// Raised before and after a change of `order`: odd while it changes.
    order_version: AtomicU16,
    /// status 8 | raw 8 | power 16 | current 16 | voltage 16.
    readings: AtomicU64,
    /// energy Wh 32 | seconds 32.
    totals: AtomicU64,
    updated_at: AtomicI64,
    /// The number's bytes; zeros: none.
    order: [AtomicU64; 2],
}

/// Stands for a socket or hole that is not said: sockets end at 250, and a socket has two holes.
const NO_PART: u8 = u8::MAX;

/// A port's state at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortState {
    /// From 1.
    pub port_no: u16,
    /// BKV/GN.
    pub socket: Option<u8>,
    /// BKV/GN.
    pub hole: Option<u8>,
    /// Status.
    pub status: PortStatus,
    /// As the device sent it.
    pub raw_status: u8,
    /// 0.1 W.
    pub power_dw: u16,
    /// mA.
    pub current_ma: u16,
    /// 0.1 V.
    pub voltage_dv: u16,
    /// Wh of the running charge.
    pub energy_wh: u32,
    /// Seconds of the running charge.
    pub charged_seconds: u32,
    /// The order that holds the port.
    pub order_no: Option<OrderNo>,
    /// Unix ms of the last report; 0: none yet.
    pub updated_at: i64,
}

impl PortState {
    /// A port nothing is known of.
    pub const fn unknown(port_no: u16, socket: Option<u8>, hole: Option<u8>) -> Self {
        Self {
            port_no,
            socket,
            hole,
            status: PortStatus::Unknown,
            raw_status: 0,
            power_dw: 0,
            current_ma: 0,
            voltage_dv: 0,
            energy_wh: 0,
            charged_seconds: 0,
            order_no: None,
            updated_at: 0,
        }
    }

    /// A stored port.
    pub const fn of_record(record: &PortRecord) -> Self {
        Self {
            port_no: record.port_no,
            socket: record.socket,
            hole: record.hole,
            status: record.status,
            raw_status: record.raw_status,
            power_dw: record.power_dw,
            current_ma: record.current_ma,
            voltage_dv: record.voltage_dv,
            energy_wh: record.energy_wh,
            charged_seconds: record.charged_seconds,
            order_no: None,
            updated_at: record.updated_at,
        }
    }

    /// The row to store.
    pub const fn record(&self, device_id: DeviceId) -> PortRecord {
        PortRecord {
            device_id,
            port_no: self.port_no,
            socket: self.socket,
            hole: self.hole,
            status: self.status,
            raw_status: self.raw_status,
            power_dw: self.power_dw,
            current_ma: self.current_ma,
            voltage_dv: self.voltage_dv,
            energy_wh: self.energy_wh,
            charged_seconds: self.charged_seconds,
            updated_at: self.updated_at,
        }
    }
}

impl PortCell {
    /// A cell with this state.
    pub fn new(state: &PortState) -> Self {
        let cell = Self {
            port_no: state.port_no,
            socket: state.socket.unwrap_or(NO_PART),
            hole: state.hole.unwrap_or(NO_PART),
            dirty: AtomicBool::new(false),
            order_version: AtomicU16::new(0),
            readings: AtomicU64::new(0),
            totals: AtomicU64::new(0),
            updated_at: AtomicI64::new(0),
            order: words_of(state.order_no).map(AtomicU64::new),
        };
        cell.store(state);
        cell
    }

    /// Another with the same state.
    pub(super) fn duplicate(&self) -> Self {
        Self { dirty: AtomicBool::new(self.dirty.load(Ordering::Relaxed)), ..Self::new(&self.load()) }
    }

    /// The same port under another socket.
    pub(super) const fn of_socket(self, socket: u8) -> Self {
        Self { socket, ..self }
    }

    /// BKV/GN: 0 for a standalone device.
    pub fn socket(&self) -> Option<u8> {
        Some(self.socket).filter(|socket| *socket != NO_PART)
    }

    /// BKV/GN.
    pub fn hole(&self) -> Option<u8> {
        Some(self.hole).filter(|hole| *hole != NO_PART)
    }

    /// Notes that it is to go into the latest values.
    pub(super) fn set_dirty(&self) {
        self.dirty.store(true, Ordering::Relaxed);
    }

    /// Whether it was to go into the latest values.
    pub(super) fn take_dirty(&self) -> bool {
        // One writer: no need to swap.
        self.dirty.load(Ordering::Relaxed) && {
            self.dirty.store(false, Ordering::Relaxed);
            true
        }
    }

    /// The order that holds the port. Readers never keep the owner from changing it: they look again.
    fn order_no(&self) -> Option<OrderNo> {
        loop {
            let before = self.order_version.load(Ordering::Acquire);
            let words = [&self.order[0], &self.order[1]].map(|word| word.load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.order_version.load(Ordering::Relaxed) == before {
                return order_of(words);
            }
            std::hint::spin_loop();
        }
    }

    /// Reads the cell.
    pub fn load(&self) -> PortState {
        let readings = self.readings.load(Ordering::Relaxed).to_be_bytes();
        let [status, raw_status, p1, p0, c1, c0, v1, v0] = readings;
        let totals = self.totals.load(Ordering::Relaxed);
        PortState {
            port_no: self.port_no,
            socket: self.socket(),
            hole: self.hole(),
            status: PortStatus::from_code(status),
            raw_status,
            power_dw: u16::from_be_bytes([p1, p0]),
            current_ma: u16::from_be_bytes([c1, c0]),
            voltage_dv: u16::from_be_bytes([v1, v0]),
            energy_wh: (totals >> 32) as u32,
            charged_seconds: totals as u32,
            order_no: self.order_no(),
            updated_at: self.updated_at.load(Ordering::Relaxed),
        }
    }

    /// Whether it shows just this.
    pub fn shows(&self, status: PortStatus, raw: u8, voltage_dv: u16) -> bool {
        let [s, r, .., v1, v0] = self.readings.load(Ordering::Relaxed).to_be_bytes();
        (s, r) == (status.code(), raw) && u16::from_be_bytes([v1, v0]) == voltage_dv
    }

    /// Writes readings and totals; the order is set apart.
    pub fn store(&self, state: &PortState) {
        let [p1, p0] = state.power_dw.to_be_bytes();
        let [c1, c0] = state.current_ma.to_be_bytes();
        let [v1, v0] = state.voltage_dv.to_be_bytes();
        let readings = [state.status.code(), state.raw_status, p1, p0, c1, c0, v1, v0];
        self.readings.store(u64::from_be_bytes(readings), Ordering::Relaxed);
        self.totals.store((u64::from(state.energy_wh) << 32) | u64::from(state.charged_seconds), Ordering::Relaxed);
        self.updated_at.store(state.updated_at, Ordering::Relaxed);
    }

    /// Names the order that holds the port.
    pub fn set_order(&self, order_no: Option<OrderNo>) {
        // An owner that was just replaced may still be in here: each raises the version twice, so it comes to rest even.
        self.order_version.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::Release);
        for (word, value) in self.order.iter().zip(words_of(order_no)) {
            word.store(value, Ordering::Relaxed);
        }
        self.order_version.fetch_add(1, Ordering::Release);
    }
}

/// A number as a port keeps it: its sixteen bytes are printable, so zeros are none.
fn words_of(order_no: Option<OrderNo>) -> [u64; 2] {
    let bytes = order_no.map_or([0; 16], |order_no| *order_no.as_bytes());
    let whole = u128::from_be_bytes(bytes);
    [(whole >> 64) as u64, whole as u64]
}

fn order_of([high, low]: [u64; 2]) -> Option<OrderNo> {
    let whole = u128::from(high) << 64 | u128::from(low);
    OrderNo::from_bytes(whole.to_be_bytes())
}
