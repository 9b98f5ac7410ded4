//! The types that configuration values take after their check.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::ConfigError;
use super::key::Value;

/// Most AP3000 magics: each adds a comparison to every detection and resynchronisation.
pub(super) const MAGICS_MAX: usize = 8;
/// Most retries of one webhook delivery.
pub(super) const RETRIES_MAX: usize = 20;
/// Longest secret file in bytes; anything longer is a wrong path.
const SECRET_BYTES_MAX: usize = 4096;

/// A secret text. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself: for signing and comparing only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Follows `file:PATH`; any other text is the secret itself. One line end at the end of the file is not part of it.
pub(super) fn read_secret(key: &str, text: &str) -> Result<String, ConfigError> {
    let Some(path) = text.strip_prefix("file:").map(Path::new) else {
        return Ok(text.to_owned());
    };
    let fail = |problem: String| ConfigError::Secret { key: key.to_owned(), path: path.to_owned(), problem };
    let content = fs::read(path).map_err(|error| fail(format!("cannot be read: {error}")))?;
    if content.len() > SECRET_BYTES_MAX {
        return Err(fail(format!("is longer than {SECRET_BYTES_MAX} bytes")));
    }
    let content = String::from_utf8(content).map_err(|_| fail("is not UTF-8".to_owned()))?;
    let secret = content.strip_suffix('\n').unwrap_or(&content);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() {
        return Err(fail("is empty".to_owned()));
    }
    Ok(secret.to_owned())
}

/// Replaces the password of a URL by `***`.
pub(super) fn mask_password(text: &str) -> String {
    let masked = || {
        let (scheme, rest) = text.split_once("://")?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        // A raw '/' inside a password would end the authority early; the last '@' is then behind it.
        let at = rest.get(..end)?.rfind('@').or_else(|| rest.rfind('@'))?;
        let (user, _) = rest.get(..at)?.split_once(':')?;
        Some(format!("{scheme}://{user}:***{}", rest.get(at..)?))
    };
    masked().unwrap_or_else(|| text.to_owned())
}

/// Parses `"500ms"`, `"60s"`, `"10m"`, `"24h"` or `"7d"`: digits and one unit, no sign, no space.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(unit_ms).map(Duration::from_millis)
}

/// The shortest form that [`parse_duration`] reads back, except that 60 s and multiples below 10 min stay seconds.
pub(super) fn duration_text(span: Duration) -> String {
    let ms = span.as_millis();
    for (unit_ms, unit, from_ms) in
        [(86_400_000, "d", 2 * 86_400_000), (3_600_000, "h", 3_600_000), (60_000, "m", 600_000), (1_000, "s", 1_000)]
    {
        if ms >= from_ms && ms.is_multiple_of(unit_ms) {
            return format!("{}{unit}", ms / unit_ms);
        }
    }
    if ms == 0 { "0s".to_owned() } else { format!("{ms}ms") }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

const SIZE_UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Parses `"512KiB"`, `"4MiB"`, `"1GiB"` or a plain number of bytes: digits and at most one unit, no sign, no space.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let unit_bytes = match unit {
        "" => 1,
        unit => SIZE_UNITS.iter().find(|(name, _)| *name == unit)?.1,
    };
    number.checked_mul(unit_bytes)
}

/// The shortest form that [`parse_size`] reads back.
pub(super) fn size_text(bytes: u64) -> String {
    let unit = SIZE_UNITS.iter().find(|(_, unit_bytes)| bytes > 0 && bytes.is_multiple_of(*unit_bytes));
    unit.map_or_else(|| bytes.to_string(), |(name, unit_bytes)| format!("{}{name}", bytes / unit_bytes))
}

/// A field type that a checked [`Value`] turns into, and back for printing and comparing.
///
/// `from_value` panics where the key table gives a field a kind of another type; building the defaults, which every
/// start and a test do, walks all fields.
pub(super) trait Setting {
    fn from_value(value: Value) -> Self;
    fn to_value(&self) -> Value;
}

