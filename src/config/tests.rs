//! The table against itself, its documentation, and the ways a configuration can be wrong.

use std::fs;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::pricing::Tariff;

/// Loads `toml` from a file, with variables and no flags.
fn load(toml: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("test.toml");
    fs::write(&file, toml).unwrap();
    let environment = variables.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    Source { file: Some(file), environment, flags: Vec::new() }.load()
}

/// The lines of the errors that loading gives.
fn errors(toml: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let errors = load(toml, variables).expect_err("loads although it should not");
    errors.to_string().lines().map(str::to_owned).collect()
}

#[test]
fn reference_file_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/chargegate.toml");
    let text = fs::read_to_string(path).unwrap();
    assert_eq!(text, reference(), "run `chargegate check-config --reference > docs/chargegate.toml`");
}

#[test]
fn reference_file_names_every_key_and_parses_to_the_defaults() {
    let table: Table = reference().parse().unwrap();
    for key in KEYS {
        assert!(table[key.section].get(key.name).is_some(), "{}", key.full_name());
    }
    assert_eq!(load(&reference(), &[]).unwrap(), Config::default());
}

#[test]
fn commented_lists_of_the_reference_parse() {
    let text: String = reference()
        .lines()
        .skip_while(|line| !line.contains("[[api.keys]]"))
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| line.starts_with("[[") || line.contains(" = "))
        .map(|line| format!("{}\n", line.replace("file:/run/secrets/", "")))
        .collect();
    let config = load(&text, &[]).unwrap();
    assert_eq!((config.api_keys.len(), config.webhook_endpoints.len(), config.tariffs.len()), (1, 1, 4));
    assert_eq!(load(&config.to_toml().replace("\"***\"", "\"x\""), &[]).unwrap().tariffs, config.tariffs);
}

#[test]
fn effective_configuration_loads_again() {
    let config = Config::default();
    assert_eq!(load(&config.to_toml(), &[]).unwrap(), config);
}

#[test]
fn every_key_can_be_set_by_its_variable() {
    for (key, value) in KEYS.iter().zip(Config::default().values()) {
        let text = match value {
            key::Value::Bool(value) => value.to_string(),
            key::Value::Int(value) => value.to_string(),
            key::Value::Span(value) => value::duration_text(value),
            key::Value::Spans(values) => values.into_iter().map(value::duration_text).collect::<Vec<_>>().join(","),
            key::Value::Size(value) => value::size_text(value.0),
            key::Value::Texts(values) => values.join(", "),
            key::Value::Text(value) => value,
            key::Value::Secret(value) => value.expose().to_owned(),
        };
        let config = load("", &[(&key.env_name(), &text)]).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(config, Config::default(), "{}", key.full_name());
    }
}

#[test]
fn every_bound_is_accepted_and_the_next_value_refused() {
    let step = Duration::from_millis(1);
    for key in KEYS {
        let (good, bad): (Vec<String>, Vec<String>) = match key.kind {
            Kind::Int(min, max) | Kind::AutoInt(min, max) => (
                vec![min.to_string(), max.to_string()],
                min.checked_sub(1).into_iter().chain([max + 1]).map(|value| value.to_string()).collect(),
            ),
            Kind::Span(min, max) => (
                vec![value::duration_text(min), value::duration_text(max)],
                min.checked_sub(step).into_iter().chain([max + step]).map(value::duration_text).collect(),
            ),
            Kind::Size(min, max) => (
                vec!["0".to_owned(), min.to_string(), value::size_text(min), value::size_text(max)],
                [1, min - 1, max + 1].iter().map(u64::to_string).collect(),
            ),
            _ => continue,
        };
        let check = |text: &String| key.check(&Raw::Text(text.clone()));
        for text in &good {
            let value = check(text).unwrap_or_else(|problem| panic!("{} {text} {problem:?}", key.full_name()));
            let mut values = Config::default().values();
            let index = KEYS.iter().position(|other| other.full_name() == key.full_name()).unwrap();
            values[index] = value;
            assert_eq!(Config::from_values(values.clone()).values(), values, "{}", key.full_name());
        }
        for text in &bad {
            assert!(check(text).is_err(), "{} {text}", key.full_name());
        }
    }
}

