//! Scripted devices: they say what the test says, and hand over what the gateway sends, byte by byte.
//!
//! What a device sends is made by the codec's device side. What the gateway must send is put together here from bytes, by the
//! vendors' drawings of a frame, so that a codec that errs alike in both directions does not go unseen.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use chargegate::protocol::{
    ap3000::{
        PhyId,
        body::{ChargeControlReply, ChargingReport, Heartbeat, Registration, Settlement},
        codes::{ChargeResult, ReportState, StartMode, StopReason},
        encode::{self as ap3000, Header},
        wire::{Extra, Raw, U8s},
    },
    bkv::{
        GatewayId, HoleStatus,
        body::{ChargeEnd, EndBlock, StartReply},
        device,
        report::HoleBlock,
    },
};

use super::PATIENCE;

/// Between two looks at other things while a frame may come.
const SOON: Duration = Duration::from_millis(50);

const DNY: [u8; 3] = *b"DNY";

/// The four parts of a frame that change, around `data`: as device-server protocol v8.6 draws it.
pub(crate) fn ap3000_frame(phy_id: PhyId, msg_id: u16, command: u8, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + 2 + 1 + data.len() + 2).expect("short");
    let mut frame = DNY.to_vec();
    frame.extend(length.to_le_bytes());
    frame.extend(phy_id.0);
    frame.extend(msg_id.to_le_bytes());
    frame.push(command);
    frame.extend(data);
    let sum = frame.iter().fold(0_u16, |sum, byte| sum.wrapping_add(u16::from(*byte)));
    frame.extend(sum.to_le_bytes());
    frame
}

/// A frame down to a gateway.
pub(crate) fn bkv_frame(gateway_id: GatewayId, command: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    bkv_drawn([0xFC, 0xFF], 0, gateway_id, command, sequence, payload)
}

/// A frame as integration guide V1.7 draws it.
fn bkv_drawn(
    magic: [u8; 2],
    direction: u8,
    gateway_id: GatewayId,
    command: u16,
    sequence: u32,
    payload: &[u8],
) -> Vec<u8> {
    let length = u16::try_from(2 + 2 + 4 + 1 + 7 + payload.len() + 1).expect("short");
    let mut frame = magic.to_vec();
    frame.extend(length.to_be_bytes());
    frame.extend(command.to_be_bytes());
    frame.extend(sequence.to_be_bytes());
    frame.push(direction);
    frame.extend(gateway_id.0);
    frame.extend(payload);
    let sum = frame[2..].iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    frame.extend([sum, 0xFC, 0xEE]);
    frame
}

/// A connection as a device has it.
pub(crate) struct Line {
    stream: TcpStream,
}

impl Line {
    pub(crate) fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).expect("the listener's backlog takes it");
        stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
        stream.set_write_timeout(Some(PATIENCE)).expect("not zero");
        stream.set_nodelay(true).expect("a socket");
        Self { stream }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the gateway reads");
    }

    /// Sends, and says whether the connection still took it.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).expect("a frame from the gateway");
        bytes
    }

    /// The next frame, told by its own length field.
    pub(crate) fn frame(&mut self) -> Vec<u8> {
        let mut frame = self.bytes::<4>().to_vec();
        let rest = if frame.starts_with(&[0xFC, 0xFF]) {
            usize::from(u16::from_be_bytes([frame[2], frame[3]]))
        } else {
            assert_eq!(frame[..3], DNY, "{frame:02x?} begins no frame");
            frame.extend(self.bytes::<1>());
            usize::from(u16::from_le_bytes([frame[3], frame[4]]))
        };
        let at = frame.len();
        frame.resize(at + rest, 0);
        self.stream.read_exact(&mut frame[at..]).expect("the rest of the frame");
        frame
    }

    /// The next frame, if one begins to come soon.
    pub(crate) fn frame_soon(&mut self) -> Option<Vec<u8>> {
        self.stream.set_read_timeout(Some(SOON)).expect("not zero");
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
        match peeked {
            Ok(len) => {
                assert_ne!(len, 0, "the gateway closed the connection");
                Some(self.frame())
            }
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
                None
            }
        }
    }

    /// Waits for the gateway to close the connection; what it still sends is thrown away.
    pub(crate) fn expect_end(&mut self) {
        let mut sink = [0; 4096];
        loop {
            match self.stream.read(&mut sink) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => {
                    let waited = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                    assert!(!waited, "the gateway did not close the connection");
                    // Closed with bytes unread: a reset is an end as well.
                    return;
                }
            }
        }
    }

    /// Waits for the gateway to close the connection without having sent a byte.
    pub(crate) fn expect_silent_end(&mut self) {
        assert_eq!(self.stream.read(&mut [0; 64]).unwrap_or(0), 0, "nothing is sent");
    }

    pub(crate) fn hang_up(&self) {
        // The other end may have been quicker.
        drop(self.stream.shutdown(Shutdown::Both));
    }
}

