//! What frames go through: rings in shared memory where there are any, otherwise the socket; the same tasks either way.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use integration_tests::tasks::{double, panic_at_first};
use integration_tests::{Board, Gate, Row, eventually, millis, rows, seconds};
use polypool::{Executor, ExecutorExt, Fd, ProcessPool, Shutdown, StartMethod, TaskOptions};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use crate::common::{builder, descriptors_and_threads, ends_clean, goes_on, pids, signal, soon};

pub(crate) const ROWS: &[Row<fn()>] = crate::both![
    frames_go_through_rings,
    frames_go_through_the_socket_without_rings,
    limits_of_the_system_leave_the_socket,
    want_of_descriptors_leaves_the_socket,
    large_messages_fill_both_directions_at_once,
    calls_are_seen_however_they_meet_the_rest_of_the_supervisor,
    callers_that_wait_send_and_fetch_by_themselves,
    callers_of_every_kind_get_in_each_others_way,
    workers_without_rings_that_have_enough_to_do,
    rings_go_with_their_workers,
    rings_go_with_workers_that_are_killed,
    workers_with_nothing_to_do_use_no_processor_time,
];

pub(crate) const ONCE: &[Row<fn()>] = rows![ring_sizes_are_any_number];

#[polypool::task]
fn reverse(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.reverse();
    bytes
}

/// Stands still, so that its worker reads nothing, and gives back what it was given.
#[polypool::task]
fn keep(gate: Gate, bytes: Vec<u8>) -> Vec<u8> {
    gate.pass();
    bytes
}

#[polypool::task]
fn give_back(handle: Fd) -> Fd {
    handle
}

/// Takes some microseconds.
#[polypool::task]
fn count(to: u64) -> u64 {
    (0..to).fold(0, |sum, _| std::hint::black_box(sum) + 1)
}

/// How many memories of rings this process has open: those of its workers.
fn rings() -> usize {
    let links = std::fs::read_dir("/proc/self/fd").expect("the descriptors of this process");
    let links = links.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter(|link| link.to_string_lossy().contains("memfd:polypool")).count()
}

fn some_bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect()
}

/// Small tasks, large ones and handles.
fn everything_works(pool: &ProcessPool) {
    let small: Vec<_> = (0..2_000).map(|n| pool.submit(double { n })).collect();
    for (n, task) in (0..).zip(small) {
        assert_eq!(soon(task).unwrap(), 2 * n);
    }
    for len in [0, 1, 4_000, 16_383, 16_384, 70_000, 300_000, 3_000_000] {
        let bytes = some_bytes(len);
        let mut back = soon(pool.submit(reverse { bytes: bytes.clone() })).unwrap();
        back.reverse();
        assert!(back == bytes, "{len} bytes");
    }
    let null = std::fs::File::open("/dev/null").expect("a file");
    let back = soon(pool.submit(give_back { handle: Fd::new(null.into()) })).unwrap();
    assert_eq!(rustix::fs::fstat(&back).unwrap().st_rdev, rustix::fs::stat("/dev/null").unwrap().st_rdev);
    assert_eq!(pool.stats().workers_lost, 0);
}

fn frames_go_through_rings(method: StartMethod) {
    if !cfg!(target_os = "linux") {
        return;
    }
    let pool = builder(method, 1).build().unwrap();
    everything_works(&pool);
    assert_eq!(rings(), 1, "those of one worker");
    ends_clean(&pool, Shutdown::Drain);
}

/// How many processes that are no workers yet a pool keeps ready when it has lost a worker.
fn spare(method: StartMethod) -> usize {
    usize::from(method == StartMethod::ForkServer)
}

fn frames_go_through_the_socket_without_rings(method: StartMethod) {
    let pool = builder(method, 1).ring_size(0).build().unwrap();
    everything_works(&pool);
    if cfg!(target_os = "linux") {
        assert_eq!(rings(), 0);
    }
    ends_clean(&pool, Shutdown::Drain);
}

