//! Configuration: raw values in, checked values out, once at start and again at each reload.
//!
//! ```text
//! built-in defaults  <  TOML file  <  CHARGEGATE_* environment  <  command-line flags
//! ```
//!
//! One table in `keys.rs` names every scalar key with its type, range, default and documentation. Parsing, environment
//! names, suggestions for unknown keys, [`Config::to_toml`] and [`reference()`] all walk that table, so they cannot
//! disagree. The three lists that are no scalars, API keys, webhook endpoints and
//! tariffs, live in `lists.rs`.
//!
//! Invariants: [`Source::load`] returns either a configuration in which every value is in range or *all* the errors it
//! found; no secret is ever part of an error, of `Debug` output or of [`Config::to_toml`].

mod cidr;
mod error;
mod key;
mod keys;
mod lists;
mod value;

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::{env, thread};

use toml::{Table, Value as Toml};

pub use cidr::Cidr;
pub use error::{ConfigError, ConfigErrors};
pub use key::{Key, Kind, Reload};
pub use keys::{
    Ap3000, Api, Cards, Commands, Config, Data, Device, Devices, Http, Jobs, KEYS, Limits, Log, Orders, Queue,
    Retention, Session, Shard, Shutdown, Store, Webhook,
};
pub use lists::{
    ApiKey, ENDPOINT_URL, EVENT_TYPES, EVENTS, EventPattern, NAME_CHARS_MAX, NETWORK, REQUESTS_MAX, Rule, SCOPE,
    SENT_KEY, SIGNING_SECRET, Scope, Scopes, WebhookEndpoint, is_name,
};
pub use value::{
    Admission, ByteSize, CardMode, CardTimeUnit, ChargeEndAck, Engine, LogFormat, LogLevel, Magics, OrderPrefix,
    PowerStartCommand, QueueUrl, RetrySchedule, Secret, StoreUrl,
};

use key::{Raw, show};
use lists::{API_KEYS, TARIFFS, WEBHOOK_ENDPOINTS};

/// The file that is read when no other is named and it exists.
pub const DEFAULT_FILE: &str = "chargegate.toml";

/// Prefix of every environment variable that sets a key.
const ENV_PREFIX: &str = "CHARGEGATE_";

/// What is no scalar.
const LISTS: [&str; 3] = [API_KEYS, WEBHOOK_ENDPOINTS, TARIFFS];

/// Stands for `data.dir` inside `store.url`.
const DATA_DIR_PLACEHOLDER: &str = "<data.dir>";

/// Which of the two supported pairs of store and queue is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// SQLite and the embedded queue: one instance, nothing else to install.
    Embedded,
    /// PostgreSQL and Redis: any number of instances.
    Clustered,
}

/// Where configuration comes from. Kept by the server so that SIGHUP reads the same places again.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The file named by hand; it must exist. `None`: [`DEFAULT_FILE`] if present.
    pub file: Option<PathBuf>,
    /// Environment variables as (name, value); names without the `CHARGEGATE_` prefix are ignored.
    pub environment: Vec<(String, String)>,
    /// Command-line flags as (full key, value); they win over everything else.
    pub flags: Vec<(&'static str, String)>,
}

