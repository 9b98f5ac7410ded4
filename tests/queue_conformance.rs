//! Both queues keep the same promises: what was pushed comes out once, the lowest score first, whoever pushed it and however often.
//!
//! Each test of the suite runs against the queue in memory and the one in Redis; a model made of a sorted list compares random
//! sequences. The Redis one is then killed, stopped, emptied and restarted.

mod services;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chargegate::cluster::{Link, ServerId, link::LinkSettings};
use chargegate::model::{DeviceId, Priority};
use chargegate::queue::{EmbeddedQueue, Entry, Queue, QueueError, RedisQueue, Taken};
use proptest::prelude::*;
use services::{Persistence, Redis};

/// Only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);
const NONE: Duration = Duration::ZERO;
const AT_NS: i64 = 1_700_000_000_000_000_000;
const SECOND: i64 = 1_000_000_000;

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

fn me() -> ServerId {
    ServerId::from("0190b5a8-0000-7000-8000-000000000001")
}

fn settings(url: impl Into<String>) -> LinkSettings {
    LinkSettings {
        command_timeout: Duration::from_millis(300),
        ping_interval: Duration::from_millis(100),
        ..LinkSettings::new(url)
    }
}

/// A queue, and how to wait until what was pushed is in it.
struct Fixture {
    queue: Arc<dyn Queue>,
    settle: Box<dyn Fn(u64)>,
    pushed: u64,
}

impl Fixture {
    fn embedded() -> Self {
        Self { queue: Arc::new(EmbeddedQueue::new(me())), settle: Box::new(|_| {}), pushed: 0 }
    }

    fn redis(link: &Arc<Link>, server: &ServerId) -> Self {
        let queue = Arc::new(RedisQueue::new(Arc::clone(link), server));
        let settled = Arc::clone(&queue);
        let settle = move |pushed| {
            eventually("the pushed is sent", || settled.pushed() == pushed);
            assert_eq!(settled.dropped(), 0);
        };
        Self { queue, settle: Box::new(settle), pushed: 0 }
    }

    fn push(&mut self, entries: Vec<Entry>) {
        self.pushed += entries.len() as u64;
        self.queue.push(&me(), entries);
        (self.settle)(self.pushed);
    }

    fn pop(&self, max: usize) -> Vec<i64> {
        self.queue.pop(max, NONE).expect("it is there")
    }
}

fn link() -> Arc<Link> {
    Link::open(settings(services::redis().database())).expect("it answers")
}

/// Runs a test against both.
fn both(test: impl Fn(&mut Fixture)) {
    test(&mut Fixture::embedded());
    test(&mut Fixture::redis(&link(), &me()));
}

fn entry(id: i64, priority: Priority, at_ns: i64) -> Entry {
    Entry { id, device_id: None, priority, at_ns }
}

fn ids(range: std::ops::Range<i64>) -> Vec<Entry> {
    range.map(|id| entry(id, Priority::Normal, AT_NS + id * SECOND)).collect()
}

#[test]
fn the_most_urgent_come_first_and_each_once() {
    both(|fixture| {
        fixture.push(vec![
            entry(1, Priority::Idle, AT_NS),
            entry(2, Priority::Normal, AT_NS + SECOND),
            entry(3, Priority::Normal, AT_NS),
            entry(4, Priority::High, AT_NS + 2 * SECOND),
            entry(5, Priority::Low, AT_NS - 3_001 * SECOND),
            entry(6, Priority::Emergency, AT_NS + 999 * SECOND),
        ]);
        assert_eq!(fixture.pop(10), [6, 4, 5, 3, 2, 1]);
        assert_eq!(fixture.pop(10), [0_i64; 0]);
    });
}

#[test]
fn ties_are_in_the_order_of_ids_as_text() {
    both(|fixture| {
        fixture.push([9, 10, 100, 11, 1].map(|id| entry(id, Priority::High, AT_NS)).to_vec());
        assert_eq!(fixture.pop(10), [1, 10, 100, 11, 9]);
    });
}

