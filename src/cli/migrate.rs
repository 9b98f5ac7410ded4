//! `migrate`: brings the database's schema up to date without serving, and says what it did.

use std::path::Path;
use std::process::ExitCode;

use chargegate::boot::EXIT_UNREACHABLE;
use chargegate::config::{Config, StoreUrl};
use chargegate::model::OrderNumbers;
use chargegate::store::sqlite::Db;
use chargegate::store::{StoreError, postgres};
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::{ConfigFile, print};

pub(super) fn run(file: ConfigFile) -> ExitCode {
    let config = match file.load() {
        Ok(config) => config,
        Err(code) => return code,
    };
    match migrate(&config) {
        Ok((name, before, after)) => {
            print(|out| writeln!(out, "{name}: schema version {before} before, {after} after"))
        }
        Err(error) => {
            eprintln!("error: {error}");
            // A file that is in use or cannot be made is this command's failure; a server that is not there is another matter.
            let server = matches!(config.store.url, StoreUrl::Postgres(_));
            match error.downcast_ref() {
                Some(StoreError::Unavailable(_)) if server => ExitCode::from(EXIT_UNREACHABLE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// Gives the database's name, and its schema version before and after; 0 stands for no schema.
fn migrate(config: &Config) -> anyhow::Result<(String, i64, i64)> {
    match &config.store.url {
        StoreUrl::Sqlite(path) => {
            let before = schema_version(path)?;
            // Opening migrates. No order number is made here, so that the salt does not matter.
            drop(Db::open(path, OrderNumbers::new(*config.orders.prefix.as_bytes(), 0))?);
            Ok((path.display().to_string(), before, schema_version(path)?))
        }
        StoreUrl::Postgres(url) => Ok(postgres::migrate(url, postgres::Timeouts::from(&config.store))?),
    }
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
