//! What is in force of two sources: the configuration, and what the admin API made. Pure.
//!
//! The configuration comes first: a row of a name it has, or of a key it has, sleeps until the configuration lets go of it. A row that
//! this build does not understand, because another version wrote it, is left out alone: the others are in force all the same.

use crate::{
    config::{
        ApiKey, ENDPOINT_URL, EVENT_TYPES, EVENTS, NETWORK, Rule, SCOPE, SENT_KEY, SIGNING_SECRET, Scope, Secret,
        WebhookEndpoint,
    },
    store::{ApiKeyRecord, EndpointRecord},
    webhook::Endpoint,
};

/// The part of the configuration that the admin API adds to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configured {
    /// API keys, also the one made at the first start.
    pub keys: Vec<ApiKey>,
    /// Webhook endpoints.
    pub endpoints: Vec<WebhookEndpoint>,
    /// Whether deliveries may go to loopback, private and similar addresses.
    pub allow_private_targets: bool,
}

impl Configured {
    /// A key by its name.
    pub fn key(&self, name: &str) -> Option<&ApiKey> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// An endpoint by its name.
    pub fn endpoint(&self, name: &str) -> Option<&WebhookEndpoint> {
        self.endpoints.iter().find(|endpoint| endpoint.name == name)
    }

    /// Whether a key has the scope `admin`.
    pub fn has_admin(&self) -> bool {
        self.keys.iter().any(|key| key.scopes.contains(Scope::Admin))
    }
}

/// What the store has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rows {
    /// Not newer than the rest.
    pub(super) revision: i64,
    pub(super) keys: Vec<ApiKeyRecord>,
    pub(super) endpoints: Vec<EndpointRecord>,
}

/// A row that is not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) what: &'static str,
    pub(super) name: String,
    pub(super) why: Why,
}

/// Why a row is not in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The configuration has one of this name.
    Shadowed,
    /// The configuration has this key, under another name.
    SameKey,
    /// This field is not understood.
    Refused(&'static str),
}

/// What is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Merged {
    pub(super) keys: Vec<ApiKey>,
    pub(super) endpoints: Vec<Endpoint>,
    /// Names of those endpoints that are rows.
    pub(super) stored: Vec<String>,
    pub(super) left_out: Vec<LeftOut>,
}

/// Puts both sources together.
pub(super) fn merge(configured: &Configured, rows: &Rows) -> Merged {
    let mut merged = Merged {
        keys: configured.keys.clone(),
        endpoints: configured.endpoints.iter().map(delivered).collect(),
        ..Merged::default()
    };
    for row in &rows.keys {
        let same = |key: &&ApiKey| key.key_sha256 == row.key_sha256;
        let key = match configured.key(&row.name) {
            Some(_) => Err(Why::Shadowed),
            None if configured.keys.iter().find(same).is_some() => Err(Why::SameKey),
            None => key_of(row).map_err(Why::Refused),
        };
        match key {
            Ok(key) => merged.keys.push(key),
            Err(why) => merged.left_out.push(LeftOut { what: "key", name: row.name.clone(), why }),
        }
    }
    for row in &rows.endpoints {
        let endpoint = match configured.endpoint(&row.name) {
            Some(_) => Err(Why::Shadowed),
            None => endpoint_of(row).map_err(Why::Refused),
        };
        match endpoint {
            Ok(endpoint) => {
                merged.endpoints.push(delivered(&endpoint));
                merged.stored.push(row.name.clone());
            }
            Err(why) => merged.left_out.push(LeftOut { what: "endpoint", name: row.name.clone(), why }),
        }
    }
    merged
}

fn key_of(row: &ApiKeyRecord) -> Result<ApiKey, &'static str> {
    let scopes = read_all(&row.scopes, &SCOPE).ok_or("scopes")?;
    if row.require_hmac && row.hmac_secret.is_none() {
        return Err("hmac_secret");
    }
    Ok(ApiKey {
        name: row.name.clone(),
        key_sha256: row.key_sha256,
        scopes: scopes.into_iter().collect(),
        require_hmac: row.require_hmac,
        hmac_secret: row.hmac_secret.clone(),
        ip_allow: read_all(&row.ip_allow, &NETWORK).ok_or("ip_allow")?,
        rate_per_s: row.rate_per_s,
        burst: row.burst,
    })
}

fn endpoint_of(row: &EndpointRecord) -> Result<WebhookEndpoint, &'static str> {
    let secret = |secret: &Secret, rule: &Rule<Secret>, field| (rule.read)(secret.expose()).ok_or(field);
    let optional = |given: &Option<Secret>, rule, field| given.as_ref().map(|it| secret(it, rule, field)).transpose();
    Ok(WebhookEndpoint {
        name: row.name.clone(),
        url: (ENDPOINT_URL.read)(&row.url).ok_or("url")?,
        secret: secret(&row.secret, &SIGNING_SECRET, "secret")?,
        secret_previous: optional(&row.secret_previous, &SIGNING_SECRET, "secret_previous")?,
        api_key: optional(&row.api_key, &SENT_KEY, "api_key")?,
        events: read_all(&row.events, &EVENTS).ok_or("events")?,
    })
}

fn read_all<T>(texts: &[String], rule: &Rule<T>) -> Option<Vec<T>> {
    texts.iter().map(|text| (rule.read)(text)).collect()
}

