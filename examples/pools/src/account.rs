//! What a runner and all its descendants cost: CPU time and peak memory, read from outside so that it is the same for
//! Rust and Python.
//!
//! On Linux only; elsewhere these figures are missing.

/// What a tree of processes has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Of those that live exactly, of those that have ended in the system's steps of usually 10 ms.
    pub(crate) cpu_s: f64,
    /// The sum of the largest resident sets that those that live have had. Pages that several share count for each.
    pub(crate) peak_rss_mib: f64,
}

/// What a process and its descendants have used so far.
#[cfg(target_os = "linux")]
pub(crate) fn usage(root: u32) -> Option<Usage> {
    let mut total = Usage::default();
    let mut processes = vec![root];
    while let Some(pid) = processes.pop() {
        // A process that ends meanwhile is counted by its parent.
        let Some((usage, children)) = one(pid) else { continue };
        total.cpu_s += usage.cpu_s;
        total.peak_rss_mib += usage.peak_rss_mib;
        processes.extend(children);
    }
    (total.peak_rss_mib > 0.0).then_some(total)
}

#[cfg(target_os = "linux")]
fn one(pid: u32) -> Option<(Usage, Vec<u32>)> {
    use nix::time::{clock_getcpuclockid, clock_gettime};
    use nix::unistd::Pid;

    let pid = i32::try_from(pid).ok()?;
    let process = procfs::process::Process::new(pid).ok()?;
    let (stat, status) = (process.stat().ok()?, process.status().ok()?);
    let cpu = clock_gettime(clock_getcpuclockid(Pid::from_raw(pid)).ok()?).ok()?;
    let ended = (stat.cutime + stat.cstime) as f64 / procfs::ticks_per_second() as f64;
    let tasks = process.tasks().ok()?.filter_map(Result::ok);
    let children = tasks.filter_map(|task| task.children().ok()).flatten().collect();
    let usage = Usage {
        cpu_s: std::time::Duration::from(cpu).as_secs_f64() + ended,
        peak_rss_mib: status.vmhwm.unwrap_or(0) as f64 / 1024.0,
    };
    Some((usage, children))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn usage(_root: u32) -> Option<Usage> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn children_count() {
        let before = usage(std::process::id()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let own = one(std::process::id()).unwrap();
        let with_child = usage(std::process::id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(own.1.contains(&child.id()));
        assert!(with_child.peak_rss_mib > before.peak_rss_mib && with_child.cpu_s > 0.0);
    }

    #[test]
    fn a_process_that_is_not_there_has_no_usage() {
        assert!(usage(u32::MAX).is_none());
    }
}