macro_rules! setting {
    ($type:ty, $pattern:pat => $from:expr, $this:ident => $to:expr) => {
        impl Setting for $type {
            fn from_value(value: Value) -> Self {
                match value {
                    $pattern => $from,
                    other => panic!("key of type {} has the value {other:?}", stringify!($type)),
                }
            }

            fn to_value(&self) -> Value {
                let $this = self;
                $to
            }
        }
    };
}

setting!(bool, Value::Bool(value) => value, this => Value::Bool(*this));
setting!(u64, Value::Int(value) => value, this => Value::Int(*this));
setting!(u32, Value::Int(value) => u32::try_from(value).expect("the range fits"), this => Value::Int((*this).into()));
setting!(Duration, Value::Span(value) => value, this => Value::Span(*this));
setting!(String, Value::Text(value) => value, this => Value::Text(this.clone()));
setting!(ByteSize, Value::Size(value) => value, this => Value::Size(*this));
setting!(Secret, Value::Secret(value) => value, this => Value::Secret(this.clone()));
setting!(PathBuf, Value::Text(value) => value.into(), this => Value::Text(this.to_string_lossy().into_owned()));
setting!(
    SocketAddr,
    Value::Text(value) => value.parse().expect("the check parsed it"),
    this => Value::Text(this.to_string())
);
setting!(
    Option<SocketAddr>,
    Value::Text(value) => value.parse().ok(),
    this => Value::Text(this.map(|address| address.to_string()).unwrap_or_default())
);

impl Setting for Option<u32> {
    fn from_value(value: Value) -> Self {
        match value {
            Value::Text(_) => None,
            number => Some(u32::from_value(number)),
        }
    }

    fn to_value(&self) -> Value {
        self.map_or_else(|| Value::Text("auto".to_owned()), |number| Value::Int(number.into()))
    }
}

/// Words of a [`Kind::Choice`](super::Kind::Choice) key.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// The words of the configuration file, in declaration order.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word of the configuration file.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// The value that a word names.
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }

        setting!(
            $name,
            Value::Text(word) => Self::from_word(&word).expect("the check knows the words"),
            this => Value::Text(this.as_str().to_owned())
        );
    };
}

choice! {
    /// Which loop drives the shards.
    Engine {
        /// What measurement says is faster, falling back to `Mio` where io_uring is refused.
        Auto = "auto",
        /// io_uring.
        Glommio = "glommio",
        /// epoll.
        Mio = "mio",
    }
}

choice! {
    /// Which devices are answered.
    Admission {
        /// All; first sight creates the device.
        Open = "open",
        /// Those with a record.
        Known = "known",
    }
}

choice! {
    /// Command word of a start by power tiers.
    PowerStartCommand {
        /// The guide's text.
        Control = "0015",
        /// The guide's example.
        Network = "0005",
    }
}

choice! {
    /// Acknowledgement of an end report 02.
    ChargeEndAck {
        /// The form of a card's end report.
        CardEnd = "0c",
        /// The echo.
        Echo = "02",
    }
}

choice! {
    /// Unit of the time in 0B.
    CardTimeUnit {
        /// As in 07.
        Minutes = "minutes",
        /// As the guide's example suggests.
        Seconds = "seconds",
    }
}

choice! {
    /// Who decides what a swiped card may do.
    CardMode {
        /// Nobody: no card is registered.
        Off = "off",
        /// The accounts of this gateway.
        Local = "local",
        /// A third party.
        Webhook = "webhook",
    }
}

choice! {
    /// Least important level that is logged.
    LogLevel {
        /// Somebody must act.
        Error = "error",
        /// Somebody should look.
        Warn = "warn",
        /// Start, stop, orders, changes of state.
        Info = "info",
        /// Single decisions.
        Debug = "debug",
        /// Single frames.
        Trace = "trace",
    }
}

