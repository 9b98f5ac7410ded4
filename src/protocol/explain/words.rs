//! Findings in words: what each field is called, its value as sent, and what that value means.
//!
//! The text comes from the JSON of a body, so that no layout is described twice; only units and codes are added here.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{Fields, Finding, Framed, Header, Kind};
use crate::protocol::ap3000::codes;
use crate::protocol::bkv::HoleStatus;
use crate::protocol::bkv::clock::DeviceTime;
use crate::protocol::{Direction, Hex};

/// Noise longer than this is cut, because nobody reads it.
const NOISE_SHOWN_MAX: usize = 32;

/// One paragraph: what it is, then a line per field.
impl fmt::Display for Finding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = Place(self);
        match self.kind {
            Kind::Ap3000(..) | Kind::Bkv(_) => self.framed().map_or(Ok(()), |framed| show_frame(f, place, &framed)),
            Kind::Refused(_) => self.framed().map_or(Ok(()), |framed| {
                show_frame(f, place, &framed)?;
                writeln!(f, "  bytes: {}", Hex(self.bytes))
            }),
            Kind::Iccid(iccid) => {
                writeln!(f, "AP3000 greeting, {place}\n  SIM card number (ICCID): {}", iccid.escape_ascii())
            }
            Kind::Link => writeln!(f, "AP3000 keepalive \"link\", {place}"),
            Kind::Noise => {
                let shown = self.bytes.get(..NOISE_SHOWN_MAX).unwrap_or(self.bytes);
                let more = if shown.len() < self.bytes.len() { " ..." } else { "" };
                writeln!(f, "noise, {place}: nothing known begins here\n  bytes: {}{more}", Hex(shown))
            }
        }
    }
}

struct Place<'f, 'a>(&'f Finding<'a>);

impl fmt::Display for Place<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0.bytes.len() == 1 { "" } else { "s" };
        write!(f, "{} byte{plural} at offset {}", self.0.bytes.len(), self.0.offset)
    }
}

fn show_frame(f: &mut fmt::Formatter<'_>, place: Place<'_, '_>, framed: &Framed<'_>) -> fmt::Result {
    let protocol = match framed.header {
        Header::Ap3000 { .. } => "AP3000",
        Header::Bkv { .. } => "BKV/GN",
    };
    let code = framed.header.code();
    writeln!(
        f,
        "{protocol} {} {}, {place}",
        code.as_deref().unwrap_or("frame"),
        framed.name.unwrap_or("(name not known)")
    )?;
    if let Some(sender) = framed.sender {
        let way = match sender.direction {
            Direction::Up => "device to server",
            Direction::Down => "server to device",
        };
        writeln!(f, "  direction: {way}{}", if sender.guessed { " (guessed, the bytes do not say)" } else { "" })?;
    }
    match framed.header {
        Header::Ap3000 { phy_id, msg_id, .. } => {
            if let Some(id) = phy_id {
                writeln!(f, "  physical id: {id} (printed number {})", id.printed_number())?;
            }
            if let Some(id) = msg_id {
                writeln!(f, "  message id: {id}")?;
            }
        }
        Header::Bkv { sequence, gateway_id, .. } => {
            if let Some(id) = gateway_id {
                writeln!(f, "  gateway: {id}")?;
            }
            if let Some(sequence) = sequence {
                writeln!(f, "  sequence: {sequence:08x}")?;
            }
        }
    }
    match &framed.fields {
        Ok(fields) => {
            let subject = Subject { header: framed.header, direction: framed.sender.map(|sender| sender.direction) };
            show_fields(f, subject, fields)
        }
        Err((_, error)) => writeln!(f, "  error: {error}"),
    }
}

fn show_fields(f: &mut fmt::Formatter<'_>, subject: Subject, fields: &Fields<'_>) -> fmt::Result {
    let tree = serde_json::to_string(fields).and_then(|json| serde_json::from_str::<Tree>(&json));
    match tree {
        Ok(Tree::Object(fields)) if fields.is_empty() => writeln!(f, "  no fields"),
        Ok(Tree::Object(fields)) => subject.show_object(f, 1, &fields),
        Ok(Tree::List(_) | Tree::Number(_) | Tree::Text(_) | Tree::Null) | Err(_) => Err(fmt::Error),
    }
}

