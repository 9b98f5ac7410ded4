//! What an answer means, and when to try again.
//!
//! Classification ([`classify`]) knows no time and no budget; policy ([`Schedule`]) knows no answers. Clock and jitter seed come
//! from outside.

use std::{borrow::Cow, time::Duration};

/// Longest delay a receiver can ask for with `Retry-After`.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// An HTTP status outside 200–299.
    Status(u16),
    /// No answer in time.
    Timeout,
    /// The connection was refused or the host is unreachable.
    Connect,
    /// The name does not resolve.
    Dns,
    /// The TLS handshake failed.
    Tls,
    /// The connection ended before the answer.
    Closed,
    /// The answer is not HTTP.
    Protocol,
    /// The target's address is not one to send to.
    TargetRefused,
    /// The stored event cannot be sent.
    Data,
    /// Our side: no thread, or a bug.
    Internal,
}

impl Failure {
    /// All metric labels; [`Failure::label_index`] points in here.
    pub const LABELS: [&'static str; 13] = [
        "http_3xx",
        "http_4xx",
        "http_5xx",
        "http_other",
        "timeout",
        "connect",
        "dns",
        "tls",
        "closed",
        "protocol",
        "target_refused",
        "bad_data",
        "internal",
    ];

    /// Where its label stands in [`Failure::LABELS`].
    pub const fn label_index(self) -> usize {
        match self {
            Self::Status(300..=399) => 0,
            Self::Status(400..=499) => 1,
            Self::Status(500..=599) => 2,
            Self::Status(_) => 3,
            Self::Timeout => 4,
            Self::Connect => 5,
            Self::Dns => 6,
            Self::Tls => 7,
            Self::Closed => 8,
            Self::Protocol => 9,
            Self::TargetRefused => 10,
            Self::Data => 11,
            Self::Internal => 12,
        }
    }

    /// The exact reason, as stored with the delivery.
    pub fn reason(self) -> Cow<'static, str> {
        match self {
            Self::Status(code) => Cow::Owned(format!("http_{code}")),
            _ => Cow::Borrowed(Self::LABELS.get(self.label_index()).copied().unwrap_or("internal")),
        }
    }

    /// Whether no HTTP answer came although one was asked for: what the breaker counts.
    pub const fn is_unanswered(self) -> bool {
        match self {
            Self::Timeout | Self::Connect | Self::Dns | Self::Tls | Self::Closed | Self::Protocol => true,
            Self::Status(_) | Self::TargetRefused | Self::Data | Self::Internal => false,
        }
    }
}

/// How one request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// An HTTP status came.
    Status {
        code: u16,
        /// `Retry-After`, as a delay.
        retry_after: Option<Duration>,
    },
    /// None came.
    None(Failure),
}

impl Answer {
    /// The HTTP status, if one came.
    pub(super) const fn status(self) -> Option<u16> {
        match self {
            Self::Status { code, .. } => Some(code),
            Self::None(_) => None,
        }
    }

    /// What is wrong with it; `None`: the receiver took what it was sent.
    pub(super) const fn failure(self) -> Option<Failure> {
        match self {
            Self::Status { code: 200..=299, .. } => None,
            Self::Status { code, .. } => Some(Failure::Status(code)),
            Self::None(failure) => Some(failure),
        }
    }
}

/// What an answer means for the delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The receiver has it.
    Delivered,
    /// Worth another attempt, not before the receiver's delay.
    Retry(Failure, Option<Duration>),
    /// Another attempt would end the same.
    Drop(Failure),
    /// The receiver wants nothing more.
    Disable,
}

/// The meaning of an answer.
pub(super) const fn classify(answer: Answer) -> Verdict {
    match answer {
        Answer::Status { code, retry_after } => match code {
            200..=299 => Verdict::Delivered,
            410 => Verdict::Disable,
            408 | 409 | 425 | 429 => Verdict::Retry(Failure::Status(code), retry_after),
            400..=499 => Verdict::Drop(Failure::Status(code)),
            _ => Verdict::Retry(Failure::Status(code), retry_after),
        },
        Answer::None(failure) => match failure {
            Failure::TargetRefused | Failure::Data => Verdict::Drop(failure),
            Failure::Status(_)
            | Failure::Timeout
            | Failure::Connect
            | Failure::Dns
            | Failure::Tls
            | Failure::Closed
            | Failure::Protocol
            | Failure::Internal => Verdict::Retry(failure, None),
        },
    }
}

/// The retry delays and their jitter.
#[derive(Debug)]
pub(super) struct Schedule {
    delays: Vec<Duration>,
    jitter: Jitter,
}

impl Schedule {
    pub(super) const fn new(delays: Vec<Duration>, seed: u64) -> Self {
        Self { delays, jitter: Jitter(seed) }
    }

    /// Delay before the next attempt after `made` attempts; `None`: they are used up. Never shorter than the schedule's delay or
    /// the receiver's (at most [`RETRY_AFTER_MAX`]), up to a quarter longer, so that keys that failed together spread out.
    pub(super) fn delay(&mut self, made: u8, retry_after: Option<Duration>) -> Option<Duration> {
        let scheduled = *self.delays.get(usize::from(made).checked_sub(1)?)?;
        let asked = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        Some(self.jitter.stretch(scheduled.max(asked)))
    }
}

