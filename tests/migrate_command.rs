//! `chargegate migrate` run as the real binary: it makes and updates its own database and leaves every other alone.

mod services;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use chargegate::store::sqlite::Db;
use rusqlite::Connection;
use tempfile::TempDir;

fn migrate(dir: &Path, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chargegate"));
    command.env_clear().arg("migrate").envs(variables.iter().copied()).current_dir(dir).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

fn assert_refused(dir: &TempDir, reason: &str) {
    let database = dir.path().join("d/chargegate.db");
    let before = fs::read(&database).unwrap();
    let output = migrate(dir.path(), &[("CHARGEGATE_DATA_DIR", "d")]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), ""));
    let error = text(&output.stderr);
    assert!(error.contains(reason) && error.lines().count() == 1, "{error}");
    assert!(fs::read(&database).unwrap() == before, "the database was changed");
}

fn database(dir: &TempDir) -> Connection {
    fs::create_dir_all(dir.path().join("d")).unwrap();
    Connection::open(dir.path().join("d/chargegate.db")).unwrap()
}

#[test]
fn a_new_database_is_made_and_a_current_one_left() {
    let dir = TempDir::new().unwrap();
    let newest = Db::schema_version();
    for before in [0, newest] {
        let output = migrate(dir.path(), &[("CHARGEGATE_DATA_DIR", "d/e")]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_eq!(
            text(&output.stdout),
            format!("d/e/chargegate.db: schema version {before} before, {newest} after\n")
        );
    }
}

#[test]
fn a_database_of_a_newer_build_is_refused() {
    let dir = TempDir::new().unwrap();
    assert_eq!(migrate(dir.path(), &[("CHARGEGATE_DATA_DIR", "d")]).status.code(), Some(0));
    let newer = "INSERT INTO refinery_schema_history (version, name, applied_on, checksum) VALUES (9999, 'x', '', '0')";
    assert_eq!(database(&dir).execute(newer, ()).unwrap(), 1);
    assert_refused(&dir, "was written by a newer build: schema version 9999");
}

#[test]
fn a_foreign_database_is_refused() {
    let dir = TempDir::new().unwrap();
    database(&dir).execute_batch("CREATE TABLE orders (id INTEGER PRIMARY KEY)").unwrap();
    assert_refused(&dir, "holds a table `orders` that chargegate did not make");

    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/chargegate.db"), "this is no database, and long enough to be read as one".repeat(100))
        .unwrap();
    assert_refused(&dir, "error: ");
}

fn clustered(url: &str) -> [(&str, &str); 2] {
    [("CHARGEGATE_STORE_URL", url), ("CHARGEGATE_QUEUE_URL", "redis://127.0.0.1")]
}

fn client(url: &str) -> postgres::Client {
    postgres::Client::connect(url, postgres::NoTls).unwrap()
}

/// Everything in the schema, and what is in `mine`.
fn contents(url: &str) -> Vec<String> {
    let mut client = client(url);
    let sql = "SELECT c.relname || ' ' || c.relkind::text FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace \
               UNION ALL SELECT 'row ' || id::text FROM mine ORDER BY 1";
    client.query(sql, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

#[test]
fn a_new_postgresql_database_is_made_and_a_current_one_left() {
    let dir = TempDir::new().unwrap();
    let url = services::postgres().database("migrate");
    let name = url.rsplit_once('@').unwrap().1;
    let newest = chargegate::store::postgres::schema_version();
    for before in [0, newest] {
        let output = migrate(dir.path(), &clustered(&url));
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), format!("{name}: schema version {before} before, {newest} after\n"));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing of the embedded store is made");
}

#[test]
fn several_instances_migrate_one_database_once() {
    let url = services::postgres().database("migrate");
    let dir = TempDir::new().unwrap();
    let outputs: Vec<Output> = std::thread::scope(|scope| {
        #[expect(clippy::needless_collect, reason = "all are started before the first is waited for")]
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| migrate(dir.path(), &clustered(&url)))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    for output in &outputs {
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    }
    let made = outputs.iter().filter(|output| text(&output.stdout).contains("version 0 before")).count();
    assert_eq!(made, 1, "the others found it made");
    let steps: i64 = client(&url).query_one("SELECT count(*) FROM refinery_schema_history", &[]).unwrap().get(0);
    assert_eq!(steps, chargegate::store::postgres::schema_version());
}

#[test]
fn a_postgresql_database_of_somebody_else_is_refused_and_not_changed() {
    let dir = TempDir::new().unwrap();
    let url = services::postgres().database("migrate");
    client(&url).batch_execute("CREATE TABLE mine (id int); CREATE TABLE orders (id int)").unwrap();
    client(&url).batch_execute("INSERT INTO mine VALUES (1)").unwrap();
    let before = contents(&url);
    let output = migrate(dir.path(), &clustered(&url));
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), ""));
    let error = text(&output.stderr);
    assert!(error.contains("holds a table `orders` that chargegate did not make"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert_eq!(contents(&url), before);
}

#[test]
fn a_postgresql_database_of_a_newer_build_is_refused_and_not_changed() {
    let dir = TempDir::new().unwrap();
    let url = services::postgres().database("migrate");
    assert_eq!(migrate(dir.path(), &clustered(&url)).status.code(), Some(0));
    let newer = "INSERT INTO refinery_schema_history (version, name, applied_on, checksum) VALUES (9999, 'x', '', '0')";
    client(&url).batch_execute(newer).unwrap();
    client(&url).batch_execute("CREATE TABLE mine (id int)").unwrap();
    let before = contents(&url);
    let output = migrate(dir.path(), &clustered(&url));
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("was written by a newer build: schema version 9999"), "{error}");
    assert_eq!(contents(&url), before);
}

#[test]
fn a_server_that_is_not_there_is_told_apart() {
    let dir = TempDir::new().unwrap();
    // Bound, so that nobody else answers there; nothing listens.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let output = migrate(dir.path(), &clustered(&format!("postgres://u:hunter2@127.0.0.1:{port}/d")));
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(3), ""));
    let error = text(&output.stderr);
    assert!(
        error.starts_with(&format!("error: store unavailable: cannot connect to PostgreSQL at 127.0.0.1:{port}/d: "))
    );
    assert!(error.lines().count() == 1 && !error.contains("hunter2"), "{error}");
}

