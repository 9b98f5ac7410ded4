//! Start and stop of the server, stage by stage.
//!
//! Start, each stage logged with its duration; a failure names its stage and ends the process:
//!
//! 1. metrics, readiness, server id → 2. store and migrations → 3. Redis (embedded: none) → 4. sessions: directory and the
//!    shards' threads, which wait → 5. handlers → 6. HTTP, alive and not ready → 7. workers and jobs → 8. device listeners, last →
//!    ready.
//!
//! Stop, on SIGTERM or SIGINT, is stage 9: not ready → stop accepting, finish commands and close the devices' connections one
//! after another (see [`crate::drain`]) → finish API requests → end the jobs
//! and the pusher → close the store, which commits what was handed over → exit 0. A second signal exits at once.
//!
//! SIGHUP reads the configuration again, puts in force what can be, and logs what changed and what needs a restart.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, OnceLock, atomic::AtomicU64},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

mod stores;

use stores::OpenStore;

use crate::{
    api::{
        auth::{self, Authenticator, Shared},
        guard::{self, GuardConfig, GuardHandle, UploadConfig},
        handlers::Api,
        live::Whereabouts,
        overload::{Backlog, Limits},
        route::FIRMWARE_PATH,
        server::{Server, ServerConfig},
    },
    cluster::{
        JoinError, Member,
        inbox::{self, Inbox},
        instances,
        link::LinkSettings,
        link::OpenError,
        sessions::OnNewer,
    },
    config::{self, ApiKey, Config, Mode, Reload, Scope, Source},
    drain::Drain,
    gateway::{
        BkvReadings, Breaker, ConnectionLimits, Core, CoreConfig, Listener, OrderTimes, ShardId, Timeouts,
        card::{CardMode, CardRules},
        directory::Directory,
    },
    job::{self, Jobs, Retention, Schedule, database_state},
    managed::{self, Configured, Managed},
    model::{OrderNumbers, ServerId},
    ota,
    protocol::{ap3000::Magics, bkv},
    queue::{EmbeddedQueue, Queue},
    router::Router,
    shard::{
        Clock, Inquiries, ListenAddress,
        launch::{self, Engine, EngineChoice, OnFailure, Running, Seed},
    },
    store::{self, Notify, Store, StoreError},
    telemetry::{
        self, Health, Metrics,
        health::{Component, ComponentState},
    },
    webhook::{self, Answered, CardDesk, CardSettings, Endpoint, Pusher},
};

/// A required dependency cannot be reached at start: the database cannot be opened, or another process has it open.
pub const EXIT_UNREACHABLE: u8 = 3;
/// A shard failed: the process must not go on half alive.
const EXIT_SHARD_FAILED: i32 = 70;
/// Descriptors kept for files, HTTP and webhooks.
const DESCRIPTORS_RESERVED: usize = 512;
/// Images that may arrive at a time.
const UPLOADS_MAX: usize = 4;
/// Salt of the order numbers that the store makes itself; the API's has this bit clear.
const STORE_SALT: u64 = 0x200;

/// Why a stage failed.
#[derive(Debug, thiserror::Error)]
#[error("stage {stage} failed: {cause:#}")]
struct StageFailed {
    stage: &'static str,
    cause: anyhow::Error,
}

impl StageFailed {
    fn exit_code(&self) -> ExitCode {
        let redis = matches!(self.cause.downcast_ref(), Some(JoinError::Redis(OpenError::Unreachable { .. })));
        let store = matches!(self.cause.downcast_ref(), Some(StoreError::Unavailable(_)))
            || matches!(self.cause.downcast_ref(), Some(managed::StartError::Store(StoreError::Unavailable(_))));
        if redis || store { ExitCode::from(EXIT_UNREACHABLE) } else { ExitCode::FAILURE }
    }
}

