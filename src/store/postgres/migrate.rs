//! The schema, brought up to date at every start. Several instances may start at once: one migrates, the others wait for it.

use refinery::Runner;

use super::{
    connect::{Connector, Role},
    session::PgSession,
};
use crate::store::StoreError;

mod embedded {
    refinery::embed_migrations!("migrations/postgres");
}

const HISTORY: &str = "refinery_schema_history";
/// Everything the migrations make.
const TABLES: [&str; 32] = [
    "devices",
    "gateway_sockets",
    "ports",
    "orders",
    "settlements",
    "settlement_quarantine",
    "outbound_queue",
    "events",
    "event_log",
    "event_runs",
    "log_bounds",
    "event_sequencer",
    "logged_events",
    "all_events",
    "event_cursors",
    "event_leases",
    "event_delivery",
    "idempotency_keys",
    "cards",
    "card_transactions",
    "card_balance_logs",
    "device_params",
    "firmware",
    "ota_tasks",
    "instances",
    "store_lanes",
    "cmd_log",
    "api_keys",
    "webhook_endpoints",
    "managed_revision",
    "delivery_log",
    "order_requests",
];

/// Highest schema version this build knows.
pub(super) fn schema_version() -> i64 {
    runner().get_migrations().iter().map(|step| i64::from(step.version())).max().unwrap_or(0)
}

/// All steps in one transaction: what fails leaves nothing behind.
fn runner() -> Runner {
    embedded::migrations::runner().set_grouped(true)
}

/// Brings the schema up to date and returns its version before and after. A database that a newer build wrote, or that holds
/// foreign tables of our names, is refused and not changed.
pub(super) fn migrate(connector: &Connector) -> Result<(i64, i64), StoreError> {
    let session = connector.connect(Role::Migrate)?;
    // Of this schema: others of the same database may be other installations.
    session.call(|client| {
        client.batch_execute("SELECT pg_advisory_lock(hashtext('chargegate migrate'), hashtext(current_schema()))")
    })?;
    // Whatever happens, the lock goes with the session.
    let before = check(&session, connector.name())?;
    if before < schema_version() {
        session
            .call(|client| {
                // Refinery's errors are those of its own, not of the crate: taken out below.
                Ok(runner().run(client))
            })?
            .map_err(|error| StoreError::Statement(format!("migration of {}: {error}", connector.name())))?;
    }
    Ok((before, schema_version()))
}

/// Refuses what is not ours; returns the version. Reads only.
fn check(session: &PgSession, name: &str) -> Result<i64, StoreError> {
    let refused = |why: String| Err(StoreError::Corrupt(format!("{name} {why}")));
    let present = |tables: &[&str]| {
        session.call(|client| {
            let sql = "SELECT c.relname::text FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace \
                       AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relname = ANY($1) ORDER BY 1 LIMIT 1";
            client.query_opt(sql, &[&tables])?.map(|row| row.try_get::<_, String>(0)).transpose()
        })
    };
    if present(&[HISTORY])?.is_none() {
        return match present(&TABLES)? {
            Some(table) => refused(format!("holds a table `{table}` that chargegate did not make")),
            None => Ok(0),
        };
    }
    let applied = session.call(|client| {
        let rows = client.query("SELECT version, name, checksum FROM refinery_schema_history ORDER BY version", &[])?;
        rows.iter()
            .map(|row| Ok((row.try_get::<_, i32>(0)?, row.try_get::<_, String>(1)?, row.try_get::<_, String>(2)?)))
            .collect::<Result<Vec<_>, postgres::Error>>()
    })?;
    let newest = applied.last().map_or(0, |(version, ..)| i64::from(*version));
    let known = schema_version();
    if newest > known {
        return refused(format!("was written by a newer build: schema version {newest}, this build knows {known}"));
    }
    for step in runner().get_migrations() {
        let differs = applied.iter().any(|(version, name, sum)| {
            i64::from(*version) == i64::from(step.version())
                && (name != step.name() || *sum != step.checksum().to_string())
        });
        if differs {
            return refused(format!("was not made by chargegate: its schema version {} differs", step.version()));
        }
    }
    if let (0, Some(table)) = (newest, present(&TABLES)?) {
        return refused(format!("holds a table `{table}` that chargegate did not make"));
    }
    Ok(newest)
}