choice! {
    /// How log lines look.
    LogFormat {
        /// Text on a terminal, JSON otherwise.
        Auto = "auto",
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

impl LogLevel {
    /// For the `log` crate.
    pub const fn filter(self) -> log::LevelFilter {
        match self {
            Self::Error => log::LevelFilter::Error,
            Self::Warn => log::LevelFilter::Warn,
            Self::Info => log::LevelFilter::Info,
            Self::Debug => log::LevelFilter::Debug,
            Self::Trace => log::LevelFilter::Trace,
        }
    }
}

/// Where state is stored.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// An SQLite database file.
    Sqlite(PathBuf),
    /// A PostgreSQL URL, which may hold a password.
    Postgres(String),
}

setting!(
    StoreUrl,
    Value::Text(text) => match text.strip_prefix("sqlite:") {
        Some(path) => Self::Sqlite(path.into()),
        None => Self::Postgres(text),
    },
    this => Value::Text(match this {
        Self::Sqlite(path) => format!("sqlite:{}", path.display()),
        Self::Postgres(url) => url.clone(),
    })
);

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_value().masked())
    }
}

/// Where the order of waiting commands is kept.
#[derive(Clone, PartialEq, Eq)]
pub enum QueueUrl {
    /// In this process.
    Embedded,
    /// A Redis URL, which may hold a password.
    Redis(String),
}

setting!(
    QueueUrl,
    Value::Text(text) => if text == "embedded" { Self::Embedded } else { Self::Redis(text) },
    this => Value::Text(match this {
        Self::Embedded => "embedded".to_owned(),
        Self::Redis(url) => url.clone(),
    })
);

impl fmt::Debug for QueueUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_value().masked())
    }
}

/// The byte strings that start an AP3000 frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Magics(pub Vec<[u8; 3]>);

setting!(
    Magics,
    Value::Texts(texts) => Self(texts.iter().map(|text| {
        let number = u32::from_str_radix(text, 16).expect("the check saw 6 hex digits");
        let [_, magic @ ..] = number.to_be_bytes();
        magic
    }).collect()),
    this => Value::Texts(this.0.iter().map(|[a, b, c]| format!("{a:02x}{b:02x}{c:02x}")).collect())
);

/// The three capital letters that start each order number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OrderPrefix([u8; 3]);

impl OrderPrefix {
    /// The letters as ASCII bytes.
    pub const fn as_bytes(&self) -> &[u8; 3] {
        &self.0
    }

    /// The letters as text.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).expect("the check saw ASCII letters")
    }
}

impl fmt::Debug for OrderPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

setting!(
    OrderPrefix,
    Value::Text(text) => Self(text.as_bytes().try_into().expect("the check saw 3 letters")),
    this => Value::Text(this.as_str().to_owned())
);

/// Waits before the second, third … attempt of a webhook delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetrySchedule(pub Vec<Duration>);

setting!(RetrySchedule, Value::Spans(spans) => Self(spans), this => Value::Spans(this.0.clone()));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_back() {
        for (text, ms) in [("0s", 0), ("500ms", 500), ("60s", 60_000), ("10m", 600_000), ("24h", 86_400_000)] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(ms)), "{text}");
            assert_eq!(duration_text(Duration::from_millis(ms)), text);
        }
        assert_eq!(duration_text(Duration::from_secs(7 * 86_400)), "7d");
    }

    #[test]
    fn durations_refused() {
        for text in ["", "60", "s", "-1s", "1.5s", "60 s", " 60s", "60S", "1w", "18446744073709551615d", "٣s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn passwords_masked() {
        for (url, masked) in [
            ("postgres://u:p@host/db", "postgres://u:***@host/db"),
            ("postgres://u:p@ss@host:5432/db?x=a:b", "postgres://u:***@host:5432/db?x=a:b"),
            ("postgres://u:p/w@host/db", "postgres://u:***@host/db"),
            ("redis://:p@host", "redis://:***@host"),
            ("postgres://u@host/db", "postgres://u@host/db"),
            ("redis://host:6379", "redis://host:6379"),
            ("sqlite:./data/x.db", "sqlite:./data/x.db"),
        ] {
            assert_eq!(mask_password(url), masked);
        }
    }

    #[test]
    fn secrets_do_not_show() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "***");
        assert!(!format!("{:?}", StoreUrl::Postgres("postgres://u:hunter2@h/d".to_owned())).contains("hunter2"));
    }
}