/// Runs the server until it is told to stop. `source` is read again at each SIGHUP.
pub fn serve(config: Config, source: Source) -> ExitCode {
    crate::memory::set_up();
    if let Err(error) = telemetry::log::init(config.log.level, config.log.format) {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    let started = Gateway::start(&config).and_then(|gateway| {
        // Before anybody is told that the server is there, so that no signal meets its default, which is death.
        let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]);
        let signals = signals.map_err(|error| StageFailed { stage: "signals", cause: error.into() })?;
        Ok((gateway, signals))
    });
    match started {
        Ok((gateway, signals)) => {
            gateway.announce();
            gateway.run(signals, config, &source)
        }
        Err(failed) => {
            log::error!(target: "chargegate::boot", stage = failed.stage; "{:#}", failed.cause);
            failed.exit_code()
        }
    }
}

/// Names a stage, times it, and says so in the log.
struct Stages {
    health: Arc<Health>,
}

impl Stages {
    fn run<T>(&self, stage: &'static str, work: impl FnOnce() -> anyhow::Result<T>) -> Result<T, StageFailed> {
        let began = now();
        self.health.set_stage(stage, false);
        let done = work().map_err(|cause| StageFailed { stage, cause })?;
        log::info!(target: "chargegate::boot", stage = stage, ms = millis_since(began); "stage done");
        Ok(done)
    }
}

/// The parts of a running server.
struct Gateway {
    health: Arc<Health>,
    store: Arc<dyn Store>,
    /// One of several instances.
    cluster: Option<Arc<Member>>,
    api: Arc<Api>,
    server: Server,
    guard: GuardHandle,
    pusher: Arc<Pusher>,
    /// Asks a third party for cards, if one keeps them.
    desk: Option<Arc<CardDesk>>,
    jobs: Jobs,
    updates: ota::Driver,
    /// Takes in what waits for this instance's devices.
    inbox: Arc<Inbox>,
    shards: Running,
    /// Empties the instance.
    drain: Arc<Drain>,
    ticks: Ticks,
    /// The key made for this data directory, if no other is configured.
    made_key: Option<String>,
    began: Instant,
}

