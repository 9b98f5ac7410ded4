//! Request bodies, read field by field so that each refusal names the field and the value.
//!
//! A body is one JSON object. Every field is known, given once and of its type; `null` counts as left out. Fields are taken
//! out of the object as they are read, and what is left at the end is not known.

use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use crate::api::error::ApiError;
use crate::api::message::Request;
use crate::api::route::{check_device_id, check_json, check_order_no};
use crate::config::Rule;
use crate::model::{CardNo, DeviceId, OrderNo};

/// Characters of a refused value that the answer repeats.
const SHOWN_CHARS_MAX: usize = 64;

/// The fields of an object that are not yet read.
#[derive(Debug)]
pub(super) struct Fields {
    /// In front of each name: empty, or `tiers[0].`.
    path: String,
    values: Vec<(String, Value)>,
}

impl Fields {
    /// The body of a request that must have one.
    ///
    /// # Errors
    /// `UNSUPPORTED_MEDIA_TYPE`; `INVALID_PARAMETER` for an empty body, broken JSON (with its position), another type than an object, or
    /// a field given twice.
    pub(super) fn of(request: &Request) -> Result<Self, ApiError> {
        if request.body.is_empty() {
            return Err(ApiError::invalid("body is empty, it must be a JSON object"));
        }
        check_json(request.header("Content-Type"))?;
        let Object(values) = serde_json::from_slice(&request.body).map_err(|error| {
            let what = if error.is_data() { "body is refused" } else { "body is not JSON" };
            ApiError::invalid(format!("{what}: {error}"))
        })?;
        Ok(Self { path: String::new(), values })
    }

    /// Checks that a request that needs no body has none, or an empty object.
    pub(super) fn none(request: &Request) -> Result<(), ApiError> {
        if request.body.is_empty() { Ok(()) } else { Self::of(request)?.finish(&[]) }
    }