/// Splitmix64: spreads delays, nothing more.
#[derive(Debug)]
pub(super) struct Jitter(pub(super) u64);

impl Jitter {
    /// The delay, or up to a quarter more.
    pub(super) fn stretch(&mut self, delay: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let share = u32::from(((z ^ (z >> 31)) >> 56) as u8);
        delay + delay / 4 * share / 256
    }
}

/// Reads `Retry-After`: seconds, or an HTTP date seen from `unix_s`.
pub(super) fn retry_after(value: &str, unix_s: i64) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let ahead = http_date(value)?.saturating_sub(unix_s);
    Some(Duration::from_secs(u64::try_from(ahead).unwrap_or(0)))
}

/// Unix seconds of an IMF-fixdate (`Sun, 06 Nov 1994 08:49:37 GMT`), the only form senders may produce (RFC 9110 section 5.6.7).
fn http_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut parts = text.split_ascii_whitespace().skip(1);
    let day: i64 = parts.next()?.parse().ok().filter(|day| (1..=31).contains(day))?;
    let name = parts.next()?;
    let month = i64::try_from(MONTHS.iter().position(|month| *month == name)?).ok()?;
    let year: i64 = parts.next()?.parse().ok().filter(|year| (1970..=9999).contains(year))?;
    let mut clock =
        parts.next()?.split(':').map(|part| part.parse::<i64>().ok().filter(|part| (0..=60).contains(part)));
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if parts.next() != Some("GMT") {
        return None;
    }
    // Years that begin in March, as in the calendar of `body`, so that the leap day is the last.
    let (shifted_year, shifted_month) = if month < 2 { (year - 1, month + 10) } else { (year, month - 2) };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let days = 365 * shifted_year + shifted_year / 4 - shifted_year / 100 + shifted_year / 400 + day_of_year - 719_468;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_meaning() {
        for code in 100..=999_u16 {
            let verdict = classify(Answer::Status { code, retry_after: None });
            let expected = match code {
                200..=299 => Verdict::Delivered,
                410 => Verdict::Disable,
                408 | 409 | 425 | 429 => Verdict::Retry(Failure::Status(code), None),
                400..=499 => Verdict::Drop(Failure::Status(code)),
                _ => Verdict::Retry(Failure::Status(code), None),
            };
            assert_eq!(verdict, expected, "{code}");
        }
    }

    #[test]
    fn refused_targets_and_bad_data_are_final() {
        assert_eq!(classify(Answer::None(Failure::TargetRefused)), Verdict::Drop(Failure::TargetRefused));
        assert_eq!(classify(Answer::None(Failure::Data)), Verdict::Drop(Failure::Data));
        assert_eq!(classify(Answer::None(Failure::Timeout)), Verdict::Retry(Failure::Timeout, None));
    }

    #[test]
    fn reasons_and_labels_agree() {
        assert_eq!(Failure::Status(503).reason(), "http_503");
        assert_eq!(Failure::LABELS[Failure::Status(503).label_index()], "http_5xx");
        assert_eq!(Failure::TargetRefused.reason(), "target_refused");
        assert_eq!(Failure::Internal.reason(), "internal");
    }

    #[test]
    fn schedule_ends_and_never_runs_early() {
        let delays = [1, 5, 30].map(Duration::from_secs);
        for seed in 0..200 {
            let mut schedule = Schedule::new(delays.to_vec(), seed);
            for (made, delay) in (1..).zip(delays) {
                let drawn = schedule.delay(made, None).unwrap();
                assert!(drawn >= delay && drawn <= delay + delay / 4, "{drawn:?}");
            }
            assert_eq!(schedule.delay(4, None), None);
            assert_eq!(schedule.delay(0, None), None);
        }
    }

    #[test]
    fn retry_after_lengthens_within_its_bound() {
        let mut schedule = Schedule::new(vec![Duration::from_secs(5)], 1);
        assert!(schedule.delay(1, Some(Duration::from_secs(60))).unwrap() >= Duration::from_secs(60));
        assert!(schedule.delay(1, Some(Duration::from_secs(1))).unwrap() >= Duration::from_secs(5));
        assert!(schedule.delay(1, Some(Duration::MAX)).unwrap() <= RETRY_AFTER_MAX + RETRY_AFTER_MAX / 4);
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        assert_eq!(retry_after(" 120 ", 0), Some(Duration::from_secs(120)));
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(retry_after(date, 784_111_777 - 30), Some(Duration::from_secs(30)));
        assert_eq!(retry_after(date, 784_111_777 + 30), Some(Duration::ZERO));
        assert_eq!(retry_after("Thu, 29 Feb 2024 00:00:00 GMT", 1_709_164_800), Some(Duration::ZERO));
        for bad in ["", "-1", "soon", "Sun, 06 Nov 1994", "Sun, 06 Foo 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49 GMT"]
        {
            assert_eq!(retry_after(bad, 0), None, "{bad}");
        }
    }
}
