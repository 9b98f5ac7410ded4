//! API keys and webhook endpoints made by the admin API.
//!
//! The row of `managed_revision` is the lock of both tables: each change takes it first and raises it last, so that who sees a revision
//! sees all that it stands for, and no two changes each leave the other's key as the last one of an admin.

use super::{
    apply::Tx,
    conn::{Conn, Row, all, one, run, scalar},
    event::json,
};
use crate::{
    config::{Scope, Secret},
    store::{
        ApiKeyRecord, EndpointChange, EndpointRecord, KeyChange, ManagedChange, ManagedJob, ManagedOutcome,
        ManagedRecord, NewApiKey, NewEndpoint, Outcome, StoreError,
        payload::{self, ShownEndpoint, ShownKey},
    },
};

/// Most rows of each table, as of the lists in a configuration: every request is compared with every key.
const ROWS_MAX: u32 = 1_000;

/// Columns in the order [`api_key`] reads them.
macro_rules! key_columns {
    () => {
        "name, key_sha256, scopes, require_hmac, hmac_secret, ip_allow, rate_per_s, burst, created_at, \
         updated_at"
    };
}
/// Columns in the order [`endpoint`] reads them.
macro_rules! endpoint_columns {
    () => {
        "name, url, secret, secret_previous, api_key, events, created_at, updated_at"
    };
}

fn api_key(row: &Row<'_>) -> Result<ApiKeyRecord, StoreError> {
    Ok(ApiKeyRecord {
        name: row.get(0)?,
        key_sha256: row.get(1)?,
        scopes: list(row, 2)?,
        require_hmac: row.get(3)?,
        hmac_secret: secret(row, 4)?,
        ip_allow: list(row, 5)?,
        rate_per_s: row.get(6)?,
        burst: row.get(7)?,
        created_at: row.get(8)?,
        updated_at: row.get(9)?,
    })
}

fn endpoint(row: &Row<'_>) -> Result<EndpointRecord, StoreError> {
    Ok(EndpointRecord {
        name: row.get(0)?,
        url: row.get(1)?,
        secret: Secret::new(row.text(2)?),
        secret_previous: secret(row, 3)?,
        api_key: secret(row, 4)?,
        events: list(row, 5)?,
        created_at: row.get(6)?,
        updated_at: row.get(7)?,
    })
}

fn secret(row: &Row<'_>, column: usize) -> Result<Option<Secret>, StoreError> {
    Ok(row.text_or_null(column)?.map(Secret::new))
}

fn list(row: &Row<'_>, column: usize) -> Result<Vec<String>, StoreError> {
    let text = row.text(column)?;
    serde_json::from_str(text).map_err(|_| row.corrupt(column, text))
}

/// All keys, by name.
pub(super) fn api_keys(conn: Conn<'_>) -> Result<Vec<ApiKeyRecord>, StoreError> {
    let mut keys = all(conn, concat!("SELECT ", key_columns!(), " FROM api_keys"), (), api_key)?;
    // Not by the database, whose collation may be any.
    keys.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(keys)
}

/// All endpoints, by name.
pub(super) fn endpoints(conn: Conn<'_>) -> Result<Vec<EndpointRecord>, StoreError> {
    let mut endpoints = all(conn, concat!("SELECT ", endpoint_columns!(), " FROM webhook_endpoints"), (), endpoint)?;
    endpoints.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(endpoints)
}

/// Raised by every change.
pub(super) fn revision(conn: Conn<'_>) -> Result<i64, StoreError> {
    Ok(scalar(conn, "SELECT revision FROM managed_revision", ())?.unwrap_or(0))
}

fn find_key(conn: Conn<'_>, name: &str) -> Result<Option<ApiKeyRecord>, StoreError> {
    one(conn, concat!("SELECT ", key_columns!(), " FROM api_keys WHERE name = $1"), [name], api_key)
}

fn find_endpoint(conn: Conn<'_>, name: &str) -> Result<Option<EndpointRecord>, StoreError> {
    one(conn, concat!("SELECT ", endpoint_columns!(), " FROM webhook_endpoints WHERE name = $1"), [name], endpoint)
}

fn is_admin(scopes: &[String]) -> bool {
    scopes.iter().any(|scope| scope == Scope::Admin.as_str())
}

