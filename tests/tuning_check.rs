//! `tuning/check` finds what a host lacks, and says so by its exit status: against a made-up /proc and /sys, and made-up answers of
//! `psql` and `redis-cli`, each of which is sound but for one thing.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tempfile::TempDir;

/// A host without fault, for 10,000 connections.
const SOUND: [(&str, &str); 19] = [
    ("proc/sys/net/core/somaxconn", "4096"),
    ("proc/sys/net/ipv4/tcp_max_syn_backlog", "8192"),
    ("proc/sys/net/ipv4/tcp_syncookies", "1"),
    ("proc/sys/net/ipv4/ip_local_port_range", "10240\t65535"),
    ("proc/sys/net/ipv4/tcp_mem", "100000\t150000\t200000"),
    ("proc/sys/net/ipv4/tcp_rmem", "4096\t65536\t1048576"),
    ("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t1048576"),
    ("proc/sys/net/netfilter/nf_conntrack_max", "262144"),
    ("proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established", "3600"),
    ("proc/sys/fs/nr_open", "1048576"),
    ("proc/sys/fs/file-nr", "2048\t0\t1000000"),
    ("proc/sys/fs/file-max", "1000000"),
    ("proc/sys/kernel/osrelease", "6.1.0-18-amd64"),
    ("proc/sys/kernel/io_uring_disabled", "0"),
    ("proc/cpuinfo", "processor\t: 0\nprocessor\t: 1\nprocessor\t: 2\nprocessor\t: 3\n"),
    ("proc/meminfo", "MemTotal:       16000000 kB\nMemFree: 1 kB\n"),
    ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc"),
    ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never"),
    ("proc/77/comm", "chargegate"),
];
const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max open files            65536                65536                files\n";
const POSTGRES: &str = "server_version_num|160004\nfsync|on\nfull_page_writes|on\nsynchronous_commit|on\nautovacuum|on\n\
                        max_connections|60\nshared_buffers|4194304\nmax_wal_size|8388608\ncheckpoint_timeout|900\n\
                        wal_compression|lz4\nidle_session_timeout|0\nsynchronous_standby_names|FIRST 1 (a, b)\n";
/// What a made-up `redis-cli` says, by its last word.
const REDIS: [(&str, &str); 6] = [
    ("INFO", "redis_version:7.2.4"),
    ("maxmemory-policy", "noeviction"),
    ("timeout", "0"),
    ("appendonly", "no"),
    ("save", ""),
    ("tcp-keepalive", "60"),
];

struct Host {
    root: TempDir,
    postgres: String,
    redis: Vec<(String, String)>,
}

