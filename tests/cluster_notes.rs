//! Notes reach the instances they are for, once Redis is there, and every listener knows when it may have missed some.

mod services;

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use chargegate::cluster::{Link, Note, Notes, ServerId, link::LinkSettings};
use services::{Persistence, Redis};

/// Only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = now() + PATIENCE;
    while !holds() {
        assert!(now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

struct Instance {
    id: ServerId,
    notes: Notes,
    heard: mpsc::Receiver<Note>,
    link: Arc<Link>,
}

impl Instance {
    /// Starts, and waits until it hears.
    fn start(redis: &Redis, id: &str) -> Self {
        let settings = LinkSettings {
            command_timeout: Duration::from_millis(300),
            ping_interval: Duration::from_millis(100),
            ..LinkSettings::new(redis.url())
        };
        let link = Link::open(settings).unwrap();
        let notes = Notes::start(Arc::clone(&link), id.into()).unwrap();
        let (hear, heard) = mpsc::channel();
        notes.listen(move |note| hear.send(note).unwrap_or_default()).unwrap();
        let instance = Self { id: id.into(), notes, heard, link };
        assert_eq!(instance.next(), Note::Reconnected);
        instance
    }

    fn next(&self) -> Note {
        self.heard.recv_timeout(PATIENCE).expect("a note")
    }
}

fn superseded(epoch: i64) -> Note {
    Note::Superseded { device_id: "40aace04".parse().unwrap(), epoch }
}

#[test]
fn notes_go_to_whom_they_are_for_in_order() {
    let redis = Redis::start(Persistence::None);
    let (one, two, three) =
        (Instance::start(&redis, "one"), Instance::start(&redis, "two"), Instance::start(&redis, "three"));
    for epoch in 0..3_000 {
        one.notes.publish(&two.id, superseded(epoch));
    }
    for epoch in 0..3_000 {
        assert_eq!(two.next(), superseded(epoch));
    }
    two.notes.broadcast(superseded(-1));
    assert_eq!([one.next(), three.next()], [superseded(-1), superseded(-1)]);
    one.notes.publish(&one.id, superseded(-2));
    assert_eq!(one.next(), superseded(-2), "to oneself by name is heard");
    two.notes.publish(&two.id, superseded(-3));
    assert_eq!(two.next(), superseded(-3), "its own broadcast is not");
    assert_eq!(one.notes.dropped() + two.notes.dropped(), 0);
}

#[test]
fn committed_events_become_few_notes_and_the_last_position_arrives() {
    let redis = Redis::start(Persistence::None);
    let (one, two) = (Instance::start(&redis, "one"), Instance::start(&redis, "two"));
    for pos in (0..10_000).rev() {
        one.notes.broadcast(Note::EventsCommitted { pos: Some(pos) });
    }
    one.notes.broadcast(Note::EventsCommitted { pos: Some(10_000) });
    let mut notes = 1;
    while two.next() != (Note::EventsCommitted { pos: Some(10_000) }) {
        notes += 1;
    }
    assert!(notes < 10_000, "each was sent");
    one.notes.broadcast(Note::EventsCommitted { pos: None });
    assert_eq!(two.next(), Note::EventsCommitted { pos: None });
}

#[test]
fn what_cannot_be_read_is_counted_and_passed_over() {
    let redis = Redis::start(Persistence::None);
    let one = Instance::start(&redis, "one");
    let mut client = redis.client();
    for text in
        ["nonsense", r#"{"from":"x","note":"of_tomorrow"}"#, r#"{"from":"x","note":"events_committed","pos":4}"#]
    {
        redis::cmd("PUBLISH").arg("note:one").arg(text).exec(&mut client).unwrap();
    }
    assert_eq!(one.next(), Note::EventsCommitted { pos: Some(4) });
    let counters = one.notes.counters();
    assert_eq!((counters.malformed.get(), counters.unknown.get(), counters.heard.get()), (1, 1, 1));
}

#[test]
fn a_listener_is_told_that_it_may_have_missed_some() {
    let mut redis = Redis::start(Persistence::None);
    let (one, two) = (Instance::start(&redis, "one"), Instance::start(&redis, "two"));
    redis.kill9();
    eventually("the link notices", || !one.link.is_up() && !two.link.is_up());
    one.notes.publish(&two.id, superseded(1));
    eventually("it is dropped", || one.notes.dropped() == 1);
    redis.restart();
    assert_eq!([one.next(), two.next()], [Note::Reconnected, Note::Reconnected]);
    one.notes.publish(&two.id, superseded(2));
    assert_eq!(two.next(), superseded(2));

    // Only the listener's connection ends.
    redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub").exec(&mut redis.client()).unwrap();
    assert_eq!(two.next(), Note::Reconnected);
    one.notes.publish(&two.id, superseded(3));
    assert_eq!(two.next(), superseded(3));
}

#[test]
fn a_server_that_hangs_is_left_and_found_again() {
    let redis = Redis::start(Persistence::None);
    let (one, two) = (Instance::start(&redis, "one"), Instance::start(&redis, "two"));
    redis.pause();
    for epoch in 0..100_000 {
        one.notes.publish(&two.id, superseded(epoch));
    }
    eventually("the link notices", || !two.link.is_up());
    redis.resume();
    // What was sent before it hung may be heard first, and the outbox may be full of it.
    eventually("it listens again", || two.heard.try_iter().any(|note| note == Note::Reconnected));
    one.link.wait_up(PATIENCE);
    eventually("it hears", || {
        one.notes.publish(&two.id, superseded(-1));
        two.heard.try_iter().any(|note| note == superseded(-1))
    });
    assert!(one.notes.dropped() > 0, "the outbox is bounded");
}

#[test]
fn a_handler_that_panics_hears_the_next_note() {
    let redis = Redis::start(Persistence::None);
    let one = Instance::start(&redis, "one");
    let notes = Notes::start(Arc::clone(&one.link), "two".into()).unwrap();
    let (hear, heard) = mpsc::channel();
    let handler = move |note: Note| {
        assert_ne!(note, superseded(1), "a bug");
        hear.send(note).unwrap_or_default();
    };
    notes.listen(handler).unwrap();
    assert_eq!(heard.recv_timeout(PATIENCE), Ok(Note::Reconnected));
    one.notes.publish(&"two".into(), superseded(1));
    one.notes.publish(&"two".into(), superseded(2));
    assert_eq!(heard.recv_timeout(PATIENCE), Ok(superseded(2)));
    assert_eq!(notes.counters().panics.get(), 1);
}