impl Source {
    /// A source that reads the variables of this process.
    ///
    /// A variable whose value is not UTF-8 is taken with the bad bytes replaced, so that it is refused by its check
    /// and not silently ignored.
    pub fn from_process(file: Option<PathBuf>, flags: Vec<(&'static str, String)>) -> Self {
        let environment = env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .filter(|(name, _)| name.starts_with(ENV_PREFIX))
            .collect();
        Self { file, environment, flags }
    }

    /// Reads and checks everything.
    ///
    /// # Errors
    ///
    /// All problems found in one pass: the file, each key, each variable, each list entry, the mode. Only a file that
    /// cannot be read or is not TOML hides further errors inside itself.
    pub fn load(&self) -> Result<Config, ConfigErrors> {
        let mut reader = Reader::default();
        reader.read_file(self.file.as_deref());
        reader.read_environment(&self.environment);
        for (key, value) in &self.flags {
            let found = KEYS.iter().position(|known| known.full_name() == *key);
            debug_assert!(found.is_some(), "flag for a key that does not exist: {key}");
            if let Some(index) = found {
                reader.scalars.insert(index, (Raw::Text(value.clone()), Some("the command line".to_owned())));
            }
        }
        reader.finish()
    }
}

/// Raw values by key, later sources overwriting earlier ones, and the errors so far.
#[derive(Default)]
struct Reader {
    /// Index in [`KEYS`] to raw value and, unless it is the file, where it came from.
    scalars: BTreeMap<usize, (Raw, Option<String>)>,
    api_keys: Option<Vec<Toml>>,
    webhook_endpoints: Option<Vec<Toml>>,
    tariffs: Option<Vec<Toml>>,
    errors: Vec<ConfigError>,
}

impl Reader {
    fn read_file(&mut self, named: Option<&Path>) {
        let path = match named {
            Some(path) => path,
            None if Path::new(DEFAULT_FILE).exists() => Path::new(DEFAULT_FILE),
            None => return,
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(source) => return self.errors.push(ConfigError::Read { path: path.to_owned(), source }),
        };
        match text.parse::<Table>() {
            Ok(table) => self.read_table(table),
            Err(error) => self.errors.push(ConfigError::syntax(path, &text, &error)),
        }
    }

    fn read_table(&mut self, table: Table) {
        for (section, value) in table {
            let known = KEYS.iter().any(|key| key.section == section);
            match value {
                Toml::Table(keys) => {
                    for (name, value) in keys {
                        self.read_key(&format!("{section}.{name}"), value);
                    }
                }
                Toml::Array(entries) if section == TARIFFS => self.set_list(TARIFFS, entries),
                other if section == TARIFFS => {
                    self.errors.push(ConfigError::invalid(TARIFFS, "an array of tables", show(&other)));
                }
                other if known => self.errors.push(ConfigError::invalid(&section, "a table", show(&other))),
                _ => self.errors.push(ConfigError::unknown_key(&section, file_names())),
            }
        }
    }

    fn read_key(&mut self, full: &str, value: Toml) {
        if let Some(index) = KEYS.iter().position(|key| key.full_name() == full) {
            self.scalars.insert(index, (Raw::Toml(value), None));
        } else if full == API_KEYS || full == WEBHOOK_ENDPOINTS {
            match value {
                Toml::Array(entries) => self.set_list(full, entries),
                other => self.errors.push(ConfigError::invalid(full, "an array of tables", show(&other))),
            }
        } else {
            self.errors.push(ConfigError::unknown_key(full, file_names()));
        }
    }

    fn read_environment(&mut self, variables: &[(String, String)]) {
        for (name, value) in variables {
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
            if let Some(index) = KEYS.iter().position(|key| key.env_name() == *name) {
                self.scalars.insert(index, (Raw::Text(value.clone()), Some(name.clone())));
            } else if let Some(list) = LISTS.into_iter().find(|list| env_name(list) == *name) {
                match lists::parse_json(value) {
                    Ok(entries) => self.set_list(list, entries),
                    Err(problem) => self.errors.push(ConfigError::Json { variable: name.clone(), problem }),
                }
            } else if KEYS.iter().any(|key| rest.starts_with(&format!("{}_", key.section.to_uppercase()))) {
                // Variables of other sections may belong to another program or to a service mesh: not ours to judge.
                let known = KEYS.iter().map(Key::env_name).chain(LISTS.map(env_name));
                self.errors.push(ConfigError::unknown_variable(name, known));
            }
        }
    }

    fn set_list(&mut self, list: &str, entries: Vec<Toml>) {
        match list {
            API_KEYS => self.api_keys = Some(entries),
            TARIFFS => self.tariffs = Some(entries),
            _ => self.webhook_endpoints = Some(entries),
        }
    }

