//! The clustered store: one PostgreSQL database, any number of instances.

mod connect;
mod migrate;
mod session;
mod tls;
mod watch;

pub use connect::Timeouts;
pub(in crate::store) use session::{PgSession, cell};

use crate::store::StoreError;

/// Whether a URL can be used, as far as it says by itself.
pub fn check_url(url: &str) -> Result<(), StoreError> {
    connect::check(url)
}

/// Brings the schema up to date; returns the database's name, and the schema's version before and after.
pub fn migrate(url: &str, timeouts: Timeouts) -> Result<(String, i64, i64), StoreError> {
    let connector = connect::Connector::new(url, timeouts)?;
    let (before, after) = migrate::migrate(&connector)?;
    Ok((connector.name().to_owned(), before, after))
}

/// Highest schema version this build knows.
pub fn schema_version() -> i64 {
    migrate::schema_version()
}
