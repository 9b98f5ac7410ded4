//! `/admin/keys`: API keys, those of the configuration to be read, those of the store to be made, changed and removed.
//!
//! A key is 256 random bits, and shown in the answer that made it: what is stored is its SHA-256. The same holds for the secret of a key
//! that signs, which the store must keep, and nobody is shown again. The answer waits until the change is in force on this instance;
//! the others follow within two seconds, as a rule within milliseconds.

use std::net::IpAddr;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use super::body::Fields;
use super::call::{Call, Next, not_done, reading, submit};
use super::{Api, List, audit, now};
use crate::api::error::{ApiError, ErrorCode};
use crate::api::message::Request;
use crate::api::route::{Query, check_name};
use crate::config::{ApiKey, Cidr, NETWORK, REQUESTS_MAX, SCOPE, Scope, Scopes, Secret};
use crate::protocol::Hex;
use crate::store::payload::{self, KeyObject, Origin, ShownKey};
use crate::store::{
    ApiKeyRecord, Job, KeyChange, ManagedChange, ManagedJob, ManagedOutcome, ManagedRecord, NewApiKey, Outcome,
};

/// Networks of a key; each request is compared with all of them.
const NETWORKS_MAX: usize = 256;

/// A key to make. What is left out is as in the configuration.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the body is read field by field; this describes it")]
pub(crate) struct NewKeyRequest {
    /// 1 to 128 printable characters; unique, also among those of the configuration.
    name: String,
    /// Of `read`, `control`, `admin`; none implies another. Left out: all three.
    scopes: Option<Vec<String>>,
    /// Requests must be signed; the secret for it is made, and shown in the answer.
    require_hmac: Option<bool>,
    /// Networks that may use it, such as `192.0.2.0/24`; empty: all.
    ip_allow: Option<Vec<String>>,
    /// Requests per second; 0 is without limit.
    rate_per_s: Option<u32>,
    /// Requests at once after a rest; 0 is `rate_per_s`.
    burst: Option<u32>,
}

/// Changes of a key. What is left out stays.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the body is read field by field; this describes it")]
pub(crate) struct KeyChangeRequest {
    /// Of `read`, `control`, `admin`; none implies another.
    scopes: Option<Vec<String>>,
    /// Requests must be signed; where they were not before, the secret for it is made, and shown in the answer.
    require_hmac: Option<bool>,
    /// Networks that may use it, such as `192.0.2.0/24`; empty: all.
    ip_allow: Option<Vec<String>>,
    /// Requests per second; 0 is without limit.
    rate_per_s: Option<u32>,
    /// Requests at once after a rest; 0 is `rate_per_s`.
    burst: Option<u32>,
}

/// What a request says of a key.
struct Wish {
    scopes: Option<Scopes>,
    require_hmac: Option<bool>,
    ip_allow: Option<Vec<Cidr>>,
    rate_per_s: Option<u32>,
    burst: Option<u32>,
}

impl Wish {
    const FIELDS: [&str; 5] = ["scopes", "require_hmac", "ip_allow", "rate_per_s", "burst"];

    fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let scopes = fields.ruled_list("scopes", 3, &SCOPE)?.map(Scopes::from_iter);
        let require_hmac = fields.flag("require_hmac")?;
        let ip_allow = fields.ruled_list("ip_allow", NETWORKS_MAX, &NETWORK)?;
        let rate_per_s = fields.number("rate_per_s", 0..=REQUESTS_MAX)?;
        let burst = fields.number("burst", 0..=REQUESTS_MAX)?;
        Ok(Self { scopes, require_hmac, ip_allow, rate_per_s, burst })
    }

    const fn is_empty(&self) -> bool {
        self.scopes.is_none()
            && self.require_hmac.is_none()
            && self.ip_allow.is_none()
            && self.rate_per_s.is_none()
            && self.burst.is_none()
    }

    /// Whether who asks could not ask again: the key would not be an admin's, or not from where it is used now.
    fn takes_away(&self, own: bool, client_ip: IpAddr) -> bool {
        let scope = self.scopes.is_some_and(|scopes| !scopes.contains(Scope::Admin));
        let networks = self.ip_allow.as_ref().filter(|networks| own && !networks.is_empty());
        scope || networks.is_some_and(|networks| !networks.iter().any(|network| network.contains(client_ip)))
    }
}

fn words(scopes: Scopes) -> Vec<String> {
    scopes.words().into_iter().map(str::to_owned).collect()
}

fn texts(networks: &[Cidr]) -> Vec<String> {
    networks.iter().map(Cidr::to_string).collect()
}

