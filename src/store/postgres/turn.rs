//! Whose turn it is among the lanes.
//!
//! A transaction costs the server something of its own, whatever is in it. Lanes that begin as soon as they have a job make many
//! small ones, side by side: on two cores a start over HTTP then took a fifth more of their time. So one lane at a time reads and
//! runs its jobs; from its last statements on, which are of its own devices only, and through its COMMIT, which waits for the disk, it is
//! the next one's turn, and what is submitted meanwhile gathers. (With a turn until the COMMIT an order takes 4 % less of
//! the machine's time, but a quarter of two cores stays unused, and a sixth fewer orders get through.) Nobody waits who would have nothing
//! to wait for: an idle store begins at once, a lane with a full batch does not wait, and nobody waits for long.

use std::{sync::Arc, time::Duration};

use parking_lot::{Condvar, Mutex};

use super::watch::now;

/// Longest wait for a turn. A lane may be held up by a row that another instance has; the others then go on beside it.
const WAIT_MAX: Duration = Duration::from_millis(20);
/// How often a lane that waits looks whether its batch is full.
const LOOK: Duration = Duration::from_millis(4);

/// The turn of the lanes of one store.
#[derive(Clone, Debug, Default)]
pub(super) struct Turn(Arc<State>);

#[derive(Debug, Default)]
struct State {
    taken: Mutex<bool>,
    free: Condvar,
}

/// A lane has its turn until this is dropped.
#[derive(Debug)]
pub(super) struct Held(Arc<State>);

impl Turn {
    /// Waits until it is this lane's turn; `None`: its batch is full, or it has waited for long enough, and goes without.
    pub(super) fn wait(&self, full: impl Fn() -> bool) -> Option<Held> {
        let until = now() + WAIT_MAX;
        let mut taken = self.0.taken.lock();
        while *taken {
            let now = now();
            if now >= until || full() {
                return None;
            }
            self.0.free.wait_until(&mut taken, until.min(now + LOOK));
        }
        *taken = true;
        Some(Held(Arc::clone(&self.0)))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.0.taken.lock() = false;
        self.0.free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn one_lane_has_the_turn_until_it_gives_it_up() {
        let turn = Turn::default();
        let first = turn.wait(|| false).expect("nobody has it");
        assert!(turn.wait(|| true).is_none(), "a full batch does not wait");
        assert!(turn.wait(|| false).is_none(), "nobody waits for ever");
        drop(first);
        assert!(turn.wait(|| true).is_some(), "a full batch takes the turn that is free");
    }

    #[test]
    fn whoever_waits_gets_the_turn_that_is_given_up() {
        let turn = Turn::default();
        let first = turn.wait(|| false).expect("nobody has it");
        let (waits, waiting) = channel();
        let second = std::thread::spawn({
            let turn = turn.clone();
            move || {
                loop {
                    let looked = || {
                        // Asked only while somebody else has the turn.
                        waits.send(()).expect("the test listens");
                        false
                    };
                    if let Some(held) = turn.wait(looked) {
                        return held;
                    }
                }
            }
        });
        waiting.recv().expect("the other lane waits");
        drop(first);
        let held = second.join().expect("the other lane has not panicked");
        assert!(turn.wait(|| true).is_none(), "it has the turn now");
        drop(held);
        assert!(turn.wait(|| true).is_some());
    }
}
