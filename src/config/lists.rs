//! The three lists of tables: API keys, webhook endpoints and tariffs.
//!
//! From the file they come as `[[api.keys]]`, `[[webhook.endpoints]]` and `[[tariffs]]`, from the environment as JSON arrays of
//! objects with the same fields; one parser reads both.

use std::fmt::{self, Write as _};

use sha2::{Digest, Sha256};
use toml::Value as Toml;
use ureq::http::Uri;

use super::cidr::Cidr;
use super::error::ConfigError;
use super::key::show;
use super::value::{Secret, read_secret};
use crate::gateway::card::NamedTariff;
use crate::model::{FeePeriod, PowerTier};
use crate::pricing::Tariff;
use crate::protocol::Hex;

pub(super) const API_KEYS: &str = "api.keys";
pub(super) const WEBHOOK_ENDPOINTS: &str = "webhook.endpoints";
pub(super) const TARIFFS: &str = "tariffs";

/// Longest name of a key or endpoint: it stands in logs, metrics, rows and paths.
pub const NAME_CHARS_MAX: usize = 128;
/// Most entries of each list.
const ENTRIES_MAX: usize = 1000;
/// Highest rate of a key, in requests per second, and highest burst.
pub const REQUESTS_MAX: u32 = 1_000_000;

/// What a text in an entry must be, whoever reads it: the file, the environment or the admin API.
pub struct Rule<T> {
    /// In words, behind "must be".
    pub expected: &'static str,
    /// What it says; `None`: it is not what it must be.
    pub read: fn(&str) -> Option<T>,
    /// What is said of a text that is refused: of a secret nothing that it holds.
    pub shown: fn(&str) -> String,
}

/// A scope of a key.
pub const SCOPE: Rule<Scope> =
    Rule { expected: "one of \"read\", \"control\", \"admin\"", read: Scope::parse, shown: quoted };

/// A network that may use a key.
pub const NETWORK: Rule<Cidr> = Rule {
    expected: "a network like 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32",
    read: |text| text.parse().ok(),
    shown: quoted,
};

/// Where an endpoint is.
pub const ENDPOINT_URL: Rule<String> = Rule {
    expected: "an http or https URL of at most 2048 bytes without user and fragment",
    read: |text| url_name(text).map(|_| text.to_owned()),
    shown: |text| quoted(&super::value::mask_password(text)),
};

/// What an endpoint wants.
pub const EVENTS: Rule<EventPattern> =
    Rule { expected: "\"*\", a group like \"order.*\", or an event type", read: EventPattern::parse, shown: quoted };

/// A secret that signs deliveries.
pub const SIGNING_SECRET: Rule<Secret> = Rule {
    expected: "\"whsec_\" and base64, or any other text",
    read: |text| crate::signature::is_usable_secret(text).then(|| Secret::new(text)),
    shown: |_| "no base64 after \"whsec_\"".to_owned(),
};

/// A key that is sent to an endpoint.
pub const SENT_KEY: Rule<Secret> = Rule {
    expected: "ASCII without spaces",
    read: |text| text.bytes().all(|byte| byte.is_ascii_graphic()).then(|| Secret::new(text)),
    shown: |_| "other characters".to_owned(),
};

fn quoted(text: &str) -> String {
    show(&Toml::from(text))
}

pub(super) const API_KEYS_REFERENCE: &str = r#"
# API keys; reloaded. Without any, one is made at the first start and printed.
# In the environment: CHARGEGATE_API_KEYS='[{"name": "billing", "key": "..."}]'.
#
# [[api.keys]]
# name = "billing"                          # required; stands in logs
# key = "file:/run/secrets/billing"         # required: the key, "file:PATH", or "sha256:" and 64 hex digits
# scopes = ["read", "control", "admin"]     # default: all three
# require_hmac = false                      # refuse requests without a valid signature; needs hmac_secret
# hmac_secret = "file:/run/secrets/hmac"
# ip_allow = ["192.0.2.0/24"]               # default: any address
# rate_per_s = 0                            # requests per second, 0..=1000000; 0 is without limit
# burst = 0                                 # requests at once after a rest, 0..=1000000; 0 is rate_per_s
"#;