#[test]
fn an_entry_says_whom_it_is_for_and_keeps_its_place() {
    both(|fixture| {
        let device_id: DeviceId = "40aace04".parse().unwrap();
        let named = |id| Entry { device_id: Some(device_id), ..entry(id, Priority::High, AT_NS) };
        fixture.push(vec![named(9), named(10), entry(100, Priority::High, AT_NS), named(1), named(1)]);
        let whom = |id| Taken { id, device_id: (id != 100).then_some(device_id) };
        assert_eq!(fixture.queue.take(10, NONE).unwrap(), [1, 10, 100, 9].map(whom));
    });
}

#[test]
fn a_doubled_entry_is_one_at_its_better_place() {
    both(|fixture| {
        fixture.push(vec![entry(1, Priority::Normal, AT_NS), entry(2, Priority::Normal, AT_NS + SECOND)]);
        fixture.push(vec![entry(1, Priority::Normal, AT_NS + 5 * SECOND), entry(2, Priority::High, AT_NS)]);
        assert_eq!(fixture.pop(10), [2, 1]);
        fixture.push(vec![entry(1, Priority::Normal, AT_NS + 5 * SECOND)]);
        fixture.push(vec![entry(2, Priority::Normal, AT_NS + 4 * SECOND)]);
        assert_eq!(fixture.pop(10), [2, 1], "what was popped leaves no trace");
    });
}

#[test]
fn no_more_are_popped_than_asked_for() {
    both(|fixture| {
        fixture.push(ids(1..6));
        assert_eq!(fixture.pop(0), [0_i64; 0]);
        assert_eq!(fixture.pop(2), [1, 2]);
        assert_eq!(fixture.pop(usize::from(u16::MAX)), [3, 4, 5]);
    });
}

#[test]
fn a_pop_waits_for_a_push() {
    both(|fixture| {
        let queue = Arc::clone(&fixture.queue);
        let popping = thread::spawn(move || queue.pop(9, PATIENCE));
        fixture.push(ids(7..8));
        assert_eq!(popping.join().unwrap().as_deref(), Ok(&[7][..]));
    });
}

#[test]
fn closing_ends_a_pop_under_way() {
    both(|fixture| {
        let queue = Arc::clone(&fixture.queue);
        let popping = thread::spawn(move || queue.pop(9, PATIENCE));
        fixture.queue.close();
        assert_eq!(popping.join().unwrap(), Err(QueueError::Closed));
        assert_eq!(fixture.queue.pop(9, PATIENCE), Err(QueueError::Closed));
    });
}

#[test]
fn lengths_are_by_priority() {
    both(|fixture| {
        #[expect(clippy::disallowed_methods, reason = "the clock enters here")]
        let now_ns = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap();
        let mut entries = Vec::new();
        for (index, priority) in (0..).zip(Priority::ALL) {
            // As many as its place says, some of them old.
            entries.extend((0..=index).map(|n| entry(index * 10 + n, priority, now_ns - n * 200 * SECOND)));
        }
        fixture.push(entries);
        eventually("they are counted", || fixture.queue.len_by_priority() == [1, 2, 3, 4, 5]);
        assert_eq!(fixture.pop(100).len(), 15);
        eventually("none are counted", || fixture.queue.len_by_priority() == [0; 5]);
    });
}

#[test]
fn a_forgotten_queue_is_empty() {
    both(|fixture| {
        fixture.push(ids(0..100));
        fixture.queue.forget(&me());
        let queue = Arc::clone(&fixture.queue);
        eventually("nothing is counted", || queue.len_by_priority() == [0; 5]);
        // Forgetting is on its way while the first lengths are those of before.
        eventually("it is empty", || fixture.pop(1).is_empty());
    });
}

