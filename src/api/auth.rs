//! Who may call what: API keys, their scopes, addresses, rates, and signed requests.
//!
//! A caller sends `X-Api-Key`. A key that requires it must also sign: `X-Timestamp` (Unix seconds), `X-Nonce`, and
//! `X-Signature`, the gateway's own scheme of [`signature`](crate::signature). A nonce counts once, and only with a timestamp
//! no further away than the window, so it is remembered for no longer than its timestamp would be accepted.
//!
//! Checks go from cheap to dear, and no later check tells a stranger anything: key → address → rate → signature → scope.
//! Keys are held as SHA-256 only; all of them are compared, in constant time, whichever fits. No I/O and no clock: the time
//! is an argument. Safe to share between the guard and the workers; the locks are held for a few map operations.
//!
//! Rates are those of keys, and one of this instance for all callers together. Who has one is told what is left of it, whatever the answer
//! ([`Quota`]). Failed attempts are counted by address: above the limit they are refused as too many, and cost no more than before. A good
//! attempt from the same address is let in all the same, since there may be many behind it.
//!
//! Each instance remembers nonces and counts rates for itself. Where there are several, they also ask what they [`Shared`]: a nonce then
//! counts once at all of them together, and a key's rate is that of all together. That takes a round trip, so [`Authenticator::check`] only
//! says what to ask, and [`Authenticator::ask`] answers later. Without an answer, a nonce cannot be told from a replay and the request is
//! refused; a rate is what this instance counted.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::error::{ApiError, ErrorCode};
use super::guard::Head;
use super::message::Request;
use super::rate::{Bucket, Failures, Quota, Rate};
use crate::config::{ApiKey, Scope};
use crate::signature::SignedRequest;

/// Characters of an `X-Nonce`.
const NONCE_LEN_MAX: usize = 128;
/// Nonces remembered at a time, some 100 bytes each: 870 signed requests a second by clocks that are right, with a window of 300 s.
const NONCES_MAX: usize = 1 << 18;
/// Failed attempts of one address in a minute, where nothing else is said.
const FAILURES_PER_MINUTE: u32 = 60;

/// What a request says of its caller.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The token as sent.
    pub method: &'a str,
    /// Path and query as sent.
    pub target: &'a str,
    pub body: &'a [u8],
    /// Of a body that is in a file.
    pub body_sha256: Option<[u8; 32]>,
    pub client_ip: IpAddr,
    /// `X-Api-Key`.
    pub api_key: Option<&'a str>,
    /// `X-Timestamp`.
    pub timestamp: Option<&'a str>,
    /// `X-Nonce`.
    pub nonce: Option<&'a str>,
    /// `X-Signature`.
    pub signature: Option<&'a str>,
}

impl<'a> Attempt<'a> {
    /// The attempt of a request that has no body, as local routes see it.
    pub fn from_head(head: &Head<'a>) -> Self {
        Self {
            method: head.method.as_str(),
            target: head.target,
            body: &[],
            body_sha256: None,
            client_ip: head.client_ip,
            api_key: head.header("X-Api-Key"),
            timestamp: head.header("X-Timestamp"),
            nonce: head.header("X-Nonce"),
            signature: head.header("X-Signature"),
        }
    }

    pub fn from_request(request: &'a Request) -> Self {
        Self {
            method: request.method.as_str(),
            target: &request.target,
            body: &request.body,
            body_sha256: request.upload.as_ref().map(|upload| upload.sha256),
            client_ip: request.client_ip,
            api_key: request.header("X-Api-Key"),
            timestamp: request.header("X-Timestamp"),
            nonce: request.header("X-Nonce"),
            signature: request.header("X-Signature"),
        }
    }

    const fn to_sign(self, timestamp: &'a str, nonce: &'a str) -> SignedRequest<'a> {
        SignedRequest { method: self.method, path: self.target, timestamp, nonce, body: self.body }
    }
}

/// A nonce that is used up, as everyone who shares it computes it: equal nonces of a key are always equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NonceId(u128);

impl NonceId {
    /// Of a nonce and the name of the key that signed with it.
    pub fn new(key: &str, nonce: &str) -> Self {
        let mut digest = Sha256::new();
        digest.update(key);
        // No name of a key has one.
        digest.update([0]);
        digest.update(nonce);
        let digest: [u8; 32] = digest.finalize().into();
        Self(digest.first_chunk().map_or(0, |first| u128::from_be_bytes(*first)))
    }

    /// 128 bits.
    pub const fn number(self) -> u128 {
        self.0
    }
}

/// A nonce and for how long it must be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedNonce {
    /// Which.
    pub id: NonceId,
    /// Seconds for which its timestamp will be accepted by a clock that agrees with this instance's.
    pub valid_s: u64,
}

/// What only all instances together can tell of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Name of the key.
    pub key: Arc<str>,
    /// Rate of the key at all instances; `None`: not limited.
    pub rate: Option<Rate>,
    /// Of a signed request.
    pub nonce: Option<UsedNonce>,
}

/// What they tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Within the rate, and the nonce is new; both are counted now.
    Granted {
        /// Whole requests that are left of the rate, if there is one.
        remaining: u32,
    },
    /// Above the rate. The nonce is not used up.
    RateExceeded,
    /// The nonce was used before.
    NonceUsed,
    /// Nobody could be asked.
    Unknown,
}

/// Takes an answer, once.
pub type Answered<T> = Box<dyn FnOnce(T) + Send>;