impl Tx<'_> {
    /// Changes keys or endpoints, or repeats what was answered.
    pub(super) fn managed_once(&mut self, job: &ManagedJob) -> Result<Outcome, StoreError> {
        if let Some(earlier) = self.earlier(job.idempotency.as_ref())? {
            return Ok(Outcome::Repeated(earlier));
        }
        let outcome = self.managed(job)?;
        if let (Some(asked), ManagedOutcome::Done(record)) = (&job.idempotency, &outcome) {
            // What is shown once is shown to who asked first.
            let body = match record {
                ManagedRecord::Key(key) => payload::key_answer(&ShownKey::hidden(key), &job.request_id, job.at),
                ManagedRecord::Endpoint(endpoint) => {
                    payload::endpoint_answer(&ShownEndpoint::hidden(endpoint), &job.request_id, job.at)
                }
            };
            self.answered_with(asked, job.change.status(), body)?;
        }
        Ok(Outcome::Managed(Box::new(outcome)))
    }

    fn managed(&mut self, job: &ManagedJob) -> Result<ManagedOutcome, StoreError> {
        let revision: Option<i64> = scalar(self.conn, "SELECT revision FROM managed_revision FOR UPDATE", ())?;
        revision.ok_or_else(|| StoreError::Corrupt("managed_revision has no row".to_owned()))?;
        let outcome = match &job.change {
            ManagedChange::CreateKey(new) => self.create_key(new, job.at)?,
            ManagedChange::UpdateKey { name, change, needs_admin_beside } => {
                self.update_key(name, *needs_admin_beside, job.at, |key| changed_key(key, change))?
            }
            ManagedChange::RotateKey { name, key_sha256, hmac_secret } => {
                self.update_key(name, false, job.at, |key| ApiKeyRecord {
                    key_sha256: *key_sha256,
                    hmac_secret: key.require_hmac.then(|| hmac_secret.clone()),
                    ..key
                })?
            }
            ManagedChange::DeleteKey { name, needs_admin_beside } => self.delete_key(name, *needs_admin_beside)?,
            ManagedChange::CreateEndpoint(new) => self.create_endpoint(new, job.at)?,
            ManagedChange::UpdateEndpoint { name, change } => {
                self.update_endpoint(name, job.at, |endpoint| changed_endpoint(endpoint, change))?
            }
            ManagedChange::RotateEndpoint { name, secret } => self.update_endpoint(name, job.at, |endpoint| {
                if endpoint.secret == *secret {
                    return endpoint;
                }
                let secret_previous = Some(endpoint.secret);
                EndpointRecord { secret: secret.clone(), secret_previous, ..endpoint }
            })?,
            ManagedChange::DeleteEndpoint { name } => self.delete_endpoint(name)?,
            ManagedChange::ForgetEndpoint { name } => {
                if find_endpoint(self.conn, name)?.is_none() {
                    self.forget_deliveries(name)?;
                }
                ManagedOutcome::Forgotten
            }
        };
        if matches!(outcome, ManagedOutcome::Done(_)) {
            run(self.conn, "UPDATE managed_revision SET revision = revision + 1", ())?;
        }
        Ok(outcome)
    }

    fn create_key(&self, new: &NewApiKey, at: i64) -> Result<ManagedOutcome, StoreError> {
        if find_key(self.conn, &new.name)?.is_some() {
            return Ok(ManagedOutcome::NameTaken);
        }
        if self.is_full("SELECT count(*) FROM api_keys")? {
            return Ok(ManagedOutcome::Full { rows_max: ROWS_MAX });
        }
        run(
            self.conn,
            "INSERT INTO api_keys (name, key_sha256, scopes, require_hmac, hmac_secret, ip_allow, rate_per_s, burst, \
             created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)",
            (
                &new.name,
                new.key_sha256,
                json(&new.scopes)?,
                new.require_hmac,
                new.hmac_secret.as_ref().map(Secret::expose),
                json(&new.ip_allow)?,
                new.rate_per_s,
                new.burst,
                at,
            ),
        )?;
        self.done_key(&new.name)
    }

    fn update_key(
        &self,
        name: &str,
        needs_admin_beside: bool,
        at: i64,
        change: impl FnOnce(ApiKeyRecord) -> ApiKeyRecord,
    ) -> Result<ManagedOutcome, StoreError> {
        let Some(before) = find_key(self.conn, name)? else { return Ok(ManagedOutcome::NotFound) };
        if needs_admin_beside && is_admin(&before.scopes) && !self.has_admin_beside(name)? {
            return Ok(ManagedOutcome::LastAdmin);
        }
        let key = change(before);
        run(
            self.conn,
            "UPDATE api_keys SET key_sha256 = $2, scopes = $3, require_hmac = $4, hmac_secret = $5, ip_allow = $6, \
             rate_per_s = $7, burst = $8, updated_at = $9 WHERE name = $1",
            (
                name,
                key.key_sha256,
                json(&key.scopes)?,
                key.require_hmac,
                key.hmac_secret.as_ref().map(Secret::expose),
                json(&key.ip_allow)?,
                key.rate_per_s,
                key.burst,
                at,
            ),
        )?;
        self.done_key(name)
    }

    fn done_key(&self, name: &str) -> Result<ManagedOutcome, StoreError> {
        let key = find_key(self.conn, name)?;
        let key = key.ok_or_else(|| StoreError::Statement("a key that was written is not there".into()))?;
        Ok(ManagedOutcome::Done(ManagedRecord::Key(key)))
    }

    fn delete_key(&self, name: &str, needs_admin_beside: bool) -> Result<ManagedOutcome, StoreError> {
        let Some(key) = find_key(self.conn, name)? else { return Ok(ManagedOutcome::NotFound) };
        if needs_admin_beside && is_admin(&key.scopes) && !self.has_admin_beside(name)? {
            return Ok(ManagedOutcome::LastAdmin);
        }
        run(self.conn, "DELETE FROM api_keys WHERE name = $1", [name])?;
        Ok(ManagedOutcome::Done(ManagedRecord::Key(key)))
    }

    fn has_admin_beside(&self, name: &str) -> Result<bool, StoreError> {
        let others = all(self.conn, "SELECT scopes FROM api_keys WHERE name <> $1", [name], |row| list(row, 0))?;
        Ok(others.iter().any(|scopes| is_admin(scopes)))
    }

    fn is_full(&self, count: &str) -> Result<bool, StoreError> {
        Ok(scalar::<i64>(self.conn, count, ())?.unwrap_or(0) >= i64::from(ROWS_MAX))
    }

    fn create_endpoint(&self, new: &NewEndpoint, at: i64) -> Result<ManagedOutcome, StoreError> {
        if find_endpoint(self.conn, &new.name)?.is_some() {
            return Ok(ManagedOutcome::NameTaken);
        }
        if self.is_full("SELECT count(*) FROM webhook_endpoints")? {
            return Ok(ManagedOutcome::Full { rows_max: ROWS_MAX });
        }
        run(
            self.conn,
            "INSERT INTO webhook_endpoints (name, url, secret, api_key, events, created_at, updated_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $6)",
            (
                &new.name,
                &new.url,
                new.secret.expose(),
                new.api_key.as_ref().map(Secret::expose),
                json(&new.events)?,
                at,
            ),
        )?;
        // It begins here, whenever and wherever an instance starts to deliver. What one of its name had is not its own.
        self.forget_deliveries(&new.name)?;
        run(
            self.conn,
            "INSERT INTO event_cursors (endpoint, pos) VALUES ($1, (SELECT coalesce(last, 0) FROM log_bounds))",
            [&new.name],
        )?;
        self.done_endpoint(&new.name)
    }

    fn update_endpoint(
        &self,
        name: &str,
        at: i64,
        change: impl FnOnce(EndpointRecord) -> EndpointRecord,
    ) -> Result<ManagedOutcome, StoreError> {
        let Some(before) = find_endpoint(self.conn, name)? else { return Ok(ManagedOutcome::NotFound) };
        let endpoint = change(before);
        run(
            self.conn,
            "UPDATE webhook_endpoints SET url = $2, secret = $3, secret_previous = $4, api_key = $5, events = $6, \
             updated_at = $7 WHERE name = $1",
            (
                name,
                &endpoint.url,
                endpoint.secret.expose(),
                endpoint.secret_previous.as_ref().map(Secret::expose),
                endpoint.api_key.as_ref().map(Secret::expose),
                json(&endpoint.events)?,
                at,
            ),
        )?;
        self.done_endpoint(name)
    }

    fn done_endpoint(&self, name: &str) -> Result<ManagedOutcome, StoreError> {
        let endpoint = find_endpoint(self.conn, name)?;
        let missing = || StoreError::Statement("an endpoint that was written is not there".into());
        Ok(ManagedOutcome::Done(ManagedRecord::Endpoint(endpoint.ok_or_else(missing)?)))
    }

    fn delete_endpoint(&self, name: &str) -> Result<ManagedOutcome, StoreError> {
        let Some(endpoint) = find_endpoint(self.conn, name)? else { return Ok(ManagedOutcome::NotFound) };
        run(self.conn, "DELETE FROM webhook_endpoints WHERE name = $1", [name])?;
        self.forget_deliveries(name)?;
        Ok(ManagedOutcome::Done(ManagedRecord::Endpoint(endpoint)))
    }

    fn forget_deliveries(&self, name: &str) -> Result<(), StoreError> {
        run(self.conn, "DELETE FROM event_delivery WHERE endpoint = $1", [name])?;
        run(self.conn, "DELETE FROM event_cursors WHERE endpoint = $1", [name])?;
        Ok(())
    }
}

fn changed_key(key: ApiKeyRecord, change: &KeyChange) -> ApiKeyRecord {
    let require_hmac = change.require_hmac.unwrap_or(key.require_hmac);
    let hmac_secret = key.hmac_secret.or_else(|| Some(change.hmac_secret.clone())).filter(|_| require_hmac);
    ApiKeyRecord {
        scopes: change.scopes.clone().unwrap_or(key.scopes),
        require_hmac,
        hmac_secret,
        ip_allow: change.ip_allow.clone().unwrap_or(key.ip_allow),
        rate_per_s: change.rate_per_s.unwrap_or(key.rate_per_s),
        burst: change.burst.unwrap_or(key.burst),
        ..key
    }
}

fn changed_endpoint(endpoint: EndpointRecord, change: &EndpointChange) -> EndpointRecord {
    EndpointRecord {
        url: change.url.clone().unwrap_or(endpoint.url),
        events: change.events.clone().unwrap_or(endpoint.events),
        api_key: change.api_key.clone().unwrap_or(endpoint.api_key),
        secret_previous: endpoint.secret_previous.filter(|_| !change.drop_previous),
        ..endpoint
    }
}
