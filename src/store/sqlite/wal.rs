//! Writes of the write-ahead log, gathered into large ones.
//!
//! SQLite writes the log in two pieces per page, of 24 bytes and of 4,096, and a transaction of a batch has hundreds of pages: each piece is
//! a system call that looks for its pages of the file anew. Here pieces that follow one another wait in a buffer, and are written when it
//! is full, and before anything else is done with the file: before it is synced, read, measured or cut.
//!
//! **Durability**: a commit of a connection with `synchronous = FULL` syncs the log, and it is the sync that writes and then waits
//! for the disk; only behind it does SQLite tell other connections of the new pages. What is in the buffer when the process ends is part of
//! no transaction that anybody was told of. For connections that do not sync at each commit this is not made.
//!
//! Every other file is the default's own: the methods below are those of the log alone.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    mem::size_of,
    ptr,
    sync::OnceLock,
};

use rusqlite::ffi::{
    SQLITE_ERROR, SQLITE_OK, SQLITE_OPEN_WAL, sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs,
    sqlite3_vfs_find, sqlite3_vfs_register,
};

use crate::store::StoreError;

const NAME: &CStr = c"chargegate-wal";
/// Bytes that wait at most; some twenty pages. Below what the allocator maps by itself.
const BUFFER_BYTES: usize = 96 * 1024;

/// The default of SQLite, whose files these are.
struct System(*mut sqlite3_vfs);

// SAFETY: SQLite's own, never freed, and read by any thread that opens a file.
unsafe impl Send for System {}
// SAFETY: as above.
unsafe impl Sync for System {}

static SYSTEM: OnceLock<Result<System, c_int>> = OnceLock::new();

/// The name to open a connection by, so that the writes of its log are gathered.
pub(super) fn gathered() -> Result<&'static CStr, StoreError> {
    match SYSTEM.get_or_init(register) {
        Ok(_) => Ok(NAME),
        Err(code) => Err(StoreError::Unavailable(format!("SQLite takes no file system: error {code}"))),
    }
}

fn register() -> Result<System, c_int> {
    // SAFETY: NULL asks for the default; it is valid for good.
    let default = unsafe { sqlite3_vfs_find(ptr::null()) };
    if default.is_null() {
        return Err(SQLITE_ERROR);
    }
    // SAFETY: not NULL, and nobody changes it. Everything is the default's but what follows.
    let mut own = unsafe { *default };
    own.szOsFile += size_of::<Log>() as c_int;
    own.pNext = ptr::null_mut();
    own.zName = NAME.as_ptr();
    own.xOpen = Some(open);
    // Once in a process: SQLite keeps it for good.
    let own = Box::leak(Box::new(own));
    // SAFETY: lives for good, and is SQLite's from here on.
    let code = unsafe { sqlite3_vfs_register(own, 0) };
    if code == SQLITE_OK { Ok(System(default)) } else { Err(code) }
}

/// A log; the default's file lies behind it, in the memory that SQLite gave for both.
#[repr(C)]
struct Log {
    file: sqlite3_file,
    /// Where in the file the bytes belong.
    start: sqlite3_int64,
    bytes: Vec<u8>,
}