#[derive(Clone, Debug)]
enum Step {
    Push(Vec<Entry>),
    Pop(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let entry = (0..30_i64, prop::sample::select(&Priority::ALL[..]), 0..40_i64).prop_map(|(id, priority, at)| {
        // Some ties, some closer than a double can tell, some a step of priority apart.
        let at_ns = match at {
            0..10 => AT_NS + at * 100,
            10..30 => AT_NS + at * SECOND,
            _ => AT_NS - at * 100 * SECOND,
        };
        Entry { id, device_id: None, priority, at_ns }
    });
    let step =
        prop_oneof![prop::collection::vec(entry, 0..12).prop_map(Step::Push), (0..12_usize).prop_map(Step::Pop),];
    prop::collection::vec(step, 1..30)
}

/// Plays the steps to a queue and a map of scores side by side.
fn agrees_with_the_model(fixture: &mut Fixture, steps: &[Step]) {
    let mut model: BTreeMap<i64, f64> = BTreeMap::new();
    let mut take = |steps: &[Entry], max: usize| {
        for entry in steps {
            let score = model.entry(entry.id).or_insert(f64::INFINITY);
            *score = score.min(entry.score());
        }
        let mut order: Vec<(i64, f64)> = model.iter().map(|(id, score)| (*id, *score)).collect();
        order.sort_by(|one, other| one.1.total_cmp(&other.1).then_with(|| one.0.to_string().cmp(&other.0.to_string())));
        order.truncate(max);
        for (id, _) in &order {
            model.remove(id);
        }
        order.into_iter().map(|(id, _)| id).collect::<Vec<i64>>()
    };
    for step in steps {
        match step {
            Step::Push(entries) => {
                take(entries, 0);
                fixture.push(entries.clone());
            }
            Step::Pop(max) => assert_eq!(fixture.pop(*max), take(&[], *max)),
        }
    }
    assert_eq!(fixture.pop(1_000), take(&[], 1_000));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_embedded_queue_is_the_model(steps in steps()) {
        agrees_with_the_model(&mut Fixture::embedded(), &steps);
    }
}

#[test]
fn the_redis_queue_is_the_model() {
    let link = link();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 60,
        source_file: Some(file!()),
        ..ProptestConfig::default()
    });
    let played = runner.run(&steps(), |steps| {
        agrees_with_the_model(&mut Fixture::redis(&link, &me()), &steps);
        Ok(())
    });
    played.unwrap();
}

#[test]
fn a_full_embedded_queue_drops_and_counts() {
    let queue = EmbeddedQueue::with_max(me(), 3);
    queue.push(&me(), ids(0..5));
    queue.push(&me(), ids(0..1));
    assert_eq!(queue.dropped(), 2);
    assert_eq!(queue.pop(9, NONE).as_deref(), Ok(&[0, 1, 2][..]));
    queue.push(&me(), ids(9..10));
    assert_eq!(queue.pop(9, NONE).as_deref(), Ok(&[9][..]));
}

#[test]
fn instances_push_to_each_other() {
    let link = link();
    let other = ServerId::from("0190b5a8-0000-7000-8000-000000000002");
    let mine = Fixture::redis(&link, &me());
    let mut others = Fixture::redis(&link, &other);
    others.push(ids(1..4));
    mine.queue.push(&other, ids(5..6));
    assert_eq!(mine.queue.pop(1, PATIENCE).as_deref(), Ok(&[1][..]));
    assert_eq!(mine.pop(9), [2, 3]);
    assert_eq!(others.queue.pop(9, PATIENCE).as_deref(), Ok(&[5][..]));
}

#[test]
fn members_that_are_no_ids_are_passed_over() {
    let redis = Redis::start(Persistence::None);
    let link = Link::open(settings(redis.url())).unwrap();
    let mut fixture = Fixture::redis(&link, &me());
    let key = format!("outbound:queue:{}", me());
    redis::cmd("ZADD").arg(&key).arg(0).arg("garbage").exec(&mut redis.client()).unwrap();
    fixture.push(ids(1..2));
    assert_eq!(fixture.queue.pop(9, PATIENCE).as_deref(), Ok(&[1][..]));
    redis::cmd("SET").arg(&key).arg("of another type").exec(&mut redis.client()).unwrap();
    assert!(matches!(fixture.queue.pop(9, NONE), Err(QueueError::Away(_))));
    redis::cmd("DEL").arg(&key).exec(&mut redis.client()).unwrap();
    fixture.push(ids(2..3));
    assert_eq!(fixture.queue.pop(9, PATIENCE).as_deref(), Ok(&[2][..]));
}

