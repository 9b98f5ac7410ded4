//! Every BKV/GN body decoder in both directions: an error or a body that can be read to its end, written again, and is then
//! the same for good.
//!
//! Input: row of the table, direction in the lowest bit and a wrong length in the second, payload behind the sub-command.
#![no_main]

use chargegate_fuzz::direction;
use chargegate_fuzz::protocol::bkv::command::{CONTROL, NETWORK, PACKET, TABLE};
use chargegate_fuzz::protocol::bkv::frame::PAYLOAD_LEN_MAX;
use chargegate_fuzz::protocol::bkv::{GatewayId, decode_body, deframe, encode};
use chargegate_fuzz::protocol::{DecodeError, Step};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [row, flags, fields @ ..] = data else { return };
    let row = &TABLE[usize::from(*row) % TABLE.len()];
    if fields.len() + 5 > PAYLOAD_LEN_MAX {
        return;
    }
    let mut payload = Vec::new();
    match (row.command, row.sub) {
        (NETWORK | CONTROL, Some(sub)) => {
            let len = fields.len() as u16 ^ u16::from(flags & 2);
            payload.extend_from_slice(&len.to_be_bytes());
            payload.push(sub as u8);
        }
        (PACKET, Some(sub)) => {
            payload.extend_from_slice(&[4, 1, 1]);
            payload.extend_from_slice(&sub.to_be_bytes());
        }
        _ => {}
    }
    payload.extend_from_slice(fields);
    let mut bytes = Vec::new();
    let direction = direction(flags & 1 == 1);
    encode::frame(&mut bytes, direction, row.command, 7, GatewayId::default(), |out| out.extend_from_slice(&payload));
    let Step::Item { item: frame, consumed } = deframe(&bytes) else { panic!("a written frame is not found") };
    assert_eq!((consumed, frame.payload, frame.sub()), (bytes.len(), &payload[..], row.sub));
    match decode_body(&frame) {
        Ok(body) => {
            serde_json::to_string(&body).expect("every body is JSON");
            let holes = body.sockets().into_iter().flatten().flat_map(|socket| socket.holes());
            assert!(holes.count() <= payload.len(), "more holes than bytes");
            if let Some(report) = body.end_report() {
                assert!(report.card.is_none() || report.spent_cent.is_some());
            }
            // The first writing drops what no field holds; from then on nothing changes any more.
            let (mut once, mut twice) = (Vec::new(), Vec::new());
            encode::body(&mut once, &frame.header(), &body);
            let Step::Item { item: again, consumed } = deframe(&once) else { panic!("a written frame is not found") };
            assert_eq!((consumed, again.header(), again.sub()), (once.len(), frame.header(), frame.sub()));
            let read = decode_body(&again).expect("a written body is read");
            encode::body(&mut twice, &again.header(), &read);
            assert_eq!(once, twice, "{body:?}");
            if row.command != PACKET {
                let head = if row.sub.is_some() { 3 } else { 0 };
                assert!(payload[head..].starts_with(&again.payload[head..]), "{body:?}");
            }
        }
        Err(DecodeError::NotDecoded { .. }) => assert!(row.layout(direction).is_none()),
        Err(DecodeError::Truncated { need, have, .. }) => assert!(have < need),
        Err(DecodeError::Invalid { .. }) => {}
        Err(error @ (DecodeError::Trailing { .. } | DecodeError::Unknown { .. })) => panic!("{error}"),
    }
});