impl Gateway {
    fn start(config: &Config) -> Result<Self, StageFailed> {
        let start = now();
        let shards = u16::try_from(config.shard_count()).unwrap_or(u16::MAX);
        let health = Arc::new(Health::new(usize::from(shards)));
        let stages = Stages { health: Arc::clone(&health) };
        let clock = Clock::since(start);

        let (metrics, server_id, made_key) = stages.run("metrics and server id", || {
            fs::create_dir_all(&config.data.dir).map_err(|error| named(&config.data.dir, error))?;
            let server_id = kept(&config.data.dir.join("server_id"), || uuid::Uuid::now_v7().to_string())?;
            let made_key = if config.api_keys.is_empty() {
                Some(kept(&config.data.dir.join("api_key"), || format!("cg_{}", uuid::Uuid::new_v4().simple()))?)
            } else {
                None
            };
            Ok((Metrics::new(usize::from(shards)), server_id, made_key))
        })?;

        // The shards' threads wait from here on; their mailboxes are what the store's answers are routed to.
        let prepared = stages.run("engines", || Ok(launch::prepare(engine(config.shard.engine), shards)?))?;
        let clustered = config.mode() == Mode::Clustered;
        let directory = Directory::new(signed(config.session.heartbeat_timeout), signed(config.session.penalty_window));
        // Only a mirror follows what changes.
        let directory = Arc::new(if clustered { directory.with_changes() } else { directory });
        let server_id = ServerId::new(&server_id);
        let mailboxes = prepared.mailboxes().to_vec();
        let router = Arc::new(Router::new(Arc::clone(&directory), Arc::clone(&metrics), mailboxes));

        let salt = salt_of(&server_id);
        let cards = Arc::new(card_rules(config));
        let opened = stages.run("store", || {
            let notify: Arc<dyn Notify> = Arc::clone(&router) as Arc<dyn Notify>;
            let opened = OpenStore::open(config, &server_id, salt | STORE_SALT, &cards, notify)?;
            health.set(Component::Database, database_state(opened.store.as_ref()));
            opened.join(&metrics);
            Ok(opened)
        })?;
        let store = Arc::clone(&opened.store);
        let cluster = stages.run("redis", || {
            let Some(settings) = LinkSettings::configured(&config.queue) else {
                health.set(Component::Redis, ComponentState::Skipped);
                return Ok(None);
            };
            let telling = Arc::clone(&router);
            let on_newer: OnNewer = Arc::new(move |device_id, epoch| telling.bound_elsewhere(device_id, epoch));
            let cluster = Member::join(settings, &server_id, &directory, clock, on_newer)?;
            health.set(Component::Redis, cluster.link.state());
            cluster.join_metrics(&metrics);
            router.join_peers(cluster.peers(server_id.clone()));
            Ok(Some(Arc::new(cluster)))
        })?;
        let limits = stages.run("sessions", || {
            let allowed = descriptor_limit().saturating_sub(DESCRIPTORS_RESERVED);
            let wanted = usize::try_from(config.limits.max_connections).unwrap_or(usize::MAX);
            if wanted > allowed {
                log::warn!(
                    target: "chargegate::boot", wanted = wanted, allowed = allowed;
                    "limits.max_connections is cut to what the descriptor limit allows"
                );
            }
            let per_ip = usize::try_from(config.limits.max_connections_per_ip).unwrap_or(usize::MAX);
            Ok(Arc::new(ConnectionLimits::new(wanted.min(allowed), per_ip)))
        })?;
        let telling = cluster.clone();
        let mailboxes = prepared.mailboxes().to_vec();
        let drain = Drain::new(Arc::clone(&health), mailboxes, config.shutdown.drain_per_s, move |draining| {
            if let Some(cluster) = &telling {
                cluster.drain(draining);
            }
        });
        let drain = Arc::new(drain);
        metrics.join(&drain);
        let api = stages.run("handlers", || {
            let (waiting, connections) = (Arc::clone(&metrics), Arc::clone(&metrics));
            let backlog = Backlog::new(
                Limits::from(&config.queue),
                move || waiting.commands_waiting(),
                move || connections.connections(),
            );
            let auth = Authenticator::new(Vec::new(), config.api.signature_window);
            let auth = match &cluster {
                Some(cluster) => auth.with_shared(Arc::clone(&cluster.guards) as Arc<dyn Shared>),
                None => auth,
            };
            auth.set_limits(caller_limits(config));
            let auth = Arc::new(auth);
            let configured = Configured {
                keys: keys(config, made_key.as_deref()),
                endpoints: config.webhook_endpoints.clone(),
                allow_private_targets: config.webhook.allow_private_targets,
            };
            // Before the first request: none is judged by less than all keys.
            let managed = Managed::start(Arc::clone(&store), Arc::clone(&auth), configured)?;
            router.join_managed(managed.waker());
            metrics.join(managed.counters());
            let mirror = cluster.as_ref().map(|cluster| Arc::clone(&cluster.sessions));
            let api = Arc::new(Api {
                directory: Arc::clone(&directory),
                store: Arc::clone(&store),
                numbers: Arc::new(OrderNumbers::new(*config.orders.prefix.as_bytes(), salt)),
                metrics: Arc::clone(&metrics),
                health: Arc::clone(&health),
                auth,
                managed,
                backlog,
                in_progress: Arc::default(),
                whereabouts: Whereabouts::new(Arc::clone(&directory), server_id.clone(), mirror),
                cards: Arc::clone(&cards),
                store_timeout: config.http.store_timeout,
                firmware_dir: firmware_dir(config),
                retention: retention(config),
                drain: Arc::clone(&drain),
                pusher: OnceLock::new(),
                inquiries: Inquiries::start(prepared.mailboxes().to_vec())?,
                magics: Magics::new(&config.ap3000.magics.0)?,
                start,
            });
            if let Some(cluster) = &cluster {
                // What Redis forgot of nonces, those who accepted them know.
                let api = Arc::downgrade(&api);
                cluster.link.on_back(move |back| {
                    if let Some(api) = api.upgrade().filter(|_| back.emptied || back.restarted) {
                        api.auth.restore_shared(Clock::since(start).refresh().unix_ms);
                    }
                });
            }
            Ok(api)
        })?;
        let ticks = Ticks::new(usize::from(shards));
        let (server, guard) = stages.run("http", || {
            let server_config = ServerConfig {
                socket_dir: config.data.dir.join("run"),
                workers: usize::try_from(config.http.workers).unwrap_or(4),
                body_bytes_max: usize::try_from(config.http.body_bytes_max).unwrap_or(usize::MAX),
            };
            let server = Server::start(&server_config, Arc::clone(&api).handler())?;
            let (health, ticks) = (Arc::clone(&health), ticks.clone());
            let mut local = Arc::clone(&api).local_routes();
            let routes: guard::LocalRoutes = Box::new(move |head, body| {
                ticks.publish(&health);
                local(head, body)
            });
            let guard = guard::start(guard_config(config), server.gate(), routes)
                .with_context(|| format!("cannot serve HTTP on {}", config.http.listen))?;
            metrics.join(server.counters());
            metrics.join(guard.counters());
            Ok((server, guard))
        })?;
        health.set(Component::Http, ComponentState::ok(Duration::ZERO));
        let (pusher, jobs, updates, inbox) = stages.run("workers and jobs", || {
            let instance = cluster.as_ref().map(|_| server_id.clone());
            let running = api.managed.endpoints();
            let settings = pusher_settings(config, instance);
            let pusher = Arc::new(Pusher::start(running.clone(), Arc::clone(&store), settings)?);
            router.join_pusher(Arc::clone(&pusher));
            // Nobody else sets it.
            drop(api.pusher.set(Arc::clone(&pusher)));
            api.managed.join_pusher(Arc::clone(&pusher), running, config.webhook.timeout)?;
            metrics.join(&pusher);
            let context = job::Context {
                store: Arc::clone(&store),
                link: cluster.as_ref().map(|cluster| Arc::clone(&cluster.link)),
                directory: Arc::clone(&directory),
                router: Arc::clone(&router),
                pusher: Arc::clone(&pusher),
                owner: cluster.as_ref().map(|_| server_id.clone()),
                metrics: Arc::clone(&metrics),
                health: Arc::clone(&health),
                clock,
                ticks: ticks.clone(),
            };
            let jobs = Jobs::start(context, schedule(config))?;
            let offering = Arc::clone(&router);
            let context = ota::Context {
                store: Arc::clone(&store),
                directory: Arc::clone(&directory),
                offer: Box::new(move |start| offering.offer_ota(start)),
                dir: firmware_dir(config),
                clock,
            };
            let updates = ota::Driver::start(context, ota_schedule(config))?;
            router.join_ota(updates.waker());
            let sequencer = opened.sequencer();
            let context = inbox::Context {
                store: Arc::clone(&store),
                router: Arc::clone(&router),
                own: server_id.clone(),
                unsequenced: Arc::new(move || {
                    if let Some(sequencer) = &sequencer {
                        sequencer.wake();
                    }
                }),
            };
            let inbox = match &cluster {
                Some(cluster) => cluster.listen(context)?,
                None => {
                    let queue = Arc::new(EmbeddedQueue::new(server_id.clone()));
                    metrics.join(&queue);
                    router.join_queue(server_id.clone(), Arc::clone(&queue) as Arc<dyn Queue>);
                    Inbox::start(context, queue)?
                }
            };
            metrics.join(&inbox);
            if let Some(cluster) = &cluster {
                let context = instances::Context {
                    store: Arc::clone(&store),
                    directory: Arc::clone(&directory),
                    sessions: Arc::clone(&cluster.sessions),
                    queue: Arc::clone(&cluster.queue) as Arc<dyn Queue>,
                    metrics: Arc::clone(&metrics),
                    own: server_id.clone(),
                    clock,
                };
                metrics.join(&cluster.enlist(context)?);
            }
            Ok((pusher, jobs, updates, inbox))
        })?;
        let desk = stages.run("cards", || {
            if config.cards.mode != config::CardMode::Webhook {
                return Ok(None);
            }
            let mailboxes = prepared.mailboxes().to_vec();
            let answer: Arc<Answered> = Arc::new(move |shard: ShardId, message| {
                if let Some(mailbox) = mailboxes.get(usize::from(shard.0)) {
                    // A full mailbox counts what it refuses; the holder swipes again.
                    drop(mailbox.send(message));
                }
            });
            let desk = Arc::new(CardDesk::start(&card_settings(config), answer)?);
            metrics.join(&desk);
            Ok(Some(desk))
        })?;
        let shards = stages.run("device listeners", || {
            let mut seeds = Vec::new();
            let asks = desk.as_ref().and_then(|desk| desk.questions());
            for index in 0..shards {
                let core_config = core_config(config, ShardId(index), shards, &pusher)?;
                let writer = metrics.claim_shard(usize::from(index));
                let writer = writer.ok_or_else(|| anyhow::anyhow!("the metrics of shard {index} are taken"))?;
                let core = Core::new(core_config, Arc::clone(&directory), Arc::clone(&limits), writer);
                seeds.push(Seed { core, tick: ticks.of(usize::from(index)), asks: asks.clone() });
            }
            let mut listen = vec![ListenAddress { addr: config.device.listen, listener: Listener::Devices }];
            listen.extend(config.device.listen_gn.map(|addr| ListenAddress { addr, listener: Listener::Gn }));
            let on_failure: OnFailure = Arc::new(|failure| {
                log::error!(target: "chargegate::boot", shard = failure.shard.0; "shard failed: {}", failure.reason);
                // The other shards go on as if nothing were; only a new process makes them whole again.
                std::process::exit(EXIT_SHARD_FAILED);
            });
            Ok(prepared.start(seeds, clock, &store, &listen, &on_failure)?)
        })?;
        health.set(Component::Devices, ComponentState::ok(Duration::ZERO));
        drain.serve();
        Ok(Self {
            health,
            store,
            cluster,
            api,
            server,
            guard,
            pusher,
            desk,
            jobs,
            updates,
            inbox,
            shards,
            drain,
            ticks,
            made_key,
            began: start,
        })
    }

