//! Scenarios: what a fleet does, phase by phase, and what is asked of the figures at the end.
//!
//! ```toml
//! name = "storm"
//! thresholds = ["storm/bound_per_s >= 5000", "lost == 0"]
//!
//! [fleet]
//! devices = 3000
//!
//! [[phase]]
//! name = "warm-up"
//! duration = "10s"
//! warm_up = true
//! connect = { devices = 1000, per_s = 500 }
//!
//! [[phase]]
//! name = "storm"
//! duration = "20s"
//! connect = { devices = 2000, per_s = 10000 }
//! ```
//!
//! Every key is known and checked before anything connects; an error names the key. What a phase begins in a process is its
//! share of the whole: rates are divided, devices are dealt out.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::figures::{self, Threshold};

/// Most devices of a scenario.
const DEVICES_MAX: u32 = 1_000_000;
/// Most connections of one process: descriptors end at 20,000 on the usual machine.
pub const CONNECTIONS_PER_PROCESS: u32 = 17_000;
/// Highest rate of anything, per second.
const RATE_MAX: f64 = 1_000_000.0;
/// Longest scenario.
const SECONDS_MAX: u64 = 7 * 86_400;

/// A scenario that cannot be run; the text names the key.
#[derive(Debug)]
pub struct ScenarioError(String);

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ScenarioError {}

/// A number with ms, s, m or h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Span {
    /// Microseconds.
    pub fn us(self) -> u64 {
        u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX)
    }

    const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Reads e.g. `90s`, `500ms`, `5m`, `2h`; `0s` is a span.
    ///
    /// # Errors
    /// The text is something else.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("must be a number with ms, s, m or h, got {text:?}");
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        number.checked_mul(millis).map(Duration::from_millis).map(Self).ok_or_else(wrong)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let millis = self.0.as_millis();
        let text = if millis.is_multiple_of(1000) { format!("{}s", millis / 1000) } else { format!("{millis}ms") };
        serializer.serialize_str(&text)
    }
}

/// A scenario; see the module.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name, in the report and in file names.
    pub name: String,
    /// What it shows.
    #[serde(default)]
    pub about: String,
    /// Decides power, batteries, ports, cards, and who is disconnected.
    #[serde(default = "one")]
    pub seed: u64,
    /// Longest wait for what is open at the end.
    #[serde(default = "drain")]
    pub drain: Span,
    /// Above this p99 of its own lateness the generator's latencies mean nothing.
    #[serde(default = "late_max")]
    pub late_max: Span,
    /// Conditions on figures, such as `heartbeat.p99_ms < 1000` or `storm/bound_per_s >= 5000`.
    #[serde(default)]
    pub thresholds: Vec<Threshold>,
    /// The devices.
    pub fleet: FleetSpec,
    /// How the API is asked.
    #[serde(default)]
    pub api: ApiSpec,
    /// What happens, in order. At least one.
    pub phase: Vec<Phase>,
}

/// The devices of a scenario.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FleetSpec {
    /// How many there are; phases connect them.
    pub devices: u32,
    /// Share of AP3000 chargers in percent; the others are BKV gateways.
    #[serde(default = "half")]
    pub ap3000_percent: u8,
    /// Ports of a charger.
    #[serde(default = "two")]
    pub ports: u8,
    /// Networked sockets of a BKV gateway; 0 is a standalone device.
    #[serde(default)]
    pub sockets: u8,
    /// Further connections: AP3000 hosts, which connect with the first devices.
    #[serde(default)]
    pub hosts: u32,
    /// Chargers behind each host.
    #[serde(default = "ten")]
    pub sub_devices: u8,
    /// Time between heartbeats.
    #[serde(default = "minute")]
    pub heartbeat: Span,
    /// Seconds of charging that pass in a second: scales charges and the 5 minutes between progress reports.
    #[serde(default = "factor")]
    pub time_factor: u32,
    /// Share of the ports without a charger, in percent.
    #[serde(default)]
    pub unplugged_percent: u8,
    /// Loopback addresses to connect from; 0: the system chooses.
    #[serde(default = "addresses")]
    pub source_addresses: u32,
    /// Threads for the devices, in each process.
    #[serde(default = "thread")]
    pub threads: u32,
}

/// How the API is asked.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiSpec {
    /// Keep-alive connections of each process.
    pub connections: u32,
    /// Ordered minutes of a charge: least and most.
    pub charge_minutes: [u16; 2],
    /// Share of the charges stopped halfway, in percent.
    pub stop_percent: u8,
    /// Orders compared with the devices' ledgers at the end, at most; 0: none.
    pub verify_orders_max: u32,
}

impl Default for ApiSpec {
    fn default() -> Self {
        Self { connections: 32, charge_minutes: [1, 3], stop_percent: 0, verify_orders_max: 200_000 }
    }
}