    /// Whether a field is given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.values.iter().any(|(given, value)| given == name && !value.is_null())
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let index = self.values.iter().position(|(given, _)| given == name)?;
        let (_, value) = self.values.swap_remove(index);
        (!value.is_null()).then_some(value)
    }

    /// A field of whatever type.
    pub(super) fn value(&mut self, name: &str) -> Option<Value> {
        self.take(name)
    }

    fn refuse(&self, name: &str, expected: impl fmt::Display, got: &Value) -> ApiError {
        ApiError::invalid(format!("{}{name} must be {expected}, got {}", self.path, shown(got)))
    }

    /// Turns a field that is left out into an error.
    pub(super) fn required<T>(&self, name: &str, value: Option<T>) -> Result<T, ApiError> {
        value.ok_or_else(|| ApiError::invalid(format!("{}{name} is missing", self.path)))
    }

    /// A whole number in a range.
    pub(super) fn number<T>(&mut self, name: &str, range: RangeInclusive<T>) -> Result<Option<T>, ApiError>
    where
        T: TryFrom<u64> + PartialOrd + fmt::Display,
    {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| T::try_from(number).ok());
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let expected = format_args!("a whole number in {}..={}", range.start(), range.end()).to_string();
                Err(self.refuse(name, expected, &value))
            }
        }
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.refuse(name, "true or false", &other)),
        }
    }

    /// A text that is one of a few words.
    pub(super) fn word<'w>(&mut self, name: &str, words: &[&'w str]) -> Result<Option<&'w str>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match words.iter().find(|word| value.as_str() == Some(word)) {
            Some(word) => Ok(Some(word)),
            None => Err(self.refuse(name, format_args!("one of {}", words.join(", ")), &value)),
        }
    }

    /// Printable ASCII of a length.
    pub(super) fn ascii(&mut self, name: &str, length: RangeInclusive<usize>) -> Result<Option<String>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_str() {
            Some(text) if length.contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b' '..=b'~')) => {
                Ok(Some(text.to_owned()))
            }
            _ => {
                let expected = format!("{}..={} printable ASCII characters", length.start(), length.end());
                Err(self.refuse(name, expected, &value))
            }
        }
    }

    /// Bytes as lower-case hex digits, two each.
    pub(super) fn hex(&mut self, name: &str, length: RangeInclusive<usize>) -> Result<Option<Vec<u8>>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let bytes = value.as_str().and_then(unhex);
        match bytes.filter(|bytes| length.contains(&bytes.len())) {
            Some(bytes) => Ok(Some(bytes)),
            None => {
                let expected = format!("{}..={} bytes as hex digits", length.start(), length.end());
                Err(self.refuse(name, expected, &value))
            }
        }
    }

    /// Numbers 0–255.
    pub(super) fn bytes(&mut self, name: &str, length: RangeInclusive<usize>) -> Result<Option<Vec<u8>>, ApiError> {
        self.array(name, length, "numbers in 0..=255", |item| item.as_u64().and_then(|byte| u8::try_from(byte).ok()))
    }

    /// Positions of the event log.
    pub(super) fn positions(
        &mut self,
        name: &str,
        length: RangeInclusive<usize>,
    ) -> Result<Option<Vec<i64>>, ApiError> {
        self.array(name, length, "positions from 1", |item| item.as_i64().filter(|pos| *pos > 0))
    }

    /// Texts.
    pub(super) fn texts(&mut self, name: &str, length: RangeInclusive<usize>) -> Result<Option<Vec<String>>, ApiError> {
        self.array(name, length, "texts", |item| item.as_str().map(str::to_owned))
    }

    fn array<T>(
        &mut self,
        name: &str,
        length: RangeInclusive<usize>,
        of: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let items: Option<Vec<T>> = value.as_array().and_then(|items| items.iter().map(read).collect());
        match items.filter(|items| length.contains(&items.len())) {
            Some(items) => Ok(Some(items)),
            None => {
                let expected = format!("an array of {}..={} {of}", length.start(), length.end());
                Err(self.refuse(name, expected, &value))
            }
        }
    }

    /// An object whose names are not known beforehand.
    pub(super) fn object(&mut self, name: &str) -> Result<Option<Vec<(String, Value)>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(fields.into_iter().collect())),
            Some(other) => Err(self.refuse(name, "an object", &other)),
        }
    }

    /// A text.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.refuse(name, "a text", &other)),
        }
    }

    /// A text, read by a rule of the configuration.
    pub(super) fn ruled<T>(&mut self, name: &str, rule: &Rule<T>) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        self.by_rule(name, &value, rule).map(Some)
    }

    /// Texts, read by a rule of the configuration.
    pub(super) fn ruled_list<T>(
        &mut self,
        name: &str,
        items_max: usize,
        rule: &Rule<T>,
    ) -> Result<Option<Vec<T>>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let Some(items) = value.as_array().filter(|items| items.len() <= items_max) else {
            return Err(self.refuse(name, format_args!("an array of 0..={items_max} texts"), &value));
        };
        let read = |(index, item)| self.by_rule(&format!("{name}[{index}]"), item, rule);
        items.iter().enumerate().map(read).collect::<Result<_, _>>().map(Some)
    }

    fn by_rule<T>(&self, name: &str, value: &Value, rule: &Rule<T>) -> Result<T, ApiError> {
        let shown = match value {
            Value::String(text) if text.is_empty() => "\"\"".to_owned(),
            Value::String(text) => match (rule.read)(text) {
                Some(read) => return Ok(read),
                None => (rule.shown)(text),
            },
            // What stands in the place of a secret may be one.
            Value::Number(_) => "a number".to_owned(),
            Value::Bool(_) => "a flag".to_owned(),
            Value::Array(_) => "an array".to_owned(),
            Value::Object(_) => "an object".to_owned(),
            Value::Null => "null".to_owned(),
        };
        Err(ApiError::invalid(format!("{}{name} must be {}, got {shown}", self.path, rule.expected)))
    }

    /// Whether a field is given as `null`, where that says something; it is read then.
    pub(super) fn takes_null(&mut self, name: &str) -> bool {
        let given = self.values.iter().position(|(given, value)| given == name && value.is_null());
        if let Some(index) = given {
            self.values.swap_remove(index);
        }
        given.is_some()
    }

    /// `device_id`.
    pub(super) fn device_id(&mut self) -> Result<Option<DeviceId>, ApiError> {
        self.text("device_id")?.map(|text| device_id("device_id", &text)).transpose()
    }

    /// `order_no`.
    pub(super) fn order_no(&mut self) -> Result<Option<OrderNo>, ApiError> {
        self.text("order_no")?.map(|text| order_no("order_no", &text)).transpose()
    }

    /// `card_no`.
    pub(super) fn card_no(&mut self) -> Result<Option<CardNo>, ApiError> {
        self.text("card_no")?.map(|text| card_no("card_no", &text)).transpose()
    }

    /// A time of RFC 3339 with a zone, as Unix ms; the outer `None`: left out, the inner one: `null`.
    pub(super) fn time_or_null(&mut self, name: &str) -> Result<Option<Option<i64>>, ApiError> {
        let Some(index) = self.values.iter().position(|(given, _)| given == name) else { return Ok(None) };
        let (_, value) = self.values.swap_remove(index);
        if value.is_null() {
            return Ok(Some(None));
        }
        match value.as_str().and_then(crate::time::unix_ms_of_rfc3339) {
            Some(at) => Ok(Some(Some(at))),
            None => Err(self.refuse(name, "a time like 2026-01-31T16:00:00Z", &value)),
        }
    }

    /// A text; the outer `None`: left out, the inner one: `null`.
    pub(super) fn text_or_null(&mut self, name: &str) -> Result<Option<Option<String>>, ApiError> {
        let given = self.values.iter().any(|(given, _)| given == name);
        Ok(if given { Some(self.text(name)?) } else { None })
    }

    /// `port_no`.
    pub(super) fn port_no(&mut self) -> Result<Option<u16>, ApiError> {
        self.number("port_no", 1..=u16::MAX)
    }

    /// An array of objects, to be read like this one.
    pub(super) fn objects(&mut self, name: &str) -> Result<Option<Vec<Self>>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let Value::Array(items) = value else { return Err(self.refuse(name, "an array of objects", &value)) };
        let mut objects = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            match item {
                Value::Object(fields) => objects.push(Self {
                    path: format!("{}{name}[{index}].", self.path),
                    values: fields.into_iter().collect(),
                }),
                other => return Err(self.refuse(&format!("{name}[{index}]"), "an object", &other)),
            }
        }
        Ok(Some(objects))
    }

    /// Refuses what was not read. `known` are the fields there are.
    pub(super) fn finish(self, known: &[&str]) -> Result<(), ApiError> {
        let left_out = |name: &str, value: &Value| value.is_null() && known.contains(&name);
        let Some((name, _)) = self.values.iter().find(|(name, value)| !left_out(name, value)) else { return Ok(()) };
        let name: String = name.chars().take(SHOWN_CHARS_MAX).collect();
        let there_are = if known.is_empty() { "no fields".to_owned() } else { known.join(", ") };
        Err(ApiError::invalid(format!("field {}{name} is not known, there are {there_are}", self.path)))
    }
}