/// What instances remember together.
pub trait Shared: Send + Sync {
    /// Asks, and calls `then` on whatever thread has the answer. It does not wait; an answer comes within a fraction of a second.
    fn ask(&self, question: Question, then: Answered<Verdict>);

    /// What is shared may have been lost: adds what this instance remembers. Does not wait.
    fn restore(&self, nonces: Vec<UsedNonce>);
}

/// What this instance says of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// Name of the key, if it is one, whether or not it is let in.
    pub caller: Option<Arc<str>>,
    /// What is left to a caller whose rate is limited.
    pub quota: Option<Quota>,
    /// What is still to be asked, by [`Authenticator::ask`], or why the attempt is not let in.
    pub outcome: Result<Option<Question>, ApiError>,
}

impl Checked {
    const fn nobody(outcome: Result<Option<Question>, ApiError>) -> Self {
        Self { caller: None, quota: None, outcome }
    }
}

/// What the other instances say of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// What is left of the rate at all of them together; `None` where there is no rate, or no answer.
    pub quota: Option<Quota>,
    /// Whether it is let in.
    pub outcome: Result<(), ApiError>,
}

/// Limits that are not of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests per second of all callers together at this instance; 0: no limit.
    pub rate_per_s: u32,
    /// Failed attempts per minute of an address; 0: no limit.
    pub failures_per_minute_per_ip: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { rate_per_s: 0, failures_per_minute_per_ip: FAILURES_PER_MINUTE }
    }
}

struct Entry {
    name: Arc<str>,
    key: ApiKey,
    rate: Option<Rate>,
    /// Shared with the entry that replaces this one, as long as the rate is the same.
    bucket: Arc<Mutex<Bucket>>,
}

/// The rate of all callers together.
struct Total {
    rate: Option<Rate>,
    bucket: Bucket,
}

/// Decides on attempts. Shared by reference; keys can be replaced while it is in use.
pub struct Authenticator {
    entries: RwLock<Arc<[Arc<Entry>]>>,
    nonces: Arc<Mutex<Nonces>>,
    total: Mutex<Total>,
    failures: Mutex<(Option<Rate>, Failures)>,
    window_s: u64,
    /// `None`: there is no other instance.
    shared: Option<Arc<dyn Shared>>,
}

impl Authenticator {
    /// `signature_window`: how far `X-Timestamp` may be from the server's clock, either way, in whole seconds.
    pub fn new(keys: Vec<ApiKey>, signature_window: Duration) -> Self {
        let authenticator = Self {
            entries: RwLock::new(Arc::new([])),
            nonces: Arc::new(Mutex::new(Nonces::new(NONCES_MAX))),
            total: Mutex::new(Total { rate: None, bucket: Bucket::full() }),
            failures: Mutex::default(),
            window_s: signature_window.as_secs(),
            shared: None,
        };
        authenticator.reload(keys);
        authenticator.set_limits(Limits::default());
        authenticator
    }

    /// The same beside others, which share nonces and rates with it.
    #[must_use]
    pub fn with_shared(self, shared: Arc<dyn Shared>) -> Self {
        Self { shared: Some(shared), ..self }
    }

    /// Replaces all keys. Nonces stay remembered, and so does what a key has used of a rate that it keeps.
    pub fn reload(&self, keys: Vec<ApiKey>) {
        let mut entries = self.entries.write();
        let replaced: HashMap<&str, &Arc<Entry>> = entries.iter().map(|entry| (&*entry.name, entry)).collect();
        let entry = |key: ApiKey| {
            let rate = Rate::per_second(key.rate_per_s, key.burst);
            let kept = replaced.get(key.name.as_str()).filter(|old| old.rate == rate);
            let bucket = kept.map_or_else(|| Arc::new(Mutex::new(Bucket::full())), |old| Arc::clone(&old.bucket));
            Arc::new(Entry { name: key.name.as_str().into(), key, rate, bucket })
        };
        let renewed = keys.into_iter().map(entry).collect();
        *entries = renewed;
    }

    /// Replaces what holds for all keys, and for those who have none.
    pub fn set_limits(&self, limits: Limits) {
        self.total.lock().rate = Rate::per_second(limits.rate_per_s, 0);
        self.failures.lock().0 = Rate::per_minute(limits.failures_per_minute_per_ip);
    }

    /// Says whether an attempt that wants `scope` is let in, as far as this instance can tell. Counts it.
    ///
    /// It is refused with `UNAUTHORIZED` (key, signature), `FORBIDDEN` (address, scope), `RATE_LIMITED` (of the key, of all callers, or of
    /// failures), `NOT_READY` (too many nonces to remember).
    pub fn check(&self, attempt: &Attempt<'_>, scope: Scope, unix_ms: i64) -> Checked {
        self.check_found(self.find(attempt.api_key), attempt, scope, unix_ms)
    }

    /// The same, if nothing is to be asked about the attempt: this says all there is to say, at once. `None`, and nothing counted, if there is.
    pub fn check_alone(&self, attempt: &Attempt<'_>, scope: Scope, unix_ms: i64) -> Option<Checked> {
        let found = self.find(attempt.api_key);
        let asks =
            self.shared.is_some() && found.as_ref().is_ok_and(|entry| entry.key.require_hmac || entry.rate.is_some());
        (!asks).then(|| self.check_found(found, attempt, scope, unix_ms))
    }

