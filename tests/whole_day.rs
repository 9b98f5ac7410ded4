//! A day in the life of a fleet, in virtual time, from one seed: devices of all kinds do everything the documents allow at random,
//! third parties charge, stop, command and configure, connections break, the store and the gateway go down and come back.
//!
//! When the day is over and the world has come to rest, the simulated devices' own ledgers are compared with the store, to the
//! last second, watt-hour and cent.
//!
//! `cargo test --test whole_day` runs a small fleet. `make soak` runs 1,000 devices for 24 hours; `SEED`, `DEVICES`, `HOURS`
//! choose another day.

#[path = "witness/chaos.rs"]
mod chaos;
mod sim;
mod witness;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use chaos::{Chaos, MINUTE};
use chargegate::{
    gateway::{
        CoreConfig, ShardId,
        card::{CardRules, NamedTariff},
        order::Event,
    },
    model::{
        Ap3000Call, CardNo, CardState, ChargeMode, DeviceCall, DeviceId, FeePeriod, GatewayCall, ModifiedLimit,
        OrderNo, OtaMethod, PowerTier, Priority,
    },
    pricing::Tariff,
    protocol::ap3000::{codes::AlarmType, offline::VerificationCode},
    store::{Called, CardChange, CardJob, Job, NewCall, Outcome, WantedParams},
};
use chargegate_loadtest::device::{
    Ap3000Device, Behaviour, BkvDevice,
    ap3000::{Card, Model},
    ledger::{Entry, Reference, Start, State},
};
use serde_json::{Value, json};
use sim::World;
use witness::{Draws, Record, audit, books::Books};

const HOUR: u64 = 60 * MINUTE;
/// Longest charge and longest absence, one after the other, and the time a device keeps a record to itself.
const REST_MS: u64 = 30 * HOUR;

/// Cards of each kind that are registered.
const CARDS: u32 = 200;

/// A simulated device that the test tells what its users do.
enum Actor {
    Charger(Arc<Mutex<Ap3000Device>>),
    Gateway(Arc<Mutex<BkvDevice>>),
}

impl Actor {
    fn entries(&self) -> Vec<Entry> {
        match self {
            Self::Charger(device) => lock(device).ledger().entries().copied().collect(),
            Self::Gateway(device) => lock(device).ledger().entries().copied().collect(),
        }
    }
}

fn lock<D>(device: &Arc<Mutex<D>>) -> MutexGuard<'_, D> {
    device.lock().unwrap()
}

/// What a day is made of.
#[derive(Clone, Copy)]
struct Plan {
    seed: u64,
    devices: u32,
    hours: u64,
}

struct Day {
    plan: Plan,
    world: World,
    draws: Draws,
    actors: Vec<Actor>,
    orders: Vec<OrderNo>,
    counts: BTreeMap<&'static str, u32>,
}