/// Methods of the log. Nobody locks it, maps it or shares its memory.
static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(lock),
    xCheckReservedLock: Some(is_reserved),
    xFileControl: Some(control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

impl Log {
    /// The default's file.
    fn inner(&mut self) -> *mut sqlite3_file {
        // SAFETY: SQLite gave as much memory as `register` asked for: this, and the default's file behind it.
        unsafe { ptr::from_mut(self).add(1).cast() }
    }

    /// Calls a method of the default's file; `SQLITE_ERROR` where it has none.
    fn call(&mut self, body: impl FnOnce(&sqlite3_io_methods, *mut sqlite3_file) -> Option<c_int>) -> c_int {
        let inner = self.inner();
        // SAFETY: it was opened by `open`, which leaves none without methods; they are static.
        let methods = unsafe { &*(*inner).pMethods };
        body(methods, inner).unwrap_or(SQLITE_ERROR)
    }

    /// Writes what waits. What cannot be written goes on waiting: SQLite may have been told that it was, and everything else that is to be
    /// done with the file fails until it is. What belongs to a transaction that was taken back is written over by the next one.
    fn flush(&mut self) -> c_int {
        if self.bytes.is_empty() {
            return SQLITE_OK;
        }
        let (bytes, length, start) = (self.bytes.as_ptr(), self.bytes.len() as c_int, self.start);
        // SAFETY: the bytes are there until the call has ended; they are fewer than `BUFFER_BYTES`, or one piece.
        let code = self.call(|methods, inner| Some(unsafe { methods.xWrite?(inner, bytes.cast(), length, start) }));
        if code == SQLITE_OK {
            self.bytes.clear();
        }
        code
    }
}

/// The log of a file that `open` opened.
///
/// # Safety
///
/// `file` is one that was opened with [`METHODS`] and is not closed; SQLite uses a connection's files from one thread at a time.
unsafe fn log_of<'a>(file: *mut sqlite3_file) -> &'a mut Log {
    // SAFETY: `open` put a `Log` there, which begins with the file.
    unsafe { &mut *file.cast::<Log>() }
}

unsafe extern "C" fn open(
    _: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    flags_out: *mut c_int,
) -> c_int {
    let Some(Ok(System(default))) = SYSTEM.get() else { return SQLITE_ERROR };
    // SAFETY: the default is valid for good.
    let Some(open) = (unsafe { (**default).xOpen }) else { return SQLITE_ERROR };
    if flags & SQLITE_OPEN_WAL == 0 {
        // SAFETY: the arguments are SQLite's, and there is more memory than the default needs.
        return unsafe { open(*default, name, file, flags, flags_out) };
    }
    let log = file.cast::<Log>();
    let none = sqlite3_file { pMethods: ptr::null() };
    // SAFETY: there is memory for a `Log`, aligned as its structures are, and for the default's file behind it; neither is in use.
    let inner = unsafe {
        log.write(Log { file: none, start: 0, bytes: Vec::new() });
        (*log).inner()
    };
    // SAFETY: as above; until it has methods, it is not open.
    unsafe { (*inner).pMethods = ptr::null() };
    // SAFETY: the arguments are SQLite's but for the place.
    let code = unsafe { open(*default, name, inner, flags, flags_out) };
    // SAFETY: as above.
    if unsafe { (*inner).pMethods }.is_null() {
        return if code == SQLITE_OK { SQLITE_ERROR } else { code };
    }
    // SAFETY: as above. With methods it is closed by SQLite, also if it could not be opened.
    unsafe { (*log).file.pMethods = &raw const METHODS };
    code
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: SQLite's promise to a file's methods.
    let log = unsafe { log_of(file) };
    let flushed = log.flush();
    // SAFETY: the file is open, and closed once.
    let closed = log.call(|methods, inner| Some(unsafe { methods.xClose?(inner) }));
    log.bytes = Vec::new();
    if flushed == SQLITE_OK { closed } else { flushed }
}

unsafe extern "C" fn read(file: *mut sqlite3_file, to: *mut c_void, amount: c_int, offset: sqlite3_int64) -> c_int {
    // SAFETY: SQLite's promise to a file's methods.
    let log = unsafe { log_of(file) };
    match log.flush() {
        // SAFETY: the arguments are SQLite's.
        SQLITE_OK => log.call(|methods, inner| Some(unsafe { methods.xRead?(inner, to, amount, offset) })),
        code => code,
    }
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    from: *const c_void,
    amount: c_int,
    offset: sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite's promise to a file's methods.
    let log = unsafe { log_of(file) };
    let length = usize::try_from(amount).unwrap_or(0);
    let follows = offset == log.start + log.bytes.len() as sqlite3_int64;
    if !follows || log.bytes.len() + length > BUFFER_BYTES {
        let code = log.flush();
        if code != SQLITE_OK {
            return code;
        }
    }
    if log.bytes.is_empty() {
        log.start = offset;
        log.bytes.reserve(BUFFER_BYTES);
    }
    // SAFETY: SQLite gives as many bytes as it says.
    log.bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(from.cast::<u8>(), length) });
    SQLITE_OK
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, size: sqlite3_int64) -> c_int {
    // SAFETY: SQLite's promise to a file's methods.
    let log = unsafe { log_of(file) };
    match log.flush() {
        // SAFETY: the arguments are SQLite's.
        SQLITE_OK => log.call(|methods, inner| Some(unsafe { methods.xTruncate?(inner, size) })),
        code => code,
    }
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: SQLite's promise to a file's methods.
    let log = unsafe { log_of(file) };
    match log.flush() {
        // SAFETY: the arguments are SQLite's.
        SQLITE_OK => log.call(|methods, inner| Some(unsafe { methods.xSync?(inner, flags) })),
        code => code,
    }
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, size: *mut sqlite3_int64) -> c_int {
    // SAFETY: SQLite's promise to a file's methods.
    let log = unsafe { log_of(file) };
    match log.flush() {
        // SAFETY: the arguments are SQLite's.
        SQLITE_OK => log.call(|methods, inner| Some(unsafe { methods.xFileSize?(inner, size) })),
        code => code,
    }
}