/// JSON that keeps the order of its fields, which is that of the wire.
#[derive(Clone, Debug)]
enum Tree {
    Object(Vec<(String, Self)>),
    List(Vec<Self>),
    Number(i64),
    Text(String),
    Null,
}

impl Tree {
    fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => u64::try_from(*number).ok(),
            Self::Object(_) | Self::List(_) | Self::Text(_) | Self::Null => None,
        }
    }

    fn is_nested(&self) -> bool {
        matches!(self, Self::Object(_) | Self::List(_))
    }
}

impl fmt::Display for Tree {
    /// Leaves only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) if text.is_empty() => f.write_str("(empty)"),
            Self::Text(text) => f.write_str(text),
            Self::Object(_) | Self::List(_) | Self::Null => f.write_str("none"),
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Build;

        impl<'de> Visitor<'de> for Build {
            type Value = Tree;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the fields of a body")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
                Ok(Tree::Text(if value { "yes" } else { "no" }.to_owned()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
                Ok(Tree::Number(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
                Ok(i64::try_from(value).map_or_else(|_| Tree::Text(value.to_string()), Tree::Number))
            }

            fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
                Ok(Tree::Text(value.to_owned()))
            }

            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Null)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Tree::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Tree::Object(fields))
            }
        }

        deserializer.deserialize_any(Build)
    }
}

type Object = [(String, Tree)];

/// What the fields belong to: the same name and code differ in meaning from command to command.
#[derive(Clone, Copy)]
struct Subject {
    header: Header,
    direction: Option<Direction>,
}

impl Subject {
    fn show_object(self, f: &mut fmt::Formatter<'_>, depth: usize, fields: &Object) -> fmt::Result {
        for (name, value) in fields {
            // The raw tree of a tagged packet says again what stands above it, and a wrong length is an error.
            if name != "tlv" && name != "inner_len_ok" {
                self.show(f, depth, name, value, fields)?;
            }
        }
        Ok(())
    }

