//! The table of all scalar keys.
//!
//! A row reads `name: type = default, kind, reload`; its doc comment is both the field's documentation and the text of
//! the reference file. Adding a row is all it takes to add a key.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::key::{Key, Kind, Reload, Value};
use super::lists::{ApiKey, WebhookEndpoint};
use super::value::{
    Admission, ByteSize, CardMode, CardTimeUnit, ChargeEndAck, Engine, LogFormat, LogLevel, Magics, OrderPrefix,
    PowerStartCommand, QueueUrl, RetrySchedule, Secret, Setting, StoreUrl,
};
use crate::gateway::card::NamedTariff;

use Kind::{Address, AddressOrNone, AutoInt, Bool, Choice, Int, Path, Prefix, Size};
use Reload::{Live, Restart};

/// First lines of the reference file.
pub(super) const REFERENCE_HEAD: &str = "\
# Every key of chargegate with its default. Nothing here needs to be set.
#
# Later sources win: this file, then the environment (CHARGEGATE_<SECTION>_<KEY>, such as CHARGEGATE_DEVICE_LISTEN_GN;
# the lists as JSON in CHARGEGATE_API_KEYS, CHARGEGATE_WEBHOOK_ENDPOINTS and CHARGEGATE_TARIFFS), then flags of
# `chargegate serve`.
# Durations are written \"500ms\", \"60s\", \"10m\", \"24h\" or \"7d\", sizes \"512KiB\", \"4MiB\" or \"1GiB\".
# Secrets and URLs may be \"file:PATH\": the content of that file without its last line end, the path relative to the
# working directory.
# \"reloaded\" keys follow SIGHUP, \"restart\" keys need a restart. `chargegate check-config` checks a file.
";

// Bounds of durations in milliseconds; `Duration` cannot be multiplied in a constant.
const MS: u64 = 1;
const SEC: u64 = 1000 * MS;
const MIN: u64 = 60 * SEC;
const HOUR: u64 = 60 * MIN;
const DAY: u64 = 24 * HOUR;

const KIB: u64 = 1024;
const GIB: u64 = KIB * KIB * KIB;

const fn span(min_ms: u64, max_ms: u64) -> Kind {
    Kind::Span(Duration::from_millis(min_ms), Duration::from_millis(max_ms))
}

const fn spans(min_ms: u64, max_ms: u64) -> Kind {
    Kind::Spans(Duration::from_millis(min_ms), Duration::from_millis(max_ms))
}

