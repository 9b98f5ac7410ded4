//! The servers that tests are given: PostgreSQL and Redis start, keep what they confirmed when they are killed, hang while they are
//! paused, and end with the process that started them.

mod services;

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use postgres::{Client, NoTls};
use redis::{Commands as _, Connection};
use services::{Persistence, Postgres, PostgresOptions, Redis};

const CHILD: &str = "SERVICES_START_CHILD";
/// A server that is paused does not answer within this time, however long one waits.
const A_WHILE: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(60);

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}

fn rows(url: &str) -> i64 {
    let mut client = Client::connect(url, NoTls).expect("it takes connections");
    client.query_one("SELECT count(*) FROM kept", &[]).expect("the table is there").get(0)
}

#[test]
fn postgres_keeps_what_was_committed() {
    let mut server = Postgres::start(&PostgresOptions::default());
    let url = server.database("kept");
    let mut client = Client::connect(&url, NoTls).expect("it takes connections");
    client.batch_execute("CREATE TABLE kept (n int)").expect("made");
    for round in 1..=3 {
        client.execute("INSERT INTO kept VALUES (1)", &[]).expect("committed");
        let mut open = Client::connect(&url, NoTls).expect("it takes connections");
        open.batch_execute("BEGIN; INSERT INTO kept VALUES (2)").expect("not committed");
        if round == 2 {
            server.stop_fast();
        } else {
            server.kill9();
        }
        client.execute("SELECT 1", &[]).expect_err("the server is gone");
        Client::connect(&url, NoTls).err().expect("nobody listens");
        server.restart();
        assert_eq!(rows(&url), round);
        client = Client::connect(&url, NoTls).expect("it takes connections");
    }
    assert!(server.log().contains("was not properly shut down"), "{}", server.log());
    assert!(server.log().contains("received fast shutdown request"), "{}", server.log());
}

#[test]
fn postgres_commits_as_it_is_told() {
    let setting = |server: &Postgres, name: &str| -> String {
        server.client().query_one(&format!("SHOW {name}"), &[]).expect("a setting").get(0)
    };
    let settings = vec![("work_mem".to_owned(), "1MB".to_owned()), ("max_connections".to_owned(), "20".to_owned())];
    let server = Postgres::start(&PostgresOptions { settings, ..PostgresOptions::default() });
    assert_eq!(setting(&server, "fsync"), "on");
    assert_eq!(setting(&server, "work_mem"), "1MB");
    assert_eq!(setting(&server, "max_connections"), "20");
    assert_eq!(setting(services::postgres(), "fsync"), "off");
    assert_eq!(setting(services::postgres(), "max_connections"), "200");
}

#[test]
fn a_paused_postgres_answers_nobody() {
    let server = Postgres::start(&PostgresOptions::default());
    let mut client = server.client();
    let connected = server.client();
    server.pause();
    let (answer, answered) = std::sync::mpsc::channel();
    let asker = thread::spawn(move || {
        let one: i32 = client.query_one("SELECT 1", &[]).expect("in the end").get(0);
        answer.send(one).expect("the test listens");
    });
    answered.recv_timeout(A_WHILE).expect_err("it is paused");
    server.resume();
    assert_eq!(answered.recv_timeout(PATIENCE), Ok(1));
    asker.join().expect("it asked");
    // Ends also while it is paused.
    server.pause();
    drop(connected);
    drop(server);
}

#[test]
fn databases_are_fresh() {
    let server = services::postgres();
    let [one, other] = [server.database("same"), server.database("same")];
    for url in [&one, &other] {
        let mut client = Client::connect(url, NoTls).expect("it takes connections");
        client.batch_execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)").expect("the table is not there");
    }
    let copy = server.database_like(&one, "copy");
    Client::connect(&copy, NoTls).expect("a database").execute("INSERT INTO kept VALUES (2)", &[]).expect("a table");
    assert_eq!([&one, &copy, &other].map(|url| rows(url)), [1, 2, 1]);
}

fn redis_at(url: &str) -> Connection {
    let client = redis::Client::open(url).expect("a sound URL");
    client.get_connection().expect("it takes connections")
}

fn value(server: &Redis) -> Option<u32> {
    server.client().get("key").expect("an answer")
}

#[test]
fn redis_keeps_what_it_is_told_to_keep() {
    for persistence in [Persistence::EverySecond, Persistence::Always, Persistence::None] {
        let mut server = Redis::start(persistence);
        let mut client = server.client();
        client.set::<_, _, ()>("key", 7).expect("set");
        server.kill9();
        client.get::<_, Option<u32>>("key").expect_err("the server is gone");
        redis::Client::open(server.url()).and_then(|client| client.get_connection()).err().expect("nobody listens");
        server.restart();
        let keeps = persistence != Persistence::None;
        assert_eq!(value(&server), keeps.then_some(7), "{persistence:?}");
        server.restart_empty();
        assert_eq!(value(&server), None, "{persistence:?}");
        server.client().set::<_, _, ()>("key", 8).expect("set");
        server.flush();
        server.restart();
        assert_eq!(value(&server), None, "{persistence:?}");
    }
}

#[test]
fn a_paused_redis_answers_nobody() {
    let server = Redis::start(Persistence::None);
    let mut client = server.client();
    client.set_read_timeout(Some(A_WHILE)).expect("not zero");
    server.pause();
    client.get::<_, Option<u32>>("key").expect_err("it is paused");
    server.resume();
    assert_eq!(value(&server), None);
}

#[test]
fn redis_databases_are_fresh() {
    let [one, other] = [services::redis().database(), services::redis().database()];
    redis_at(&one).set::<_, _, ()>("key", 1).expect("set");
    assert_eq!(redis_at(&other).get::<_, Option<u32>>("key").expect("an answer"), None);
    assert_eq!(redis_at(&one).get::<_, Option<u32>>("key").expect("an answer"), Some(1));
}

/// Not a test of its own: it runs only when the test below starts it.
#[test]
fn child() {
    if env::var_os(CHILD).is_none() {
        return;
    }
    let mut server = Postgres::start(&PostgresOptions::default());
    server.restart();
    println!("\nstarted {} {}", server.directory().display(), services::redis().directory().display());
    loop {
        thread::park();
    }
}

#[test]
fn servers_end_with_a_killed_process() {
    let mut child = Command::new(env::current_exe().expect("this one"))
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let line = lines.map_while(Result::ok).find(|line| line.starts_with("started ")).expect("it starts servers");
    let directories: Vec<&Path> = line.split(' ').skip(1).map(Path::new).collect();
    assert!(directories.len() == 2 && directories.iter().all(|directory| directory.is_dir()), "{line}");
    let running = || {
        fs::read_dir("/proc").expect("Linux").flatten().any(|process| {
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            directories
                .iter()
                .any(|directory| String::from_utf8_lossy(&command).contains(&*directory.to_string_lossy()))
        })
    };
    assert!(running());
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let deadline = now() + PATIENCE;
    while running() || directories.iter().any(|directory| directory.exists()) {
        assert!(now() < deadline, "left behind: {line}");
        thread::sleep(Duration::from_millis(5));
    }
}
