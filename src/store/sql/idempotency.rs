//! Requests that are sent again: the answer of the first is stored with its effect, and given to the others.
//!
//! Only effects are stored. A refusal had none, so the same key may try again, with another body too.

use super::{
    apply::Tx,
    conn::{Conn, one},
};
use crate::{
    gateway::order::Verdict,
    store::{
        CardChange, CardJob, CardOutcome, Created, Earlier, Idempotency, NewOrder, OrderJob, Outcome, Settings,
        StoreError, payload,
    },
};

/// What a request of this key, method and path was answered.
pub(super) fn earlier(conn: Conn<'_>, asked: &Idempotency) -> Result<Option<Earlier>, StoreError> {
    one(
        conn,
        "SELECT body_hash = $4, status, response FROM idempotency_keys WHERE api_key = $1 AND route = $2 AND key = $3",
        (&*asked.api_key, &asked.route, &asked.key, asked.body_hash),
        |row| {
            Ok(if row.get(0)? { Earlier::Answer { status: row.get(1)?, body: row.get(2)? } } else { Earlier::Mismatch })
        },
    )
}

impl Tx<'_> {
    /// Creates an order, or repeats what was answered.
    pub(super) fn create_order_once(&mut self, new: &NewOrder) -> Result<Outcome, StoreError> {
        if let Some(earlier) = self.earlier(new.idempotency.as_ref())? {
            return Ok(Outcome::Repeated(earlier));
        }
        let created = self.create_order(new)?;
        if let (Some(asked), Created::Order { order, .. }) = (&new.idempotency, &created) {
            self.answered(asked, payload::accepted(order, &new.request_id, new.at))?;
        }
        Ok(Outcome::Created(Box::new(created)))
    }

    /// Applies an event to an order, or repeats what was answered.
    pub(super) fn order_job_once(&mut self, job: &OrderJob) -> Result<Outcome, StoreError> {
        if let Some(earlier) = self.earlier(job.idempotency.as_ref())? {
            return Ok(Outcome::Repeated(earlier));
        }
        if let Some(device_id) = job.device_id
            && let Some(fenced) = self.fenced(device_id, job.fence)?
        {
            return Ok(fenced);
        }
        let outcome = self.order_job(job)?;
        let accepted = outcome.order.as_ref().filter(|_| !matches!(outcome.verdict, Verdict::Refused));
        if let (Some(asked), Some(order)) = (&job.idempotency, accepted) {
            self.answered(asked, payload::accepted(order, job.request_id.as_deref().unwrap_or_default(), job.at))?;
        }
        Ok(Outcome::Order(Box::new(outcome)))
    }

    /// Changes a card, or repeats what was answered.
    pub(super) fn card_job_once(&mut self, job: &CardJob) -> Result<Outcome, StoreError> {
        if let Some(earlier) = self.earlier(job.idempotency.as_ref())? {
            return Ok(Outcome::Repeated(earlier));
        }
        let outcome = self.card_job(job)?;
        if let (Some(asked), CardOutcome::Done { card, transaction }) = (&job.idempotency, &outcome) {
            let registered = matches!(job.change, CardChange::Register { .. });
            let body = payload::card_answer(card, transaction.as_ref(), &job.request_id, job.at);
            self.answered_with(asked, payload::card_status(registered), body)?;
        }
        Ok(Outcome::Card(Box::new(outcome)))
    }

    /// Sets what is kept of a device, or repeats what was answered.
    pub(super) fn settings_once(&mut self, settings: &Settings) -> Result<Outcome, StoreError> {
        if let Some(earlier) = self.earlier(settings.idempotency.as_ref())? {
            return Ok(Outcome::Repeated(earlier));
        }
        let outcome = self.set_settings(settings)?;
        if let Some(asked) = &settings.idempotency {
            let body = payload::settings(&outcome, &settings.request_id, settings.at);
            self.answered_with(asked, payload::OK, body)?;
        }
        Ok(Outcome::Settings(Box::new(outcome)))
    }

    /// Keeps the answer 202.
    pub(super) fn answered(&self, asked: &Idempotency, body: serde_json::Result<Vec<u8>>) -> Result<(), StoreError> {
        self.answered_with(asked, payload::ACCEPTED, body)
    }

    /// As [`Tx::answered`], with another status.
    pub(super) fn answered_with(
        &self,
        asked: &Idempotency,
        status: u16,
        body: serde_json::Result<Vec<u8>>,
    ) -> Result<(), StoreError> {
        let body = body.map_err(|error| StoreError::Statement(format!("an answer does not serialise: {error}")))?;
        self.insert_answer(asked, status, body)
    }
}
