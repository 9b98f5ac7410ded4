//! Figures of this process from `/proc`. What cannot be read is left out.

use std::fs;

use super::exposition::Exposition;

pub(super) fn render(to: &mut Exposition<'_>) {
    if let Some(bytes) = resident_bytes() {
        to.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", bytes);
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        to.gauge("process_open_fds", "Number of open file descriptors.", entries.count());
    }
    if let Some(max) = descriptors_max() {
        to.gauge("process_max_fds", "Maximum number of open file descriptors.", max);
    }
    if let Some((cpu_seconds, start_seconds)) = times() {
        to.family("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.");
        to.sample("process_cpu_seconds_total", &[], cpu_seconds);
        let help = "Start time of the process since unix epoch in seconds.";
        to.gauge("process_start_time_seconds", help, start_seconds);
    }
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kib: u64 =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

fn descriptors_max() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

/// CPU time, and start as Unix time, both in seconds.
fn times() -> Option<(f64, f64)> {
    // SAFETY: sysconf takes no pointer and has no precondition.
    let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks_per_second <= 0 {
        return None;
    }
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in parentheses and may hold anything; the rest starts with the third.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let user: f64 = fields.nth(11)?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    let start: f64 = fields.nth(6)?.parse().ok()?;
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot_seconds: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let ticks_per_second = ticks_per_second as f64;
    Some(((user + system) / ticks_per_second, boot_seconds + start / ticks_per_second))
}