unsafe extern "C" fn control(file: *mut sqlite3_file, what: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: SQLite's promise to a file's methods.
    let log = unsafe { log_of(file) };
    match log.flush() {
        // SAFETY: the arguments are SQLite's.
        SQLITE_OK => log.call(|methods, inner| Some(unsafe { methods.xFileControl?(inner, what, argument) })),
        code => code,
    }
}

unsafe extern "C" fn sector_size(file: *mut sqlite3_file) -> c_int {
    // SAFETY: SQLite's promise to a file's methods, here and of the default's.
    unsafe { log_of(file) }.call(|methods, inner| Some(unsafe { methods.xSectorSize?(inner) }))
}

unsafe extern "C" fn characteristics(file: *mut sqlite3_file) -> c_int {
    // SAFETY: SQLite's promise to a file's methods, here and of the default's.
    unsafe { log_of(file) }.call(|methods, inner| Some(unsafe { methods.xDeviceCharacteristics?(inner) }))
}

unsafe extern "C" fn lock(_: *mut sqlite3_file, _: c_int) -> c_int {
    SQLITE_OK
}

unsafe extern "C" fn is_reserved(_: *mut sqlite3_file, reserved: *mut c_int) -> c_int {
    // SAFETY: SQLite's place for the answer.
    unsafe { *reserved = 0 };
    SQLITE_OK
}

#[cfg(test)]
mod tests {
    use rusqlite::{
        Connection, OpenFlags,
        ffi::{SQLITE_FCNTL_JOURNAL_POINTER, SQLITE_FULL, sqlite3_file_control},
    };

    use super::*;

    fn open(path: &std::path::Path) -> Connection {
        let conn = Connection::open_with_flags_and_vfs(path, OpenFlags::default(), gathered().expect("registered"))
            .expect("a file");
        conn.execute_batch(
            "PRAGMA journal_mode = wal; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = 8",
        )
        .expect("settings");
        conn
    }

    fn count(conn: &Connection) -> i64 {
        conn.query_row("SELECT count(*) FROM t WHERE length(b) = 1000", [], |row| row.get(0)).expect("a count")
    }

    const MORE: &str = "INSERT INTO t (b) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) \
                        SELECT randomblob(1000) FROM n";