macro_rules! settings {
    ($(
        #[doc = $section_doc:literal]
        $section:ident: $Section:ident {
            $($(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:expr, $kind:expr, $reload:expr;)+
        }
    )+) => {
        $(
            #[doc = $section_doc]
            #[derive(Clone, Debug, PartialEq, Eq)]
            pub struct $Section {
                $($(#[doc = $doc])+ pub $name: $type,)+
            }
        )+

        /// The checked configuration: a field per section of the file, then the three lists.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Config {
            $(#[doc = $section_doc] pub $section: $Section,)+
            /// `[[api.keys]]`. Empty: the server makes one key at its first start.
            pub api_keys: Vec<ApiKey>,
            /// `[[webhook.endpoints]]`. Empty: events are only kept for `GET /events`.
            pub webhook_endpoints: Vec<WebhookEndpoint>,
            /// `[[tariffs]]`. Empty: cards charge by monthly plan only.
            pub tariffs: Vec<NamedTariff>,
        }

        /// All scalar keys, in the order of the reference file.
        pub static KEYS: &[Key] = &[
            $($(Key {
                section: stringify!($section),
                section_doc: $section_doc,
                name: stringify!($name),
                kind: $kind,
                default: stringify!($default),
                reload: $reload,
                doc: &[$($doc),+],
            },)+)+
        ];

        impl Config {
            /// Builds the typed form of one value per row of [`KEYS`].
            pub(super) fn from_values(values: Vec<Value>) -> Self {
                let mut values = values.into_iter();
                Self {
                    $($section: $Section {
                        $($name: Setting::from_value(values.next().expect("one value per key")),)+
                    },)+
                    api_keys: Vec::new(),
                    webhook_endpoints: Vec::new(),
                    tariffs: Vec::new(),
                }
            }

            /// The values in the order of [`KEYS`].
            pub(super) fn values(&self) -> Vec<Value> {
                vec![$($(Setting::to_value(&self.$section.$name),)+)+]
            }
        }
    };
}

settings! {
    /// Files of this instance.
    data: Data {
        /// Directory of the server id, the embedded database and firmware. Made at start if missing.
        dir: PathBuf = "./data", Path, Restart;
    }

    /// Connections of devices.
    device: Device {
        /// TCP address for all protocols; the protocol is told by a connection's first bytes.
        listen: SocketAddr = "0.0.0.0:6000", Address, Restart;
        /// A second TCP address whose BKV-framed devices are of the variant GN.
        listen_gn: Option<SocketAddr> = "", AddressOrNone, Restart;
        /// A connection whose first bytes name no protocol for this long is closed.
        detect_timeout: Duration = "10s", span(SEC, MIN), Restart;
        /// A device that does not take what was written to it for this long is disconnected.
        write_timeout: Duration = "5s", span(SEC, MIN), Restart;
        /// An AP3000 connection that sends no byte for this long is closed; its module sends `link` after 30 s of silence.
        idle_timeout_ap3000: Duration = "540s", span(SEC, DAY), Restart;
        /// A BKV or GN connection that sends no byte for this long is closed; gateways beat about every 60 s.
        idle_timeout_bkv: Duration = "300s", span(SEC, DAY), Restart;
        /// A connection is closed when more than this share of what it sent is garbage, in percent. 100 never closes.
        garbage_percent_max: u32 = 50, Int(1, 100), Restart;
    }

    /// REST API, health, metrics and console.
    http: Http {
        /// TCP address. TLS is the load balancer's or reverse proxy's affair.
        listen: SocketAddr = "127.0.0.1:7055", Address, Restart;
        /// Threads that run request handlers. They never wait for a device or the store.
        workers: u32 = 4, Int(1, 256), Restart;
        /// Open connections, above which new ones are closed. Each costs up to the head and body limits in memory.
        max_connections: u32 = 4096, Int(1, 100_000), Restart;
        /// Open connections from one address. Behind a proxy all requests come from the proxy's address.
        max_connections_per_ip: u32 = 1024, Int(1, 100_000), Restart;
        /// Largest request line and headers together, in bytes.
        head_bytes_max: u32 = 8192, Int(1024, 65_536), Restart;
        /// Largest request body in bytes, firmware upload excepted.
        body_bytes_max: u32 = 65_536, Int(1024, 16_777_216), Restart;
        /// Time for the whole request head to arrive.
        head_timeout: Duration = "5s", span(SEC, MIN), Restart;
        /// Time for the whole body to arrive.
        body_timeout: Duration = "10s", span(SEC, 10 * MIN), Restart;
        /// A client that does not take its response for this long is disconnected.
        write_timeout: Duration = "5s", span(SEC, MIN), Restart;
        /// A kept-alive connection without a request for this long is closed.
        keep_alive_timeout: Duration = "60s", span(SEC, HOUR), Restart;
        /// A request that waits for the store this long is answered 503 `NOT_READY`.
        store_timeout: Duration = "5s", span(100 * MS, MIN), Restart;
    }

    /// Threads that own device connections.
    shard: Shard {
        /// Number of shards, one pinned thread each. "auto" is one per core.
        count: Option<u32> = "auto", AutoInt(1, 256), Restart;
        /// I/O engine. "auto" picks the faster one by measurement and falls back to mio where io_uring is refused.
        engine: Engine = "auto", Choice(Engine::WORDS), Restart;
    }

    /// Durable state.
    store: Store {
        /// "sqlite:PATH" (with "embedded" as queue) or a PostgreSQL URL (with Redis). "<data.dir>" stands for data.dir.
        url: StoreUrl = "sqlite:<data.dir>/chargegate.db", Kind::StoreUrl, Restart;
        /// Most jobs in one transaction. More raises throughput, and the time a job waits for its neighbours.
        batch_jobs_max: u32 = 256, Int(1, 256), Restart;
        /// Changes waiting for their commit. A report beyond is dropped, counted, and sent again by its device.
        waiting_jobs_max: u32 = 16_384, Int(64, 1_000_000), Restart;
        /// How often last-seen times and port snapshots are written. A crash loses at most this much of them.
        flush_interval: Duration = "3s", span(100 * MS, 5 * MIN), Restart;
        /// Most rows of them in one transaction.
        flush_rows_max: u32 = 500, Int(1, 10_000), Restart;
        /// Whether cmd_log also gets heartbeats and time requests: several rows a minute and device.
        cmd_log_heartbeats: bool = false, Bool, Restart;
        /// PostgreSQL: transactions under way at a time. Each device has one of them; each holds a connection.
        lanes: u32 = 2, Int(1, 32), Restart;
        /// PostgreSQL: connections that answer queries.
        readers: u32 = 2, Int(1, 64), Restart;
        /// PostgreSQL: longest time for making a connection.
        connect_timeout: Duration = "5s", span(100 * MS, 5 * MIN), Restart;
        /// PostgreSQL: longest time of one statement. A server that does not answer for 5 s more is given up and connected anew.
        statement_timeout: Duration = "10s", span(SEC, 10 * MIN), Restart;
        /// PostgreSQL: longest wait for a row that another instance changes.
        lock_timeout: Duration = "5s", span(100 * MS, 10 * MIN), Restart;
    }

    /// How long finished rows are kept.
    retention: Retention {
        /// Frames in cmd_log.
        cmd_log: Duration = "30d", span(HOUR, 3650 * DAY), Restart;
        /// Attempts to deliver events to webhook endpoints.
        delivery_log: Duration = "7d", span(HOUR, 3650 * DAY), Restart;
        /// Events that all endpoints have received. Undelivered ones past this age are dropped and counted as lost.
        events: Duration = "30d", span(HOUR, 3650 * DAY), Restart;
        /// Commands that were given up.
        dead_commands: Duration = "7d", span(HOUR, 3650 * DAY), Restart;
        /// Answers to requests that carried an `Idempotency-Key`.
        idempotency_keys: Duration = "24h", span(HOUR, 30 * DAY), Restart;
    }

    /// Commands waiting for devices.
    queue: Queue {
        /// "embedded" (with SQLite) or a Redis URL (with PostgreSQL). "rediss" is TLS. Redis 6.2
        /// or newer; it holds nothing that is not in the store as well, and need not keep a file.
        url: QueueUrl = "embedded", Kind::QueueUrl, Restart;
        /// PEM file of the authorities whose certificates are accepted from "rediss". "" are those that the system trusts.
        ca_file: String = "", Kind::Text(4096), Restart;
        /// Connections to Redis for pipelines of this instance. It opens five more for itself.
        connections: u32 = 4, Int(1, 64), Restart;
        /// Time for a connection to Redis to be made.
        connect_timeout: Duration = "1s", span(50 * MS, MIN), Restart;
        /// A command to Redis without an answer for this long has failed, and its connection is given up.
        timeout: Duration = "1s", span(50 * MS, MIN), Restart;
        /// Unwritten commands above which idle ones (statistics, OTA) are refused. For up to 10,000 connections; scaled above.
        refuse_idle_above: u64 = 200, Int(1, 1_000_000), Live;
        /// Unwritten commands above which low ones (queries, parameters) are refused too. Scaled likewise.
        refuse_low_above: u64 = 500, Int(1, 1_000_000), Live;
        /// Unwritten commands above which starts are refused too; stop and cancel never are. Scaled likewise.
        refuse_normal_above: u64 = 1000, Int(1, 1_000_000), Live;
        /// Commands waiting for one device.
        per_device_max: u32 = 16, Int(1, 1024), Live;
    }

    /// The last frames of all devices, for operators.
    recorder: Recorder {
        /// Memory of each shard that holds them, taken as frames come: a frame takes its bytes, 512 at most, and 30 more. 0 records
        /// nothing.
        bytes_per_shard: ByteSize = "4MiB", Size(64 * KIB, GIB), Restart;
    }

    /// When a device counts as online.
    session: Session {
        /// Silence after which a device of a protocol without a timeout of its own is offline. Every protocol of today has one.
        heartbeat_timeout: Duration = "60s", span(SEC, HOUR), Restart;
        /// The same for AP3000: twice the 30 s of its `link`, and a grace.
        timeout_ap3000: Duration = "70s", span(SEC, HOUR), Restart;
        /// The same for BKV: twice the 60 s of its heartbeat, and a grace.
        timeout_bkv: Duration = "130s", span(SEC, HOUR), Restart;
        /// The same for GN.
        timeout_gn: Duration = "130s", span(SEC, HOUR), Restart;
        /// The same for an AP3000 device that shares its socket with others: twice its own 180 s heartbeat, and a grace.
        timeout_shared: Duration = "390s", span(SEC, HOUR), Restart;
        /// The same for an AP3000 host beside its sub-devices: twice its own 30 min heartbeat, and a grace.
        timeout_host: Duration = "3630s", span(SEC, DAY), Restart;
        /// How long a lost connection (20 points) and a missed acknowledgement (30 points) weigh on the online score.
        penalty_window: Duration = "300s", span(SEC, DAY), Restart;
        /// After a start or an outage of the store, no device is declared offline for this long.
        offline_grace: Duration = "90s", span(0, HOUR), Restart;
        /// After a start or an outage of the store, no order is interrupted or timed out for this long.
        interrupt_grace: Duration = "10m", span(0, DAY), Restart;
    }

    /// Accepting device connections.
    limits: Limits {
        /// Open connections, above which new ones are closed. Lowered at start to the descriptor limit less 512.
        max_connections: u32 = 60_000, Int(1, 1_000_000), Restart;
        /// Open connections from one address. Behind a TCP load balancer all come from its address.
        max_connections_per_ip: u32 = 60_000, Int(1, 1_000_000), Restart;
        /// Connections accepted per second; the others wait in the kernel.
        accept_rate_per_s: u32 = 10_000, Int(1, 1_000_000), Restart;
        /// Connections accepted at once after a quiet time.
        accept_burst: u32 = 20_000, Int(1, 1_000_000), Restart;
        /// Failures in a row for want of descriptors or memory after which accepting pauses.
        breaker_failures: u32 = 5, Int(1, 1000), Restart;
        /// First pause; each failed probe doubles it.
        breaker_probe_min: Duration = "1s", span(100 * MS, 10 * MIN), Restart;
        /// Longest pause, if it is longer than the first.
        breaker_probe_max: Duration = "30s", span(100 * MS, 10 * MIN), Restart;
    }

    /// The AP3000 protocol.
    ap3000: Ap3000 {
        /// The bytes that start a frame, in hex: "DNY", and what some firmware sends instead.
        magics: Magics = ["444e59", "44224e"], Kind::Magics, Restart;
        /// Pause from one command to the next on one device; shorter ones are lost by the module.
        command_interval: Duration = "500ms", span(0, MIN), Restart;
    }

    /// The BKV and GN protocols, where the vendor's guide contradicts itself.
    bkv: Bkv {
        /// Command word of a start by power tiers: "0015" as the guide's text says, or "0005" as its example shows.
        power_start_command: PowerStartCommand = "0015", Choice(PowerStartCommand::WORDS), Restart;
        /// Acknowledgement of an end report 02: in the form of sub-command "0c", proven in the field, or as its echo "02". A report that
        /// comes again although it was acknowledged gets both.
        charge_end_ack: ChargeEndAck = "0c", Choice(ChargeEndAck::WORDS), Restart;
        /// Unit of the time in the order for a swiped card (0B): "minutes" as everywhere else, or "seconds" as the guide's example suggests.
        card_time_unit: CardTimeUnit = "minutes", Choice(CardTimeUnit::WORDS), Restart;
    }

    /// Which devices are served.
    devices: Devices {
        /// "open" serves every device and records it at first sight, "known" only those with a record.
        admission: Admission = "open", Choice(Admission::WORDS), Restart;
        /// Frames after which a device without a record is disconnected (admission = "known").
        unknown_frames_max: u32 = 5, Int(1, 1000), Restart;
    }

    /// Cards that pay for charges; their tariffs are a list of their own, `[[tariffs]]`.
    cards: Cards {
        /// Who decides what a swiped card may do: "local" its account in this gateway (/cards), "webhook" the third party at
        /// webhook_url, asked at each swipe, "off" nobody: no card is registered.
        mode: CardMode = "local", Choice(CardMode::WORDS), Restart;
        /// Tariff of cards that name none. "" is the first of `[[tariffs]]`; without any, cards charge by monthly plan only.
        tariff: String = "", Kind::Text(128), Restart;
        /// Longest charge that a swipe orders, in minutes, within the limits of the device's protocol.
        swipe_minutes_max: u32 = 600, Int(1, 1092), Restart;
        /// Local time of the tariffs' periods, in minutes east of UTC. The clocks of the devices run at UTC+8.
        utc_offset_minutes: u32 = 480, Int(0, 840), Restart;
        /// Money held for an order that charged is kept this long after the order's end, for a settlement that is still to come.
        hold_after_end: Duration = "1h", span(MIN, 7 * DAY), Restart;
        /// Where a swipe is asked (mode = "webhook"). webhook.allow_private_targets holds for it as for events.
        webhook_url: String = "", Kind::Text(2048), Restart;
        /// Signs each question, as events are signed: "whsec_" and base64, or any text. Needed with mode = "webhook".
        webhook_secret: Secret = "", Kind::Secret, Restart;
        /// An answer after this is none, and the card is refused. A device waits 15 s in all.
        webhook_timeout: Duration = "3s", span(100 * MS, 10 * SEC), Restart;
        /// Questions under way at a time.
        webhook_concurrency: u32 = 4, Int(1, 64), Restart;
        /// Questions that wait behind them; beyond, cards are refused at once.
        webhook_waiting_max: u32 = 256, Int(1, 10_000), Restart;
    }

    /// Charging orders.
    orders: Orders {
        /// First letters of every order number.
        prefix: OrderPrefix = "THD", Prefix, Restart;
        /// From the written start to the device's acknowledgement.
        confirm_timeout: Duration = "10s", span(SEC, 10 * MIN), Restart;
        /// From creation to the device's acknowledgement.
        create_timeout: Duration = "15s", span(SEC, 10 * MIN), Restart;
        /// From the written start to its one repetition (AP3000) or the question for the hole's state (BKV, GN). Neither comes at
        /// or after confirm_timeout.
        start_resend: Duration = "5s", span(SEC, MIN), Restart;
        /// From acknowledgement to charging; then the order fails with `no_load`.
        no_load_timeout: Duration = "10m", span(10 * SEC, DAY), Restart;
        /// From interruption to the device's return; then the order fails with `device_offline`.
        interrupt_timeout: Duration = "60s", span(SEC, DAY), Restart;
        /// Wait for a settlement when the port no longer charges; then the order fails with `port_state_mismatch`.
        settlement_timeout: Duration = "90s", span(SEC, HOUR), Restart;
        /// Wait for a stop or cancel to be acknowledged; then the order ends without it.
        stop_timeout: Duration = "30s", span(SEC, HOUR), Restart;
        /// A stop that is not acknowledged goes out again after this, twice at most.
        stop_resend: Duration = "10s", span(SEC, HOUR), Restart;
        /// An order may run this much longer than ordered before it is stopped.
        overrun: Duration = "10m", span(0, DAY), Restart;
        /// An order with an ordered duration is never stopped for its age before this.
        duration_max_least: Duration = "2h", span(MIN, 7 * DAY), Restart;
        /// Longest run of an order without an ordered duration.
        duration_max_open: Duration = "10h", span(MIN, 7 * DAY), Restart;
        /// A settlement this long after the order's end is marked `late`.
        late_after: Duration = "60s", span(0, DAY), Restart;
        /// How far back a BKV settlement is matched to an unsettled order of the same hole and business number.
        match_window: Duration = "24h", span(MIN, 30 * DAY), Restart;
        /// Stops sent to a port that charges on after its order ended; then an alarm.
        end_pending_stops_max: u32 = 5, Int(1, 100), Restart;
        /// The store's own check for overdue orders acts this much later than the instance that owns the device.
        backstop_delay: Duration = "30s", span(SEC, HOUR), Restart;
    }

    /// Commands to devices.
    commands: Commands {
        /// A start or stop is not sent any more at this age.
        valid_for_order: Duration = "30s", span(SEC, HOUR), Restart;
    }

    /// Firmware updates.
    ota: Ota {
        /// Largest image in bytes.
        firmware_max: u32 = 8_388_608, Int(1024, 67_108_864), Restart;
        /// Time for a whole image to arrive.
        upload_timeout: Duration = "2m", span(SEC, HOUR), Restart;
        /// Updates under way at a time; the others wait. Shared out evenly among the shards.
        concurrent_max: u32 = 100, Int(1, 100_000), Restart;
        /// Packets sent per second to all devices together. One device takes at most one per ap3000.command_interval.
        packets_per_s: u32 = 200, Int(1, 100_000), Restart;
        /// How often the store is searched for updates that wait.
        poll_interval: Duration = "5s", span(100 * MS, HOUR), Restart;
        /// A BKV or GN gateway that was told to fetch its firmware must show another version within this.
        ftp_timeout: Duration = "30m", span(MIN, DAY), Restart;
        /// An update that is not done at this age fails.
        valid_for: Duration = "7d", span(MIN, 365 * DAY), Restart;
    }

    /// Access to the REST API.
    api: Api {
        /// How far the `X-Timestamp` of a signed request may be from this machine's clock.
        signature_window: Duration = "300s", span(SEC, HOUR), Restart;
        /// Requests per second of all callers together at this instance, beside the rates of their keys; 0 is without limit.
        rate_per_s: u32 = 0, Int(0, 1_000_000), Live;
        /// Failed attempts to authenticate that an address (of IPv6, a /64) may make in a minute before it is answered 429; 0 is without
        /// limit. A valid key is always let in.
        failures_per_minute_per_ip: u32 = 60, Int(0, 1_000_000), Live;
    }

    /// Delivery of events.
    webhook: Webhook {
        /// Whether targets may have loopback, link-local, private or unique-local addresses.
        allow_private_targets: bool = false, Bool, Restart;
        /// Time for one attempt, from connecting to the response.
        timeout: Duration = "5s", span(100 * MS, MIN), Restart;
        /// Waits before the second and later attempts; jitter is added. After the last one the event is a dead letter.
        retry_schedule: RetrySchedule = ["1s", "5s", "30s", "5m", "1h"], spans(100 * MS, 7 * DAY), Restart;
        /// Deliveries under way to one endpoint at a time, each of another order or device.
        concurrency: u32 = 32, Int(1, 1024), Restart;
    }

    /// Periodic work.
    jobs: Jobs {
        /// How often the store is searched for overdue orders without an owner.
        order_backstop_interval: Duration = "10s", span(SEC, HOUR), Restart;
        /// How often each online device is asked for its ports, spread over the time.
        port_sync_interval: Duration = "300s", span(10 * SEC, DAY), Restart;
        /// How often the store is searched for commands whose notification was lost.
        command_interval: Duration = "5s", span(SEC, HOUR), Restart;
        /// How often rows past their retention are deleted.
        cleanup_interval: Duration = "1h", span(MIN, 7 * DAY), Restart;
    }

    /// Stopping.
    shutdown: Shutdown {
        /// Time for open API requests and commands to finish before connections are closed.
        timeout: Duration = "30s", span(0, HOUR), Live;
        /// Device connections closed per second, over all shards, when the instance is drained or stops; 0: all at once. A
        /// stop closes them faster where half of `shutdown.timeout` would not do.
        drain_per_s: u32 = 500, Int(0, 1_000_000), Restart;
    }

    /// Log lines on standard error.
    log: Log {
        /// Least important level that is logged.
        level: LogLevel = "info", Choice(LogLevel::WORDS), Live;
        /// "auto" is text on a terminal and JSON otherwise.
        format: LogFormat = "auto", Choice(LogFormat::WORDS), Restart;
    }
}
