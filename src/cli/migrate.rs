//! `migrate`: brings the embedded database's schema up to date without serving, and says what it did.

use std::path::Path;
use std::process::ExitCode;

use chargegate::config::StoreUrl;
use chargegate::model::OrderNumbers;
use chargegate::store::sqlite::Db;
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::{ConfigFile, embedded_only, print};

pub(super) fn run(file: ConfigFile) -> ExitCode {
    let config = match file.load() {
        Ok(config) => config,
        Err(code) => return code,
    };
    if let Err(code) = embedded_only(&config) {
        return code;
    }
    let StoreUrl::Sqlite(path) = &config.store.url else { unreachable!("the mode is embedded") };
    match migrate(path, *config.orders.prefix.as_bytes()) {
        Ok((before, after)) => {
            print(|out| writeln!(out, "{}: schema version {before} before, {after} after", path.display()))
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Gives the schema version before and after; 0 stands for no schema.
fn migrate(path: &Path, prefix: [u8; 3]) -> anyhow::Result<(i64, i64)> {
    let before = schema_version(path)?;
    // Opening migrates. No order number is made here, so that the salt does not matter.
    drop(Db::open(path, OrderNumbers::new(prefix, 0))?);
    Ok((before, schema_version(path)?))
}

/// The version in a database file, read without changing it. A file that is not there has none.
fn schema_version(path: &Path) -> anyhow::Result<i64> {
    if !path.try_exists()? {
        return Ok(0);
    }
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    let table = "SELECT 1 FROM sqlite_schema WHERE name = 'refinery_schema_history'";
    if conn.query_row(table, (), |_| Ok(())).optional()?.is_none() {
        return Ok(0);
    }
    Ok(conn.query_row("SELECT coalesce(max(version), 0) FROM refinery_schema_history", (), |row| row.get(0))?)
}
