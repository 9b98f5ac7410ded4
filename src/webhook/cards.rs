//! Swiped cards whose accounts a third party keeps: a signed question, a short wait, a verdict.
//!
//! ```text
//! shards ──▶ questions (bounded) ──▶ a few threads ──HTTP──▶ third party
//!    ▲                                   │
//!    └────────── mailbox ◀───────────────┘
//! ```
//!
//! Exactly one answer per question that was taken, `None` where there was none in time or it cannot be understood: the card is
//! refused then. A question is asked once; a card holder who waits swipes again. A question that waited for a thread longer than
//! the time limit is not asked any more. Signed like events, sent under the same rules for addresses.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crossbeam::channel::{Receiver as Inbox, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Endpoint, EndpointError, Failure, Settings, clock::Clock, transport::Receiver};
use crate::{
    gateway::{CardAsk, Message, ShardId, charge},
    model::{CardNo, CardState, ChargeMode, ChargeSpec, DeviceId, PowerTier, Protocol},
    store::CardVerdict,
    telemetry::{Exposition, MetricSource},
    time::Rfc3339,
};

/// Takes an answer to a shard.
pub type Answered = dyn Fn(ShardId, Message) + Send + Sync;

/// How often an idle thread looks whether it is to stop.
const LOOK_AROUND: Duration = Duration::from_millis(500);

/// Where and how swipes are asked.
#[derive(Clone, Debug)]
pub struct CardSettings {
    /// The third party; its `events` mean nothing here.
    pub endpoint: Endpoint,
    /// For a whole question.
    pub timeout: Duration,
    /// Questions under way, from 1; each has a thread.
    pub concurrency: usize,
    /// Questions that wait behind them, from 1.
    pub waiting_max: usize,
    /// Ask at loopback, link-local, private and similar addresses too.
    pub allow_private_targets: bool,
}

/// Why a question has no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoVerdict {
    /// It waited too long for a thread.
    Waited,
    /// HTTP failed, or the status is not 2xx.
    Http(Failure),
    /// The answer is not one.
    Answer,
}

#[derive(Debug, Default)]
struct Counters {
    answered: AtomicU64,
    waited: AtomicU64,
    bad_answer: AtomicU64,
    failed: [AtomicU64; Failure::LABELS.len()],
}

/// Asks the third party.
pub struct CardDesk {
    questions: Mutex<Option<Sender<CardAsk>>>,
    receiver: Arc<Receiver>,
    counters: Arc<Counters>,
    /// A shard that did not end in time still holds its end of the queue.
    stopping: Arc<AtomicBool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for CardDesk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CardDesk").finish_non_exhaustive()
    }
}

impl CardDesk {
    /// Starts the threads. Answers go to `answer` with the shard that asked; it must not block.
    ///
    /// # Errors
    /// See [`EndpointError`]; nothing runs then.
    pub fn start(settings: &CardSettings, answer: Arc<Answered>) -> Result<Self, EndpointError> {
        let clock = Clock::start();
        let transport = Settings {
            timeout: settings.timeout,
            concurrency: settings.concurrency.max(1),
            allow_private_targets: settings.allow_private_targets,
            ..Settings::default()
        };
        let receiver = Arc::new(Receiver::new(&settings.endpoint, &transport, clock)?);
        let (questions, taken) = bounded(settings.waiting_max.max(1));
        let desk = Self {
            questions: Mutex::new(Some(questions)),
            receiver,
            counters: Arc::default(),
            stopping: Arc::default(),
            threads: Mutex::default(),
        };
        for _ in 0..settings.concurrency.max(1) {
            let clerk = Clerk {
                questions: taken.clone(),
                receiver: Arc::clone(&desk.receiver),
                counters: Arc::clone(&desk.counters),
                answer: Arc::clone(&answer),
                stopping: Arc::clone(&desk.stopping),
                timeout: settings.timeout,
                clock,
            };
            let thread = thread::Builder::new().name("card-webhook".to_owned()).spawn(move || clerk.work());
            match thread {
                Ok(thread) => desk.threads.lock().push(thread),
                Err(error) => {
                    desk.stop();
                    return Err(EndpointError::Thread(error));
                }
            }
        }
        Ok(desk)
    }

    /// Where shards put their questions; `None` after a stop. Full: the card is refused.
    pub fn questions(&self) -> Option<Sender<CardAsk>> {
        self.questions.lock().clone()
    }

    /// Ends the threads: questions that wait are dropped, those under way are cut off.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        drop(self.questions.lock().take());
        self.receiver.shutdown();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                log::error!("a thread that asks for cards had panicked");
            }
        }
    }
}

