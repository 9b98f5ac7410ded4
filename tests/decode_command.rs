//! `chargegate decode` over every record of `testdata/vectors`, run as the real binary.

use std::fs;
use std::io::{self, Write};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// Replies that look exactly like their request; without `--direction` they are taken for it.
const LOOK_LIKE_REQUESTS: [&str; 5] = ["0x72", "0x8D", "0x8F", "0x96", "0x97"];

/// Runs `chargegate decode` in an empty directory without inherited settings.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chargegate"));
    command.env_clear().arg("decode").args(arguments);
    command
}

fn decode(arguments: &[&str]) -> Output {
    let dir = TempDir::new().unwrap();
    command(arguments).current_dir(&dir).output().unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(parse).collect()
}

fn parse(line: &[u8]) -> Value {
    serde_json::from_slice(line).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(line)))
}

fn vectors(protocol: &str) -> Vec<Value> {
    let path = format!("{}/testdata/vectors/{protocol}.jsonl", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(path).unwrap().lines().map(|line| parse(line.as_bytes())).collect()
}

fn hex(vector: &Value) -> &str {
    vector["hex"].as_str().unwrap()
}

/// Every byte belongs to exactly one item, in order.
fn assert_covers(items: &[Value], hex: &str) {
    let shown: String = items.iter().map(|item| item["hex"].as_str().unwrap()).collect();
    assert_eq!(shown, hex.to_ascii_lowercase());
}

#[test]
fn ap3000_vectors() {
    let vectors = vectors("ap3000");
    let mut guessed_wrong = 0;
    for vector in vectors.iter().filter(|vector| vector["kind"] == "frame") {
        let name = &vector["name"];
        let direction = vector["direction"].as_str().unwrap();
        for (given, arguments) in
            [(false, &["--json", hex(vector)][..]), (true, &["--json", "--direction", direction, hex(vector)][..])]
        {
            let items = lines(&decode(arguments));
            let [item] = &items[..] else { panic!("{name}: {items:?}") };
            assert_eq!((&item["item"], &item["protocol"]), (&"frame".into(), &"ap3000".into()), "{name}");
            assert_eq!(item["checksum_ok"], true, "{name}");
            assert_eq!(item["cmd"], vector["cmd"], "{name}");
            assert_eq!(item["msg_id"], vector["msg_id"], "{name}");
            assert_eq!(item["phy_id"], vector["phy_id_hex"], "{name}");
            assert_eq!(item["hex"], vector["hex"], "{name}");
            if !given && item["direction"] != direction {
                let cmd = item["cmd"].as_str().unwrap();
                assert!(direction == "up" && LOOK_LIKE_REQUESTS.contains(&cmd), "{name} is taken for the other way");
                guessed_wrong += 1;
                continue;
            }
            assert_eq!(item["direction"], direction, "{name}");
            assert_eq!(item["fields"], vector["fields"], "{name}");
            assert_eq!(item.get("error"), None, "{name}");
        }
    }
    assert!(guessed_wrong <= 6, "{guessed_wrong} vectors are taken for the other way");
}

#[test]
fn ap3000_items_between_frames() {
    let vectors = vectors("ap3000");
    let mut walked = 0;
    for vector in vectors.iter().filter(|vector| vector["kind"] == "raw") {
        let items = lines(&decode(&["--json", hex(vector)]));
        assert_covers(&items, hex(vector));
        let Some(segments) = vector["fields"]["segments"].as_array() else {
            let [item] = &items[..] else { panic!("{items:?}") };
            assert_eq!((&item["direction"], &item["fields"]), (&vector["direction"], &vector["fields"]));
            walked += 1;
            continue;
        };
        assert_eq!(items.len(), segments.len());
        for (item, segment) in items.iter().zip(segments) {
            assert_eq!(item["item"], segment["type"]);
            if let Some(frame) = vectors.iter().find(|vector| vector["name"] == segment["vector"]) {
                assert_eq!(item["fields"], frame["fields"]);
            }
            walked += 1;
        }
    }
    assert!(walked >= 8, "only {walked} items");
}

#[test]
fn bkv_vectors() {
    let vectors = vectors("bkv");
    let mut expected = Vec::new();
    for vector in &vectors {
        let name = &vector["name"];
        let output = decode(&["--json", hex(vector)]);
        let expect = vector["expect"].as_str().unwrap();
        expected.push(expect);
        if expect == "not_hex" {
            assert_eq!(output.status.code(), Some(2), "{name}");
            assert!(output.stdout.is_empty(), "{name}");
            let at = hex(vector).find('g').unwrap() + 1;
            let message = format!("error: line 1, character {at}: 'g' is not a hex digit\n");
            assert_eq!(String::from_utf8_lossy(&output.stderr), message, "{name}");
            continue;
        }
        let items = lines(&output);
        assert_covers(&items, hex(vector));
        if expect == "reject_frame" {
            let sound = |item: &&Value| item["item"] == "frame" && item.get("error").is_none();
            assert_eq!(items.iter().find(sound), None, "{name}");
            let first = &items[0];
            assert_eq!((&first["item"], &first["fields"]), (&"frame".into(), &Value::Null), "{name}");
            assert_eq!((&first["cmd"], &first["seq"]), (&vector["cmd"], &vector["seq"]), "{name}");
            assert_eq!(first["gateway_id"], vector["gateway_id"], "{name}");
            if vector["length_ok"] == true {
                assert_eq!(first["checksum_ok"], vector["checksum_ok"], "{name}");
            }
            continue;
        }
        let [item] = &items[..] else { panic!("{name}: {items:?}") };
        for key in ["direction", "cmd", "seq", "gateway_id", "checksum_ok"] {
            assert_eq!(item[key], vector[key], "{name}: {key}");
        }
        assert_eq!((&item["item"], &item["protocol"]), (&"frame".into(), &"bkv".into()), "{name}");
        if expect == "reject_body" {
            assert_eq!(item["fields"], Value::Null, "{name}");
            assert!(item["error"].is_string(), "{name}");
        } else {
            assert_eq!(expect, "accept", "{name}");
            assert_eq!(item["fields"], vector["fields"], "{name}");
            assert_eq!(item.get("error"), None, "{name}");
        }
    }
    for kind in ["accept", "reject_frame", "reject_body", "not_hex"] {
        assert!(expected.contains(&kind), "no vector is {kind}");
    }
}

/// All sound frames of both protocols in one file, with noise between them, are found again in words and as JSON.
#[test]
fn a_capture_of_everything() {
    let sound: Vec<Value> = [vectors("ap3000"), vectors("bkv")]
        .concat()
        .into_iter()
        .filter(|vector| vector["expect"] == "accept" && vector["kind"] != "raw")
        .collect();
    let text: String = sound.iter().map(|vector| format!("00 0x11:FC\n{}\n", hex(vector))).collect();
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("capture"), &text).unwrap();
    let run = |arguments: &[&str]| command(arguments).current_dir(&dir).output().unwrap();

    let items = lines(&run(&["--json", "--file", "capture"]));
    let frames: Vec<_> = items.iter().filter(|item| item["item"] == "frame").collect();
    assert_eq!(frames.len(), sound.len());
    for (item, vector) in frames.iter().zip(&sound) {
        assert_eq!(item["hex"], vector["hex"], "{}", vector["name"]);
        assert_eq!(item.get("error"), None, "{}", vector["name"]);
    }
    for noise in items.iter().filter(|item| item["item"] != "frame") {
        assert_eq!((&noise["item"], &noise["hex"]), (&"noise".into(), &"0011fc".into()));
    }

    let words = run(&["--file", "capture"]);
    assert_eq!(words.status.code(), Some(0));
    let words = String::from_utf8(words.stdout).unwrap();
    assert_eq!(words.split("\n\n").count(), items.len());
    assert!(!words.contains("error:"), "{words}");
}

