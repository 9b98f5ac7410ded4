//! `chargegate-sim scenario` against a small server that answers, stalls or answers wrongly, as a test wants.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use chargegate::protocol::Step;
use chargegate::protocol::ap3000::{Item, Magics, deframe, encode};
use serde_json::Value;

/// What is wrong with the server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// Behind the tenth heartbeat of a connection nothing is read or answered for so long.
    Stalls(Duration),
    /// Heartbeats are answered under another message id.
    WrongNumber,
    /// No heartbeat is answered.
    Deaf,
}

fn serve(flaw: Flaw) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || answer(stream.unwrap(), flaw));
        }
    });
    address
}

fn answer(mut stream: TcpStream, flaw: Flaw) {
    let (mut chunk, mut buffer, mut out, mut beats) = ([0; 4096], Vec::new(), Vec::new(), 0);
    // The peer may go at any time.
    while let Ok(len @ 1..) = stream.read(&mut chunk) {
        buffer.extend_from_slice(&chunk[..len]);
        let mut at = 0;
        while let Step::Item { item, consumed } = deframe(&buffer[at..], &Magics::default()) {
            at += consumed;
            let Item::Frame(frame) = item else { continue };
            let mut header = frame.header();
            match frame.command {
                0x22 => encode::time_reply(&mut out, &header, 0x22, 1_700_000_000),
                0x21 => {
                    beats += 1;
                    match flaw {
                        Flaw::Stalls(time) if beats == 10 => thread::sleep(time),
                        Flaw::WrongNumber => header.msg_id = header.msg_id.wrapping_add(1000),
                        Flaw::None | Flaw::Stalls(_) | Flaw::Deaf => {}
                    }
                    if flaw != Flaw::Deaf {
                        encode::result_reply(&mut out, &header, 0x21, 0);
                    }
                }
                command => encode::result_reply(&mut out, &header, command, 0),
            }
        }
        buffer.drain(..at);
        if stream.write_all(&out).is_err() {
            return;
        }
        out.clear();
    }
}

const SCENARIO: &str = "
name = 'beats'
about = 'Devices <beat> & nothing else.'
late_max = '10s'
thresholds = ['bound == 20', 'lost == 0', 'mismatched == 0', 'beat/heartbeat.count > 100']
[fleet]
devices = 20
ap3000_percent = 100
heartbeat = '200ms'
[[phase]]
name = 'connect'
duration = '1s'
warm_up = true
connect = { devices = 20, per_s = 100 }
[[phase]]
name = 'beat'
duration = '4s'
";

struct Run {
    output: Output,
    report: Value,
    page: String,
}

impl Run {
    fn code(&self) -> Option<i32> {
        self.output.status.code()
    }

    fn text(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.output.stdout), String::from_utf8_lossy(&self.output.stderr))
    }
}

