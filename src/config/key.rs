//! One configuration key: its description, and the check that turns a raw value into a [`Value`].

use std::net::SocketAddr;
use std::time::Duration;

use toml::Value as Toml;

use super::error::ConfigError;
use super::value::{
    ByteSize, MAGICS_MAX, RETRIES_MAX, Secret, duration_text, mask_password, parse_duration, parse_size, size_text,
};

/// Whether SIGHUP applies a changed value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// Applied by a reload.
    Live,
    /// Needs a restart.
    Restart,
}

/// What a key accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// An integer in this inclusive range.
    Int(u64, u64),
    /// `"auto"` or an integer in this inclusive range.
    AutoInt(u64, u64),
    /// A duration in this inclusive range, written like `"500ms"`, `"60s"`, `"10m"`, `"24h"` or `"7d"`.
    Span(Duration, Duration),
    /// Up to 20 durations, each in this inclusive range.
    Spans(Duration, Duration),
    /// 0, or a number of bytes in this inclusive range, written like `"512KiB"`, `"4MiB"` or `"1GiB"`.
    Size(u64, u64),
    /// `IP:port`.
    Address,
    /// `IP:port`, or the empty string for none.
    AddressOrNone,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A path, not empty.
    Path,
    /// `sqlite:PATH` or a `postgres://` URL.
    StoreUrl,
    /// `embedded`, or a `redis://` or `rediss://` URL.
    QueueUrl,
    /// A list of frame starts, 3 bytes of hex each.
    Magics,
    /// Three ASCII capital letters.
    Prefix,
    /// A text of at most so many printable characters, or the empty string.
    Text(usize),
    /// A secret that signs, or the empty string for none.
    Secret,
}

/// A raw value as a source gave it.
#[derive(Clone, Debug)]
pub(super) enum Raw {
    /// From a file: typed.
    Toml(Toml),
    /// From the environment or a flag: text that takes the key's type. Lists are separated by commas.
    Text(String),
}

/// A value that passed its key's check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// For [`Kind::Bool`].
    Bool(bool),
    /// For [`Kind::Int`] and a number in [`Kind::AutoInt`].
    Int(u64),
    /// For [`Kind::Span`].
    Span(Duration),
    /// For [`Kind::Spans`].
    Spans(Vec<Duration>),
    /// For [`Kind::Size`].
    Size(ByteSize),
    /// For [`Kind::Magics`].
    Texts(Vec<String>),
    /// For [`Kind::Secret`].
    Secret(Secret),
    /// For all others.
    Text(String),
}

impl Value {
    /// As a TOML literal that the key's check accepts again, but with the password of a URL replaced by `***`.
    pub(super) fn masked(&self) -> String {
        let quoted = |text: &str| Toml::from(text).to_string();
        let list = |items: Vec<String>| format!("[{}]", items.join(", "));
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Span(value) => quoted(&duration_text(*value)),
            Self::Spans(values) => list(values.iter().map(|value| quoted(&duration_text(*value))).collect()),
            Self::Size(value) => quoted(&size_text(value.0)),
            Self::Texts(values) => list(values.iter().map(|value| quoted(value)).collect()),
            Self::Secret(value) => quoted(if value.expose().is_empty() { "" } else { "***" }),
            Self::Text(value) => quoted(&mask_password(value)),
        }
    }
}

/// One scalar key of the configuration.
#[derive(Debug)]
pub struct Key {
    /// Table in the file.
    pub section: &'static str,
    /// What the table is about.
    pub section_doc: &'static str,
    /// Name inside the table.
    pub name: &'static str,
    /// Type and range.
    pub kind: Kind,
    /// The default, as a TOML literal.
    pub default: &'static str,
    /// Whether SIGHUP applies a change.
    pub reload: Reload,
    /// Meaning, one line an element.
    pub doc: &'static [&'static str],
}

/// Why a raw value was refused.
#[derive(Debug)]
pub(super) enum Problem {
    Invalid { expected: String, got: String },
    Secret(ConfigError),
}

impl Problem {
    pub(super) fn at(self, key: &str, origin: Option<String>) -> ConfigError {
        match self {
            Self::Invalid { expected, got } => ConfigError::Invalid { key: key.to_owned(), expected, got, origin },
            Self::Secret(error) => error,
        }
    }
}