#[test]
fn words_name_units_and_codes() {
    let words = |arguments: &[&str]| String::from_utf8(decode(arguments).stdout).unwrap();
    assert_eq!(
        words(&["444e591d003b37ab04b900017e008c080200030000e40000003b0229070220006d05"]),
        "\
AP3000 0x01 legacy_heartbeat, 34 bytes at offset 0
  direction: device to server (guessed, the bytes do not say)
  physical id: 3b37ab04 (printed number 11220795)
  message id: 185
  fw_version: 126 (V1.26)
  voltage: 2188 (218.8 V)
  port_count: 2
  port_states: 0 (idle), 3 (charger plugged in, full)
  port_power: 0 (0.0 W), 228 (22.8 W)
  port_peak_power: 0 (0.0 W), 571 (57.1 W)
  virtual_id: 41
  signal: 7
  device_type: 2
  ambient_temp: 32 (-33 °C)
  work_mode: 0
"
    );
    assert_eq!(
        words(&[
            "fcfe00350015001c91ee018600445945300500211c01513629150080000008ef000000010000000001",
            "80000008ef000000010000000077fcee",
        ]),
        "\
BKV/GN 0x0015 socket_reply, 57 bytes at offset 0
  direction: device to server
  gateway: 86004459453005
  sequence: 001c91ee
  inner_len: 33
  sub: 0x1c
  socket: 1
  fw: 5136
  temp_c: 41 (41 °C)
  rssi: 21
  holes[0]:
    hole: 0
    status: 0x80 (online, not charging)
    business_no: 0 (no order)
    voltage_dv: 2287 (228.7 V)
    power_dw: 0 (0.0 W)
    current_ma: 1 (1 mA)
    energy_wh: 0 (0 Wh)
    charged_min: 0 (0 min)
  holes[1]:
    hole: 1
    status: 0x80 (online, not charging)
    business_no: 0 (no order)
    voltage_dv: 2287 (228.7 V)
    power_dw: 0 (0.0 W)
    current_ma: 1 (1 mA)
    energy_wh: 0 (0 Wh)
    charged_min: 0 (0 min)
"
    );
}

