//! Updates from end to end in virtual time: the real core and store, simulated devices that take the real packets. What loads
//! images and offers them to the shard is played by the test.

mod sim;

use std::sync::{Arc, Mutex, PoisonError};

use chargegate::{
    gateway::{CoreConfig, Message, OtaStart, ShardId, order::Event},
    model::{ChargeMode, DeviceId, FtpSource, OtaMethod, OtaState, OtaTask},
    protocol::{
        Direction, Step,
        ap3000::{codes::UpdateResult, update::Verification},
        bkv::{self, GatewayId},
    },
    store::{Job, NewFirmware, NewOtaTask, OtaJob, OtaOutcome, Outcome},
};
use chargegate_loadtest::device::{
    Ap3000Device, Behaviour, Device,
    ap3000::{Fault, HostDevice, HostModel, Model},
};
use sim::World;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
/// How often an open update is offered.
const OFFER_MS: u64 = 5 * SECOND;

type Charger = Arc<Mutex<Ap3000Device>>;

fn charger(world: &mut World, model: Model) -> (usize, Charger) {
    let device = Ap3000Device::with_model(0, 2, Behaviour::default(), model);
    let id = device.phy_id().to_string();
    let device = Arc::new(Mutex::new(device));
    let peer = world.add(&id, Arc::clone(&device));
    world.run_until(10 * SECOND, "the device is online", |world| world.online(peer));
    (peer, device)
}

fn locked<D>(device: &Mutex<D>) -> std::sync::MutexGuard<'_, D> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

fn image(len: usize) -> Arc<[u8]> {
    (0..len).map(|index| (index * 7 % 253 + 1) as u8).collect()
}

/// An update, and who offers it.
struct Update {
    task: OtaTask,
    image: Option<Arc<[u8]>>,
}

impl Update {
    fn new(world: &mut World, device_id: DeviceId, new: NewOtaTask, image: Option<Arc<[u8]>>) -> Self {
        let mut new = NewOtaTask { device_id, ..new };
        if let Some(image) = &image {
            let firmware = NewFirmware {
                sha256: [1; 32],
                size: image.len() as u32,
                name: "image".to_owned(),
                version: Some(207),
                device_type: Some(0x21),
                at: world.now().unix_ms,
            };
            let added = world.call(Job::Ota(Box::new(OtaJob::AddFirmware(firmware))));
            let Outcome::Ota(added) = added else { panic!("{added:?}") };
            let OtaOutcome::Firmware { firmware, .. } = *added else { panic!("{added:?}") };
            new.firmware_id = Some(firmware.id);
            new.packets_total = new.method.packets(image.len(), new.verification).unwrap();
        }
        let created = world.call(Job::Ota(Box::new(OtaJob::Create(new))));
        let Outcome::Ota(created) = created else { panic!("{created:?}") };
        let OtaOutcome::Created(task) = *created else { panic!("{created:?}") };
        Self { task, image }
    }

    fn pushed(world: &mut World, peer: usize, method: OtaMethod, len: usize) -> Self {
        let device_id = world.peers[peer].id;
        Self::new(world, device_id, new(method), Some(image(len)))
    }

    /// State and packets as stored.
    fn refresh(&mut self, world: &World) -> (OtaState, u16) {
        let sql = "SELECT state, packets_acked, reason, firmware_before, sent_at FROM ota_tasks WHERE task_id = ?1";
        let task = &mut self.task;
        world
            .sql()
            .query_row(sql, [task.id], |row| {
                task.state = OtaState::from_code(row.get(0)?).unwrap();
                task.packets_acked = row.get(1)?;
                task.reason = row.get(2)?;
                task.firmware_before = row.get(3)?;
                task.sent_at = row.get(4)?;
                Ok(())
            })
            .unwrap();
        (task.state, task.packets_acked)
    }

    fn offer(&mut self, world: &mut World) {
        self.refresh(world);
        if self.task.state.is_final() {
            return;
        }
        let verification =
            self.image.as_ref().filter(|_| self.task.verification).map(|image| Verification::of(image, 0x21, 207));
        let start = OtaStart { task: self.task.clone(), image: self.image.clone(), verification };
        world.tell(Message::OtaStart(Box::new(start)));
    }