    fn finish(mut self) -> Result<Config, ConfigErrors> {
        let mut values = Vec::with_capacity(KEYS.len());
        for (index, key) in KEYS.iter().enumerate() {
            let checked = match self.scalars.remove(&index) {
                Some((raw, origin)) => key.check(&raw).map_err(|problem| problem.at(&key.full_name(), origin)),
                None => Ok(key.default_value()),
            };
            values.push(checked.unwrap_or_else(|error| {
                self.errors.push(error);
                key.default_value()
            }));
        }
        let mut config = Config::from_values(values);
        config.api_keys = lists::api_keys(self.api_keys.unwrap_or_default(), &mut self.errors);
        config.webhook_endpoints = lists::endpoints(self.webhook_endpoints.unwrap_or_default(), &mut self.errors);
        config.tariffs = lists::tariffs(self.tariffs.unwrap_or_default(), &mut self.errors);
        if let StoreUrl::Sqlite(path) = &mut config.store.url
            && let Ok(rest) = path.strip_prefix(DATA_DIR_PLACEHOLDER)
        {
            *path = config.data.dir.join(rest);
        }
        config.check_together(&mut self.errors);
        if self.errors.is_empty() { Ok(config) } else { Err(ConfigErrors(self.errors)) }
    }
}

/// All names that may stand in the file.
fn file_names() -> impl Iterator<Item = String> {
    KEYS.iter().map(Key::full_name).chain(LISTS.map(str::to_owned))
}

fn env_name(full: &str) -> String {
    format!("{ENV_PREFIX}{}", full.replace('.', "_").to_uppercase())
}

/// One key whose value differs between two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Full name, such as `limits.accept_burst` or `api.keys`.
    pub key: String,
    /// Whether a reload applies it or it waits for a restart.
    pub reload: Reload,
}

impl Config {
    /// The pair of store and queue. Any other pair was refused by [`Source::load`].
    pub const fn mode(&self) -> Mode {
        match self.store.url {
            StoreUrl::Sqlite(_) => Mode::Embedded,
            StoreUrl::Postgres(_) => Mode::Clustered,
        }
    }

    /// Shards to start: `shard.count`, or one per core this process may run on.
    pub fn shard_count(&self) -> usize {
        match self.shard.count {
            Some(count) => count as usize,
            None => thread::available_parallelism().map_or(1, NonZero::get),
        }
    }

    /// What differs between this configuration and `new`, in table order, lists last.
    pub fn changes(&self, new: &Self) -> Vec<Change> {
        let scalars = KEYS.iter().zip(self.values().into_iter().zip(new.values()));
        let mut changes: Vec<Change> = scalars
            .filter(|(_, (old, new))| old != new)
            .map(|(key, _)| Change { key: key.full_name(), reload: key.reload })
            .collect();
        if self.api_keys != new.api_keys {
            changes.push(Change { key: API_KEYS.to_owned(), reload: Reload::Live });
        }
        if self.webhook_endpoints != new.webhook_endpoints {
            changes.push(Change { key: WEBHOOK_ENDPOINTS.to_owned(), reload: Reload::Live });
        }
        if self.tariffs != new.tariffs {
            changes.push(Change { key: TARIFFS.to_owned(), reload: Reload::Restart });
        }
        changes
    }