#[test]
fn names_are_unique() {
    let mut names: Vec<String> = KEYS.iter().map(Key::env_name).collect();
    names.push(env_name(API_KEYS));
    names.push(env_name(WEBHOOK_ENDPOINTS));
    names.push(env_name(TARIFFS));
    names.sort();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(names.iter().any(|name| name == "CHARGEGATE_DEVICE_LISTEN_GN"));
    assert!(names.iter().any(|name| name == "CHARGEGATE_SESSION_TIMEOUT_AP3000"));
}

#[test]
fn out_of_range_names_key_range_and_value() {
    for (toml, expected) in [
        ("limits.max_connections = 0", "limits.max_connections must be in 1..=1000000, got 0"),
        ("limits.max_connections = -1", "limits.max_connections must be in 1..=1000000, got -1"),
        ("limits.max_connections = \"many\"", "limits.max_connections must be in 1..=1000000, got \"many\""),
        ("shard.count = 0", "shard.count must be \"auto\" or in 1..=256, got 0"),
        ("session.timeout_bkv = \"2h\"", "session.timeout_bkv must be a duration in 1s..=1h, got \"2h\""),
        (
            "recorder.bytes_per_shard = \"4 MB\"",
            "recorder.bytes_per_shard must be 0 or a size in 64KiB..=1GiB, got \"4 MB\"",
        ),
        ("session.timeout_bkv = 130", "session.timeout_bkv must be a duration in 1s..=1h, got 130"),
        ("orders.prefix = \"thd\"", "orders.prefix must be 3 ASCII capital letters, got \"thd\""),
        ("shard.engine = \"tokio\"", "shard.engine must be one of \"auto\", \"glommio\", \"mio\", got \"tokio\""),
        (
            "ap3000.magics = [\"44\"]",
            "ap3000.magics must be a list of 1 to 8 different strings of 6 hex digits, got [\"44\"]",
        ),
        ("limits = 5", "limits must be a table, got 5"),
    ] {
        assert_eq!(errors(toml, &[]), [expected]);
    }
}

#[test]
fn variables_name_themselves_in_errors() {
    let found = errors("", &[("CHARGEGATE_LIMITS_MAX_CONNECTIONS", "0")]);
    assert_eq!(found, ["limits.max_connections must be in 1..=1000000, got 0, from CHARGEGATE_LIMITS_MAX_CONNECTIONS"]);
}

#[test]
fn unknown_names_come_with_the_nearest() {
    for (toml, variable, expected) in [
        ("[device]\nlisten_gm = \"\"", None, "unknown key device.listen_gm, the nearest is device.listen_gn"),
        (
            "[limit]\nmax_connections = 1",
            None,
            "unknown key limit.max_connections, the nearest is limits.max_connections",
        ),
        ("[api]\nkey = []", None, "unknown key api.key, the nearest is api.keys"),
        (
            "[[api.keys]]\nname = \"a\"\nkey = \"b\"\nscope = []",
            None,
            "unknown key api.keys[0].scope, the nearest is api.keys[0].scopes",
        ),
        (
            "",
            Some("CHARGEGATE_DEVICE_LISTENGN"),
            "unknown variable CHARGEGATE_DEVICE_LISTENGN, the nearest is CHARGEGATE_DEVICE_LISTEN_GN",
        ),
    ] {
        let variables: Vec<(&str, &str)> = variable.map(|name| (name, "x")).into_iter().collect();
        assert_eq!(errors(toml, &variables), [expected]);
    }
}

#[test]
fn variables_of_other_sections_are_not_ours() {
    let variables =
        [("CHARGEGATE_SERVICE_HOST", "10.0.0.1"), ("CHARGEGATE_PORT", "tcp://10.0.0.1:6000"), ("HOME", "/")];
    assert_eq!(load("", &variables).unwrap(), Config::default());
}

#[test]
fn all_errors_are_collected() {
    let found = errors(
        "nonsense = 1\n[limits]\nmax_connections = 0\naccept_burst = 0\n[[webhook.endpoints]]\nurl = \"ftp://x\"",
        &[("CHARGEGATE_SHARD_COUNT", "none"), ("CHARGEGATE_API_KEYS", "{")],
    );
    assert_eq!(found.len(), 7, "{found:#?}");
}

