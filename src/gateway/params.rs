//! Device parameters: which there are, and what has to be asked or sent next until the device has the desired values.
//!
//! ```text
//! desired ≠ reported ─▶ (AP3000 group not known whole: read it) ─▶ set ─▶ acknowledged ─▶ read back ─▶ equal: confirmed
//!                                                                     └─▶ refused            └─▶ not equal: refused
//! ```
//!
//! Pure functions over plain values; the store keeps the rows and queues the commands they say.

use serde_json::{Map, Value};

use crate::model::{Ap3000Call, DeviceCall, GatewayCall, ParamGroup, Protocol};

/// A parameter of a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name in the vendor's document, lower case, with its unit where it has one.
    pub name: &'static str,
    /// What it is set and read with.
    pub group: Group,
    /// What it can be.
    pub kind: Kind,
    /// Whether a set command may leave it out.
    pub optional: bool,
}

/// What a parameter is set and read with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// A command of its own: all values of the group at once.
    Ap3000(ParamGroup),
    /// 0x1000/1011 of one socket: any of them.
    Socket,
}

/// What values a parameter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole number.
    Number {
        /// Least.
        min: u32,
        /// Largest.
        max: u32,
    },
    /// Lower-case hex digits of this many bytes.
    Hex {
        /// Bytes.
        len: usize,
    },
    /// ASCII text.
    Text {
        /// Most characters.
        max: usize,
    },
}

const WORD: Kind = Kind::Number { min: 0, max: 0xFFFF };
const BYTE: Kind = Kind::Number { min: 0, max: 0xFF };
const KEY: Kind = Kind::Hex { len: 6 };

macro_rules! params {
    ($($name:literal $group:expr, $kind:expr $(, $optional:ident)?;)*) => {
        &[$(Param { name: $name, group: $group, kind: $kind, optional: params!(@ $($optional)?) },)*]
    };
    (@) => { false };
    (@ optional) => { true };
}

/// AP3000 parameters that can be set (device-server protocol v8.6, commands 83–86, 8D–8F, 97).
#[rustfmt::skip]
pub const AP3000: &[Param] = params! {
    "unplug_power" Group::Ap3000(ParamGroup::Detection), WORD;
    "unplug_time_s" Group::Ap3000(ParamGroup::Detection), WORD;
    "float_percent" Group::Ap3000(ParamGroup::Detection), Kind::Number { min: 1, max: 100 };
    "float_detect_time_s" Group::Ap3000(ParamGroup::Detection), WORD;
    "float_time_s" Group::Ap3000(ParamGroup::Detection), WORD;
    // Every session time limit rests on it: below 10 s a fleet floods, above an hour nobody knows who is there.
    "heartbeat_interval_s" Group::Ap3000(ParamGroup::Detection), Kind::Number { min: 10, max: 3600 };
    "dyn_overload_power" Group::Ap3000(ParamGroup::Power), WORD;
    "dyn_overload_time_s" Group::Ap3000(ParamGroup::Power), WORD;
    "dyn_overload_start_s" Group::Ap3000(ParamGroup::Power), WORD;
    "unplug_noise_power" Group::Ap3000(ParamGroup::Power), BYTE;
    "unplug_noise_time_s" Group::Ap3000(ParamGroup::Power), WORD;
    "float_second_point_s" Group::Ap3000(ParamGroup::Power), WORD;
    "float_second_time_s" Group::Ap3000(ParamGroup::Power), WORD;
    "min_power" Group::Ap3000(ParamGroup::Power), WORD;
    "min_power_point_s" Group::Ap3000(ParamGroup::Power), WORD;
    "second_max_power_point_s" Group::Ap3000(ParamGroup::Power), WORD;
    "ambient_alarm_temp" Group::Ap3000(ParamGroup::Power), BYTE;
    "port_alarm_temp" Group::Ap3000(ParamGroup::Power), BYTE;
    "unplug_opto_disable" Group::Ap3000(ParamGroup::Power), BYTE;
    "qr_light" Group::Ap3000(ParamGroup::Power), Kind::Number { min: 0, max: 1 };
    "max_duration_s" Group::Ap3000(ParamGroup::Limits), WORD;
    "overload_power" Group::Ap3000(ParamGroup::Limits), WORD;
    "over_voltage" Group::Ap3000(ParamGroup::Limits), WORD, optional;
    "under_voltage" Group::Ap3000(ParamGroup::Limits), WORD, optional;
    "user_card_sector" Group::Ap3000(ParamGroup::UserCard), BYTE;
    "user_card_key" Group::Ap3000(ParamGroup::UserCard), KEY;
    "new_card_key" Group::Ap3000(ParamGroup::UserCard), KEY;
    "mute" Group::Ap3000(ParamGroup::Sound), Kind::Number { min: 0, max: 1 };
    "work_mode" Group::Ap3000(ParamGroup::WorkMode), Kind::Number { min: 0, max: 1 };
    "tc_mode" Group::Ap3000(ParamGroup::TcMode), Kind::Number { min: 0, max: 6 };
    "screen_type" Group::Ap3000(ParamGroup::Screen), Kind::Number { min: 0, max: 1 };
    "qr_text" Group::Ap3000(ParamGroup::Screen), Kind::Text { max: 71 };
};

