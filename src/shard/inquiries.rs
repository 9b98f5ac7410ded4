//! Questions to shards from threads that do not wait.
//!
//! ```text
//! handler ──ask──▶ inquiries, 1 thread ──Message::Inquiry──▶ shards
//!                        ▲      │ all have answered, or 1 s is over: `then`
//!                        └──────┼──────────── answers ─────────┘
//! ```
//!
//! A shard never waits and never works on an answer: it hands over what it has copied. What is made of the answers is made on this
//! thread. Everything is bounded: the way in, the questions under way, and the time of each.

use std::{
    collections::VecDeque,
    fmt, io,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::Mailbox;
use crate::gateway::{
    Message, ShardId,
    inquiry::{Answer, Inquiry, Question, Reply},
};

/// A shard that has not answered by then is not waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Questions under way.
const UNDER_WAY_MAX: usize = 256;
/// Questions and answers that wait for the thread.
const WAITING_MAX: usize = 1024;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// Too many questions are under way.
    #[error("too many questions to the shards are under way")]
    Busy,
    /// A shard's mailbox is full.
    #[error("shard {0} takes no questions now")]
    Full(u16),
    /// A shard did not answer in time.
    #[error("a shard did not answer within a second")]
    Late,
    /// The gateway stops.
    #[error("the instance is stopping")]
    Stopped,
}

/// What is done with the answers, by shard. Called once, on any thread; it must not block.
type Then = Box<dyn FnOnce(Result<Vec<(ShardId, Answer)>, Unanswered>) + Send>;

enum Event {
    Asked { shards: Vec<u16>, question: Question, then: Then },
    Answered { ticket: u64, shard: ShardId, answer: Answer },
    Stop,
}

/// The way to ask. Made once.
pub struct Inquiries {
    events: Sender<Event>,
    shards: u16,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Inquiries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inquiries").field("shards", &self.shards).finish_non_exhaustive()
    }
}

impl Inquiries {
    /// Starts the thread for these shards.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(mailboxes: Vec<Mailbox>) -> io::Result<Arc<Self>> {
        let (events, inbox) = bounded(WAITING_MAX);
        let shards = u16::try_from(mailboxes.len()).unwrap_or(u16::MAX);
        let desk = Desk {
            mailboxes,
            events: events.clone(),
            under_way: FxHashMap::default(),
            deadlines: VecDeque::new(),
            ticket: 0,
        };
        let thread = std::thread::Builder::new().name("inquiries".to_owned()).spawn(move || desk.run(&inbox))?;
        Ok(Arc::new(Self { events, shards, thread: Mutex::new(Some(thread)) }))
    }

    /// Shards there are.
    pub const fn shards(&self) -> u16 {
        self.shards
    }

    /// Asks all shards.
    pub fn ask_all(
        &self,
        question: Question,
        then: impl FnOnce(Result<Vec<(ShardId, Answer)>, Unanswered>) + Send + 'static,
    ) {
        self.ask((0..self.shards).collect(), question, Box::new(then));
    }

    /// Asks one shard; one that does not exist answers nothing, late.
    pub fn ask_one(
        &self,
        shard: ShardId,
        question: Question,
        then: impl FnOnce(Result<Answer, Unanswered>) + Send + 'static,
    ) {
        let then = |answers: Result<Vec<(ShardId, Answer)>, Unanswered>| {
            then(answers.and_then(|mut answers| answers.pop().map(|(_, answer)| answer).ok_or(Unanswered::Late)));
        };
        self.ask(vec![shard.0], question, Box::new(then));
    }

    fn ask(&self, shards: Vec<u16>, question: Question, then: Then) {
        match self.events.try_send(Event::Asked { shards, question, then }) {
            Err(TrySendError::Full(Event::Asked { then, .. })) => then(Err(Unanswered::Busy)),
            Err(TrySendError::Disconnected(Event::Asked { then, .. })) => then(Err(Unanswered::Stopped)),
            Ok(()) | Err(_) => {}
        }
    }

    /// Ends the thread; whoever waits is told that there is no answer.
    pub fn stop(&self) {
        // A thread that is gone already needs no word.
        drop(self.events.send(Event::Stop));
        if let Some(thread) = self.thread.lock().take() {
            drop(thread.join());
        }
    }
}

struct Pending {
    missing: usize,
    answers: Vec<(ShardId, Answer)>,
    then: Then,
}

struct Desk {
    mailboxes: Vec<Mailbox>,
    events: Sender<Event>,
    under_way: FxHashMap<u64, Pending>,
    /// In the order of asking, which is that of the deadlines. What is answered is left in until its time.
    deadlines: VecDeque<(Instant, u64)>,
    ticket: u64,
}

