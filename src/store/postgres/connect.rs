//! Connections: the URL, TLS, deadlines, and what every session is set to.
//!
//! | limit | holds for |
//! |---|---|
//! | `connect_timeout` | making a connection, from the first packet to the settings of the session |
//! | `statement_timeout` | one statement, by the server |
//! | `lock_timeout` | one wait for a lock, by the server |
//! | `TCP_USER_TIMEOUT`, keepalives | a machine or network that is gone, by the kernel |
//! | `statement_timeout` and a margin | any call, by the [`Watchdog`]: a server that stands still |
//!
//! Connections of one process are made one at a time: a server that is down is tried by one thread, and the watchdog tells the
//! socket apart from all others.

use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use postgres::{
    Client, Config, NoTls, SimpleQueryMessage,
    config::{Host, SslMode},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    session::{PgSession, describe, store_error},
    tls::{self, Verify},
    watch::{Peer, Watchdog},
};
use crate::store::StoreError;

const PORT: u16 = 5432;
/// `pg_xact_status` and identities as used here are older; nothing older is tested.
const VERSION_LEAST: u32 = 130_000;
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// The server ends a statement by itself before this is over.
const MARGIN: Duration = Duration::from_secs(5);

/// One at a time, all stores of the process together.
static CONNECTING: Mutex<()> = Mutex::new(());

/// Time limits of connections.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For making one.
    pub connect: Duration,
    /// For one statement.
    pub statement: Duration,
    /// For one wait for a lock.
    pub lock: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), statement: Duration::from_secs(10), lock: Duration::from_secs(5) }
    }
}

impl From<&crate::config::Store> for Timeouts {
    fn from(config: &crate::config::Store) -> Self {
        Self { connect: config.connect_timeout, statement: config.statement_timeout, lock: config.lock_timeout }
    }
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Commits wait for the disk.
    Durable,
    /// Commits do not: a crash of the server may lose the last ones.
    Lossy,
    /// It cannot write.
    Reader,
    /// As [`Role::Durable`], for statements that may take long.
    Migrate,
}

/// A database, and how it is reached.
pub(super) struct Connector {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    timeouts: Timeouts,
    /// Host, port and database, for messages.
    name: String,
    watchdog: Arc<Watchdog>,
}

impl Connector {
    /// Reads a URL: that of libpq, with `sslmode` (`disable`, `prefer`, `require`, `verify-ca`, `verify-full`) and `sslrootcert`.
    pub(super) fn new(url: &str, timeouts: Timeouts) -> Result<Self, StoreError> {
        let (mut config, verify) = parse(url)?;
        config
            .application_name("chargegate")
            .connect_timeout(timeouts.connect)
            .tcp_user_timeout(timeouts.statement + MARGIN)
            .keepalives(true)
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .keepalives_retries(KEEPALIVE_RETRIES)
            .ssl_mode(match &verify {
                Verify::Off => SslMode::Disable,
                Verify::Prefer => SslMode::Prefer,
                Verify::No | Verify::Chain(_) | Verify::Full(_) => SslMode::Require,
            });
        let tls = tls::connector(&verify)?;
        let name = name(&config);
        Ok(Self { config, tls, timeouts, name, watchdog: Arc::new(Watchdog::start()?) })
    }

    /// Host, port and database; nothing secret.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Calls that were ended because the server did not answer.
    pub(super) fn timed_out(&self) -> u64 {
        self.watchdog.bites()
    }

    /// Connects. Waits for other connections being made, each of which has its own limit.
    pub(super) fn connect(&self, role: Role) -> Result<PgSession, StoreError> {
        let _alone = CONNECTING.lock();
        self.connect_alone(role)
    }

    /// Connects, unless another connection is being made: its outcome tells as much.
    pub(super) fn try_connect(&self, role: Role) -> Result<PgSession, StoreError> {
        let Some(_alone) = CONNECTING.try_lock() else {
            return Err(StoreError::Unavailable(format!("another connection to {} is being made", self.name)));
        };
        self.connect_alone(role)
    }

