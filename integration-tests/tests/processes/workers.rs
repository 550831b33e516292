//! The workers: how long they live, what they see of the world, and that they may have pools of their own.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;

use integration_tests::tasks::double;
use integration_tests::{Board, Gate, Row, eventually, seconds, within};
use polypool::{BuildError, Executor, ExecutorExt, Shutdown, StartMethod};

use crate::both;
use crate::common::{
    builder, ends_clean, look, no_process_is_left, numbers_in, others, pass_pid, pid, pids, pool, soon,
};

pub(crate) const ROWS: &[Row<fn()>] = both![
    p53_worker_is_replaced_after_its_tasks,
    p53_limit_0_is_refused,
    p54_shutdown_before_limited_workers_finished,
    p60_task_may_have_a_pool_of_its_own,
    p60_environment_and_folder_reach_the_worker,
    p60_workers_hold_the_same_descriptors,
    p60_worker_does_not_inherit_descriptors,
    p60_no_zombie_is_left,
    names_of_workers_are_shown_by_the_system,
    each_worker_runs_one_task_at_a_time,
];

fn p53_worker_is_replaced_after_its_tasks(method: StartMethod) {
    let pool = builder(method, 1).max_tasks_per_worker(3).build().unwrap();
    let mut seen = Vec::new();
    for _ in 0..7 {
        seen.push(soon(pool.submit(pid {})).unwrap());
        assert!(pids(&pool).len() <= 1, "one at a time");
    }
    assert_eq!(seen[0..3], [seen[0]; 3]);
    assert_eq!(seen[3..6], [seen[3]; 3]);
    assert_eq!(BTreeSet::from([seen[0], seen[3], seen[6]]).len(), 3, "{seen:?}");

    // And when they are submitted together, which sends them ahead.
    let tasks: Vec<_> = (0..30).map(|_| pool.submit(pid {})).collect();
    let seen: Vec<u32> = tasks.into_iter().map(|task| soon(task).unwrap()).collect();
    for pid in BTreeSet::from_iter(seen.clone()) {
        assert!(seen.iter().filter(|&&other| other == pid).count() <= 3, "{seen:?}");
    }
    assert_eq!(pool.stats().workers_lost, 0, "they were let go, not lost");
    ends_clean(&pool, Shutdown::Drain);
}

fn p53_limit_0_is_refused(method: StartMethod) {
    match builder(method, 1).max_tasks_per_worker(0).build() {
        Err(BuildError::InvalidOption(text)) => assert!(text.contains("max_tasks_per_worker(0)"), "{text}"),
        other => panic!("{other:?}"),
    }
}

fn p54_shutdown_before_limited_workers_finished(method: StartMethod) {
    for _ in 0..10 {
        let pool = builder(method, 3).max_tasks_per_worker(1).build().unwrap();
        let tasks: Vec<_> = (0..6).map(|n| pool.submit(double { n })).collect();
        within(seconds(10), || pool.shutdown(Shutdown::Drain).wait());
        for (n, task) in (0..).zip(tasks) {
            assert_eq!(soon(task).unwrap(), 2 * n);
        }
    }
}

/// Runs a task in a pool of its own, in a process that is not this one.
#[polypool::task]
fn nest(spawn: bool, n: u64) -> Result<u64, String> {
    let method = if spawn { StartMethod::Spawn } else { StartMethod::ForkServer };
    let pool = builder(method, 1).build().map_err(|error| error.to_string())?;
    let inner = pool.submit(pid {}).wait().map_err(|error| error.to_string())?;
    if inner == std::process::id() {
        return Err("the inner worker is this process".to_owned());
    }
    let value = pool.submit(double { n }).wait().map_err(|error| error.to_string())?;
    pool.shutdown(Shutdown::Drain).wait();
    Ok(value)
}

fn p60_task_may_have_a_pool_of_its_own(method: StartMethod) {
    let outer = pool(method, 2);
    for spawn in [true, !cfg!(target_os = "linux")] {
        assert_eq!(outer.submit(nest { spawn, n: 4 }).wait().unwrap(), Ok(8));
    }
    ends_clean(&outer, Shutdown::Drain);
}

#[polypool::task]
fn surroundings(variable: String) -> (Option<String>, std::path::PathBuf, Option<String>) {
    let folder = std::env::current_dir().expect("a working directory");
    (std::env::var(variable).ok(), folder, std::env::var("POLYPOOL_WORKER").ok())
}