    /// Tells a person at a terminal where everything is.
    fn announce(&self) {
        let http = self.guard.local_addr();
        let mut text = String::new();
        for address in self.shards.listen() {
            let what = match address.listener {
                Listener::Devices => "devices",
                Listener::Gn => "GN devices",
            };
            text += &format!("{what:<12} {}\n", address.addr);
        }
        text += &format!("{:<12} http://{http}/api/v1/third\n", "API");
        text += &format!("{:<12} http://{http}/\n", "console");
        text += &format!("{:<12} http://{http}/healthz /readyz /metrics\n", "health");
        if let Some(key) = &self.made_key {
            text += &format!("{:<12} {key}   (send it as X-Api-Key)\n", "API key");
        }
        let mut out = io::stdout().lock();
        // A closed standard output is no reason not to serve.
        drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
        log::info!(
            target: "chargegate::boot",
            engine:% = self.shards.engine(), http:% = http, ms = millis_since(self.began);
            "ready"
        );
    }

    fn run(self, mut signals: Signals, config: Config, source: &Source) -> ExitCode {
        let mut config = config;
        for signal in signals.forever() {
            if signal == SIGHUP {
                self.reload(&mut config, source);
                continue;
            }
            log::info!(target: "chargegate::boot", signal = signal; "stopping");
            // From here on a signal means: now.
            std::thread::spawn(move || {
                if signals.forever().any(|signal| signal != SIGHUP) {
                    std::process::exit(1);
                }
            });
            break;
        }
        self.stop(config.shutdown.timeout, config.shutdown.drain_per_s)
    }