    /// The effective configuration as TOML, secrets replaced by `***`.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        let mut section = "";
        for (key, value) in KEYS.iter().zip(self.values()) {
            if key.section != section {
                section = key.section;
                out.push_str(if out.is_empty() { "[" } else { "\n[" });
                out.push_str(section);
                out.push_str("]\n");
            }
            out.extend([key.name, " = ", &value.masked(), "\n"]);
        }
        lists::print(&self.api_keys, &self.webhook_endpoints, &mut out).expect("writing to a String does not fail");
        lists::print_tariffs(&self.tariffs, &mut out).expect("writing to a String does not fail");
        out
    }

    /// Rules that join the keys of cards.
    fn check_cards(&self, errors: &mut Vec<ConfigError>) {
        let cards = &self.cards;
        if !cards.tariff.is_empty() && self.tariffs.iter().all(|named| named.name != cards.tariff) {
            let shown = show(&Toml::from(cards.tariff.as_str()));
            errors.push(ConfigError::invalid("cards.tariff", "the name of one of [[tariffs]]", shown));
        }
        if cards.mode != CardMode::Webhook {
            return;
        }
        if lists::url_name(&cards.webhook_url).is_none() {
            let shown = show(&Toml::from(value::mask_password(&cards.webhook_url)));
            let expected = "an http or https URL without user and fragment where cards.mode is \"webhook\"";
            errors.push(ConfigError::invalid("cards.webhook_url", expected, shown));
        }
        if cards.webhook_secret.expose().is_empty() {
            errors.push(ConfigError::Missing { key: "cards.webhook_secret".to_owned() });
        }
    }

    /// Rules that join several keys.
    fn check_together(&self, errors: &mut Vec<ConfigError>) {
        match (&self.store.url, &self.queue.url) {
            (StoreUrl::Sqlite(_), QueueUrl::Embedded) | (StoreUrl::Postgres(_), QueueUrl::Redis(_)) => {}
            (StoreUrl::Sqlite(_), QueueUrl::Redis(_)) => {
                errors.push(ConfigError::Mode { store: "SQLite", queue: "Redis" });
            }
            (StoreUrl::Postgres(_), QueueUrl::Embedded) => {
                errors.push(ConfigError::Mode { store: "PostgreSQL", queue: "the embedded queue" });
            }
        }
        let mut ordered = |low: &str, low_value: u64, high: &str, high_value: u64| {
            if low_value > high_value {
                errors.push(ConfigError::Order { low: low.into(), low_value, high: high.into(), high_value });
            }
        };
        let queue = &self.queue;
        ordered("queue.refuse_idle_above", queue.refuse_idle_above, "queue.refuse_low_above", queue.refuse_low_above);
        ordered(
            "queue.refuse_low_above",
            queue.refuse_low_above,
            "queue.refuse_normal_above",
            queue.refuse_normal_above,
        );
        self.check_cards(errors);
        let limits = &self.limits;
        if self.device.listen_gn == Some(self.device.listen) && self.device.listen.port() != 0 {
            errors.push(ConfigError::SameAddress { first: "device.listen", second: "device.listen_gn" });
        }
        if [Some(self.device.listen), self.device.listen_gn].contains(&Some(self.http.listen))
            && self.http.listen.port() != 0
        {
            errors.push(ConfigError::SameAddress { first: "http.listen", second: "a device address" });
        }
        if limits.breaker_probe_min > limits.breaker_probe_max {
            errors.push(ConfigError::invalid(
                "limits.breaker_probe_min",
                "at most limits.breaker_probe_max",
                value::duration_text(limits.breaker_probe_min),
            ));
        }
    }
}

impl Default for Config {
    /// The built-in defaults.
    fn default() -> Self {
        let values = KEYS.iter().map(Key::default_value).collect();
        let mut config = Self::from_values(values);
        config.store.url = StoreUrl::Sqlite(config.data.dir.join("chargegate.db"));
        config
    }
}

/// The commented reference file: every key with its meaning, range, default and whether a reload applies it.
///
/// `docs/chargegate.toml` is this text.
pub fn reference() -> String {
    let mut out = String::from(keys::REFERENCE_HEAD);
    let mut section = "";
    for key in KEYS {
        if key.section != section {
            if section == "api" {
                out.push_str(lists::API_KEYS_REFERENCE);
            }
            section = key.section;
            out.extend(["\n# ", key.section_doc.trim(), "\n[", section, "]\n"]);
        }
        let reload = match key.reload {
            Reload::Live => "reloaded",
            Reload::Restart => "restart",
        };
        for line in key.doc {
            out.extend(["# ", line.trim(), "\n"]);
        }
        out.extend(["# Value: ", &key.kind.expected(), "; ", reload, ".\n", key.name, " = ", key.default, "\n"]);
    }
    out.push_str(lists::WEBHOOK_ENDPOINTS_REFERENCE);
    out.push_str(lists::TARIFFS_REFERENCE);
    out
}

#[cfg(test)]
mod tests;
