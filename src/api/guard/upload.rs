//! Bodies that go to a file: firmware.
//!
//! The guard's thread must not wait for a disk, so it hands what it reads, a piece at a time, to a thread of their own, which
//! writes and hashes. A client whose pieces are not written yet is not read further.
//!
//! ```text
//! guard ──Begin, Bytes, End, Discard──> spool thread ──Took, Whole, Failed, Gone──> guard (woken)
//! ```
//!
//! Files are called `upload-….part`. The server moves a whole one away if it wants it; whatever is left under its name when the
//! client was answered or has gone is removed, at the latest at the next start. Both queues have room for all that the uploads
//! under way can say, so neither side ever waits for the other.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use mio::Waker;
use rustc_hash::FxHashMap;
use sha2::{Digest as _, Sha256};

use super::client::Key;

/// Pieces of one upload that may wait for the disk.
pub(super) const WINDOW: usize = 4;
/// What one upload can have in a queue at a time: its pieces, begin, end, discard.
const MESSAGES_MAX: usize = WINDOW + 4;
const PREFIX: &str = "upload-";
const SUFFIX: &str = ".part";

/// Which bodies go to a file, and their limits.
#[derive(Clone, Debug)]
pub struct UploadConfig {
    /// The path whose POST bodies do.
    pub path: &'static str,
    /// Where the files lie; made with mode 0700 if it is not there.
    pub dir: PathBuf,
    /// Bytes of a body.
    pub bytes_max: usize,
    /// From the end of the head to the end of the body.
    pub timeout: Duration,
    /// Uploads under way; one more is refused.
    pub at_once_max: usize,
}

/// Names an upload and its file, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ticket(pub(super) u64);

impl Ticket {
    /// The file's name in the directory.
    pub(super) fn file_name(self) -> String {
        format!("{PREFIX}{:016x}{SUFFIX}", self.0)
    }
}

/// An upload, kept with its client until that is answered.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) ticket: Ticket,
    /// Pieces that are not written yet.
    pub(super) waiting: usize,
}

enum Order {
    Begin(Key, Ticket),
    Bytes(Ticket, Vec<u8>),
    End(Ticket),
    Discard(Ticket),
}

/// What became of an upload's orders.
#[derive(Debug)]
pub(super) enum News {
    /// A piece is written.
    Took(Key, Ticket),
    /// The body is in its file and on disk.
    Whole(Key, Ticket, Stored),
    /// It could not be written.
    Failed(Key, Ticket),
    /// Nothing is left of it.
    Gone,
}

/// A body in its file.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) sha256: [u8; 32],
    pub(super) bytes: u64,
}

/// The guard's end of the spool.
#[derive(Debug)]
pub(super) struct Spool {
    orders: Option<Sender<Order>>,
    news: Receiver<News>,
    thread: Option<JoinHandle<()>>,
    at_once_max: usize,
    active: usize,
    next: u64,
}