/// A key that is about to be shown.
struct Made {
    key: String,
    hmac_secret: String,
}

impl Made {
    fn new() -> Result<Self, ApiError> {
        Ok(Self { key: format!("cg_{}", Hex(random()?)), hmac_secret: Hex(random()?).to_string() })
    }

    fn key_sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.key).into()
    }

    fn secret(&self) -> Secret {
        Secret::new(&*self.hmac_secret)
    }
}

/// 256 bits that nobody can guess.
pub(super) fn random() -> Result<[u8; 32], ApiError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| {
        log::error!("no random bytes: {error}");
        ApiError::new(ErrorCode::Internal, "there are no random bytes for a secret")
    })?;
    Ok(bytes)
}

fn configured(key: &ApiKey) -> KeyObject {
    KeyObject {
        name: key.name.clone(),
        source: Origin::Config,
        scopes: words(key.scopes),
        require_hmac: key.require_hmac,
        ip_allow: texts(&key.ip_allow),
        rate_per_s: key.rate_per_s,
        burst: key.burst,
        created_at: None,
        updated_at: None,
    }
}

fn no_key(name: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no key {name:?}"))
}

/// Refuses a change of what the configuration has.
fn check_stored(api: &Api, name: &str) -> Result<(), ApiError> {
    match api.managed.configured().key(name) {
        None => Ok(()),
        Some(_) => {
            let message = format!("key {name:?} is of the configuration: change it there");
            Err(ApiError::new(ErrorCode::ReadOnly, message))
        }
    }
}

/// A page of all keys, by name.
pub(super) fn list(api: &Api, query: &Query<'_>) -> Result<Next, ApiError> {
    let page = query.page()?;
    let of = api.managed.configured();
    Ok(reading(move |reader| {
        let stored = reader.api_keys()?;
        let stored = stored.iter().filter(|row| of.key(&row.name).is_none()).map(KeyObject::from);
        let mut all: Vec<KeyObject> = of.keys.iter().map(configured).chain(stored).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(List::of_all(all, page))
    }))
}

/// One key.
pub(super) fn one(api: &Api, name: String) -> Next {
    if let Some(key) = api.managed.configured().key(&name).map(configured) {
        return Box::new(move |call| call.success(200, &key));
    }
    reading(move |reader| {
        let found = reader.api_keys()?.into_iter().find(|row| row.name == name);
        found.as_ref().map(KeyObject::from).ok_or_else(|| no_key(&name))
    })
}

/// Makes a key.
pub(super) fn create(api: &Arc<Api>, request: &Request) -> Result<Next, ApiError> {
    let mut fields = Fields::of(request)?;
    let name = fields.text("name")?;
    let name = fields.required("name", name)?;
    check_name("name", &name)?;
    let Wish { scopes, require_hmac, ip_allow, rate_per_s, burst } = Wish::read(&mut fields)?;
    let [a, b, c, d, e] = Wish::FIELDS;
    fields.finish(&["name", a, b, c, d, e])?;
    if api.managed.configured().key(&name).is_some() {
        return Err(name_taken(&name));
    }
    let made = Made::new()?;
    let require_hmac = require_hmac.unwrap_or(false);
    let new = NewApiKey {
        name: name.clone(),
        key_sha256: made.key_sha256(),
        scopes: words(scopes.unwrap_or(Scopes::ALL)),
        require_hmac,
        hmac_secret: require_hmac.then(|| made.secret()),
        ip_allow: texts(&ip_allow.unwrap_or_default()),
        rate_per_s: rate_per_s.unwrap_or(0),
        burst: burst.unwrap_or(0),
    };
    let shows = Shows { made, key: true };
    Ok(Box::new(move |call| change(call, name, ManagedChange::CreateKey(new), "key.create", Some(shows))))
}

/// Changes what a key may do.
pub(super) fn update(api: &Arc<Api>, name: String, request: &Request) -> Result<Next, ApiError> {
    let mut fields = Fields::of(request)?;
    let wish = Wish::read(&mut fields)?;
    fields.finish(&Wish::FIELDS)?;
    if wish.is_empty() {
        return Err(ApiError::invalid(format!("body changes nothing: give one of {}", Wish::FIELDS.join(", "))));
    }
    check_stored(api, &name)?;
    let (made, client_ip) = (Made::new()?, request.client_ip);
    Ok(Box::new(move |call| {
        let own = call.caller.as_deref() == Some(&*name);
        let needs_admin_beside = wish.takes_away(own, client_ip) && !call.api().managed.configured().has_admin();
        let change_of = KeyChange {
            scopes: wish.scopes.map(words),
            require_hmac: wish.require_hmac,
            hmac_secret: made.secret(),
            ip_allow: wish.ip_allow.as_deref().map(texts),
            rate_per_s: wish.rate_per_s,
            burst: wish.burst,
        };
        let update = ManagedChange::UpdateKey { name: name.clone(), change: change_of, needs_admin_beside };
        change(call, name, update, "key.update", Some(Shows { made, key: false }));
    }))
}

