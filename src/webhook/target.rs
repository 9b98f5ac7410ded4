//! Which addresses deliveries may go to, and the resolver that lets no other through.
//!
//! A receiver's URL is configuration, but its name resolves wherever its owner's DNS says. So the addresses are checked after
//! resolving, and exactly the checked ones are handed to the connector: there is no second lookup between check and connect,
//! redirects are not followed and no proxy is asked. What is absent: any judgement of host names.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use ureq::{
    config::Config,
    http::Uri,
    unversioned::{
        resolver::{ResolvedSocketAddrs, Resolver},
        transport::NextTimeout,
    },
};

use super::clock;

/// How long a lookup is used again. The resolver is asked for every request, kept-alive connections included.
const LOOKUP_FRESH: Duration = Duration::from_secs(30);
/// How long a lookup is used while the name server does not answer.
const LOOKUP_STALE: Duration = Duration::from_secs(3_600);
/// Addresses kept of a lookup: what the HTTP client takes.
const ADDRS_MAX: usize = 16;

/// Every address of a target is one that may not be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("target address {addr} is {kind}")]
pub(super) struct TargetRefused {
    addr: IpAddr,
    kind: &'static str,
}

/// A target's name did not resolve.
#[derive(Debug, thiserror::Error)]
#[error("looking up the target's name failed")]
pub(super) struct LookupFailed(#[source] io::Error);

/// Why an address is refused; `None`: it is a public unicast address.
pub(super) fn refusal(addr: IpAddr) -> Option<&'static str> {
    match addr {
        IpAddr::V4(addr) => refusal_v4(addr),
        IpAddr::V6(addr) => refusal_v6(addr),
    }
}

/// Why deliveries to this URL would be refused for the address that stands in it; `None`: for none, or there stands a name, whose
/// addresses are judged at each delivery.
pub fn refused_address(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let addr: IpAddr = bare(uri.host()?).parse().ok()?;
    refusal(addr).map(|kind| TargetRefused { addr, kind }.to_string())
}

/// A host without the brackets of an IPv6 address.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn refusal_v4(addr: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = addr.octets();
    match (a, b, c) {
        (0, ..) => Some("unspecified"),
        (127, ..) => Some("loopback"),
        (169, 254, _) => Some("link-local"),
        (10, ..) | (172, 16..=31, _) | (192, 168, _) => Some("private"),
        (100, 64..=127, _) => Some("carrier-grade NAT"),
        (224..=239, ..) => Some("multicast"),
        (192, 0, 0) | (198, 18..=19, _) | (240..=255, ..) => Some("reserved"),
        _ => None,
    }
}

fn refusal_v6(addr: Ipv6Addr) -> Option<&'static str> {
    let segments = addr.segments();
    let [_, _, _, _, _, _, high, low] = segments;
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        refusal_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("unspecified"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
        // Addresses that carry an IPv4 one are what that one is: mapped, compatible, NAT64, 6to4.
        [0, 0, 0, 0, 0, 0xffff | 0, ..] | [0x0064, 0xff9b, 0, 0, 0, 0, ..] => v4(high, low),
        [0x2002, first, second, ..] => v4(first, second),
        [0x0064, 0xff9b, 1, ..] => Some("private"),
        [0x2001, 0, ..] => Some("Teredo"),
        [0xfe80..=0xfebf, ..] => Some("link-local"),
        [0xfec0..=0xfeff, ..] => Some("site-local"),
        [0xfc00..=0xfdff, ..] => Some("unique-local"),
        [0xff00..=0xffff, ..] => Some("multicast"),
        _ => None,
    }
}

/// Looks up one endpoint's host and passes on only the addresses that may be sent to. Clones share the lookup.
#[derive(Clone)]
pub(super) struct CheckedResolver {
    allow_private: bool,
    /// When the request gives no time limit.
    timeout: Duration,
    lookup: Arc<Lookup>,
}

/// The one lookup of an endpoint: whoever needs it while it runs waits for it, so a name server that hangs holds one thread.
#[derive(Default)]
struct Lookup {
    state: Mutex<LookupState>,
    ended: Condvar,
}

