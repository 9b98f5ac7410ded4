//! A swiped card whose account a third party keeps: what is asked, what an answer does, and that no answer is one too.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use chargegate::{
    gateway::{CardAsk, Message, ShardId},
    model::{CardNo, CardState, ChargeMode, Protocol},
    signature::{SignedRequest, verify_standard_webhooks},
    store::CardVerdict,
    telemetry::Metrics,
    webhook::{CardDesk, CardSettings, Endpoint},
};

/// Nothing in a test takes this long.
const PATIENCE: Duration = Duration::from_secs(30);
const SECRET: &str = "card-secret";

/// What the third party was asked.
#[derive(Debug)]
struct Question {
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Question {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(given, _)| given == name).map_or("", |(_, value)| value)
    }
}

/// A third party that answers each question with the next of `answers`; `None`: it says nothing.
fn third_party(answers: Vec<Option<(u16, &'static str)>>) -> (String, mpsc::Receiver<Question>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/cards/ask?site=1", listener.local_addr().unwrap());
    let (told, asked) = mpsc::channel();
    thread::spawn(move || {
        let mut silent: Vec<TcpStream> = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let mut headers = Vec::new();
            loop {
                let mut header = String::new();
                reader.read_line(&mut header).unwrap();
                let Some((name, value)) = header.trim_end().split_once(": ") else { break };
                headers.push((name.to_ascii_lowercase(), value.to_owned()));
            }
            let length = headers.iter().find(|(name, _)| name == "content-length").unwrap().1.parse().unwrap();
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            told.send(Question { line: line.trim_end().to_owned(), headers, body }).unwrap();
            match answer {
                Some((status, body)) => {
                    let length = body.len();
                    let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
                    stream.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice()).unwrap();
                }
                // Open to the end of the test, and silent.
                None => silent.push(stream),
            }
        }
        Box::leak(Box::new(silent));
    });
    (url, asked)
}

fn settings(url: String) -> CardSettings {
    let endpoint =
        Endpoint { name: "cards".into(), url, secrets: vec![SECRET.into()], api_key: None, events: Vec::new() };
    CardSettings { endpoint, timeout: PATIENCE, concurrency: 1, waiting_max: 2, allow_private_targets: true }
}

struct Rig {
    desk: Arc<CardDesk>,
    answers: mpsc::Receiver<(u64, Option<CardVerdict>)>,
}

impl Rig {
    fn new(settings: &CardSettings) -> Self {
        let (told, answers) = mpsc::channel();
        let answer = move |shard: ShardId, message: Message| {
            assert_eq!(shard, ShardId(3));
            let Message::CardAnswer { ticket, verdict, .. } = message else { panic!("{message:?}") };
            told.send((ticket, verdict)).ok();
        };
        Self { desk: Arc::new(CardDesk::start(settings, Arc::new(answer)).unwrap()), answers }
    }

    fn ask(&self, ticket: u64) {
        self.desk.questions().unwrap().try_send(ask(ticket)).expect("there is room");
    }

    fn answer(&self) -> (u64, Option<CardVerdict>) {
        self.answers.recv_timeout(PATIENCE).expect("every question is answered")
    }

