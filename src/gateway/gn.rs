//! GN: the frame of [`super::bkv`], operated as a networked gateway.
//!
//! Nothing in a frame says "GN". A gateway is one by its record, else by the listener it came in on; what the vendor's guide
//! describes is handled by the BKV adapter for both. Here is what the guide does not know: command words of an integrator's
//! software, taken only where the device's record allows them, and command 1000 with a payload that is not tagged. None of these
//! is ever answered.

use serde_json::json;

use super::{Core, Effects, Listener, Now, core::Cx, device::Device, slots::Key};
use crate::{
    model::{DeviceId, EventType, Protocol},
    protocol::{
        DecodeError, Hex,
        bkv::{Frame, command::PACKET},
    },
    store::CommandLogRow,
    telemetry::label::ShardEvent,
};

/// What a connection's gateway is until its record says otherwise.
pub(super) const fn protocol_of(listener: Listener) -> Protocol {
    match listener {
        Listener::Devices => Protocol::Bkv,
        Listener::Gn => Protocol::Gn,
    }
}

/// Commands of an integrator's software. Only their names are known; the one byte of the first is a socket number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    SocketQuery,
    Control,
    ControlEnd,
    ParamSet,
    ParamQuery,
    Exception,
}

impl Extension {
    const fn of(command: u16) -> Option<Self> {
        Some(match command {
            0x1001 => Self::SocketQuery,
            0x2000 => Self::Control,
            0x2001 => Self::ControlEnd,
            0x3000 => Self::ParamSet,
            0x3001 => Self::ParamQuery,
            0x4000 => Self::Exception,
            _ => return None,
        })
    }

    /// The alarm's reason, for those that report something somebody should know of.
    const fn alarm(self) -> Option<&'static str> {
        match self {
            Self::ControlEnd => Some("gn_control_end"),
            Self::Exception => Some("gn_exception"),
            Self::SocketQuery | Self::Control | Self::ParamSet | Self::ParamQuery => None,
        }
    }
}

impl Core {
    /// A sound frame that has no typed body. It is a sign of life all the same.
    pub(super) fn gn_unread(
        &mut self,
        now: Now,
        device: Option<Key>,
        frame: &Frame<'_>,
        error: DecodeError,
        effects: &mut Effects,
    ) {
        let device_id = DeviceId::Gateway(frame.gateway_id);
        let extension = Extension::of(frame.command);
        let enabled = device.and_then(|key| self.device(key)).is_some_and(|device| device.extensions);
        let opaque = frame.command == PACKET && matches!(error, DecodeError::NotDecoded { .. });
        if opaque || extension.is_some() && enabled {
            let event = if opaque { ShardEvent::Opaque } else { ShardEvent::Extension };
            self.shared_mut().metrics.events[event].inc();
            effects.log.push(CommandLogRow {
                at: now.unix_ms,
                device_id,
                up: true,
                command: frame.command,
                msg_id: frame.sequence,
                epoch: device.and_then(|key| self.device(key)).and_then(Device::live_epoch),
                raw: frame.raw.to_vec(),
            });
        } else {
            // Without leave the word is as unknown as any other.
            let error = extension.map_or(error, |_| DecodeError::Unknown { command: frame.command });
            self.refused_body(device_id, frame.command, error, now, frame.raw, frame.sequence, device, effects);
        }
        if let Some(device) = device {
            let extension = extension.filter(|_| enabled);
            self.on_frame(now, device, effects, |device, cx| {
                if let Some(extension) = extension {
                    device.extension(cx, extension, frame.payload);
                }
            });
        }
    }
}

impl Device {
    fn extension(&self, cx: &mut Cx<'_>, extension: Extension, payload: &[u8]) {
        if let Some(reason) = extension.alarm() {
            let data = json!({ "device_id": self.id, "reason": reason, "payload": Hex(payload) });
            cx.event(self.id, EventType::DeviceAlarm, data);
        }
    }
}
