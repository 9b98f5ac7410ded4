//! What a clustered gateway needs is there at its start, or it ends at once with one line and a code of its own.

mod cluster;
mod gateway;
mod services;

use std::{
    net::UdpSocket,
    sync::{Barrier, Mutex},
    thread,
};

use cluster::{Cluster, Options};
use gateway::{NoStart, wire::Ap3000};
use postgres::{Client, NoTls};

/// A port that nobody listens on: bound, so that nobody else comes to.
fn closed_port() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port of the kernel's choosing");
    let port = socket.local_addr().expect("it is bound").port();
    (socket, port)
}

#[track_caller]
fn ended(cluster: &Cluster, variables: &[(&str, &str)]) -> NoStart {
    let variables: Vec<_> = [("CHARGEGATE_LOG_LEVEL", "error")].into_iter().chain(variables.iter().copied()).collect();
    match cluster.gateway(&variables) {
        Ok(gateway) => panic!("it started with {variables:?}:\n{}", gateway.log()),
        Err(failed) => failed,
    }
}

/// Ended with this code, and one line that names all of these.
#[track_caller]
fn assert_line(failed: &NoStart, code: i32, named: &[&str]) {
    assert_eq!(failed.status.code(), Some(code), "{}", failed.stderr);
    assert_eq!(failed.stderr.trim_end().lines().count(), 1, "{}", failed.stderr);
    for word in named {
        assert!(failed.stderr.contains(word), "{word}: {}", failed.stderr);
    }
    assert!(!failed.stderr.contains("hunter2"), "{}", failed.stderr);
}

#[test]
fn cluster_start() {
    let mut cluster = Cluster::without_gateways(&Options::default());
    store_and_queue_belong_together(&cluster);
    foreign_tables_are_refused_and_left_alone(&cluster);
    cluster.take_another_database();
    what_is_missing_is_named(&cluster);
    cluster.take_another_database();
    instances_that_start_at_once_all_come_up(&mut cluster);
}

fn what_is_missing_is_named(cluster: &Cluster) {
    let (_socket, port) = closed_port();
    let nowhere = format!("postgres://u:hunter2@127.0.0.1:{port}/d");
    let address = format!("127.0.0.1:{port}");
    assert_line(&ended(cluster, &[("CHARGEGATE_STORE_URL", &nowhere)]), 3, &["PostgreSQL", &address]);
    let nowhere = format!("redis://:hunter2@127.0.0.1:{port}");
    assert_line(&ended(cluster, &[("CHARGEGATE_QUEUE_URL", &nowhere)]), 3, &["redis", &address]);
    // One that accepts and does not answer is missing as well.
    let impatient = [("CHARGEGATE_QUEUE_CONNECT_TIMEOUT", "300ms"), ("CHARGEGATE_STORE_CONNECT_TIMEOUT", "300ms")];
    cluster.redis.pause();
    assert_line(&ended(cluster, &impatient), 3, &["redis"]);
    cluster.redis.resume();
    cluster.postgres.pause();
    assert_line(&ended(cluster, &impatient), 3, &["PostgreSQL"]);
    cluster.postgres.resume();
    // No database of this name: the server is there, what is required is not.
    let absent = format!("{}_absent", cluster.url);
    assert_line(&ended(cluster, &[("CHARGEGATE_STORE_URL", &absent)]), 3, &["_absent"]);
}

fn store_and_queue_belong_together(cluster: &Cluster) {
    for pair in [("CHARGEGATE_STORE_URL", "sqlite:x.db"), ("CHARGEGATE_QUEUE_URL", "embedded")] {
        let failed = ended(cluster, &[pair]);
        assert_line(&failed, 2, &["store.url", "queue.url"]);
    }
    assert!(cluster.rows("SELECT 1 FROM pg_class WHERE relname = 'orders'").is_empty(), "nothing was made");
}

fn foreign_tables_are_refused_and_left_alone(cluster: &Cluster) {
    let mut client = Client::connect(&cluster.url, NoTls).expect("it takes connections");
    client.batch_execute("CREATE TABLE orders (mine int); INSERT INTO orders VALUES (7)").expect("made");
    assert_line(&ended(cluster, &[]), 1, &["`orders`", "did not make"]);
    let tables = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    assert_eq!(cluster.rows(tables), [[Some("orders".to_owned())]]);
    assert_eq!(cluster.number("SELECT mine FROM orders"), 7);
}

/// One migrates the empty database, the others wait for it; then all serve.
fn instances_that_start_at_once_all_come_up(cluster: &mut Cluster) {
    const INSTANCES: usize = 4;
    let (barrier, started) = (Barrier::new(INSTANCES), Mutex::new(Vec::new()));
    let starting = &*cluster;
    thread::scope(|scope| {
        for _ in 0..INSTANCES {
            scope.spawn(|| {
                barrier.wait();
                let gateway = starting.gateway(&[]).unwrap_or_else(|failed| panic!("no start: {failed:?}"));
                started.lock().expect("nobody panicked").push(gateway);
            });
        }
    });
    cluster.gateways = started.into_inner().expect("nobody panicked");
    for number in 0..INSTANCES {
        cluster.is_ready(number);
    }
    let steps = cluster.number("SELECT count(*) FROM refinery_schema_history");
    assert_eq!(steps, chargegate::store::postgres::schema_version());
    let _device = Ap3000::online(cluster.gateways[0].devices, "40aace04", 1);
    for number in 0..INSTANCES {
        cluster.shows(number, "40aace04", 0);
    }
    assert_eq!(cluster.number("SELECT count(*) FROM instances"), INSTANCES as i64);
    let mut ids: Vec<_> = (0..INSTANCES).map(|number| cluster.server_id(number)).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), INSTANCES, "each has a name of its own");
    for gateway in &mut cluster.gateways {
        assert!(gateway.sigterm().success());
    }
    assert_eq!(cluster.session("40aace04"), None, "a clean stop removes its sessions");
}
