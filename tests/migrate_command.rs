//! `chargegate migrate` run as the real binary: it makes and updates its own database and leaves every other alone.

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

#[test]
fn clustered_stores_are_refused_as_by_serve() {
    let dir = TempDir::new().unwrap();
    let output =
        migrate(dir.path(), &[("CHARGEGATE_STORE_URL", "postgres://u:p@h/d"), ("CHARGEGATE_QUEUE_URL", "redis://h")]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        text(&output.stderr),
        "error: store.url and queue.url name PostgreSQL and Redis, which this build does not support\n"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
