//! A nonce counts once and a rate holds at all instances together; without Redis, replays do not pass.
//!
//! Two authenticators with a link each stand for two instances; two APIs show that requests go on when the answer is there.

mod api;
mod services;

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use chargegate::api::auth::{Attempt, Authenticator};
use chargegate::api::error::ErrorCode;
use chargegate::cluster::{Guards, Link, link::LinkSettings};
use chargegate::config::{ApiKey, Scope, Secret};
use chargegate::model::Protocol;
use chargegate::signature::SignedRequest;
use serde_json::json;
use services::{Persistence, Redis};
use sha2::{Digest, Sha256};

/// Only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);
const NOW_MS: i64 = 1_700_000_000_000;
const NOW_S: &str = "1700000000";
const WINDOW: Duration = Duration::from_secs(300);
const TARGET: &str = "/api/v1/third/orders";

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = now() + PATIENCE;
    while !holds() {
        assert!(now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

struct Instance {
    auth: Authenticator,
    link: Arc<Link>,
}

impl Instance {
    fn start(url: &str, rate_per_s: u32) -> Self {
        let settings = LinkSettings { ping_interval: Duration::from_millis(100), ..LinkSettings::new(url) };
        let link = Link::open(settings).unwrap();
        let key = |name: &str, require_hmac| ApiKey {
            name: name.to_owned(),
            key_sha256: Sha256::digest(name).into(),
            scopes: [Scope::Read].into_iter().collect(),
            require_hmac,
            hmac_secret: Some(Secret::new("s3cret")),
            ip_allow: Vec::new(),
            rate_per_s,
            burst: 0,
        };
        let keys = vec![key("signing", true), key("other", true), key("limited", false)];
        let auth = Authenticator::new(keys, WINDOW).with_shared(Arc::new(Guards::new(Arc::clone(&link))));
        Self { auth, link }
    }

    fn attempt(&self, attempt: &Attempt<'_>, unix_ms: i64) -> Result<(), ErrorCode> {
        let passed = self.auth.check(attempt, Scope::Read, unix_ms).outcome.map_err(|error| error.code)?;
        let question = passed.expect("both kinds of keys ask");
        let (tell, told) = mpsc::channel();
        self.auth.ask(question, Box::new(move |answer| tell.send(answer).unwrap_or_default()));
        told.recv_timeout(PATIENCE).expect("an answer").outcome.map_err(|error| error.code)
    }

    fn signed(&self, key: &str, nonce: &str) -> Result<(), ErrorCode> {
        self.signed_at(key, nonce, 0)
    }

    /// A signed request that comes so many seconds after its timestamp.
    fn signed_at(&self, key: &str, nonce: &str, seconds: i64) -> Result<(), ErrorCode> {
        let signed = SignedRequest { method: "GET", path: TARGET, timestamp: NOW_S, nonce, body: b"" };
        let signature = signed.sign("s3cret");
        let attempt = Attempt { timestamp: Some(NOW_S), nonce: Some(nonce), signature: Some(&signature), ..plain(key) };
        self.attempt(&attempt, NOW_MS + seconds * 1_000)
    }
}

fn plain(key: &str) -> Attempt<'_> {
    Attempt {
        method: "GET",
        target: TARGET,
        body: b"",
        body_sha256: None,
        client_ip: "192.0.2.7".parse().unwrap(),
        api_key: Some(key),
        timestamp: None,
        nonce: None,
        signature: None,
    }
}

#[test]
fn a_nonce_counts_once_at_all_instances() {
    let url = services::redis().database();
    let (one, two) = (Instance::start(&url, 0), Instance::start(&url, 0));
    assert_eq!(one.signed("signing", "n"), Ok(()));
    assert_eq!(two.signed("signing", "n"), Err(ErrorCode::Unauthorized));
    assert_eq!(one.signed("signing", "n"), Err(ErrorCode::Unauthorized));
    assert_eq!(two.signed("other", "n"), Ok(()), "another key's nonce is another");
    assert_eq!(two.signed("signing", "m"), Ok(()));
}

#[test]
fn of_many_at_once_one_passes() {
    let url = services::redis().database();
    let instances: Vec<Instance> = (0..4).map(|_| Instance::start(&url, 0)).collect();
    for round in 0..25 {
        let nonce = format!("n{round}");
        let passed = thread::scope(|scope| {
            let tries: Vec<_> =
                instances.iter().map(|instance| scope.spawn(|| instance.signed("signing", &nonce))).collect();
            tries.into_iter().map(|tried| tried.join().unwrap()).filter(Result::is_ok).count()
        });
        assert_eq!(passed, 1, "round {round}");
    }
}

#[test]
fn a_rate_holds_for_all_instances_together() {
    const RATE: u32 = 40;
    let redis = Redis::start(Persistence::None);
    let (one, two) = (Instance::start(&redis.url(), RATE), Instance::start(&redis.url(), RATE));
    // Each instance alone would let a hundred through: its own clock goes on by a second with each request.
    let began = now();
    let (mut passed, mut refused) = (0_u64, 0);
    for second in 0..100 {
        for instance in [&one, &two] {
            match instance.attempt(&plain("limited"), NOW_MS + second * 1_000) {
                Ok(()) => passed += 1,
                Err(code) => {
                    assert_eq!(code, ErrorCode::RateLimited);
                    refused += 1;
                }
            }
        }
    }
    // What was refilled meanwhile is more, the slower this machine is.
    let refilled = u64::try_from(now().duration_since(began).as_millis()).unwrap() * u64::from(RATE) / 1_000 + 1;
    assert!(passed >= u64::from(RATE), "{passed} passed");
    assert!(passed <= u64::from(RATE) + refilled, "{passed} passed, {refilled} were refilled");
    assert_eq!(passed + refused, 200);
    // The bucket fills again.
    eventually("a request passes", || one.attempt(&plain("limited"), NOW_MS + 200_000).is_ok());
}

#[test]
fn a_request_above_the_rate_does_not_use_its_nonce_up() {
    let url = services::redis().database();
    let (one, two) = (Instance::start(&url, 1), Instance::start(&url, 1));
    // The instances' own clocks go on by a second with each request, so that only the shared bucket refuses any.
    let mut seconds = 0;
    let mut next = || {
        seconds += 1;
        seconds % 300
    };
    let refused = (0..100).map(|number| format!("n{number}")).find(|nonce| {
        let at = next();
        one.signed_at("signing", &format!("first-{nonce}"), at).unwrap_or_default();
        two.signed_at("signing", nonce, at) == Err(ErrorCode::RateLimited)
    });
    let nonce = refused.expect("of two at once, one is above the rate");
    eventually("it passes", || two.signed_at("signing", &nonce, next()) == Ok(()));
    eventually("but not twice", || one.signed_at("signing", &nonce, next()) == Err(ErrorCode::Unauthorized));
}

#[test]
fn without_redis_signed_requests_wait_and_rates_are_each_instances_own() {
    let mut redis = Redis::start(Persistence::None);
    let (one, two) = (Instance::start(&redis.url(), 3), Instance::start(&redis.url(), 3));
    redis.pause();
    assert_eq!(one.signed("signing", "n"), Err(ErrorCode::NotReady), "it hangs");
    redis.resume();
    eventually("Redis is back", || one.link.is_up() && two.link.is_up());
    redis.kill9();
    assert_eq!(one.signed("signing", "m"), Err(ErrorCode::NotReady), "it is gone");
    eventually("the link notices", || !one.link.is_up() && !two.link.is_up());
    for instance in [&one, &two] {
        let passed = (0..10).filter(|_| instance.attempt(&plain("limited"), NOW_MS + 50_000).is_ok()).count();
        assert_eq!(passed, 3);
    }
    redis.restart();
    assert!(one.link.wait_up(PATIENCE) && two.link.wait_up(PATIENCE));
    assert_eq!(two.signed("signing", "m"), Ok(()), "the refused request may come again");
    assert_eq!(one.signed("signing", "m"), Err(ErrorCode::Unauthorized));
}

#[test]
fn an_emptied_redis_is_told_again_of_the_nonces_in_use() {
    let mut redis = Redis::start(Persistence::None);
    let (one, two) = (Arc::new(Instance::start(&redis.url(), 0)), Instance::start(&redis.url(), 0));
    for number in 0..3_000 {
        assert_eq!(one.signed("signing", &format!("n{number}")), Ok(()));
    }
    let (tell, told) = mpsc::channel();
    let restoring = Arc::clone(&one);
    one.link.on_back(move |back| {
        assert!(back.emptied);
        restoring.auth.restore_shared(NOW_MS);
        tell.send(()).unwrap_or_default();
    });
    redis.restart_empty();
    told.recv_timeout(PATIENCE).expect("it is told");
    let keys = || -> usize {
        let keys: redis::RedisResult<Vec<String>> = redis::cmd("KEYS").arg("nonce:*").query(&mut redis.client());
        keys.map_or(0, |keys| keys.len())
    };
    eventually("all are back", || keys() == 3_000);
    assert!(two.link.wait_up(PATIENCE));
    for number in [0, 1_500, 2_999] {
        assert_eq!(two.signed("signing", &format!("n{number}")), Err(ErrorCode::Unauthorized));
    }
}

#[test]
fn requests_go_on_when_the_others_have_answered() {
    const ROUTES: [(&str, &str); 3] = [("GET", "/orders"), ("GET", "/devices/40aace04/status"), ("GET", "/cards")];
    let mut redis = Redis::start(Persistence::None);
    let rig = |redis: &Redis| {
        let link = Link::open(LinkSettings::new(redis.url())).unwrap();
        let keys = [
            ApiKey { rate_per_s: 1_000, ..api::key("limited", [Scope::Read, Scope::Control]) },
            ApiKey { rate_per_s: 1, ..api::key("slow", [Scope::Read]) },
        ];
        let rig = api::Rig::beside(keys, Some(Arc::new(Guards::new(Arc::clone(&link)))), |_| None);
        let epoch = rig.bind("40aace04".parse().unwrap(), Protocol::Ap3000, None).epoch;
        rig.entry("40aace04".parse().unwrap(), Protocol::Ap3000, epoch);
        (rig, link)
    };
    let ((one, link), (two, _)) = (rig(&redis), rig(&redis));
    let send = |rig: &api::Rig, (method, path): (&str, &str), key| {
        rig.send(method, &format!("/api/v1/third{path}"), Some(key), None)
    };
    for route in ROUTES {
        send(&one, route, "key-limited").data(200);
        send(&one, route, "key-all").data(200);
    }
    let firsts = ["a", "a", "b"].map(|once| {
        let card = json!({"card_no": "2056062429"});
        one.send_once("/api/v1/third/cards", "key-limited", once, Some(&card)).status
    });
    assert_eq!(firsts, [201, 201, 409], "idempotency keys are seen to afterwards");
    // The key's one request of this second is taken by whoever is first; the status comes from memory for other keys.
    let refused = (0..200).map(|_| [send(&one, ROUTES[1], "key-slow"), send(&two, ROUTES[1], "key-slow")]);
    let mut refused = refused.flatten().filter(|answer| answer.status != 200);
    refused.next().expect("above the rate").error(429, "RATE_LIMITED");
    redis.kill9();
    eventually("the link notices", || !link.is_up());
    for route in ROUTES {
        send(&one, route, "key-limited").data(200);
    }
}