mod migrations {
    refinery::embed_migrations!("migrations/postgres");
}

#[test]
fn events_keep_their_positions_when_the_log_becomes_runs() {
    let dir = TempDir::new().unwrap();
    let url = services::postgres().database("migrate");
    let mut client = client(&url);
    let before_runs = refinery::Target::Version(6);
    migrations::migrations::runner().set_target(before_runs).run(&mut client).unwrap();
    // Some were rolled back, one came late, the last have no position yet.
    client
        .batch_execute(
            "INSERT INTO events (event_id, event_type, key, sequence_no, at, data) \
             SELECT 'e' || n, 'device.alarm', 'k' || n, 1, n, '{}' FROM generate_series(1, 100) n; \
             DELETE FROM events WHERE id IN (20, 21, 50); \
             INSERT INTO event_log (pos, id) SELECT row_number() OVER (ORDER BY CASE id WHEN 7 THEN 60.5 ELSE id END), id \
             FROM events WHERE id <= 90; \
             UPDATE event_sequencer SET pos = 87",
        )
        .unwrap();
    let mut all = || {
        let rows = client.query("SELECT pos, event_id, at, data FROM all_events ORDER BY pos, event_id", &[]).unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect()
    };
    let before: Vec<(i64, String, i64, String)> = all();
    assert_eq!(migrate(dir.path(), &clustered(&url)).status.code(), Some(0));
    assert_eq!(all(), before);
    let one = |row: postgres::Row| -> (i64, i64) { (row.get(0), row.get(1)) };
    let runs = client.query_one("SELECT count(*), max(pos) FROM event_runs", &[]).unwrap();
    assert_eq!(one(runs), (6, 58), "1 to 6, 8 to 19, 22 to 49, 51 to 60, 7, 61 to 90");
}