    fn stop(self, timeout: Duration, drain_per_s: u32) -> ExitCode {
        let began = now();
        let left = || timeout.saturating_sub(now().duration_since(began)).max(Duration::from_secs(1));
        self.drain.stop();
        self.guard.begin_shutdown(left());
        let stopped = self.shards.join(left(), drain_per_s, self.api.metrics.connections());
        if let Some(desk) = &self.desk {
            desk.stop();
        }
        self.ticks.clear(&self.health);
        self.guard.join();
        self.api.inquiries.stop();
        drop(self.server);
        self.jobs.stop();
        self.updates.stop();
        self.api.managed.stop();
        let pushed = self.pusher.stop(left());
        self.inbox.stop();
        if let Some(cluster) = &self.cluster {
            cluster.leave();
        }
        self.store.close(left());
        log::info!(
            target: "chargegate::boot",
            shards_forced = stopped.forced, deliveries_forced = pushed.forced, ms = millis_since(began);
            "stopped"
        );
        ExitCode::SUCCESS
    }

    fn reload(&self, config: &mut Config, source: &Source) {
        let new = match source.load() {
            Ok(new) => new,
            Err(errors) => {
                for error in errors.0 {
                    log::error!(target: "chargegate::config", "not reloaded: {error}");
                }
                return;
            }
        };
        for change in config.changes(&new) {
            match change.reload {
                Reload::Live => log::info!(target: "chargegate::config", key:% = change.key; "changed"),
                Reload::Restart => {
                    log::warn!(target: "chargegate::config", key:% = change.key; "changes at the next start")
                }
            }
        }
        telemetry::log::set_level(new.log.level);
        self.api.backlog.set_limits(Limits::from(&new.queue));
        self.api.auth.set_limits(caller_limits(&new));
        let before = self.api.managed.configured();
        self.api.managed.configure(Configured {
            // Without any the last ones stay: nobody is locked out by a slip.
            keys: if new.api_keys.is_empty() { before.keys.clone() } else { keys(&new, None) },
            endpoints: new.webhook_endpoints.clone(),
            allow_private_targets: before.allow_private_targets,
        });
        *config = new;
    }
}