pub(super) const WEBHOOK_ENDPOINTS_REFERENCE: &str = r#"
# Webhook endpoints; reloaded.
# In the environment: CHARGEGATE_WEBHOOK_ENDPOINTS='[{"url": "https://...", "secret": "..."}]'.
#
# [[webhook.endpoints]]
# name = "billing"                          # default: the URL's host and path
# url = "https://billing.example/hooks"     # required
# secret = "file:/run/secrets/webhook"      # required; signs every request, "whsec_" and base64, or any text
# secret_previous = "file:/run/secrets/old" # also signs, while receivers change over to a new secret
# api_key = "..."                           # sent as X-Api-Key
# events = ["order.*", "charging.ended"]    # default: all but device.heartbeat and charging.progress; "*" is all
"#;

pub(super) const TARIFFS_REFERENCE: &str = r#"
# Tariffs of cards; restart. A running charge keeps the prices it was ordered at.
# In the environment: CHARGEGATE_TARIFFS='[{"name": "hour", "kind": "time", "price_cent": 100}]'.
#
# [[tariffs]]
# name = "hour"                             # required, unique
# kind = "time"                             # price_cent buys `minutes`
# price_cent = 100
# minutes = 60                              # default: 60
#
# [[tariffs]]
# name = "kwh"
# kind = "energy"                           # price_cent buys 1 kWh
# price_cent = 120
#
# [[tariffs]]
# name = "tiers"
# kind = "power"                            # 1 to 5 tiers by rising power_dw (0.1 W): price_cent buys `minutes`
# tiers = [{ power_dw = 2000, price_cent = 25, minutes = 60 }, { power_dw = 8000, price_cent = 50, minutes = 60 }]
#
# [[tariffs]]
# name = "day"
# kind = "service_fee"                      # prices per kWh by time of day; the last period ends at 23:59
# service_fee_by_energy = true              # default: true; false: service_cent is per hour
# periods = [{ end_hour = 8, end_minute = 0, electricity_cent = 40, service_cent = 30 },
#            { end_hour = 23, end_minute = 59, electricity_cent = 80, service_cent = 40 }]
"#;

/// All event types, by name.
pub const EVENT_TYPES: &[&str] = &[
    "device.registered",
    "device.online",
    "device.offline",
    "device.alarm",
    "device.heartbeat",
    "port.status_changed",
    "order.created",
    "order.confirmed",
    "order.timeout",
    "order.cancelling",
    "order.cancelled",
    "order.stopping",
    "order.stopped",
    "order.completed",
    "order.failed",
    "order.interrupted",
    "order.resumed",
    "order.settled",
    "charging.started",
    "charging.progress",
    "charging.ended",
    "card.swiped",
    "card.transaction",
    "ota.progress",
    "command.dead",
];

/// Types so frequent that an endpoint gets them only when its patterns ask for them.
const ON_REQUEST: [&str; 2] = ["device.heartbeat", "charging.progress"];

/// What a request may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Queries.
    Read,
    /// Orders and commands.
    Control,
    /// Everything under `/admin`.
    Admin,
}

impl Scope {
    const ALL: [Self; 3] = [Self::Read, Self::Control, Self::Admin];

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == word)
    }

    /// The word of the configuration file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Control => "control",
            Self::Admin => "admin",
        }
    }
}

/// A set of scopes. None implies another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// All scopes.
    pub const ALL: Self = Self(0b111);

    /// Whether `scope` is in the set.
    pub const fn contains(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    /// The words of the configuration file.
    pub fn words(self) -> Vec<&'static str> {
        Scope::ALL.into_iter().filter(|scope| self.contains(*scope)).map(Scope::as_str).collect()
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |set, scope| set | 1 << scope as u8))
    }
}