fn p60_environment_and_folder_reach_the_worker(method: StartMethod) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let ask = |variable: &str| surroundings { variable: variable.to_owned() };
    let pool = builder(method, 1).env("FLAVOUR", "vanilla").current_dir(&folder).build().unwrap();
    let (variable, worker_folder, mark) = soon(pool.submit(ask("FLAVOUR"))).unwrap();
    assert_eq!((variable.as_deref(), worker_folder), (Some("vanilla"), folder));
    assert_eq!(mark, None, "children of a worker are not taken for workers");
    let (inherited, ..) = soon(pool.submit(ask("PATH"))).unwrap();
    assert_eq!(inherited, std::env::var("PATH").ok(), "and that of the parent");
    assert_eq!(std::env::var_os("FLAVOUR"), None, "the parent's own stays as it was");
}

/// The descriptors that this process holds, after a gate.
#[polypool::task]
fn descriptors(gate: Gate) -> Vec<String> {
    gate.pass();
    let mut held: Vec<String> = numbers_in("/proc/self/fd")
        .filter_map(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).ok())
        .map(|what| what.to_string_lossy().into_owned())
        .collect();
    held.sort();
    held
}

fn p60_workers_hold_the_same_descriptors(method: StartMethod) {
    let board = Board::new();
    let leaky = tempfile::tempfile().unwrap();
    rustix::io::fcntl_setfd(&leaky, rustix::io::FdFlags::empty()).unwrap();
    let pool = pool(method, 5);
    let gate = board.gate("hold");
    let mut tasks = Vec::new();
    for number in 1..=5 {
        // One after another, so that the later ones could inherit from the earlier ones.
        tasks.push(pool.submit(descriptors { gate: gate.clone() }));
        gate.wait_for_arrivals(number);
    }
    gate.open();
    let counts: Vec<usize> = tasks.into_iter().map(|task| soon(task).unwrap().len()).collect();
    assert!(counts.iter().all(|&count| count == counts[0]), "{counts:?}");
    drop(leaky);
}

fn p60_worker_does_not_inherit_descriptors(method: StartMethod) {
    let board = Board::new();
    let (reader, writer) = std::io::pipe().unwrap();
    rustix::io::fcntl_setfd(&writer, rustix::io::FdFlags::empty()).unwrap();
    let name = std::fs::read_link(format!("/proc/self/fd/{}", writer.as_raw_fd())).unwrap();
    let pool = pool(method, 1);
    let gate = board.gate("open");
    gate.open();
    let held = soon(pool.submit(descriptors { gate })).unwrap();
    assert!(!held.contains(&name.to_string_lossy().into_owned()), "{held:?}");
    drop(writer);
    let mut text = String::new();
    within(seconds(5), || std::io::Read::read_to_string(&mut { reader }, &mut text)).unwrap();
    assert_eq!(text, "", "the pipe has its end while the worker lives");
}

fn p60_no_zombie_is_left(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 5);
    let gate = board.gate("hold");
    let tasks: Vec<_> = (0..5).map(|_| pool.submit(pass_pid { gate: gate.clone() })).collect();
    gate.wait_for_arrivals(5);
    gate.open();
    for task in tasks {
        soon(task).unwrap();
    }
    assert!(others().len() >= 5);
    pool.shutdown(Shutdown::Drain).wait();
    no_process_is_left(seconds(0));
}

fn names_of_workers_are_shown_by_the_system(method: StartMethod) {
    let pool = builder(method, 1).name_prefix("resize").build().unwrap();
    let worker = soon(pool.submit(pid {})).unwrap();
    assert_eq!(look(worker).expect("it lives").name, "resize-0");
    assert_eq!(pool.stats().workers[0].name, "resize-0");
}

#[polypool::task]
fn count_at_once() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NOW: AtomicUsize = AtomicUsize::new(0);
    let at_once = NOW.fetch_add(1, Ordering::SeqCst) + 1;
    std::thread::yield_now();
    NOW.fetch_sub(1, Ordering::SeqCst);
    at_once
}

fn each_worker_runs_one_task_at_a_time(method: StartMethod) {
    let pool = pool(method, 2);
    let tasks: Vec<_> = (0..2_000).map(|_| pool.submit(count_at_once {})).collect();
    assert!(tasks.into_iter().all(|task| task.wait().unwrap() == 1));
    assert!(eventually(seconds(5), || pool.stats().running == 0));
}