/// An endpoint as the pusher takes it.
fn delivered(from: &WebhookEndpoint) -> Endpoint {
    let events = if from.events.is_empty() {
        // Left out means most of them, which only the configuration knows how to say.
        let wanted = EVENT_TYPES.iter().filter(|event_type| from.wants(event_type));
        wanted.map(|event_type| (*event_type).to_owned()).collect()
    } else {
        from.events.iter().map(ToString::to_string).collect()
    };
    let secrets = [Some(&from.secret), from.secret_previous.as_ref()].into_iter().flatten();
    Endpoint {
        name: from.name.clone(),
        url: from.url.clone(),
        secrets: secrets.map(|secret| secret.expose().to_owned()).collect(),
        api_key: from.api_key.as_ref().map(|key| key.expose().to_owned()),
        events,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, number: u8) -> ApiKeyRecord {
        ApiKeyRecord {
            name: name.to_owned(),
            key_sha256: [number; 32],
            scopes: vec!["read".to_owned(), "admin".to_owned()],
            require_hmac: false,
            hmac_secret: None,
            ip_allow: vec!["192.0.2.0/24".to_owned()],
            rate_per_s: 3,
            burst: 5,
            created_at: 0,
            updated_at: 0,
        }
    }

    fn endpoint_row(name: &str) -> EndpointRecord {
        EndpointRecord {
            name: name.to_owned(),
            url: "https://erp.example/hooks".to_owned(),
            secret: Secret::new("new"),
            secret_previous: Some(Secret::new("old")),
            api_key: None,
            events: Vec::new(),
            created_at: 0,
            updated_at: 0,
        }
    }

    fn names(merged: &Merged) -> Vec<(&str, Why)> {
        merged.left_out.iter().map(|left| (left.name.as_str(), left.why)).collect()
    }

    #[test]
    fn rows_stand_beside_the_configuration_and_mean_the_same() {
        let first = merge(&Configured::default(), &Rows { keys: vec![row("a", 1)], ..Rows::default() });
        let configured = Configured { keys: first.keys.clone(), ..Configured::default() };
        assert!(configured.has_admin());
        let rows = Rows { revision: 7, keys: vec![row("b", 2)], endpoints: vec![endpoint_row("erp")] };
        let merged = merge(&configured, &rows);
        let [a, b] = merged.keys.as_slice() else { panic!("{merged:?}") };
        assert_eq!((a.name.as_str(), b.name.as_str()), ("a", "b"));
        assert_eq!(ApiKey { name: "a".to_owned(), key_sha256: [1; 32], ..b.clone() }, *a);
        let [erp] = merged.endpoints.as_slice() else { panic!("{merged:?}") };
        assert_eq!(erp.secrets, ["new", "old"]);
        assert!(erp.events.iter().any(|event| event == "order.created"));
        assert!(!erp.events.iter().any(|event| event == "device.heartbeat"));
        assert_eq!((merged.stored, merged.left_out), (vec!["erp".to_owned()], Vec::new()));
    }

    #[test]
    fn the_configuration_has_the_first_word() {
        let of = |keys, endpoints| merge(&Configured::default(), &Rows { revision: 1, keys, endpoints });
        let keys = of(vec![row("a", 1)], Vec::new()).keys;
        let endpoints = vec![WebhookEndpoint {
            name: "erp".to_owned(),
            url: "http://erp.example".to_owned(),
            secret: Secret::new("configured"),
            secret_previous: None,
            api_key: None,
            events: Vec::new(),
        }];
        let configured = Configured { keys, endpoints, ..Configured::default() };
        let rows = Rows {
            revision: 1,
            keys: vec![row("a", 2), row("b", 1), row("c", 3)],
            endpoints: vec![endpoint_row("erp")],
        };
        let merged = merge(&configured, &rows);
        assert_eq!(merged.keys.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(merged.keys[0].key_sha256, [1; 32]);
        assert_eq!(merged.endpoints.iter().map(|one| one.secrets.as_slice()).collect::<Vec<_>>(), [["configured"]]);
        assert_eq!(merged.stored, Vec::<String>::new());
        assert_eq!(names(&merged), [("a", Why::Shadowed), ("b", Why::SameKey), ("erp", Why::Shadowed)]);
    }

    #[test]
    fn a_row_that_is_not_understood_is_left_out_alone() {
        let texts = |text: &str| vec![text.to_owned()];
        let keys = vec![
            ApiKeyRecord { scopes: texts("of tomorrow"), ..row("scope", 1) },
            ApiKeyRecord { ip_allow: texts("everywhere"), ..row("network", 2) },
            ApiKeyRecord { require_hmac: true, ..row("unsigned", 3) },
            row("sound", 4),
        ];
        let endpoints = vec![
            EndpointRecord { url: "ftp://erp.example".to_owned(), ..endpoint_row("url") },
            EndpointRecord { events: texts("order.of_tomorrow"), ..endpoint_row("events") },
            EndpointRecord { secret: Secret::new("whsec_!"), ..endpoint_row("secret") },
            EndpointRecord { api_key: Some(Secret::new("a b")), ..endpoint_row("api_key") },
            endpoint_row("sound"),
        ];
        let merged = merge(&Configured::default(), &Rows { revision: 1, keys, endpoints });
        assert_eq!(merged.keys.len(), 1);
        assert_eq!(merged.stored, ["sound"]);
        let refused = [
            ("scope", "scopes"),
            ("network", "ip_allow"),
            ("unsigned", "hmac_secret"),
            ("url", "url"),
            ("events", "events"),
            ("secret", "secret"),
            ("api_key", "api_key"),
        ];
        assert_eq!(names(&merged), refused.map(|(name, field)| (name, Why::Refused(field))));
    }
}