#[test]
fn a_restart_with_its_file_keeps_the_queue() {
    let mut redis = Redis::start(Persistence::Always);
    let link = Link::open(settings(redis.url())).unwrap();
    let mut fixture = Fixture::redis(&link, &me());
    fixture.push(ids(1..50));
    assert_eq!(fixture.pop(10), (1..11).collect::<Vec<i64>>());
    redis.restart();
    let mut popped = Vec::new();
    eventually("all come out", || {
        popped.extend(fixture.queue.pop(10, NONE).unwrap_or_default());
        popped.len() >= 39
    });
    assert_eq!(popped, (11..50).collect::<Vec<i64>>());
}

#[test]
fn a_restart_without_loses_it_and_goes_on() {
    let mut redis = Redis::start(Persistence::None);
    let link = Link::open(settings(redis.url())).unwrap();
    let mut fixture = Fixture::redis(&link, &me());
    fixture.push(ids(1..50));
    redis.restart_empty();
    eventually("the link notices", || link.generation() > 1);
    assert!(link.wait_up(PATIENCE));
    eventually("popping works", || fixture.queue.pop(9, NONE).is_ok_and(|ids| ids.is_empty()));
    fixture.push(ids(60..61));
    assert_eq!(fixture.queue.pop(9, PATIENCE).as_deref(), Ok(&[60][..]));
}

#[test]
fn a_kill_while_popping_is_survived() {
    let mut redis = Redis::start(Persistence::None);
    let link = Link::open(settings(redis.url())).unwrap();
    let queue = Arc::new(RedisQueue::new(Arc::clone(&link), &me()));
    let mut pushed = 0;
    for round in 0..3 {
        let popper = Arc::clone(&queue);
        let popping = thread::spawn(move || popper.pop(9, PATIENCE));
        let blocked = |redis: &Redis| -> bool {
            let info: String = redis::cmd("INFO").arg("clients").query(&mut redis.client()).unwrap();
            info.contains("blocked_clients:1")
        };
        eventually("it blocks", || blocked(&redis));
        redis.restart_empty();
        // A push may be lost while the link finds out; commands are pushed again by their poll.
        eventually("it comes out", || {
            queue.push(&me(), ids(round..round + 1));
            pushed += 1;
            popping.is_finished()
        });
        assert_eq!(popping.join().unwrap().as_deref(), Ok(&[round][..]));
        eventually("no push is under way", || queue.pushed() + queue.dropped() == pushed);
        eventually("none is left", || queue.pop(9, NONE).is_ok_and(|ids| ids.is_empty()));
    }
}

#[test]
fn a_server_that_hangs_makes_pops_fail_and_pushes_drop() {
    let redis = Redis::start(Persistence::None);
    let link = Link::open(settings(redis.url())).unwrap();
    let queue = RedisQueue::new(Arc::clone(&link), &me());
    assert_eq!(queue.pop(9, NONE).as_deref(), Ok(&[][..]));
    redis.pause();
    assert!(matches!(queue.pop(9, Duration::from_millis(50)), Err(QueueError::Away(_))));
    for _ in 0..200 {
        queue.push(&me(), ids(0..1_000));
    }
    eventually("all of it is dropped", || queue.dropped() + queue.pushed() == 200_000);
    eventually("the link notices", || !link.is_up());
    queue.push(&me(), ids(0..1));
    assert_eq!(queue.dropped() + queue.pushed(), 200_001);
    redis.resume();
    assert!(link.wait_up(PATIENCE));
    queue.push(&me(), ids(5_000..5_001));
    // What reached the server before it was stopped may come first.
    eventually("it comes out", || queue.pop(1_000, NONE).is_ok_and(|ids| ids.contains(&5_000)));
}
