//! Queries, on connections that cannot write.

use super::{
    conn::{Arg, Conn, Row, Value, all, one, scalar},
    device::find_device,
    endpoint,
    event::json,
    idempotency::earlier,
    ota, proof,
    row::{
        card, card_columns, command_record, command_record_columns, device, device_columns, device_id, event,
        event_columns, order, order_columns, port, port_columns, priority, server_id, transaction, transaction_columns,
    },
    rows::{command_row_columns, queue_entry},
};
use crate::{
    gateway::network::NetworkList,
    model::{
        Card, CardNo, CardTransaction, CommandState, DeviceId, Firmware, Order, OrderNo, OrderStatus, OtaTask, ServerId,
    },
    store::{
        ApiKeyRecord, CardFilter, CommandRecord, DeliveryLogRow, DeliveryOutcome, DeviceFilter, DeviceRecord, Earlier,
        EndpointProgress, EndpointRecord, EndpointStanding, EventRecord, FirmwareKey, FrameFilter, FrameRecord,
        Idempotency, InstanceRecord, OrderFilter, OrderHistory, OtaFilter, Page, ParamRecord, ParkedDelivery,
        PortRecord, QUEUE_TOTAL_MAX, QueueCounts, QueueEntry, QueueFilter, Queued, Reader, StoreError,
    },
};

/// Queries on one connection.
pub(in crate::store) struct SqlReader<'a> {
    pub(in crate::store) conn: Conn<'a>,
}

/// `WHERE` from optional conditions, and its values.
#[derive(Default)]
struct Filter {
    sql: String,
    values: Vec<Value<'static>>,
}

impl Filter {
    /// `condition` names its value as `?`.
    fn and(&mut self, condition: &str, value: Option<impl Arg>) {
        if let Some(value) = value {
            self.sql.push_str(if self.sql.is_empty() { " WHERE " } else { " AND " });
            self.values.push(value.value().into_owned());
            self.sql.push_str(&condition.replace('?', &format!("${}", self.values.len())));
        }
    }

    /// A condition without a value: what follows from the others, as an index names it.
    fn that_is(&mut self, condition: &str) {
        self.sql.push_str(if self.sql.is_empty() { " WHERE " } else { " AND " });
        self.sql.push_str(condition);
    }
}

/// Rows before a page, which counts from 1.
fn offset(page: u32, size: u32) -> u64 {
    u64::from(page.saturating_sub(1)) * u64::from(size)
}