    fn check_found(
        &self,
        found: Result<Arc<Entry>, ApiError>,
        attempt: &Attempt<'_>,
        scope: Scope,
        unix_ms: i64,
    ) -> Checked {
        self.identify(found, attempt, unix_ms, |entry, quota| {
            check_address(&entry.key, attempt)?;
            self.take(entry, quota, unix_ms)?;
            let nonce = match entry.key.require_hmac {
                true => Some(self.check_signature(&entry.key, attempt, unix_ms.div_euclid(1_000))?),
                false => None,
            };
            check_scope(&entry.key, scope)?;
            let asks = self.shared.is_some() && (nonce.is_some() || entry.rate.is_some());
            Ok(asks.then(|| Question { key: Arc::clone(&entry.name), rate: entry.rate, nonce }))
        })
    }

    /// Counts a request that is refused whoever sent it: for a path that is not there, for instance. It is not told who is a caller and
    /// who is not, other than by his rate, so that guessing keys is no easier here.
    ///
    /// It is let in, or refused with `RATE_LIMITED` only.
    pub fn count(&self, attempt: &Attempt<'_>, unix_ms: i64) -> Checked {
        if attempt.api_key.is_none() {
            return Checked::nobody(Ok(None));
        }
        let checked = self.identify(self.find(attempt.api_key), attempt, unix_ms, |entry, quota| {
            check_address(&entry.key, attempt)?;
            self.take(entry, quota, unix_ms).map(|()| None)
        });
        let outcome = match checked.outcome {
            Err(error) if error.code != ErrorCode::RateLimited => Ok(None),
            outcome => outcome,
        };
        Checked { outcome, ..checked }
    }

    /// Checks all that can be told before the body is there, so that no stranger can send a long one. The rate and the
    /// signature are left to [`Self::check`], which follows.
    ///
    /// It is refused as by [`Self::check`].
    pub fn check_head(&self, attempt: &Attempt<'_>, scope: Scope, unix_ms: i64) -> Checked {
        self.identify(self.find(attempt.api_key), attempt, unix_ms, |entry, quota| {
            check_address(&entry.key, attempt)?;
            *quota = entry.rate.map(|rate| {
                let mut bucket = entry.bucket.lock();
                bucket.fill(rate, unix_ms);
                bucket.quota(rate)
            });
            check_scope(&entry.key, scope).map(|()| None)
        })
    }

    /// Asks the other instances, and calls `then` with whether the attempt is let through: at once if there are none. Does not wait.
    ///
    /// The error is `RATE_LIMITED`, `UNAUTHORIZED` (nonce), or `NOT_READY` where a nonce cannot be told from a replay now.
    pub fn ask(&self, question: Question, then: Answered<Asked>) {
        let Some(shared) = &self.shared else { return then(Asked { quota: None, outcome: Ok(()) }) };
        let Question { key, rate, nonce } = question.clone();
        let nonces = Arc::clone(&self.nonces);
        let answered = move |verdict| {
            let mut quota = None;
            let refused = match verdict {
                Verdict::Granted { remaining } => {
                    let quota = rate.map(|rate| rate.quota_with(remaining.min(rate.burst())));
                    return then(Asked { quota, outcome: Ok(()) });
                }
                Verdict::NonceUsed => return then(Asked { quota, outcome: Err(nonce_used()) }),
                Verdict::RateExceeded => {
                    quota = rate.map(|rate| rate.quota_with(0));
                    rate_exceeded(&key, rate.map_or(0, |rate| rate.requests()), quota.map_or(1, |quota| quota.wait_s))
                }
                // The rate was within what this instance may let through by itself.
                Verdict::Unknown if nonce.is_none() => return then(Asked { quota, outcome: Ok(()) }),
                Verdict::Unknown => ApiError::not_ready("replays cannot be told from new requests now", 1),
            };
            // The same request may come again.
            if let Some(nonce) = nonce {
                nonces.lock().forget(nonce.id);
            }
            then(Asked { quota, outcome: Err(refused) });
        };
        shared.ask(question, Box::new(answered));
    }

    /// To be called when what instances share may have been lost: tells it what this instance remembers.
    pub fn restore_shared(&self, unix_ms: i64) {
        if let Some(shared) = &self.shared {
            let nonces = self.nonces.lock().in_use(unix_ms.div_euclid(1_000));
            shared.restore(nonces);
        }
    }

    /// Has `decide` say the rest of who was found. Counts failures to show who one is, and refuses those above their limit.
    fn identify(
        &self,
        found: Result<Arc<Entry>, ApiError>,
        attempt: &Attempt<'_>,
        unix_ms: i64,
        decide: impl FnOnce(&Entry, &mut Option<Quota>) -> Result<Option<Question>, ApiError>,
    ) -> Checked {
        let mut checked = match found {
            Err(error) => Checked::nobody(Err(error)),
            Ok(entry) => {
                let mut quota = None;
                let outcome = decide(&entry, &mut quota);
                Checked { caller: Some(Arc::clone(&entry.name)), quota, outcome }
            }
        };
        if let Err(error) = &mut checked.outcome
            && error.code == ErrorCode::Unauthorized
        {
            let mut failures = self.failures.lock();
            let (rate, counted) = &mut *failures;
            if let Some(rate) = *rate
                && let Err(wait_s) = counted.count(attempt.client_ip, rate, unix_ms)
            {
                *error = too_many_failures(attempt.client_ip, rate.requests(), wait_s);
            }
        }
        checked
    }

