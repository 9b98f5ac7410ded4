//! The label values of all metrics. Each set is an enum, so the number of time series has a bound.

use crate::gateway::CloseReason;
use crate::model::Priority;
use crate::protocol::{DecodeError, Direction, SkipReason};

/// A closed set of values of one label.
pub trait Label: Copy + 'static {
    /// All values, in index order.
    const ALL: &'static [Self];
    /// How many there are.
    const COUNT: usize = Self::ALL.len();

    /// Position in [`Self::ALL`].
    fn index(self) -> usize;

    /// The text in the exposition.
    fn as_str(self) -> &'static str;
}

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ })+) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
            pub enum $name { $($(#[$variant_doc])* $variant,)+ }

            impl Label for $name {
                const ALL: &'static [Self] = &[$(Self::$variant),+];

                #[inline]
                fn index(self) -> usize {
                    self as usize
                }

                fn as_str(self) -> &'static str {
                    match self { $(Self::$variant => $word,)+ }
                }
            }
        )+
    };
}

labels! {
    /// What happened in a shard, besides traffic.
    ShardEvent {
        /// Accepting failed for want of descriptors or memory.
        AcceptExhausted = "accept_exhausted",
        /// A device was bound to a connection.
        Bind = "bind",
        /// A bind took the device from another connection.
        Takeover = "takeover",
        /// A frame of a device that is not admitted.
        Stranger = "stranger",
        /// A valid frame of the wrong direction.
        WrongDirection = "wrong_direction",
        /// A command written again.
        Resend = "resend",
        /// A reply that matches no command under way.
        ReplyUnmatched = "reply_unmatched",
        /// A settlement handed to the store.
        Settlement = "settlement",
        /// A settlement's resend that joined the one under way.
        SettlementJoined = "settlement_joined",
        /// A job not submitted because too many are under way.
        JobRefused = "job_refused",
        /// A job the store could not commit.
        JobFailed = "job_failed",
        /// A message that found another shard's mailbox full.
        TellLost = "tell_lost",
        /// A card was swiped, or its balance asked for.
        CardSwipe = "card_swipe",
        /// A card was told anything but normal.
        CardRefused = "card_refused",
        /// A swipe that was not answered: too many under way, or the store was too late.
        CardSwipeLost = "card_swipe_lost",
        /// A third party did not say what a card may do.
        CardUnanswered = "card_unanswered",
        /// A device that asks for firmware.
        UpdateRequested = "update_requested",
        /// A frame of an id that found its socket full.
        SocketFull = "socket_full",
        /// A command of the integrator's extension, taken.
        Extension = "extension",
        /// A payload of a layout that is not known, kept in the command log.
        Opaque = "opaque",
        /// A packet of firmware written.
        OtaPacket = "ota_packet",
        /// An update given up by its shard.
        OtaFailed = "ota_failed",
    }

    /// Why an order failed.
    OrderFailure {
        /// The device refused the start.
        Refused = "refused",
        /// Confirmed, but never charging.
        NoLoad = "no_load",
        /// The device did not come back.
        DeviceOffline = "device_offline",
        /// The port no longer charged and no settlement came.
        PortStateMismatch = "port_state_mismatch",
        /// The device ended the charge for a fault.
        DeviceFault = "device_fault",
        /// Anything else.
        Other = "other",
    }

    /// Why a command did not reach its end.
    OutboundFailure {
        /// No reply in time.
        AckTimeout = "ack_timeout",
        /// The device refused it.
        Refused = "refused",
        /// Too old to be sent.
        Expired = "expired",
        /// Taken back before it was written.
        Withdrawn = "withdrawn",
        /// Given up after all attempts.
        Dead = "dead",
        /// Refused at the door: too many waiting.
        Overloaded = "overloaded",
    }

    /// Why received bytes made no typed frame.
    DecodeFailure {
        /// Bytes between frames.
        Noise = "noise",
        /// Length out of range.
        BadLength = "bad_length",
        /// Wrong checksum.
        BadChecksum = "bad_checksum",
        /// Wrong tail bytes.
        BadTail = "bad_tail",
        /// Direction contradicts the magic.
        BadDirection = "bad_direction",
        /// Body too short.
        Truncated = "truncated",
        /// Forbidden value in a body.
        Invalid = "invalid",
        /// Body too long.
        Trailing = "trailing",
        /// A command without decoder.
        NotDecoded = "not_decoded",
        /// A command in no table.
        UnknownCommand = "unknown_command",
    }

    /// What goes wrong between a device and the gateway.
    AnomalyKind {
        /// Bytes between frames, or the beginning of a frame that never ended.
        Noise = "noise",
        /// A frame whose length is out of range.
        BadLength = "bad_length",
        /// A frame with a wrong checksum.
        BadChecksum = "bad_checksum",
        /// A frame with wrong tail bytes.
        BadTail = "bad_tail",
        /// A frame whose direction contradicts its magic, or that only a server sends.
        BadDirection = "bad_direction",
        /// A sound frame whose body is too short.
        Truncated = "truncated",
        /// A sound frame with a forbidden value.
        Invalid = "invalid",
        /// A sound frame whose body is too long.
        Trailing = "trailing",
        /// A sound frame of a command without decoder.
        NotDecoded = "not_decoded",
        /// A sound frame of a command in no table.
        UnknownCommand = "unknown_command",
        /// A connection closed for its share of garbage.
        GarbageClosed = "garbage_closed",
        /// A connection closed because too much waited to be written.
        WriteOverflow = "write_overflow",
        /// A device that is bound anew again and again.
        Flapping = "flapping",
        /// A start the device refused.
        StartRefused = "start_refused",
        /// A port that does not charge although its order does.
        PortMismatch = "port_mismatch",
        /// A settlement that no order of the device takes.
        SettlementOrphan = "settlement_orphan",
        /// A settlement whose order was found by time, or among those that had ended.
        SettlementMismatch = "settlement_mismatch",
        /// A settlement that could not be applied, and is kept apart.
        SettlementQuarantined = "settlement_quarantined",
    }

    /// First digit of an HTTP status.
    StatusClass {
        /// 100 to 199.
        Informational = "1xx",
        /// 200 to 299.
        Success = "2xx",
        /// 300 to 399.
        Redirection = "3xx",
        /// 400 to 499.
        ClientError = "4xx",
        /// 500 and above.
        ServerError = "5xx",
    }

    /// What Redis is asked for.
    RedisOp {
        /// Whether it is there.
        Ping = "ping",
        /// Order of waiting commands.
        Queue = "queue",
        /// Wake-ups between instances.
        Note = "note",
        /// Mirror of sessions.
        Session = "session",
        /// Nonces and rates that instances share.
        Guard = "guard",
    }

    /// Why Redis did not answer.
    RedisFailure {
        /// It was known not to be there; nothing was sent.
        Down = "down",
        /// Too many jobs wait; nothing was sent.
        Full = "full",
        /// The job's time was up before its turn; nothing was sent.
        Late = "late",
        /// No answer in time.
        Timeout = "timeout",
        /// The connection failed.
        Lost = "lost",
        /// An error reply.
        Refused = "refused",
        /// The gateway stops.
        Closed = "closed",
    }
}

