//! What goes wrong in a world of random events, drawn from its seed: bytes that do not pass, a store that is slow or down, lost
//! connections, a gateway that is lost.
//!
//! A module of the tests that have a `sim` beside their `witness`.

use chargegate::{gateway::order::Event, model::OrderNo};

use crate::{sim::World, witness::Draws};

pub(crate) const MINUTE: u64 = 60_000;

/// Goes on until [`Chaos::end`].
pub(crate) struct Chaos {
    /// When the store takes jobs again, ms of the world; `u64::MAX`: it does.
    store_back: u64,
}

impl Chaos {
    /// From now on one of `writes` writes breaks its connection, and the store is slow at times.
    pub(crate) fn begin(world: &mut World, seed: u64, writes: u64) -> Self {
        let mut bytes = Draws::new(seed ^ 0xb17e);
        world.mishap = Some(Box::new(move |len| {
            (bytes.below(writes) == 0).then(|| {
                let passes = usize::try_from(bytes.within(0, len as u64)).unwrap();
                let back =
                    if bytes.percent(80) { bytes.within(500, 20_000) } else { bytes.within(20_000, 10 * MINUTE) };
                (passes, back)
            })
        }));
        let mut latency = Draws::new(seed ^ 0x57_0e);
        world.store_latency =
            Some(Box::new(move || if latency.percent(95) { latency.within(0, 20) } else { latency.within(20, 3_000) }));
        Self { store_back: u64::MAX }
    }

    /// Lets time pass, and brings the store back when that is due.
    pub(crate) fn run_for(&mut self, world: &mut World, ms: u64) {
        world.run_for(ms);
        if world.now_ms >= self.store_back {
            world.store_down = false;
            self.store_back = u64::MAX;
        }
    }

    /// The store refuses everything for a while.
    pub(crate) fn outage(&mut self, world: &mut World, draws: &mut Draws) {
        world.store_down = true;
        self.store_back = world.now_ms + draws.within(1, 3 * MINUTE);
    }

    pub(crate) fn end(self, world: &mut World) {
        world.store_down = false;
        world.mishap = None;
        world.store_latency = None;
    }
}

/// The connection of a device is lost: mostly for seconds, now and then for long.
pub(crate) fn cut(world: &mut World, draws: &mut Draws, peer: usize) {
    let back = match draws.below(10) {
        0..6 => draws.within(200, 10_000),
        6..9 => draws.within(10_000, 4 * MINUTE),
        _ => draws.within(4 * MINUTE, 40 * MINUTE),
    };
    world.cut(peer, back);
}

/// The gateway is lost, with or without what waited for the store, and is away for as many ms as `down` draws. Then the devices
/// come back within `spread` ms.
pub(crate) fn restart(world: &mut World, draws: &mut Draws, down: impl FnOnce(&mut Draws) -> u64, spread: u64) {
    if draws.percent(50) {
        world.restart();
    } else {
        world.restart_after_commit();
    }
    let down = down(draws);
    for peer in 0..world.peers.len() {
        let spread = draws.below(spread);
        world.stay_away(peer, down + spread);
    }
}

/// Somebody wants one of the newest `recent` orders stopped or cancelled; false where that is not taken.
pub(crate) fn order_event(
    world: &mut World,
    draws: &mut Draws,
    orders: &[OrderNo],
    recent: usize,
    event: Event,
) -> bool {
    let back = usize::try_from(draws.below(orders.len().min(recent) as u64)).unwrap();
    let order_no = orders.len().checked_sub(1 + back).and_then(|at| orders.get(at));
    order_no.is_some_and(|order_no| world.try_order_event(*order_no, event).is_some())
}