/// An AP3000 charger.
pub(crate) struct Ap3000 {
    pub(crate) line: Line,
    pub(crate) phy_id: PhyId,
    next_msg_id: u16,
}

/// A charge as its 0x03 tells it.
#[derive(Clone, Copy)]
pub(crate) struct Ap3000End {
    pub(crate) port: u8,
    pub(crate) order_no: [u8; 16],
    pub(crate) start_mode: StartMode,
    pub(crate) reason: u8,
    pub(crate) duration_s: u16,
    /// 0.01 kWh.
    pub(crate) energy: u16,
}

impl Ap3000 {
    /// Connects, greets, registers and beats once, all answered.
    pub(crate) fn online(addr: SocketAddr, phy_id: &str, ports: u8) -> Self {
        let mut device = Self::connect(addr, phy_id);
        device.line.send(b"89860463112070319417");
        let registration =
            Registration { fw_version: 200, port_count: ports, device_type: 4, ..Registration::default() };
        let msg_id = device.send(|out, header| ap3000::registration(out, header, &registration));
        assert_eq!(device.line.frame(), ap3000_frame(device.phy_id, msg_id, 0x20, &[0]));
        device.beat(&vec![0; usize::from(ports)]);
        device
    }

    /// Connects and says nothing.
    pub(crate) fn connect(addr: SocketAddr, phy_id: &str) -> Self {
        Self { line: Line::connect(addr), phy_id: phy_id.parse().expect("8 hex digits"), next_msg_id: 1 }
    }

    pub(crate) fn send(&mut self, encode: impl FnOnce(&mut Vec<u8>, &Header)) -> u16 {
        let msg_id = self.next_msg_id;
        self.next_msg_id += 1;
        let mut out = Vec::new();
        encode(&mut out, &Header { magic: DNY, phy_id: self.phy_id, msg_id });
        self.line.send(&out);
        msg_id
    }

    /// Sends a heartbeat with the state of each port.
    pub(crate) fn heartbeat(&mut self, states: &[u8]) -> u16 {
        let heartbeat = Heartbeat {
            voltage: 2200,
            port_count: u8::try_from(states.len()).expect("few ports"),
            port_states: U8s::new(states),
            signal: Some(20),
            ambient_temp: Some(90),
            extra: Extra::NONE,
        };
        self.send(|out, header| ap3000::heartbeat(out, header, &heartbeat))
    }

    /// Sends a heartbeat, which is answered.
    pub(crate) fn beat(&mut self, states: &[u8]) {
        let msg_id = self.heartbeat(states);
        self.expect(msg_id, 0x21, &[0]);
    }

    /// Reads a frame that must have this message id, command and data.
    pub(crate) fn expect(&mut self, msg_id: u16, command: u8, data: &[u8]) {
        let frame = self.line.frame();
        assert_eq!(frame, ap3000_frame(self.phy_id, msg_id, command, data), "{frame:02x?}");
    }

    /// Reads a command of the gateway, which must have this data, and returns its message id.
    pub(crate) fn expect_command(&mut self, command: u8, data: &[u8]) -> u16 {
        let frame = self.line.frame();
        let msg_id = u16::from_le_bytes([frame[9], frame[10]]);
        assert_eq!(frame, ap3000_frame(self.phy_id, msg_id, command, data), "{frame:02x?}");
        msg_id
    }

