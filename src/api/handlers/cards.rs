//! `/cards`: accounts of cards, their money and what moved it.
//!
//! Every change is one transaction with its log row, its event and, where there is an idempotency key, its answer. A recharge
//! must have a key: money that is added twice for one payment is found by nobody.

use std::sync::Arc;

use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::body::Fields;
use super::call::{Next, not_done, reading, submit};
use super::{Api, List, now};
use crate::api::error::{ApiError, ErrorCode};
use crate::api::message::Request;
use crate::api::route::Query;
use crate::model::{Card, CardNo, CardState, CardTransaction};
use crate::store::payload::{CardObject, TransactionObject, card_answer, card_status};
use crate::store::{CardChange, CardFilter, CardJob, CardOutcome, Job, Outcome};
use crate::time::Rfc3339;

/// Characters of the caller's own word for a recharge.
const REFERENCE_CHARS_MAX: usize = 128;

/// The body that registers a card.
#[derive(ToSchema)]
#[expect(dead_code, reason = "a schema: the body is read field by field")]
pub(in crate::api) struct CardRequest {
    /// The card. Letters in either case, kept in lower case; 10 digits are those printed on an M1 card.
    card_no: CardNo,
    /// What it is told at a reader; left out: `normal`.
    state: Option<CardState>,
    /// A tariff of the configuration; left out: the one for cards that name none.
    tariff: Option<String>,
    /// A monthly card charges without price until then.
    expires_at: Option<Rfc3339>,
}

/// The body that changes a card: at least one of its fields.
#[derive(ToSchema)]
#[schema(as = CardUpdateRequest)]
#[expect(dead_code, reason = "a schema: the body is read field by field")]
pub(in crate::api) struct UpdateRequest {
    /// What it is told at a reader.
    state: Option<CardState>,
    /// A tariff of the configuration; `null` takes it away.
    tariff: Option<String>,
    /// A monthly card charges without price until then; `null` makes it one that pays.
    expires_at: Option<Rfc3339>,
}

/// The body that adds money to a card.
#[derive(ToSchema)]
#[expect(dead_code, reason = "a schema: the body is read field by field")]
pub(in crate::api) struct RechargeRequest {
    /// Cents to add.
    #[schema(minimum = 1, maximum = 4294967295_u32)]
    amount_cent: u32,
    /// Your own word for it.
    #[schema(max_length = 128)]
    reference: Option<String>,
}

struct CardBody(Card);

impl Serialize for CardBody {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        CardObject::from(&self.0).serialize(serializer)
    }
}

struct TransactionBody(CardTransaction);

impl Serialize for TransactionBody {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        TransactionObject::from(&self.0).serialize(serializer)
    }
}

fn no_card() -> ApiError {
    ApiError::new(ErrorCode::CardNotFound, "there is no such card")
}

/// A page of cards, by number.
pub(super) fn list(query: &Query<'_>) -> Result<Next, ApiError> {
    let page = query.page()?;
    let state = query.value("state").map(|text| {
        let by_code = || text.parse().ok().and_then(CardState::from_code);
        CardState::from_word(text).or_else(by_code).ok_or_else(|| unknown_state(text))
    });
    let filter = CardFilter { state: state.transpose()? };
    Ok(reading(move |reader| {
        let found = reader.cards(&filter, page.page, page.size)?;
        Ok(List::new(found.rows.into_iter().map(CardBody).collect(), found.total, page))
    }))
}

/// One card.
pub(super) fn one(card_no: CardNo) -> Next {
    reading(move |reader| reader.card(&card_no)?.map(CardBody).ok_or_else(no_card))
}

/// A page of a card's movements, newest first.
pub(super) fn transactions(card_no: CardNo, query: &Query<'_>) -> Result<Next, ApiError> {
    let page = query.page()?;
    Ok(reading(move |reader| {
        let found = reader.card_transactions(&card_no, page.page, page.size)?;
        if found.total == 0 && reader.card(&card_no)?.is_none() {
            return Err(no_card());
        }
        Ok(List::new(found.rows.into_iter().map(TransactionBody).collect(), found.total, page))
    }))
}

