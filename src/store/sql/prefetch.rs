//! Reads what a batch of jobs will need, in a few statements, and locks its devices.
//!
//! What is not read here is read by the job that needs it: this decides how fast a batch is, never what it does.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    apply::{Tx, device_of},
    bind::{bind_columns, bind_row},
    card::OFFLINE_CARD,
    conn::{Value, all},
    network::{listed, socket_columns},
    row::{card_no, device_id, order, order_columns, order_no, port, port_columns},
    rows::{command_row, command_row_columns, counters, holds_port},
    settle::{ONLINE, key_bytes},
};
use crate::{
    model::{CardNo, CommandState, DeviceId, OrderNo},
    store::{Bind, Earlier, Idempotency, Job, OrderKey, OtaJob, SettlementKey, StoreError},
};

/// What to read.
#[derive(Default)]
struct Wanted {
    orders: FxHashSet<OrderNo>,
    /// With all orders that hold them.
    ports: FxHashSet<(DeviceId, u16)>,
    commands: FxHashSet<i64>,
    /// With all their commands.
    commands_of: FxHashSet<OrderNo>,
    /// With their commands that have not come to an end, and the orders of those.
    unfinished: FxHashSet<DeviceId>,
    settled: FxHashSet<Vec<u8>>,
    answers: Vec<Idempotency>,
    /// Whether they are registered.
    cards: FxHashSet<CardNo>,
    /// With all that a bind asks for.
    binds: FxHashSet<DeviceId>,
}

impl Wanted {
    fn of(jobs: &[Job]) -> Self {
        let mut wanted = Self::default();
        for job in jobs {
            match job {
                Job::CreateOrder(new) => {
                    wanted.orders.insert(new.order_no);
                    wanted.ports.insert((new.device_id, new.port_no));
                    wanted.answers.extend(new.idempotency.clone());
                }
                Job::Order(job) => {
                    match job.order {
                        OrderKey::No(no) => {
                            wanted.orders.insert(no);
                            wanted.commands_of.insert(no);
                        }
                        OrderKey::ActiveOn(device, port_no) => {
                            wanted.ports.insert((device, port_no));
                        }
                    }
                    wanted.answers.extend(job.idempotency.clone());
                }
                Job::Settle(settlement) => {
                    if let SettlementKey::Ap3000 { order_ref, start_mode, .. } = settlement.key {
                        wanted.settled.insert(key_bytes(settlement));
                        if start_mode == OFFLINE_CARD {
                            wanted.cards.extend(settlement.card_no.clone());
                        }
                        // The device's own numbers name no order of ours.
                        if let Some(no) = OrderNo::from_bytes(order_ref).filter(|_| start_mode == ONLINE) {
                            wanted.orders.insert(no);
                            wanted.commands_of.insert(no);
                        }
                    }
                }
                Job::Command(update) => {
                    wanted.commands.insert(update.id);
                    if update.state == CommandState::Written {
                        wanted.orders.extend(update.order_no);
                    }
                }
                Job::Claim { device_id, .. } => {
                    wanted.unfinished.insert(*device_id);
                }
                Job::Call(new) => {
                    wanted.unfinished.insert(new.device_id);
                    wanted.answers.extend(new.idempotency.clone());
                }
                Job::Bind(bind) => {
                    wanted.binds.insert(bind.device_id);
                    wanted.unfinished.insert(bind.device_id);
                }
                // They ask for nothing but the counters, are rare, or have much of their own to read.
                Job::Device(_)
                | Job::Report(_)
                | Job::Backstop(_)
                | Job::Delivery(_)
                | Job::Prune(_)
                | Job::Swipe(_)
                | Job::Card(_)
                | Job::SetParams(_)
                | Job::Ota(_)
                | Job::Settings(_)
                | Job::Network(_)
                | Job::Instance(_)
                | Job::Lease(_)
                | Job::Endpoint(_)
                | Job::Managed(_) => {}
            }
        }
        wanted
    }
}

fn texts<T>(items: impl IntoIterator<Item = T>, text: impl Fn(T) -> String) -> Value<'static> {
    Value::Array(items.into_iter().map(|item| Value::Text(text(item).into())).collect())
}