    /// Answers an 0x82.
    pub(crate) fn answer(&mut self, msg_id: u16, result: u8, port: u8, order_no: [u8; 16]) {
        let reply = ChargeControlReply {
            result: ChargeResult(result),
            order_no: Some(Raw(order_no)),
            port: Some(port),
            ..ChargeControlReply::default()
        };
        let mut out = Vec::new();
        ap3000::charge_control_reply(&mut out, &Header { magic: DNY, phy_id: self.phy_id, msg_id }, &reply);
        self.line.send(&out);
    }

    /// Sends an 0x06: the port charges for the order.
    pub(crate) fn report_charging(&mut self, port: u8, order_no: [u8; 16], duration_s: u16, energy: u16) {
        let report = ChargingReport {
            port,
            port_state: ReportState::CHARGING,
            duration_s,
            energy,
            start_mode: StartMode::ONLINE,
            power_now: 2300,
            order_no: Raw(order_no),
            ..ChargingReport::default()
        };
        self.send(|out, header| ap3000::charging_report(out, header, &report));
    }

    /// Sends an 0x03.
    pub(crate) fn settle(&mut self, end: &Ap3000End) -> u16 {
        let settlement = Settlement {
            duration_s: end.duration_s,
            max_power: 2400,
            energy: end.energy,
            port: end.port,
            start_mode: end.start_mode,
            stop_reason: StopReason(end.reason),
            order_no: Raw(end.order_no),
            ..Settlement::default()
        };
        self.send(|out, header| ap3000::settlement(out, header, &settlement))
    }
}

/// An order number as it stands in AP3000 frames.
pub(crate) fn wire_no(order_no: &str) -> [u8; 16] {
    order_no.as_bytes().try_into().expect("16 characters")
}

/// A BKV or GN gateway with its sockets.
pub(crate) struct Bkv {
    pub(crate) line: Line,
    pub(crate) gateway_id: GatewayId,
}

/// A charge as an end report tells it.
#[derive(Clone, Copy)]
pub(crate) struct BkvEnd {
    pub(crate) socket: u8,
    pub(crate) hole: u8,
    pub(crate) status: u8,
    pub(crate) business_no: u16,
    pub(crate) energy_wh: u16,
    pub(crate) minutes: u16,
}

impl Bkv {
    /// Connects, beats, and answers the question for its holes: a standalone device, both holes idle.
    pub(crate) fn standalone(addr: SocketAddr, gateway_id: &str) -> Self {
        let mut device = Self::connect(addr, gateway_id);
        device.beat();
        let sequence = device.expect_command(0x0015, &[0, 1, 0x1D, 0]);
        device.answer_query(sequence, 0, &[hole(0, 0x80, 0), hole(1, 0x80, 0)]);
        device
    }

    /// Connects and says nothing.
    pub(crate) fn connect(addr: SocketAddr, gateway_id: &str) -> Self {
        Self { line: Line::connect(addr), gateway_id: gateway_id.parse().expect("14 digits") }
    }

    pub(crate) fn send(&mut self, encode: impl FnOnce(&mut Vec<u8>, GatewayId)) {
        let mut out = Vec::new();
        encode(&mut out, self.gateway_id);
        self.line.send(&out);
    }

    /// Sends a heartbeat.
    pub(crate) fn heartbeat(&mut self) {
        self.send(|out, id| device::heartbeat(out, id, "89860463112070319417", "1.0.0", 20));
    }

    /// Sends a heartbeat, which is answered with the time.
    pub(crate) fn beat(&mut self) {
        self.heartbeat();
        self.expect_time();
    }

    /// Reads the answer to a heartbeat.
    pub(crate) fn expect_time(&mut self) {
        let frame = self.line.frame();
        let time = frame.get(18..25).unwrap_or_default().to_vec();
        assert_eq!(frame, bkv_frame(self.gateway_id, 0, 0, &time), "{frame:02x?}");
        assert_eq!(time[0], 0x20, "BCD, this century");
    }

    /// Reads a command of the gateway, which must have this payload, and returns its sequence.
    pub(crate) fn expect_command(&mut self, command: u16, payload: &[u8]) -> u32 {
        let frame = self.line.frame();
        let sequence = u32::from_be_bytes([frame[6], frame[7], frame[8], frame[9]]);
        assert_eq!(frame, bkv_frame(self.gateway_id, command, sequence, payload), "{frame:02x?}");
        assert_ne!(sequence, 0, "0 is for reports");
        sequence
    }