#[derive(Default)]
struct LookupState {
    running: bool,
    found: Option<(Instant, Vec<SocketAddr>)>,
    /// Of the last lookup, if it failed.
    error: Option<io::ErrorKind>,
}

impl CheckedResolver {
    pub(super) fn new(allow_private: bool, timeout: Duration) -> Self {
        Self { allow_private, timeout, lookup: Arc::default() }
    }

    /// The addresses of a host that may be sent to. May take as long as `timeout`.
    pub(super) fn resolved(&self, host: &str, port: u16, timeout: Duration) -> Result<Vec<SocketAddr>, ureq::Error> {
        let addrs = self.addresses(host, port, timeout)?;
        self.permitted(addrs).map_err(|refused| ureq::Error::Other(Box::new(refused)))
    }

    /// Whether [`CheckedResolver::resolved`] has an address without asking anybody. Never blocks.
    pub(super) fn is_permitted_now(&self, host: &str, port: u16) -> bool {
        let addrs = match bare(host).parse::<IpAddr>() {
            Ok(addr) => Some(vec![SocketAddr::new(addr, port)]),
            Err(_) => self.lookup.state.lock().found_within(clock::instant(), LOOKUP_FRESH),
        };
        addrs.is_some_and(|addrs| self.permitted(addrs).is_ok_and(|permitted| !permitted.is_empty()))
    }

    fn addresses(&self, host: &str, port: u16, timeout: Duration) -> Result<Vec<SocketAddr>, ureq::Error> {
        if let Ok(addr) = bare(host).parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(addr, port)]);
        }
        self.lookup.addresses(host, port, timeout)
    }

    fn permitted(&self, addrs: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, TargetRefused> {
        if self.allow_private {
            return Ok(addrs);
        }
        let mut refused = None;
        let permitted: Vec<_> = addrs
            .into_iter()
            .filter(|addr| {
                let kind = refusal(addr.ip());
                if let Some(kind) = kind {
                    refused.get_or_insert_with(|| TargetRefused { addr: addr.ip(), kind });
                }
                kind.is_none()
            })
            .collect();
        match refused {
            Some(refused) if permitted.is_empty() => Err(refused),
            _ => Ok(permitted),
        }
    }
}

