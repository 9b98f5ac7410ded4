//! Captures explained: every byte is in exactly one finding, and every finding is one line of JSON and a paragraph.
#![no_main]

use chargegate_fuzz::direction;
use chargegate_fuzz::protocol::Direction;
use chargegate_fuzz::protocol::ap3000::Magics;
use chargegate_fuzz::protocol::explain::findings;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((flags, capture)) = data.split_first() else { return };
    let given: Option<Direction> = (flags & 2 == 2).then(|| direction(flags & 1 == 1));
    let magics = Magics::default();
    let mut at = 0;
    for finding in findings(capture, &magics, given) {
        assert_eq!(finding.offset, at);
        assert!(!finding.bytes.is_empty());
        at += finding.bytes.len();
        assert_eq!(finding.bytes, &capture[finding.offset..at]);
        let json = serde_json::to_string(&finding).expect("every finding is JSON");
        assert!(!json.contains('\n'));
        assert!(finding.to_string().ends_with('\n'));
    }
    assert_eq!(at, capture.len());
});