#[test]
fn what_is_wrong_is_said() {
    let items = lines(&decode(&["--json", "fcff001c0015001c9a5100860044594530050008070200010100f00000c8fcee"]));
    assert_eq!(items[0]["reason"], "bad_checksum");
    assert_eq!(items[0]["error"], "checksum is 0xc8, but the bytes add up to 0xd8");
    assert_eq!(items[0]["name"], "start");

    let items = lines(&decode(&["--json", "444e5909003b37ab04b90022f102"]));
    assert_eq!((&items[0]["checksum_ok"], &items[0]["direction"]), (&false.into(), &"up".into()));
    assert_eq!(items[0]["error"], "checksum is 0x2f1, but the bytes add up to 0x2f0");

    // Cut inside a frame whose claimed length reaches over the sound one behind it.
    let items = lines(&decode(&["--json", "444e5930003b37ab", "444e5909003b37ab04b90022f002"]));
    assert_eq!(items.len(), 2, "{items:?}");
    assert_eq!((&items[0]["reason"], &items[0]["phy_id"]), (&"cut_off".into(), &Value::Null));
    assert_eq!(items[0]["error"], "frame is cut off: need 53 bytes, have 8");
    assert_eq!((&items[1]["cmd"], &items[1]["offset"]), (&"0x22".into(), &8.into()));
}

#[test]
fn magics_come_from_the_configuration_or_an_option() {
    // The time request with the magic "ABC".
    let frame = "41424309003b37ab04b90022c802";
    let dir = TempDir::new().unwrap();
    let item = |arguments: &[&str]| lines(&command(arguments).current_dir(&dir).output().unwrap())[0].clone();
    assert_eq!(item(&["--json", frame])["item"], "noise");
    let by_option = item(&["--json", "--magic", "414243", frame]);
    assert_eq!((&by_option["cmd"], &by_option["checksum_ok"]), (&"0x22".into(), &false.into()));
    fs::write(dir.path().join("chargegate.toml"), "[ap3000]\nmagics = [\"414243\"]\n").unwrap();
    assert_eq!(item(&["--json", frame]), by_option);
    assert_eq!(decode(&["--magic", "4142", "00"]).status.code(), Some(2));
}

#[test]
fn input_is_an_argument_a_file_or_standard_input() {
    let mut child = command(&["--json", "--file", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"6c 69\n6e 6b\n").unwrap();
    assert_eq!(lines(&child.wait_with_output().unwrap())[0]["item"], "link");

    for arguments in [&[][..], &[""], &["4"], &["zz"], &["--file", "missing"], &["--file", "-", "00"]] {
        let output = decode(arguments);
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(2), true), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: "), "{arguments:?}");
    }
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let link = "6c696e6b".repeat(1000);
    for arguments in [&["decode", &link][..], &["version"], &["check-config", "--print"], &["check-config"]] {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_chargegate"));
        let dir = TempDir::new().unwrap();
        let output = command.env_clear().args(arguments).current_dir(&dir).stdout(writer).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*said), (Some(0), ""), "{:?}", arguments[0]);
    }
}