fn limits_of_the_system_leave_the_socket(method: StartMethod) {
    if !cfg!(target_os = "linux") {
        return;
    }
    // Enough for the claim words, and not for a ring; without care, the system would end this process for trying.
    let limit = 64 << 10;
    setrlimit(Resource::Fsize, Rlimit { current: Some(limit), maximum: Some(limit) }).expect("a limit");
    let pool = builder(method, 1).build().unwrap();
    everything_works(&pool);
    assert_eq!(rings(), 0);
    ends_clean(&pool, Shutdown::Drain);
}

fn want_of_descriptors_leaves_the_socket(method: StartMethod) {
    if !cfg!(target_os = "linux") {
        return;
    }
    let limit = getrlimit(Resource::Nofile);
    let (mut with, mut without) = (0, 0);
    // Each number of descriptors makes another step fail; among them are those that a ring takes.
    for more in 0..30 {
        let pool = builder(method, 1).build().unwrap();
        let current = Some(descriptors_and_threads().0 as u64 + more);
        setrlimit(Resource::Nofile, Rlimit { current, ..limit }).expect("a lower limit");
        let outcome = soon(pool.submit(double { n: 2 }));
        setrlimit(Resource::Nofile, limit).expect("the limit as it was");
        match outcome {
            Ok(value) => {
                assert_eq!((value, pool.stats().workers_lost), (4, 0), "with {more} more");
                *if rings() == 0 { &mut without } else { &mut with } += 1;
            }
            // It lacks what no worker can do without.
            Err(error) => assert!(!error.to_string().contains("bell"), "with {more} more: {error}"),
        }
        pool.shutdown(Shutdown::Drain).wait_timeout(seconds(10)).unwrap();
        drop(pool);
        assert!(eventually(seconds(5), || rings() == 0), "with {more} more: {} rings", rings());
    }
    // A ring takes five on the way: some of the pools had enough for all but that.
    assert!(with > 0 && without >= 4, "{with} with, {without} without");
}

/// Round trips whose pauses sweep over the time for which the supervisor looks about before it rests, from several threads:
/// a call or an answer that nobody wakes it for would wait for ever.
fn calls_are_seen_however_they_meet_the_rest_of_the_supervisor(method: StartMethod) {
    let pool = builder(method, 2).build().unwrap();
    std::thread::scope(|scope| {
        for thread in 1..=3 {
            let pool = &pool;
            scope.spawn(move || {
                for n in 0..1_000 {
                    assert_eq!(soon(pool.submit(double { n })).unwrap(), 2 * n);
                    let pause = std::time::Duration::from_nanos(n * thread * 37 % 80_000);
                    let until = std::time::Instant::now() + pause;
                    while std::time::Instant::now() < until {
                        std::hint::spin_loop();
                    }
                }
            });
        }
    });
    assert_eq!(pool.stats().workers_lost, 0);
    ends_clean(&pool, Shutdown::Drain);
}

/// A caller that blocks for one call after the other has them sent and their answers read on its own thread. Whatever
/// needs the supervisor, as to try again, to replace a worker or to end the pool, must still come to it.
fn callers_that_wait_send_and_fetch_by_themselves(method: StartMethod) {
    let board = Board::new();
    let pool = builder(method, 1).build().unwrap();
    for n in 0..200 {
        assert_eq!(soon(pool.submit(double { n })).unwrap(), 2 * n);
    }
    for n in 0..50 {
        let failing = panic_at_first { failures: 2, traces: board.traces() };
        assert_eq!(soon(pool.submit_with(failing, TaskOptions::new().retries(2))).unwrap(), 2, "the last run");
        assert_eq!(soon(pool.submit(double { n })).unwrap(), 2 * n, "the same worker");
    }
    let stats = pool.stats();
    assert_eq!((stats.workers_lost, stats.retried), (0, 100));
    assert_eq!((stats.submitted, stats.completed, stats.skipped), (300, 400, 0));
    ends_clean(&pool, Shutdown::Drain);

    let pool = builder(method, 1).max_tasks_per_worker(7).build().unwrap();
    for n in 0..70 {
        assert_eq!(soon(pool.submit(double { n })).unwrap(), 2 * n);
    }
    ends_clean(&pool, Shutdown::Drain);

    // The pool ends while an answer is fetched, and not before.
    for n in 0..10 {
        let pool = builder(method, 1).build().unwrap();
        (0..20).for_each(|n| assert_eq!(soon(pool.submit(double { n })).unwrap(), 2 * n));
        let task = pool.submit(double { n });
        let mut end = pool.shutdown(Shutdown::Drain);
        std::thread::scope(|scope| {
            scope.spawn(|| assert_eq!(soon(task).unwrap(), 2 * n));
            end.wait_timeout(seconds(5)).expect("it ends");
        });
    }
}