impl From<SkipReason> for DecodeFailure {
    fn from(reason: SkipReason) -> Self {
        match reason {
            SkipReason::Noise => Self::Noise,
            SkipReason::BadLength => Self::BadLength,
            SkipReason::BadChecksum => Self::BadChecksum,
            SkipReason::BadTail => Self::BadTail,
            SkipReason::BadDirection => Self::BadDirection,
        }
    }
}

impl From<DecodeError> for DecodeFailure {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Truncated { .. } => Self::Truncated,
            DecodeError::Invalid { .. } => Self::Invalid,
            DecodeError::Trailing { .. } => Self::Trailing,
            DecodeError::NotDecoded { .. } => Self::NotDecoded,
            DecodeError::Unknown { .. } => Self::UnknownCommand,
        }
    }
}

impl From<DecodeFailure> for AnomalyKind {
    fn from(failure: DecodeFailure) -> Self {
        match failure {
            DecodeFailure::Noise => Self::Noise,
            DecodeFailure::BadLength => Self::BadLength,
            DecodeFailure::BadChecksum => Self::BadChecksum,
            DecodeFailure::BadTail => Self::BadTail,
            DecodeFailure::BadDirection => Self::BadDirection,
            DecodeFailure::Truncated => Self::Truncated,
            DecodeFailure::Invalid => Self::Invalid,
            DecodeFailure::Trailing => Self::Trailing,
            DecodeFailure::NotDecoded => Self::NotDecoded,
            DecodeFailure::UnknownCommand => Self::UnknownCommand,
        }
    }
}

impl From<u16> for StatusClass {
    fn from(status: u16) -> Self {
        match status {
            ..200 => Self::Informational,
            200..300 => Self::Success,
            300..400 => Self::Redirection,
            400..500 => Self::ClientError,
            500.. => Self::ServerError,
        }
    }
}

impl Label for Priority {
    const ALL: &'static [Self] = &Self::ALL;

    #[inline]
    fn index(self) -> usize {
        match self {
            Self::Emergency => 0,
            Self::High => 1,
            Self::Normal => 2,
            Self::Low => 3,
            Self::Idle => 4,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Emergency => "emergency",
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
            Self::Idle => "idle",
        }
    }
}

impl Label for CloseReason {
    const ALL: &'static [Self] = &Self::ALL;

    #[inline]
    fn index(self) -> usize {
        self as usize
    }

    fn as_str(self) -> &'static str {
        Self::as_str(self)
    }
}

impl Label for Direction {
    const ALL: &'static [Self] = &[Self::Up, Self::Down];

    #[inline]
    fn index(self) -> usize {
        match self {
            Self::Up => 0,
            Self::Down => 1,
        }
    }

    fn as_str(self) -> &'static str {
        Self::as_str(self)
    }
}