/// Devices that connect.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Connect {
    /// How many, of those that never were connected.
    pub devices: u32,
    /// How many a second.
    pub per_s: f64,
}

/// Devices that lose their connection at the begin of a phase, and come back as a storm.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Disconnect {
    /// Share of the connected ones.
    pub percent: u8,
    /// How long they are away.
    #[serde(default = "second")]
    pub away: Span,
    /// How many a second come back.
    pub per_s: f64,
}

/// Connections that misbehave, for the length of a phase.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rude {
    /// Send bytes that are no frames.
    pub garbage: u32,
    /// Send frames without their second half.
    pub half_frames: u32,
    /// Send nothing.
    pub silent: u32,
    /// Send requests and never read the answers.
    pub slow_readers: u32,
    /// Send good requests one byte at a time.
    pub slow_writers: u32,
}

impl Rude {
    /// All of them.
    pub const fn count(&self) -> u32 {
        self.garbage
            .saturating_add(self.half_frames)
            .saturating_add(self.silent)
            .saturating_add(self.slow_readers)
            .saturating_add(self.slow_writers)
    }
}

/// A part of a scenario. Rates are per second of the whole fleet and kept whatever the server does.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Its name, by which thresholds can name its figures.
    pub name: String,
    /// Whole seconds.
    pub duration: Span,
    /// Not part of the figures of the run.
    #[serde(default)]
    pub warm_up: bool,
    /// Devices that connect.
    #[serde(default)]
    pub connect: Option<Connect>,
    /// Devices that are disconnected.
    #[serde(default)]
    pub disconnect: Option<Disconnect>,
    /// Connections that misbehave.
    #[serde(default)]
    pub rude: Rude,
    /// Charges asked for.
    #[serde(default)]
    pub charges_per_s: f64,
    /// Charges asked for in this phase, evenly, as a share of the fleet.
    #[serde(default)]
    pub charging_percent: f64,
    /// Named commands, each to another device.
    #[serde(default)]
    pub commands_per_s: f64,
    /// Reads of a device's status.
    #[serde(default)]
    pub reads_per_s: f64,
    /// Reads of a page of orders.
    #[serde(default)]
    pub lists_per_s: f64,
    /// Charges that chargers begin without the gateway and report at their end.
    #[serde(default)]
    pub settlements_per_s: f64,
    /// Cards swiped, which ask the gateway.
    #[serde(default)]
    pub cards_per_s: f64,
    /// Alarms.
    #[serde(default)]
    pub alarms_per_s: f64,
}

impl Phase {
    /// Its length in whole seconds.
    pub const fn seconds(&self) -> u64 {
        self.duration.0.as_secs()
    }

    fn rates(&self) -> [(&'static str, f64); 8] {
        [
            ("charges_per_s", self.charges_per_s),
            ("charging_percent", self.charging_percent),
            ("commands_per_s", self.commands_per_s),
            ("reads_per_s", self.reads_per_s),
            ("lists_per_s", self.lists_per_s),
            ("settlements_per_s", self.settlements_per_s),
            ("cards_per_s", self.cards_per_s),
            ("alarms_per_s", self.alarms_per_s),
        ]
    }
}

fn one() -> u64 {
    1
}
fn drain() -> Span {
    Span::seconds(20)
}
fn late_max() -> Span {
    Span(Duration::from_millis(50))
}
fn half() -> u8 {
    50
}
fn two() -> u8 {
    2
}
fn ten() -> u8 {
    10
}
fn minute() -> Span {
    Span::seconds(60)
}
fn second() -> Span {
    Span::seconds(1)
}
fn factor() -> u32 {
    60
}
fn addresses() -> u32 {
    8
}
fn thread() -> u32 {
    1
}

impl Scenario {
    /// Reads and checks a scenario, with `settings` of the form `key=value` or `fleet.key=value` or `PHASE.key=value` put in
    /// the place of what the text says.
    ///
    /// # Errors
    /// The text is no TOML, has a key that is not known, misses one or has a value out of range; the error names the key.
    pub fn parse(text: &str, settings: &[String]) -> Result<Self, ScenarioError> {
        let broken = |error: toml::de::Error| ScenarioError(error.to_string().trim_end().to_owned());
        let scenario: Self = if settings.is_empty() {
            toml::from_str(text).map_err(broken)?
        } else {
            let mut table: toml::Table = toml::from_str(text).map_err(broken)?;
            for setting in settings {
                set(&mut table, setting)?;
            }
            // As text again, so that errors name the place as they do for a file.
            let text = toml::to_string(&table).map_err(|error| ScenarioError(error.to_string()))?;
            toml::from_str(&text).map_err(broken)?
        };
        scenario.check()?;
        Ok(scenario)
    }

    /// Length of all phases in seconds.
    pub fn seconds(&self) -> u64 {
        self.phase.iter().map(Phase::seconds).sum()
    }

