//! Reading BKV/GN frames allocates nothing: an allocator that counts sees none while frames are cut and bodies walked.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use chargegate::protocol::Step;
use chargegate::protocol::bkv::{EndReport, decode_body, deframe};

struct Counting;

thread_local! {
    /// Per thread, so that the test harness cannot disturb the count.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on unchanged to the system allocator; counting touches no heap, because the
// thread-local is const-initialised and needs no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's obligations are those of `System.alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System.alloc` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn vector(name: &str) -> Vec<u8> {
    let line = include_str!("../testdata/vectors/bkv.jsonl").lines().find(|line| line.contains(&format!("\"{name}\"")));
    let record: serde_json::Value = serde_json::from_str(line.unwrap()).unwrap();
    let hex = record["hex"].as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Cuts, decodes and walks everything in `bytes`; gives the number of holes and the last end report.
fn read(mut bytes: &[u8]) -> (usize, usize, Option<EndReport>) {
    let (mut frames, mut holes, mut end) = (0, 0, None);
    loop {
        match deframe(bytes) {
            Step::Item { item, consumed } => {
                frames += 1;
                let body = decode_body(&item).unwrap();
                holes += body.sockets().into_iter().flatten().map(|socket| socket.holes().count()).sum::<usize>();
                end = body.end_report().or(end);
                black_box(&body);
                bytes = &bytes[consumed..];
            }
            Step::Skip { consumed, .. } => bytes = &bytes[consumed..],
            Step::NeedMore => return (frames, holes, end),
        }
    }
}

#[test]
fn reading_allocates_nothing() {
    let names = [
        "heartbeat_up",
        "status_push_1017_two_sockets_up",
        "status_push_1017_charging_up",
        "socket_query_reply_1d_up",
        "charge_end_02_up",
        "charge_end_power_18_up",
        "card_end_power_0c_up",
        "charge_end_fee_1004_up",
        "charge_start_07_ack_up",
        "exception_1010_up",
    ];
    let mut stream = b"noise in front".to_vec();
    names.iter().for_each(|name| stream.extend(vector(name)));

    let before = ALLOCATIONS.get();
    drop(black_box(vec![0_u8; 16]));
    assert_eq!(ALLOCATIONS.get(), before + 1, "the allocator counts");

    let before = ALLOCATIONS.get();
    let (frames, holes, end) = read(black_box(&stream));
    assert_eq!(ALLOCATIONS.get(), before);
    assert_eq!((frames, holes, end.map(|end| end.business_no)), (names.len(), 4 + 2 + 2, Some(51)));
}
