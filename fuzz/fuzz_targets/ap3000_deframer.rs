//! AP3000 deframer: progress, no overrun, and the same items for every way of reading.
#![no_main]

use chargegate_fuzz::check_deframer;
use chargegate_fuzz::protocol::Step;
use chargegate_fuzz::protocol::ap3000::{Item, Magics, deframe};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let magics = Magics::default();
    check_deframer(data, |buf| match deframe(buf, &magics) {
        Step::Item { item: Item::Frame(frame), consumed } => Step::Item { item: Some(frame.raw), consumed },
        Step::Item { item: Item::Iccid(iccid), consumed } => Step::Item { item: Some(&iccid[..]), consumed },
        Step::Item { item: Item::Link, consumed } => Step::Item { item: None, consumed },
        Step::Skip { consumed, reason } => Step::Skip { consumed, reason },
        Step::NeedMore => Step::NeedMore,
    });
});