/// The shards' ticks, on their way to the health registry.
#[derive(Clone, Debug)]
pub struct Ticks(Arc<[Arc<AtomicU64>]>);

impl Ticks {
    fn new(shards: usize) -> Self {
        Self((0..shards).map(|_| Arc::new(AtomicU64::new(0))).collect())
    }

    fn of(&self, shard: usize) -> Arc<AtomicU64> {
        self.0.get(shard).map_or_else(Arc::default, Arc::clone)
    }

    /// Copies the ticks of the shards that started.
    pub fn publish(&self, health: &Health) {
        for (shard, tick) in self.0.iter().enumerate() {
            match tick.load(std::sync::atomic::Ordering::Relaxed) {
                0 => {}
                at => health.tick(shard, at),
            }
        }
    }

    fn clear(&self, health: &Health) {
        for (shard, tick) in self.0.iter().enumerate() {
            tick.store(0, std::sync::atomic::Ordering::Relaxed);
            health.shard_ended(shard);
        }
    }
}

const fn card_mode(mode: config::CardMode) -> CardMode {
    match mode {
        config::CardMode::Off => CardMode::Off,
        config::CardMode::Local => CardMode::Local,
        config::CardMode::Webhook => CardMode::Webhook,
    }
}

fn card_rules(config: &Config) -> CardRules {
    let cards = &config.cards;
    let first = || config.tariffs.first().map(|named| named.name.clone());
    CardRules {
        mode: card_mode(cards.mode),
        tariffs: config.tariffs.clone(),
        tariff: if cards.tariff.is_empty() { first() } else { Some(cards.tariff.clone()) },
        swipe_minutes_max: u16::try_from(cards.swipe_minutes_max).unwrap_or(u16::MAX),
        utc_offset_minutes: i32::try_from(cards.utc_offset_minutes).unwrap_or(0),
        hold_after_end_ms: signed(cards.hold_after_end),
    }
}

fn card_settings(config: &Config) -> CardSettings {
    let cards = &config.cards;
    let endpoint = Endpoint {
        name: "cards".to_owned(),
        url: cards.webhook_url.clone(),
        secrets: vec![cards.webhook_secret.expose().to_owned()],
        api_key: None,
        events: Vec::new(),
    };
    CardSettings {
        endpoint,
        timeout: cards.webhook_timeout,
        concurrency: usize::try_from(cards.webhook_concurrency).unwrap_or(4),
        waiting_max: usize::try_from(cards.webhook_waiting_max).unwrap_or(256),
        allow_private_targets: config.webhook.allow_private_targets,
    }
}

const fn engine(engine: config::Engine) -> EngineChoice {
    match engine {
        config::Engine::Auto => EngineChoice::Auto,
        config::Engine::Glommio => EngineChoice::Only(Engine::Glommio),
        config::Engine::Mio => EngineChoice::Only(Engine::Mio),
    }
}

