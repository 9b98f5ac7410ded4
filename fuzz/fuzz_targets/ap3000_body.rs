//! Every AP3000 body decoder in both directions: an error or a body that says all its bytes; and what else is read from the
//! data of some: order numbers made by devices, verification packets.
//!
//! Input: command, direction in the lowest bit, data.
#![no_main]

use chargegate_fuzz::direction;
use chargegate_fuzz::protocol::DecodeError;
use chargegate_fuzz::protocol::ap3000::codes::StartMode;
use chargegate_fuzz::protocol::ap3000::encode::message;
use chargegate_fuzz::protocol::ap3000::frame::DATA_MAX;
use chargegate_fuzz::protocol::ap3000::offline::OfflineOrder;
use chargegate_fuzz::protocol::ap3000::update::Verification;
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
            let mut sent = Vec::new();
            if message(&mut sent, &frame.header(), direction, command, &body).is_ok() {
                assert_eq!(&sent[12..sent.len() - 2], data);
            }
            serde_json::to_string(&body).expect("every body is JSON");
        }
        Err(DecodeError::Unknown { .. } | DecodeError::NotDecoded { .. }) => assert!(layout.is_none()),
        Err(DecodeError::Truncated { need, have, .. }) => assert!(have < need),
        Err(error) => panic!("AP3000 layouts are only ever too short: {error}"),
    }
    if let Some((mode, order_no)) = data.split_first()
        && let Some(order_no) = order_no.first_chunk()
        && let Some(order) = OfflineOrder::parse(StartMode(*mode), *order_no)
    {
        assert_eq!((order.build(), order.start_mode()), (Some(*order_no), StartMode(*mode)));
    }
    if let Some(verification) = Verification::from_chunk(data) {
        assert_eq!(verification.to_chunk(), data);
    }
    // A guess needs a layout wherever the table has one.
    assert!(
        lookup(command).is_none_or(|row| row.layout(guessed).is_some() || (row.up.is_none() && row.down.is_none()))
    );
});