#[test]
fn later_sources_win() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("test.toml");
    fs::write(&file, "[data]\ndir = \"/file\"\n[http]\nworkers = 7\n[orders]\nprefix = \"ABC\"").unwrap();
    let source = Source {
        file: Some(file),
        environment: vec![
            ("CHARGEGATE_DATA_DIR".to_owned(), "/variable".to_owned()),
            ("CHARGEGATE_HTTP_WORKERS".to_owned(), "8".to_owned()),
        ],
        flags: vec![("data.dir", "/flag".to_owned())],
    };
    let config = source.load().unwrap();
    assert_eq!(config.data.dir, Path::new("/flag"));
    assert_eq!(config.http.workers, 8);
    assert_eq!(config.orders.prefix.as_str(), "ABC");
    assert_eq!(config.store.url, StoreUrl::Sqlite("/flag/chargegate.db".into()));
}

#[test]
fn only_two_modes() {
    let (sqlite, postgres) = ("sqlite:x.db", "postgres://u:p@h/d");
    let (embedded, redis) = ("embedded", "redis://h");
    let load = |store, queue| load(&format!("store.url = \"{store}\"\nqueue.url = \"{queue}\""), &[]);
    assert_eq!(load(sqlite, embedded).unwrap().mode(), Mode::Embedded);
    assert_eq!(load(postgres, redis).unwrap().mode(), Mode::Clustered);
    for (store, queue) in [(sqlite, redis), (postgres, embedded)] {
        let errors = load(store, queue).unwrap_err();
        assert!(matches!(errors.0[..], [ConfigError::Mode { .. }]), "{errors}");
    }
}

#[test]
fn missing_file_is_an_error_only_when_named() {
    let missing = Source { file: Some("does/not/exist.toml".into()), ..Source::default() };
    assert!(matches!(missing.load().unwrap_err().0[..], [ConfigError::Read { .. }]));
}

#[test]
fn lists_from_json_equal_lists_from_toml() {
    let toml = r#"
        [[api.keys]]
        name = "billing"
        key = "k1"
        scopes = ["read"]
        require_hmac = true
        hmac_secret = "s"
        ip_allow = ["10.0.0.0/8"]
        rate_per_s = 5
        [[webhook.endpoints]]
        url = "https://example.com/hooks/"
        secret = "whsec_c2VjcmV0"
        events = ["order.*", "charging.ended"]
    "#;
    let keys = r#"[{"name": "billing", "key": "sha256:HASH",
        "scopes": ["read"], "require_hmac": true, "hmac_secret": "s", "ip_allow": ["10.0.0.0/8"], "rate_per_s": 5}]"#;
    let endpoints = r#"[{"url": "https://example.com/hooks/", "secret": "whsec_c2VjcmV0", "api_key": null,
        "events": ["order.*", "charging.ended"]}]"#;
    let keys = keys.replace("HASH", &sha256_hex("k1"));
    let from_json = load("", &[("CHARGEGATE_API_KEYS", &keys), ("CHARGEGATE_WEBHOOK_ENDPOINTS", endpoints)]).unwrap();
    let from_toml = load(toml, &[]).unwrap();
    assert_eq!(from_json, from_toml);
    let [key] = &from_toml.api_keys[..] else { panic!("{from_toml:?}") };
    assert!(key.scopes.contains(Scope::Read) && !key.scopes.contains(Scope::Admin));
    let [endpoint] = &from_toml.webhook_endpoints[..] else { panic!("{from_toml:?}") };
    assert_eq!(endpoint.name, "example.com/hooks");
    assert!(endpoint.wants("order.created") && !endpoint.wants("charging.started"));
    assert!(!from_toml.to_toml().contains("c2VjcmV0"));
}

fn sha256_hex(text: &str) -> String {
    use sha2::{Digest, Sha256};
    crate::protocol::Hex(Sha256::digest(text)).to_string()
}

#[test]
fn endpoints_without_patterns_get_no_heartbeats() {
    let toml = "[[webhook.endpoints]]\nurl = \"http://h/x\"\nsecret = \"s\"";
    let endpoint = &load(toml, &[]).unwrap().webhook_endpoints[0];
    for event_type in EVENT_TYPES {
        let frequent = ["device.heartbeat", "charging.progress"].contains(event_type);
        assert_eq!(endpoint.wants(event_type), !frequent, "{event_type}");
    }
    let all = &load(&format!("{toml}\nevents = [\"*\"]"), &[]).unwrap().webhook_endpoints[0];
    assert!(EVENT_TYPES.iter().all(|event_type| all.wants(event_type)));
}

