//! BKV/GN deframer: progress, no overrun, and the same frames for every way of reading.
#![no_main]

use chargegate_fuzz::check_deframer;
use chargegate_fuzz::protocol::Step;
use chargegate_fuzz::protocol::bkv::deframe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    check_deframer(data, |buf| match deframe(buf) {
        Step::Item { item, consumed } => Step::Item { item: Some(item.raw), consumed },
        Step::Skip { consumed, reason } => Step::Skip { consumed, reason },
        Step::NeedMore => Step::NeedMore,
    });
});
