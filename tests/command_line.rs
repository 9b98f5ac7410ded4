//! The command line's exit codes and output are an interface of scripts and service managers.
//!
//! Each test runs the real binary in an empty directory without inherited `CHARGEGATE_*` variables.

use std::env;
use std::process::{Command, Output};

use tempfile::TempDir;

/// Runs `chargegate` with arguments and variables.
fn chargegate(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let dir = TempDir::new().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_chargegate"));
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CHARGEGATE_")) {
        command.env_remove(name);
    }
    command.args(arguments).envs(variables.iter().copied()).current_dir(&dir).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn a_good_configuration_is_ok() {
    let output = chargegate(&["check-config"], &[]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), "ok\n"));
}

#[test]
fn print_shows_the_effective_configuration() {
    let output = chargegate(
        &["check-config", "--print"],
        &[
            ("CHARGEGATE_HTTP_WORKERS", "9"),
            ("CHARGEGATE_STORE_URL", "postgres://u:hunter2@h/d"),
            ("CHARGEGATE_QUEUE_URL", "redis://:hunter2@h"),
            ("CHARGEGATE_API_KEYS", r#"[{"name": "a", "key": "hunter2", "hmac_secret": "hunter2"}]"#),
        ],
    );
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).contains("\nworkers = 9\n"));
    assert!(stdout(&output).contains("postgres://u:***@h/d"));
    assert!(!stdout(&output).contains("hunter2"));
}

#[test]
fn all_configuration_errors_are_printed_with_exit_code_2() {
    let variables = [("CHARGEGATE_LIMITS_MAX_CONNECTIONS", "0"), ("CHARGEGATE_DEVICE_LISTE", "x")];
    for arguments in [&["check-config"][..], &["serve"], &[]] {
        let output = chargegate(arguments, &variables);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains("limits.max_connections must be in 1..=1000000, got 0"), "{arguments:?}");
        assert!(stderr(&output).contains("the nearest is CHARGEGATE_DEVICE_LISTEN\n"), "{arguments:?}");
    }
}

#[test]
fn usage_errors_have_exit_code_2() {
    for arguments in [&["--bogus"][..], &["sign"], &["serve", "--shards"], &["--config", "missing.toml"]] {
        assert_eq!(chargegate(arguments, &[]).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_database_that_cannot_be_opened_has_exit_code_3() {
    let output = chargegate(&["serve"], &[("CHARGEGATE_STORE_URL", "sqlite:/dev/null/chargegate.db")]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("/dev/null/chargegate.db"), "{}", stderr(&output));
}

#[test]
fn sign_makes_the_documented_headers() {
    let output = chargegate(
        &[
            "sign",
            "--secret=secret",
            "--method=post",
            "--path=/api/v1/third/devices/40aace04/charge?x=1",
            "--timestamp=1700000000",
            "--nonce=n-1",
            "--body={\"port_no\":1}",
        ],
        &[],
    );
    // The same request as the known answer of the signature's own tests.
    assert_eq!(
        stdout(&output),
        "X-Timestamp: 1700000000\nX-Nonce: n-1\nX-Signature: 52c82d46375624b86bce1f2c75f759c0076995b4acb8f4147f19a7fa311db2f6\n"
    );
}

#[test]
fn healthcheck_fails_where_nothing_listens() {
    // Port 1 is privileged and unassigned here, so the connection is refused at once.
    let output = chargegate(&["healthcheck"], &[("CHARGEGATE_HTTP_LISTEN", "127.0.0.1:1")]);
    assert_eq!(output.status.code(), Some(1));
}