    /// Takes a request from the bucket of the key and from that of all callers, or from none.
    fn take(&self, entry: &Entry, quota: &mut Option<Quota>, unix_ms: i64) -> Result<(), ApiError> {
        let mut of_key = entry.rate.map(|rate| (rate, entry.bucket.lock()));
        let mut total = self.total.lock();
        let Total { rate, bucket } = &mut *total;
        let mut of_all = rate.map(|rate| (rate, bucket));
        if let Some((rate, bucket)) = &mut of_key {
            bucket.fill(*rate, unix_ms);
            if !bucket.has_one(*rate) {
                let left = bucket.quota(*rate);
                *quota = Some(left);
                return Err(rate_exceeded(&entry.name, rate.requests(), left.wait_s));
            }
        }
        if let Some((rate, bucket)) = &mut of_all {
            bucket.fill(*rate, unix_ms);
            if !bucket.has_one(*rate) {
                let left = bucket.quota(*rate);
                *quota = Some(left);
                return Err(total_exceeded(rate.requests(), left.wait_s));
            }
            bucket.take(*rate);
            *quota = Some(bucket.quota(*rate));
        }
        if let Some((rate, bucket)) = &mut of_key {
            bucket.take(*rate);
            let left = bucket.quota(*rate);
            *quota = Some(quota.map_or(left, |of_all| left.tighter(of_all)));
        }
        Ok(())
    }

    fn find(&self, api_key: Option<&str>) -> Result<Arc<Entry>, ApiError> {
        let Some(api_key) = api_key else { return Err(unauthorized("header X-Api-Key is missing")) };
        let digest: [u8; 32] = Sha256::digest(api_key.as_bytes()).into();
        let entries = Arc::clone(&self.entries.read());
        // Every entry is compared and the match chosen without a branch; only whether there was one shows.
        let mut found = Choice::from(0);
        let mut place = 0_u64;
        for (index, entry) in (0_u64..).zip(entries.iter()) {
            let same = entry.key.key_sha256.ct_eq(&digest);
            place.conditional_assign(&index, same);
            found |= same;
        }
        let entry = if bool::from(found) { entries.get(place as usize) } else { None };
        entry.cloned().ok_or_else(|| unauthorized("X-Api-Key is not a key of this gateway"))
    }

    fn check_signature(&self, key: &ApiKey, attempt: &Attempt<'_>, unix_s: i64) -> Result<UsedNonce, ApiError> {
        let (Some(timestamp), Some(nonce), Some(signature)) = (attempt.timestamp, attempt.nonce, attempt.signature)
        else {
            let message = format!("key {} must sign: X-Timestamp, X-Nonce and X-Signature", key.name);
            return Err(unauthorized(message));
        };
        let Some(secret) = &key.hmac_secret else {
            log::error!(key = key.name.as_str(); "key requires signatures but has no hmac_secret");
            return Err(unauthorized(format!("key {} cannot be used: it has no secret", key.name)));
        };
        let Ok(signed_s) = timestamp.parse::<i64>() else {
            return Err(unauthorized(format!("X-Timestamp must be Unix seconds, got {timestamp:?}")));
        };
        let (window_s, skew_s) = (self.window_s, unix_s.abs_diff(signed_s));
        if skew_s > window_s {
            let message = format!("X-Timestamp must be within {window_s} s of this clock, it is {skew_s} s away");
            return Err(unauthorized(message));
        }
        if nonce.is_empty() || nonce.len() > NONCE_LEN_MAX {
            let message = format!("X-Nonce must have 1 to {NONCE_LEN_MAX} characters, got {}", nonce.len());
            return Err(unauthorized(message));
        }
        let signed = attempt.to_sign(timestamp, nonce);
        let holds = match attempt.body_sha256 {
            Some(sha256) => signed.verify_of(sha256, secret.expose(), signature),
            None => signed.verify(secret.expose(), signature),
        };
        if !holds {
            return Err(unauthorized("X-Signature does not match the request"));
        }
        // Last, so that only who holds the secret can use a nonce up or fill the memory for them.
        let id = NonceId::new(&key.name, nonce);
        let last_valid_s = signed_s.saturating_add_unsigned(window_s);
        match self.nonces.lock().remember(id, last_valid_s, unix_s) {
            Remembered::New => Ok(UsedNonce { id, valid_s: valid_s(last_valid_s, unix_s) }),
            Remembered::Known => Err(nonce_used()),
            Remembered::Full => Err(ApiError::not_ready("too many signed requests to tell replays apart", 1)),
        }
    }
}

fn valid_s(last_valid_s: i64, unix_s: i64) -> u64 {
    last_valid_s.saturating_sub(unix_s).max(0).unsigned_abs().saturating_add(1)
}

fn nonce_used() -> ApiError {
    unauthorized("X-Nonce was used before")
}

fn rate_exceeded(key: &str, rate_per_s: u32, retry_after_s: u32) -> ApiError {
    let message = format!("key {key} may make {rate_per_s} requests per second");
    ApiError::new(ErrorCode::RateLimited, message).with_retry_after(retry_after_s)
}

fn total_exceeded(rate_per_s: u32, retry_after_s: u32) -> ApiError {
    let message = format!("this gateway takes {rate_per_s} requests per second of all callers together");
    ApiError::new(ErrorCode::RateLimited, message).with_retry_after(retry_after_s)
}

fn too_many_failures(client_ip: IpAddr, per_minute: u32, retry_after_s: u32) -> ApiError {
    let message = format!("{client_ip} failed to authenticate more than {per_minute} times a minute");
    ApiError::new(ErrorCode::RateLimited, message).with_retry_after(retry_after_s)
}

