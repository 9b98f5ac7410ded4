//! What requests cost while they were asked for: CPU time of every process, and what PostgreSQL did.

use std::{collections::BTreeMap, process};

use postgres::{Client, NoTls};

use crate::{System, cpu, support::record};

/// Statements shown.
const STATEMENTS_MAX: i64 = 40;
/// Threads shown.
const THREADS_MAX: usize = 14;

/// Counts of a moment, by name.
type Counts = BTreeMap<String, f64>;

/// Two moments of a system, and what it did between them.
pub(crate) struct Watch {
    statements: bool,
    cpu: [Counts; 2],
    threads: [Counts; 2],
    tables: [Counts; 2],
    rows: Vec<Statement>,
}

struct Statement {
    calls: i64,
    rows: i64,
    exec_ms: f64,
    plan_ms: f64,
    wal: i64,
    text: String,
}

impl Watch {
    /// Nothing is counted before [`Watch::begin`].
    pub(crate) fn new(system: &System, statements: bool) -> Self {
        let statements = statements && system.postgres.is_some();
        if statements {
            let made = client(system)
                .map(|mut client| client.batch_execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements"));
            made.expect("PostgreSQL").expect("its extension");
        }
        Self {
            statements,
            cpu: Default::default(),
            threads: Default::default(),
            tables: Default::default(),
            rows: Vec::new(),
        }
    }

    /// What follows counts.
    pub(crate) fn begin(&mut self, system: &System) {
        if self.statements
            && let Some(mut client) = client(system)
        {
            client.batch_execute("SELECT pg_stat_statements_reset()").expect("the extension");
        }
        self.look(system, 0);
    }

    /// What follows does not count.
    pub(crate) fn end(&mut self, system: &System) {
        self.look(system, 1);
        if self.statements
            && let Some(mut client) = client(system)
        {
            let sql = "SELECT calls, rows, total_exec_time, total_plan_time, wal_bytes::bigint, query \
                       FROM pg_stat_statements ORDER BY total_exec_time + total_plan_time DESC LIMIT $1";
            let rows = client.query(sql, &[&STATEMENTS_MAX]).expect("the extension");
            self.rows = rows
                .iter()
                .map(|row| Statement {
                    calls: row.get(0),
                    rows: row.get(1),
                    exec_ms: row.get(2),
                    plan_ms: row.get(3),
                    wal: row.get(4),
                    text: row.get(5),
                })
                .collect();
        }
    }

    fn look(&mut self, system: &System, moment: usize) {
        let mut add = |process: &str, us: f64| *self.cpu[moment].entry(process.to_owned()).or_default() += us;
        let mut threads = Counts::new();
        let mut by_name = |process: &str, pid: u32| {
            for (name, us) in cpu::threads(pid) {
                // Threads of one kind are numbered.
                let kind = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
                *threads.entry(format!("{process} {kind}")).or_default() += us;
            }
        };
        for instance in &system.instances {
            add("gateway", cpu::process_us(instance.pid()));
            by_name("gateway", instance.pid());
        }
        if let Some((server, _)) = &system.postgres {
            add("postgres", cpu::tree_us(server.pid()));
        }
        if let Some(redis) = &system.redis {
            add("redis", cpu::process_us(redis.pid()));
        }
        add("load", cpu::process_us(process::id()));
        by_name("load", process::id());
        self.threads[moment] = threads;
        if let Some(mut client) = client(system) {
            let sql = "SELECT relname::text, n_tup_ins, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables";
            for row in client.query(sql, &[]).expect("a sound query") {
                let table: String = row.get(0);
                for (column, what) in ["inserted", "updated", "updated in place"].iter().enumerate() {
                    let count: i64 = row.get(column + 1);
                    self.tables[moment].insert(format!("{table} {what}"), count as f64);
                }
            }
            let sql = "SELECT xact_commit, (SELECT wal_bytes::bigint FROM pg_stat_wal), (SELECT wal_sync FROM pg_stat_wal) \
                       FROM pg_stat_database WHERE datname = current_database()";
            let row = client.query_one(sql, &[]).expect("a sound query");
            for (column, what) in ["transactions", "bytes of WAL", "syncs of WAL"].iter().enumerate() {
                self.tables[moment].insert((*what).to_owned(), row.get::<_, i64>(column) as f64);
            }
        }
    }

    /// Prints all of it for each of `requests`, and leaves the processes' shares as figures under `row`.
    pub(crate) fn print(&self, row: &str, requests: u64) {
        let each = |all: f64| all / requests.max(1) as f64;
        let since = |moments: &[Counts; 2]| -> Vec<(String, f64)> {
            let [before, after] = moments;
            let since = |(name, count): (&String, &f64)| (name.clone(), count - before.get(name).unwrap_or(&0.0));
            let mut since: Vec<_> = after.iter().map(since).filter(|(_, count)| *count > 0.0).collect();
            since.sort_by(|(_, one), (_, other)| other.total_cmp(one));
            since
        };
        let cpu = since(&self.cpu);
        let together: f64 = cpu.iter().map(|(_, us)| us).sum();
        let list = |counts: &[(String, f64)], digits: usize| {
            let item = |(name, count): &(String, f64)| format!("{name} {:.digits$}", each(*count));
            counts.iter().map(item).collect::<Vec<_>>().join(", ")
        };
        println!("CPU µs for each: together {:.0}; {}", each(together), list(&cpu, 0));
        for (process, us) in &cpu {
            record(&format!("{row}/cpu_us/{process}"), "µs", each(*us));
        }
        let threads = since(&self.threads);
        println!("threads: {}", list(&threads[..threads.len().min(THREADS_MAX)], 0));
        let tables = since(&self.tables);
        if !tables.is_empty() {
            println!("PostgreSQL for each: {}", list(&tables, 2));
        }
        if self.statements {
            println!("| calls for each | rows a call | exec µs for each | plan µs | WAL bytes | statement |");
            println!("|---:|---:|---:|---:|---:|---|");
            for statement in &self.rows {
                println!(
                    "| {:.3} | {:.1} | {:.1} | {:.1} | {:.0} | {:.110} |",
                    each(statement.calls as f64),
                    statement.rows as f64 / statement.calls.max(1) as f64,
                    each(statement.exec_ms * 1e3),
                    each(statement.plan_ms * 1e3),
                    each(statement.wal as f64),
                    statement.text.split_whitespace().collect::<Vec<_>>().join(" "),
                );
            }
        }
    }
}

fn client(system: &System) -> Option<Client> {
    let (_, url) = system.postgres.as_ref()?;
    Some(Client::connect(url, NoTls).expect("the server takes connections"))
}