/// Several callers block at once, and others cancel, go away, await or have results that callers don't decode, while
/// workers die. Whoever looks for an answer has the supervisor's place meanwhile: each of these has to get by.
fn callers_of_every_kind_get_in_each_others_way(method: StartMethod) {
    let pool = builder(method, 2).build().unwrap();
    let retried = TaskOptions::new().retries(1_000);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for n in 0..300 {
                        assert_eq!(soon(pool.submit_with(double { n }, retried.clone())).unwrap(), 2 * n);
                    }
                })
            })
            .chain([
                scope.spawn(|| {
                    for n in 0..300 {
                        let task = pool.submit(double { n });
                        task.cancel();
                        assert!(task.is_done());
                    }
                }),
                scope.spawn(|| {
                    for n in 0..100 {
                        // Waits for long enough to look for the answer itself, and then leaves.
                        let _ =
                            pool.submit_with(count { to: 10_000 * (n % 30) }, retried.clone()).wait_timeout(millis(1));
                    }
                }),
                scope.spawn(|| {
                    for n in 0..300 {
                        let task = pool.submit_with(double { n }, retried.clone());
                        assert_eq!(futures_ext::block_on(task).unwrap(), 2 * n);
                    }
                }),
                scope.spawn(|| {
                    for n in 0..300 {
                        let bytes = vec![n as u8; 30 << (n % 10)];
                        let task = pool.submit_with(reverse { bytes: bytes.clone() }, retried.clone());
                        assert_eq!(soon(task).unwrap(), bytes);
                    }
                }),
            ])
            .collect();
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                // Not before its first task: a pool whose workers never get there is broken.
                let old = pool.stats().workers.into_iter().find(|worker| worker.completed > 10);
                if let Some(pid) = old.and_then(|worker| worker.pid) {
                    signal(pid, Signal::KILL);
                }
                std::thread::sleep(millis(20));
            }
        });
        let ends: Vec<_> = callers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::SeqCst);
        assert!(ends.iter().all(Result::is_ok), "no caller is left waiting");
    });
    goes_on(&pool);
    ends_clean(&pool, Shutdown::Drain);
}

/// All cores are busy, which is when the supervisor leaves the answers of rings lying for a moment.
fn workers_without_rings_that_have_enough_to_do(method: StartMethod) {
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    for size in [0, 256 << 10] {
        let pool = builder(method, workers).ring_size(size).build().unwrap();
        let tasks: Vec<_> = (0..4_000).map(|_| pool.submit(count { to: 5_000 })).collect();
        for task in tasks {
            assert_eq!(soon(task).unwrap(), 5_000);
        }
        // The last ones aren't waited for longer because nothing follows them.
        for n in 0..100 {
            assert_eq!(soon(pool.submit(double { n })).unwrap(), 2 * n);
        }
        assert_eq!(pool.stats().workers_lost, 0);
        ends_clean(&pool, Shutdown::Drain);
    }
}

