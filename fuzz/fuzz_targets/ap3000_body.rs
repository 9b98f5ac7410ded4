//! Every AP3000 body decoder in both directions: an error or a body that says all its bytes.
//!
//! Input: command, direction in the lowest bit, data.
#![no_main]

use chargegate_fuzz::direction;
use chargegate_fuzz::protocol::DecodeError;
use chargegate_fuzz::protocol::ap3000::frame::DATA_MAX;
use chargegate_fuzz::protocol::ap3000::{Frame, PhyId, decode_body, guess_direction, lookup};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [command, up, data @ ..] = data else { return };
    let (command, direction) = (*command, direction(up & 1 == 1));
    if data.len() > DATA_MAX {
        return;
    }
    let frame = Frame { magic: *b"DNY", phy_id: PhyId::default(), msg_id: 0, command, data, raw: data };
    let guessed = guess_direction(&frame);
    let layout = lookup(command).and_then(|row| row.layout(direction));
    match decode_body(&frame, direction) {
        Ok(body) => {
            let layout = layout.expect("only a layout decodes");
            assert!(data.len() >= *layout.size.start());
            assert!(body.extra().len() <= data.len());
            let mut written = Vec::new();
            body.write(&mut written);
            assert_eq!(written, data, "the body forgets bytes");
            serde_json::to_string(&body).expect("every body is JSON");
        }
        Err(DecodeError::Unknown { .. } | DecodeError::NotDecoded { .. }) => assert!(layout.is_none()),
        Err(DecodeError::Truncated { need, have, .. }) => assert!(have < need),
        Err(error) => panic!("AP3000 layouts are only ever too short: {error}"),
    }
    // A guess needs a layout wherever the table has one.
    assert!(
        lookup(command).is_none_or(|row| row.layout(guessed).is_some() || (row.up.is_none() && row.down.is_none()))
    );
});