/// One `[[api.keys]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Unique; stands in logs and with idempotency keys.
    pub name: String,
    /// SHA-256 of the key, to be compared in constant time. The key itself is not kept.
    pub key_sha256: [u8; 32],
    /// What the key may do.
    pub scopes: Scopes,
    /// Whether requests must also carry a valid signature.
    pub require_hmac: bool,
    /// Secret of that signature; always there when `require_hmac` is set.
    pub hmac_secret: Option<Secret>,
    /// Networks that may use the key; empty: all.
    pub ip_allow: Vec<Cidr>,
    /// Requests per second; 0 is without limit.
    pub rate_per_s: u32,
    /// Requests that may come at once after a rest; 0 is as many as of one second.
    pub burst: u32,
}

/// One `[[webhook.endpoints]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookEndpoint {
    /// Unique.
    pub name: String,
    /// `http` or `https`, without user and fragment.
    pub url: String,
    /// Signs every request.
    pub secret: Secret,
    /// Signs every request too, while receivers change over.
    pub secret_previous: Option<Secret>,
    /// Sent as `X-Api-Key`.
    pub api_key: Option<Secret>,
    /// Event types wanted; empty: all but `device.heartbeat` and `charging.progress`.
    pub events: Vec<EventPattern>,
}

impl WebhookEndpoint {
    /// Whether the endpoint wants events of this type.
    pub fn wants(&self, event_type: &str) -> bool {
        if self.events.is_empty() {
            return !ON_REQUEST.contains(&event_type);
        }
        self.events.iter().any(|pattern| pattern.matches(event_type))
    }
}

/// A pattern over event types: `*`, `order.*`, or one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPattern(String);

impl EventPattern {
    /// Whether a type matches.
    pub fn matches(&self, event_type: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => event_type.starts_with(prefix),
            None => self.0 == event_type,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let shape = text == "*" || text.ends_with(".*") || !text.contains('*');
        let pattern = Self(text.to_owned());
        (shape && EVENT_TYPES.iter().any(|event_type| pattern.matches(event_type))).then_some(pattern)
    }
}

impl fmt::Display for EventPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a text may be the name of a key, an endpoint or a tariff: 1 to [`NAME_CHARS_MAX`] printable characters.
pub fn is_name(text: &str) -> bool {
    (1..=NAME_CHARS_MAX).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

/// Reads a list from JSON. The error never quotes the text, which holds secrets.
pub(super) fn parse_json(text: &str) -> Result<Vec<Toml>, String> {
    let entries: Vec<serde_json::Value> = serde_json::from_str(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => "it is not an array".to_owned(),
        _ => format!("not JSON at line {} column {}", error.line(), error.column()),
    })?;
    entries.into_iter().map(|entry| from_json(entry).ok_or_else(|| "an entry is null".to_owned())).collect()
}

/// `None` for null, which TOML does not have and which means "left out".
fn from_json(value: serde_json::Value) -> Option<Toml> {
    use serde_json::Value as Json;
    Some(match value {
        Json::Null => return None,
        Json::Bool(value) => Toml::Boolean(value),
        Json::Number(number) => match number.as_i64() {
            Some(integer) => Toml::Integer(integer),
            None => Toml::Float(number.as_f64()?),
        },
        Json::String(text) => Toml::String(text),
        Json::Array(items) => Toml::Array(items.into_iter().filter_map(from_json).collect()),
        Json::Object(fields) => {
            Toml::Table(fields.into_iter().filter_map(|(name, value)| Some((name, from_json(value)?))).collect())
        }
    })
}

/// One entry being read: takes fields out of the table, so that what is left over is unknown.
struct Entry<'a> {
    /// `api.keys[0]`.
    path: String,
    table: toml::Table,
    errors: &'a mut Vec<ConfigError>,
}

