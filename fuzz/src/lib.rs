//! What the fuzz targets share: the codecs under test, and the properties of every deframer.
//!
//! The codecs are compiled here from the project's sources, without its engines and its database, which take minutes to
//! build with a sanitizer and are not fuzzed.

#[path = "../../src/protocol/mod.rs"]
pub mod protocol;

use protocol::{Direction, Step};

/// What a deframer found in a stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The bytes of each item.
    pub items: Vec<Vec<u8>>,
    /// All bytes that were skipped.
    pub skipped: Vec<u8>,
    /// What is left in the buffer.
    pub rest: Vec<u8>,
}

/// Feeds a stream to a deframer in these reads. Panics if a step does not make progress or overruns the buffer, or if
/// `raw` of an item, where it has one, is not what the step consumes.
pub fn deframe_all<'a>(
    reads: impl Iterator<Item = &'a [u8]>,
    step: impl for<'b> Fn(&'b [u8]) -> Step<Option<&'b [u8]>>,
) -> Found {
    let mut found = Found::default();
    for read in reads {
        found.rest.extend_from_slice(read);
        loop {
            let len = found.rest.len();
            let (consumed, into_items) = match step(&found.rest) {
                Step::Item { item, consumed } => {
                    assert!(item.is_none_or(|raw| raw == &found.rest[..consumed]));
                    (consumed, true)
                }
                Step::Skip { consumed, .. } => (consumed, false),
                Step::NeedMore => break,
            };
            assert!((1..=len).contains(&consumed), "consumed {consumed} of {len}");
            let bytes = found.rest.drain(..consumed);
            if into_items {
                found.items.push(bytes.collect());
            } else {
                found.skipped.extend(bytes);
            }
        }
    }
    found
}

/// The first byte is the size of the reads, the others are the stream: what is found does not depend on the reads.
pub fn check_deframer(data: &[u8], step: impl for<'b> Fn(&'b [u8]) -> Step<Option<&'b [u8]>>) {
    let Some((size, stream)) = data.split_first() else { return };
    let whole = deframe_all([stream].into_iter(), &step);
    assert_eq!(whole, deframe_all(stream.chunks(usize::from(*size) + 1), &step), "found depends on the reads");
}

/// A direction from a bit of the input.
pub const fn direction(up: bool) -> Direction {
    if up { Direction::Up } else { Direction::Down }
}