    fn counted(&self, result: &str) -> bool {
        let metrics = Metrics::new(1);
        metrics.join(&self.desk);
        let mut text = String::new();
        metrics.render(&mut text);
        text.contains(&format!("chargegate_card_questions_total{{result=\"{result}\"}} 1\n"))
    }
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn unix_ms() -> i64 {
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(unix.as_millis()).unwrap()
}

fn ask(ticket: u64) -> CardAsk {
    CardAsk {
        shard: ShardId(3),
        ticket,
        device_id: "40aace04".parse().unwrap(),
        protocol: Protocol::Ap3000,
        card_no: CardNo::from_uid([0x7A, 0x8D, 0x05, 0xDD]),
        port_no: Some(2),
        business_no: None,
        at: unix_ms(),
    }
}

#[test]
fn a_question_is_signed_both_ways_and_its_answer_taken() {
    let answer = r#"{"account_state":0,"balance_cent":880,"spec":{"mode":"time","duration_minutes":90},"note":"x"}"#;
    let (url, asked) = third_party(vec![Some((200, answer))]);
    let rig = Rig::new(&settings(url));
    rig.ask(7);
    let question = asked.recv_timeout(PATIENCE).unwrap();
    assert_eq!(question.line, "POST /cards/ask?site=1 HTTP/1.1");
    let body: serde_json::Value = serde_json::from_slice(&question.body).unwrap();
    assert_eq!(
        (&body["card_no"], &body["device_id"], &body["port_no"]),
        (&"7a8d05dd".into(), &"40aace04".into(), &2.into())
    );
    assert_eq!(body["nonce"], question.header("x-nonce"));
    let signed = SignedRequest {
        method: "POST",
        path: "/cards/ask?site=1",
        timestamp: question.header("x-timestamp"),
        nonce: question.header("x-nonce"),
        body: &question.body,
    };
    assert!(signed.verify(SECRET, question.header("x-signature")));
    let (id, timestamp) = (question.header("webhook-id"), question.header("webhook-timestamp").parse().unwrap());
    assert_eq!(body["question_id"], id);
    assert!(verify_standard_webhooks(SECRET, id, timestamp, &question.body, question.header("webhook-signature")));
    let (ticket, verdict) = rig.answer();
    let verdict = verdict.unwrap();
    assert_eq!((ticket, verdict.state, verdict.balance_cent), (7, CardState::NORMAL, 880));
    assert_eq!(verdict.spec.unwrap().mode, ChargeMode::Time { minutes: 90 });
    assert!(rig.counted("answered"));
    rig.desk.stop();
}

#[test]
fn whatever_is_no_verdict_refuses_the_card() {
    let long: &'static str = Box::leak(format!(r#"{{"allow":true,"note":"{}"}}"#, "x".repeat(70_000)).into_boxed_str());
    let answers = vec![Some((500, "{}")), Some((302, "{}")), Some((200, "no")), Some((200, long))];
    let (url, asked) = third_party(answers);
    let rig = Rig::new(&settings(url));
    for (ticket, reason) in (1..).zip(["http_5xx", "http_3xx"]) {
        rig.ask(ticket);
        assert_eq!(rig.answer(), (ticket, None));
        assert!(rig.counted(reason), "{reason}");
    }
    rig.ask(3);
    assert_eq!(rig.answer(), (3, None));
    assert!(rig.counted("bad_answer"));
    // Cut at its longest: no JSON any more.
    rig.ask(4);
    assert_eq!(rig.answer(), (4, None));
    assert_eq!(asked.try_iter().count(), 4);
    // What waited as long as an answer may take is not asked any more.
    let old = CardAsk { at: unix_ms() - i64::try_from(PATIENCE.as_millis()).unwrap(), ..ask(5) };
    rig.desk.questions().unwrap().try_send(old).unwrap();
    assert_eq!(rig.answer(), (5, None));
    assert!(rig.counted("waited_too_long"));
    rig.desk.stop();
}

#[test]
fn silence_refuses_the_card() {
    let (url, _asked) = third_party(vec![None]);
    let rig = Rig::new(&CardSettings { timeout: Duration::from_millis(300), ..settings(url) });
    // However late the thread comes to it: it has not waited.
    let new = CardAsk { at: unix_ms() + 600_000, ..ask(1) };
    rig.desk.questions().unwrap().try_send(new).unwrap();
    assert_eq!(rig.answer(), (1, None));
    assert!(rig.counted("timeout"));
    rig.desk.stop();
}

#[test]
fn private_addresses_are_not_asked_unless_allowed() {
    let (url, asked) = third_party(vec![Some((200, r#"{"allow":true}"#))]);
    let rig = Rig::new(&CardSettings { allow_private_targets: false, ..settings(url) });
    rig.ask(1);
    assert_eq!(rig.answer(), (1, None));
    assert!(rig.counted("target_refused"));
    assert_eq!(asked.try_iter().count(), 0);
    rig.desk.stop();
}

#[test]
fn the_queue_is_bounded_and_a_stop_cuts_what_hangs() {
    let (url, asked) = third_party(vec![None]);
    let rig = Rig::new(&settings(url));
    rig.ask(1);
    asked.recv_timeout(PATIENCE).unwrap();
    // One hangs, two wait, the next finds no room: the shard refuses that card at once.
    let questions = rig.desk.questions().unwrap();
    assert!(questions.try_send(ask(2)).is_ok() && questions.try_send(ask(3)).is_ok());
    assert!(questions.try_send(ask(4)).is_err());
    drop(questions);
    rig.desk.stop();
    assert!(rig.desk.questions().is_none());
}
