//! Cards that pay for charges: their numbers, states, accounts and movements.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use super::OrderNo;
use crate::{
    pricing::Tariff,
    protocol::{Hex, ap3000::codes::AccountState},
};

/// Characters of a card number.
const NUMBER_LEN: std::ops::RangeInclusive<usize> = 4..=64;
/// Digits of the number printed on a card with a UID.
const PRINTED_DIGITS: usize = 10;
/// Digits of a mask that stay readable.
const SHOWN: usize = 4;

/// The number of a card, as it names an account.
///
/// | card | number |
/// |---|---|
/// | AP3000, M1 card | the four UID bytes as 8 lower-case hex digits |
/// | AP3000, long number (`card2`) | its text if it is letters and digits, else its bytes in hex |
/// | BKV/GN | the 12 printed digits |
///
/// The decimal number printed on an M1 card is its UID read big-endian, in 10 digits; [`CardNo::parse`] takes it for the UID.
/// `Display` and `Debug` show the last four characters only; [`CardNo::as_str`] and JSON have them all.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CardNo(Box<str>);

impl CardNo {
    /// Reads a number as a person gives it: 4 to 64 letters and digits in either case, or a printed number.
    pub fn parse(text: &str) -> Option<Self> {
        let sound = NUMBER_LEN.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !sound {
            return None;
        }
        let printed = text.len() == PRINTED_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse::<u32>() {
            Ok(uid) if printed => Some(Self::from_uid(uid.to_be_bytes())),
            _ => Some(Self(text.to_ascii_lowercase().into())),
        }
    }

    /// The number of an M1 card.
    pub fn from_uid(uid: [u8; 4]) -> Self {
        Self(Hex(uid).to_string().into())
    }

    /// The number of a BKV/GN card.
    pub fn from_digits(digits: [u8; 6]) -> Self {
        Self(Hex(digits).to_string().into())
    }

    /// A long number from the wire; `None`: it has none, or one too long to be a number.
    pub fn from_long(bytes: &[u8]) -> Option<Self> {
        let text = str::from_utf8(bytes).ok().map(|text| text.trim_end_matches('\0'));
        text.and_then(Self::parse).or_else(|| {
            let len = 2 * bytes.len();
            (NUMBER_LEN.contains(&len)).then(|| Self(Hex(bytes).to_string().into()))
        })
    }

    /// The whole number. Not for logs.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The decimal number printed on the card, if it is an M1 card.
    pub fn printed_no(&self) -> Option<String> {
        let uid = (self.0.len() == 8).then(|| u32::from_str_radix(&self.0, 16).ok()).flatten()?;
        Some(format!("{uid:0PRINTED_DIGITS$}"))
    }
}

impl fmt::Display for CardNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // All characters are ASCII.
        write!(f, "****{}", self.0.get(self.0.len().saturating_sub(SHOWN)..).unwrap_or_default())
    }
}

impl fmt::Debug for CardNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for CardNo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// What a card is told when it is swiped: the account states of AP3000 (device-server protocol v8.6, reply to command 02).
/// Only a normal card charges. A state is stored with the card, or follows from balance, plan or port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CardState(u8);

