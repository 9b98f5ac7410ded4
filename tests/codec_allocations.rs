//! Decoding an AP3000 frame allocates nothing, and writing one only grows the caller's buffer: an allocator that counts
//! per thread watches both.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use chargegate::protocol::ap3000::{Item, Magics, decode_body, deframe, encode};
use chargegate::protocol::{Direction, Step};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to `System` unchanged; counting touches a thread-local without destructor and cannot allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
}

#[test]
fn ap3000_decode_allocates_nothing() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/vectors/ap3000.jsonl");
    let magics = Magics::default();
    let mut frames = 0;
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        if json["kind"] != "frame" {
            continue;
        }
        let direction = if json["direction"] == "up" { Direction::Up } else { Direction::Down };
        let hex = json["hex"].as_str().unwrap();
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        let counted = allocations(|| {
            let Step::Item { item: Item::Frame(frame), .. } = deframe(&bytes, &magics) else { panic!("no frame") };
            std::hint::black_box(decode_body(&frame, direction)).unwrap();
        });
        assert_eq!(counted, 0, "{}", json["name"]);
        frames += 1;
    }
    assert!(frames >= 130, "only {frames} frames");
}

#[test]
fn ap3000_skip_and_reply_allocate_nothing() {
    let magics = Magics::default();
    let noise = [0xa5; 4096];
    assert_eq!(allocations(|| assert!(matches!(deframe(&noise, &magics), Step::Skip { consumed: 4096, .. }))), 0);

    let mut out = Vec::with_capacity(64);
    let header = encode::Header { magic: *b"DNY", phy_id: Default::default(), msg_id: 1 };
    assert_eq!(allocations(|| encode::result_reply(&mut out, &header, 0x21, 0)), 0);
    assert_eq!(out.len(), 15);
}