    fn connect_alone(&self, role: Role) -> Result<PgSession, StoreError> {
        let mut last = None;
        for (config, peer) in self.addresses()? {
            match self.connect_to(&config, &peer, role) {
                Ok(session) => return Ok(session),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| self.unreachable("the host has no address")))
    }

    fn unreachable(&self, why: impl std::fmt::Display) -> StoreError {
        StoreError::Unavailable(format!("cannot connect to PostgreSQL at {}: {why}", self.name))
    }

    /// The addresses to try, in order, with a configuration that leads to each.
    fn addresses(&self) -> Result<Vec<(Config, Peer)>, StoreError> {
        let (hosts, given) = (self.config.get_hosts(), self.config.get_hostaddrs());
        let ports = self.config.get_ports();
        let mut all = Vec::new();
        let mut failed = None;
        for index in 0..hosts.len().max(given.len()) {
            let port = ports.get(index).or_else(|| ports.first()).copied().unwrap_or(PORT);
            let (host, given) = (hosts.get(index), given.get(index));
            match (host, given) {
                (Some(Host::Unix(dir)), None) => {
                    let mut config = self.bare(port);
                    config.host_path(dir).ssl_mode(SslMode::Disable);
                    all.push((config, Peer::Unix(dir.join(format!(".s.PGSQL.{port}")))));
                }
                (_, Some(ip)) => all.push(self.at(host, *ip, port)),
                (Some(Host::Tcp(name)), None) => match (name.as_str(), port).to_socket_addrs() {
                    Ok(found) => all.extend(found.map(|address| self.at(host, address.ip(), port))),
                    Err(error) => failed = Some(error),
                },
                (None, None) => {}
            }
        }
        match failed {
            Some(error) if all.is_empty() => Err(self.unreachable(error)),
            _ => Ok(all),
        }
    }

    fn at(&self, host: Option<&Host>, ip: IpAddr, port: u16) -> (Config, Peer) {
        let mut config = self.bare(port);
        config.hostaddr(ip);
        match host {
            // The name that the server's certificate is for.
            Some(Host::Tcp(name)) => config.host(name),
            _ => config.host(&ip.to_string()),
        };
        (config, Peer::Tcp(SocketAddr::new(ip, port)))
    }

    /// The configuration without its hosts.
    fn bare(&self, port: u16) -> Config {
        let from = &self.config;
        let mut config = Config::new();
        if let Some(user) = from.get_user() {
            config.user(user);
        }
        if let Some(password) = from.get_password() {
            config.password(password);
        }
        if let Some(dbname) = from.get_dbname() {
            config.dbname(dbname);
        }
        if let Some(options) = from.get_options() {
            config.options(options);
        }
        config
            .application_name(from.get_application_name().unwrap_or("chargegate"))
            .port(port)
            .ssl_mode(from.get_ssl_mode())
            .ssl_negotiation(from.get_ssl_negotiation())
            .target_session_attrs(from.get_target_session_attrs())
            .channel_binding(from.get_channel_binding())
            .connect_timeout(self.timeouts.connect)
            .keepalives(from.get_keepalives())
            .keepalives_idle(from.get_keepalives_idle());
        if let Some(timeout) = from.get_tcp_user_timeout() {
            config.tcp_user_timeout(*timeout);
        }
        if let Some(interval) = from.get_keepalives_interval() {
            config.keepalives_interval(interval);
        }
        if let Some(retries) = from.get_keepalives_retries() {
            config.keepalives_retries(retries);
        }
        config
    }

    fn connect_to(&self, config: &Config, peer: &Peer, role: Role) -> Result<PgSession, StoreError> {
        let watch = self.watchdog.watch();
        watch.connecting(peer);
        watch.arm(self.timeouts.connect);
        let connected = match &self.tls {
            Some(tls) => config.connect(tls.clone()),
            None => config.connect(NoTls),
        };
        let made = connected.map_err(|error| self.unreachable(describe(&error))).and_then(|mut client| {
            if !watch.connected() {
                log::warn!(
                    "the socket of a connection to {} was not found: a server that stands still is not noticed",
                    self.name
                );
            }
            let pid = self.set_up(&mut client, role)?;
            let limit = match role {
                Role::Migrate => Duration::from_secs(3600),
                Role::Durable | Role::Lossy | Role::Reader => self.timeouts.statement + MARGIN,
            };
            Ok(PgSession::new(client, Arc::clone(&watch), limit, pid))
        });
        watch.disarm();
        made
    }