    /// Runs until `done`, offering the update all the time, as the driver does.
    fn run_until(&mut self, world: &mut World, ms: u64, what: &str, mut done: impl FnMut(OtaState, u16) -> bool) {
        let until = world.now_ms + ms;
        loop {
            self.offer(world);
            for _ in 0..OFFER_MS / 100 {
                let (state, acked) = self.refresh(world);
                if done(state, acked) {
                    return;
                }
                world.run_for(100);
            }
            assert!(world.now_ms < until, "not within {ms} ms: {what}, {:?}\n{}", self.task, world.dump());
        }
    }

    fn run_to_the_end(&mut self, world: &mut World) -> OtaState {
        self.run_until(world, 30 * MINUTE, "the end", |state, _| state.is_final());
        self.task.state
    }
}

fn new(method: OtaMethod) -> NewOtaTask {
    NewOtaTask {
        device_id: "00000000".parse().unwrap(),
        method,
        firmware_id: None,
        ftp: None,
        verification: false,
        force: false,
        packets_total: 0,
        at: sim::EPOCH_MS,
        request_id: "test".to_owned(),
        idempotency: None,
    }
}

/// The device has the image, filled up with zeros.
fn assert_has(has: &[u8], update: &Update) {
    let image = update.image.as_deref().unwrap();
    assert!(has.len() >= image.len() && &has[..image.len()] == image, "{} of {} bytes", has.len(), image.len());
    assert!(has[image.len()..].iter().all(|byte| *byte == 0));
}

/// Numbers of the packets of `command` that reached the wire, in order.
fn packets(world: &World, peer: usize, command: u8) -> Vec<u16> {
    let frames = world.peers[peer].received.iter().filter(|frame| frame.get(11) == Some(&command) && frame.len() > 200);
    frames.map(|frame| u16::from_le_bytes([frame[14], frame[15]])).collect()
}

#[test]
fn a_device_is_updated_packet_by_packet() {
    let power_board = Model { power_board_version: 110, ..Model::default() };
    for (model, method, versions) in [
        (Model::default(), OtaMethod::E0, (207, 0)),
        (Model::legacy(), OtaMethod::F8, (206, 0)),
        (power_board, OtaMethod::E1, (206, 111)),
    ] {
        let mut world = World::new();
        let (peer, device) = charger(&mut world, model);
        let mut update = Update::pushed(&mut world, peer, method, 7_777);
        let began = world.now_ms;
        assert_eq!(update.run_to_the_end(&mut world), OtaState::Done, "{:?}", update.task);
        let total = method.packets(7_777, false).unwrap();
        assert_eq!(packets(&world, peer, method.command().unwrap()), (1..=total).collect::<Vec<_>>());
        assert!(world.now_ms - began >= 500 * u64::from(total - 1), "half a second from packet to packet");
        world.run_for(10 * SECOND);
        assert_has(locked(&device).firmware(), &update);
        let device = locked(&device);
        assert_eq!((device.fw_version(), device.power_board_version()), versions);
    }
}

#[test]
fn a_host_is_updated_and_passes_updates_on() {
    for (model, method) in [
        (HostModel::default(), OtaMethod::Fa),
        (HostModel::legacy(), OtaMethod::F9),
        (HostModel::default(), OtaMethod::E2),
    ] {
        let mut world = World::new();
        let device = HostDevice::with_model(0, 2, 2, Behaviour::default(), model, Model::default());
        let id = device.phy_id().to_string();
        let device = Arc::new(Mutex::new(device));
        let peer = world.add(&id, Arc::clone(&device));
        world.run_until(MINUTE, "the host is online", |world| world.online(peer));
        // What is passed on is told by its verification packet.
        let wanted = NewOtaTask { verification: method == OtaMethod::E2, ..new(method) };
        let device_id = world.peers[peer].id;
        let mut update = Update::new(&mut world, device_id, wanted, Some(image(4_000)));
        update.run_until(&mut world, MINUTE, "a third", |_, acked| acked >= 5);
        world.cut(peer, 3 * SECOND);
        assert_eq!(update.run_to_the_end(&mut world), OtaState::Done, "{:?}", update.task);
        let device = locked(&device);
        assert_has(if method == OtaMethod::E2 { device.sub_firmware() } else { device.firmware() }, &update);
    }
}