impl Key {
    /// `section.name`, the name used in messages.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// The environment variable that sets this key.
    pub fn env_name(&self) -> String {
        super::env_name(&self.full_name())
    }

    /// The built-in value.
    ///
    /// # Panics
    ///
    /// When the table's default does not pass its own check, which a test rules out.
    pub(super) fn default_value(&self) -> Value {
        let literal: toml::Table = format!("v = {}", self.default).parse().expect("each default is a TOML literal");
        self.check(&Raw::Toml(literal["v"].clone())).expect("each default passes its own check")
    }

    /// Checks a raw value.
    pub(super) fn check(&self, raw: &Raw) -> Result<Value, Problem> {
        let toml = match raw {
            Raw::Toml(toml) => toml.clone(),
            Raw::Text(text) => self.kind.type_text(text),
        };
        let from_file = toml.as_str().is_some_and(|text| text.starts_with("file:"));
        let toml = match (self.kind, &toml) {
            (Kind::StoreUrl | Kind::QueueUrl | Kind::Secret, Toml::String(text)) => {
                Toml::String(super::value::read_secret(&self.full_name(), text).map_err(Problem::Secret)?)
            }
            _ => toml,
        };
        self.kind.check(&toml).ok_or_else(|| Problem::Invalid {
            expected: self.kind.expected(),
            got: match (self.kind, &toml) {
                // What a secret file holds is not for a message, the less so if it is the wrong file.
                (Kind::StoreUrl | Kind::QueueUrl | Kind::Secret, _) if from_file => {
                    "something else in that file".to_owned()
                }
                (Kind::Secret, Toml::String(_)) => "another text".to_owned(),
                (Kind::StoreUrl | Kind::QueueUrl, Toml::String(text)) => show(&Toml::String(mask_password(text))),
                _ => show(&toml),
            },
        })
    }
}

impl Kind {
    /// What the key accepts, to follow "must be".
    pub fn expected(self) -> String {
        let range = |min, max| format!("{}..={}", duration_text(min), duration_text(max));
        match self {
            Self::Bool => "true or false".to_owned(),
            Self::Int(min, max) => format!("in {min}..={max}"),
            Self::AutoInt(min, max) => format!("\"auto\" or in {min}..={max}"),
            Self::Span(min, max) => format!("a duration in {}", range(min, max)),
            Self::Spans(min, max) => {
                format!("a list of at most {RETRIES_MAX} durations, each in {}", range(min, max))
            }
            Self::Size(min, max) => format!("0 or a size in {}..={}", size_text(min), size_text(max)),
            Self::Address => "an address like \"0.0.0.0:6000\" or \"[::]:6000\"".to_owned(),
            Self::AddressOrNone => "an address like \"0.0.0.0:6001\", or \"\" for none".to_owned(),
            Self::Choice(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
                format!("one of {}", words.join(", "))
            }
            Self::Path => "a path".to_owned(),
            Self::StoreUrl => "\"sqlite:PATH\" or \"postgres://USER:PASSWORD@HOST/DATABASE\"".to_owned(),
            Self::QueueUrl => "\"embedded\" or \"redis[s]://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]\"".to_owned(),
            Self::Magics => format!("a list of 1 to {MAGICS_MAX} different strings of 6 hex digits"),
            Self::Prefix => "3 ASCII capital letters".to_owned(),
            Self::Text(max) => format!("a text of at most {max} printable characters"),
            Self::Secret => "\"whsec_\" and base64, any other text, or \"\" for none".to_owned(),
        }
    }