/// Reads a device id given as `field`.
pub(super) fn device_id(field: &str, text: &str) -> Result<DeviceId, ApiError> {
    check_device_id(field, text)?;
    text.parse().map_err(|error| ApiError::invalid(format!("{field} {text:?}: {error}")))
}

/// Reads a card number given as `field`.
pub(super) fn card_no(field: &str, text: &str) -> Result<CardNo, ApiError> {
    CardNo::parse(text).ok_or_else(|| ApiError::invalid(format!("{field} must be 4 to 64 letters and digits")))
}

/// Reads an order number given as `field`.
pub(super) fn order_no(field: &str, text: &str) -> Result<OrderNo, ApiError> {
    check_order_no(field, text)?;
    OrderNo::parse(text).ok_or_else(|| ApiError::invalid(format!("{field} {text:?} is no order number")))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |[high, low]: &[u8; 2]| u8::try_from(digit(*high)? * 16 + digit(*low)?).ok();
    rest.is_empty().then(|| pairs.iter().map(byte).collect()).flatten()
}

/// A value as the answer repeats it.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// An object that has no name twice: which of the two would count is a guess nobody should make with money.
struct Object(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;

        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut values: Vec<(String, Value)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if values.iter().any(|(given, _)| *given == name) {
                        return Err(A::Error::custom(format_args!("field {name:?} is given twice")));
                    }
                    if values.len() == FIELDS_MAX {
                        return Err(A::Error::custom(format_args!("there are more than {FIELDS_MAX} fields")));
                    }
                    values.push((name, value));
                }
                Ok(Object(values))
            }
        }

        /// More than any request has; it bounds the search for names given twice.
        const FIELDS_MAX: usize = 64;

        deserializer.deserialize_map(ObjectVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::message::Method;

    fn request(body: &str) -> Request {
        Request {
            method: Method::Post,
            target: "/".to_owned(),
            headers: vec![("Content-Type".to_owned(), "application/json".to_owned())],
            body: body.as_bytes().to_vec(),
            client_ip: "192.0.2.1".parse().unwrap(),
            request_id: "r".to_owned(),
            upload: None,
        }
    }

    fn fields(body: &str) -> Fields {
        Fields::of(&request(body)).unwrap()
    }

    fn text<T>(result: Result<T, ApiError>) -> String {
        result.err().map(|error| error.message.into_owned()).unwrap_or_default()
    }

    #[test]
    fn a_body_is_one_object() {
        for (body, message) in [
            ("", "body is empty, it must be a JSON object"),
            ("{", "body is not JSON: EOF while parsing an object at line 1 column 1"),
            ("{} x", "body is not JSON: trailing characters at line 1 column 4"),
            ("[]", "body is refused: invalid type: sequence, expected a JSON object at line 1 column 0"),
            (r#"{"a":1,"a":2}"#, "body is refused: field \"a\" is given twice at line 1 column 13"),
        ] {
            assert_eq!(text(Fields::of(&request(body))), message, "{body}");
        }
        let mut plain = request("{}");
        plain.headers.clear();
        assert_eq!(text(Fields::of(&plain)), "Content-Type must be application/json, got \"\"");
        assert!(Fields::none(&request("")).is_ok() && Fields::none(&request("{}")).is_ok());
        assert_eq!(text(Fields::none(&request(r#"{"a":1}"#))), "field a is not known, there are no fields");
        assert!(fields(r#"{"a":null}"#).finish(&["a"]).is_ok(), "null counts as left out");
        assert!(fields(r#"{"b":null}"#).finish(&["a"]).is_err(), "but not what is not known");
    }

    #[test]
    fn numbers_have_their_range() {
        let read = |value: &str| fields(&format!(r#"{{"n":{value}}}"#)).number::<u16>("n", 1..=900);
        assert_eq!(read("1"), Ok(Some(1)));
        assert_eq!(read("900"), Ok(Some(900)));
        assert_eq!(read("null"), Ok(None));
        for value in ["0", "901", "70000", "-1", "1.0", "1e2", "18446744073709551616", "\"1\"", "true", "[1]"] {
            assert!(text(read(value)).starts_with("n must be a whole number in 1..=900, got "), "{value}");
        }
    }

    #[test]
    fn nested_fields_are_named_by_their_path() {
        let mut body = fields(r#"{"tiers":[{"minutes":1},{"minutes":"x","y":2}]}"#);
        let mut tiers = body.objects("tiers").unwrap().unwrap();
        assert_eq!(tiers[0].number("minutes", 0..=9_u16), Ok(Some(1)));
        let wrong = tiers[1].number("minutes", 0..=9_u16);
        assert_eq!(text(wrong), "tiers[1].minutes must be a whole number in 0..=9, got \"x\"");
        let left = tiers.remove(1).finish(&["minutes"]);
        assert_eq!(text(left), "field tiers[1].y is not known, there are minutes");
        let wrong = fields(r#"{"tiers":[3]}"#).objects("tiers");
        assert_eq!(text(wrong), "tiers[0] must be an object, got 3");
    }

    #[test]
    fn refused_values_are_repeated_in_part() {
        let long = format!(r#"{{"flag":"{}"}}"#, "号".repeat(1_000));
        let message = text(fields(&long).flag("flag"));
        assert!(message.ends_with('…') && message.chars().count() < 120, "{message}");
    }
}