    /// Sets the session up and checks what the store relies on; returns the number of the server's process.
    fn set_up(&self, client: &mut Client, role: Role) -> Result<i32, StoreError> {
        let Timeouts { statement, lock, .. } = self.timeouts;
        let (statement, lock) =
            if role == Role::Migrate { (0, 60_000) } else { (statement.as_millis(), lock.as_millis()) };
        // A process that stands still in a transaction must not hold its devices for long, nor one whose machine is gone.
        let idle = statement.max(10_000);
        let commit = if role == Role::Lossy { "off" } else { "on" };
        let read_only = if role == Role::Reader { "on" } else { "off" };
        // Statements here look up rows by key. The planner, asked while a table is small, would read it whole, and keep the plan
        // while the table grows.
        let planner = match role {
            Role::Migrate | Role::Reader => "",
            // Those that write take an index for each of a few rows, whatever the planner thinks of the tables: it would also read
            // the whole of a partial index, or join all rows of a table with the batch's. One plan for good, made once.
            Role::Durable | Role::Lossy => {
                "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off; \
                 SET enable_bitmapscan = off; SET plan_cache_mode = force_generic_plan; "
            }
        };
        let sql = format!(
            "SET statement_timeout = {statement}; SET lock_timeout = {lock}; \
             SET idle_in_transaction_session_timeout = {idle}; SET tcp_keepalives_idle = 10; \
             SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; SET synchronous_commit = {commit}; \
             SET default_transaction_read_only = {read_only}; SET default_transaction_isolation = 'read committed'; \
             SET enable_seqscan = off; SET jit = off; {planner}SET timezone = 'UTC'; SET client_min_messages = warning; \
             SELECT pg_backend_pid(), current_setting('server_version_num'), pg_is_in_recovery(), \
             current_setting('synchronous_commit'), current_setting('server_encoding'), current_schema()"
        );
        let answer = client.simple_query(&sql).map_err(|error| store_error(&error))?;
        let row =
            answer.iter().find_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None });
        let Some(row) = row else { return Err(self.unreachable("it does not answer as PostgreSQL does")) };
        let text = |column| row.get(column).unwrap_or_default();
        let version = text(1).parse().unwrap_or(0);
        if version < VERSION_LEAST {
            return Err(self.unreachable(format_args!("its version is {}, 13 is needed", version / 10_000)));
        }
        if text(2) == "t" && role != Role::Reader {
            return Err(self.unreachable("it is a standby, which takes no writes"));
        }
        if text(3) != commit {
            return Err(self.unreachable(format_args!("synchronous_commit is {}, not {commit}", text(3))));
        }
        if text(4) != "UTF8" {
            return Err(self.unreachable(format_args!("the database's encoding is {}, UTF8 is needed", text(4))));
        }
        if text(5).is_empty() {
            return Err(self.unreachable("the user's search_path names no schema that exists"));
        }
        text(0).parse().map_err(|_| self.unreachable("it does not answer as PostgreSQL does"))
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Whether a URL can be used, as far as it says by itself.
pub(super) fn check(url: &str) -> Result<(), StoreError> {
    parse(url).map(|_| ())
}

fn parse(url: &str) -> Result<(Config, Verify), StoreError> {
    let (url, verify) = split_tls(url)?;
    // The parser's own words may repeat a part of the password.
    let config: Config = url.parse().map_err(|_| refused("it is no PostgreSQL URL"))?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(refused("it names no host"));
    }
    Ok((config, verify))
}

fn refused(why: &str) -> StoreError {
    StoreError::Statement(format!("store.url cannot be used: {why}"))
}

/// `HOST:PORT/DATABASE`, as far as it is given.
fn name(config: &Config) -> String {
    let port = config.get_ports().first().copied().unwrap_or(PORT);
    let host = match (config.get_hosts().first(), config.get_hostaddrs().first()) {
        (Some(Host::Tcp(name)), _) => format!("{name}:{port}"),
        (Some(Host::Unix(dir)), _) => format!("{}:{port}", dir.display()),
        (None, Some(ip)) => SocketAddr::new(*ip, port).to_string(),
        (None, None) => String::new(),
    };
    format!("{host}/{}", config.get_dbname().or_else(|| config.get_user()).unwrap_or_default())
}