    #[test]
    fn others_see_what_was_committed_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("t.db");
        let writer = open(&path);
        writer
            .execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, b BLOB); CREATE INDEX t_b ON t (b)")
            .expect("a table");
        let reader = Connection::open(&path).expect("a reader");
        for round in 1..=3 {
            // Far more than the cache and the buffer hold: pages are written, read and written again before the commit.
            writer
                .execute_batch(&format!("BEGIN; {MORE}; UPDATE t SET b = randomblob(1000) WHERE id % 3 = 0"))
                .expect("rows");
            assert_eq!((count(&reader), count(&writer)), ((round - 1) * 2000, round * 2000));
            writer.execute_batch("COMMIT").expect("a commit");
            assert_eq!(count(&reader), round * 2000);
            writer.execute_batch(&format!("BEGIN; {MORE}; ROLLBACK")).expect("a rollback");
            assert_eq!((count(&reader), count(&writer)), (round * 2000, round * 2000));
            writer.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").expect("a checkpoint");
        }
        writer.execute_batch("UPDATE t SET b = randomblob(1000)").expect("a commit");
        // As a crash leaves them: the log is read as it lies there.
        let copy = dir.path().join("copy.db");
        for suffix in ["", "-wal"] {
            let with = |path: &std::path::Path| format!("{}{suffix}", path.display());
            std::fs::copy(with(&path), with(&copy)).expect("a copy");
        }
        let copied = Connection::open(&copy).expect("the copy");
        let whole: String = copied.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
        assert_eq!((whole.as_str(), count(&copied)), ("ok", 6000));
        let sum = |conn: &Connection| -> String {
            conn.query_row(
                "SELECT group_concat(hex(substr(b, 1, 4)), '') FROM (SELECT b FROM t ORDER BY id)",
                [],
                |row| row.get(0),
            )
            .expect("a sum")
        };
        assert_eq!(sum(&copied), sum(&writer), "the last commit is in the log");
    }

    unsafe extern "C" fn full(_: *mut sqlite3_file, _: *const c_void, _: c_int, _: sqlite3_int64) -> c_int {
        SQLITE_FULL
    }

    /// The default's file of a connection's log.
    fn file_of(conn: &Connection) -> *mut sqlite3_file {
        let mut file: *mut sqlite3_file = ptr::null_mut();
        // SAFETY: the connection is open, and SQLite puts a pointer to its journal's file there.
        let code = unsafe {
            sqlite3_file_control(conn.handle(), ptr::null(), SQLITE_FCNTL_JOURNAL_POINTER, (&raw mut file).cast())
        };
        assert_eq!(code, SQLITE_OK);
        // SAFETY: as above.
        assert!(ptr::eq(unsafe { (*file).pMethods }, &raw const METHODS), "not a log of ours");
        // SAFETY: `open` put it there, and SQLite does not use it meanwhile.
        unsafe { log_of(file) }.inner()
    }

    #[test]
    fn what_a_full_disk_refused_is_not_committed_and_does_no_harm_later() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("t.db");
        let writer = open(&path);
        writer.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, b BLOB)").expect("a table");
        let reader = Connection::open(&path).expect("a reader");
        writer.execute_batch(MORE).expect("rows");

        let inner = file_of(&writer);
        // SAFETY: the file is open, and its methods are static.
        let whole = unsafe { (*inner).pMethods };
        // SAFETY: as above.
        let broken = sqlite3_io_methods { xWrite: Some(full), ..unsafe { *whole } };
        let write_with = |methods: *const sqlite3_io_methods| {
            // SAFETY: both live as long as they are in use, and differ in one method.
            unsafe { (*inner).pMethods = methods };
        };
        // In one piece at the sync, and in many before it.
        for refused in
            ["INSERT INTO t VALUES (900000, 'refused')", &format!("{MORE}; INSERT INTO t VALUES (900000, '')")]
        {
            write_with(&raw const broken);
            for attempt in 1..=2 {
                let error = writer.execute_batch(&format!("BEGIN; {refused}; COMMIT")).expect_err("the disk is full");
                assert_eq!(
                    error.sqlite_error_code(),
                    Some(rusqlite::ErrorCode::DiskFull),
                    "attempt {attempt}: {error}"
                );
                if !writer.is_autocommit() {
                    writer.execute_batch("ROLLBACK").expect("a rollback");
                }
                assert_eq!(count(&reader), 2000, "others read on");
            }
            write_with(whole);
            let ids = "SELECT count(*) FROM t WHERE id = 900000";
            assert_eq!((count(&writer), count(&reader)), (2000, 2000));
            assert_eq!(writer.query_row(ids, [], |row| row.get(0)), Ok(0));
        }
        writer.execute_batch("UPDATE t SET b = zeroblob(1000)").expect("a commit");
        drop((reader, writer));
        let again = Connection::open(&path).expect("the file");
        let whole: String = again.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
        let zeros: i64 =
            again.query_row("SELECT count(*) FROM t WHERE b = zeroblob(1000)", [], |row| row.get(0)).expect("a count");
        assert_eq!((whole.as_str(), zeros), ("ok", 2000));
    }
}