impl Entry<'_> {
    fn key(&self, field: &str) -> String {
        format!("{}.{field}", self.path)
    }

    fn require(&mut self, fields: &[&str]) {
        for field in fields.iter().filter(|field| !self.table.contains_key(**field)) {
            self.errors.push(ConfigError::Missing { key: self.key(field) });
        }
    }

    fn invalid(&mut self, field: &str, expected: &str, got: &str) {
        self.errors.push(ConfigError::invalid(&self.key(field), expected, got));
    }

    /// A text, not empty.
    fn text(&mut self, field: &str) -> Option<String> {
        match self.table.remove(field)? {
            Toml::String(text) if !text.is_empty() => Some(text),
            Toml::String(_) => {
                self.invalid(field, "a text", "\"\"");
                None
            }
            other => {
                // What stands in the place of a secret may be one.
                self.invalid(field, "a text", other.type_str());
                None
            }
        }
    }

    fn name(&mut self) -> Option<String> {
        let name = self.text("name")?;
        if is_name(&name) {
            return Some(name);
        }
        let shown = show(&Toml::from(name));
        self.invalid("name", &format!("at most {NAME_CHARS_MAX} printable characters"), &shown);
        None
    }

    fn secret(&mut self, field: &str) -> Option<Secret> {
        let text = self.text(field)?;
        match read_secret(&self.key(field), &text) {
            Ok(secret) => Some(Secret::new(secret)),
            Err(error) => {
                self.errors.push(error);
                None
            }
        }
    }

    /// A secret, read by a rule.
    fn ruled_secret(&mut self, field: &str, rule: &Rule<Secret>) -> Option<Secret> {
        let secret = self.secret(field)?;
        let read = (rule.read)(secret.expose());
        if read.is_none() {
            self.invalid(field, rule.expected, &(rule.shown)(secret.expose()));
        }
        read
    }

    fn flag(&mut self, field: &str) -> bool {
        match self.table.remove(field) {
            None => false,
            Some(Toml::Boolean(value)) => value,
            Some(other) => {
                self.invalid(field, "true or false", &show(&other));
                false
            }
        }
    }

    /// A list of texts, each read by a rule; `None` when it is left out.
    fn texts<T>(&mut self, field: &str, rule: &Rule<T>) -> Option<Vec<T>> {
        let items = match self.table.remove(field)? {
            Toml::Array(items) => items,
            other => {
                self.invalid(field, "a list of texts", &show(&other));
                return None;
            }
        };
        let mut parsed = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match item.as_str().and_then(rule.read) {
                Some(value) => parsed.push(value),
                None => {
                    let shown = item.as_str().map_or_else(|| show(item), rule.shown);
                    self.invalid(&format!("{field}[{index}]"), rule.expected, &shown);
                }
            }
        }
        Some(parsed)
    }

    /// A whole number from `min` that fits 32 bits.
    fn number(&mut self, field: &str, min: u32) -> Option<u32> {
        let value = self.table.remove(field)?;
        let number = value.as_integer().and_then(|number| u32::try_from(number).ok()).filter(|number| *number >= min);
        if number.is_none() {
            self.invalid(field, &format!("in {min}..={}", u32::MAX), &show(&value));
        }
        number
    }

    /// A list of tables of one form.
    fn records<T: serde::de::DeserializeOwned>(&mut self, field: &str, expected: &str) -> Option<Vec<T>> {
        let value = self.table.remove(field)?;
        let records = value.clone().try_into().ok();
        if records.is_none() {
            self.invalid(field, expected, &show(&value));
        }
        records
    }

    fn finish(self, fields: &[&str]) {
        for name in self.table.keys() {
            let known = fields.iter().map(|field| format!("{}.{field}", self.path));
            self.errors.push(ConfigError::unknown_key(&format!("{}.{name}", self.path), known));
        }
    }
}

/// The tables of a list, with an error for whatever is none.
fn tables(list: &str, entries: Vec<Toml>, errors: &mut Vec<ConfigError>) -> Vec<(String, toml::Table)> {
    if entries.len() > ENTRIES_MAX {
        let expected = format!("a list of at most {ENTRIES_MAX} entries");
        errors.push(ConfigError::invalid(list, expected, entries.len().to_string()));
        return Vec::new();
    }
    let mut tables = Vec::with_capacity(entries.len());
    for (index, entry) in entries.into_iter().enumerate() {
        let path = format!("{list}[{index}]");
        match entry {
            Toml::Table(table) => tables.push((path, table)),
            other => errors.push(ConfigError::invalid(&path, "a table", other.type_str())),
        }
    }
    tables
}