#[test]
fn a_verification_packet_follows_where_it_is_wanted() {
    let model = Model { wants_check_packet: true, ..Model::default() };
    for (verification, state) in [(true, OtaState::Done), (false, OtaState::Failed)] {
        let mut world = World::new();
        let (peer, device) = charger(&mut world, model);
        let device_id = world.peers[peer].id;
        let wanted = NewOtaTask { verification, ..new(OtaMethod::E0) };
        let mut update = Update::new(&mut world, device_id, wanted, Some(image(2_000)));
        assert_eq!(update.run_to_the_end(&mut world), state);
        if verification {
            assert_has(locked(&device).firmware(), &update);
            assert_eq!(packets(&world, peer, 0xE0).len(), 11);
        } else {
            assert_eq!(update.task.reason.as_deref(), Some("no_verification_packet"));
        }
    }
}

#[test]
fn an_update_survives_lost_connections_and_a_lost_gateway() {
    let mut world = World::new();
    let (peer, device) = charger(&mut world, Model::default());
    let mut update = Update::pushed(&mut world, peer, OtaMethod::E0, 8_000);
    update.run_until(&mut world, MINUTE, "a quarter", |_, acked| acked >= 10);
    world.cut(peer, 3 * SECOND);
    update.run_until(&mut world, MINUTE, "half", |_, acked| acked >= 20);
    world.restart();
    update.run_until(&mut world, MINUTE, "three quarters", |_, acked| acked >= 30);
    // What the store has committed, the gateway never hears of.
    world.store_latency = Some(Box::new(|| 50));
    world.run_for(520);
    world.restart_after_commit();
    world.store_latency = None;
    assert_eq!(update.run_to_the_end(&mut world), OtaState::Done);
    world.run_for(10 * SECOND);
    assert_has(locked(&device).firmware(), &update);
    let sent = packets(&world, peer, 0xE0);
    assert!(sent.len() <= 40 + 3, "at most one packet a loss is sent again: {sent:?}");
    assert!(sent.windows(2).all(|pair| pair[1] == pair[0] || pair[1] == pair[0] + 1), "{sent:?}");
}

#[test]
fn a_store_that_is_down_holds_the_update_up() {
    let mut world = World::new();
    let (peer, device) = charger(&mut world, Model::default());
    let mut update = Update::pushed(&mut world, peer, OtaMethod::E0, 4_000);
    update.run_until(&mut world, MINUTE, "a quarter", |_, acked| acked >= 5);
    let before = packets(&world, peer, 0xE0).len();
    world.store_down = true;
    world.run_for(20 * SECOND);
    assert!(packets(&world, peer, 0xE0).len() <= before + 1, "no packet behind one that is not stored");
    world.store_down = false;
    assert_eq!(update.run_to_the_end(&mut world), OtaState::Done);
    world.run_for(10 * SECOND);
    assert_has(locked(&device).firmware(), &update);
}

#[test]
fn what_goes_wrong_on_the_way_is_mended() {
    for (model, method) in [(Model::default(), OtaMethod::E0), (Model::legacy(), OtaMethod::F8)] {
        let mut world = World::new();
        let (peer, device) = charger(&mut world, model);
        for fault in [
            Fault::UpdateAckLost(3),
            Fault::UpdateRefused(5, UpdateResult::RESEND),
            Fault::UpdatePowerCut(7),
            Fault::UpdateAckLost(9),
        ] {
            locked(&device).set_fault(fault);
        }
        let mut update = Update::pushed(&mut world, peer, method, 3_000);
        assert_eq!(update.run_to_the_end(&mut world), OtaState::Done, "{method:?} {:?}", update.task);
        world.run_for(10 * SECOND);
        assert_has(locked(&device).firmware(), &update);
    }
}

#[test]
fn a_device_that_does_not_answer_ends_its_update() {
    let mut world = World::new();
    // It takes no packets of this command.
    let (peer, _) = charger(&mut world, Model { update_command: 0xF8, ..Model::default() });
    let mut update = Update::pushed(&mut world, peer, OtaMethod::E0, 1_000);
    assert_eq!(update.run_to_the_end(&mut world), OtaState::Failed);
    assert_eq!(update.task.reason.as_deref(), Some("no_reply"));
    assert_eq!(packets(&world, peer, 0xE0), [1, 1, 1, 1], "sent again three times");
}

