//! Element grammar of BKV command 0x1000: a parsed run is walked to its last byte and written again as it was.
#![no_main]

use chargegate_fuzz::protocol::bkv::tlv::{Elements, write};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok((elements, odd_types)) = Elements::parse(data) else { return };
    let (walked, odd) = walk(elements);
    assert_eq!(walked, data.len(), "the walk stops early");
    assert_eq!(usize::from(odd_types), odd);
    serde_json::to_string(&elements).expect("every tree is JSON");
    let mut again = Vec::new();
    for element in elements {
        write(&mut again, element.key, element.value);
        let first = elements.get(element.key).expect("an element that was walked is found");
        assert_eq!(first.key, element.key);
    }
    assert_eq!(again.len(), data.len());
    if odd_types == 0 {
        assert_eq!(again, data);
    }
});

/// Bytes at this depth, and elements of an odd type at every depth.
fn walk(elements: Elements<'_>) -> (usize, usize) {
    let (mut bytes, mut odd) = (0, 0);
    for element in elements {
        bytes += 3 + element.value.len();
        odd += usize::from(element.kind != 1);
        if let Some(children) = element.children() {
            let (inside, odd_inside) = walk(children);
            assert_eq!(inside, element.value.len(), "a container is not walked to its end");
            odd += odd_inside;
        }
    }
    (bytes, odd)
}