fn core_config(config: &Config, shard: ShardId, shards: u16, pusher: &Pusher) -> anyhow::Result<CoreConfig> {
    let share = |all: u64| (all / u64::from(shards)).max(1);
    Ok(CoreConfig {
        shard,
        magics: Magics::new(&config.ap3000.magics.0)?,
        bkv: BkvReadings {
            power_start_command: match config.bkv.power_start_command {
                config::PowerStartCommand::Control => bkv::command::CONTROL,
                config::PowerStartCommand::Network => bkv::command::NETWORK,
            },
            charge_end_ack: match config.bkv.charge_end_ack {
                config::ChargeEndAck::CardEnd => bkv::command::sub::CARD_END,
                config::ChargeEndAck::Echo => bkv::command::sub::CHARGE_END,
            },
            card_time_in_seconds: config.bkv.card_time_unit == config::CardTimeUnit::Seconds,
        },
        known_only: config.devices.admission == config::Admission::Known,
        stranger_frames_max: config.devices.unknown_frames_max,
        accept_rate_per_s: share(u64::from(config.limits.accept_rate_per_s)),
        accept_burst: share(u64::from(config.limits.accept_burst)),
        breaker: Breaker {
            failures: config.limits.breaker_failures,
            probe_min: ms(config.limits.breaker_probe_min),
            probe_max: ms(config.limits.breaker_probe_max),
        },
        garbage_percent_max: u64::from(config.device.garbage_percent_max),
        wanted: pusher.wanted(),
        log_heartbeats: config.store.cmd_log_heartbeats,
        recorder_bytes: usize::try_from(config.recorder.bytes_per_shard.0).unwrap_or(usize::MAX),
        cards: card_mode(config.cards.mode),
        ota_packets_per_s: share(u64::from(config.ota.packets_per_s)),
        ota_running_max: usize::try_from(share(u64::from(config.ota.concurrent_max))).unwrap_or(usize::MAX),
        orders: order_times(config),
        timeouts: Timeouts {
            detect: ms(config.device.detect_timeout),
            frame: ms(config.device.detect_timeout),
            write: ms(config.device.write_timeout),
            idle_ap3000: ms(config.device.idle_timeout_ap3000),
            idle_bkv: ms(config.device.idle_timeout_bkv),
            session_ap3000: signed(config.session.timeout_ap3000),
            session_bkv: signed(config.session.timeout_bkv),
            session_gn: signed(config.session.timeout_gn),
            session_shared: signed(config.session.timeout_shared),
            session_host: signed(config.session.timeout_host),
            port_sync: ms(config.jobs.port_sync_interval),
            command_gap: ms(config.ap3000.command_interval),
            flush: ms(config.store.flush_interval),
        },
    })
}

fn order_times(config: &Config) -> OrderTimes {
    let orders = &config.orders;
    OrderTimes {
        start_ack: ms(orders.confirm_timeout),
        start_total: ms(orders.create_timeout),
        start_resend: ms(orders.start_resend),
        no_load: ms(orders.no_load_timeout),
        interrupted: ms(orders.interrupt_timeout),
        settlement: ms(orders.settlement_timeout),
        stop_total: ms(orders.stop_timeout),
        stop_resend: ms(orders.stop_resend),
        overrun: ms(orders.overrun),
        duration_least: ms(orders.duration_max_least),
        duration_open: ms(orders.duration_max_open),
        end_stops_max: orders.end_pending_stops_max,
    }
}