/// BKV/GN parameters of a socket that can be set (integration guide V1.7, 0x1000/1011).
#[rustfmt::skip]
pub const GATEWAY: &[Param] = params! {
    "full_charge_delay_s" Group::Socket, WORD, optional;
    "no_load_delay_s" Group::Socket, WORD, optional;
    "full_power_threshold_dw" Group::Socket, WORD, optional;
    "no_load_power_threshold_dw" Group::Socket, WORD, optional;
    "high_temp_threshold" Group::Socket, BYTE, optional;
    "power_limit_dw" Group::Socket, WORD, optional;
    "max_charge_min" Group::Socket, WORD, optional;
};

/// The parameters of a protocol.
pub const fn of(protocol: Protocol) -> &'static [Param] {
    match protocol {
        Protocol::Ap3000 => AP3000,
        Protocol::Bkv | Protocol::Gn => GATEWAY,
    }
}

/// A parameter by its name.
pub fn find(protocol: Protocol, name: &str) -> Option<&'static Param> {
    of(protocol).iter().find(|param| param.name == name)
}

impl Kind {
    /// Whether a value is one of its.
    ///
    /// # Errors
    /// What was expected.
    pub fn check(self, value: &Value) -> Result<(), String> {
        match self {
            Self::Number { min, max } => match value.as_u64() {
                Some(number) if (u64::from(min)..=u64::from(max)).contains(&number) => Ok(()),
                _ => Err(format!("a whole number in {min}..={max}")),
            },
            Self::Hex { len } => match value.as_str() {
                Some(text) if text.len() == len * 2 && text.bytes().all(is_lower_hex) => Ok(()),
                _ => Err(format!("{} lower-case hex digits", len * 2)),
            },
            Self::Text { max } => match value.as_str() {
                Some(text) if text.len() <= max && text.bytes().all(|byte| matches!(byte, b' '..=b'~')) => Ok(()),
                _ => Err(format!("at most {max} printable ASCII characters")),
            },
        }
    }
}

const fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

impl ParamGroup {
    /// Whether the device can be asked for it.
    pub const fn is_readable(self) -> bool {
        matches!(self, Self::Detection | Self::Power | Self::Limits | Self::UserCard)
    }
}

impl Group {
    /// The groups of a protocol, each once.
    pub fn all(protocol: Protocol) -> Vec<Self> {
        let mut groups = Vec::new();
        for param in of(protocol) {
            if !groups.contains(&param.group) {
                groups.push(param.group);
            }
        }
        groups
    }

    /// Whether the device can be asked for it.
    pub const fn is_readable(self) -> bool {
        match self {
            Self::Ap3000(group) => group.is_readable(),
            Self::Socket => true,
        }
    }

    /// Its parameters.
    pub fn params(self) -> impl Iterator<Item = &'static Param> {
        let all = match self {
            Self::Ap3000(_) => AP3000,
            Self::Socket => GATEWAY,
        };
        all.iter().filter(move |param| param.group == self)
    }

    /// The command that reads it; `None`: there is none.
    pub fn query(self, socket: u8) -> Option<DeviceCall> {
        match self {
            Self::Ap3000(group) if group.is_readable() => Some(DeviceCall::Ap3000(Ap3000Call::QueryParams { group })),
            Self::Ap3000(_) => None,
            Self::Socket => Some(DeviceCall::Gateway(GatewayCall::QueryParams { socket })),
        }
    }

    /// The command that sets it.
    pub fn set(self, socket: u8, values: Map<String, Value>) -> DeviceCall {
        match self {
            Self::Ap3000(group) => DeviceCall::Ap3000(Ap3000Call::SetParams { group, values }),
            Self::Socket => DeviceCall::Gateway(GatewayCall::SetParams { socket, values }),
        }
    }

    /// Group and socket (0: the device as a whole) of a command; `None`: it is about something else.
    pub const fn of_call(call: &DeviceCall) -> Option<(Self, u8)> {
        match call {
            DeviceCall::Ap3000(Ap3000Call::SetParams { group, .. } | Ap3000Call::QueryParams { group }) => {
                Some((Self::Ap3000(*group), 0))
            }
            DeviceCall::Gateway(GatewayCall::SetParams { socket, .. } | GatewayCall::QueryParams { socket }) => {
                Some((Self::Socket, *socket))
            }
            DeviceCall::Ap3000(_) | DeviceCall::Gateway(_) => None,
        }
    }
}