#[test]
fn an_order_goes_before_the_update() {
    let mut world = World::new();
    let (peer, device) = charger(&mut world, Model::default());
    let mut update = Update::pushed(&mut world, peer, OtaMethod::E0, 6_000);
    update.run_until(&mut world, MINUTE, "a third", |_, acked| acked >= 10);
    let order = world.charge(peer, 1, ChargeMode::Time { minutes: 60 });
    world.run_until(10 * SECOND, "charging", |world| world.status(order) == chargegate::model::OrderStatus::Charging);
    let before = packets(&world, peer, 0xE0).len();
    world.run_for(3 * MINUTE);
    assert_eq!(packets(&world, peer, 0xE0).len(), before, "it rests");
    world.order_event(order, Event::Stop);
    assert_eq!(update.run_to_the_end(&mut world), OtaState::Done);
    world.run_for(10 * SECOND);
    assert_has(locked(&device).firmware(), &update);
    assert!(world.order(order).settled);
}

#[test]
fn a_forced_update_goes_on_beside_an_order() {
    let mut world = World::new();
    let (peer, _) = charger(&mut world, Model::default());
    let order = world.charge(peer, 1, ChargeMode::Time { minutes: 60 });
    world.run_until(10 * SECOND, "charging", |world| world.status(order) == chargegate::model::OrderStatus::Charging);
    let device_id = world.peers[peer].id;
    let forced = NewOtaTask { force: true, ..new(OtaMethod::E0) };
    let mut update = Update::new(&mut world, device_id, forced, Some(image(2_000)));
    assert_eq!(update.run_to_the_end(&mut world), OtaState::Done);
    assert!(!world.order(order).settled);
}

#[test]
fn a_fleet_is_updated_within_its_limits() {
    // Two at a time, three packets a second between them; each device alone would take two a second.
    let config = CoreConfig { ota_running_max: 2, ota_packets_per_s: 3, ..CoreConfig::new(ShardId(0)) };
    let mut world = World::with(config);
    let mut fleet = Vec::new();
    for index in 0..3 {
        let device = Ap3000Device::new(index, 2, Behaviour::default());
        let id = device.phy_id().to_string();
        let device = Arc::new(Mutex::new(device));
        let peer = world.add(&id, Arc::clone(&device));
        world.run_until(10 * SECOND, "the device is online", |world| world.online(peer));
        fleet.push((Update::pushed(&mut world, peer, OtaMethod::E0, 6_000), device));
    }
    let began = world.now_ms;
    let mut most = 0;
    while fleet.iter_mut().any(|(update, _)| update.refresh(&world).0 != OtaState::Done) {
        assert!(world.now_ms < began + 30 * MINUTE, "{}", world.dump());
        fleet.iter_mut().for_each(|(update, _)| update.offer(&mut world));
        for _ in 0..50 {
            world.run_for(100);
            let running = fleet.iter_mut().map(|(update, _)| update.refresh(&world).0);
            most = most.max(running.filter(|state| matches!(state, OtaState::Sent | OtaState::InProgress)).count());
        }
        let acked: u64 = fleet.iter().map(|(update, _)| u64::from(update.task.packets_acked)).sum();
        assert!(acked <= (world.now_ms - began) * 3 / 1_000 + 2, "{acked} packets in {} ms", world.now_ms - began);
    }
    assert_eq!(most, 2);
    world.run_for(10 * SECOND);
    for (update, device) in &fleet {
        assert_has(locked(device).firmware(), update);
    }
}

#[test]
fn a_cancelled_update_stops() {
    let mut world = World::new();
    let (peer, device) = charger(&mut world, Model::default());
    let mut update = Update::pushed(&mut world, peer, OtaMethod::E0, 6_000);
    update.run_until(&mut world, MINUTE, "a third", |_, acked| acked >= 10);
    let cancel = OtaJob::Cancel { id: update.task.id, at: world.now().unix_ms };
    // Nobody tells the shard: it learns it with the next packet.
    world.call(Job::Ota(Box::new(cancel)));
    world.run_for(2 * SECOND);
    let sent = packets(&world, peer, 0xE0).len();
    world.run_for(MINUTE);
    assert_eq!(packets(&world, peer, 0xE0).len(), sent);
    assert!(locked(&device).firmware().is_empty());
    // And the device is free for the next, of which the shard hears the cancellation at once.
    let mut next = Update::pushed(&mut world, peer, OtaMethod::E0, 6_000);
    next.run_until(&mut world, MINUTE, "a third", |_, acked| acked >= 10);
    let device_id = world.peers[peer].id;
    world.tell(Message::OtaEnded { device_id, task_id: next.task.id });
    let sent = packets(&world, peer, 0xE0).len();
    world.run_for(MINUTE);
    assert_eq!(packets(&world, peer, 0xE0).len(), sent);
}

