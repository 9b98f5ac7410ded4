//! What a store holds, read beside the gateway: the embedded database or PostgreSQL.

use std::cell::RefCell;

use rusqlite::types::ValueRef;

/// A value as text; `None`: NULL. Truth values are not the same text in both databases, so no query asks for one.
pub(crate) type Row = Vec<Option<String>>;

pub(crate) enum Books<'a> {
    /// Of a store in this process.
    Sqlite(&'a rusqlite::Connection),
    /// Of a gateway in another.
    File(rusqlite::Connection),
    Postgres(RefCell<postgres::Client>),
}

/// An event in its place in the log.
#[derive(Clone, Debug)]
pub(crate) struct StoredEvent {
    pub(crate) pos: i64,
    pub(crate) event_id: String,
    pub(crate) event_type: String,
    pub(crate) key: String,
    pub(crate) sequence_no: u32,
    pub(crate) at: i64,
    pub(crate) order_no: Option<String>,
    pub(crate) data: String,
}

impl Books<'_> {
    /// Opens a database of a PostgreSQL server.
    pub(crate) fn postgres(url: &str) -> Self {
        let client = postgres::Client::connect(url, postgres::NoTls).expect("the server takes connections");
        Self::Postgres(RefCell::new(client))
    }

    /// All rows of a query that both databases understand.
    pub(crate) fn rows(&self, query: &str) -> Vec<Row> {
        match self {
            Self::Sqlite(sql) => sqlite_rows(sql, query),
            Self::File(sql) => sqlite_rows(sql, query),
            Self::Postgres(client) => {
                let messages = client.borrow_mut().simple_query(query).unwrap();
                let rows = messages.iter().filter_map(|message| match message {
                    postgres::SimpleQueryMessage::Row(row) => Some(row),
                    _ => None,
                });
                rows.map(|row| (0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()).collect()
            }
        }
    }

    /// The one number that a query gives; NULL, as of a sum over nothing, is 0.
    pub(crate) fn number(&self, query: &str) -> i64 {
        let rows = self.rows(query);
        rows[0][0].as_ref().map_or(0, |number| number.parse().unwrap())
    }

    /// The log of events, in its order.
    pub(crate) fn events(&self) -> Vec<StoredEvent> {
        let from = match self {
            Self::Sqlite(_) | Self::File(_) => "events",
            Self::Postgres(_) => "event_log JOIN events USING (id)",
        };
        let query =
            format!("SELECT pos, event_id, event_type, key, sequence_no, at, order_no, data FROM {from} ORDER BY pos");
        let event = |row: Row| {
            let [pos, event_id, event_type, key, sequence_no, at, order_no, data] = row.try_into().unwrap();
            StoredEvent {
                pos: pos.unwrap().parse().unwrap(),
                event_id: event_id.unwrap(),
                event_type: event_type.unwrap(),
                key: key.unwrap(),
                sequence_no: sequence_no.unwrap().parse().unwrap(),
                at: at.unwrap().parse().unwrap(),
                order_no,
                data: data.unwrap(),
            }
        };
        self.rows(&query).into_iter().map(event).collect()
    }

    /// How many events have no place in the log yet.
    pub(crate) fn events_waiting(&self) -> i64 {
        match self {
            Self::Sqlite(_) | Self::File(_) => 0,
            Self::Postgres(_) => self.number("SELECT (SELECT count(*) FROM events) - (SELECT count(*) FROM event_log)"),
        }
    }
}

fn sqlite_rows(sql: &rusqlite::Connection, query: &str) -> Vec<Row> {
    let mut statement = sql.prepare(query).unwrap();
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| (0..columns).map(|at| row.get_ref(at).map(text)).collect());
    rows.unwrap().map(Result::unwrap).collect()
}

fn text(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
        ValueRef::Text(text) => Some(String::from_utf8(text.to_vec()).unwrap()),
        ValueRef::Blob(bytes) => Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
    }
}
