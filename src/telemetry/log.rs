//! Backend of the `log` crate: text for people, JSON lines for machines, on standard error.
//!
//! A line is built in a buffer of its thread and leaves in one write, so lines of different threads do not mix and
//! nothing is lost at a crash. There is no queue: whoever logs waits while standard error takes the line. A line longer
//! than 16 KiB is cut. The level can be changed while running with [`set_level`].

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use log::kv::{self, Key, Value, VisitSource, VisitValue};
use log::{LevelFilter, Log, Metadata, Record, SetLoggerError};

use super::label::Label;
use crate::config::{LogFormat, LogLevel};
use crate::time::Rfc3339;

/// Longest line in bytes; a longer one is a payload that does not belong in a log.
const LINE_BYTES_MAX: usize = 16 * 1024;

/// Log lines of one reason are at least this far apart.
const GATE_MS: u64 = 1_000;

/// Names of the fields that each JSON line has; a key-value of such a name gets `kv_` in front.
const RESERVED: [&str; 4] = ["time", "level", "target", "message"];

/// Starts logging.
///
/// # Errors
///
/// When a logger was installed before.
pub fn init(level: LogLevel, format: LogFormat) -> Result<(), SetLoggerError> {
    let json = match format {
        LogFormat::Text => false,
        LogFormat::Json => true,
        LogFormat::Auto => !io::stderr().is_terminal(),
    };
    log::set_logger(if json { &JSON } else { &TEXT })?;
    set_level(level);
    Ok(())
}

/// Changes the level from now on, for all threads.
pub fn set_level(level: LogLevel) {
    log::set_max_level(level.filter());
}

/// The level now.
pub fn level() -> LevelFilter {
    log::max_level()
}

static TEXT: StandardError = StandardError { json: false };
static JSON: StandardError = StandardError { json: true };

struct StandardError {
    json: bool,
}

thread_local! {
    static LINE: RefCell<String> = const { RefCell::new(String::new()) };
}

impl Log for StandardError {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries below warnings speak of their own affairs.
        metadata.level() <= log::max_level()
            && (metadata.target().starts_with("chargegate") || metadata.level() <= LevelFilter::Warn)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now_ms = now_ms();
        // A `Display` inside the record may log too; its line then gets a buffer of its own.
        LINE.with(|line| match line.try_borrow_mut() {
            Ok(mut line) => write_line(&mut line, self.json, now_ms, record),
            Err(_) => write_line(&mut String::new(), self.json, now_ms, record),
        });
    }

    fn flush(&self) {}
}

fn write_line(line: &mut String, json: bool, now_ms: i64, record: &Record<'_>) {
    line.clear();
    let written = if json { format_json(line, now_ms, record) } else { format_text(line, now_ms, record) };
    // A `Display` that fails leaves a partial line, which is better than none.
    if written.is_err() {
        line.push_str(" (incomplete)\n");
    }
    // Where standard error is gone there is nowhere left to say so.
    drop(io::stderr().lock().write_all(line.as_bytes()));
}

/// `2023-11-14T22:13:20.000Z INFO  order created order_no=… [chargegate::gateway]`
fn format_text(line: &mut String, now_ms: i64, record: &Record<'_>) -> fmt::Result {
    write!(line, "{} {:5} ", Rfc3339(now_ms), record.level())?;
    write!(Escaped(line), "{}", record.args())?;
    let mut pairs = TextPairs(line);
    record.key_values().visit(&mut pairs).map_err(|_| fmt::Error)?;
    cut(line);
    writeln!(line, " [{}]", record.target())
}

/// `{"time":…,"level":…,"target":…,"message":…,"order_no":…}`
fn format_json(line: &mut String, now_ms: i64, record: &Record<'_>) -> fmt::Result {
    write!(line, "{{\"time\":\"{}\",\"level\":\"{}\"", Rfc3339(now_ms), record.level().as_str().to_lowercase())?;
    line.push_str(",\"target\":");
    json_text(line, record.target());
    line.push_str(",\"message\":");
    match record.args().as_str() {
        Some(text) => json_text(line, text),
        None => json_text(line, &record.args().to_string()),
    }
    let mut pairs = JsonPairs(line);
    record.key_values().visit(&mut pairs).map_err(|_| fmt::Error)?;
    line.push_str("}\n");
    Ok(())
}

/// The first [`LINE_BYTES_MAX`] bytes, less a character cut in two.
fn head(text: &str) -> &str {
    let mut end = text.len().min(LINE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

fn cut(line: &mut String) {
    if line.len() > LINE_BYTES_MAX {
        line.truncate(head(line).len());
        line.push('…');
    }
}

fn json_text(line: &mut String, text: &str) {
    line.push_str(&serde_json::Value::from(head(text)).to_string());
}

/// Replaces control characters, so that nothing a device or caller sends can forge a line or steer a terminal.
struct Escaped<'a>(&'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if character.is_control() {
                self.0.extend(character.escape_default());
            } else {
                self.0.push(character);
            }
        }
        Ok(())
    }
}

struct TextPairs<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for TextPairs<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        write!(self.0, " {}=", key.as_str())?;
        let text = value.to_string();
        if text.is_empty() || text.contains([' ', '"', '=']) {
            write!(self.0, "{text:?}")?;
        } else {
            write!(Escaped(self.0), "{text}")?;
        }
        Ok(())
    }
}

