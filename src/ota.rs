//! Brings open updates and their images to the shards that push them.
//!
//! ```text
//! bind, creation, slow poll ──device──▶ thread ──▶ open task? ──▶ image: file, checked by its hash ──▶ owner shard
//! ```
//!
//! On one thread, because images are read here. What is offered in vain (the shard is busy, the device left) is offered again by
//! the next poll; nothing in here matters after a crash.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use sha2::{Digest as _, Sha256};

use crate::{
    gateway::{OtaStart, directory::Directory},
    model::{DeviceId, Firmware, OtaState, OtaTask},
    protocol::{Hex, ap3000::update::Verification},
    shard::Clock,
    store::{Job, OtaJob, OtaStep, OtaUpdate, Reply, Store},
};

/// Devices and tasks that may wait for the thread; the poll finds what had no room.
const WAITING_MAX: usize = 1_024;
/// Devices looked at per poll.
const POLL_DEVICES_MAX: u32 = 512;

/// Where the image of this hash lies.
pub fn image_path(dir: &Path, sha256: &[u8; 32]) -> PathBuf {
    dir.join(format!("{}.bin", Hex(sha256)))
}

/// Time limits of updates.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Between two looks for open tasks.
    pub poll: Duration,
    /// A task that is older fails.
    pub valid_for: Duration,
    /// A device that was told to fetch its firmware must show another one within this.
    pub ftp: Duration,
}

/// What the thread works on.
pub struct Context {
    /// Tasks.
    pub store: Arc<dyn Store>,
    /// Who is connected.
    pub directory: Arc<Directory>,
    /// Hands a task to the device's owner.
    pub offer: Box<dyn Fn(OtaStart) + Send>,
    /// The images.
    pub dir: PathBuf,
    /// The process's clock.
    pub clock: Clock,
}

#[derive(Debug)]
enum Wake {
    Device(DeviceId),
    Found(Box<OtaTask>),
    /// The next poll goes on behind this device.
    Page(DeviceId),
    Stop,
}

/// Tells the thread that a device may have an open task.
#[derive(Clone, Debug)]
pub struct Waker(Sender<Wake>);

impl Waker {
    /// Never waits; a lost word is made up for by the poll.
    pub fn wake(&self, device_id: DeviceId) {
        drop(self.0.try_send(Wake::Device(device_id)));
    }
}

/// The running thread.
#[derive(Debug)]
pub struct Driver {
    waker: Waker,
    handle: JoinHandle<()>,
}

impl Driver {
    /// Starts the thread.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(context: Context, schedule: Schedule) -> std::io::Result<Self> {
        let (sender, wakes) = bounded(WAITING_MAX);
        let waker = Waker(sender);
        let work = Work { context, schedule, waker: waker.clone(), last: None, after: None };
        let handle = thread::Builder::new().name("ota".into()).spawn(move || work.run(&wakes))?;
        Ok(Self { waker, handle })
    }

    /// For who learns of tasks first.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Ends the thread after the task it is at.
    pub fn stop(self) {
        // Waits only while the thread, which never waits for others, is at work.
        drop(self.waker.0.send(Wake::Stop));
        drop(self.handle.join());
    }
}

struct Work {
    context: Context,
    schedule: Schedule,
    waker: Waker,
    /// The image read last: a fleet gets the same one.
    last: Option<([u8; 32], Arc<[u8]>)>,
    /// Where the next poll goes on.
    after: Option<DeviceId>,
}

