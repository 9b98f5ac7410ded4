//! Both engines behave alike over real sockets.
//!
//! Every property runs once per engine against shards on a port of the kernel's choosing. Devices are plain blocking sockets that
//! send BKV heartbeats, 50 bytes each, and read replies of 28 bytes. Reads have a deadline, so that a reply that never comes fails
//! the test instead of hanging it. Where the kernel refuses io_uring the glommio half says so and checks nothing: that epoll takes
//! its place there is tested beside the launcher.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{Arc, OnceLock, atomic::AtomicU64},
    thread,
    time::Duration,
};

use chargegate::{
    gateway::{ConnectionLimits, Core, CoreConfig, DrainPace, Listener, Message, ShardId, directory::Directory},
    model::{DeviceId, PortStatus},
    protocol::bkv::GatewayId,
    shard::{
        Clock, Engine, EngineChoice, ListenAddress, Mailbox, Running, Seed, StartError,
        launch::{OnFailure, Stopped, prepare},
    },
    store::{
        Bound, CommandLogRow, DeliveryLogRow, Job, Latest, Outcome, PortRecord, ReadCall, Reply, Store, StoreHealth,
    },
    telemetry::Metrics,
};

const FRAME_LEN: usize = 50;
const REPLY_LEN: usize = 28;
const DEADLINE: Duration = Duration::from_secs(20);
/// More than any property here opens.
const CONNECTIONS_MAX: usize = 10_000;

/// Commits everything at once and remembers nothing.
#[derive(Default)]
struct Amnesiac {
    mailboxes: OnceLock<Vec<Mailbox>>,
    health: StoreHealth,
}

impl Store for Amnesiac {
    fn submit(&self, job: Job, reply: Reply) -> Result<(), (Job, Reply)> {
        let Reply::Shard(shard) = reply else { return Ok(()) };
        let outcome = match job {
            Job::Bind(bind) => Outcome::Bound(Box::new(Bound {
                generation: bind.generation,
                device_id: bind.device_id,
                admitted: true,
                first_seen: true,
                epoch: 1,
                protocol: bind.protocol,
                networked: false,
                has_ota: false,
                heartbeat_interval_s: None,
                msg_id_first: 1,
                ports: vec![known_port(bind.device_id)],
                orders: Vec::new(),
                commands: Vec::new(),
                details: Box::default(),
                network: None,
                superseded: None,
            })),
            _ => Outcome::Done,
        };
        let mailbox = &self.mailboxes.get().expect("set before start")[usize::from(shard.0)];
        mailbox.send(Message::Outcome(outcome)).expect("room for every job under way");
        Ok(())
    }

    fn coalesce(&self, rows: &mut Vec<Latest>) -> bool {
        rows.clear();
        true
    }

    fn append(&self, _rows: Vec<CommandLogRow>) {}

    fn append_deliveries(&self, _rows: Vec<DeliveryLogRow>) {}

    fn read(&self, call: ReadCall) -> Result<(), ReadCall> {
        Err(call)
    }

    fn health(&self) -> &StoreHealth {
        &self.health
    }

    fn close(&self, _deadline: Duration) {}
}