    fn show(
        self,
        f: &mut fmt::Formatter<'_>,
        depth: usize,
        name: &str,
        value: &Tree,
        siblings: &Object,
    ) -> fmt::Result {
        let indent = depth.saturating_mul(2);
        match value {
            Tree::Object(fields) => match hole_status(fields) {
                Some(status) => writeln!(f, "{:indent$}{name}: {status:?} ({})", "", status_words(status)),
                None => {
                    writeln!(f, "{:indent$}{name}:", "")?;
                    self.show_object(f, depth.saturating_add(1), fields)
                }
            },
            Tree::List(items) if items.is_empty() => writeln!(f, "{:indent$}{name}: none", ""),
            Tree::List(items) if items.iter().any(Tree::is_nested) => items
                .iter()
                .enumerate()
                .try_for_each(|(index, item)| self.show(f, depth, &format!("{name}[{index}]"), item, siblings)),
            Tree::List(items) => {
                write!(f, "{:indent$}{name}: ", "")?;
                for (index, item) in items.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { ", " })?;
                    self.show_leaf(f, name, item, siblings)?;
                }
                writeln!(f)
            }
            Tree::Number(_) | Tree::Text(_) | Tree::Null => {
                write!(f, "{:indent$}{name}: ", "")?;
                self.show_leaf(f, name, value, siblings)?;
                writeln!(f)
            }
        }
    }

    fn show_leaf(self, f: &mut fmt::Formatter<'_>, name: &str, value: &Tree, siblings: &Object) -> fmt::Result {
        write!(f, "{value}")?;
        let meaning = value.number().and_then(|number| match self.header {
            Header::Ap3000 { command, .. } => self.ap3000(command.unwrap_or_default(), name, number, siblings),
            Header::Bkv { command, .. } => bkv(command.unwrap_or_default(), name, number, siblings),
        });
        meaning.map_or(Ok(()), |meaning| write!(f, " ({meaning})"))
    }

    /// Device-server protocol v8.6 and host-server protocol v2.9; see [`body`](crate::protocol::ap3000::body).
    fn ap3000(self, command: u8, name: &str, raw: u64, siblings: &Object) -> Option<String> {
        if let Ok(code) = u8::try_from(raw)
            && let Some(text) = self.ap3000_code(command, name, code)
        {
            return Some(text.to_owned());
        }
        let rate_mode = number_of(siblings, "rate_mode");
        Some(match name {
            "voltage" | "over_voltage" | "under_voltage" => decimal(raw, 1, "V"),
            "port_power" | "port_peak_power" | "max_power" | "second_max_power" | "peak_power" | "power"
            | "power_now" | "power_max" | "power_min" | "power_avg" | "overload_power" | "unplug_power"
            | "dyn_overload_power" | "unplug_noise_power" | "min_power" => decimal(raw, 1, "W"),
            "energy" | "meter_energy" => decimal(raw, 2, "kWh"),
            "current_10ma" | "meter_current_10ma" => decimal(raw, 2, "A"),
            "current_ma" | "leak_current_ma" => format!("{raw} mA"),
            "fw_version" | "min_version" => format!("V{}", decimal(raw, 2, "")),
            "power_board_version" if raw > 0 => format!("V{}", decimal(raw, 2, "")),
            "ambient_temp" | "port_temp" if raw == 0 => "no sensor".to_owned(),
            "ambient_temp" | "port_temp" => format!("{} °C", i64::try_from(raw).ok()?.checked_sub(65)?),
            "ambient_alarm_temp" | "port_alarm_temp" => format!("{raw} °C"),
            "float_percent" => format!("{raw} %"),
            "frequency" if raw > 0 => format!("{raw} MHz"),
            "timestamp" if raw > 0 => local_time(raw)?,
            "balance_or_expiry" if rate_mode == Some(1) => local_time(raw)?,
            "balance_or_expiry" | "card_balance" => decimal(raw, 2, "yuan"),
            "duration_or_energy" if raw == 0 && command == 0x82 => "until full".to_owned(),
            "duration_or_energy" if rate_mode == Some(2) => decimal(raw, 2, "kWh"),
            "duration_or_energy" => format!("{raw} s"),
            "extra_float_s" if raw == 0xffff => "no float charging".to_owned(),
            "full_power_w" => format!("{raw} W"),
            "occupancy_min" | "full_power_max_min" => format!("{raw} min"),
            "pending_ports" | "door_bits" | "fan_bits" => format!("ports {}", bits(raw)?),
            name if name.ends_with("_s") => format!("{raw} s"),
            _ => return None,
        })
    }

    fn ap3000_code(self, command: u8, name: &str, code: u8) -> Option<&'static str> {
        Some(match name {
            "port_states" => codes::PortState(code).text(),
            "port_state" => codes::ReportState(code).text(),
            "start_mode" => codes::StartMode(code).text(),
            "rate_mode" if command == 0x8a => codes::ModifyMode(code).text(),
            "rate_mode" => codes::RateMode(code).text(),
            "account_state" => codes::AccountState(code).text(),
            "stop_reason" => codes::StopReason(code).text(),
            "alarm_type" => codes::AlarmType(code).text(),
            "result" if command == 0x82 => codes::ChargeResult(code).text(),
            "result" if matches!(command, 0xe0..=0xe2 | 0xf8..=0xfa) => codes::UpdateResult(code).text(),
            "result" if command == 0x8a => match code {
                0 => "success",
                1 => "port not charging",
                2 => "value below the running one",
                3 => "no such mode or port",
                _ => "unknown",
            },
            "result" if code == 0 => "success",
            "result" => "failure",
            "charge_cmd" if code == 0 => "stop",
            "charge_cmd" if code == 1 => "start",
            "qr_light" if code == 0 => "on",
            "qr_light" if code == 1 => "off",
            "card_type" => match code {
                0 => "old card",
                1 => "new card",
                2 => "balance card",
                3 => "UID only",
                4 => "social-security card",
                _ => return None,
            },
            "work_mode" if command == 0x8d && code == 0 => "networked",
            "work_mode" if command == 0x8d && code == 1 => "card",
            "event_type" if code == 1 => "door not closed properly",
            "breaker_state" if code == 0 => "open",
            "breaker_state" if code == 1 => "closed",
            "port" if code == 0xff && command == 0x02 => "asks for the balance only",
            "port" if code == 0xff && self.direction == Some(Direction::Down) => "the device chooses",
            _ => return None,
        })
    }
}