struct JsonPairs<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for JsonPairs<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        self.0.push(',');
        if RESERVED.contains(&key.as_str()) {
            json_text(self.0, &format!("kv_{}", key.as_str()));
        } else {
            json_text(self.0, key.as_str());
        }
        self.0.push(':');
        value.visit(JsonValue(self.0))
    }
}

struct JsonValue<'a>(&'a mut String);

impl VisitValue<'_> for JsonValue<'_> {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        json_text(self.0, &value.to_string());
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.0.push_str("null");
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        Ok(write!(self.0, "{value}")?)
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        Ok(write!(self.0, "{value}")?)
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        // JSON has no infinity and no NaN.
        self.0.push_str(&serde_json::Value::from(value).to_string());
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        Ok(write!(self.0, "{value}")?)
    }

    fn visit_str(&mut self, value: &str) -> Result<(), kv::Error> {
        json_text(self.0, value);
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "the clock of log lines enters here")]
fn now_ms() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}

/// Lets one log line per second and reason through, and counts the others. One thread's own; `N` is `L::COUNT`.
#[derive(Debug)]
pub struct LogGate<L, const N: usize> {
    reasons: [GateState; N],
    label: std::marker::PhantomData<fn(L)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct GateState {
    /// When a line may pass again; 0 before the first.
    open_at_ms: u64,
    suppressed: u64,
}

impl<L: Label, const N: usize> Default for LogGate<L, N> {
    fn default() -> Self {
        const { assert!(N == L::COUNT, "one state per reason") };
        Self { reasons: [GateState::default(); N], label: std::marker::PhantomData }
    }
}

impl<L: Label, const N: usize> LogGate<L, N> {
    /// `Some(count)` when the line may be written now, with the number kept back since the last one; else `None`.
    ///
    /// `now_ms` is monotonic.
    pub fn pass(&mut self, reason: L, now_ms: u64) -> Option<u64> {
        let state = &mut self.reasons[reason.index()];
        if now_ms < state.open_at_ms {
            state.suppressed = state.suppressed.saturating_add(1);
            return None;
        }
        state.open_at_ms = now_ms.saturating_add(GATE_MS);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use log::Level;

    use super::*;
    use crate::gateway::CloseReason;

    const NOW_MS: i64 = 1_700_000_000_123;

    fn format(json: bool, message: &str, pairs: &[(&str, Value<'_>)]) -> String {
        let mut line = String::new();
        let arguments = format_args!("{message}");
        let record =
            Record::builder().level(Level::Warn).target("chargegate::shard").args(arguments).key_values(&pairs).build();
        let formatter = if json { format_json } else { format_text };
        formatter(&mut line, NOW_MS, &record).unwrap();
        line
    }

    #[test]
    fn text_lines() {
        let pairs = [("order_no", Value::from("THD1")), ("reason", Value::from("two words")), ("port", Value::from(2))];
        assert_eq!(
            format(false, "order failed", &pairs),
            "2023-11-14T22:13:20.123Z WARN  order failed order_no=THD1 reason=\"two words\" port=2 [chargegate::shard]\n"
        );
    }

    #[test]
    fn json_lines() {
        let pairs = [
            ("order_no", Value::from("THD1")),
            ("port", Value::from(2)),
            ("late", Value::from(true)),
            ("share", Value::from(0.5)),
            ("nan", Value::from(f64::NAN)),
            ("level", Value::from("mine")),
        ];
        let line = format(true, "say \"hi\"\n", &pairs);
        assert!(line.ends_with("}\n") && line.matches('\n').count() == 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        let expected = serde_json::json!({
            "time": "2023-11-14T22:13:20.123Z", "level": "warn", "target": "chargegate::shard",
            "message": "say \"hi\"\n", "order_no": "THD1", "port": 2, "late": true, "share": 0.5, "nan": null,
            "kv_level": "mine",
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn foreign_text_cannot_forge_a_line() {
        let pairs = [("id", Value::from("x\n2023 ERROR")), ("esc", Value::from("\u{1b}[2J"))];
        let line = format(false, "bad\r\nid", &pairs);
        assert_eq!(line.matches('\n').count(), 1);
        assert!(!line.contains('\u{1b}') && !line.contains('\r'));
    }

    #[test]
    fn long_lines_are_cut() {
        for json in [false, true] {
            let line = format(json, &"ä".repeat(LINE_BYTES_MAX), &[]);
            assert!(line.len() < LINE_BYTES_MAX + 200 && line.ends_with('\n'));
        }
    }

    #[test]
    fn one_line_per_second_and_reason() {
        let mut gate = LogGate::<CloseReason, { CloseReason::COUNT }>::default();
        assert_eq!(gate.pass(CloseReason::Idle, 0), Some(0));
        assert_eq!(gate.pass(CloseReason::Idle, 1), None);
        assert_eq!(gate.pass(CloseReason::Garbage, 1), Some(0));
        assert_eq!(gate.pass(CloseReason::Idle, 999), None);
        assert_eq!(gate.pass(CloseReason::Idle, 1_000), Some(2));
        assert_eq!(gate.pass(CloseReason::Idle, 1_999), None);
        assert_eq!(gate.pass(CloseReason::Idle, 5_000), Some(1));
        assert_eq!(gate.pass(CloseReason::Idle, 6_000), Some(0));
    }
}