pub(super) fn api_keys(entries: Vec<Toml>, errors: &mut Vec<ConfigError>) -> Vec<ApiKey> {
    const FIELDS: &[&str] =
        &["name", "key", "scopes", "require_hmac", "hmac_secret", "ip_allow", "rate_per_s", "burst"];
    let mut keys: Vec<ApiKey> = Vec::with_capacity(entries.len().min(ENTRIES_MAX));
    for (path, table) in tables(API_KEYS, entries, errors) {
        let mut entry = Entry { path: path.clone(), table, errors };
        entry.require(&["name", "key"]);
        let name = entry.name();
        let key_sha256 = entry.secret("key").and_then(|key| {
            let hash = hash_key(key.expose());
            if hash.is_none() {
                entry.invalid("key", "a text, or \"sha256:\" and 64 hex digits", "another text after \"sha256:\"");
            }
            hash
        });
        let scopes = entry.texts("scopes", &SCOPE);
        let scopes = scopes.map_or(Scopes::ALL, |list| list.into_iter().collect());
        let require_hmac = entry.flag("require_hmac");
        let signed = entry.table.contains_key("hmac_secret");
        let hmac_secret = entry.secret("hmac_secret");
        if require_hmac && !signed {
            entry.errors.push(ConfigError::Missing { key: entry.key("hmac_secret") });
        }
        let ip_allow = entry.texts("ip_allow", &NETWORK).unwrap_or_default();
        let mut requests = |field| match entry.table.remove(field) {
            None => 0,
            Some(Toml::Integer(count)) if (0..=i64::from(REQUESTS_MAX)).contains(&count) => {
                u32::try_from(count).unwrap_or(0)
            }
            Some(other) => {
                entry.invalid(field, &format!("in 0..={REQUESTS_MAX}"), &show(&other));
                0
            }
        };
        let (rate_per_s, burst) = (requests("rate_per_s"), requests("burst"));
        entry.finish(FIELDS);
        let (Some(name), Some(key_sha256)) = (name, key_sha256) else { continue };
        if keys.iter().any(|other| other.name == name) {
            errors.push(ConfigError::Duplicate { key: format!("{path}.name") });
        }
        if keys.iter().any(|other| other.key_sha256 == key_sha256) {
            errors.push(ConfigError::Duplicate { key: format!("{path}.key") });
        }
        keys.push(ApiKey { name, key_sha256, scopes, require_hmac, hmac_secret, ip_allow, rate_per_s, burst });
    }
    keys
}

/// `None` when the text after `sha256:` is no hash.
fn hash_key(text: &str) -> Option<[u8; 32]> {
    let Some(hex) = text.strip_prefix("sha256:") else {
        return Some(Sha256::digest(text).into());
    };
    let digits: Vec<u8> = hex
        .chars()
        .map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    if digits.len().is_multiple_of(2) { bytes.try_into().ok() } else { None }
}

pub(super) fn endpoints(entries: Vec<Toml>, errors: &mut Vec<ConfigError>) -> Vec<WebhookEndpoint> {
    const FIELDS: &[&str] = &["name", "url", "secret", "secret_previous", "api_key", "events"];
    let mut endpoints: Vec<WebhookEndpoint> = Vec::with_capacity(entries.len().min(ENTRIES_MAX));
    for (path, table) in tables(WEBHOOK_ENDPOINTS, entries, errors) {
        let mut entry = Entry { path: path.clone(), table, errors };
        entry.require(&["url", "secret"]);
        let url = entry.text("url").and_then(|url| {
            let name = url_name(&url);
            if name.is_none() {
                entry.invalid("url", ENDPOINT_URL.expected, &(ENDPOINT_URL.shown)(&url));
            }
            Some((name?, url))
        });
        let named = entry.table.contains_key("name");
        let name = entry.name().or_else(|| url.as_ref().filter(|_| !named).map(|(name, _)| name.clone()));
        let secret = entry.ruled_secret("secret", &SIGNING_SECRET);
        let secret_previous = entry.ruled_secret("secret_previous", &SIGNING_SECRET);
        let api_key = entry.ruled_secret("api_key", &SENT_KEY);
        let events = entry.texts("events", &EVENTS).unwrap_or_default();
        entry.finish(FIELDS);
        let (Some(name), Some((_, url)), Some(secret)) = (name, url, secret) else { continue };
        if endpoints.iter().any(|other| other.name == name) {
            errors.push(ConfigError::Duplicate { key: format!("{path}.name") });
        }
        endpoints.push(WebhookEndpoint { name, url, secret, secret_previous, api_key, events });
    }
    endpoints
}