#[test]
fn a_device_that_updates_itself_is_told_once() {
    let mut world = World::new();
    let (peer, _) = charger(&mut world, Model::default());
    let device_id = world.peers[peer].id;
    let mut update = Update::new(&mut world, device_id, new(OtaMethod::SelfUpdate), None);
    assert_eq!(update.run_to_the_end(&mut world), OtaState::Done);
    let told = world.peers[peer].received.iter().filter(|frame| frame.get(11) == Some(&0xE4)).count();
    assert_eq!(told, 1);
}

/// A gateway that fetches its firmware when it is told to, and starts with it a minute later.
struct Fetching {
    id: GatewayId,
    version: &'static [u8],
    asked: Vec<(std::net::Ipv4Addr, u16, String)>,
    restart_us: Option<u64>,
    beat_us: Option<u64>,
    out: Vec<u8>,
    closes: bool,
}

impl Fetching {
    fn new(id: GatewayId) -> Self {
        Self {
            id,
            version: b"V1.00",
            asked: Vec::new(),
            restart_us: None,
            beat_us: None,
            out: Vec::new(),
            closes: false,
        }
    }

    fn beat(&mut self, now_us: u64) {
        let version = self.version;
        bkv::encode::frame(&mut self.out, Direction::Up, 0, 0, self.id, |out| {
            out.extend_from_slice(b"89860448161870064815");
            let mut text = [0; 8];
            text[..version.len()].copy_from_slice(version);
            out.extend_from_slice(&text);
            out.push(31);
        });
        self.beat_us = Some(now_us + 60_000_000);
    }
}

impl Device for Fetching {
    fn connected(&mut self, now_us: u64) {
        self.beat(now_us);
    }

    fn receive(&mut self, now_us: u64, mut bytes: &[u8]) {
        while let Step::Item { item, consumed } = bkv::deframe(bytes) {
            if let Ok(bkv::Body::Ota(ota)) = bkv::decode_body(&item) {
                let file = String::from_utf8(ota.file.as_bytes().to_vec()).unwrap();
                self.asked.push((ota.ftp_ip, ota.ftp_port, file));
                self.restart_us = Some(now_us + 60_000_000);
            }
            bytes = &bytes[consumed..];
        }
    }

    fn timeout(&mut self, now_us: u64) {
        if self.restart_us.is_some_and(|at| at <= now_us) {
            self.restart_us = None;
            self.version = b"V1.01";
            self.closes = true;
        } else if self.beat_us.is_some_and(|at| at <= now_us) {
            self.beat(now_us);
        }
    }

    fn poll_output(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.out);
    }

    fn poll_timeout(&self) -> Option<u64> {
        [self.restart_us, self.beat_us].into_iter().flatten().min()
    }

    fn disconnected(&mut self, _: u64) {
        self.beat_us = None;
    }

    fn poll_close(&mut self) -> bool {
        std::mem::take(&mut self.closes)
    }
}

#[test]
fn a_gateway_that_fetched_its_firmware_shows_another_one() {
    for restarts in [false, true] {
        let mut world = World::new();
        let id = "86100000000001";
        let device = Arc::new(Mutex::new(Fetching::new(id.parse().unwrap())));
        let peer = world.add(id, Arc::clone(&device));
        world.run_until(10 * SECOND, "the device is online", |world| world.online(peer));
        let source = FtpSource { host: [192, 0, 2, 1].into(), port: 2121, file: "dtu-v1.01.bin".to_owned() };
        let wanted = NewOtaTask { ftp: Some(source), ..new(OtaMethod::Ftp) };
        let mut update = Update::new(&mut world, id.parse().unwrap(), wanted, None);
        update.run_until(&mut world, MINUTE, "told", |state, _| state == OtaState::Sent);
        assert_eq!(locked(&device).asked, [([192, 0, 2, 1].into(), 2121, "dtu-v1.01.bin".to_owned())]);
        if restarts {
            world.restart();
        }
        assert_eq!(update.run_to_the_end(&mut world), OtaState::Done);
        let device = locked(&device);
        assert_eq!((device.version, device.asked.len()), (&b"V1.01"[..], 1), "told once");
    }
}