/// Integration guide V1.7: the unit is the end of a field's name.
fn bkv(command: u16, name: &str, raw: u64, siblings: &Object) -> Option<String> {
    use crate::protocol::bkv::command::{CONTROL, sub};

    const UNITS: [(&str, u8, &str); 11] = [
        ("_cent_per_kwh", 2, "yuan/kWh"),
        ("_cent", 2, "yuan"),
        ("_dw", 1, "W"),
        ("_dv", 1, "V"),
        ("_ma", 0, "mA"),
        ("_wh", 0, "Wh"),
        ("_pct", 0, "%"),
        ("_min", 0, "min"),
        ("minutes", 0, "min"),
        ("_s", 0, "s"),
        ("_c", 0, "°C"),
    ];
    let start_sub = format!("{:#04x}", sub::START);
    let is_start = command == CONTROL && text_of(siblings, "sub") == Some(&start_sub);
    let word = match (name, raw) {
        ("result" | "ack", 0) => "failure",
        ("result" | "ack", 1) => "success",
        ("switch" | "buzzer" | "voice", 0) => "off",
        ("switch" | "buzzer" | "voice", 1) => "on",
        ("mode", 0) if is_start => "by energy",
        ("mode", 1) => "by time",
        ("mode", 2) if !is_start => "by energy",
        ("mode", 3) if !is_start => "by power",
        ("service_fee_mode", 0) => "by time",
        ("service_fee_mode", 1) => "by energy",
        ("socket", 254) => "every socket of the gateway",
        ("business_no", 0) => "no order",
        _ => {
            let (_, digits, unit) = UNITS.into_iter().find(|(suffix, ..)| name.ends_with(suffix))?;
            return Some(decimal(raw, digits, unit));
        }
    };
    Some(word.to_owned())
}

/// The status byte that an object of its bits stands for.
fn hole_status(fields: &Object) -> Option<HoleStatus> {
    let hex = text_of(fields, "raw")?.strip_prefix("0x")?;
    u8::from_str_radix(hex, 16).ok().map(HoleStatus)
}

fn status_words(status: HoleStatus) -> String {
    let words = [
        (!status.online(), "offline"),
        (status.online(), "online"),
        (status.charging(), "charging"),
        (!status.charging(), "not charging"),
        (status.no_load(), "no load"),
        (status.meter_fault(), "metering fault"),
        (status.temp_fault(), "temperature fault"),
        (status.current_fault(), "current fault"),
        (status.power_fault(), "power fault"),
        (status.bit5(), "bit 5 set"),
    ];
    let words: Vec<_> = words.into_iter().filter_map(|(holds, word)| holds.then_some(word)).collect();
    words.join(", ")
}

fn text_of<'t>(fields: &'t Object, wanted: &str) -> Option<&'t str> {
    fields.iter().find_map(|(name, value)| match value {
        Tree::Text(text) if name == wanted => Some(text.as_str()),
        Tree::Object(_) | Tree::List(_) | Tree::Number(_) | Tree::Text(_) | Tree::Null => None,
    })
}

fn number_of(fields: &Object, wanted: &str) -> Option<u64> {
    fields.iter().find(|(name, _)| name == wanted).and_then(|(_, value)| value.number())
}

/// `raw` with its last `digits` digits, 2 at most, behind a point.
fn decimal(raw: u64, digits: u8, unit: &str) -> String {
    let number = match digits {
        0 => raw.to_string(),
        1 => format!("{}.{}", raw / 10, raw % 10),
        _ => format!("{}.{:02}", raw / 100, raw % 100),
    };
    if unit.is_empty() { number } else { format!("{number} {unit}") }
}

/// Unix seconds as the clock on the device's wall shows them.
fn local_time(unix_s: u64) -> Option<String> {
    Some(format!("{} UTC+8", DeviceTime::from_unix(i64::try_from(unix_s).ok()?)))
}

/// The numbers of the bits that are set, counted from 0.
fn bits(raw: u64) -> Option<String> {
    let set: Vec<_> = (0..u64::BITS).filter(|bit| raw.wrapping_shr(*bit) & 1 == 1).map(|bit| bit.to_string()).collect();
    if set.is_empty() { None } else { Some(set.join(", ")) }
}