    /// The phases with their first and last second (exclusive).
    pub fn spans(&self) -> impl Iterator<Item = (&Phase, u64, u64)> {
        let mut from = 0;
        self.phase.iter().map(move |phase| {
            let begin = from;
            from += phase.seconds();
            (phase, begin, from)
        })
    }

    /// Whether anything is asked of the API.
    pub fn asks(&self) -> bool {
        self.phase.iter().any(|phase| {
            phase.charges_per_s + phase.charging_percent + phase.commands_per_s + phase.reads_per_s + phase.lists_per_s
                > 0.0
        })
    }

    /// Most connections at a time: devices, hosts, and those that misbehave.
    pub fn connections(&self) -> u32 {
        let rude = self.phase.iter().map(|phase| phase.rude.count()).max().unwrap_or_default();
        self.fleet.devices.saturating_add(self.fleet.hosts).saturating_add(rude)
    }

    fn check(&self) -> Result<(), ScenarioError> {
        let fail = |key: &str, what: String| Err(ScenarioError(format!("{key} {what}")));
        let range = |key: &str, value: u64, from: u64, to: u64| {
            if (from..=to).contains(&value) {
                Ok(())
            } else {
                fail(key, format!("must be in {from}..={to}, got {value}"))
            }
        };
        let fleet = &self.fleet;
        let word = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
        if !word(&self.name) {
            return fail("name", format!("must be letters, digits, - and _, got {:?}", self.name));
        }
        range("fleet.devices", fleet.devices.into(), 0, DEVICES_MAX.into())?;
        range("fleet.ap3000_percent", fleet.ap3000_percent.into(), 0, 100)?;
        range("fleet.ports", fleet.ports.into(), 1, 16)?;
        range("fleet.sockets", fleet.sockets.into(), 0, 250)?;
        range("fleet.hosts", fleet.hosts.into(), 0, 10_000)?;
        range("fleet.sub_devices", fleet.sub_devices.into(), 1, crate::device::ap3000::SUB_DEVICES_MAX.into())?;
        range("fleet.heartbeat", fleet.heartbeat.us() / 1000, 100, 86_400_000)?;
        range("fleet.time_factor", fleet.time_factor.into(), 1, 3600)?;
        range("fleet.unplugged_percent", fleet.unplugged_percent.into(), 0, 100)?;
        range("fleet.source_addresses", fleet.source_addresses.into(), 0, 10_000)?;
        range("fleet.threads", fleet.threads.into(), 1, 64)?;
        range("api.connections", self.api.connections.into(), 1, 4096)?;
        range("api.stop_percent", self.api.stop_percent.into(), 0, 100)?;
        let [least, most] = self.api.charge_minutes;
        if least < 1 || most < least || most > 900 {
            return fail("api.charge_minutes", format!("must be [least, most] in 1..=900, got [{least}, {most}]"));
        }
        if self.phase.is_empty() {
            return fail("phase", "is missing: give at least one [[phase]]".to_owned());
        }
        let (mut names, mut connecting) = (BTreeSet::new(), 0_u64);
        for phase in &self.phase {
            let key = |name: &str| format!("phase {:?}: {name}", phase.name);
            if !word(&phase.name) {
                return fail("phase: name", format!("must be letters, digits, - and _, got {:?}", phase.name));
            }
            if !names.insert(&phase.name) {
                return fail(&key("name"), "is given twice".to_owned());
            }
            if phase.seconds() == 0 || phase.duration.0.subsec_nanos() > 0 {
                return fail(&key("duration"), "must be whole seconds, at least 1s".to_owned());
            }
            for (name, rate) in phase.rates() {
                if !(0.0..=RATE_MAX).contains(&rate) {
                    return fail(&key(name), format!("must be in 0..={RATE_MAX}, got {rate}"));
                }
            }
            if let Some(connect) = phase.connect {
                connecting += u64::from(connect.devices);
                rate(&key("connect.per_s"), connect.per_s)?;
            }
            if let Some(disconnect) = phase.disconnect {
                range(&key("disconnect.percent"), disconnect.percent.into(), 1, 100)?;
                rate(&key("disconnect.per_s"), disconnect.per_s)?;
            }
            range(&key("rude"), phase.rude.count().into(), 0, 10_000)?;
        }
        range("phase: duration of all", self.seconds(), 1, SECONDS_MAX)?;
        if connecting > u64::from(fleet.devices) {
            return fail(
                "phase: connect.devices",
                format!("are {connecting} in all, and fleet.devices is {}", fleet.devices),
            );
        }
        for threshold in &self.thresholds {
            if let Some(phase) = threshold.phase()
                && !names.contains(&phase.to_owned())
            {
                return fail("thresholds", format!("name a phase that is not there: {threshold}"));
            }
            if !figures::is_known(threshold.figure()) {
                return fail("thresholds", format!("name a figure that is not there: {threshold}"));
            }
        }
        Ok(())
    }
}

fn rate(key: &str, rate: f64) -> Result<(), ScenarioError> {
    if rate > 0.0 && rate <= RATE_MAX {
        Ok(())
    } else {
        Err(ScenarioError(format!("{key} must be above 0 and at most {RATE_MAX}, got {rate}")))
    }
}

/// Puts `key=value` into the scenario's table. A value that is no TOML is a string.
fn set(table: &mut toml::Table, setting: &str) -> Result<(), ScenarioError> {
    let fail = |what: &str| ScenarioError(format!("--set {setting:?}: {what}"));
    let (path, text) = setting.split_once('=').ok_or_else(|| fail("must be key=value"))?;
    let value = toml::from_str::<toml::Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()));
    let mut keys: Vec<&str> = path.split('.').collect();
    let Some(last) = keys.pop().filter(|last| !last.is_empty()) else { return Err(fail("must be key=value")) };
    let is_phase = |table: &&mut toml::Value, name: &str| table.get("name").and_then(toml::Value::as_str) == Some(name);
    let mut keys = keys.into_iter();
    let Some(first) = keys.next() else {
        table.insert(last.to_owned(), value);
        return Ok(());
    };
    let named = match table.get_mut("phase").and_then(toml::Value::as_array_mut) {
        Some(phases) => phases.iter_mut().find(|phase| is_phase(phase, first)).and_then(toml::Value::as_table_mut),
        None => None,
    };
    let mut place = match (named, first) {
        (Some(phase), _) => phase,
        (None, "fleet" | "api") => {
            let entry = table.entry(first).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            entry.as_table_mut().ok_or_else(|| fail("is no table"))?
        }
        (None, _) => return Err(fail("names neither fleet, api nor a phase")),
    };
    for key in keys {
        let entry = place.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        place = entry.as_table_mut().ok_or_else(|| fail("is no table"))?;
    }
    place.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "name = 'small'\nthresholds = ['lost == 0']\n[fleet]\ndevices = 10\n\
                         [[phase]]\nname = 'all'\nduration = '5s'\nconnect = { devices = 10, per_s = 100 }\n";

    fn error(text: &str, settings: &[&str]) -> String {
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        Scenario::parse(text, &settings).expect_err("it is wrong").to_string()
    }

    #[test]
    fn a_scenario_is_read_with_its_defaults() {
        let scenario = Scenario::parse(SMALL, &[]).unwrap();
        assert_eq!((scenario.seconds(), scenario.connections(), scenario.asks()), (5, 10, false));
        assert_eq!(scenario.fleet.heartbeat, Span::seconds(60));
    }

    #[test]
    fn every_error_names_its_key() {
        for (settings, words) in [
            (["fleet.devices=2000000"], "fleet.devices must be in"),
            (["fleet.wheels=4"], "wheels"),
            (["colour=red"], "colour"),
            (["all.duration=1500ms"], "phase \"all\": duration"),
            (["all.duration=soon"], "must be a number with ms, s, m or h"),
            (["all.connect.per_s=0"], "phase \"all\": connect.per_s"),
            (["all.connect.devices=11"], "connect.devices"),
            (["all.reads_per_s=-1"], "phase \"all\": reads_per_s"),
            (["api.charge_minutes=[3, 1]"], "api.charge_minutes"),
            (["thresholds=['speed > 3']"], "thresholds name a figure that is not there: speed > 3"),
            (["thresholds=['night/lost == 0']"], "thresholds name a phase"),
            (["thresholds=['lost is 0']"], "lost is 0"),
            (["nowhere.key=1"], "neither fleet, api nor a phase"),
            (["=1"], "key=value"),
        ] {
            let text = error(SMALL, &settings);
            assert!(text.contains(words), "{settings:?}: {text}");
        }
    }

    #[test]
    fn settings_replace_what_the_file_says() {
        let settings = ["fleet.devices=20".to_owned(), "all.connect.devices=15".to_owned(), "seed=9".to_owned()];
        let scenario = Scenario::parse(SMALL, &settings).unwrap();
        let connect = scenario.phase[0].connect.unwrap();
        assert_eq!((scenario.fleet.devices, connect.devices, scenario.seed), (20, 15, 9));
        assert_eq!(connect.per_s, 100.0, "the rest stays");
    }

    #[test]
    fn shipped_scenarios_are_sound() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
        let mut count = 0;
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let scenario = Scenario::parse(&text, &[]).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert_eq!(Some(scenario.name.as_str()), path.file_stem().and_then(|stem| stem.to_str()));
            assert!(!scenario.thresholds.is_empty() && !scenario.about.is_empty(), "{}", path.display());
            count += 1;
        }
        assert!(count >= 7, "{count}");
    }
}
