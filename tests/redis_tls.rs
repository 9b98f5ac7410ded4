//! A Redis behind TLS is used if its certificate is of an authority that is trusted, and not otherwise.
//!
//! The certificate in `testdata/tls` is for `localhost` and `127.0.0.1`.

mod services;

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use chargegate::cluster::link::{Link, LinkSettings, OpenError};
use chargegate::cluster::{LinkError, ServerId};
use chargegate::model::Priority;
use chargegate::queue::{Entry, Queue, RedisQueue};
use chargegate::telemetry::label::RedisOp;
use services::{Persistence, Redis};

/// Only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tls").join(name);
    path.to_str().expect("a path of the repository").to_owned()
}

/// Has a server listen with TLS too. The port was free a moment ago.
fn encrypt(redis: &Redis) -> u16 {
    for _ in 0..100 {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("tls-cert-file").arg(file("server.pem")).arg("tls-key-file").arg(file("server.key"));
        set.arg("tls-ca-cert-file").arg(file("ca.pem")).arg("tls-auth-clients").arg("no").arg("tls-port").arg(port);
        if set.exec(&mut redis.client()).is_ok() && TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no TLS:\n{}", redis.log());
}

fn settings(url: String, ca: Option<&str>) -> LinkSettings {
    LinkSettings { ca_file: ca.map(|name| file(name).into()), ..LinkSettings::new(url) }
}

#[test]
fn a_trusted_certificate_is_needed_and_enough() {
    let redis = Redis::start(Persistence::None);
    let port = encrypt(&redis);
    for host in ["localhost", "127.0.0.1"] {
        let link = Link::open(settings(format!("rediss://{host}:{port}/3"), Some("ca.pem"))).expect("it is trusted");
        let set =
            link.call(PATIENCE, RedisOp::Session, |connection| redis::cmd("SET").arg("a").arg(1).exec(connection));
        assert_eq!(set, Ok(()));
        let server = ServerId::from("here");
        let queue = Arc::new(RedisQueue::new(Arc::clone(&link), &server));
        let popping = Arc::clone(&queue);
        let popped = thread::spawn(move || popping.pop(9, PATIENCE));
        queue.push(&server, vec![Entry { id: 7, device_id: None, priority: Priority::High, at_ns: 0 }]);
        assert_eq!(popped.join().unwrap().as_deref(), Ok(&[7][..]), "blocking commands too");
    }
    let unknown = Link::open(settings(format!("rediss://localhost:{port}"), None)).expect_err("nobody trusts it");
    assert!(matches!(&unknown, OpenError::Unreachable { cause: LinkError::Lost(_), .. }), "{unknown}");
    let plain = Link::open(settings(format!("redis://localhost:{port}"), None));
    assert!(plain.is_err(), "without TLS it is not understood");
    let own_name = Link::open(settings(format!("rediss://localhost:{port}"), Some("server.key")));
    assert!(own_name.is_err(), "a key is no authority");
}

#[test]
fn a_file_of_authorities_that_cannot_be_used_is_named() {
    let missing =
        Link::open(settings("rediss://localhost:1".to_owned(), Some("missing.pem"))).expect_err("no such file");
    assert!(matches!(missing, OpenError::Authorities { .. }));
    assert!(missing.to_string().contains("missing.pem"), "{missing}");
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    for scheme in ["redis", "rediss"] {
        let mut settings = settings(format!("{scheme}://127.0.0.1:{port}"), Some("ca.pem"));
        settings.connect_timeout = Duration::from_millis(100);
        let silent = Link::open(settings).expect_err("it never answers");
        assert!(matches!(silent, OpenError::Unreachable { cause: LinkError::Timeout, .. }), "{silent}");
    }
}
