//! The link to Redis says what is so: whether Redis is there, restarted or emptied, and what became of each job, exactly once.
//!
//! Real servers are killed, stopped, restarted and emptied under it. Nothing asserts how long anything takes; deadlines only turn a hang
//! into a failure.

mod services;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use chargegate::cluster::link::{Back, Link, LinkError, LinkSettings, OpenError};
use chargegate::telemetry::health::ComponentState;
use chargegate::telemetry::label::RedisOp;
use services::{Persistence, Redis};

/// Only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);
const WITHIN: Duration = Duration::from_secs(5);

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = now() + PATIENCE;
    while !holds() {
        assert!(now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn settings(url: impl Into<String>) -> LinkSettings {
    LinkSettings {
        command_timeout: Duration::from_millis(300),
        ping_interval: Duration::from_millis(100),
        ..LinkSettings::new(url)
    }
}

fn open(redis: &Redis) -> Arc<Link> {
    Link::open(settings(redis.database())).expect("it answers")
}

fn echo(link: &Link, text: &'static str) -> Result<String, LinkError> {
    link.call(WITHIN, RedisOp::Session, move |connection| redis::cmd("ECHO").arg(text).query(connection))
}

/// What the link tells of Redis coming back.
fn listen(link: &Link) -> mpsc::Receiver<Back> {
    let (told, heard) = mpsc::channel();
    link.on_back(move |back| told.send(back).unwrap_or_default());
    heard
}

#[test]
fn jobs_are_answered_and_error_replies_cost_no_connection() {
    let link = open(services::redis());
    assert_eq!(echo(&link, "hello").as_deref(), Ok("hello"));
    eventually("each worker and the monitor have a connection", || link.counters().connections.get() == 7);
    for _ in 0..20 {
        let refused = link.call(WITHIN, RedisOp::Session, |connection| redis::cmd("NONSENSE").exec(connection));
        assert!(matches!(&refused, Err(LinkError::Refused(text)) if text.contains("NONSENSE")), "{refused:?}");
    }
    assert_eq!(echo(&link, "still").as_deref(), Ok("still"));
    assert_eq!(link.counters().connections.get(), 7);
    assert!(matches!(link.state(), ComponentState::Ok { .. }));
}

#[test]
fn what_cannot_be_used_is_said_at_the_start_and_without_the_password() {
    let mut redis = Redis::start(Persistence::None);
    redis::cmd("CONFIG").arg("SET").arg("requirepass").arg("sesame").exec(&mut redis.client()).unwrap();
    let url = |password: &str| format!("redis://:{password}@127.0.0.1:{}", redis.port());
    assert_eq!(echo(&Link::open(settings(url("sesame"))).unwrap(), "in").as_deref(), Ok("in"));
    for refused in [url("hunter2"), redis.url()] {
        let error = Link::open(settings(refused)).expect_err("the login is refused");
        let text = error.to_string();
        assert!(text.contains("127.0.0.1") && !text.contains("hunter2") && !text.contains('\n'), "{text}");
    }
    let unreachable = url("hunter2");
    redis.kill9();
    let error = Link::open(settings(unreachable)).expect_err("nobody is there");
    assert!(matches!(error, OpenError::Unreachable { .. }) && !error.to_string().contains("hunter2"), "{error}");
    assert!(matches!(Link::open(settings("redis://")), Err(OpenError::Url(_) | OpenError::Unreachable { .. })));
    assert!(matches!(Link::open(settings("http://127.0.0.1")), Err(OpenError::Url(_))));
    assert!(matches!(Link::open(settings("rediss://127.0.0.1/#insecure")), Err(OpenError::Url(_))));
}

#[test]
fn a_dead_server_fails_jobs_at_once_until_it_is_back() {
    let mut redis = Redis::start(Persistence::Always);
    let link = open(&redis);
    let heard = listen(&link);
    redis.kill9();
    eventually("the link notices", || !link.is_up());
    for _ in 0..10_000 {
        let failed = echo(&link, "x");
        assert!(matches!(failed, Err(LinkError::Down(_))), "{failed:?}");
    }
    assert!(matches!(link.state(), ComponentState::Error { .. }));
    assert!(link.connect().is_err());
    let generation = link.generation();
    redis.restart();
    assert!(link.wait_up(PATIENCE));
    assert!(link.generation() > generation);
    assert_eq!(echo(&link, "again").as_deref(), Ok("again"));
    let back = heard.recv_timeout(PATIENCE).expect("told");
    assert!(back.restarted && !back.emptied, "its file was kept: {back:?}");
}

#[test]
fn an_emptied_server_is_told_from_one_that_kept_its_data() {
    let mut redis = Redis::start(Persistence::None);
    let url = redis.database();
    let first = Link::open(settings(&url)).unwrap();
    assert!(first.last_back().emptied, "nothing was there before");
    let second = Link::open(settings(&url)).unwrap();
    assert!(!second.last_back().emptied, "the first one's marker is");
    let (first_heard, second_heard) = (listen(&first), listen(&second));

    redis.restart_empty();
    for heard in [&first_heard, &second_heard] {
        let back = heard.recv_timeout(PATIENCE).expect("told");
        assert!(back.restarted && back.emptied, "whoever comes first: {back:?}");
    }
    redis.flush();
    for heard in [&first_heard, &second_heard] {
        let back = heard.recv_timeout(PATIENCE).expect("told without losing the connection");
        assert!(!back.restarted && back.emptied, "{back:?}");
    }
    assert!(first.is_up() && second.is_up());
}

#[test]
fn a_server_that_hangs_holds_nobody_for_longer_than_a_jobs_time() {
    let redis = Redis::start(Persistence::None);
    let link = open(&redis);
    assert_eq!(echo(&link, "before").as_deref(), Ok("before"));
    redis.pause();
    let failed =
        link.call(Duration::from_millis(200), RedisOp::Guard, |connection| redis::cmd("PING").exec(connection));
    assert!(matches!(failed, Err(LinkError::Timeout | LinkError::Late | LinkError::Down(_))), "{failed:?}");
    // The client library would wait for each of the answers.
    let failed = link.call(Duration::from_millis(200), RedisOp::Session, |connection| {
        let mut pipeline = redis::pipe();
        for _ in 0..10_000 {
            pipeline.cmd("PING").ignore();
        }
        pipeline.exec(connection)
    });
    assert!(matches!(failed, Err(LinkError::Timeout | LinkError::Late | LinkError::Down(_))), "{failed:?}");
    eventually("the link notices", || !link.is_up());
    assert!(matches!(echo(&link, "x"), Err(LinkError::Down(_))));
    redis.resume();
    assert!(link.wait_up(PATIENCE));
    // Answers to what was sent before must not be taken for answers to this.
    for text in ["one", "two", "three", "four", "five", "six", "seven", "eight"] {
        assert_eq!(echo(&link, text).as_deref(), Ok(text));
    }
}

#[test]
fn every_job_is_answered_once_however_many_there_are() {
    const JOBS: usize = 12_000;
    let redis = Redis::start(Persistence::None);
    let link = open(&redis);
    let (answered, full) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    redis.pause();
    for _ in 0..JOBS {
        let (answered, full) = (Arc::clone(&answered), Arc::clone(&full));
        link.submit(
            RedisOp::Session,
            |connection| redis::cmd("PING").exec(connection),
            move |result| {
                full.fetch_add(usize::from(result == Err(LinkError::Full)), Ordering::Relaxed);
                answered.fetch_add(1, Ordering::Relaxed);
            },
        );
    }
    eventually("all are answered while it hangs", || answered.load(Ordering::Relaxed) == JOBS);
    assert!(full.load(Ordering::Relaxed) > 0, "the queue is bounded");
    redis.resume();
    assert!(link.wait_up(PATIENCE));
    assert_eq!(echo(&link, "after").as_deref(), Ok("after"));
    assert_eq!(answered.load(Ordering::Relaxed), JOBS);
}

#[test]
fn a_closed_link_has_run_what_waited_and_refuses_the_rest() {
    const JOBS: usize = 500;
    let redis = services::redis();
    let url = redis.database();
    let link = Link::open(settings(&url)).unwrap();
    let answered = Arc::new(AtomicUsize::new(0));
    for _ in 0..JOBS {
        let answered = Arc::clone(&answered);
        link.submit(
            RedisOp::Session,
            |connection| redis::cmd("INCR").arg("runs").exec(connection),
            move |result| {
                answered.fetch_add(usize::from(result.is_ok()), Ordering::Relaxed);
            },
        );
    }
    link.close();
    assert_eq!(answered.load(Ordering::Relaxed), JOBS);
    assert_eq!(echo(&link, "x"), Err(LinkError::Closed));
    let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
    assert_eq!(redis::cmd("GET").arg("runs").query::<usize>(&mut connection), Ok(JOBS));
}

#[test]
fn a_job_that_panics_harms_no_other() {
    let link = open(services::redis());
    for _ in 0..10 {
        let failed = link.call(WITHIN, RedisOp::Session, |_| -> redis::RedisResult<()> { panic!("a bug") });
        assert_eq!(failed, Err(LinkError::Closed), "its answer is lost");
        assert_eq!(echo(&link, "fine").as_deref(), Ok("fine"));
    }
    // The answer is gone a moment before it is counted.
    eventually("each is counted", || link.counters().panics.get() == 10);
}

#[test]
fn connections_that_the_server_closes_are_made_again() {
    let redis = Redis::start(Persistence::None);
    let link = open(&redis);
    for _ in 0..5 {
        redis::cmd("CLIENT")
            .arg("KILL")
            .arg("TYPE")
            .arg("normal")
            .arg("SKIPME")
            .arg("yes")
            .exec(&mut redis.client())
            .unwrap();
        eventually("jobs run again", || echo(&link, "again").as_deref() == Ok("again"));
    }
}
