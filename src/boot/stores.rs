//! Opens the store that is configured.

use std::sync::Arc;

use super::store_limits;
use crate::{
    config::{Config, StoreUrl},
    gateway::card::CardRules,
    model::ServerId,
    store::{
        Notify, Store, StoreError,
        postgres::{self, PostgresStore, SequencerWake},
        sqlite::{self, SqliteStore},
    },
    telemetry::Metrics,
};

/// A store, with what only one of its kinds has.
pub(super) struct OpenStore {
    pub(super) store: Arc<dyn Store>,
    kind: Kind,
}

enum Kind {
    Embedded(Arc<SqliteStore>),
    Clustered(Arc<PostgresStore>),
}

impl OpenStore {
    /// Opens it and brings its schema up to date. `salt` tells the order numbers it makes from those of others.
    pub(super) fn open(
        config: &Config,
        instance: &ServerId,
        salt: u64,
        cards: &Arc<CardRules>,
        notify: Arc<dyn Notify>,
    ) -> Result<Self, StoreError> {
        let count = |number: u32, or: usize| usize::try_from(number).unwrap_or(or);
        let batch_jobs_max = count(config.store.batch_jobs_max, 256);
        let queue_jobs_max = count(config.store.waiting_jobs_max, 16_384);
        let latest_rows_max = count(config.store.flush_rows_max, 500);
        let order_prefix = *config.orders.prefix.as_bytes();
        match &config.store.url {
            StoreUrl::Sqlite(path) => {
                let options = sqlite::Options {
                    batch_jobs_max,
                    queue_jobs_max,
                    latest_rows_max,
                    limits: store_limits(config),
                    cards: Arc::clone(cards),
                    order_prefix,
                    order_salt: salt,
                    server_id: Some(instance.clone()),
                    ..sqlite::Options::new(path)
                };
                let store = Arc::new(SqliteStore::open(options, notify)?);
                Ok(Self { store: Arc::clone(&store) as Arc<dyn Store>, kind: Kind::Embedded(store) })
            }
            StoreUrl::Postgres(url) => {
                let options = postgres::Options {
                    lanes: count(config.store.lanes, 2),
                    readers: count(config.store.readers, 2),
                    timeouts: postgres::Timeouts::from(&config.store),
                    batch_jobs_max,
                    queue_jobs_max,
                    latest_rows_max,
                    limits: store_limits(config),
                    cards: Arc::clone(cards),
                    order_prefix,
                    order_salt: salt,
                    ..postgres::Options::new(url, instance.clone())
                };
                let store = Arc::new(PostgresStore::open(options, notify)?);
                Ok(Self { store: Arc::clone(&store) as Arc<dyn Store>, kind: Kind::Clustered(store) })
            }
        }
    }

    /// Has its counters shown.
    pub(super) fn join(&self, metrics: &Metrics) {
        match &self.kind {
            Kind::Embedded(store) => metrics.join(store),
            Kind::Clustered(store) => metrics.join(store),
        }
    }

    /// Wakes what gives events their positions; `None`: the commit does.
    pub(super) fn sequencer(&self) -> Option<SequencerWake> {
        match &self.kind {
            Kind::Embedded(_) => None,
            Kind::Clustered(store) => Some(store.sequencer()),
        }
    }
}