    /// Reads an answer to a report.
    pub(crate) fn expect_answer(&mut self, command: u16, payload: &[u8]) {
        let frame = self.line.frame();
        assert_eq!(frame, bkv_frame(self.gateway_id, command, 0, payload), "{frame:02x?}");
    }

    /// Answers a 1D.
    pub(crate) fn answer_query(&mut self, sequence: u32, socket: u8, holes: &[HoleBlock]) {
        let socket = device::Socket { socket, fw: [1, 2], temp_c: 25, rssi: 20, holes };
        self.send(|out, id| device::socket_reply(out, id, sequence, 0x1D, &socket));
    }

    /// Answers an 07 or 17.
    pub(crate) fn answer(&mut self, sequence: u32, sub: u8, result: u8, socket: u8, hole: u8, business_no: u16) {
        let reply = StartReply { result, socket, hole, business_no };
        self.send(|out, id| device::start_reply(out, id, sequence, sub, &reply));
    }

    /// Pushes the state of a socket, which is answered.
    pub(crate) fn push(&mut self, socket: u8, holes: &[HoleBlock]) {
        let socket = device::Socket { socket, fw: [1, 2], temp_c: 25, rssi: 20, holes };
        self.send(|out, id| device::push(out, id, &[socket]));
        let mut payload = vec![0x04, 0x01, 0x01, 0x10, 0x17];
        payload.extend([0x0A, 0x01, 0x02, 0, 0, 0, 0, 0, 0, 0, 0]);
        payload.extend([0x09, 0x01, 0x03]);
        payload.extend(self.gateway_id.0);
        payload.extend([0x03, 0x01, 0x0F, 1]);
        self.expect_answer(0x1000, &payload);
    }

    /// Sends an 02: a charge by time or energy ended.
    pub(crate) fn settle(&mut self, end: &BkvEnd) {
        self.send(|out, id| device::charge_end(out, id, &ChargeEnd { block: end.block() }));
    }

    /// Sends an 18: a charge by power tiers ended.
    pub(crate) fn settle_power(&mut self, end: &BkvEnd, spent_cent: u16) {
        let block = end.block();
        let mut payload = vec![0, 0, 0x18, block.socket, 1, 2, block.temp_c, block.rssi, block.hole, block.status.0];
        for word in [block.business_no, block.power_dw, block.current_ma, block.energy_wh, block.charged_min] {
            payload.extend(word.to_be_bytes());
        }
        // 2026-01-01 08:00:00, reason 1, what was spent, 230.0 W, one tier.
        payload.extend([0x07, 0xEA, 1, 1, 8, 0, 0, 1]);
        payload.extend(spent_cent.to_be_bytes());
        payload.extend(2300_u16.to_be_bytes());
        payload.push(1);
        payload.extend(block.charged_min.to_be_bytes());
        let inner = u16::try_from(payload.len() - 3).expect("short");
        payload[..2].copy_from_slice(&inner.to_be_bytes());
        self.line.send(&bkv_drawn([0xFC, 0xFE], 1, self.gateway_id, 0x0015, 0, &payload));
    }
}

impl BkvEnd {
    fn block(&self) -> EndBlock {
        EndBlock {
            socket: self.socket,
            fw: chargegate::protocol::Hex([1, 2]),
            temp_c: 30,
            rssi: 20,
            hole: self.hole,
            status: HoleStatus(self.status),
            business_no: self.business_no,
            power_dw: 2300,
            current_ma: 1045,
            energy_wh: self.energy_wh,
            charged_min: self.minutes,
        }
    }
}

/// State of a hole; 0x80 is idle, 0x90 charging.
pub(crate) fn hole(hole: u8, status: u8, business_no: u16) -> HoleBlock {
    HoleBlock {
        hole,
        status: HoleStatus(status),
        business_no,
        voltage_dv: 2200,
        power_dw: 2300,
        current_ma: 1045,
        energy_wh: 50,
        charged_min: 10,
    }
}
