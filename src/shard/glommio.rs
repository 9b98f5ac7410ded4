//! The io_uring engine: one pinned glommio executor per shard, and one task in it.
//!
//! ```text
//! sockets, listeners, wake-up ──▶ epoll set ──poll request──▶ ring ──▶ the shard's task ──▶ a turn, as on epoll
//! ```
//!
//! glommio gives a socket to the ring by one poll request per message: allocated, submitted, completed and woken for each of them
//! alone, and up to four requests more for its own timers each time the executor looks at its rings. That costs up to two thirds
//! of a heartbeat. So the ring watches one thing here, the epoll set of the shard, which holds what it holds on the epoll engine;
//! turns are the same too ([`Epoll`]). What is ready is fetched from the set without waiting, as long as there is any, and a
//! request goes to the ring only when the shard has nothing left to do. Per message there is no task, no waker and no request.
//!
//! **The preemption timer must not ring.** `LocalExecutor::run` looks at its rings, then runs its tasks unless a signal is there, and
//! if it has run none it sleeps: whether there was none to run, or the signal came in between. A thread that is not scheduled for
//! the timer's time at that point goes to sleep beside a task that was woken already, until some other event comes; the devices
//! whose messages woke it may wait for their answers for good. What gives the signal is a completion in one of its rings, and
//! there is none: the timer is set to more than a process's life, the alarm of a wait is in that ring only while the executor
//! sleeps, and other threads wake a shard through the set. Nothing here needs to be preempted: the task is alone.
//!
//! glommio must start with 8 MiB of lockable memory, so its buffers are small: its own default would register 10 MiB.

use std::{
    future::{Future as _, poll_fn},
    io,
    os::fd::{FromRawFd, IntoRawFd},
    pin::Pin,
    task::Poll,
    time::Duration,
};

use futures_io::AsyncRead;
use glommio::{LocalExecutor, LocalExecutorBuilder, Placement, net::UnixStream, timer::Timer};

use super::{Driver, launch::Bound, mio::Epoll};

/// glommio's least. It holds buffers of file I/O, which a shard has none of.
const IO_MEMORY_BYTES: usize = 64 * 1024;
/// A shard has a handful of requests in its rings. With rings of this depth, 8 MiB of lockable memory are enough for hundreds.
const RING_DEPTH: usize = 16;
/// Longer than a process lives: see above.
const PREEMPT: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Makes the executor of the current thread, pinned to `cpu`. It fails where io_uring is refused.
pub(super) fn executor(cpu: Option<usize>) -> io::Result<LocalExecutor> {
    LocalExecutorBuilder::new(cpu.map_or(Placement::Unbound, Placement::Fixed))
        .io_memory(IO_MEMORY_BYTES)
        .ring_depth(RING_DEPTH)
        .preempt_timer(PREEMPT)
        .make()
        .map_err(|error| io::Error::other(error.to_string()))
}

/// Runs a shard on the current thread until it is drained.
pub(super) fn run(executor: &LocalExecutor, poll: mio::Poll, bound: Vec<Bound>, driver: Driver) -> io::Result<()> {
    executor.run(serve(Epoll::new(poll, bound)?, driver))
}

async fn serve(mut epoll: Epoll, mut driver: Driver) -> io::Result<()> {
    let mut ring = Ring { request: None, alarm: None };
    while let Some(wait_ms) = epoll.turn(&mut driver) {
        let parked = wait_ms > 0 && driver.park();
        // What comes from here on is in the set, the wake-up of a message too.
        if !epoll.look(0)? && parked {
            ring.wait(&epoll, driver.now().mono_ms + wait_ms, wait_ms).await?;
            epoll.look(0)?;
        }
        driver.unpark();
        driver.awake();
    }
    Ok(())
}

/// What a shard that waits has in the ring.
struct Ring {
    /// The poll request for the set. glommio makes one for a stream as it is made, and tells it from a socket only by reading.
    request: Option<UnixStream>,
    /// When it rings, in milliseconds of the monotonic clock.
    alarm: Option<(u64, Timer)>,
}

impl Ring {
    /// Waits until something in the set is ready, at most `wait_ms`, which end `at`. It may end early.
    async fn wait(&mut self, epoll: &Epoll, at: u64, wait_ms: u64) -> io::Result<()> {
        let Self { request, alarm } = self;
        if request.is_none() {
            let set = epoll.as_fd().try_clone_to_owned()?;
            // SAFETY: the descriptor is open and given up. Nothing is read from it but an error.
            *request = Some(unsafe { UnixStream::from_raw_fd(set.into_raw_fd()) });
        }
        // An alarm that rings early is kept: a turn too many costs less than arming it anew each time.
        if alarm.as_ref().is_none_or(|(armed, _)| *armed > at) {
            *alarm = Some((at, Timer::new(Duration::from_millis(wait_ms))));
        }
        poll_fn(|cx| {
            // Pending until the request is complete; then the set turns out to be no socket.
            let ready = take_ready(request, |stream| Pin::new(stream).poll_read(cx, &mut [0]).is_ready());
            let rung = take_ready(alarm, |(_, timer)| Pin::new(timer).poll(cx).is_ready());
            if ready || rung { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        Ok(())
    }
}

/// Drops a source that is ready; says whether it was.
fn take_ready<S>(source: &mut Option<S>, is_ready: impl FnOnce(&mut S) -> bool) -> bool {
    let ready = source.as_mut().is_some_and(is_ready);
    if ready {
        *source = None;
    }
    ready
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the head of this file says of the preemption timer. Where io_uring is refused there is nothing to check.
    #[test]
    fn a_thread_that_was_not_scheduled_does_not_sleep_beside_its_task() {
        let Ok(executor) = executor(None) else { return eprintln!("io_uring is refused") };
        executor.run(async {
            std::thread::sleep(Duration::from_millis(300));
            assert!(!glommio::executor().need_preempt());
        });
    }
}
