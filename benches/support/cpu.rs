//! Where the machine's CPU time went, process by process, by the scheduler's own nanosecond counts.
//!
//! Processes that end while they are watched leave their time to their parent (`cutime`, `cstime`), in ticks of 10 ms: a server's
//! helpers that come and go are counted with it.

use std::fs;

/// CPU time in microseconds.
pub(crate) type Micros = f64;

/// CPU time of a process's threads so far; 0: it has ended.
pub(crate) fn process_us(pid: u32) -> Micros {
    threads(pid).iter().map(|(_, us)| us).sum()
}

/// Its threads by name and their CPU time so far.
pub(crate) fn threads(pid: u32) -> Vec<(String, Micros)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let thread = |task: fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        let spent = fs::read_to_string(task.path().join("schedstat")).ok()?;
        Some((name.trim().to_owned(), spent.split(' ').next()?.parse::<f64>().ok()? / 1e3))
    };
    tasks.filter_map(thread).collect()
}

/// CPU time of a server with all its processes so far, those that have ended included.
pub(crate) fn tree_us(pid: u32) -> Micros {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let children = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let children = children.filter(|child| stat(*child).is_some_and(|stat| stat.parent == pid));
    let ended = stat(pid).map_or(0.0, |stat| stat.ended_us);
    process_us(pid) + ended + children.map(process_us).sum::<f64>()
}

struct Stat {
    parent: u32,
    /// Of children that have ended and were waited for.
    ended_us: Micros,
}

fn stat(pid: u32) -> Option<Stat> {
    const TICK_US: f64 = 10_000.0;
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name, in parentheses, may hold anything; what follows begins with field 3.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
    Some(Stat { parent: fields.get(1)?.parse().ok()?, ended_us: (ticks(16)? + ticks(17)?) * TICK_US })
}