fn check_address(key: &ApiKey, attempt: &Attempt<'_>) -> Result<(), ApiError> {
    if !key.ip_allow.is_empty() && !key.ip_allow.iter().any(|network| network.contains(attempt.client_ip)) {
        let message = format!("key {} may not be used from {}", key.name, attempt.client_ip);
        return Err(ApiError::new(ErrorCode::Forbidden, message));
    }
    Ok(())
}

fn check_scope(key: &ApiKey, scope: Scope) -> Result<(), ApiError> {
    if !key.scopes.contains(scope) {
        let message = format!("key {} does not have the scope {}", key.name, scope.as_str());
        return Err(ApiError::new(ErrorCode::Forbidden, message));
    }
    Ok(())
}

fn unauthorized(message: impl Into<std::borrow::Cow<'static, str>>) -> ApiError {
    ApiError::new(ErrorCode::Unauthorized, message)
}

enum Remembered {
    New,
    Known,
    Full,
}

/// Nonces in use.
struct Nonces {
    /// By the last second in which their timestamp is accepted.
    known: HashMap<NonceId, i64>,
    /// The same, by that second. What was forgotten, or remembered anew for longer, stays until then and means nothing.
    expiry: BinaryHeap<Reverse<(i64, NonceId)>>,
    max: usize,
}

impl Nonces {
    fn new(max: usize) -> Self {
        Self { known: HashMap::new(), expiry: BinaryHeap::new(), max }
    }

    fn remember(&mut self, id: NonceId, last_valid_s: i64, unix_s: i64) -> Remembered {
        while let Some(Reverse((last_valid_s, id))) = self.expiry.peek().copied()
            && last_valid_s < unix_s
        {
            self.expiry.pop();
            if self.known.get(&id) == Some(&last_valid_s) {
                self.known.remove(&id);
            }
        }
        if self.known.contains_key(&id) {
            return Remembered::Known;
        }
        if self.expiry.len() >= self.max {
            return Remembered::Full;
        }
        self.known.insert(id, last_valid_s);
        self.expiry.push(Reverse((last_valid_s, id)));
        Remembered::New
    }

    fn forget(&mut self, id: NonceId) {
        self.known.remove(&id);
    }