impl Desk {
    fn run(mut self, inbox: &Receiver<Event>) {
        loop {
            let wait = self.deadlines.front().map(|(deadline, _)| deadline.saturating_duration_since(now()));
            match inbox.recv_timeout(wait.unwrap_or(PATIENCE)) {
                Ok(Event::Asked { shards, question, then }) => self.asked(&shards, &question, then),
                Ok(Event::Answered { ticket, shard, answer }) => self.answered(ticket, shard, answer),
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.expire();
        }
        for (_, pending) in self.under_way.drain() {
            (pending.then)(Err(Unanswered::Stopped));
        }
        for event in inbox.try_iter() {
            if let Event::Asked { then, .. } = event {
                then(Err(Unanswered::Stopped));
            }
        }
    }

    fn asked(&mut self, shards: &[u16], question: &Question, then: Then) {
        if shards.is_empty() {
            return then(Ok(Vec::new()));
        }
        if self.under_way.len() >= UNDER_WAY_MAX {
            return then(Err(Unanswered::Busy));
        }
        self.ticket += 1;
        let ticket = self.ticket;
        for shard in shards {
            let events = self.events.clone();
            let id = ShardId(*shard);
            let reply = Reply::new(move |answer| {
                // Without room it is as if the shard had not answered.
                drop(events.try_send(Event::Answered { ticket, shard: id, answer }));
            });
            let inquiry = Inquiry { question: question.clone(), reply };
            let mailbox = self.mailboxes.get(usize::from(*shard));
            if mailbox.is_none_or(|mailbox| mailbox.send(Message::Inquiry(Box::new(inquiry))).is_err()) {
                // Answers of those asked before find nobody.
                return then(Err(Unanswered::Full(*shard)));
            }
        }
        self.deadlines.push_back((now() + PATIENCE, ticket));
        self.under_way.insert(ticket, Pending { missing: shards.len(), answers: Vec::new(), then });
    }

    fn answered(&mut self, ticket: u64, shard: ShardId, answer: Answer) {
        let Some(pending) = self.under_way.get_mut(&ticket) else { return };
        pending.answers.push((shard, answer));
        pending.missing = pending.missing.saturating_sub(1);
        if pending.missing == 0
            && let Some(mut pending) = self.under_way.remove(&ticket)
        {
            pending.answers.sort_by_key(|(shard, _)| *shard);
            (pending.then)(Ok(pending.answers));
        }
    }

    fn expire(&mut self) {
        let now = now();
        while let Some((deadline, ticket)) = self.deadlines.front().copied()
            && deadline <= now
        {
            self.deadlines.pop_front();
            if let Some(pending) = self.under_way.remove(&ticket) {
                (pending.then)(Err(Unanswered::Late));
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::shard::Wake;

    struct NoWake;

    impl Wake for NoWake {
        fn wake(&self) {}
    }

    fn mailboxes(count: usize, capacity: usize) -> Vec<Mailbox> {
        (0..count).map(|_| Mailbox::new(capacity, Box::new(NoWake))).collect()
    }

    fn asked(inquiries: &Inquiries) -> Receiver<Result<usize, Unanswered>> {
        let (told, answers) = channel();
        inquiries.ask_all(Question::Anomalies, move |answer| told.send(answer.map(|answers| answers.len())).unwrap());
        answers
    }

    /// Waits until a question is in the mailbox, and takes it.
    fn take(mailbox: &Mailbox) -> Reply {
        let until = now() + Duration::from_secs(10);
        while now() < until {
            match mailbox.take() {
                Some(Message::Inquiry(inquiry)) => return inquiry.reply,
                Some(other) => panic!("{other:?}"),
                None => std::thread::yield_now(),
            }
        }
        panic!("no question came");
    }

    #[test]
    fn answers_of_all_shards_come_together() {
        let boxes = mailboxes(3, 8);
        let inquiries = Inquiries::start(boxes.clone()).unwrap();
        let answers = asked(&inquiries);
        for mailbox in boxes.iter().rev() {
            take(mailbox).send(Answer::Anomalies(Vec::new()));
        }
        assert_eq!(answers.recv(), Ok(Ok(3)));
        inquiries.stop();
    }

    #[test]
    fn a_shard_that_is_silent_or_full_keeps_nobody_waiting() {
        let boxes = mailboxes(2, 2);
        let inquiries = Inquiries::start(boxes.clone()).unwrap();
        let late = asked(&inquiries);
        take(&boxes[0]).send(Answer::Anomalies(Vec::new()));
        assert_eq!(late.recv(), Ok(Err(Unanswered::Late)), "the second holds its question and says nothing");
        // Half of a mailbox is kept for outcomes, and the question is still there.
        assert_eq!(asked(&inquiries).recv(), Ok(Err(Unanswered::Full(1))));
        inquiries.stop();
        assert_eq!(asked(&inquiries).recv(), Ok(Err(Unanswered::Stopped)));
    }

    #[test]
    fn a_stop_answers_those_who_wait() {
        let boxes = mailboxes(1, 8);
        let inquiries = Inquiries::start(boxes.clone()).unwrap();
        let waiting = asked(&inquiries);
        drop(take(&boxes[0]));
        inquiries.stop();
        assert!(matches!(waiting.recv(), Ok(Err(Unanswered::Stopped | Unanswered::Late))));
    }
}