pub(super) fn tariffs(entries: Vec<Toml>, errors: &mut Vec<ConfigError>) -> Vec<NamedTariff> {
    const KINDS: &str = "one of \"time\", \"energy\", \"power\", \"service_fee\"";
    let mut tariffs: Vec<NamedTariff> = Vec::with_capacity(entries.len().min(ENTRIES_MAX));
    for (path, table) in tables(TARIFFS, entries, errors) {
        let mut entry = Entry { path: path.clone(), table, errors };
        entry.require(&["name", "kind"]);
        let name = entry.name();
        let kind = entry.text("kind");
        let (tariff, fields): (Option<Tariff>, &[&str]) = match kind.as_deref() {
            Some("time") => {
                entry.require(&["price_cent"]);
                let minutes = entry.table.contains_key("minutes").then(|| entry.number("minutes", 1));
                let price = entry.number("price_cent", 0);
                let minutes = minutes.unwrap_or(Some(60));
                let tariff = price.zip(minutes).map(|(price_cent, minutes)| Tariff::Time { price_cent, minutes });
                (tariff, &["name", "kind", "price_cent", "minutes"])
            }
            Some("energy") => {
                entry.require(&["price_cent"]);
                let price = entry.number("price_cent", 0);
                (price.map(|price_cent| Tariff::Energy { price_cent }), &["name", "kind", "price_cent"])
            }
            Some("power") => {
                entry.require(&["tiers"]);
                let expected = "a list of { power_dw, price_cent, minutes }, each in 0..=65535";
                let tiers = entry.records::<PowerTier>("tiers", expected);
                (tiers.map(|tiers| Tariff::Power { tiers }), &["name", "kind", "tiers"])
            }
            Some("service_fee") => {
                entry.require(&["periods"]);
                let expected = "a list of { end_hour, end_minute, electricity_cent, service_cent }";
                let periods = entry.records::<FeePeriod>("periods", expected);
                let given = entry.table.contains_key("service_fee_by_energy");
                let by_energy = entry.flag("service_fee_by_energy") || !given;
                let tariff = periods.map(|periods| Tariff::ServiceFee { periods, by_energy });
                (tariff, &["name", "kind", "periods", "service_fee_by_energy"])
            }
            Some(other) => {
                let shown = show(&Toml::from(other));
                entry.invalid("kind", KINDS, &shown);
                continue;
            }
            None => continue,
        };
        if let Some(problem) = tariff.as_ref().and_then(|tariff| tariff.check().err()) {
            entry.errors.push(ConfigError::invalid(&path, "a whole tariff", problem.to_string()));
        }
        entry.finish(fields);
        let (Some(name), Some(tariff)) = (name, tariff) else { continue };
        if tariffs.iter().any(|other| other.name == name) {
            errors.push(ConfigError::Duplicate { key: format!("{path}.name") });
        }
        tariffs.push(NamedTariff { name, tariff });
    }
    tariffs
}