#[test]
fn list_entries_refused() {
    for (toml, expected) in [
        ("[[api.keys]]\nkey = \"k\"", "api.keys[0].name is missing"),
        ("[[api.keys]]\nname = \"a\"\nkey = \"\"", "api.keys[0].key must be a text, got \"\""),
        (
            "[[api.keys]]\nname = \"a\"\nkey = \"sha256:12\"",
            "api.keys[0].key must be a text, or \"sha256:\" and 64 hex digits, got another text after \"sha256:\"",
        ),
        (
            "[[api.keys]]\nname = \"a\"\nkey = \"k\"\nscopes = [\"root\"]",
            "api.keys[0].scopes[0] must be one of \"read\", \"control\", \"admin\", got \"root\"",
        ),
        ("[[api.keys]]\nname = \"a\"\nkey = \"k\"\nrequire_hmac = true", "api.keys[0].hmac_secret is missing"),
        (
            "[[api.keys]]\nname = \"a\"\nkey = \"k\"\nrate_per_s = -1",
            "api.keys[0].rate_per_s must be in 0..=1000000, got -1",
        ),
        (
            "[[api.keys]]\nname = \"a\"\nkey = \"k\"\n[[api.keys]]\nname = \"a\"\nkey = \"l\"",
            "api.keys[1].name must differ from that of every other entry",
        ),
        (
            "[[webhook.endpoints]]\nurl = \"http://h\"\nsecret = \"s\"\nevents = [\"order.*\", \"orders.created\"]",
            "webhook.endpoints[0].events[1] must be \"*\", a group like \"order.*\", or an event type, \
             got \"orders.created\"",
        ),
        (
            "[[webhook.endpoints]]\nurl = \"http://u:p@h/\"\nsecret = \"s\"",
            "webhook.endpoints[0].url must be an http or https URL of at most 2048 bytes without user and fragment, got \"http://u:***@h/\"",
        ),
        (
            "[[webhook.endpoints]]\nurl = \"http://h/\"\nsecret = \"whsec_!\"",
            "webhook.endpoints[0].secret must be \"whsec_\" and base64, or any other text, \
             got no base64 after \"whsec_\"",
        ),
        ("api.keys = 1", "api.keys must be an array of tables, got 1"),
        ("api.keys = [1]", "api.keys[0] must be a table, got integer"),
    ] {
        assert_eq!(errors(toml, &[]), [expected], "{toml}");
    }
}

#[test]
fn secrets_from_files() {
    let dir = TempDir::new().unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, "k1\n").unwrap();
    let key = |path: &Path| format!("[[api.keys]]\nname = \"a\"\nkey = \"file:{}\"", path.display());
    let config = load(&key(&secret), &[]).unwrap();
    assert_eq!(config.api_keys[0].key_text(), format!("sha256:{}", sha256_hex("k1")));
    fs::write(&secret, "\n").unwrap();
    assert!(errors(&key(&secret), &[])[0].ends_with("which is empty"));
    assert!(errors(&key(&dir.path().join("none")), &[])[0].contains("which cannot be read: "));
}

#[test]
fn changes_say_what_needs_a_restart() {
    let old = Config::default();
    let mut new = old.clone();
    assert_eq!(old.changes(&new), []);
    new.queue.per_device_max = 1;
    new.http.workers = 1;
    let named = |key: &str, reload| Change { key: key.to_owned(), reload };
    assert_eq!(
        old.changes(&new),
        [named("http.workers", Reload::Restart), named("queue.per_device_max", Reload::Live)]
    );
}