impl Tx<'_> {
    /// Locks the devices of the jobs, in the order of their ids, so that two batches never wait for each other.
    pub(in crate::store) fn lock_batch(&mut self, jobs: &[Job]) -> Result<(), StoreError> {
        let mut devices: FxHashSet<DeviceId> = jobs.iter().filter_map(device_of).collect();
        let (mut orders, mut tasks) = (Vec::new(), Vec::new());
        for job in jobs.iter().filter(|job| device_of(job).is_none()) {
            match job {
                Job::Order(job) => {
                    if let OrderKey::No(no) = job.order {
                        orders.push(Value::Text(no.as_str().to_owned().into()));
                    }
                }
                Job::Ota(job) => {
                    if let OtaJob::Cancel { id, .. } = **job {
                        tasks.push(Value::Int(id));
                    }
                }
                // These take what they need themselves.
                _ => {}
            }
        }
        if !orders.is_empty() || !tasks.is_empty() {
            // An order or task never changes its device, so that no lock is needed to ask.
            let sql = "SELECT device_id FROM orders WHERE order_no = ANY($1::text[]) \
                       UNION SELECT device_id FROM ota_tasks WHERE task_id = ANY($2::bigint[])";
            let named = [Value::Array(orders), Value::Array(tasks)];
            devices.extend(all(self.conn, sql, named, |row| device_id(row, 0))?);
        }
        self.lock_devices(&devices)?;
        if self.conn.is_staged() { self.make_devices(jobs) } else { Ok(()) }
    }

    /// Makes the rows of devices that are bound for the first time, in the order of their ids. One that another job of the batch names
    /// before is left to its bind: that job is meant to find no device.
    fn make_devices(&mut self, jobs: &[Job]) -> Result<(), StoreError> {
        let mut named = FxHashSet::default();
        let mut first: Vec<&Bind> = Vec::new();
        for job in jobs {
            let unnamed = device_of(job).is_some_and(|device| named.insert(device));
            if let Job::Bind(bind) = job
                && unnamed
                && !bind.known_only
                && self.conn.staged(|stage| Some(!stage.known.devices.contains_key(&bind.device_id))) == Some(true)
            {
                first.push(bind);
            }
        }
        if first.is_empty() {
            return Ok(());
        }
        // A statement that writes makes what was read forgotten; these rows change nothing of the others.
        let locked = self.conn.staged(|stage| Some(std::mem::take(&mut stage.known.devices)));
        let made = all(
            self.conn,
            "INSERT INTO devices (device_id, protocol, printed_no, created_at) \
             SELECT * FROM UNNEST($1::text[], $2::text[], $3::bigint[], $4::bigint[]) AS v(device_id) ORDER BY v.device_id \
             ON CONFLICT DO NOTHING RETURNING device_id, session_epoch, msg_counter, event_counter, owner",
            [
                texts(&first, |bind| bind.device_id.to_string()),
                texts(&first, |bind| bind.protocol.as_str().to_owned()),
                Value::Array(
                    first.iter().map(|bind| bind.printed_no.map_or(Value::Null, |no| Value::Int(no.into()))).collect(),
                ),
                Value::Array(first.iter().map(|bind| Value::Int(bind.at)).collect()),
            ],
            |row| Ok((device_id(row, 0)?, counters(row, 1)?)),
        )?;
        self.made.extend(made.iter().map(|(device, _)| *device));
        self.conn.staged(|stage| {
            stage.known.devices.extend(locked.into_iter().flatten());
            stage.known.devices.extend(made.into_iter().map(|(device, counters)| (device, Some(counters))));
            Some(())
        });
        Ok(())
    }

    /// Reads into the stage what the jobs will ask for. Their devices are locked.
    pub(in crate::store) fn prefetch(&mut self, jobs: &[Job]) -> Result<(), StoreError> {
        let mut wanted = Wanted::of(jobs);
        if !wanted.binds.is_empty() {
            self.read_binds(&mut wanted)?;
        }
        self.read_commands(&mut wanted)?;
        let commands_of = std::mem::take(&mut wanted.commands_of);
        self.read_orders(&mut wanted)?;
        // Those of orders that hold a port; the others are read.
        wanted.commands_of.retain(|no| !commands_of.contains(no));
        if !wanted.commands_of.is_empty() {
            (wanted.commands, wanted.unfinished) = Default::default();
            self.read_commands(&mut wanted)?;
        }
        if !wanted.settled.is_empty() {
            self.read_settled(&wanted.settled)?;
        }
        if !wanted.cards.is_empty() {
            self.read_cards(wanted.cards)?;
        }
        if !wanted.answers.is_empty() {
            self.read_answers(wanted.answers)?;
        }
        Ok(())
    }

    fn lock_devices(&mut self, devices: &FxHashSet<DeviceId>) -> Result<(), StoreError> {
        if devices.is_empty() {
            return Ok(());
        }
        let rows = all(
            self.conn,
            "SELECT device_id, session_epoch, msg_counter, event_counter, owner FROM devices \
             WHERE device_id = ANY($1::text[]) ORDER BY device_id FOR NO KEY UPDATE",
            [texts(devices, ToString::to_string)],
            |row| Ok((device_id(row, 0)?, counters(row, 1)?)),
        )?;
        for (device, counters) in &rows {
            if let Some(owner) = counters.owner.as_ref().filter(|owner| Some(*owner) != self.instance) {
                self.owners.insert(*device, owner.clone());
            }
        }
        // One that has no row is left unknown: a bind of the batch may make it.
        self.conn.staged(|stage| {
            stage.known.devices.extend(rows.into_iter().map(|(device, counters)| (device, Some(counters))));
            Some(())
        });
        Ok(())
    }

    fn read_binds(&self, wanted: &mut Wanted) -> Result<(), StoreError> {
        let ids = [texts(&wanted.binds, ToString::to_string)];
        let sql = concat!("SELECT ", bind_columns!(), " WHERE d.device_id = ANY($1::text[])");
        let mut rows: FxHashMap<_, _> =
            all(self.conn, sql, &ids[..], bind_row)?.into_iter().map(|row| (row.device_id, row)).collect();
        let sql = concat!(
            "SELECT ",
            port_columns!(),
            " FROM ports WHERE device_id = ANY($1::text[]) ORDER BY device_id, port_no"
        );
        for (device, port) in all(self.conn, sql, &ids[..], |row| Ok((device_id(row, 0)?, port(row)?)))? {
            if let Some(row) = rows.get_mut(&device) {
                row.ports.push(port);
            }
        }
        let gateways = wanted.binds.iter().filter(|device| matches!(device, DeviceId::Gateway(_)));
        let gateways = texts(gateways, ToString::to_string);
        if !matches!(&gateways, Value::Array(ids) if ids.is_empty()) {
            let sql = concat!(
                "SELECT ",
                socket_columns!(),
                ", device_id FROM gateway_sockets WHERE device_id = ANY($1::text[]) ORDER BY device_id, socket"
            );
            for (device, socket) in all(self.conn, sql, [gateways], |row| Ok((device_id(row, 7)?, listed(row)?)))? {
                if let Some(row) = rows.get_mut(&device) {
                    row.sockets.push(socket);
                }
            }
        }
        let orders = all(
            self.conn,
            concat!(
                "SELECT ",
                order_columns!(),
                " FROM orders WHERE device_id = ANY($1::text[]) AND is_active = TRUE UNION ALL SELECT ",
                order_columns!(),
                " FROM orders WHERE device_id = ANY($1::text[]) AND device_end_pending = TRUE AND is_active = FALSE"
            ),
            &ids[..],
            order,
        )?;
        for order in &orders {
            wanted.orders.remove(&order.order_no);
            if order.device_end_pending {
                // It may have to be stopped again.
                wanted.commands_of.insert(order.order_no);
            }
        }
        self.conn.staged(|stage| {
            let known = &mut stage.known;
            known.held.extend(wanted.binds.iter().map(|device| (*device, Vec::new())));
            for order in orders {
                known.held.entry(order.device_id).or_default().push(order.order_no);
                known.orders.insert(order.order_no, Some(order));
            }
            known.binds.extend(rows);
            Some(())
        });
        Ok(())
    }

    /// Commands by their numbers, those of orders, and those of devices that have not come to an end.
    fn read_commands(&self, wanted: &mut Wanted) -> Result<(), StoreError> {
        if wanted.commands.is_empty() && wanted.commands_of.is_empty() && wanted.unfinished.is_empty() {
            return Ok(());
        }
        let mut rows = all(
            self.conn,
            concat!(
                "SELECT ",
                command_row_columns!(),
                " FROM outbound_queue WHERE id = ANY($1::bigint[]) UNION ALL SELECT ",
                command_row_columns!(),
                " FROM outbound_queue WHERE order_no = ANY($2::text[]) UNION ALL SELECT ",
                command_row_columns!(),
                " FROM outbound_queue WHERE device_id = ANY($3::text[]) AND is_open = TRUE"
            ),
            [
                Value::Array(wanted.commands.iter().map(|id| Value::Int(*id)).collect()),
                texts(&wanted.commands_of, |no| no.as_str().to_owned()),
                texts(&wanted.unfinished, ToString::to_string),
            ],
            command_row,
        )?;
        // Oldest first; one that was asked for in several ways counts once.
        rows.sort_unstable_by_key(|row| row.id);
        rows.dedup_by_key(|row| row.id);
        self.conn.staged(|stage| {
            let known = &mut stage.known;
            known.commands_of.extend(wanted.commands_of.iter().map(|no| (*no, Vec::new())));
            known.unfinished.extend(wanted.unfinished.iter().map(|device| (*device, Vec::new())));
            for row in rows {
                if let Some(no) = row.order_no.filter(|no| wanted.commands_of.contains(no)) {
                    known.commands_of.entry(no).or_default().push(row.id);
                }
                if row.is_unfinished() && wanted.unfinished.contains(&row.device_id) {
                    // What is done with it depends on its order.
                    wanted.orders.extend(row.order_no);
                    known.unfinished.entry(row.device_id).or_default().push(row.id);
                }
                known.commands.insert(row.id, row);
            }
            Some(())
        });
        Ok(())
    }

    /// Orders by their numbers, and those that hold ports.
    fn read_orders(&self, wanted: &mut Wanted) -> Result<(), StoreError> {
        if wanted.orders.is_empty() && wanted.ports.is_empty() {
            return Ok(());
        }
        let rows = all(
            self.conn,
            concat!(
                "SELECT ",
                order_columns!(),
                " FROM orders WHERE order_no = ANY($1::text[]) UNION ALL SELECT ",
                order_columns!(),
                " FROM UNNEST($2::text[], $3::int[]) AS p(device_id, port_no) JOIN orders USING (device_id, port_no) \
                 WHERE is_active = TRUE UNION ALL SELECT ",
                order_columns!(),
                " FROM UNNEST($2::text[], $3::int[]) AS p(device_id, port_no) JOIN orders USING (device_id, port_no) \
                 WHERE device_end_pending = TRUE AND is_active = FALSE"
            ),
            [
                texts(&wanted.orders, |no| no.as_str().to_owned()),
                texts(&wanted.ports, |(device, _)| device.to_string()),
                Value::Array(wanted.ports.iter().map(|(_, port_no)| Value::Int((*port_no).into())).collect()),
            ],
            order,
        )?;
        self.conn.staged(|stage| {
            let known = &mut stage.known;
            known.orders.extend(wanted.orders.iter().map(|no| (*no, None)));
            known.ports.extend(wanted.ports.iter().map(|place| (*place, Vec::new())));
            for order in rows {
                // Of a device that is not locked, it may change yet.
                if !known.devices.contains_key(&order.device_id) {
                    known.orders.remove(&order.order_no);
                    continue;
                }
                let place = (order.device_id, order.port_no);
                if holds_port(&order)
                    && let Some(holders) = known.ports.get_mut(&place)
                    // Asked for by its number as well.
                    && !holders.contains(&order.order_no)
                {
                    holders.push(order.order_no);
                    // What is done to the order of a port needs its commands as well.
                    wanted.commands_of.insert(order.order_no);
                }
                known.orders.insert(order.order_no, Some(order));
            }
            Some(())
        });
        Ok(())
    }

    fn read_settled(&self, keys: &FxHashSet<Vec<u8>>) -> Result<(), StoreError> {
        let rows = all(
            self.conn,
            "SELECT key, order_no FROM settlements WHERE key = ANY($1::bytea[])",
            [Value::Array(keys.iter().map(|key| Value::Bytes(key.as_slice().into())).collect())],
            |row| Ok((row.get::<Vec<u8>>(0)?, order_no(row, 1)?)),
        )?;
        self.conn.staged(|stage| {
            stage.known.settled.extend(keys.iter().map(|key| (key.clone(), None)));
            stage.known.settled.extend(rows.into_iter().map(|(key, no)| (key, Some(no))));
            Some(())
        });
        Ok(())
    }

    /// A card that is registered is locked and read when its turn comes. One that is not may be registered any time: behind this batch.
    fn read_cards(&self, mut cards: FxHashSet<CardNo>) -> Result<(), StoreError> {
        let sql = "SELECT card_no FROM cards WHERE card_no = ANY($1::text[])";
        let registered = all(self.conn, sql, [texts(&cards, |card| card.as_str().to_owned())], |row| card_no(row, 0))?;
        for card in &registered {
            cards.remove(card);
        }
        self.conn.staged(|stage| {
            stage.known.foreign_cards = cards;
            Some(())
        });
        Ok(())
    }

    fn read_answers(&self, asked: Vec<Idempotency>) -> Result<(), StoreError> {
        let column = |of: fn(&Idempotency) -> &str| texts(&asked, |asked| of(asked).to_owned());
        let rows = all(
            self.conn,
            "SELECT api_key, route, key, body_hash, status, response FROM idempotency_keys \
             WHERE (api_key, route, key) IN (SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[]))",
            [column(|asked| &asked.api_key), column(|asked| &asked.route), column(|asked| &asked.key)],
            |row| {
                let of = Idempotency {
                    api_key: row.text(0)?.into(),
                    route: row.get(1)?,
                    key: row.get(2)?,
                    body_hash: row.get(3)?,
                };
                Ok((of, Some(Earlier::Answer { status: row.get(4)?, body: row.get(5)? })))
            },
        )?;
        self.conn.staged(|stage| {
            // The last one that fits counts.
            stage.known.answers.extend(asked.into_iter().map(|asked| (asked, None)));
            stage.known.answers.extend(rows);
            Some(())
        });
        Ok(())
    }
}