fn store_limits(config: &Config) -> store::Limits {
    let session = &config.session;
    let own = session.timeout_ap3000.max(session.timeout_bkv).max(session.timeout_gn).max(session.timeout_shared);
    store::Limits {
        orders: order_times(config),
        backstop_delay: signed(config.orders.backstop_delay),
        silent: signed(own + config.store.flush_interval),
        late_after: signed(config.orders.late_after),
        match_window: signed(config.orders.match_window),
        valid_for_order: signed(config.commands.valid_for_order),
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn signed(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn guard_config(config: &Config) -> GuardConfig {
    let http = &config.http;
    let size = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
    GuardConfig {
        connections_max: size(http.max_connections),
        connections_per_ip_max: size(http.max_connections_per_ip),
        head_bytes_max: size(http.head_bytes_max),
        body_bytes_max: size(http.body_bytes_max),
        head_timeout: http.head_timeout,
        body_timeout: http.body_timeout,
        write_timeout: http.write_timeout,
        idle_timeout: http.keep_alive_timeout,
        // A store that hangs is told by the guard, after the store's own deadline.
        upstream_timeout: http.store_timeout + Duration::from_secs(1),
        upload: Some(UploadConfig {
            path: FIRMWARE_PATH,
            dir: firmware_dir(config),
            bytes_max: size(config.ota.firmware_max),
            timeout: config.ota.upload_timeout,
            at_once_max: UPLOADS_MAX,
        }),
        ..GuardConfig::new(http.listen)
    }
}

/// Images, and uploads on their way to become some.
fn firmware_dir(config: &Config) -> PathBuf {
    config.data.dir.join("firmware")
}

const fn retention(config: &Config) -> Retention {
    Retention {
        events: config.retention.events,
        commands: config.retention.dead_commands,
        answers: config.retention.idempotency_keys,
        command_log: config.retention.cmd_log,
        delivery_log: config.retention.delivery_log,
    }
}

const fn ota_schedule(config: &Config) -> ota::Schedule {
    ota::Schedule { poll: config.ota.poll_interval, valid_for: config.ota.valid_for, ftp: config.ota.ftp_timeout }
}

fn schedule(config: &Config) -> Schedule {
    Schedule {
        backstop: config.jobs.order_backstop_interval,
        command_poll: config.jobs.command_interval,
        cleaner: config.jobs.cleanup_interval,
        retention: retention(config),
        interrupt_grace: config.session.interrupt_grace,
        offline_grace: config.session.offline_grace,
    }
}

fn pusher_settings(config: &Config, instance: Option<ServerId>) -> webhook::Settings {
    webhook::Settings {
        timeout: config.webhook.timeout,
        retry_delays: config.webhook.retry_schedule.0.clone(),
        concurrency: usize::try_from(config.webhook.concurrency).unwrap_or(32),
        allow_private_targets: config.webhook.allow_private_targets,
        instance,
        ..webhook::Settings::default()
    }
}

const fn caller_limits(config: &Config) -> auth::Limits {
    auth::Limits {
        rate_per_s: config.api.rate_per_s,
        failures_per_minute_per_ip: config.api.failures_per_minute_per_ip,
    }
}

fn keys(config: &Config, made: Option<&str>) -> Vec<ApiKey> {
    let made = made.map(|key| ApiKey {
        name: "first".to_owned(),
        key_sha256: Sha256::digest(key).into(),
        scopes: [Scope::Read, Scope::Control, Scope::Admin].into_iter().collect(),
        require_hmac: false,
        hmac_secret: None,
        ip_allow: Vec::new(),
        rate_per_s: 0,
        burst: 0,
    });
    config.api_keys.iter().cloned().chain(made).collect()
}

/// A value made once and kept in a file that only its owner may read.
fn kept(path: &Path, make: impl FnOnce() -> String) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(named(path, error)),
    }
    let value = make();
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(format!("{value}\n").as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error| named(path, error))?;
    Ok(value)
}

fn named(path: &Path, error: io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context(path.display().to_string())
}

/// Tells instances apart in order numbers.
fn salt_of(server_id: &ServerId) -> u64 {
    let digest = Sha256::digest(server_id.as_str());
    let first = digest.first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes));
    u64::from(first) & (STORE_SALT - 1)
}

fn descriptor_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that outlives the call.
    let failed = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0;
    if failed { 1024 } else { usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX) }
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}

fn millis_since(began: Instant) -> u64 {
    u64::try_from(now().duration_since(began).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_defaults_are_the_built_in_ones() {
        let config = Config::default();
        assert_eq!(order_times(&config), OrderTimes::default());
        assert_eq!(store_limits(&config), store::Limits::default());
        assert_eq!(card_rules(&config), CardRules::default());
        let options = store::sqlite::Options::new("");
        assert_eq!(usize::try_from(config.store.waiting_jobs_max), Ok(options.queue_jobs_max));
        assert_eq!(usize::try_from(config.store.flush_rows_max), Ok(options.latest_rows_max));
        assert_eq!(usize::try_from(config.store.batch_jobs_max), Ok(options.batch_jobs_max));
        assert_eq!(ms(config.store.flush_interval), Timeouts::default().flush);
    }
}
