//! Ports: status words, and API numbers against wire addresses.

/// What a port is doing. The numbers are an interface: they are stored and sent to third parties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PortStatus {
    /// Nothing plugged in, or not known to be.
    Idle = 0,
    /// Power is on for a charge.
    Charging = 1,
    /// Plugged, not charging.
    Occupied = 2,
    /// Out of order.
    Fault = 3,
    /// Full, still plugged.
    Finished = 4,
    /// Not reported, or not reachable.
    Unknown = 5,
}

impl PortStatus {
    /// All statuses in numeric order.
    pub const ALL: [Self; 6] = [Self::Idle, Self::Charging, Self::Occupied, Self::Fault, Self::Finished, Self::Unknown];

    /// The number stored and sent.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The status of a number; anything out of range is unknown.
    pub fn from_code(code: u8) -> Self {
        Self::ALL.get(usize::from(code)).copied().unwrap_or(Self::Unknown)
    }

    /// The word sent as `status_text`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Charging => "charging",
            Self::Occupied => "occupied",
            Self::Fault => "fault",
            Self::Finished => "finished",
            Self::Unknown => "unknown",
        }
    }
}

/// Where a port is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortAddress {
    /// AP3000: zero-based port byte.
    Port(u8),
    /// BKV/GN: socket and hole.
    Hole {
        /// 0 for a standalone device, else 1–250.
        socket: u8,
        /// 0 = A, 1 = B.
        hole: u8,
    },
}

/// API port of a socket's hole. Standalone devices use socket 0: hole 0/1 is port 1/2; networked ones count
/// (socket − 1) × 2 + hole + 1.
pub fn port_of_socket(socket: u8, hole: u8) -> u16 {
    u16::from(socket.saturating_sub(1)) * 2 + u16::from(hole) + 1
}

/// Socket and hole of an API port; `None` for port 0 or beyond socket 250.
pub fn socket_of_port(port_no: u16, networked: bool) -> Option<PortAddress> {
    let index = port_no.checked_sub(1)?;
    let hole = u8::try_from(index % 2).ok()?;
    let socket = u8::try_from(index / 2 + 1).ok().filter(|socket| *socket <= 250)?;
    match (networked, socket) {
        (true, socket) => Some(PortAddress::Hole { socket, hole }),
        (false, 1) => Some(PortAddress::Hole { socket: 0, hole }),
        (false, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_networked_port_has_one_address() {
        for socket in 1..=250 {
            for hole in 0..=1 {
                let port = port_of_socket(socket, hole);
                assert_eq!(socket_of_port(port, true), Some(PortAddress::Hole { socket, hole }));
            }
        }
        assert_eq!(socket_of_port(0, true), None);
        assert_eq!(socket_of_port(501, true), None);
    }

    #[test]
    fn a_standalone_device_has_two_ports() {
        assert_eq!(socket_of_port(1, false), Some(PortAddress::Hole { socket: 0, hole: 0 }));
        assert_eq!(socket_of_port(2, false), Some(PortAddress::Hole { socket: 0, hole: 1 }));
        assert_eq!(socket_of_port(3, false), None);
        assert_eq!((port_of_socket(0, 0), port_of_socket(0, 1)), (1, 2));
    }
}