/// Registers a card.
pub(super) fn register(api: &Arc<Api>, request: &Request) -> Result<Next, ApiError> {
    let mut fields = Fields::of(request)?;
    let card_no = fields.card_no()?;
    let card_no = fields.required("card_no", card_no)?;
    let state = state(&mut fields)?.unwrap_or(CardState::NORMAL);
    let tariff = tariff(api, &mut fields)?.flatten();
    let expires_at = fields.time_or_null("expires_at")?.flatten();
    fields.finish(&["card_no", "state", "tariff", "expires_at"])?;
    Ok(change(request, card_no, CardChange::Register { state, tariff, expires_at }))
}

/// Changes a card's state, tariff or plan.
pub(super) fn update(api: &Arc<Api>, card_no: CardNo, request: &Request) -> Result<Next, ApiError> {
    let mut fields = Fields::of(request)?;
    let state = state(&mut fields)?;
    let tariff = tariff(api, &mut fields)?;
    let expires_at = fields.time_or_null("expires_at")?;
    fields.finish(&["state", "tariff", "expires_at"])?;
    if state.is_none() && tariff.is_none() && expires_at.is_none() {
        return Err(ApiError::invalid("body changes nothing: give state, tariff or expires_at"));
    }
    Ok(change(request, card_no, CardChange::Update { state, tariff, expires_at }))
}

/// Adds money.
pub(super) fn recharge(card_no: CardNo, request: &Request) -> Result<Next, ApiError> {
    if request.header("Idempotency-Key").is_none() {
        return Err(ApiError::invalid("Idempotency-Key is missing: a recharge must not be made twice"));
    }
    let mut fields = Fields::of(request)?;
    let amount_cent = fields.number("amount_cent", 1..=u32::MAX)?;
    let amount_cent = i64::from(fields.required("amount_cent", amount_cent)?);
    let reference = fields.text("reference")?;
    if reference.as_ref().is_some_and(|text| text.chars().count() > REFERENCE_CHARS_MAX) {
        return Err(ApiError::invalid(format!("reference must have at most {REFERENCE_CHARS_MAX} characters")));
    }
    fields.finish(&["amount_cent", "reference"])?;
    Ok(change(request, card_no, CardChange::Recharge { amount_cent, reference }))
}

fn state(fields: &mut Fields) -> Result<Option<CardState>, ApiError> {
    let words: Vec<&str> = CardState::ALL.iter().map(|state| state.as_str()).collect();
    Ok(fields.word("state", &words)?.and_then(CardState::from_word))
}

fn unknown_state(text: &str) -> ApiError {
    let words: Vec<&str> = CardState::ALL.iter().map(|state| state.as_str()).collect();
    ApiError::invalid(format!("state must be in 0..=18 or one of {}, got {text:?}", words.join(", ")))
}

/// A tariff of the configuration, by name.
fn tariff(api: &Api, fields: &mut Fields) -> Result<Option<Option<String>>, ApiError> {
    let given = fields.text_or_null("tariff")?;
    if let Some(Some(name)) = &given
        && api.cards.tariffs.iter().all(|named| named.name != *name)
    {
        let names: Vec<&str> = api.cards.tariffs.iter().map(|named| named.name.as_str()).collect();
        let there_are = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(ApiError::invalid(format!("tariff {name:?} is not configured, there are {there_are}")));
    }
    Ok(given)
}

fn change(request: &Request, card_no: CardNo, change: CardChange) -> Next {
    let at = now().unix_ms;
    let registered = matches!(change, CardChange::Register { .. });
    let mut job = CardJob { card_no, change, at, request_id: request.request_id.clone(), idempotency: None };
    Box::new(move |call| {
        job.idempotency = call.idempotency().cloned();
        submit(call, Job::Card(Box::new(job)), move |call, outcome| {
            let outcome = match outcome {
                Outcome::Card(outcome) => *outcome,
                other => return call.error(&not_done(&other)),
            };
            match outcome {
                CardOutcome::Done { card, transaction } => {
                    let body = card_answer(&card, transaction.as_ref(), call.request_id(), at);
                    call.written(card_status(registered), body);
                }
                CardOutcome::Exists => {
                    call.error(&ApiError::new(ErrorCode::CardExists, "the card is registered already"));
                }
                CardOutcome::NotFound => call.error(&no_card()),
                CardOutcome::TooMuch { balance_cent } => {
                    let message = format!(
                        "the card has {balance_cent} cents: more than {} cents do not fit its balance",
                        Card::BALANCE_MAX
                    );
                    call.error(&ApiError::invalid(message));
                }
            }
        });
    })
}