/// What is known of a parameter of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Its name.
    pub name: String,
    /// What a third party wants.
    pub desired: Option<Value>,
    /// What the device said last.
    pub reported: Option<Value>,
    /// The device refused what is desired.
    pub refused: bool,
}

impl Held {
    /// Whether the device still has to be brought to the desired value.
    pub fn is_pending(&self) -> bool {
        !self.refused && self.desired.is_some() && self.desired != self.reported
    }
}

/// What to send so that a group comes to its desired values; `None`: nothing. `held` may hold other groups too.
pub fn next(group: Group, socket: u8, held: &[Held]) -> Option<DeviceCall> {
    let of_group = |held: &&Held| group.params().any(|param| param.name == held.name);
    if !held.iter().filter(of_group).any(Held::is_pending) {
        return None;
    }
    let value = |name: &str| {
        let held = held.iter().find(|held| held.name == name)?;
        held.desired.as_ref().filter(|_| !held.refused).or(held.reported.as_ref())
    };
    let mut values = Map::new();
    for param in group.params() {
        let pending = held.iter().any(|held| held.name == param.name && held.is_pending());
        match value(param.name) {
            // A socket is told only what changes.
            Some(_) if group == Group::Socket && !pending => {}
            Some(value) => {
                values.insert(param.name.to_owned(), value.clone());
            }
            None if param.optional => {}
            // Setting half a group would set the other half to something nobody chose.
            None => return group.query(socket),
        }
    }
    Some(group.set(socket, values))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn held(name: &str, desired: Option<u64>, reported: Option<u64>) -> Held {
        Held {
            name: name.to_owned(),
            desired: desired.map(Value::from),
            reported: reported.map(Value::from),
            refused: false,
        }
    }

    #[test]
    fn names_are_unique_and_only_the_optional_are_optional() {
        for params in [AP3000, GATEWAY] {
            for (index, param) in params.iter().enumerate() {
                assert!(params.iter().skip(index + 1).all(|other| other.name != param.name), "{} twice", param.name);
            }
        }
        let optional: Vec<_> = AP3000.iter().filter(|param| param.optional).map(|param| param.name).collect();
        assert_eq!(optional, ["over_voltage", "under_voltage"]);
        assert!(GATEWAY.iter().all(|param| param.optional));
    }

    #[test]
    fn a_group_that_is_not_known_is_read_first() {
        let group = Group::Ap3000(ParamGroup::Limits);
        let query = DeviceCall::Ap3000(Ap3000Call::QueryParams { group: ParamGroup::Limits });
        assert_eq!(next(group, 0, &[held("max_duration_s", Some(7200), None)]), Some(query));
        let known = [held("max_duration_s", Some(7200), Some(36000)), held("overload_power", None, Some(800))];
        let values = json!({"max_duration_s": 7200, "overload_power": 800}).as_object().unwrap().clone();
        let set = DeviceCall::Ap3000(Ap3000Call::SetParams { group: ParamGroup::Limits, values });
        assert_eq!(next(group, 0, &known), Some(set));
    }

    #[test]
    fn a_socket_is_told_only_what_changes() {
        let rows = [held("max_charge_min", Some(60), Some(60)), held("power_limit_dw", Some(5000), None)];
        let values = json!({"power_limit_dw": 5000}).as_object().unwrap().clone();
        let set = DeviceCall::Gateway(GatewayCall::SetParams { socket: 3, values });
        assert_eq!(next(Group::Socket, 3, &rows), Some(set));
        assert_eq!(next(Group::Socket, 3, &rows[..1]), None);
    }

    #[test]
    fn what_was_refused_is_not_sent_again() {
        let mut rows = [held("max_charge_min", Some(60), Some(30))];
        rows[0].refused = true;
        assert_eq!(next(Group::Socket, 1, &rows), None);
    }

    #[test]
    fn values_have_their_kind() {
        let check = |name: &str, value: Value| find(Protocol::Ap3000, name).unwrap().kind.check(&value).is_ok();
        assert!(
            check("float_percent", json!(100))
                && !check("float_percent", json!(101))
                && !check("float_percent", json!("1"))
        );
        assert!(check("new_card_key", json!("ffffffffffff")) && !check("new_card_key", json!("FFFFFFFFFFFF")));
        assert!(
            check("qr_text", json!("http://x/"))
                && !check("qr_text", json!("é"))
                && !check("qr_text", json!("a".repeat(72)))
        );
    }
}