/// Takes what the crate does not know out of a URL: `sslmode` with all its words, and `sslrootcert`.
fn split_tls(url: &str) -> Result<(String, Verify), StoreError> {
    // A password may hold anything.
    let from = url.rfind('@').unwrap_or(0);
    let Some(mark) = url[from..].find('?').map(|at| from + at) else { return Ok((url.to_owned(), Verify::Prefer)) };
    let (base, query) = (&url[..mark], &url[mark + 1..]);
    let (mut mode, mut root, mut rest) = ("prefer", None, Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", value)) => mode = value,
            Some(("sslrootcert", value)) => root = Some(PathBuf::from(percent_decoded(value))),
            _ => rest.push(pair),
        }
    }
    let verify = match mode {
        "disable" => Verify::Off,
        "allow" | "prefer" => Verify::Prefer,
        // As libpq does: a certificate that is named is meant to be checked.
        "require" => root.map_or(Verify::No, |root| Verify::Chain(Some(root))),
        "verify-ca" => Verify::Chain(root),
        "verify-full" => Verify::Full(root),
        _ => return Err(refused("sslmode is none of disable, prefer, require, verify-ca, verify-full")),
    };
    let url = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
    Ok((url, verify))
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..2).filter(|_| byte == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(code) => {
                bytes.push(code);
                rest = &after[2..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_is_read_from_the_url() {
        let split = |url: &str| split_tls(url).unwrap();
        assert_eq!(split("postgres://u@h/d"), ("postgres://u@h/d".to_owned(), Verify::Prefer));
        assert_eq!(split("postgres://u@h/d?sslmode=disable").1, Verify::Off);
        assert_eq!(split("postgres://u@h/d?sslmode=require").1, Verify::No);
        let root = || Some(PathBuf::from("/etc/my ca.pem"));
        assert_eq!(split("postgres://u@h/d?sslrootcert=/etc/my%20ca.pem&sslmode=require").1, Verify::Chain(root()),);
        assert_eq!(
            split("postgres://u:p?q@h/d?connect_timeout=3&sslmode=verify-full&sslrootcert=%2fetc/my%20ca.pem"),
            ("postgres://u:p?q@h/d?connect_timeout=3".to_owned(), Verify::Full(root())),
        );
        assert!(split_tls("postgres://h/d?sslmode=sometimes").is_err());
    }

    #[test]
    fn messages_name_the_database_and_no_password() {
        let name = |url: &str| Connector::new(url, Timeouts::default()).unwrap().name().to_owned();
        assert_eq!(name("postgres://u:hunter2@db.example:6432/main?sslmode=disable"), "db.example:6432/main");
        assert_eq!(name("postgres://u:hunter2@[::1]/main?sslmode=disable"), "::1:5432/main");
        assert_eq!(name("postgres://u@%2Frun%2Fpostgresql/main?sslmode=disable"), "/run/postgresql:5432/main");
        let error = Connector::new("postgres://u:hunter2@h:port/d", Timeouts::default()).unwrap_err().to_string();
        assert!(!error.contains("hunter2") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn every_address_is_tried_with_the_name_of_its_certificate() {
        let connector =
            Connector::new("postgres://u:p@127.0.0.1:7001,[::1]:7002/d?sslmode=disable", Timeouts::default());
        let all = connector.unwrap().addresses().unwrap();
        let peers: Vec<_> = all.iter().map(|(_, peer)| peer.clone()).collect();
        let tcp = |text: &str| Peer::Tcp(text.parse().unwrap());
        assert_eq!(peers, [tcp("127.0.0.1:7001"), tcp("[::1]:7002")]);
        let (config, _) = &all[0];
        assert_eq!((config.get_hosts().len(), config.get_hostaddrs().len()), (1, 1));
        assert_eq!(
            (config.get_user(), config.get_password(), config.get_dbname()),
            (Some("u"), Some(&b"p"[..]), Some("d"))
        );
    }
}