macro_rules! card_states {
    ($($(#[$doc:meta])* $name:ident = $code:literal $word:literal;)*) => {
        impl CardState {
            $($(#[$doc])* pub const $name: Self = Self($code);)*

            /// All states by number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word of the API.
            pub const fn as_str(self) -> &'static str {
                match self.0 {
                    $($code => $word,)*
                    _ => "unknown",
                }
            }
        }
    };
}

card_states! {
    /// It may charge.
    NORMAL = 0x00 "normal";
    /// There is no such card.
    NOT_REGISTERED = 0x01 "not_registered";
    /// The holder is to swipe again to bind the card.
    PLEASE_BIND = 0x02 "please_bind";
    /// The holder is to swipe again to unbind the card.
    PLEASE_UNBIND = 0x03 "please_unbind";
    /// A monthly card was swiped twice.
    MONTHLY_TWICE = 0x04 "monthly_twice";
    /// A monthly card has used up its charges.
    MONTHLY_COUNT = 0x05 "monthly_count";
    /// The free balance buys nothing.
    INSUFFICIENT_BALANCE = 0x06 "insufficient_balance";
    /// The plan of a monthly card is over.
    MONTHLY_EXPIRED = 0x07 "monthly_expired";
    /// The port cannot be used; also for one that is taken, for which there is no state.
    PORT_FAULT = 0x08 "port_fault";
    /// A balance card to be made a user card.
    REKEY = 0x09 "rekey";
    /// A monthly card has used up its time.
    MONTHLY_TIME = 0x0A "monthly_time";
    /// A card of another operator.
    FOREIGN_CARD = 0x0B "foreign_card";
    /// The device takes no orders.
    DEVICE_NOT_REGISTERED = 0x0C "device_not_registered";
    /// Without a plan the card cannot charge here.
    BUY_MONTHLY = 0x0D "buy_monthly";
    /// Too little for another area.
    AREA_BALANCE = 0x0E "area_balance";
    /// A device for monthly cards.
    MONTHLY_DEVICE = 0x0F "monthly_device";
    /// A device for monthly cards of another area.
    MONTHLY_DEVICE_AREA = 0x10 "monthly_device_area";
    /// A temporary device.
    TEMPORARY_DEVICE = 0x11 "temporary_device";
    /// A temporary device of another area.
    TEMPORARY_DEVICE_AREA = 0x12 "temporary_device_area";
}

impl CardState {
    /// The number stored and sent.
    pub const fn code(self) -> u8 {
        self.0
    }

    /// The state of a number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// The state of a word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|state| state.as_str() == word)
    }

    /// As AP3000 devices are told.
    pub const fn wire(self) -> AccountState {
        AccountState(self.0)
    }
}

/// A card's account. Cents are at least 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its number.
    pub card_no: CardNo,
    /// What it is told, unless balance or port say otherwise.
    pub state: CardState,
    /// Tariff by name; `None`: the default one.
    pub tariff: Option<String>,
    /// A monthly card, and when its plan ends (Unix ms): it charges without price until then.
    pub expires_at: Option<i64>,
    /// The holder's money, held or not.
    pub balance_cent: i64,
    /// The part of it that is held for orders.
    pub held_cent: i64,
    /// Counter of its `card.transaction` events.
    pub sequence_no: u32,
    /// Registration.
    pub created_at: i64,
    /// Last change.
    pub updated_at: i64,
}

impl Card {
    /// The most a card can have: what the wire can say.
    pub const BALANCE_MAX: i64 = u32::MAX as i64;

    /// What is not held.
    pub const fn free_cent(&self) -> i64 {
        self.balance_cent.saturating_sub(self.held_cent)
    }
}

/// What moved a card's balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionKind {
    /// Money was added.
    Recharge,
    /// A charge was paid for.
    Charge,
}

impl TransactionKind {
    /// The word stored and sent.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Recharge => "recharge",
            Self::Charge => "charge",
        }
    }

    /// The kind of a word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Recharge, Self::Charge].into_iter().find(|kind| kind.as_str() == word)
    }
}

/// A movement of a card's balance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardTransaction {
    /// Its row; rises.
    pub id: i64,
    /// The card.
    pub card_no: CardNo,
    /// What it was.
    pub kind: TransactionKind,
    /// The order that was paid for.
    pub order_no: Option<OrderNo>,
    /// Change of the balance, cents: recharges add, charges take.
    pub amount_cent: i64,
    /// Price of the charge; for a recharge its amount.
    pub price_cent: i64,
    /// The part of the price that the card could not pay.
    pub unpaid_cent: i64,
    /// The balance after it.
    pub balance_cent: i64,
    /// The caller's own word for a recharge.
    pub reference: Option<String>,
    /// When, Unix ms.
    pub at: i64,
}