#[test]
fn errors_do_not_quote_secrets() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("password");
    fs::write(&file, "hunter2\n").unwrap();
    let by_file = format!("store.url = \"file:{}\"", file.display());
    for toml in [
        &by_file,
        "store.url = \"mysql://u:hunter2@h/d\"",
        "[[api.keys]]\nname = \"a\"\nkey = \"sha256:hunter2\"",
        "[[webhook.endpoints]]\nurl = \"http://h\"\nsecret = \"hunter2",
        "[[webhook.endpoints]]\nurl = \"http://h\"\nsecret = [\"hunter2\"]",
        "[[webhook.endpoints]]\nurl = \"http://h\"\nsecret = \"whsec_hunter2!\"",
        "cards.webhook_secret = \"whsec_hunter2!\"",
        "cards.mode = \"webhook\"\ncards.webhook_secret = \"hunter2\"",
    ] {
        for error in errors(toml, &[]) {
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
    for json in ["[{\"key\": \"hunter2\"", "\"hunter2\"", "[\"hunter2\"]"] {
        for error in errors("", &[("CHARGEGATE_API_KEYS", json)]) {
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}

#[test]
fn syntax_errors_name_line_and_column() {
    let found = errors("[data]\ndir = \n", &[]);
    assert!(found.len() == 1 && found[0].contains("is not valid TOML at line 2 column "), "{found:?}");
}

#[test]
fn tariffs_are_read_by_kind() {
    let config = load(
        "[[tariffs]]\nname = \"hour\"\nkind = \"time\"\nprice_cent = 100\n[[tariffs]]\nname = \"kwh\"\nkind = \"energy\"\n\
         price_cent = 120\n[cards]\ntariff = \"kwh\"",
        &[],
    )
    .unwrap();
    assert_eq!(config.tariffs[0].tariff, Tariff::Time { price_cent: 100, minutes: 60 });
    assert_eq!((config.tariffs[1].name.as_str(), config.cards.tariff.as_str()), ("kwh", "kwh"));
    let json = r#"[{"name":"p","kind":"power","tiers":[{"power_dw":2000,"price_cent":25,"minutes":60}]}]"#;
    let config = load("[[tariffs]]\nname = \"gone\"", &[("CHARGEGATE_TARIFFS", json)]).unwrap();
    assert!(matches!(&config.tariffs[..], [named] if named.name == "p"), "the environment's list replaces the file's");
    let mut other = config.clone();
    other.tariffs.clear();
    let change = Change { key: "tariffs".to_owned(), reload: Reload::Restart };
    assert_eq!(config.changes(&other), [change]);
}

#[test]
fn tariffs_that_cannot_price_are_refused() {
    let day =
        "kind = \"service_fee\"\nperiods = [{ end_hour = 8, end_minute = 0, electricity_cent = 1, service_cent = 1 }]";
    for (tariff, named) in [
        ("kind = \"time\"", "tariffs[0].price_cent"),
        ("kind = \"time\"\nprice_cent = 1\nminutes = 0", "tariffs[0].minutes must be in 1..=4294967295, got 0"),
        ("kind = \"time\"\nprice_cent = -1", "tariffs[0].price_cent must be in 0..=4294967295, got -1"),
        ("kind = \"energy\"\nprice_cent = 1\nminutes = 60", "minutes"),
        ("kind = \"tea\"", "tariffs[0].kind must be one of"),
        ("price_cent = 1", "tariffs[0].kind"),
        ("kind = \"power\"\ntiers = []", "there must be 1 to 5 tiers"),
        ("kind = \"power\"\ntiers = [{ power_dw = 1, price_cent = 1 }]", "tariffs[0].tiers must be a list of"),
        (day, "the last period must end at 23:59"),
    ] {
        let found = errors(&format!("[[tariffs]]\nname = \"t\"\n{tariff}"), &[]);
        assert!(found.iter().any(|error| error.contains(named)), "{tariff}: {found:?}");
    }
    let twice = "[[tariffs]]\nname = \"t\"\nkind = \"energy\"\nprice_cent = 1\n".repeat(2);
    assert!(errors(&twice, &[])[0].contains("tariffs[1].name"));
    assert!(errors("tariffs = 1", &[])[0].contains("tariffs must be an array of tables"));
    assert!(errors("cards.tariff = \"t\"", &[])[0].contains("cards.tariff must be the name of one of [[tariffs]]"));
}

#[test]
fn a_third_party_that_keeps_cards_is_named() {
    let found = errors("cards.mode = \"webhook\"", &[]);
    assert!(found.len() == 2 && found[0].contains("cards.webhook_url") && found[1].contains("cards.webhook_secret"));
    let secret = [("CHARGEGATE_CARDS_WEBHOOK_SECRET", "s")];
    let config = load("cards.mode = \"webhook\"\ncards.webhook_url = \"https://x.example/cards\"", &secret).unwrap();
    assert!(config.to_toml().contains("webhook_secret = \"***\""));
    assert!(!format!("{config:?}").contains("webhook_secret: Secret"));
}