impl Day {
    fn new(plan: Plan) -> Self {
        let mut world = World::with_cards(CoreConfig::new(ShardId(0)), rules());
        for card in 0..CARDS {
            let at = world.now().unix_ms;
            for of_gateways in [false, true] {
                let register = CardChange::Register { state: CardState::NORMAL, tariff: None, expires_at: None };
                let recharge = CardChange::Recharge { amount_cent: 2_000, reference: None };
                for change in [register, recharge] {
                    let outcome = world.call(card_job(card_no(card, of_gateways), change, at));
                    assert!(matches!(outcome, Outcome::Card(_)), "{outcome:?}");
                }
            }
        }
        let mut actors = Vec::new();
        let behaviour = Behaviour { seed: plan.seed, unplugged_percent: 5, ..Behaviour::default() };
        for index in 0..plan.devices {
            // Chargers beat as delivered: every three minutes.
            let charger = Behaviour { heartbeat_us: 180_000_000, ..behaviour };
            let (id, actor) = match index % 10 {
                0..5 => {
                    let device = Ap3000Device::new(index, 2, charger);
                    (device.phy_id().to_string(), Actor::Charger(Arc::new(Mutex::new(device))))
                }
                5 => {
                    let device = Ap3000Device::with_model(index, 10, charger, Model::cabinet());
                    (device.phy_id().to_string(), Actor::Charger(Arc::new(Mutex::new(device))))
                }
                6 => {
                    let device = Ap3000Device::with_model(index, 2, charger, Model::legacy());
                    (device.phy_id().to_string(), Actor::Charger(Arc::new(Mutex::new(device))))
                }
                7 => {
                    let device = BkvDevice::new(index, 4, behaviour);
                    (device.gateway_id().to_string(), Actor::Gateway(Arc::new(Mutex::new(device))))
                }
                _ => {
                    let device = BkvDevice::new(index, 0, behaviour);
                    (device.gateway_id().to_string(), Actor::Gateway(Arc::new(Mutex::new(device))))
                }
            };
            let at = match &actor {
                Actor::Charger(device) => world.add(&id, Arc::clone(device)),
                Actor::Gateway(device) => world.add(&id, Arc::clone(device)),
            };
            world.peers[at].forgetful = true;
            actors.push(actor);
        }
        Self { plan, world, draws: Draws::new(plan.seed), actors, orders: Vec::new(), counts: BTreeMap::new() }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn now_us(&self) -> u64 {
        self.world.now_ms * 1000
    }

    fn somebody(&mut self) -> usize {
        usize::try_from(self.draws.below(u64::from(self.plan.devices))).unwrap()
    }

    fn run(&mut self) {
        let mut chaos = Chaos::begin(&mut self.world, self.plan.seed, 20_000);
        let until = self.world.now_ms + self.plan.hours * HOUR;
        // Each device is the scene of something every half hour.
        let pause = 2 * 30 * MINUTE / u64::from(self.plan.devices);
        while self.world.now_ms < until {
            let wait = self.draws.within(1, pause);
            chaos.run_for(&mut self.world, wait);
            match self.draws.below(10_000) {
                0..4_500 => self.charge(),
                4_500..5_500 => self.swipe(),
                5_500..6_300 => self.order_event(Event::Stop, "stop"),
                6_300..6_800 => self.order_event(Event::Cancel, "cancel"),
                6_800..7_400 => self.offline(),
                7_400..8_000 => self.command(),
                8_000..8_300 => self.parameters(),
                8_300..8_600 => self.recharge(),
                8_600..9_000 => self.alarm(),
                9_000..9_200 => self.unplug(),
                9_200..9_300 => self.update(),
                9_300..9_930 => self.cut(),
                9_930..9_965 => {
                    chaos.outage(&mut self.world, &mut self.draws);
                    self.count("outage");
                }
                _ => self.restart(),
            }
        }
        chaos.end(&mut self.world);
        let rested_by = self.world.now_ms + REST_MS;
        while !self.is_quiet() {
            assert!(self.world.now_ms < rested_by, "charges or orders stay open\n{}", self.open());
            self.world.run_for(10 * MINUTE);
        }
        // Holds of orders without a settlement are given back an hour after their end.
        self.world.run_for(2 * HOUR);
    }

    fn charge(&mut self) {
        let peer = self.somebody();
        let ports = u64::try_from(self.world.ports(peer)).unwrap();
        if ports == 0 {
            return;
        }
        let port_no = u16::try_from(self.draws.within(1, ports)).unwrap();
        let minutes = u16::try_from(self.draws.within(1, 240)).unwrap();
        let mode = match (&self.actors[peer], self.draws.below(10)) {
            (_, 0..4) => ChargeMode::Time { minutes },
            (_, 4..7) => ChargeMode::Energy { wh: u32::try_from(self.draws.within(1, 60)).unwrap() * 10 },
            (Actor::Charger(_), _) => ChargeMode::Full,
            (Actor::Gateway(_), 7) => ChargeMode::ServiceFee { periods: periods(), by_energy: self.draws.percent(50) },
            (Actor::Gateway(_), _) => ChargeMode::Power { tiers: tiers() },
        };
        if let Some(order_no) = self.world.try_charge(peer, port_no, mode) {
            self.orders.push(order_no);
            self.count("charge");
        }
    }

    fn order_event(&mut self, event: Event, what: &'static str) {
        if chaos::order_event(&mut self.world, &mut self.draws, &self.orders, 200, event) {
            self.count(what);
        }
    }

    /// A card or a code starts a charge without the gateway.
    fn offline(&mut self) {
        let peer = self.somebody();
        let now_us = self.now_us();
        let Actor::Charger(device) = &self.actors[peer] else { return };
        let device = Arc::clone(device);
        let mut device = lock(&device);
        // Seconds of a day tell charges apart.
        let duration_s = u32::try_from(self.draws.within(60, 7_200)).unwrap();
        let port = u8::try_from(self.draws.below(2)).unwrap();
        let began = if self.draws.percent(70) {
            let card = Card::new(u32::try_from(self.draws.below(u64::from(CARDS) + 20)).unwrap().to_be_bytes());
            device.offline_charge(now_us, &card, port, Some(duration_s))
        } else {
            let code = VerificationCode::at(device.phy_id(), port, device.unix_s(now_us));
            device.code_charge(now_us, code, port, Some(duration_s))
        };
        drop(device);
        self.world.poke(peer);
        if began {
            self.count("offline charge");
        }
    }

    /// Somebody holds a card to a reader: to charge, or to hear the balance.
    fn swipe(&mut self) {
        let peer = self.somebody();
        let now_us = self.now_us();
        // Some cards are nobody's.
        let card = u32::try_from(self.draws.below(u64::from(CARDS) + 20)).unwrap();
        let asks = self.draws.percent(15);
        let hole = u8::try_from(self.draws.below(2)).unwrap();
        let swiped = match &self.actors[peer] {
            Actor::Charger(device) => {
                let port = if asks { 0xFF } else { hole };
                lock(device).swipe(now_us, &Card::new(card.to_be_bytes()), port)
            }
            Actor::Gateway(device) if asks => lock(device).ask_balance(now_us, digits(card), 0, hole),
            Actor::Gateway(device) => lock(device).swipe(now_us, digits(card), 0, hole),
        };
        self.world.poke(peer);
        if swiped {
            self.count("swipe");
        }
    }

    fn recharge(&mut self) {
        let card = card_no(u32::try_from(self.draws.below(u64::from(CARDS))).unwrap(), self.draws.percent(50));
        let amount_cent = i64::try_from(self.draws.within(1, 500)).unwrap();
        let at = self.world.now().unix_ms;
        let change = CardChange::Recharge { amount_cent, reference: None };
        if let Outcome::Card(_) = self.world.call(card_job(card, change, at)) {
            self.count("recharge");
        }
    }

    fn command(&mut self) {
        let peer = self.somebody();
        let device_id = self.world.peers[peer].id;
        let call = match (&self.actors[peer], self.draws.below(8)) {
            (Actor::Charger(_), 0) => DeviceCall::Ap3000(Ap3000Call::Reboot),
            (Actor::Charger(_), 1) => DeviceCall::Ap3000(Ap3000Call::QueryStatus),
            (Actor::Charger(_), 2 | 3) => {
                let seconds = u16::try_from(self.draws.within(60, 20_000)).unwrap();
                let limit = ModifiedLimit::Time { seconds, stop_when_full: self.draws.percent(50) };
                DeviceCall::Ap3000(Ap3000Call::ModifyCharge { port_no: 1, limit })
            }
            (Actor::Charger(_), 4) => DeviceCall::Ap3000(Ap3000Call::EepromWrite { address: 16, data: vec![1, 2, 3] }),
            (Actor::Charger(_), 5) => DeviceCall::Ap3000(Ap3000Call::EepromRead { address: 16, length: 3 }),
            (Actor::Charger(_), _) => DeviceCall::Ap3000(Ap3000Call::Locate { seconds: 5 }),
            (Actor::Gateway(_), 0..4) => DeviceCall::Gateway(GatewayCall::QuerySocket { socket: 0 }),
            (Actor::Gateway(_), _) => DeviceCall::Gateway(GatewayCall::SetVoice {
                socket: 254,
                hole: 1,
                buzzer: false,
                voice: true,
                periods: vec![[8, 0, 22, 0]],
            }),
        };
        let at = self.world.now().unix_ms;
        let new = NewCall {
            device_id,
            attempts_max: if call.is_idempotent() { 3 } else { 1 },
            call,
            priority: Priority::Low,
            waiting_max: 16,
            at,
            not_after: at + 300_000,
            request_id: "day".to_owned(),
            idempotency: None,
        };
        if let Outcome::Called(Called::Queued(_)) = self.world.call(Job::Call(Box::new(new))) {
            self.count("command");
        }
    }

    fn parameters(&mut self) {
        let peer = self.somebody();
        let device_id = self.world.peers[peer].id;
        let (socket, values) = match (&self.actors[peer], self.draws.below(4)) {
            (Actor::Charger(_), 0) => (0, json!({"float_percent": self.draws.within(1, 100)})),
            (Actor::Charger(_), 1) => (0, json!({"max_duration_s": self.draws.within(36_000, 60_000)})),
            (Actor::Charger(_), 2) => (0, json!({"min_power_point_s": self.draws.within(600, 3_600), "qr_light": 0})),
            (Actor::Charger(_), _) => (0, json!({"mute": self.draws.below(2)})),
            (Actor::Gateway(_), _) => {
                let socket = u8::from(self.world.ports(peer) > 2);
                (socket, json!({"max_charge_min": self.draws.within(600, 900)}))
            }
        };
        let wanted = WantedParams {
            device_id,
            socket,
            values: values.as_object().unwrap().clone().into_iter().collect(),
            refresh: false,
            at: self.world.now().unix_ms,
            request_id: "day".to_owned(),
            idempotency: None,
        };
        if let Outcome::Params(Some(_)) = self.world.call(Job::SetParams(Box::new(wanted))) {
            self.count("parameter");
        }
    }

    fn alarm(&mut self) {
        let peer = self.somebody();
        let now_us = self.now_us();
        if let Actor::Charger(device) = &self.actors[peer]
            && lock(device).alarm(now_us, AlarmType(u8::try_from(self.draws.within(1, 7)).unwrap()), 0, None)
        {
            self.world.poke(peer);
            self.count("alarm");
        }
    }

    /// New firmware for a charger.
    fn update(&mut self) {
        let peer = self.somebody();
        let bytes = self.draws.within(150, 4_000);
        let image: Vec<u8> = (0..bytes).map(|_| u8::try_from(self.draws.below(256)).unwrap()).collect();
        let (method, device_type) = match (&self.actors[peer], peer % 10) {
            (Actor::Charger(_), 6) => (OtaMethod::F8, 0x02),
            (Actor::Charger(_), 5) => (OtaMethod::E0, 0x30),
            (Actor::Charger(_), _) => (OtaMethod::E0, 0x21),
            (Actor::Gateway(_), _) => return,
        };
        if self.world.update(peer, method, device_type, image.into()) {
            self.count("update");
        }
    }

    /// Somebody takes the plug out, and puts another in.
    fn unplug(&mut self) {
        let peer = self.somebody();
        let now_us = self.now_us();
        match &self.actors[peer] {
            Actor::Charger(device) => {
                let mut device = lock(device);
                device.unplug(now_us, 0);
                device.plug(0);
            }
            Actor::Gateway(device) => {
                let mut device = lock(device);
                device.unplug(now_us, 0, 0);
                device.plug(0, 0);
            }
        }
        self.world.poke(peer);
        self.count("unplug");
    }

    fn cut(&mut self) {
        let peer = self.somebody();
        chaos::cut(&mut self.world, &mut self.draws, peer);
        self.count("cut");
    }

    fn restart(&mut self) {
        chaos::restart(&mut self.world, &mut self.draws, |draws| draws.within(500, MINUTE), 30_000);
        self.count("restart");
    }

    fn is_quiet(&self) -> bool {
        let open = |entry: &Entry| matches!(entry.state, State::Running | State::Unacknowledged);
        let quiet = self.actors.iter().all(|actor| !actor.entries().iter().any(open));
        quiet
            && self.world.count("SELECT count(*) FROM orders WHERE status IN (0, 1, 2, 8, 9, 10)") == 0
            && self.world.count("SELECT count(*) FROM ota_tasks WHERE state IN (0, 1, 2)") == 0
    }

    fn open(&self) -> String {
        let mut text = String::new();
        for (actor, peer) in self.actors.iter().zip(&self.world.peers) {
            for entry in actor.entries() {
                if matches!(entry.state, State::Running | State::Unacknowledged) {
                    text += &format!("{}: {entry:?}\n", peer.id);
                }
            }
        }
        let open = self.world.count("SELECT count(*) FROM orders WHERE status IN (0, 1, 2, 8, 9, 10)");
        let mut statement = self
            .world
            .sql()
            .prepare(
                "SELECT task_id, device_id, method, state, packets_acked, packets_total FROM ota_tasks WHERE state < 3",
            )
            .unwrap();
        let rows = statement
            .query_map([], |row| {
                Ok(format!(
                    "update {} of {} by {}: {}, {}/{}\n",
                    row.get::<_, i64>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, String>(2)?,
                    row.get::<_, u8>(3)?,
                    row.get::<_, u16>(4)?,
                    row.get::<_, u16>(5)?
                ))
            })
            .unwrap();
        rows.for_each(|row| text += &row.unwrap());
        text + &format!("{open} orders are open\n")
    }

    fn check(&self) {
        let sql = self.world.sql();
        let mut records = Vec::new();
        let mut spent: BTreeMap<String, i64> = BTreeMap::new();
        for (actor, peer) in self.actors.iter().zip(&self.world.peers) {
            for entry in actor.entries() {
                assert_eq!(entry.state, State::Acknowledged, "{}: {entry:?}", peer.id);
                if let Some(cents) = entry.spent_cent {
                    *spent.entry(peer.id.to_string()).or_default() += i64::from(cents);
                }
                records.push(record(peer.id, &entry));
            }
        }
        let books = Books::Sqlite(sql);
        audit::records_are_stored_once(&books, &records);
        audit::events_are_gapless(&books);
        audit::orders_live_one_after_the_other(&books);
        // What devices say they charged for is what is stored, device by device.
        let mut statement = sql
            .prepare("SELECT device_id, sum(amount_cent) FROM settlements WHERE amount_cent IS NOT NULL GROUP BY 1")
            .unwrap();
        let stored: BTreeMap<String, i64> = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .map(Result::unwrap)
            .filter(|(_, cents)| *cents > 0)
            .collect();
        spent.retain(|_, cents| *cents > 0);
        assert_eq!(stored, spent);
        self.parameters_agree();
        self.firmware_agrees();
        self.accounts_agree();
        let doubled = "SELECT count(*) FROM (SELECT order_no FROM settlements GROUP BY order_no HAVING count(*) > 1)";
        assert_eq!(self.world.count(doubled), 0, "an order was settled twice");
    }

    /// Every desired value that was not refused is the device's, and is known to be.
    fn parameters_agree(&self) {
        let pending = "SELECT count(*) FROM device_params WHERE desired IS NOT NULL AND refused IS NULL \
                       AND desired IS NOT reported";
        let mut statement = self
            .world
            .sql()
            .prepare("SELECT name, reported FROM device_params WHERE device_id = ?1 AND reported IS NOT NULL")
            .unwrap();
        let mut confirmed = 0;
        for (actor, peer) in self.actors.iter().zip(&self.world.peers) {
            let Actor::Charger(device) = actor else { continue };
            let parameters = lock(device).parameters();
            let rows = statement.query_map([peer.id.to_string()], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
            for (name, reported) in rows.map(Result::<(String, String), _>::unwrap) {
                let reported: Value = serde_json::from_str(&reported).unwrap();
                let has = match name.as_str() {
                    "float_percent" => u64::from(parameters.params_1_1.float_percent),
                    "max_duration_s" => u64::from(parameters.limits.max_duration_s),
                    "min_power_point_s" => u64::from(parameters.params_1_2.min_power_point_s),
                    "mute" => u64::from(parameters.mute),
                    _ => continue,
                };
                assert_eq!(reported.as_u64(), Some(has), "{name} of {}", peer.id);
                confirmed += 1;
            }
        }
        assert!(confirmed > 0);
        // What expired while its device was away for the rest of the day waits for the next bind.
        let left = self.world.count(pending);
        let wanted = i64::from(self.counts.get("parameter").copied().unwrap_or(0));
        assert!(left * 20 <= wanted, "{left} of {wanted} wishes are pending");
    }
}

impl Day {
    /// Every card has what was paid in less what its charges cost, each charge was booked once, at its price, and nothing is
    /// held any more.
    fn accounts_agree(&self) {
        let sql = self.world.sql();
        let mut statement = sql
            .prepare(
                "SELECT o.order_no, o.duration_seconds, o.spec ->> '$.mode.time.minutes', o.hold_cent, o.price_cent, \
                 o.charged_cent, o.device_ref IS NOT NULL, (SELECT count(*) FROM card_transactions t \
                 WHERE t.order_no = o.order_no), (SELECT sum(amount_cent) FROM card_transactions t \
                 WHERE t.order_no = o.order_no) FROM orders o WHERE o.card_no IS NOT NULL AND o.settled_at IS NOT NULL \
                 AND o.hold_cent IS NOT NULL",
            )
            .unwrap();
        let mut rows = statement.query([]).unwrap();
        let mut paid = 0;
        while let Some(row) = rows.next().unwrap() {
            let order_no: String = row.get(0).unwrap();
            let (seconds, minutes): (i64, Option<i64>) = (row.get(1).unwrap(), row.get(2).unwrap());
            let (hold, price, charged): (i64, i64, i64) =
                (row.get(3).unwrap(), row.get(4).unwrap(), row.get(5).unwrap());
            let offline: bool = row.get(6).unwrap();
            assert_eq!(price, minutes.map_or(seconds, |minutes| seconds.min(minutes * 60)) / 60, "{order_no}");
            assert!(charged <= price && (offline || charged <= hold), "{order_no}: {charged} of {price}, hold {hold}");
            let booked: (i64, i64) = (row.get(7).unwrap(), row.get(8).unwrap());
            assert_eq!(booked, (1, -charged), "{order_no} is booked once");
            paid += charged;
        }
        assert!(paid > 0);
        let sum = |of: &str, from: &str| self.world.count(&format!("SELECT coalesce(sum({of}), 0) FROM {from}"));
        assert_eq!(sum("amount_cent", "card_transactions WHERE kind = 'charge'"), -paid);
        let paid_in = sum("amount_cent", "card_transactions WHERE kind = 'recharge'");
        assert_eq!(sum("balance_cent", "cards"), paid_in - paid);
        assert_eq!(sum("held_cent", "cards"), 0, "something is held");
        let wrong = "SELECT count(*) FROM cards c WHERE balance_cent < 0 OR held_cent <> 0 OR balance_cent <> \
                     (SELECT coalesce(sum(balance_change), 0) FROM card_balance_logs l WHERE l.card_no = c.card_no)";
        assert_eq!(self.world.count(wrong), 0);
    }

    /// Each charger has the image of its last update, to the byte, and no update failed.
    fn firmware_agrees(&self) {
        let failed = "SELECT count(*) FROM ota_tasks WHERE state = 4";
        assert_eq!(self.world.count(failed), 0);
        let mut done = 0;
        for (peer, actor) in self.actors.iter().enumerate() {
            let (Actor::Charger(device), Some((_, image))) = (actor, self.world.image(peer)) else { continue };
            // The last packet is filled up with zeros.
            let has = lock(device).firmware().to_vec();
            let (begins, rest) = has.split_at(image.len().min(has.len()));
            let agrees = begins == image && rest.len() < 256 && rest.iter().all(|byte| *byte == 0);
            assert!(agrees, "{} bytes sent to {}, it has {}", image.len(), self.world.peers[peer].id, has.len());
            done += 1;
        }
        assert!(done > 0);
    }
}

fn record(device_id: DeviceId, entry: &Entry) -> Record {
    let (order_no, business_no) = match (entry.reference, entry.start) {
        (Reference::Order(number), Start::Online | Start::Card(_)) => (OrderNo::from_bytes(number), None),
        (Reference::Order(_), Start::OfflineCard(_) | Start::Code(_)) => (None, None),
        (Reference::Business(number), _) => (None, Some(number)),
    };
    Record {
        device_id: device_id.to_string(),
        port_no: entry.port_no,
        order_no,
        business_no,
        duration_seconds: entry.duration_s,
        energy_wh: entry.energy_wh,
        own_end: false,
    }
}

/// A cent a minute.
fn rules() -> CardRules {
    let tariffs = vec![NamedTariff { name: "time".into(), tariff: Tariff::Time { price_cent: 1, minutes: 1 } }];
    CardRules { tariffs, tariff: Some("time".into()), ..CardRules::default() }
}

fn digits(card: u32) -> [u8; 6] {
    let text = format!("{card:012}");
    std::array::from_fn(|at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).unwrap())
}

fn card_no(card: u32, of_gateways: bool) -> CardNo {
    if of_gateways { CardNo::from_digits(digits(card)) } else { CardNo::from_uid(card.to_be_bytes()) }
}

fn card_job(card_no: CardNo, change: CardChange, at: i64) -> Job {
    Job::Card(Box::new(CardJob { card_no, change, at, request_id: "day".into(), idempotency: None }))
}

fn tiers() -> Vec<PowerTier> {
    vec![
        PowerTier { power_dw: 2_000, price_cent: 25, minutes: 60 },
        PowerTier { power_dw: 5_000, price_cent: 40, minutes: 60 },
    ]
}

fn periods() -> Vec<FeePeriod> {
    vec![
        FeePeriod { end_hour: 8, end_minute: 0, electricity_cent: 50, service_cent: 20 },
        FeePeriod { end_hour: 23, end_minute: 59, electricity_cent: 90, service_cent: 30 },
    ]
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

#[test]
fn a_day_ends_with_equal_books() {
    let plan = Plan {
        seed: number("SEED", 1),
        devices: u32::try_from(number("DEVICES", 40)).unwrap(),
        hours: number("HOURS", 8),
    };
    let mut day = Day::new(plan);
    day.run();
    day.check();
    let stored = |what: &str| day.world.count(&format!("SELECT {what}"));
    println!(
        "seed {}: {} devices, {} h: {:?}\n  {} settlements, {} s, {} Wh, {} cents",
        plan.seed,
        plan.devices,
        plan.hours,
        day.counts,
        stored("count(*) FROM settlements"),
        stored("coalesce(sum(duration_seconds), 0) FROM settlements"),
        stored("coalesce(sum(energy_wh), 0) FROM settlements"),
        stored("coalesce(sum(amount_cent), 0) FROM settlements"),
    );
}