/// Replaces a key, and its secret where it signs. The old ones are void at once.
pub(super) fn rotate(api: &Arc<Api>, name: String, request: &Request) -> Result<Next, ApiError> {
    Fields::none(request)?;
    check_stored(api, &name)?;
    let made = Made::new()?;
    let (key_sha256, hmac_secret) = (made.key_sha256(), made.secret());
    let rotation = ManagedChange::RotateKey { name: name.clone(), key_sha256, hmac_secret };
    let shows = Shows { made, key: true };
    Ok(Box::new(move |call| change(call, name, rotation, "key.rotate", Some(shows))))
}

/// Removes a key.
pub(super) fn delete(api: &Arc<Api>, name: String, request: &Request) -> Result<Next, ApiError> {
    Fields::none(request)?;
    check_stored(api, &name)?;
    Ok(Box::new(move |call| {
        let needs_admin_beside = !call.api().managed.configured().has_admin();
        let removal = ManagedChange::DeleteKey { name: name.clone(), needs_admin_beside };
        change(call, name, removal, "key.delete", None);
    }))
}

/// What an answer may show.
struct Shows {
    made: Made,
    /// The key itself, beside a secret that was taken.
    key: bool,
}

fn change(call: Call, name: String, change: ManagedChange, action: &'static str, shows: Option<Shows>) {
    let (at, status) = (now().unix_ms, change.status());
    let (request_id, idempotency) = (call.request_id().to_owned(), call.idempotency().cloned());
    let job = Job::Managed(Box::new(ManagedJob { change, at, request_id, idempotency }));
    submit(call, job, move |call, outcome| match managed(outcome, "key", &name) {
        Ok(ManagedRecord::Key(key)) => {
            audit::done(&call, action, &name);
            let body = shown(&key, shows.as_ref(), call.request_id(), at);
            let api = Arc::clone(call.api());
            api.managed.follow(move || call.written(status, body));
        }
        Ok(ManagedRecord::Endpoint(_)) => call.error(&mixed_up()),
        Err(error) => call.error(&error),
    });
}

fn shown(key: &ApiKeyRecord, shows: Option<&Shows>, request_id: &str, unix_ms: i64) -> serde_json::Result<Vec<u8>> {
    // A secret is shown where the one that was made for this request was taken.
    let taken = |made: &&Made| key.hmac_secret.as_ref().is_some_and(|secret| secret.expose() == made.hmac_secret);
    let made = shows.map(|shows| &shows.made);
    let answer = ShownKey {
        key: shows.filter(|shows| shows.key).map(|shows| shows.made.key.as_str()),
        hmac_secret: made.filter(taken).map(|made| made.hmac_secret.as_str()),
        ..ShownKey::hidden(key)
    };
    payload::key_answer(&answer, request_id, unix_ms)
}

/// The record of a change that is done, or why it is not.
pub(super) fn managed(outcome: Outcome, what: &str, name: &str) -> Result<ManagedRecord, ApiError> {
    let outcome = match outcome {
        Outcome::Managed(outcome) => *outcome,
        other => return Err(not_done(&other)),
    };
    match outcome {
        ManagedOutcome::Done(record) => Ok(record),
        ManagedOutcome::NameTaken => Err(name_taken(name)),
        ManagedOutcome::NotFound => Err(ApiError::new(ErrorCode::NotFound, format!("there is no {what} {name:?}"))),
        ManagedOutcome::LastAdmin => {
            let message = format!("key {name:?} is the last one with the scope admin: make another one first");
            Err(ApiError::new(ErrorCode::LastAdmin, message))
        }
        ManagedOutcome::Full { rows_max } => {
            Err(ApiError::invalid(format!("there are {rows_max} already: remove one that is not needed")))
        }
        ManagedOutcome::Forgotten => Err(mixed_up()),
    }
}

pub(super) fn name_taken(name: &str) -> ApiError {
    ApiError::new(ErrorCode::NameTaken, format!("name {name:?} is taken"))
}

pub(super) fn mixed_up() -> ApiError {
    log::error!("store answered a change of keys or endpoints with the outcome of another one");
    ApiError::new(ErrorCode::Internal, "the store gave no answer to this request")
}