impl Lookup {
    fn addresses(self: &Arc<Self>, host: &str, port: u16, timeout: Duration) -> Result<Vec<SocketAddr>, ureq::Error> {
        let asked = clock::instant();
        let mut state = self.state.lock();
        if let Some(addrs) = state.found_within(asked, LOOKUP_FRESH) {
            return Ok(addrs);
        }
        if !state.running {
            let (lookup, name) = (Arc::clone(self), (host.to_owned(), port));
            thread::Builder::new()
                .name("webhook-dns".to_owned())
                .spawn(move || lookup.run(&name))
                .map_err(ureq::Error::Io)?;
            state.running = true;
            state.error = None;
        }
        let until = asked + timeout;
        while state.running {
            if self.ended.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        let error =
            if state.running { io::ErrorKind::TimedOut } else { state.error.unwrap_or(io::ErrorKind::NotFound) };
        state
            .found_within(asked, LOOKUP_STALE)
            .ok_or_else(|| ureq::Error::Other(Box::new(LookupFailed(io::Error::from(error)))))
    }

    fn run(&self, name: &(String, u16)) {
        let found = (name.0.as_str(), name.1).to_socket_addrs();
        let mut state = self.state.lock();
        match found {
            Ok(addrs) => {
                let addrs: Vec<_> = addrs.take(ADDRS_MAX).collect();
                if addrs.is_empty() {
                    state.error = Some(io::ErrorKind::NotFound);
                } else {
                    state.found = Some((clock::instant(), addrs));
                }
            }
            Err(error) => state.error = Some(error.kind()),
        }
        state.running = false;
        self.ended.notify_all();
    }
}

impl LookupState {
    fn found_within(&self, now: Instant, age_max: Duration) -> Option<Vec<SocketAddr>> {
        let (at, addrs) = self.found.as_ref()?;
        (now.saturating_duration_since(*at) <= age_max).then(|| addrs.clone())
    }
}

impl Resolver for CheckedResolver {
    fn resolve(&self, uri: &Uri, _: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or(ureq::Error::HostNotFound)?;
        let default_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(default_port);
        let timeout = timeout.not_zero().map_or(self.timeout, |left| *left);
        let permitted = self.resolved(host, port, timeout)?;
        let mut resolved = self.empty();
        permitted.into_iter().take(ADDRS_MAX).for_each(|addr| resolved.push(addr));
        Ok(resolved)
    }
}

impl fmt::Debug for CheckedResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckedResolver").field("allow_private", &self.allow_private).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(addr: &str) -> Option<&'static str> {
        refusal(addr.parse().unwrap())
    }

    #[test]
    fn edges_of_every_refused_range() {
        for (addr, kind) in [
            ("0.0.0.0", "unspecified"),
            ("0.255.255.255", "unspecified"),
            ("10.0.0.0", "private"),
            ("10.255.255.255", "private"),
            ("100.64.0.0", "carrier-grade NAT"),
            ("100.127.255.255", "carrier-grade NAT"),
            ("127.0.0.1", "loopback"),
            ("127.255.255.255", "loopback"),
            ("169.254.169.254", "link-local"),
            ("172.16.0.0", "private"),
            ("172.31.255.255", "private"),
            ("192.0.0.8", "reserved"),
            ("192.168.0.0", "private"),
            ("192.168.255.255", "private"),
            ("198.18.0.1", "reserved"),
            ("198.19.255.255", "reserved"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.255", "multicast"),
            ("240.0.0.0", "reserved"),
            ("255.255.255.255", "reserved"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::127.0.0.1", "loopback"),
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:10.1.2.3", "private"),
            ("::ffff:169.254.169.254", "link-local"),
            ("64:ff9b::a9fe:a9fe", "link-local"),
            ("64:ff9b:1::1", "private"),
            ("2001:0:1::1", "Teredo"),
            ("2002:7f00:1::", "loopback"),
            ("fc00::", "unique-local"),
            ("fdff:ffff::1", "unique-local"),
            ("fe80::1", "link-local"),
            ("febf::1", "link-local"),
            ("fec0::1", "site-local"),
            ("ff02::1", "multicast"),
        ] {
            assert_eq!(refused(addr), Some(kind), "{addr}");
        }
    }

    #[test]
    fn neighbours_of_the_ranges_are_permitted() {
        for addr in [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2001:4860:4860::8888",
            "2002:808:808::",
            "fbff::1",
        ] {
            assert_eq!(refused(addr), None, "{addr}");
        }
    }

    #[test]
    fn addresses_in_urls_are_judged_and_names_are_not() {
        for url in ["http://127.0.0.1:80/x", "https://[::1]/", "http://10.1.2.3", "http://[::ffff:169.254.169.254]:1/"]
        {
            assert!(refused_address(url).is_some_and(|why| why.starts_with("target address ")), "{url}");
        }
        for url in
            ["http://8.8.8.8/", "https://[2001:4860:4860::8888]/", "http://localhost/", "https://erp.example/10.0.0.1"]
        {
            assert_eq!(refused_address(url), None, "{url}");
        }
    }

    #[test]
    fn only_permitted_addresses_of_a_name_are_passed_on() {
        let addrs = |list: &[&str]| list.iter().map(|addr| addr.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let resolver = CheckedResolver::new(false, Duration::from_secs(1));
        assert_eq!(
            resolver.permitted(addrs(&["10.0.0.1:80", "8.8.8.8:80", "[::1]:80"])).unwrap(),
            addrs(&["8.8.8.8:80"])
        );
        let error = resolver.permitted(addrs(&["10.0.0.1:80", "[::1]:80"])).unwrap_err();
        assert_eq!(error.to_string(), "target address 10.0.0.1 is private");
        let open = CheckedResolver::new(true, Duration::from_secs(1));
        assert_eq!(open.permitted(addrs(&["10.0.0.1:80"])).unwrap(), addrs(&["10.0.0.1:80"]));
    }
}