/// A gateway whose holes are known is not asked for them, so that all it is sent are replies.
fn known_port(device_id: DeviceId) -> PortRecord {
    PortRecord {
        device_id,
        port_no: 1,
        socket: Some(0),
        hole: Some(0),
        status: PortStatus::Idle,
        raw_status: 0x80,
        power_dw: 0,
        current_ma: 0,
        voltage_dv: 0,
        energy_wh: 0,
        charged_seconds: 0,
        updated_at: 0,
    }
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn clock() -> Clock {
    Clock::since(std::time::Instant::now())
}

fn on_failure() -> OnFailure {
    Arc::new(|failure| panic!("shard {:?} failed: {}", failure.shard, failure.reason))
}

/// Shards on `addr`; `None` where the kernel refuses the engine.
fn start_on(addr: SocketAddr, engine: Engine, shards: u16) -> Option<Result<Running, StartError>> {
    let prepared = match prepare(EngineChoice::Only(engine), shards) {
        Ok(prepared) => prepared,
        Err(StartError::Engine { engine: Engine::Glommio, source }) => {
            eprintln!("not checked on glommio: {source}");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    assert_eq!(prepared.engine(), engine);
    let directory = Arc::new(Directory::default());
    let limits = Arc::new(ConnectionLimits::new(CONNECTIONS_MAX, CONNECTIONS_MAX));
    let metrics = Metrics::new(usize::from(shards));
    let seed = |shard| {
        let writer = metrics.claim_shard(usize::from(shard)).expect("claimed once");
        let config = CoreConfig::new(ShardId(shard));
        let core = Core::new(config, Arc::clone(&directory), Arc::clone(&limits), writer);
        Seed { core, tick: Arc::new(AtomicU64::new(0)), asks: None }
    };
    let amnesiac = Amnesiac::default();
    amnesiac.mailboxes.set(prepared.mailboxes().to_vec()).expect("set once");
    let store: Arc<dyn Store> = Arc::new(amnesiac);
    let listen = [ListenAddress { addr, listener: Listener::Devices }];
    Some(prepared.start((0..shards).map(seed).collect(), clock(), &store, &listen, &on_failure()))
}

fn start(engine: Engine, shards: u16) -> Option<(Running, SocketAddr)> {
    let addr = SocketAddr::from(([127, 0, 0, 1], 0));
    let running = start_on(addr, engine, shards)?.expect("a port of the kernel's choosing is free");
    let addr = running.listen()[0].addr;
    Some((running, addr))
}

fn stop(running: Running, shards: usize) {
    assert_eq!(running.join(DEADLINE, 0, 0), Stopped { clean: shards, failed: 0, forced: 0 });
}

/// A device's heartbeat; `device` is the last part of its gateway id.
fn heartbeat(device: u32) -> [u8; FRAME_LEN] {
    let mut frame = [b'0'; FRAME_LEN];
    frame[..11].copy_from_slice(&[0xFC, 0xFE, 0, 0x2E, 0, 0, 0, 0, 0, 0, 1]);
    frame[11..18].copy_from_slice(&gateway_id(device).0);
    frame[38..46].copy_from_slice(b"1.0.0\0\0\0");
    frame[46] = 31;
    frame[47] = frame[2..47].iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte));
    frame[48..].copy_from_slice(&[0xFC, 0xEE]);
    frame
}

fn gateway_id(device: u32) -> GatewayId {
    format!("861000{device:08}").parse().expect("14 digits")
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).expect("the listener's backlog takes it");
    stream.set_read_timeout(Some(DEADLINE)).expect("not zero");
    stream.set_write_timeout(Some(DEADLINE)).expect("not zero");
    stream
}

fn expect_reply(stream: &mut TcpStream, device: u32) {
    let mut reply = [0; REPLY_LEN];
    stream.read_exact(&mut reply).expect("a reply");
    assert_eq!(reply[..2], [0xFC, 0xFF]);
    assert_eq!(reply[11..18], gateway_id(device).0);
}

fn expect_end(stream: &mut TcpStream) {
    // A peer that closes with unread bytes resets the connection: that is an end as well.
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
}