impl Host {
    fn sound() -> Self {
        let host = Self {
            root: tempfile::tempdir().unwrap(),
            postgres: POSTGRES.to_owned(),
            redis: REDIS.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        };
        for (path, text) in SOUND {
            host.put(path, text);
        }
        host.put("proc/77/limits", LIMITS);
        host
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    fn program(&self, name: &str, script: &str) -> PathBuf {
        let directory = self.root.path().join("bin");
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        directory
    }

    /// Runs the check with `arguments` and returns its exit status and findings.
    fn check(&self, arguments: &[&str]) -> (i32, Vec<Value>) {
        let answers: String = self
            .redis
            .iter()
            .map(|(name, value)| match name.as_str() {
                "INFO" => format!("INFO) printf '%s\\r\\n' '{value}' ;;\n"),
                name => format!("{name}) printf '%s\\n%s\\n' '{name}' '{value}' ;;\n"),
            })
            .collect();
        self.program("psql", &format!("cat <<'END'\n{}END", self.postgres));
        let bin = self.program("redis-cli", &format!("for last; do :; done\ncase $last in\n{answers}esac"));
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let root = self.root.path().to_str().unwrap();
        let mut command = script("check");
        command.env("PATH", path).args(["--json", "--connections", "10000", "--root", root]).args(arguments);
        let output = command.output().expect("bash runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.is_empty(), "{said}");
        let json: Value = serde_json::from_slice(&output.stdout).expect("a JSON document");
        (output.status.code().expect("an exit status"), json["findings"].as_array().expect("findings").clone())
    }
}

fn script(name: &str) -> Command {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning").join(name);
    let mut command = Command::new("bash");
    command.arg(path);
    command
}

/// Name and status of all that is not in order.
fn faults(findings: &[Value]) -> Vec<(&str, &str)> {
    findings
        .iter()
        .map(|finding| (finding["name"].as_str().unwrap(), finding["status"].as_str().unwrap()))
        .filter(|(_, status)| *status != "ok")
        .collect()
}

const ALL: [&str; 4] = ["--postgres", "postgres://nobody@127.0.0.1/none", "--redis", "redis://127.0.0.1:1"];

#[test]
fn a_sound_host_lacks_nothing() {
    let (status, findings) = Host::sound().check(&ALL);
    assert_eq!(faults(&findings), []);
    assert_eq!(status, 0);
    for finding in &findings {
        assert_eq!(finding["mend"], "", "there is nothing to mend: {finding}");
        assert_ne!(finding["why"], "", "{finding}");
    }
    for name in ["net.core.somaxconn", "open_files", "io_uring", "clocksource", "postgres.fsync", "redis.save"] {
        assert!(findings.iter().any(|finding| finding["name"] == name), "{name} is looked at");
    }
}

#[test]
fn each_fault_of_a_host_is_found() {
    let limits = LIMITS.replace("65536", "1024");
    let cases = [
        ("proc/sys/net/core/somaxconn", "128", "net.core.somaxconn", "lack"),
        ("proc/sys/net/core/somaxconn", "2048", "net.core.somaxconn", "warn"),
        ("proc/sys/net/ipv4/tcp_max_syn_backlog", "128", "net.ipv4.tcp_max_syn_backlog", "warn"),
        ("proc/sys/net/ipv4/tcp_syncookies", "0", "net.ipv4.tcp_syncookies", "warn"),
        ("proc/sys/net/ipv4/ip_local_port_range", "32768\t40000", "net.ipv4.ip_local_port_range", "warn"),
        ("proc/sys/net/ipv4/tcp_mem", "10000\t15000\t200000", "net.ipv4.tcp_mem", "warn"),
        ("proc/sys/net/ipv4/tcp_mem", "5000\t8000\t10000", "net.ipv4.tcp_mem", "lack"),
        ("proc/sys/net/ipv4/tcp_rmem", "65536\t65536\t65536", "net.ipv4.tcp_rmem", "warn"),
        ("proc/sys/net/ipv4/tcp_wmem", "8192\t65536\t65536", "net.ipv4.tcp_wmem", "warn"),
        ("proc/sys/net/netfilter/nf_conntrack_max", "9999", "net.netfilter.nf_conntrack_max", "lack"),
        ("proc/sys/net/netfilter/nf_conntrack_max", "10000", "net.netfilter.nf_conntrack_max", "warn"),
        (
            "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established",
            "432000",
            "net.netfilter.nf_conntrack_tcp_timeout_established",
            "warn",
        ),
        ("proc/77/limits", limits.as_str(), "open_files", "lack"),
        ("proc/sys/fs/nr_open", "10511", "fs.nr_open", "lack"),
        ("proc/sys/fs/file-max", "12000", "fs.file-max", "lack"),
        ("proc/sys/fs/file-max", "20000", "fs.file-max", "warn"),
        ("proc/sys/kernel/osrelease", "5.7.19", "io_uring", "warn"),
        ("proc/sys/kernel/io_uring_disabled", "2", "io_uring", "warn"),
        ("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet", "clocksource", "warn"),
        ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave", "cpu_governor", "warn"),
        ("sys/fs/cgroup/cpu.max", "200000 100000", "cpu_quota", "warn"),
        ("proc/meminfo", "MemTotal: 200000 kB", "memory_mib", "lack"),
        ("proc/meminfo", "MemTotal: 500000 kB", "memory_mib", "warn"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never", "transparent_hugepages", "warn"),
    ];
    for (path, text, name, status) in cases {
        let host = Host::sound();
        host.put(path, text);
        let (exit, findings) = host.check(&[]);
        assert_eq!(faults(&findings), [(name, status)], "{path}: {text}");
        assert_eq!(exit, i32::from(status == "lack"), "{path}: {text}");
        let finding = findings.iter().find(|finding| finding["name"] == name).unwrap();
        assert_ne!(finding["mend"], "", "it says how to mend it: {finding}");
    }
}

#[test]
fn a_card_with_one_queue_for_many_cores_is_found() {
    let host = Host::sound();
    host.put("sys/class/net/eth0/device/vendor", "0x1af4");
    host.put("sys/class/net/eth0/queues/rx-0/rps_cpus", "0");
    assert_eq!(faults(&host.check(&[]).1), [("queues_of_eth0", "warn")]);
    host.put("sys/class/net/eth0/queues/rx-0/rps_cpus", "f");
    assert_eq!(faults(&host.check(&[]).1), []);
}

#[test]
fn what_cannot_be_read_is_left_out_and_not_found_lacking() {
    let host = Host::sound();
    fs::remove_file(host.root.path().join("proc/sys/net/core/somaxconn")).unwrap();
    fs::remove_dir_all(host.root.path().join("proc/77")).unwrap();
    let (exit, findings) = host.check(&[]);
    assert_eq!(faults(&findings), [("net.core.somaxconn", "skip"), ("open_files", "skip")]);
    assert_eq!(exit, 0);
}

#[test]
fn each_fault_of_a_database_is_found() {
    let cases = [
        ("server_version_num|160004", "server_version_num|120015", "postgres.server_version_num", "lack"),
        ("fsync|on", "fsync|off", "postgres.fsync", "lack"),
        ("full_page_writes|on", "full_page_writes|off", "postgres.full_page_writes", "lack"),
        ("synchronous_commit|on", "synchronous_commit|off", "postgres.synchronous_commit", "lack"),
        ("autovacuum|on", "autovacuum|off", "postgres.autovacuum", "lack"),
        ("max_connections|60", "max_connections|29", "postgres.max_connections", "lack"),
        ("max_connections|60", "max_connections|39", "postgres.max_connections", "warn"),
        ("shared_buffers|4194304", "shared_buffers|131072", "postgres.shared_buffers", "warn"),
        ("max_wal_size|8388608", "max_wal_size|1048576", "postgres.max_wal_size", "warn"),
        ("checkpoint_timeout|900", "checkpoint_timeout|300", "postgres.checkpoint_timeout", "warn"),
        ("wal_compression|lz4", "wal_compression|off", "postgres.wal_compression", "warn"),
        ("idle_session_timeout|0", "idle_session_timeout|30000", "postgres.idle_session_timeout", "lack"),
        ("FIRST 1 (a, b)", "", "postgres.synchronous_standby_names", "warn"),
    ];
    for (sound, fault, name, status) in cases {
        let host = Host { postgres: POSTGRES.replace(sound, fault), ..Host::sound() };
        assert_ne!(host.postgres, POSTGRES);
        let (exit, findings) = host.check(&ALL);
        assert_eq!(faults(&findings), [(name, status)], "{fault}");
        assert_eq!(exit, i32::from(status == "lack"), "{fault}");
    }
}

#[test]
fn each_fault_of_redis_is_found() {
    let cases = [
        ("INFO", "redis_version:6.0.16", "redis.version", "lack"),
        ("maxmemory-policy", "allkeys-lru", "redis.maxmemory-policy", "lack"),
        ("timeout", "300", "redis.timeout", "lack"),
        ("appendonly", "yes", "redis.appendonly", "warn"),
        ("save", "3600 1", "redis.save", "warn"),
        ("tcp-keepalive", "0", "redis.tcp-keepalive", "warn"),
    ];
    for (key, value, name, status) in cases {
        let mut host = Host::sound();
        host.redis.iter_mut().find(|(other, _)| other == key).unwrap().1 = value.to_owned();
        let (exit, findings) = host.check(&ALL);
        assert_eq!(faults(&findings), [(name, status)], "{key} {value}");
        assert_eq!(exit, i32::from(status == "lack"), "{key} {value}");
    }
}

#[test]
fn a_disk_is_measured_and_left_as_it_was() {
    let (host, data) = (Host::sound(), tempfile::tempdir().unwrap());
    let (_, findings) = host.check(&["--data", data.path().to_str().unwrap()]);
    let finding = findings.iter().find(|finding| finding["name"] == "fsync_us").expect("it is measured");
    assert!(finding["value"].as_str().unwrap().parse::<u64>().is_ok(), "{finding}");
    assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
}

#[test]
fn wrong_usage_is_told_from_a_lack() {
    for name in ["check", "pin"] {
        for arguments in [&["--nothing"][..], &["--root"], &["--root", "/nowhere/at/all"]] {
            let output = script(name).args(arguments).output().expect("bash runs");
            assert_eq!(output.status.code(), Some(2), "{name} {arguments:?}");
            assert!(String::from_utf8_lossy(&output.stderr).contains("usage: tuning/"), "{name} {arguments:?}");
        }
    }
    for arguments in [&["--connections", "many"][..], &["--connections", "0"], &["--data", "/nowhere/at/all"]] {
        assert_eq!(
            script("check").args(arguments).output().expect("bash runs").status.code(),
            Some(2),
            "{arguments:?}"
        );
    }
}

/// A host whose card has two queues, on four cores.
fn with_card() -> Host {
    let host = Host::sound();
    for irq in ["40", "41"] {
        host.put(&format!("sys/class/net/eth0/device/msi_irqs/{irq}"), "msix");
        host.put(&format!("proc/irq/{irq}/smp_affinity_list"), "0-3");
    }
    for queue in ["rx-0", "rx-1"] {
        host.put(&format!("sys/class/net/eth0/queues/{queue}/rps_cpus"), "0");
    }
    host
}

#[test]
fn pinning_is_shown_and_done_only_when_asked() {
    let host = with_card();
    let root = host.root.path().to_str().unwrap();
    let run = |arguments: &[&str]| {
        let output = script("pin").args(["--interface", "eth0", "--root", root]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let now = |path: &str| fs::read_to_string(host.root.path().join(path)).unwrap().trim().to_owned();
    let shown = run(&[]);
    assert!(shown.contains("echo 1 > /proc/irq/41/smp_affinity_list"), "{shown}");
    assert_eq!(
        (now("proc/irq/40/smp_affinity_list"), now("proc/irq/41/smp_affinity_list")),
        ("0-3".into(), "0-3".into())
    );

    run(&["--apply"]);
    assert_eq!((now("proc/irq/40/smp_affinity_list"), now("proc/irq/41/smp_affinity_list")), ("0".into(), "1".into()));
    assert_eq!(now("sys/class/net/eth0/queues/rx-1/rps_cpus"), "0000000f", "two queues for four cores");

    let apart = run(&["--apart", "1", "--apply"]);
    assert!(apart.contains("CPUAffinity=1-3"), "{apart}");
    assert_eq!(now("proc/irq/41/smp_affinity_list"), "0");
}