impl Spool {
    /// Makes the directory, removes what an earlier process left, and starts the thread.
    pub(super) fn start(config: &UploadConfig, waker: Arc<Waker>) -> io::Result<Self> {
        match fs::DirBuilder::new().mode(0o700).recursive(true).create(&config.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        for entry in fs::read_dir(&config.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX)) {
                fs::remove_file(entry.path())?;
            }
        }
        let at_once_max = config.at_once_max.max(1);
        let (orders, orders_out) = bounded(at_once_max * MESSAGES_MAX);
        let (news, news_out) = bounded(at_once_max * MESSAGES_MAX);
        let mut writer = Writer { dir: config.dir.clone(), files: FxHashMap::default(), news, waker };
        let thread = std::thread::Builder::new().name("http-upload".to_owned()).spawn(move || {
            while let Ok(order) = orders_out.recv() {
                writer.carry_out(order);
            }
            writer.discard_all();
        })?;
        Ok(Self { orders: Some(orders), news: news_out, thread: Some(thread), at_once_max, active: 0, next: 0 })
    }

    /// Begins an upload; `None`: as many as may be are under way.
    pub(super) fn begin(&mut self, key: Key) -> Option<Upload> {
        if self.active >= self.at_once_max {
            return None;
        }
        self.active += 1;
        self.next += 1;
        let ticket = Ticket(self.next);
        self.order(Order::Begin(key, ticket));
        Some(Upload { ticket, waiting: 0 })
    }

    pub(super) fn bytes(&self, upload: &mut Upload, bytes: &[u8]) {
        upload.waiting += 1;
        self.order(Order::Bytes(upload.ticket, bytes.to_vec()));
    }

    pub(super) fn end(&self, upload: &Upload) {
        self.order(Order::End(upload.ticket));
    }

    /// The client was answered or has gone.
    pub(super) fn discard(&self, upload: &Upload) {
        self.order(Order::Discard(upload.ticket));
    }

    /// The next news, if there are any.
    pub(super) fn news(&mut self) -> Option<News> {
        let news = self.news.try_recv().ok()?;
        if matches!(news, News::Gone) {
            self.active -= 1;
        }
        Some(news)
    }

    fn order(&self, order: Order) {
        let sent = self.orders.as_ref().is_some_and(|orders| orders.try_send(order).is_ok());
        debug_assert!(sent, "the queue has room for all that the uploads under way can say");
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("http uploads ended by a panic");
        }
    }
}

/// The thread's end.
struct Writer {
    dir: PathBuf,
    files: FxHashMap<Ticket, Part>,
    news: Sender<News>,
    waker: Arc<Waker>,
}

/// A file that is being written.
struct Part {
    key: Key,
    path: PathBuf,
    /// `None` once it failed.
    file: Option<File>,
    hash: Sha256,
    bytes: u64,
}

impl Part {
    fn new(key: Key, path: PathBuf, file: Option<File>) -> Self {
        Self { key, path, file, hash: Sha256::new(), bytes: 0 }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        file.write_all(bytes)
    }
}

impl Writer {
    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Begin(key, ticket) => {
                let path = self.dir.join(ticket.file_name());
                let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
                let part = match opened {
                    Ok(file) => Part::new(key, path, Some(file)),
                    Err(error) => {
                        self.failed(key, ticket, &path, &error);
                        Part::new(key, path, None)
                    }
                };
                self.files.insert(ticket, part);
            }
            Order::Bytes(ticket, bytes) => {
                let Some(part) = self.files.get_mut(&ticket) else { return };
                let key = part.key;
                if let Err(error) = part.write(&bytes) {
                    part.file = None;
                    let path = part.path.clone();
                    self.failed(key, ticket, &path, &error);
                }
                self.tell(News::Took(key, ticket));
            }
            Order::End(ticket) => {
                let Some(part) = self.files.get_mut(&ticket) else { return };
                let key = part.key;
                // A part that failed has said so.
                let Some(file) = part.file.take() else { return };
                match file.sync_all() {
                    Ok(()) => {
                        let stored = Stored { sha256: part.hash.finalize_reset().into(), bytes: part.bytes };
                        self.tell(News::Whole(key, ticket, stored));
                    }
                    Err(error) => {
                        let path = part.path.clone();
                        self.failed(key, ticket, &path, &error);
                    }
                }
            }
            Order::Discard(ticket) => {
                if let Some(part) = self.files.remove(&ticket) {
                    discard(&part.path);
                }
                self.tell(News::Gone);
            }
        }
    }

    fn discard_all(&mut self) {
        for (_, part) in self.files.drain() {
            discard(&part.path);
        }
    }

    fn failed(&self, key: Key, ticket: Ticket, path: &Path, error: &io::Error) {
        log::error!("upload cannot be written to {}: {error}", path.display());
        self.tell(News::Failed(key, ticket));
    }

    fn tell(&self, news: News) {
        let sent = self.news.try_send(news).is_ok();
        debug_assert!(sent, "the queue has room for all that the uploads under way can say");
        if let Err(error) = self.waker.wake() {
            log::error!("http guard cannot be woken: {error}");
        }
    }
}

fn discard(path: &Path) {
    match fs::remove_file(path) {
        // The server took it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => log::error!("upload cannot be removed from {}: {error}", path.display()),
        Ok(()) => {}
    }
}