fn large_messages_fill_both_directions_at_once(method: StartMethod) {
    const LEN: usize = 2 << 20;
    for size in [0, 4 << 10, 256 << 10] {
        let pool = builder(method, 2).ring_size(size).build().unwrap();
        // While a worker writes an answer that does not fit, the next call, which does not fit either, is written to
        // it.
        let mut tasks: VecDeque<_> = (0..12).map(|n| pool.submit(reverse { bytes: vec![n; LEN] })).collect();
        for n in 0..12 {
            let task = tasks.pop_front().expect("as many as were submitted");
            let back = task.wait().unwrap();
            assert!(back.len() == LEN && back.iter().all(|byte| *byte == n), "{size}: {n}");
        }
        // A worker that does not read keeps nobody from anything.
        let board = Board::new();
        let gate = board.gate("gate");
        let held: Vec<_> = (0..4).map(|n| pool.submit(keep { gate: gate.clone(), bytes: vec![n; LEN] })).collect();
        gate.wait_for_arrivals(2);
        gate.open();
        for (n, task) in (0..).zip(held) {
            assert!(task.wait().unwrap() == vec![n; LEN], "{size}");
        }
        ends_clean(&pool, Shutdown::Drain);
    }
}

fn rings_go_with_their_workers(method: StartMethod) {
    if !cfg!(target_os = "linux") {
        return;
    }
    let pool = builder(method, 1).max_tasks_per_worker(1).build().unwrap();
    goes_on(&pool);
    assert!(eventually(seconds(5), || rings() == pool.stats().workers.len()), "{} rings", rings());
    for n in 0..20 {
        assert_eq!(soon(pool.submit(double { n })).unwrap(), 2 * n);
    }
    assert!(eventually(seconds(5), || rings() == pool.stats().workers.len()), "{} rings", rings());
    ends_clean(&pool, Shutdown::Drain);
    drop(pool);
    assert!(eventually(seconds(5), || rings() == 0), "{} rings", rings());
}

fn rings_go_with_workers_that_are_killed(method: StartMethod) {
    let pool = builder(method, 1).build().unwrap();
    let kill = |round| {
        goes_on(&pool);
        pids(&pool).into_iter().for_each(|pid| signal(pid, Signal::KILL));
        assert!(eventually(seconds(5), || pool.stats().workers_lost == round), "it is noticed");
        goes_on(&pool);
    };
    kill(1);
    assert!(eventually(seconds(5), || rings() == 1 + spare(method)), "{} rings of one worker", rings());
    let before = descriptors_and_threads();
    (2..=6).for_each(kill);
    let same = eventually(seconds(5), || descriptors_and_threads().0 <= before.0);
    assert!(same, "from {before:?} to {:?}", descriptors_and_threads());
    ends_clean(&pool, Shutdown::Drain);
}

/// How often the threads of a process have been given a core so far, by themselves.
fn wakes(pid: u32) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let status = threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("status")).ok());
    let counts = status.filter_map(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse::<u64>().ok()
    });
    counts.sum()
}

fn workers_with_nothing_to_do_use_no_processor_time(method: StartMethod) {
    if !cfg!(target_os = "linux") {
        return;
    }
    let pool = builder(method, 1).build().unwrap();
    everything_works(&pool);
    let worker = pids(&pool)[0];
    // Asleep as soon as it has nothing to do; from then on nothing wakes it.
    let mut before = wakes(worker);
    let rests = eventually(seconds(5), || {
        let now = wakes(worker);
        std::mem::replace(&mut before, now) == now
    });
    assert!(rests, "it never rests");
    std::thread::sleep(integration_tests::millis(300));
    assert!(wakes(worker) <= before + 1, "from {before} to {}", wakes(worker));
    ends_clean(&pool, Shutdown::Drain);
}

fn ring_sizes_are_any_number() {
    for size in [1, 5_000, 1 << 20] {
        let pool = builder(StartMethod::Spawn, 1).ring_size(size).build().unwrap();
        everything_works(&pool);
        ends_clean(&pool, Shutdown::Drain);
    }
}