/// What an order knows of the card that pays for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderCard {
    /// The card.
    pub card_no: CardNo,
    /// How the charge is priced, as agreed when it was ordered; `None`: it has no price here.
    pub tariff: Option<Tariff>,
    /// What was held for it, cents; `None`: the card's account is not kept here, or there is no such card.
    pub hold_cent: Option<i64>,
    /// Whether that is still held.
    pub hold_open: bool,
    /// Price by the settlement.
    pub price_cent: Option<i64>,
    /// What the card paid of it.
    pub charged_cent: Option<i64>,
}

impl OrderCard {
    /// The part of the price that the card could not pay.
    pub fn unpaid_cent(&self) -> Option<i64> {
        self.price_cent.zip(self.charged_cent).map(|(price, charged)| price.saturating_sub(charged))
    }
}

/// What a start must say beyond its order when a card pays. Stored with the command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardStart {
    /// BKV/GN: the swipe's number, which the order copies. `None`: no swipe asked for it, an ordinary start is sent.
    pub business_no: Option<u16>,
    /// AP3000 speaks this: free balance in cents, or for a monthly card the Unix seconds of its end.
    pub announce: u32,
    /// A monthly card.
    pub monthly: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_form() {
        let uid = CardNo::from_uid([0x7A, 0x8D, 0x05, 0xDD]);
        assert_eq!(uid.as_str(), "7a8d05dd");
        assert_eq!(uid.printed_no().as_deref(), Some("2056062429"));
        for text in ["7a8d05dd", "7A8D05DD", "2056062429"] {
            assert_eq!(CardNo::parse(text), Some(uid.clone()), "{text}");
        }
        assert_eq!(CardNo::from_uid([0, 0, 0, 7]).printed_no().as_deref(), Some("0000000007"));
        assert_eq!(CardNo::parse("0000000007"), Some(CardNo::from_uid([0, 0, 0, 7])));
        // No UID has this number: it is a long one.
        assert_eq!(CardNo::parse("4294967296").unwrap().as_str(), "4294967296");
        let digits = CardNo::from_digits([0x12, 0x34, 0x56, 0x78, 0x90, 0x12]);
        assert_eq!((digits.as_str(), digits.printed_no()), ("123456789012", None));
        for text in ["", "123", "12 34", "12-34", "ÄÖÜß", &"1".repeat(65)] {
            assert_eq!(CardNo::parse(text), None, "{text}");
        }
    }

    #[test]
    fn long_numbers_are_text_or_hex() {
        assert_eq!(CardNo::from_long(b"AB01020304050607").unwrap().as_str(), "ab01020304050607");
        assert_eq!(CardNo::from_long(b"AB0102\0\0").unwrap().as_str(), "ab0102");
        assert_eq!(CardNo::from_long(&[1, 2, 0xFF]).unwrap().as_str(), "0102ff");
        assert_eq!(CardNo::from_long(&[]), None);
        assert_eq!(CardNo::from_long(&[1]), None);
        assert_eq!(CardNo::from_long(&[1; 33]), None);
    }

    #[test]
    fn numbers_are_masked_where_they_are_shown() {
        let card_no = CardNo::parse("123456789012").unwrap();
        assert_eq!((card_no.to_string(), format!("{card_no:?}")), ("****9012".into(), "****9012".into()));
        assert_eq!(serde_json::to_string(&card_no).unwrap(), r#""123456789012""#);
    }

    #[test]
    fn states_are_those_of_the_protocol() {
        for (code, state) in (0..).zip(CardState::ALL) {
            assert_eq!((state.code(), CardState::from_code(code)), (code, Some(*state)));
            assert_eq!(CardState::from_word(state.as_str()), Some(*state));
            assert!(!state.wire().text().is_empty());
        }
        assert_eq!(CardState::ALL.len(), 0x13);
        assert_eq!(CardState::from_code(0x13), None);
    }
}