/// Runs each property on both engines.
macro_rules! on_both_engines {
    ($($property:ident)*) => {
        mod mio { $(#[test] fn $property() { super::$property(super::Engine::Mio); })* }
        mod glommio { $(#[test] fn $property() { super::$property(super::Engine::Glommio); })* }
    };
}

on_both_engines! {
    a_heartbeat_is_answered
    a_burst_larger_than_the_read_buffer_is_answered_whole
    bytes_before_a_half_close_are_answered
    a_device_that_does_not_read_is_closed_and_others_are_served
    two_thousand_devices_are_served
    a_message_wakes_a_parked_shard
    stopping_closes_connections_and_listeners
    who_is_drained_is_refused_and_may_come_back
    what_a_drain_left_open_stays_when_it_is_taken_back
    an_address_in_use_is_named
}

fn a_heartbeat_is_answered(engine: Engine) {
    let Some((running, addr)) = start(engine, 1) else { return };
    let mut device = connect(addr);
    for _ in 0..3 {
        device.write_all(&heartbeat(1)).expect("sent");
        expect_reply(&mut device, 1);
    }
    drop(device);
    let mut next = connect(addr);
    next.write_all(&heartbeat(2)).expect("sent");
    expect_reply(&mut next, 2);
    stop(running, 1);
}

fn a_burst_larger_than_the_read_buffer_is_answered_whole(engine: Engine) {
    // Their replies fit into the kernel's buffers, however late they are read.
    const FRAMES: usize = 2_000;
    let Some((running, addr)) = start(engine, 1) else { return };
    let mut device = connect(addr);
    let mut writer = device.try_clone().expect("a descriptor");
    let sender = thread::spawn(move || writer.write_all(&heartbeat(1).repeat(FRAMES)).expect("sent"));
    for _ in 0..FRAMES {
        expect_reply(&mut device, 1);
    }
    sender.join().expect("all sent");
    stop(running, 1);
}

fn bytes_before_a_half_close_are_answered(engine: Engine) {
    let Some((running, addr)) = start(engine, 1) else { return };
    let mut device = connect(addr);
    device.write_all(&heartbeat(1)).expect("sent");
    device.shutdown(Shutdown::Write).expect("open");
    expect_reply(&mut device, 1);
    expect_end(&mut device);
    stop(running, 1);
}

fn a_device_that_does_not_read_is_closed_and_others_are_served(engine: Engine) {
    let Some((running, addr)) = start(engine, 1) else { return };
    let mut slow = connect(addr);
    let frames = heartbeat(1).repeat(1_000);
    // It sends until the gateway closes it: its replies fill the kernel's buffers, then the gateway's.
    while slow.write_all(&frames).is_ok() {}
    let mut other = connect(addr);
    other.write_all(&heartbeat(2)).expect("sent");
    expect_reply(&mut other, 2);
    stop(running, 1);
}

fn two_thousand_devices_are_served(engine: Engine) {
    const DEVICES: u32 = 2_000;
    let Some((running, addr)) = start(engine, 2) else { return };
    raise_descriptor_limit();
    let mut devices: Vec<TcpStream> = (0..DEVICES).map(|_| connect(addr)).collect();
    for _ in 0..2 {
        for (device, number) in devices.iter_mut().zip(0..) {
            device.write_all(&heartbeat(number)).expect("sent");
        }
        for (device, number) in devices.iter_mut().zip(0..) {
            expect_reply(device, number);
        }
    }
    stop(running, 2);
}

fn a_message_wakes_a_parked_shard(engine: Engine) {
    let Some((running, _)) = start(engine, 1) else { return };
    let mailbox = &running.mailboxes()[0];
    let device_id = DeviceId::Gateway(gateway_id(1));
    let (sender, done) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        // More rounds than a parked shard, which wakes by itself each second, would take within the deadline.
        scope.spawn(move || {
            for _ in 0..2 * DEADLINE.as_secs() {
                mailbox.send(Message::CommandsQueued(device_id)).expect("room");
                while !mailbox.is_empty() {
                    thread::yield_now();
                }
            }
            sender.send(()).expect("awaited");
        });
        done.recv_timeout(DEADLINE).expect("each message wakes the shard");
    });
    stop(running, 1);
}

fn stopping_closes_connections_and_listeners(engine: Engine) {
    let Some((running, addr)) = start(engine, 2) else { return };
    let mut devices: Vec<TcpStream> = (0..20).map(|_| connect(addr)).collect();
    for (device, number) in devices.iter_mut().zip(0..) {
        device.write_all(&heartbeat(number)).expect("sent");
        expect_reply(device, number);
    }
    stop(running, 2);
    for device in &mut devices {
        expect_end(device);
    }
    assert!(TcpStream::connect(addr).is_err(), "nobody listens");
}

fn tell_all(running: &Running, message: impl Fn() -> Message) {
    for mailbox in running.mailboxes() {
        mailbox.send(message()).expect("room");
    }
}

/// Connects once somebody listens.
fn connect_again(addr: SocketAddr) -> TcpStream {
    let tries = (0..DEADLINE.as_millis() / 5).find_map(|_| {
        let connected = TcpStream::connect(addr).ok();
        if connected.is_none() {
            thread::sleep(Duration::from_millis(5));
        }
        connected
    });
    let stream = tries.expect("it listens again");
    stream.set_read_timeout(Some(DEADLINE)).expect("not zero");
    stream
}

fn who_is_drained_is_refused_and_may_come_back(engine: Engine) {
    let Some((running, addr)) = start(engine, 2) else { return };
    for _ in 0..2 {
        let mut devices: Vec<TcpStream> = (0..20).map(|_| connect_again(addr)).collect();
        for (device, number) in devices.iter_mut().zip(0..) {
            device.write_all(&heartbeat(number)).expect("sent");
            expect_reply(device, number);
        }
        // 10,000 per second: each shard closes one every 200 µs.
        tell_all(&running, || Message::Drain(DrainPace::of_shard(10_000, 2, 0)));
        for device in &mut devices {
            expect_end(device);
        }
        // A shard closes its listeners in the turn that began to close connections.
        assert!(TcpStream::connect(addr).is_err(), "nobody listens");
        tell_all(&running, || Message::Undrain);
    }
    let mut device = connect_again(addr);
    device.write_all(&heartbeat(1)).expect("sent");
    expect_reply(&mut device, 1);
    stop(running, 2);
}

fn what_a_drain_left_open_stays_when_it_is_taken_back(engine: Engine) {
    const DEVICES: u32 = 10;
    let Some((running, addr)) = start(engine, 1) else { return };
    let mut devices: Vec<TcpStream> = (0..DEVICES).map(|_| connect(addr)).collect();
    for (device, number) in devices.iter_mut().zip(0..) {
        device.write_all(&heartbeat(number)).expect("sent");
        expect_reply(device, number);
    }
    // One now, and the next in an hour.
    tell_all(&running, || Message::Drain(DrainPace { gap_us: 3_600_000_000, patience_ms: 0 }));
    tell_all(&running, || Message::Drain(DrainPace { gap_us: 3_600_000_000, patience_ms: 0 }));
    tell_all(&running, || Message::Undrain);
    while !running.mailboxes()[0].is_empty() {
        thread::yield_now();
    }
    let served = |(device, number): &mut (TcpStream, u32)| {
        device.write_all(&heartbeat(*number)).is_ok() && device.read_exact(&mut [0; REPLY_LEN]).is_ok()
    };
    let mut devices: Vec<_> = devices.into_iter().zip(0..).collect();
    devices.retain_mut(served);
    assert_eq!(devices.len(), DEVICES as usize - 1);
    drop(connect_again(addr));
    stop(running, 1);
}

fn an_address_in_use_is_named(engine: Engine) {
    let Some((running, addr)) = start(engine, 1) else { return };
    let Some(second) = start_on(addr, engine, 1) else { return };
    let Err(StartError::Listen { addr: named, source }) = second else { panic!("the port is taken") };
    assert_eq!(named, addr);
    assert_eq!(source.kind(), std::io::ErrorKind::AddrInUse);
    stop(running, 1);
}

fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls are given a valid structure.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
}