fn run(directory: &Path, flaw: Flaw, arguments: &[&str]) -> Run {
    let file = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    std::fs::write(file("scenario.toml"), SCENARIO).unwrap();
    let address = serve(flaw).to_string();
    let (json, html) = (file("report.json"), file("report.html"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_chargegate-sim"));
    command.args(["scenario", &file("scenario.toml"), "--connect", &address, "--json", &json, "--html", &html]);
    let output = command.args(arguments).output().unwrap();
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    Run { output, report: serde_json::from_str(&read(&json)).unwrap_or_default(), page: read(&html) }
}

#[test]
fn a_good_run_passes_and_says_so_everywhere() {
    let directory = tempfile::tempdir().unwrap();
    let run = run(directory.path(), Flaw::None, &[]);
    assert_eq!(run.code(), Some(0), "{}", run.text());
    assert_eq!(run.report["result"], "passed");
    assert_eq!(run.report["correctness"]["lost"], 0);
    assert!(run.text().contains("passed") && run.text().contains("bound 20"), "{}", run.text());
    // The page says what the JSON says, and nothing in it is markup that was text.
    for threshold in run.report["thresholds"].as_array().unwrap() {
        assert_eq!(threshold["passed"], true, "{threshold}");
        let text = threshold["threshold"].as_str().unwrap().replace('>', "&gt;");
        assert!(run.page.contains(&text), "{text}");
    }
    assert!(run.page.contains("Devices &lt;beat&gt; &amp; nothing else."));
    for outside in ["<script", "http://", "https://", "@import", "url("] {
        assert!(!run.page.contains(outside), "{outside}");
    }
    let seconds = run.report["series"]["second"].as_array().unwrap().len();
    assert_eq!(run.report["series"]["bound"].as_array().unwrap().len(), seconds);
    assert!(seconds >= 5, "{seconds}");
}

#[test]
fn processes_add_up() {
    let directory = tempfile::tempdir().unwrap();
    let run = run(directory.path(), Flaw::None, &["--processes", "3"]);
    assert_eq!(run.code(), Some(0), "{}", run.text());
    assert_eq!((&run.report["processes"], &run.report["figures"]["bound"]), (&Value::from(3), &Value::from(20.0)));
    let latency = &run.report["figures"];
    assert!(latency["heartbeat.count"].as_f64().unwrap() > 100.0, "{latency}");
}

#[test]
fn a_threshold_that_does_not_hold_is_exit_status_1() {
    let directory = tempfile::tempdir().unwrap();
    let run = run(directory.path(), Flaw::None, &["--set", "thresholds=['connected > 1000', 'lost == 0']"]);
    assert_eq!(run.code(), Some(1), "{}", run.text());
    assert_eq!(run.report["result"], "failed");
    assert_eq!(run.report["reasons"].as_array().unwrap().len(), 1, "{}", run.report["reasons"]);
    assert!(run.page.contains("connected &gt; 1000: it is 20"));
}

#[test]
fn a_late_generator_is_exit_status_3() {
    let directory = tempfile::tempdir().unwrap();
    let run = run(directory.path(), Flaw::None, &["--set", "late_max=0ms"]);
    assert_eq!(run.code(), Some(3), "{}", run.text());
    assert_eq!((&run.report["result"], &run.report["generator"]["in_time"]), (&"invalid".into(), &false.into()));
}

#[test]
fn wrong_answers_and_none_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let wrong = run(directory.path(), Flaw::WrongNumber, &[]);
    assert_eq!(wrong.code(), Some(1), "{}", wrong.text());
    assert!(wrong.report["correctness"]["mismatched"].as_i64().unwrap() > 100);
    let remarks = wrong.report["correctness"]["remarks"].to_string();
    assert!(remarks.contains("WrongNumber"), "{remarks}");
    let deaf = run(directory.path(), Flaw::Deaf, &[]);
    assert_eq!(deaf.code(), Some(1), "{}", deaf.text());
    assert!(deaf.report["correctness"]["lost"].as_i64().unwrap() > 100, "{}", deaf.report["correctness"]);
}

/// While the server stalls for three seconds, fifteen heartbeats of each device are due. Each of them waits for what is left of the
/// stall; a generator that waited for the answer would have sent one, and nobody would see the others.
#[test]
fn the_wait_of_a_stalled_server_counts_for_every_heartbeat_that_was_due() {
    let directory = tempfile::tempdir().unwrap();
    let stall = Flaw::Stalls(Duration::from_secs(3));
    // Of 40 heartbeats of each device 10 waited longer than one second, whatever the machine does.
    let run =
        run(directory.path(), stall, &["--set", "beat.duration=8s", "--set", "thresholds=['heartbeat.p90_ms < 1000']"]);
    assert_eq!(run.code(), Some(1), "{}", run.text());
    let heartbeat = |property: &str| run.report["figures"][format!("heartbeat.{property}")].as_f64().unwrap();
    assert!(heartbeat("max_ms") >= 2_500.0 && heartbeat("p90_ms") >= 1_000.0, "{}", run.text());
    assert_eq!(run.report["correctness"]["lost"], 0, "late, not lost: {}", run.text());
}

#[test]
fn a_scenario_that_is_not_sound_is_exit_status_2() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad.toml");
    let check = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_chargegate-sim"));
        let output = command.args(["scenario", "--check", path.to_str().unwrap()]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(check(SCENARIO), (Some(0), String::new()));
    let (code, error) = check(&SCENARIO.replace("heartbeat = ", "hartbeat = "));
    assert!(code == Some(2) && error.contains("hartbeat"), "{error}");
    let (code, error) = check(&SCENARIO.replace("duration = '4s'", "duration = '4'"));
    assert!(code == Some(2) && error.contains("duration"), "{error}");
}