    /// Gives text from the environment or a flag the type that the key expects, or leaves it a string to be refused.
    fn type_text(self, text: &str) -> Toml {
        let string = || Toml::from(text);
        match self {
            Self::Bool => text.parse().map_or_else(|_| string(), Toml::Boolean),
            Self::Int(..) | Self::AutoInt(..) => text.parse().map_or_else(|_| string(), Toml::Integer),
            Self::Spans(..) | Self::Magics => {
                Toml::Array(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Toml::from).collect())
            }
            _ => string(),
        }
    }

    /// `None` when the value is not what [`Self::expected`] says.
    fn check(self, toml: &Toml) -> Option<Value> {
        let text = || toml.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let int = |min: u64, max: u64| {
            let value = u64::try_from(toml.as_integer()?).ok()?;
            (min..=max).contains(&value).then_some(Value::Int(value))
        };
        let span = |toml: &Toml, min, max| parse_duration(toml.as_str()?).filter(|span| (min..=max).contains(span));
        match self {
            Self::Bool => toml.as_bool().map(Value::Bool),
            Self::Int(min, max) => int(min, max),
            Self::AutoInt(min, max) => match toml.as_str() {
                Some("auto") => Some(Value::Text("auto".to_owned())),
                _ => int(min, max),
            },
            Self::Span(min, max) => span(toml, min, max).map(Value::Span),
            Self::Spans(min, max) => {
                let items = toml.as_array().filter(|items| items.len() <= RETRIES_MAX)?;
                items.iter().map(|item| span(item, min, max)).collect::<Option<_>>().map(Value::Spans)
            }
            Self::Size(min, max) => {
                let bytes = match toml.as_integer() {
                    Some(bytes) => u64::try_from(bytes).ok()?,
                    None => parse_size(toml.as_str()?)?,
                };
                (bytes == 0 || (min..=max).contains(&bytes)).then_some(Value::Size(ByteSize(bytes)))
            }
            Self::Address => address(&text()?),
            Self::AddressOrNone => match toml.as_str() {
                Some("") => Some(Value::Text(String::new())),
                _ => address(&text()?),
            },
            Self::Choice(words) => text().filter(|text| words.contains(&text.as_str())).map(Value::Text),
            Self::Path => text().map(Value::Text),
            Self::StoreUrl => {
                let usable = |text: &String| match text.strip_prefix("sqlite:") {
                    Some(path) => !path.is_empty(),
                    None => {
                        let postgres = ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme));
                        postgres && crate::store::postgres::check_url(text).is_ok()
                    }
                };
                text().filter(usable).map(Value::Text)
            }
            Self::QueueUrl => {
                let has_target = |text: &String| {
                    text == "embedded"
                        || ["redis://", "rediss://"]
                            .iter()
                            .any(|scheme| text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()))
                };
                text().filter(has_target).map(Value::Text)
            }
            Self::Magics => magics(toml.as_array()?),
            Self::Text(max) => {
                let fits = |text: &&str| text.chars().count() <= max && !text.chars().any(char::is_control);
                toml.as_str().filter(fits).map(|text| Value::Text(text.to_owned()))
            }
            Self::Secret => {
                let usable = |text: &&str| text.is_empty() || crate::signature::is_usable_secret(text);
                toml.as_str().filter(usable).map(|text| Value::Secret(Secret::new(text)))
            }
            Self::Prefix => text()
                .filter(|text| text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_uppercase()))
                .map(Value::Text),
        }
    }
}

fn address(text: &str) -> Option<Value> {
    let address: SocketAddr = text.parse().ok()?;
    Some(Value::Text(address.to_string()))
}

fn magics(items: &[Toml]) -> Option<Value> {
    if items.is_empty() || items.len() > MAGICS_MAX {
        return None;
    }
    let mut magics: Vec<String> = Vec::with_capacity(items.len());
    for item in items {
        let magic = item.as_str()?.to_ascii_lowercase();
        let hex = magic.len() == 6 && magic.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !hex || magics.contains(&magic) {
            return None;
        }
        magics.push(magic);
    }
    Some(Value::Texts(magics))
}

/// A refused value as it stands in a message: on one line and at most 80 characters.
pub(super) fn show(value: &Toml) -> String {
    const SHOWN_CHARS_MAX: usize = 80;
    let text = match value {
        Toml::Table(_) => "a table".to_owned(),
        Toml::String(text) => format!("{text:?}"),
        other => other.to_string().replace('\n', " "),
    };
    if text.chars().count() <= SHOWN_CHARS_MAX {
        return text;
    }
    text.chars().take(SHOWN_CHARS_MAX).chain("…".chars()).collect()
}