/// Appends the tariffs as TOML.
pub(super) fn print_tariffs(tariffs: &[NamedTariff], out: &mut String) -> fmt::Result {
    for NamedTariff { name, tariff } in tariffs {
        write!(out, "\n[[{TARIFFS}]]\nname = {}\nkind = \"{}\"\n", Toml::from(name.as_str()), tariff.as_str())?;
        match tariff {
            Tariff::Time { price_cent, minutes } => writeln!(out, "price_cent = {price_cent}\nminutes = {minutes}")?,
            Tariff::Energy { price_cent } => writeln!(out, "price_cent = {price_cent}")?,
            Tariff::Power { tiers } => {
                let tier = |tier: &PowerTier| {
                    let PowerTier { power_dw, price_cent, minutes } = tier;
                    format!("{{ power_dw = {power_dw}, price_cent = {price_cent}, minutes = {minutes} }}")
                };
                writeln!(out, "tiers = [{}]", tiers.iter().map(tier).collect::<Vec<_>>().join(", "))?;
            }
            Tariff::ServiceFee { periods, by_energy } => {
                let period = |period: &FeePeriod| {
                    let FeePeriod { end_hour, end_minute, electricity_cent, service_cent } = period;
                    format!(
                        "{{ end_hour = {end_hour}, end_minute = {end_minute}, electricity_cent = {electricity_cent}, \
                         service_cent = {service_cent} }}"
                    )
                };
                writeln!(out, "service_fee_by_energy = {by_energy}")?;
                writeln!(out, "periods = [{}]", periods.iter().map(period).collect::<Vec<_>>().join(", "))?;
            }
        }
    }
    Ok(())
}

/// Host and path of a usable URL.
pub(super) fn url_name(url: &str) -> Option<String> {
    /// Longer ones are a mistake.
    const URL_BYTES_MAX: usize = 2_048;
    let uri: Uri = url.parse().ok().filter(|_| url.len() <= URL_BYTES_MAX)?;
    let web = matches!(uri.scheme_str(), Some("http" | "https"));
    let authority = uri.authority()?.as_str();
    let host = uri.host().filter(|host| !host.is_empty())?;
    (web && !authority.contains('@') && !url.contains('#'))
        .then(|| format!("{host}{}", uri.path()).trim_end_matches('/').to_owned())
}

/// Appends both lists as TOML with masked secrets.
pub(super) fn print(keys: &[ApiKey], endpoints: &[WebhookEndpoint], out: &mut String) -> fmt::Result {
    let text = |text: &str| Toml::from(text).to_string();
    let list = |items: Vec<String>| items.iter().map(|item| text(item)).collect::<Vec<_>>().join(", ");
    for key in keys {
        write!(out, "\n[[{API_KEYS}]]\nname = {}\nkey = \"***\"\n", text(&key.name))?;
        writeln!(out, "scopes = [{}]", list(key.scopes.words().into_iter().map(str::to_owned).collect()))?;
        writeln!(out, "require_hmac = {}", key.require_hmac)?;
        if key.hmac_secret.is_some() {
            out.push_str("hmac_secret = \"***\"\n");
        }
        writeln!(out, "ip_allow = [{}]", list(key.ip_allow.iter().map(Cidr::to_string).collect()))?;
        writeln!(out, "rate_per_s = {}", key.rate_per_s)?;
        writeln!(out, "burst = {}", key.burst)?;
    }
    for endpoint in endpoints {
        write!(out, "\n[[{WEBHOOK_ENDPOINTS}]]\nname = {}\n", text(&endpoint.name))?;
        write!(out, "url = {}\nsecret = \"***\"\n", text(&endpoint.url))?;
        for (field, secret) in [("secret_previous", &endpoint.secret_previous), ("api_key", &endpoint.api_key)] {
            if secret.is_some() {
                writeln!(out, "{field} = \"***\"")?;
            }
        }
        if !endpoint.events.is_empty() {
            writeln!(out, "events = [{}]", list(endpoint.events.iter().map(EventPattern::to_string).collect()))?;
        }
    }
    Ok(())
}

impl ApiKey {
    /// The stored form of the key, as `sha256:` and hex: what an operator may put into a file instead of the key.
    pub fn key_text(&self) -> String {
        format!("sha256:{}", Hex(self.key_sha256))
    }
}
