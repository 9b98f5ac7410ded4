//! When memory that is free goes back to the system.
//!
//! The C library's allocator keeps what is freed: after a few ten thousand binds that is the memory of all their jobs, in pieces
//! between what stays. Nobody needs it until the next storm. So once a burst is over and it has been calm for a while, one call
//! gives back every page that is wholly free. It holds the lock of one arena at a time, for about as long as a few hundred
//! allocations take, which is why it is not done while much is going on.

/// Connections after which there is something to give back.
const BURST: u64 = 1_024;
/// Connections that disturb the calm.
const DISTURBANCE: u64 = 64;
/// How long it must have been calm.
const CALM_MS: u64 = 5_000;

/// Watches connections come.
#[derive(Debug, Default)]
pub struct Calm {
    /// Connections accepted when it was last not calm, and when.
    accepted: u64,
    since: u64,
    /// Connections accepted when memory was last given back.
    given_back: u64,
}

impl Calm {
    /// Looks at the number of connections accepted since start, at `now_ms` (monotonic). True: give memory back now.
    pub fn after_burst(&mut self, now_ms: u64, accepted: u64) -> bool {
        if accepted.saturating_sub(self.accepted) >= DISTURBANCE {
            (self.accepted, self.since) = (accepted, now_ms);
            return false;
        }
        let due = accepted.saturating_sub(self.given_back) >= BURST && now_ms.saturating_sub(self.since) >= CALM_MS;
        if due {
            self.given_back = accepted;
        }
        due
    }
}

/// A block of at least so many bytes is mapped by itself and goes back to the system as soon as it is freed. By default the bound
/// rises with each such block that is freed, and tables that were outgrown stay as holes between what is small.
pub const MAPPED_BYTES: usize = 128 * 1024;

/// Sets the allocator up, where it is one that can be told; once, before threads start.
pub fn set_up() {
    // SAFETY: it may be called at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES as libc::c_int);
    }
}

/// Gives back what is free, where the allocator is one that can be asked to.
pub fn give_back() {
    // SAFETY: it may be called at any time, from any thread.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_back_once_after_each_burst() {
        let mut calm = Calm::default();
        let mut told = Vec::new();
        let mut accepted = 0;
        for second in 0..200_u64 {
            // Two storms, and one device that comes back now and then.
            accepted += match second {
                10..20 | 100..103 => 1_000,
                second => second % 2,
            };
            if calm.after_burst(second * 1_000, accepted) {
                told.push(second);
            }
        }
        assert_eq!(told, [24, 107]);
    }

    #[test]
    fn few_connections_are_no_burst() {
        let mut calm = Calm::default();
        assert!((0..1_000).all(|second| !calm.after_burst(second * 1_000, second / 4)));
    }
}