impl MetricSource for CardDesk {
    fn render(&self, to: &mut Exposition<'_>) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let name = "chargegate_card_questions_total";
        to.family(name, "counter", "Swiped cards a third party was asked for, by what came of it.");
        to.sample(name, &[("result", "answered")], load(&self.counters.answered));
        to.sample(name, &[("result", "waited_too_long")], load(&self.counters.waited));
        to.sample(name, &[("result", "bad_answer")], load(&self.counters.bad_answer));
        for (label, count) in Failure::LABELS.into_iter().zip(&self.counters.failed) {
            to.sample(name, &[("result", label)], load(count));
        }
    }
}

/// One thread.
struct Clerk {
    questions: Inbox<CardAsk>,
    receiver: Arc<Receiver>,
    counters: Arc<Counters>,
    answer: Arc<Answered>,
    stopping: Arc<AtomicBool>,
    timeout: Duration,
    clock: Clock,
}

impl Clerk {
    fn work(&self) {
        while !self.stopping.load(Ordering::Relaxed) {
            let ask = match self.questions.recv_timeout(LOOK_AROUND) {
                Ok(ask) => ask,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let verdict = self.ask(&ask);
            self.count(&ask, &verdict);
            let message = Message::CardAnswer { device_id: ask.device_id, ticket: ask.ticket, verdict: verdict.ok() };
            (self.answer)(ask.shard, message);
        }
    }

    fn ask(&self, ask: &CardAsk) -> Result<CardVerdict, NoVerdict> {
        let waited = self.clock.now().unix_ms.saturating_sub(ask.at);
        if u128::try_from(waited).is_ok_and(|waited| waited >= self.timeout.as_millis()) {
            return Err(NoVerdict::Waited);
        }
        let id = uuid::Uuid::now_v7().to_string();
        let answer = self.receiver.ask(&id, |nonce| encode(ask, &id, nonce)).map_err(NoVerdict::Http)?;
        verdict(&answer, ask.protocol).ok_or(NoVerdict::Answer)
    }

    fn count(&self, ask: &CardAsk, verdict: &Result<CardVerdict, NoVerdict>) {
        let (counter, why) = match verdict {
            Ok(_) => (Some(&self.counters.answered), None),
            Err(NoVerdict::Waited) => (Some(&self.counters.waited), Some("waited_too_long".into())),
            Err(NoVerdict::Answer) => (Some(&self.counters.bad_answer), Some("bad_answer".into())),
            Err(NoVerdict::Http(failure)) => (self.counters.failed.get(failure.label_index()), Some(failure.reason())),
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(why) = why {
            log::warn!(
                target: "chargegate::card", device_id:% = ask.device_id, card_no:% = ask.card_no, reason:% = why;
                "a card is refused: the third party gave no verdict"
            );
        }
    }
}

#[derive(Serialize)]
struct Question<'a> {
    question_id: &'a str,
    card_no: &'a CardNo,
    printed_no: Option<String>,
    device_id: DeviceId,
    protocol: Protocol,
    port_no: Option<u16>,
    business_no: Option<u16>,
    swiped_at: Rfc3339,
    nonce: &'a str,
}

fn encode(ask: &CardAsk, id: &str, nonce: &str) -> Option<Vec<u8>> {
    let question = Question {
        question_id: id,
        card_no: &ask.card_no,
        printed_no: ask.card_no.printed_no(),
        device_id: ask.device_id,
        protocol: ask.protocol,
        port_no: ask.port_no,
        business_no: ask.business_no,
        swiped_at: Rfc3339(ask.at),
        nonce,
    };
    serde_json::to_vec(&question).ok()
}

/// Fields that are not known are left alone: the third party's answer may say more than is needed.
#[derive(Deserialize)]
struct Answer {
    account_state: Option<u8>,
    allow: Option<bool>,
    balance_cent: Option<u32>,
    spec: Option<Spec>,
}

#[derive(Deserialize)]
struct Spec {
    mode: String,
    duration_minutes: Option<u16>,
    energy_wh: Option<u32>,
    paid_cent: Option<u32>,
    tiers: Option<Vec<PowerTier>>,
    stop_when_full: Option<bool>,
}

/// What an answer says; `None`: it contradicts itself, or the device cannot do it.
fn verdict(answer: &[u8], protocol: Protocol) -> Option<CardVerdict> {
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    let state = match (answer.account_state, answer.allow) {
        (Some(code), allow) => {
            let state = CardState::from_code(code)?;
            if allow.is_some_and(|allow| allow != (state == CardState::NORMAL)) {
                return None;
            }
            state
        }
        (None, Some(true)) => CardState::NORMAL,
        (None, Some(false)) => CardState::NOT_REGISTERED,
        (None, None) => return None,
    };
    let spec = match answer.spec {
        Some(spec) => Some(spec.read(protocol)?),
        None => None,
    };
    Some(CardVerdict { state, balance_cent: answer.balance_cent.unwrap_or(0), spec })
}

impl Spec {
    fn read(self, protocol: Protocol) -> Option<ChargeSpec> {
        let mode = match self.mode.as_str() {
            "full" => ChargeMode::Full,
            "time" => ChargeMode::Time { minutes: self.duration_minutes? },
            "energy" => ChargeMode::Energy { wh: self.energy_wh? },
            // What a swipe of BKV and GN is answered with has no other modes.
            "power" => ChargeMode::Power { tiers: self.tiers? },
            _ => return None,
        };
        let stop_when_full = self.stop_when_full.unwrap_or(protocol == Protocol::Ap3000);
        let spec = ChargeSpec { mode, paid_cent: self.paid_cent, stop_when_full };
        charge::check(&spec, protocol).is_ok().then_some(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(answer: &str) -> Option<(u8, u32, Option<ChargeSpec>)> {
        verdict(answer.as_bytes(), Protocol::Ap3000).map(|found| (found.state.code(), found.balance_cent, found.spec))
    }

    #[test]
    fn answers_are_taken_or_refused_whole() {
        for (answer, expected) in [
            (r#"{"allow":true}"#, Some((0, 0, None))),
            (r#"{"allow":false,"balance_cent":7,"why":"late"}"#, Some((1, 7, None))),
            (r#"{"account_state":0,"allow":true}"#, Some((0, 0, None))),
            (r#"{"account_state":18}"#, Some((18, 0, None))),
            (r#"{"account_state":19}"#, None),
            (r#"{"account_state":6,"allow":true}"#, None),
            (r#"{"account_state":0,"allow":false}"#, None),
            (r#"{"balance_cent":7}"#, None),
            (r#"{"allow":true,"balance_cent":-1}"#, None),
            (r#"{"allow":true,"balance_cent":4294967296}"#, None),
            (r#"{"allow":"yes"}"#, None),
            ("[]", None),
            ("", None),
        ] {
            assert_eq!(read(answer), expected, "{answer}");
        }
    }

    #[test]
    fn what_may_be_charged_keeps_the_protocols_limits() {
        let spec = |protocol, spec: &str| {
            let answer = format!(r#"{{"allow":true,"spec":{spec}}}"#);
            verdict(answer.as_bytes(), protocol).and_then(|found| found.spec)
        };
        let found = spec(Protocol::Ap3000, r#"{"mode":"time","duration_minutes":60,"paid_cent":5}"#).unwrap();
        assert_eq!(found.mode, ChargeMode::Time { minutes: 60 });
        assert_eq!((found.paid_cent, found.stop_when_full), (Some(5), true));
        let tiers = r#"{"mode":"power","paid_cent":9,"tiers":[{"power_dw":2000,"price_cent":25,"minutes":60}]}"#;
        assert!(spec(Protocol::Bkv, tiers).is_some_and(|spec| !spec.stop_when_full));
        for (protocol, refused) in [
            (Protocol::Ap3000, r#"{"mode":"time"}"#),
            (Protocol::Ap3000, r#"{"mode":"time","duration_minutes":1093}"#),
            (Protocol::Ap3000, r#"{"mode":"energy","energy_wh":15}"#),
            (Protocol::Ap3000, tiers),
            (Protocol::Bkv, r#"{"mode":"full"}"#),
            (Protocol::Bkv, r#"{"mode":"service_fee"}"#),
            (Protocol::Bkv, r#"{"mode":"time","duration_minutes":9,"stop_when_full":true}"#),
        ] {
            assert_eq!(spec(protocol, refused), None, "{refused}");
        }
    }

    #[test]
    fn a_question_names_card_and_port() {
        let ask = CardAsk {
            shard: ShardId(0),
            ticket: 1,
            device_id: "40aace04".parse().unwrap(),
            protocol: Protocol::Ap3000,
            card_no: CardNo::from_uid([0x7A, 0x8D, 0x05, 0xDD]),
            port_no: Some(2),
            business_no: None,
            at: 1_709_210_096_007,
        };
        assert_eq!(
            String::from_utf8(encode(&ask, "q", "n").unwrap()).unwrap(),
            concat!(
                r#"{"question_id":"q","card_no":"7a8d05dd","printed_no":"2056062429","device_id":"40aace04","#,
                r#""protocol":"ap3000","port_no":2,"business_no":null,"swiped_at":"2024-02-29T12:34:56.007Z","nonce":"n"}"#
            )
        );
    }
}