/// A text as a pattern of LIKE that stands for itself.
fn escaped(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for character in text.chars() {
        if ['\\', '%', '_'].contains(&character) {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}

impl SqlReader<'_> {
    fn page<T>(
        &self,
        columns: &str,
        table: &str,
        order: &str,
        filter: &Filter,
        (page, size): (u32, u32),
        read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Page<T>, StoreError> {
        let count = format!("SELECT count(*) FROM {table}{}", filter.sql);
        let total: Option<i64> = scalar(self.conn, &count, filter.values.as_slice())?;
        let total = total.unwrap_or(0).unsigned_abs();
        let offset = offset(page, size);
        // Behind the end lies nothing, however far: no row is passed over to find that out.
        if offset >= total {
            return Ok(Page { rows: Vec::new(), total });
        }
        let sql = format!("SELECT {columns} FROM {table}{} ORDER BY {order} LIMIT {size} OFFSET {offset}", filter.sql);
        let rows = all(self.conn, &sql, filter.values.as_slice(), read)?;
        Ok(Page { rows, total })
    }
}

fn id_list(ids: Option<&Vec<DeviceId>>) -> Result<Option<String>, StoreError> {
    ids.map(json).transpose()
}

impl Reader for SqlReader<'_> {
    fn order(&mut self, order_no: OrderNo) -> Result<Option<Order>, StoreError> {
        one(
            self.conn,
            concat!("SELECT ", order_columns!(), " FROM orders WHERE order_no = $1"),
            [order_no.as_str()],
            order,
        )
    }

    fn orders(&mut self, filter: &OrderFilter, page: u32, size: u32) -> Result<Page<Order>, StoreError> {
        let mut sql = Filter::default();
        sql.and("device_id = ?", filter.device_id.map(|id| id.to_string()));
        sql.and("port_no = ?", filter.port_no.map(i64::from));
        sql.and("status = ?", filter.status.map(|status| i64::from(status.code())));
        if filter.status.is_some_and(OrderStatus::is_active) {
            sql.that_is("is_active = TRUE");
        }
        sql.and("business_no = ?", filter.business_no.map(i64::from));
        sql.and("created_at >= ?", filter.created_from);
        sql.and("created_at < ?", filter.created_to);
        self.page(order_columns!(), "orders", "created_at DESC, order_no DESC", &sql, (page, size), order)
    }

    fn order_events(&mut self, order_no: OrderNo) -> Result<Vec<EventRecord>, StoreError> {
        all(
            self.conn,
            concat!(
                "SELECT ",
                event_columns!(),
                " FROM all_events e WHERE e.key = $1 AND e.sequence_no > 0 ORDER BY e.sequence_no"
            ),
            [order_no.as_str()],
            event,
        )
    }

    fn order_history(&mut self, order: &Order, between: (i64, i64)) -> Result<OrderHistory, StoreError> {
        let events = self.order_events(order.order_no)?;
        proof::history(self.conn, order, events, between)
    }

    fn frames(&mut self, filter: &FrameFilter) -> Result<Vec<FrameRecord>, StoreError> {
        proof::frames(self.conn, filter)
    }

    fn device(&mut self, device_id: DeviceId) -> Result<Option<DeviceRecord>, StoreError> {
        find_device(self.conn, device_id)
    }

    fn ports(&mut self, device_id: DeviceId) -> Result<Vec<PortRecord>, StoreError> {
        all(
            self.conn,
            concat!("SELECT ", port_columns!(), " FROM ports WHERE device_id = $1 ORDER BY port_no"),
            [device_id.to_string()],
            port,
        )
    }

    fn active_orders(&mut self, device_id: DeviceId) -> Result<Vec<Order>, StoreError> {
        all(
            self.conn,
            concat!(
                "SELECT ",
                order_columns!(),
                " FROM orders WHERE device_id = $1 AND is_active = TRUE ORDER BY port_no"
            ),
            [device_id.to_string()],
            order,
        )
    }

    fn devices(&mut self, filter: &DeviceFilter, page: u32, size: u32) -> Result<Page<DeviceRecord>, StoreError> {
        let mut sql = Filter::default();
        sql.and("protocol = ?", filter.protocol.map(|protocol| protocol.as_str().to_owned()));
        sql.and("printed_no = ?", filter.printed_no.map(i64::from));
        // Of SQLite, `lower` and LIKE know the letters A to Z only: others are found in the case they are written in.
        sql.and(
            "EXISTS (SELECT 1 FROM (SELECT lower(CAST(? AS text)) AS wanted) s WHERE device_id LIKE s.wanted || '%' ESCAPE '\\' \
             OR lower(name) LIKE '%' || s.wanted || '%' ESCAPE '\\' OR CAST(printed_no AS text) = s.wanted)",
            filter.search.as_deref().map(escaped),
        );
        let online = |wanted| filter.online.filter(|(online, _)| *online == wanted).map(|(_, at)| at);
        sql.and("offline_at > ?", online(true));
        sql.and("coalesce(offline_at, 0) <= ?", online(false));
        sql.and("device_id IN (SELECT value FROM json_array_elements_text(?::json))", id_list(filter.among.as_ref())?);
        sql.and(
            "device_id NOT IN (SELECT value FROM json_array_elements_text(?::json))",
            id_list(filter.except.as_ref())?,
        );
        self.page(device_columns!(), "devices", "device_id", &sql, (page, size), device)
    }

    fn events_after(&mut self, pos: i64, limit: u32) -> Result<Vec<EventRecord>, StoreError> {
        let sql = match self.conn {
            Conn::Sqlite(_) => {
                concat!("SELECT ", event_columns!(), " FROM logged_events e WHERE e.pos > $1 ORDER BY e.pos LIMIT $2")
            }
            // Positions have no gaps: so many of them are so many events.
            Conn::Postgres(_) => concat!(
                "SELECT ",
                event_columns!(),
                " FROM (SELECT greatest($1::bigint + 1, first) AS first FROM log_bounds) b, \
                 LATERAL logged_between(b.first, b.first + $2::bigint - 1) e ORDER BY e.pos"
            ),
        };
        all(self.conn, sql, (pos, limit), event)
    }

    fn pos_at(&mut self, at: i64) -> Result<i64, StoreError> {
        endpoint::pos_at(self.conn, at)
    }

    fn endpoint(&mut self, endpoint: &str) -> Result<Option<EndpointProgress>, StoreError> {
        endpoint::progress(self.conn, endpoint)
    }

    fn standings(&mut self) -> Result<Vec<EndpointStanding>, StoreError> {
        endpoint::standings(self.conn)
    }

    fn parked(&mut self, endpoint: &str, limit: u32) -> Result<Vec<(ParkedDelivery, EventRecord)>, StoreError> {
        endpoint::deliveries(self.conn, endpoint, "parked", limit, 0)
    }

    fn dead_letters(
        &mut self,
        endpoint: &str,
        page: u32,
        size: u32,
    ) -> Result<Page<(ParkedDelivery, EventRecord)>, StoreError> {
        endpoint::dead_letters(self.conn, endpoint, page, size)
    }

    fn deliveries(
        &mut self,
        endpoint: &str,
        outcome: Option<DeliveryOutcome>,
        page: u32,
        size: u32,
    ) -> Result<Page<DeliveryLogRow>, StoreError> {
        endpoint::log_of_endpoint(self.conn, endpoint, outcome, page, size)
    }

    fn deliveries_of_event(&mut self, pos: i64, page: u32, size: u32) -> Result<Page<DeliveryLogRow>, StoreError> {
        endpoint::log_of_event(self.conn, pos, page, size)
    }

    fn last_pos(&mut self) -> Result<i64, StoreError> {
        Ok(scalar(self.conn, "SELECT coalesce(last, 0) FROM log_bounds", ())?.unwrap_or(0))
    }

    fn earlier(&mut self, asked: &Idempotency) -> Result<Option<Earlier>, StoreError> {
        earlier(self.conn, asked)
    }

    fn card(&mut self, card_no: &CardNo) -> Result<Option<Card>, StoreError> {
        super::card::find_card(self.conn, card_no)
    }

    fn cards(&mut self, filter: &CardFilter, page: u32, size: u32) -> Result<Page<Card>, StoreError> {
        let mut sql = Filter::default();
        sql.and("state = ?", filter.state.map(|state| i64::from(state.code())));
        self.page(card_columns!(), "cards", "card_no", &sql, (page, size), card)
    }

    fn card_transactions(
        &mut self,
        card_no: &CardNo,
        page: u32,
        size: u32,
    ) -> Result<Page<CardTransaction>, StoreError> {
        let mut sql = Filter::default();
        sql.and("card_no = ?", Some(card_no.as_str().to_owned()));
        self.page(transaction_columns!(), "card_transactions", "id DESC", &sql, (page, size), transaction)
    }

    fn command(&mut self, device_id: DeviceId, id: i64) -> Result<Option<CommandRecord>, StoreError> {
        one(
            self.conn,
            concat!("SELECT ", command_record_columns!(), " FROM outbound_queue WHERE id = $1 AND device_id = $2"),
            (id, device_id.to_string()),
            command_record,
        )
    }

    fn commands(
        &mut self,
        device_id: DeviceId,
        state: Option<CommandState>,
        page: u32,
        size: u32,
    ) -> Result<Page<CommandRecord>, StoreError> {
        let mut sql = Filter::default();
        sql.and("device_id = ?", Some(device_id.to_string()));
        sql.and("state = ?", state.map(|state| state.as_str().to_owned()));
        self.page(command_record_columns!(), "outbound_queue", "id DESC", &sql, (page, size), command_record)
    }

    fn queue(&mut self, filter: &QueueFilter, page: u32, size: u32) -> Result<Page<QueueEntry>, StoreError> {
        let mut sql = Filter::default();
        sql.and("device_id = ?", filter.device_id.map(|id| id.to_string()));
        sql.and("state = ?", filter.state.map(|state| state.as_str().to_owned()));
        // What the indexes know of the state.
        let known = match filter.state {
            None | Some(CommandState::Queued | CommandState::Claimed | CommandState::Written) => Some("is_open = TRUE"),
            Some(CommandState::Refused | CommandState::Expired | CommandState::Withdrawn | CommandState::Dead) => {
                Some("is_failed = TRUE")
            }
            // Most commands: those of any place in the order of their numbers are near.
            Some(CommandState::Acked) => None,
        };
        if let Some(known) = known {
            sql.that_is(known);
        }
        let count = format!(
            "SELECT count(*) FROM (SELECT 1 FROM outbound_queue{} LIMIT {QUEUE_TOTAL_MAX}) AS counted",
            sql.sql
        );
        let total: Option<i64> = scalar(self.conn, &count, sql.values.as_slice())?;
        let total = total.unwrap_or(0).unsigned_abs();
        let rows = format!(
            "SELECT {} FROM outbound_queue{} ORDER BY id DESC LIMIT {size} OFFSET {}",
            command_row_columns!(),
            sql.sql,
            offset(page, size)
        );
        Ok(Page { rows: all(self.conn, &rows, sql.values.as_slice(), queue_entry)?, total })
    }

    fn queue_counts(&mut self) -> Result<QueueCounts, StoreError> {
        let mut counts = QueueCounts::default();
        let by_state = all(
            self.conn,
            "SELECT state, count(*) FROM outbound_queue WHERE is_open = TRUE GROUP BY state",
            (),
            |row| Ok((CommandState::from_word(row.text(0)?), row.get::<i64>(1)?.unsigned_abs())),
        )?;
        for (state, count) in by_state {
            match state {
                Some(CommandState::Queued) => counts.queued = count,
                Some(CommandState::Claimed) => counts.claimed = count,
                Some(CommandState::Written) => counts.written = count,
                _ => {}
            }
        }
        Ok(counts)
    }

    fn params(&mut self, device_id: DeviceId) -> Result<Vec<ParamRecord>, StoreError> {
        super::params::find(self.conn, device_id)
    }

    fn network(&mut self, device_id: DeviceId) -> Result<Option<NetworkList>, StoreError> {
        super::network::find(self.conn, device_id)
    }

    fn firmware(&mut self, key: FirmwareKey) -> Result<Option<Firmware>, StoreError> {
        ota::find_firmware(self.conn, key)
    }

    fn firmware_list(&mut self, device_type: Option<u8>, page: u32, size: u32) -> Result<Page<Firmware>, StoreError> {
        let mut sql = Filter::default();
        sql.and("f.device_type = ?", device_type.map(i64::from));
        self.page(ota::firmware_columns!(), "firmware f", "f.firmware_id DESC", &sql, (page, size), ota::firmware)
    }

    fn ota_task(&mut self, id: i64) -> Result<Option<OtaTask>, StoreError> {
        ota::find_task(self.conn, id)
    }

    fn ota_tasks(&mut self, filter: &OtaFilter, page: u32, size: u32) -> Result<Page<OtaTask>, StoreError> {
        let mut sql = Filter::default();
        sql.and("t.device_id = ?", filter.device_id.map(|id| id.to_string()));
        sql.and("t.state = ?", filter.state.map(|state| i64::from(state.code())));
        self.page(ota::task_columns!(), ota::task_tables!(), "t.task_id DESC", &sql, (page, size), ota::task)
    }

    fn open_ota_task(&mut self, device_id: DeviceId) -> Result<Option<OtaTask>, StoreError> {
        ota::open_task(self.conn, device_id)
    }

    fn devices_with_open_ota(&mut self, after: Option<DeviceId>, limit: u32) -> Result<Vec<DeviceId>, StoreError> {
        let after = after.map(|device_id| device_id.to_string()).unwrap_or_default();
        all(
            self.conn,
            "SELECT device_id FROM ota_tasks WHERE state IN (0, 1, 2) AND device_id > $1 ORDER BY device_id LIMIT $2",
            (after, limit),
            |row| device_id(row, 0),
        )
    }

    fn devices_with_queued_commands(
        &mut self,
        owner: Option<&ServerId>,
        limit: u32,
    ) -> Result<Vec<DeviceId>, StoreError> {
        let Some(owner) = owner else {
            let sql =
                "SELECT DISTINCT device_id FROM outbound_queue WHERE state = 'queued' AND is_open = TRUE LIMIT $1";
            return all(self.conn, sql, [limit], |row| device_id(row, 0));
        };
        all(
            self.conn,
            "SELECT DISTINCT q.device_id FROM outbound_queue q JOIN devices d ON d.device_id = q.device_id \
             WHERE q.state = 'queued' AND q.is_open = TRUE AND d.owner = $2 LIMIT $1",
            (limit, owner.as_str()),
            |row| device_id(row, 0),
        )
    }

    fn api_keys(&mut self) -> Result<Vec<ApiKeyRecord>, StoreError> {
        super::managed::api_keys(self.conn)
    }

    fn webhook_endpoints(&mut self) -> Result<Vec<EndpointRecord>, StoreError> {
        super::managed::endpoints(self.conn)
    }

    fn managed_revision(&mut self) -> Result<i64, StoreError> {
        super::managed::revision(self.conn)
    }

    fn instances(&mut self) -> Result<Vec<InstanceRecord>, StoreError> {
        super::instance::instances(self.conn)
    }

    fn queued(&mut self, ids: &[i64]) -> Result<Vec<Queued>, StoreError> {
        all(
            self.conn,
            "SELECT q.id, q.device_id, q.priority, q.created_at, d.owner FROM outbound_queue q \
             JOIN devices d ON d.device_id = q.device_id WHERE q.state = 'queued' \
             AND q.id IN (SELECT CAST(value AS bigint) FROM json_array_elements_text($1::json))",
            [json(&ids)?],
            |row| {
                Ok(Queued {
                    id: row.get(0)?,
                    device_id: device_id(row, 1)?,
                    priority: priority(row, 2)?,
                    at: row.get(3)?,
                    owner: server_id(row, 4)?,
                })
            },
        )
    }
}
