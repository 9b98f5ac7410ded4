//! Properties of every command in both directions.

use proptest::prelude::*;

use super::encode::{EncodeError, FRAME_SENT_MAX, FRAME_SENT_MAX_LEGACY_OTA, Header, message};
use super::{Body, Frame, Item, Magics, PhyId, command, decode_body, deframe};
use crate::protocol::{Direction, Step};

const HEADER: Header = Header { magic: *b"DNY", phy_id: PhyId([0x40, 0xaa, 0xce, 0x04]), msg_id: 0x0102 };

/// Every command with the directions in which it has data.
fn layouts() -> impl Iterator<Item = (u8, Direction, &'static command::Layout)> {
    command::COMMANDS.iter().flat_map(|row| {
        [Direction::Up, Direction::Down]
            .into_iter()
            .filter_map(|direction| Some((row.code, direction, row.layout(direction)?)))
    })
}

/// Lengths from the shortest form to one byte behind the longest, as far as a frame takes them. Of the long forms, which
/// grow byte by byte with a list or a text, every seventh.
fn lengths(layout: &command::Layout) -> impl Iterator<Item = usize> + use<> {
    let (min, max) = (*layout.size.start(), *layout.size.end());
    (min..=max.saturating_add(1).min(FRAME_SENT_MAX - 14)).filter(move |len| *len < 80 || *len == max || len % 7 == 0)
}

/// Sends a body, and reads it as its receiver does.
fn sent(body: &Body<'_>, code: u8, direction: Direction, out: &mut Vec<u8>) {
    out.clear();
    assert_eq!(message(out, &HEADER, direction, code, body), Ok(out.len()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Any data of any documented length, and thereby any number of optional fields: what it says is what is sent, to the
    /// byte, and what is read from that.
    #[test]
    fn every_command_in_every_length(
        data in prop::collection::vec(prop_oneof![2 => any::<u8>(), 1 => 0u8..8], 256),
        count in 0u8..8,
    ) {
        let magics = Magics::default();
        let mut out = Vec::new();
        for (code, direction, layout) in layouts() {
            let mut read = false;
            for len in lengths(layout) {
                let mut data = data[..len].to_vec();
                // Where the last fixed field counts a list, the list shall fit.
                if let Some(last) = layout.size.start().checked_sub(1).and_then(|last| data.get_mut(last)) {
                    *last = count;
                }
                let Ok(body) = (layout.decode)(&data) else { continue };
                sent(&body, code, direction, &mut out);
                let Step::Item { item: Item::Frame(frame), .. } = deframe(&out, &magics) else { panic!("no frame") };
                prop_assert_eq!((frame.header(), frame.command), (HEADER, code));
                prop_assert_eq!(frame.data, &data, "{:#04x} {:?}", code, direction);
                prop_assert_eq!(decode_body(&frame, direction), Ok(body));
                read = true;
            }
            prop_assert!(read, "{:#04x} {:?} is never read", code, direction);
        }
    }
}

/// Each command has a body that can be sent in each of its directions, and refuses those of the others.
#[test]
fn every_command_has_its_own_bodies() {
    let bodies: Vec<_> = layouts()
        .map(|(code, direction, layout)| (code, direction, (layout.decode)(&[0; 256][..*layout.size.start()]).unwrap()))
        .collect();
    for (code, direction, layout) in layouts() {
        let mut out = b"before".to_vec();
        let mut fitting = 0;
        for (_, _, body) in &bodies {
            out.truncate(6);
            match message(&mut out, &HEADER, direction, code, body) {
                Ok(_) => {
                    let frame = Frame { data: &out[6 + 12..out.len() - 2], ..frame_of(code) };
                    assert_eq!(decode_body(&frame, direction), Ok(*body));
                    fitting += 1;
                }
                Err(error) => {
                    assert_eq!(error, EncodeError::Misplaced { command: code, direction });
                    assert_eq!(out, b"before");
                }
            }
        }
        let own = bodies.iter().filter(|(_, _, body)| (layout.holds)(body)).count();
        assert_eq!(fitting, own);
        assert!(own >= 1, "{code:#04x} {direction:?}");
    }
    let nothing = message(&mut Vec::new(), &HEADER, Direction::Up, 0x94, &bodies[0].2);
    assert_eq!(nothing, Err(EncodeError::Misplaced { command: 0x94, direction: Direction::Up }));
}

fn frame_of(command: u8) -> Frame<'static> {
    Frame { magic: HEADER.magic, phy_id: HEADER.phy_id, msg_id: HEADER.msg_id, command, data: &[], raw: &[] }
}

#[test]
fn the_longest_firmware_packets_fit() {
    for (code, chunk, max) in [(0xe0, 200, 218), (0xfa, 200, 218), (0xf8, 256, FRAME_SENT_MAX_LEGACY_OTA)] {
        let layout = command::lookup(code).unwrap().layout(Direction::Down).unwrap();
        let data = vec![1; 4 + chunk];
        let mut out = Vec::new();
        sent(&(layout.decode)(&data).unwrap(), code, Direction::Down, &mut out);
        assert_eq!((out.len(), *layout.size.end()), (max, 4 + chunk));
    }
}
