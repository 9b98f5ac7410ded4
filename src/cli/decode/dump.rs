//! A dump: frames as the admin API gives them, whatever they are wrapped in.

use std::fmt;

use chargegate::protocol::Direction;
use serde::{Serialize, Serializer};
use serde_json::Value;

/// The frames of a dump, in its order.
#[derive(Debug)]
pub(super) struct Dump {
    pub(super) frames: Vec<Frame>,
}

/// A frame and what the dump says of it. `None`: it does not say.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Frame {
    /// As it stands there.
    pub(super) at: Option<String>,
    #[serde(serialize_with = "word")]
    pub(super) direction: Option<Direction>,
    pub(super) connection: Option<String>,
    /// The device of the dump or of the anomaly.
    pub(super) device_id: Option<String>,
    /// The kind of the anomaly it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) anomaly: Option<String>,
    /// Bytes it had on the wire; more than `raw` where it was cut.
    pub(super) bytes: usize,
    #[serde(skip)]
    pub(super) raw: Vec<u8>,
}

fn word<S: Serializer>(direction: &Option<Direction>, serializer: S) -> Result<S::Ok, S::Error> {
    direction.map(Direction::as_str).serialize(serializer)
}

/// Why a JSON text is no dump.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DumpError {
    #[error("not JSON: {0}")]
    Json(String),
    #[error("no frames in it: neither a list of frames, nor `frames`, `items` or `data` that have some")]
    NoFrames,
    #[error("frame {0}: raw must be hex text")]
    Raw(usize),
    #[error("frame {0}: direction must be \"up\" or \"down\"")]
    Direction(usize),
}

/// What the frames of a part of the dump have in common.
#[derive(Clone, Copy, Default)]
struct Wrapping<'a> {
    device_id: Option<&'a str>,
    anomaly: Option<&'a str>,
}

impl Dump {
    /// Whether a text is meant as a dump: no hex begins like this.
    pub(super) fn is_one(text: &str) -> bool {
        text.trim_start_matches('\u{feff}').trim_start().starts_with(['{', '['])
    }

    /// Reads a dump.
    pub(super) fn read(text: &str) -> Result<Self, DumpError> {
        let text = text.trim_start_matches('\u{feff}');
        let value: Value = serde_json::from_str(text).map_err(|error| DumpError::Json(error.to_string()))?;
        let mut dump = Self { frames: Vec::new() };
        if dump.take(&value, Wrapping::default())? { Ok(dump) } else { Err(DumpError::NoFrames) }
    }

    /// Takes what is in a value; false: nothing in it has the form of a dump.
    fn take<'a>(&mut self, value: &'a Value, wrapping: Wrapping<'a>) -> Result<bool, DumpError> {
        match value {
            Value::Array(items) => {
                // A list may be empty: a device that has sent nothing yet.
                let mut known = items.is_empty();
                for item in items {
                    known |= self.take(item, wrapping)?;
                }
                Ok(known)
            }
            Value::Object(fields) => {
                let text = |name: &str| fields.get(name).and_then(Value::as_str);
                if fields.contains_key("raw") {
                    self.frames.push(frame(self.frames.len() + 1, fields, wrapping)?);
                    return Ok(true);
                }
                let device_id = text("device_id").or(wrapping.device_id);
                let wrapping = Wrapping { device_id, anomaly: text("kind").or(wrapping.anomaly) };
                let inner = ["frames", "items", "data"].iter().find_map(|name| fields.get(*name));
                inner.map_or(Ok(false), |inner| self.take(inner, wrapping))
            }
            _ => Ok(false),
        }
    }
}

fn frame(number: usize, fields: &serde_json::Map<String, Value>, wrapping: Wrapping<'_>) -> Result<Frame, DumpError> {
    let text = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
    let raw = text("raw").and_then(|raw| hex(&raw)).ok_or(DumpError::Raw(number))?;
    let direction = match fields.get("direction").and_then(Value::as_str) {
        Some("up") => Some(Direction::Up),
        Some("down") => Some(Direction::Down),
        None if !fields.contains_key("direction") => None,
        _ => return Err(DumpError::Direction(number)),
    };
    let bytes = fields.get("bytes").and_then(Value::as_u64).and_then(|bytes| usize::try_from(bytes).ok());
    Ok(Frame {
        at: text("at"),
        direction,
        connection: text("connection"),
        device_id: wrapping.device_id.map(str::to_owned),
        anomaly: wrapping.anomaly.map(str::to_owned),
        bytes: bytes.unwrap_or(raw.len()).max(raw.len()),
        raw,
    })
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.chars().map(|digit| u8::try_from(digit.to_digit(16)?).ok()).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// The line above a frame.
impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.at.as_deref().unwrap_or("-"), self.direction.map_or("-", Direction::as_str))?;
        for (name, value) in [("connection", &self.connection), ("device", &self.device_id), ("anomaly", &self.anomaly)]
        {
            if let Some(value) = value {
                write!(f, ", {name} {value}")?;
            }
        }
        if self.bytes > self.raw.len() {
            write!(f, ", the first {} of {} bytes", self.raw.len(), self.bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Value) -> Result<Vec<Frame>, DumpError> {
        Dump::read(&value.to_string()).map(|dump| dump.frames)
    }

    #[test]
    fn frames_are_found_in_whatever_wraps_them() {
        let frame = json!({"at": "2026-01-02T03:04:05.678Z", "direction": "up", "raw": "6c696e6b", "bytes": 4});
        let frames = json!({"device_id": "40aace04", "frames": [frame]});
        let anomaly = json!({"device_id": "40aace04", "kind": "noise", "frames": [frame]});
        for (dump, device, kind) in [
            (json!([frame]), None, None),
            (frames.clone(), Some("40aace04"), None),
            (json!({"code": 0, "data": frames}), Some("40aace04"), None),
            (anomaly.clone(), Some("40aace04"), Some("noise")),
            (json!({"code": 0, "data": {"items": [anomaly], "total": 1}}), Some("40aace04"), Some("noise")),
        ] {
            let [found] = &read(&dump).unwrap()[..] else { panic!("{dump}") };
            assert_eq!((&found.raw[..], found.direction), (&b"link"[..], Some(Direction::Up)), "{dump}");
            assert_eq!((found.device_id.as_deref(), found.anomaly.as_deref()), (device, kind), "{dump}");
        }
        assert_eq!(read(&json!({"frames": []})), Ok(Vec::new()));
    }

    #[test]
    fn what_is_no_dump_is_said() {
        assert!(matches!(Dump::read("{"), Err(DumpError::Json(_))));
        for dump in [json!({}), json!({"code": 404, "data": null}), json!([1]), json!({"frames": {}})] {
            assert_eq!(read(&dump), Err(DumpError::NoFrames), "{dump}");
        }
        for raw in [json!(1), json!("0"), json!("zz"), json!("é")] {
            assert_eq!(read(&json!([{"raw": "00"}, {"raw": raw}])), Err(DumpError::Raw(2)), "{raw}");
        }
        for direction in [json!("left"), json!(null), json!(1)] {
            assert_eq!(read(&json!([{"raw": "00", "direction": direction}])), Err(DumpError::Direction(1)));
        }
    }

    #[test]
    fn hex_is_no_dump() {
        for (text, dump) in [("444e59", false), ("0x44", false), ("", false), (" \n {}", true), ("[]", true)] {
            assert_eq!(Dump::is_one(text), dump, "{text:?}");
        }
    }
}
