//! Nonces that count once, and rates that hold, across instances.
//!
//! One script does both in one round trip: it takes a request from the key's token bucket, and only then uses up the nonce.
//!
//! | key | holds | expires |
//! |---|---|---|
//! | `nonce:{128 bits in hex}` | nothing; that it is there | when its timestamp is accepted nowhere any more |
//! | `rate:{name of the key}` | level in thousandths of a request, Redis' milliseconds of that | when the bucket is full again |
//!
//! An answer is there within [`DEADLINE`] from asking, or it is [`Verdict::Unknown`]. Buckets hold one second's worth and count by Redis'
//! clock. A Redis that lost its data has forgotten the nonces in use, so instances put back those they accepted themselves; until the
//! last one has, a replay may pass at another instance than the first time.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::{Pipeline, Script};

use super::link::{Conn, Link};
use crate::api::auth::{Answered, Question, Shared, UsedNonce, Verdict};
use crate::telemetry::label::RedisOp;
use crate::telemetry::{Counter, Exposition, MetricSource};

/// From asking to the answer.
pub const DEADLINE: Duration = Duration::from_millis(200);
/// Other instances' clocks may be behind by this much and accept a timestamp for longer.
const CLOCKS_APART_S: u64 = 60;
/// Nonces put back in one pipeline.
const RESTORE_MAX: usize = 1_024;

/// KEYS: rate, nonce. ARGV: requests per second (0: not limited), seconds to remember the nonce (0: none), requests at once.
/// -1 is above the rate, -2 a nonce used before; else it is granted, and the number is that of whole requests left.
static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local rate, keep, left = tonumber(ARGV[1]), tonumber(ARGV[2]), 0
if rate > 0 then
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    local full = tonumber(ARGV[3]) * 1000
    local bucket = redis.call('HMGET', KEYS[1], 'level', 'at')
    local level, at = tonumber(bucket[1]) or full, tonumber(bucket[2]) or now
    level = math.min(full, level + math.max(0, now - at) * rate)
    if level < 1000 then
        return -1
    end
    left = math.floor((level - 1000) / 1000)
    redis.call('HSET', KEYS[1], 'level', level - 1000, 'at', now)
    redis.call('PEXPIRE', KEYS[1], 1000 + math.ceil(full / rate))
end
if keep > 0 and not redis.call('SET', KEYS[2], '', 'NX', 'EX', keep) then
    return -2
end
return left
",
    )
});

/// What instances remember together, in Redis.
pub struct Guards {
    link: Arc<Link>,
    unanswered: Arc<Counter>,
}

impl Guards {
    /// Over this link.
    pub fn new(link: Arc<Link>) -> Self {
        Self { link, unanswered: Arc::default() }
    }

    /// Questions without an answer.
    pub fn unanswered(&self) -> u64 {
        self.unanswered.get()
    }
}

impl Shared for Guards {
    fn ask(&self, question: Question, then: Answered<Verdict>) {
        let ask = move |connection: &mut Conn| {
            let keep_s = question.nonce.map_or(0, |nonce| nonce.valid_s.saturating_add(CLOCKS_APART_S));
            let mut call = SCRIPT.key(format!("rate:{}", question.key));
            call.key(question.nonce.map(|nonce| nonce_key(&nonce)).unwrap_or_default());
            let (rate_per_s, burst) = question.rate.map_or((0, 0), |rate| (rate.requests(), rate.burst()));
            call.arg(rate_per_s).arg(keep_s).arg(burst).invoke::<i64>(connection)
        };
        let unanswered = Arc::clone(&self.unanswered);
        self.link.submit_within(DEADLINE, RedisOp::Guard, ask, move |answer| {
            then(match answer {
                Ok(-1) => Verdict::RateExceeded,
                Ok(-2) => Verdict::NonceUsed,
                Ok(remaining @ 0..) => Verdict::Granted { remaining: u32::try_from(remaining).unwrap_or(u32::MAX) },
                Ok(_) | Err(_) => {
                    unanswered.inc();
                    Verdict::Unknown
                }
            });
        });
    }

    fn restore(&self, nonces: Vec<UsedNonce>) {
        for nonces in nonces.chunks(RESTORE_MAX) {
            let mut pipeline = Pipeline::with_capacity(nonces.len());
            for nonce in nonces {
                let keep_s = nonce.valid_s.saturating_add(CLOCKS_APART_S);
                pipeline.cmd("SET").arg(nonce_key(nonce)).arg("").arg("NX").arg("EX").arg(keep_s).ignore();
            }
            // Failures are counted by the link; the next time Redis is back, this is done again.
            self.link.submit(RedisOp::Guard, move |connection| pipeline.exec(connection), |_| {});
        }
    }
}

impl MetricSource for Guards {
    fn render(&self, to: &mut Exposition<'_>) {
        let help = "Nonces and rates that the other instances could not be asked about.";
        to.counter("chargegate_guards_unanswered_total", help, self.unanswered());
    }
}

fn nonce_key(nonce: &UsedNonce) -> String {
    format!("nonce:{:032x}", nonce.id.number())
}
