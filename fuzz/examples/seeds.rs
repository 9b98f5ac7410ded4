//! Writes the seed corpus of every fuzz target from the project's test vectors: `cargo run --example seeds`.

use std::fs;
use std::path::{Path, PathBuf};

use chargegate_fuzz::protocol::Step;
use chargegate_fuzz::protocol::ap3000::{self, Item, Magics};
use chargegate_fuzz::protocol::bkv::{self, command};
use serde_json::Value;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut written = 0;
    for protocol in ["ap3000", "bkv"] {
        let path = root.join(format!("../testdata/vectors/{protocol}.jsonl"));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for line in text.lines() {
            let vector: Value = serde_json::from_str(line).expect("a vector is JSON");
            let name = vector["name"].as_str().expect("a vector has a name");
            let Some(bytes) = bytes_of(vector["hex"].as_str().expect("a vector has hex")) else { continue };
            let up = u8::from(vector["direction"] == "up");
            for (target, seed) in seeds(protocol, up, &bytes) {
                let dir: PathBuf = root.join("corpus").join(target);
                fs::create_dir_all(&dir).expect("the corpus directory can be made");
                fs::write(dir.join(format!("vector_{name}")), seed).expect("a seed can be written");
                written += 1;
            }
        }
    }
    println!("{written} seeds in {}", root.join("corpus").display());
}

/// The inputs by which each target meets a vector.
fn seeds(protocol: &str, up: u8, bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = vec![("explain", [&[up], bytes].concat())];
    if protocol == "ap3000" {
        seeds.push(("ap3000_deframer", [&[9], bytes].concat()));
        if let Step::Item { item: Item::Frame(frame), .. } = ap3000::deframe(bytes, &Magics::default()) {
            seeds.push(("ap3000_body", [&[frame.command, up], frame.data].concat()));
            let [i0, i1] = frame.msg_id.to_be_bytes();
            let head = [&[0, 0][..], &frame.phy_id.0, &[i0, i1, frame.command, up]].concat();
            seeds.push(("round_trip", [&head, frame.data].concat()));
            if up == 1
                && let Ok(len) = u8::try_from(frame.data.len())
            {
                let heartbeat = [2, 0, 0, 7, 0x21, 5, 0x98, 0x08, 2, 0, 1];
                seeds.push(("core", charge(&heartbeat, &[&[2, 0, 0, i0, frame.command, len], frame.data].concat())));
            }
        }
        return seeds;
    }
    seeds.push(("bkv_deframer", [&[9], bytes].concat()));
    let Step::Item { item: frame, .. } = bkv::deframe(bytes) else { return seeds };
    let Some(row) = command::TABLE.iter().position(|row| (row.command, row.sub) == (frame.command, frame.sub())) else {
        return seeds;
    };
    let head_len = match frame.command {
        command::NETWORK | command::CONTROL => 3,
        command::PACKET => {
            seeds.push(("tlv", frame.payload.to_vec()));
            5
        }
        _ => 0,
    };
    let fields = &frame.payload[head_len..];
    seeds.push(("bkv_body", [&[row as u8, up], fields].concat()));
    // The three elements that begin a packet are written by the target itself.
    let values = if frame.command == command::PACKET { fields.get(21..).unwrap_or_default() } else { fields };
    if up == 1
        && let Ok(len) = u8::try_from(values.len())
    {
        let heartbeat = [4, 0, 0, 0, 0, 0];
        seeds.push(("core", charge(&heartbeat, &[&[4, 0, 0, 0, row as u8, len], values].concat())));
    }
    // 12 bytes choose one of the round trips, what follows are its values.
    let choice = row as u8 % 8;
    seeds.push((
        "round_trip",
        [&[1][..], &frame.gateway_id.0, &frame.sequence.to_be_bytes(), &[choice], fields].concat(),
    ));
    seeds
}

/// The operations of the target `core` around a frame: connect, be bound, get a command, speak, be answered, fall silent.
fn charge(heartbeat: &[u8], frame: &[u8]) -> Vec<u8> {
    let device = if heartbeat[0] == 2 { 0 } else { 3 };
    let (accept, answer, wait) = ([0, 0], [9, 0], [7, 0xe8, 0x03]);
    let claim = [14, device, 2, 0, 0, 1, 0xff, 0xff, 0, 1, 0, 1];
    let silence = [8, 0xff, 0xff];
    let reply = [6, 0, 5, 1, 1, 0, 0, 7];
    [
        &[4][..],
        &accept,
        heartbeat,
        &answer,
        &wait,
        &claim,
        &answer,
        &reply,
        frame,
        &answer,
        &wait,
        frame,
        &answer,
        &silence,
        &accept,
        heartbeat,
        &answer,
    ]
    .concat()
}

/// `None` for the vector that is no hex.
fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect()
}