impl Work {
    fn run(mut self, wakes: &Receiver<Wake>) {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let mut poll_at = self.context.clock.refresh().mono_ms;
        loop {
            let now = self.context.clock.refresh();
            match wakes.recv_timeout(Duration::from_millis(poll_at.saturating_sub(now.mono_ms))) {
                Ok(Wake::Device(device_id)) => self.look(device_id),
                Ok(Wake::Found(task)) => self.offer(*task),
                Ok(Wake::Page(last)) => self.after = Some(last),
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    self.poll();
                    poll_at = now.mono_ms + millis(self.schedule.poll);
                }
            }
        }
    }

    /// Asks the store for the open task of a device that can be reached.
    fn look(&self, device_id: DeviceId) {
        let live = self.context.directory.find(device_id).is_some_and(|entry| entry.connected());
        if !live {
            return;
        }
        let waker = self.waker.clone();
        drop(self.context.store.read(Box::new(move |reader| {
            match reader.and_then(|reader| reader.open_ota_task(device_id)) {
                Ok(Some(task)) => drop(waker.0.try_send(Wake::Found(Box::new(task)))),
                Ok(None) => {}
                Err(error) => log::warn!(target: "chargegate::ota", error:% = error; "open updates cannot be read"),
            }
        })));
    }

    fn poll(&mut self) {
        let at = self.context.clock.refresh().unix_ms;
        let before = |age: Duration| at.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        let expire = OtaJob::Expire {
            at,
            created_before: before(self.schedule.valid_for),
            ftp_sent_before: before(self.schedule.ftp),
        };
        drop(self.context.store.submit(Job::Ota(Box::new(expire)), Reply::None));
        // No shard has it: no update needs it.
        let idle = self.last.as_ref().is_some_and(|(_, image)| Arc::strong_count(image) == 1);
        if idle {
            self.last = None;
        }
        let (after, waker) = (self.after.take(), self.waker.clone());
        drop(self.context.store.read(Box::new(move |reader| {
            let devices = reader.and_then(|reader| reader.devices_with_open_ota(after, POLL_DEVICES_MAX));
            let devices = devices.unwrap_or_default();
            devices.iter().for_each(|device_id| waker.wake(*device_id));
            // A full page's end is where the next one begins.
            if let Some(last) = devices.last().filter(|_| devices.len() >= POLL_DEVICES_MAX as usize) {
                drop(waker.0.try_send(Wake::Page(*last)));
            }
        })));
    }

    fn offer(&mut self, task: OtaTask) {
        let image = match &task.firmware {
            None => None,
            Some(firmware) => match self.image(firmware) {
                Ok(image) => Some(image),
                Err(reason) => return self.fail(&task, reason),
            },
        };
        let verification = task.firmware.as_ref().zip(image.as_ref()).filter(|_| task.verification);
        let verification = verification.map(|(firmware, image)| {
            Verification::of(image, firmware.device_type.unwrap_or_default(), firmware.version.unwrap_or_default())
        });
        (self.context.offer)(OtaStart { task, image, verification });
    }

    /// The bytes of an image, as long and with the hash that its row says.
    fn image(&mut self, firmware: &Firmware) -> Result<Arc<[u8]>, &'static str> {
        if let Some((sha256, image)) = &self.last
            && *sha256 == firmware.sha256
        {
            return Ok(Arc::clone(image));
        }
        let path = image_path(&self.context.dir, &firmware.sha256);
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(u64::from(firmware.size) + 1).read_to_end(&mut bytes));
        if let Err(error) = read {
            log::error!(target: "chargegate::ota", "firmware cannot be read from {}: {error}", path.display());
            return Err("firmware_unreadable");
        }
        let sha256: [u8; 32] = Sha256::digest(&bytes).into();
        if sha256 != firmware.sha256 {
            log::error!(target: "chargegate::ota", "{} is not the firmware it is named by", path.display());
            return Err("firmware_corrupt");
        }
        let image: Arc<[u8]> = bytes.into();
        self.last = Some((sha256, Arc::clone(&image)));
        Ok(image)
    }

    fn fail(&mut self, task: &OtaTask, reason: &'static str) {
        debug_assert!(!matches!(task.state, OtaState::Done | OtaState::Failed), "only open tasks are looked for");
        let at = self.context.clock.refresh().unix_ms;
        let (id, device_id, step) = (task.id, task.device_id, OtaStep::Failed(reason));
        let update = OtaUpdate { id, device_id, epoch: 0, ticket: 0, step, at };
        drop(self.context.store.submit(Job::Ota(Box::new(OtaJob::Update(update))), Reply::None));
    }
}