    fn in_use(&self, unix_s: i64) -> Vec<UsedNonce> {
        let in_use = self.known.iter().filter(|(_, last_valid_s)| **last_valid_s >= unix_s);
        in_use.map(|(id, last_valid_s)| UsedNonce { id: *id, valid_s: valid_s(*last_valid_s, unix_s) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    const NOW_MS: i64 = 1_700_000_000_000;
    const NOW_S: i64 = NOW_MS / 1_000;
    const WINDOW: Duration = Duration::from_secs(120);

    fn key(name: &str, text: &str) -> ApiKey {
        ApiKey {
            name: name.to_owned(),
            key_sha256: Sha256::digest(text).into(),
            scopes: [Scope::Read, Scope::Control].into_iter().collect(),
            require_hmac: false,
            hmac_secret: None,
            ip_allow: Vec::new(),
            rate_per_s: 0,
            burst: 0,
        }
    }

    fn attempt(api_key: &str) -> Attempt<'_> {
        Attempt {
            method: "POST",
            target: "/api/v1/third/devices/40aace04/charge?x=1",
            body: b"{}",
            body_sha256: None,
            client_ip: "192.0.2.7".parse().unwrap(),
            api_key: Some(api_key),
            timestamp: None,
            nonce: None,
            signature: None,
        }
    }

    fn code(checked: Checked) -> Result<Arc<str>, ErrorCode> {
        checked.outcome.map(|_| checked.caller.expect("who is let in has a name")).map_err(|error| error.code)
    }

    #[test]
    fn the_key_decides_and_names_its_holder() {
        let auth = Authenticator::new(vec![key("a", "first"), key("b", "second")], WINDOW);
        assert_eq!(code(auth.check(&attempt("first"), Scope::Read, NOW_MS)), Ok("a".into()));
        assert_eq!(code(auth.check(&attempt("second"), Scope::Control, NOW_MS)), Ok("b".into()));
        for wrong in ["", "firs", "first ", "FIRST"] {
            assert_eq!(code(auth.check(&attempt(wrong), Scope::Read, NOW_MS)), Err(ErrorCode::Unauthorized));
        }
        let missing = Attempt { api_key: None, ..attempt("") };
        assert_eq!(code(auth.check(&missing, Scope::Read, NOW_MS)), Err(ErrorCode::Unauthorized));
        assert_eq!(code(auth.check(&attempt("first"), Scope::Admin, NOW_MS)), Err(ErrorCode::Forbidden));
    }

    #[test]
    fn reloaded_keys_replace_all_others() {
        let auth = Authenticator::new(vec![key("a", "first")], WINDOW);
        auth.reload(vec![key("b", "second")]);
        assert_eq!(code(auth.check(&attempt("first"), Scope::Read, NOW_MS)), Err(ErrorCode::Unauthorized));
        assert!(auth.check(&attempt("second"), Scope::Read, NOW_MS).outcome.is_ok());
    }

    #[test]
    fn reloaded_keys_keep_what_they_used_of_the_same_rate() {
        let limited = |name, rate_per_s| ApiKey { rate_per_s, ..key(name, "first") };
        let auth = Authenticator::new(vec![limited("a", 1)], WINDOW);
        let take = || auth.check(&attempt("first"), Scope::Read, NOW_MS).outcome.is_ok();
        assert!(take() && !take());
        auth.reload(vec![key("b", "second"), limited("a", 1)]);
        assert!(!take());
        auth.reload(vec![limited("a", 2)]);
        assert!(take());
        auth.reload(vec![limited("c", 2)]);
        assert!(take() && take(), "another key");
    }

    #[test]
    fn addresses_outside_the_list_are_foreign() {
        let ip_allow = vec!["192.0.2.0/29".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        let auth = Authenticator::new(vec![ApiKey { ip_allow, ..key("a", "first") }], WINDOW);
        for (ip, allowed) in [
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("::ffff:192.0.2.1", true),
            ("2001:db8:ffff::1", true),
            ("2001:db9::1", false),
        ] {
            let attempt = Attempt { client_ip: ip.parse().unwrap(), ..attempt("first") };
            let expected = if allowed { Ok("a".into()) } else { Err(ErrorCode::Forbidden) };
            assert_eq!(code(auth.check(&attempt, Scope::Read, NOW_MS)), expected, "{ip}");
        }
    }

    #[test]
    fn rate_is_a_second_of_burst_then_a_steady_flow() {
        let auth = Authenticator::new(vec![ApiKey { rate_per_s: 2, ..key("a", "first") }], WINDOW);
        let take = |unix_ms| auth.check(&attempt("first"), Scope::Read, unix_ms).outcome;
        assert!(take(NOW_MS).is_ok());
        assert!(take(NOW_MS).is_ok());
        let refused = take(NOW_MS).unwrap_err();
        assert_eq!((refused.code, refused.retry_after_s), (ErrorCode::RateLimited, Some(1)));
        assert!(take(NOW_MS + 499).is_err());
        assert!(take(NOW_MS + 500).is_ok());
        assert!(take(NOW_MS + 400).is_err(), "a clock that goes back fills nothing");
        assert!(take(NOW_MS + 100_000).is_ok());
        assert!(take(NOW_MS + 100_000).is_ok());
        assert!(take(NOW_MS + 100_000).is_err(), "idle time is worth one second at most");
    }

    fn signing_key() -> ApiKey {
        ApiKey { require_hmac: true, hmac_secret: Some(Secret::new("s3cret")), ..key("a", "first") }
    }

    fn signed(
        auth: &Authenticator,
        timestamp: &str,
        nonce: &str,
        change: fn(&mut Attempt<'_>),
    ) -> Result<Arc<str>, ErrorCode> {
        let honest = attempt("first");
        let signature = honest.to_sign(timestamp, nonce).sign("s3cret");
        let mut sent =
            Attempt { timestamp: Some(timestamp), nonce: Some(nonce), signature: Some(&signature), ..honest };
        change(&mut sent);
        code(auth.check(&sent, Scope::Read, NOW_MS))
    }

    fn sent_as(attempt: &mut Attempt<'_>, body: &[u8]) {
        attempt.body = b"";
        attempt.body_sha256 = Some(Sha256::digest(body).into());
    }

    #[test]
    fn a_body_in_a_file_is_covered_by_its_hash() {
        let auth = Authenticator::new(vec![signing_key()], WINDOW);
        let now = NOW_S.to_string();
        assert_eq!(signed(&auth, &now, "n", |attempt| sent_as(attempt, b"{ }")), Err(ErrorCode::Unauthorized));
        assert!(signed(&auth, &now, "n", |attempt| sent_as(attempt, b"{}")).is_ok());
    }

    #[test]
    fn a_head_alone_tells_key_address_and_scope() {
        let auth = Authenticator::new(vec![ApiKey { rate_per_s: 1, ..signing_key() }], WINDOW);
        let check = |api_key, scope| {
            let checked = auth.check_head(&attempt(api_key), scope, NOW_MS);
            checked.outcome.map(|_| ()).map_err(|error| error.code)
        };
        for _ in 0..3 {
            assert_eq!(check("first", Scope::Control), Ok(()), "it costs nothing of the rate");
        }
        assert_eq!(check("first", Scope::Admin), Err(ErrorCode::Forbidden));
        assert_eq!(check("second", Scope::Control), Err(ErrorCode::Unauthorized));
    }

    #[test]
    fn every_signed_part_is_covered() {
        let auth = Authenticator::new(vec![signing_key()], WINDOW);
        let now = NOW_S.to_string();
        let changes: [fn(&mut Attempt<'_>); 8] = [
            |attempt| attempt.method = "GET",
            |attempt| attempt.target = "/api/v1/third/devices/40aace04/charge?x=2",
            |attempt| attempt.body = b"{ }",
            |attempt| attempt.timestamp = Some("1700000001"),
            |attempt| attempt.nonce = Some("m"),
            |attempt| attempt.signature = Some("00"),
            |attempt| attempt.signature = None,
            |attempt| attempt.nonce = None,
        ];
        for (index, change) in changes.into_iter().enumerate() {
            assert_eq!(signed(&auth, &now, "n", change), Err(ErrorCode::Unauthorized), "change {index}");
        }
        assert!(signed(&auth, &now, "n", |_| {}).is_ok(), "refused attempts use no nonce up");
        assert_eq!(signed(&auth, &now, "n", |_| {}), Err(ErrorCode::Unauthorized), "a nonce counts once");
    }

    #[test]
    fn timestamps_hold_for_the_window_either_way() {
        let auth = Authenticator::new(vec![signing_key()], WINDOW);
        for (index, offset) in [-120, 120].into_iter().enumerate() {
            assert!(signed(&auth, &(NOW_S + offset).to_string(), &format!("ok{index}"), |_| {}).is_ok(), "{offset}");
        }
        for offset in [-121, 121, i64::MIN / 2, i64::MAX - NOW_S] {
            let result = signed(&auth, &(NOW_S + offset).to_string(), "n", |_| {});
            assert_eq!(result, Err(ErrorCode::Unauthorized), "{offset}");
        }
        for text in ["", "now", "1700000000.0"] {
            assert_eq!(signed(&auth, text, "n", |_| {}), Err(ErrorCode::Unauthorized), "{text}");
        }
    }

    #[test]
    fn a_key_without_its_secret_opens_nothing() {
        let auth = Authenticator::new(vec![ApiKey { hmac_secret: None, ..signing_key() }], WINDOW);
        assert_eq!(signed(&auth, &NOW_S.to_string(), "n", |_| {}), Err(ErrorCode::Unauthorized));
    }

    #[test]
    fn nonces_are_bounded_and_forgotten_once_their_timestamp_is() {
        let mut nonces = Nonces::new(2);
        let mut remember =
            |key, nonce, last_valid_s, unix_s| nonces.remember(NonceId::new(key, nonce), last_valid_s, unix_s);
        assert!(matches!(remember("a", "1", 10, 0), Remembered::New));
        assert!(matches!(remember("b", "1", 20, 0), Remembered::New));
        assert!(matches!(remember("a", "2", 30, 10), Remembered::Full));
        assert!(matches!(remember("a", "1", 30, 10), Remembered::Known));
        assert!(matches!(remember("a", "2", 30, 11), Remembered::New));
        assert_eq!((nonces.known.len(), nonces.expiry.len()), (2, 2));
    }

    #[test]
    fn a_forgotten_nonce_may_be_used_again_and_is_then_known_for_as_long_as_it_must() {
        let mut nonces = Nonces::new(9);
        let id = NonceId::new("a", "1");
        assert!(matches!(nonces.remember(id, 10, 0), Remembered::New));
        nonces.forget(id);
        assert!(matches!(nonces.remember(id, 20, 0), Remembered::New));
        assert!(matches!(nonces.remember(id, 20, 11), Remembered::Known), "the end of the first use is not its end");
        assert_eq!(nonces.in_use(11), [UsedNonce { id, valid_s: 10 }]);
        assert_eq!(nonces.in_use(21), []);
        assert!(matches!(nonces.remember(id, 30, 21), Remembered::New));
    }

    /// Answers every question the same.
    struct Others(Verdict);

    impl Shared for Others {
        fn ask(&self, _: Question, then: Answered<Verdict>) {
            then(self.0);
        }

        fn restore(&self, _: Vec<UsedNonce>) {}
    }

    fn asked(auth: &Authenticator, question: Question) -> Result<(), ErrorCode> {
        let (tell, told) = std::sync::mpsc::channel();
        auth.ask(question, Box::new(move |answer| tell.send(answer).unwrap_or_default()));
        told.recv().expect("an answer").outcome.map_err(|error| error.code)
    }

    #[test]
    fn only_limited_and_signing_keys_ask_the_others() {
        let keys = vec![key("free", "free"), ApiKey { rate_per_s: 5, ..key("limited", "limited") }];
        let alone = Authenticator::new(keys.clone(), WINDOW);
        let passed = |auth: &Authenticator, key| auth.check(&attempt(key), Scope::Read, NOW_MS).outcome.unwrap();
        assert_eq!((passed(&alone, "free"), passed(&alone, "limited")), (None, None));
        let auth = Authenticator::new(keys, WINDOW).with_shared(Arc::new(Others(Verdict::Granted { remaining: 2 })));
        assert_eq!(passed(&auth, "free"), None);
        let question = Question { key: "limited".into(), rate: Rate::per_second(5, 0), nonce: None };
        assert_eq!(passed(&auth, "limited"), Some(question));
        let at_once = |auth: &Authenticator, key| auth.check_alone(&attempt(key), Scope::Read, NOW_MS).is_some();
        assert!(at_once(&auth, "free") && at_once(&auth, "stranger") && !at_once(&auth, "limited"));
        assert!(at_once(&alone, "limited"));
    }

    #[test]
    fn the_others_answer_decides_and_their_silence_fails_nonces_only() {
        let id = NonceId::new("a", "1");
        let rate = Question { key: "a".into(), rate: Rate::per_second(5, 0), nonce: None };
        let both = Question { nonce: Some(UsedNonce { id, valid_s: 9 }), ..rate.clone() };
        for (verdict, of_rate, of_both) in [
            (Verdict::Granted { remaining: 2 }, Ok(()), Ok(())),
            (Verdict::RateExceeded, Err(ErrorCode::RateLimited), Err(ErrorCode::RateLimited)),
            (Verdict::NonceUsed, Err(ErrorCode::Unauthorized), Err(ErrorCode::Unauthorized)),
            (Verdict::Unknown, Ok(()), Err(ErrorCode::NotReady)),
        ] {
            let auth = Authenticator::new(Vec::new(), WINDOW).with_shared(Arc::new(Others(verdict)));
            assert_eq!(asked(&auth, rate.clone()), of_rate, "{verdict:?}");
            assert!(matches!(auth.nonces.lock().remember(id, NOW_S, NOW_S), Remembered::New));
            assert_eq!(asked(&auth, both.clone()), of_both, "{verdict:?}");
            // Whom it was not for may send it again.
            let known = matches!(verdict, Verdict::Granted { .. } | Verdict::NonceUsed);
            assert_eq!(auth.nonces.lock().known.contains_key(&id), known, "{verdict:?}");
        }
    }

    #[test]
    fn the_quota_is_what_all_instances_left() {
        let auth = Authenticator::new(Vec::new(), WINDOW);
        let rate = Rate::per_second(5, 8).unwrap();
        let question = Question { key: "a".into(), rate: Some(rate), nonce: None };
        for (verdict, quota) in [
            (Verdict::Granted { remaining: 3 }, Some(rate.quota_with(3))),
            (Verdict::RateExceeded, Some(rate.quota_with(0))),
            (Verdict::Unknown, None),
        ] {
            let auth = Authenticator::new(Vec::new(), WINDOW).with_shared(Arc::new(Others(verdict)));
            let (tell, told) = std::sync::mpsc::channel();
            auth.ask(question.clone(), Box::new(move |asked| tell.send(asked).unwrap_or_default()));
            assert_eq!(told.recv().expect("an answer").quota, quota, "{verdict:?}");
        }
        assert!(auth.shared.is_none());
    }

    #[test]
    fn callers_of_limited_keys_are_told_what_is_left_whatever_the_answer() {
        let limited = ApiKey { rate_per_s: 2, burst: 3, ..key("a", "first") };
        let auth = Authenticator::new(vec![limited, key("free", "free")], WINDOW);
        let check = |text, scope| {
            let checked = auth.check(&attempt(text), scope, NOW_MS);
            (checked.outcome.map(|_| ()).map_err(|error| error.code), checked.quota.map(|quota| quota.remaining))
        };
        assert_eq!(check("free", Scope::Read), (Ok(()), None));
        assert_eq!(check("first", Scope::Read), (Ok(()), Some(2)));
        assert_eq!(check("first", Scope::Admin), (Err(ErrorCode::Forbidden), Some(1)));
        assert_eq!(auth.count(&attempt("first"), NOW_MS).quota.map(|quota| quota.remaining), Some(0));
        assert_eq!(check("first", Scope::Read), (Err(ErrorCode::RateLimited), Some(0)));
        let counted = auth.count(&attempt("first"), NOW_MS);
        assert_eq!(counted.outcome.map_err(|error| error.code), Err(ErrorCode::RateLimited));
        assert_eq!(auth.count(&attempt("second"), NOW_MS), Checked::nobody(Ok(None)), "no stranger is told so");
    }

    #[test]
    fn all_callers_together_have_a_rate_too() {
        let auth = Authenticator::new(vec![ApiKey { rate_per_s: 2, ..key("a", "first") }, key("b", "second")], WINDOW);
        auth.set_limits(Limits { rate_per_s: 3, ..Limits::default() });
        let check = |text| {
            let checked = auth.check(&attempt(text), Scope::Read, NOW_MS);
            (
                checked.outcome.map(|_| ()).map_err(|error| error.code),
                checked.quota.map(|left| (left.limit, left.remaining)),
            )
        };
        assert_eq!(check("first"), (Ok(()), Some((2, 1))), "the tighter one is told");
        assert_eq!(check("first"), (Ok(()), Some((2, 0))));
        assert_eq!(check("first"), (Err(ErrorCode::RateLimited), Some((2, 0))));
        assert_eq!(check("second"), (Ok(()), Some((3, 0))), "what a key was refused is nobody's");
        assert_eq!(check("second"), (Err(ErrorCode::RateLimited), Some((3, 0))));
        assert_eq!(check("stranger"), (Err(ErrorCode::Unauthorized), None), "and a stranger uses nothing up");
        auth.set_limits(Limits::default());
        assert_eq!(check("second"), (Ok(()), None));
    }

    #[test]
    fn failures_of_an_address_are_limited_and_good_attempts_from_it_are_let_in() {
        let signing = ApiKey { name: "s".into(), key_sha256: Sha256::digest("signs").into(), ..signing_key() };
        let auth = Authenticator::new(vec![key("a", "first"), signing], WINDOW);
        auth.set_limits(Limits { failures_per_minute_per_ip: 3, ..Limits::default() });
        let check = |attempt: &Attempt<'_>| auth.check(attempt, Scope::Read, NOW_MS).outcome.map(|_| ());
        let code = |attempt: &Attempt<'_>| check(attempt).map_err(|error| error.code);
        assert_eq!(code(&attempt("guess")), Err(ErrorCode::Unauthorized));
        assert_eq!(code(&Attempt { api_key: None, ..attempt("") }), Err(ErrorCode::Unauthorized));
        assert_eq!(code(&attempt("signs")), Err(ErrorCode::Unauthorized), "a signature that is missing is a failure");
        let refused = check(&attempt("guess")).unwrap_err();
        assert_eq!((refused.code, refused.retry_after_s), (ErrorCode::RateLimited, Some(20)));
        assert_eq!(
            auth.count(&attempt("guess"), NOW_MS).outcome.map_err(|error| error.code),
            Err(ErrorCode::RateLimited)
        );
        assert_eq!(code(&attempt("signs")), Err(ErrorCode::RateLimited));
        assert_eq!(code(&attempt("first")), Ok(()));
        let elsewhere = Attempt { client_ip: "192.0.2.8".parse().unwrap(), ..attempt("guess") };
        assert_eq!(code(&elsewhere), Err(ErrorCode::Unauthorized));
        auth.set_limits(Limits { failures_per_minute_per_ip: 0, ..Limits::default() });
        assert_eq!(code(&attempt("guess")), Err(ErrorCode::Unauthorized));
    }
}
