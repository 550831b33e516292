//! Many kills in one pool, and many pools in one program.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use integration_tests::tasks::double;
use integration_tests::{Row, eventually, seconds};
use polypool::{Executor, ExecutorExt, ProcessPool, Shutdown, StartMethod, TaskOptions};
use rustix::process::Signal;

use crate::both;
use crate::common::{
    builder, descriptors_and_threads, ends_clean, goes_on, look, no_process_is_left, settled_descriptors_and_threads,
    signal,
};

pub(crate) const ROWS: &[Row<fn()>] = both![
    random_kills_lose_nothing,
    random_kills_without_retries_fail_one_task_each,
    pools_opened_and_closed_leave_nothing,
    pools_dropped_at_once_leave_nothing,
];

/// A generator of numbers that are random enough (xorshift).
struct Dice(u64);

impl Dice {
    /// Seeded by the time. The seed is printed, which is shown when the test fails.
    fn new() -> Self {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_nanos() as u64 | 1;
        println!("seed {seed}");
        Dice(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

const PREFIX: &str = "storm";

/// Kills a worker, if there is one to be had.
fn kill_one(pool: &ProcessPool, dice: &mut Dice) -> bool {
    let workers = pool.stats().workers;
    if workers.is_empty() {
        return false;
    }
    let victim = &workers[dice.below(workers.len() as u64) as usize];
    // Not one that is dead already, whose number may be somebody else's by now, and not one that has just been
    // started: too many of these in a row break the pool, as they should.
    let Some(pid) = victim.pid.filter(|_| victim.completed > 0) else { return false };
    let alive = look(pid).is_some_and(|seen| !seen.is_zombie() && seen.name.starts_with(PREFIX));
    if alive {
        signal(pid, Signal::KILL);
    }
    alive
}

/// Runs `tasks` tasks on 2, 3 or 4 workers, and kills a worker in each hundredth part of it. The number of tasks that
/// failed, and of kills.
fn storm(method: StartMethod, tasks: u64, retries: u32) -> (u64, u64) {
    const KILLS: u64 = 100;
    let mut dice = Dice::new();
    let before = settled_descriptors_and_threads(method);
    let workers = 2 + dice.below(3) as usize;
    let pool = builder(method, workers).name_prefix(PREFIX).build().unwrap();
    let over = AtomicBool::new(false);
    let (failed, kills) = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut kills = 0;
            let step = tasks / KILLS;
            for part in 0..KILLS {
                let at = part * step + dice.below(step * 9 / 10);
                while !over.load(Ordering::Relaxed) && (pool.stats().completed < at || !kill_one(&pool, &mut dice)) {
                    // Not in a tight loop: it would take a core and the lock that the workers' calls go through.
                    std::thread::sleep(std::time::Duration::from_micros(200));
                }
                kills += u64::from(!over.load(Ordering::Relaxed));
            }
            kills
        });
        let options = TaskOptions::new().retries(retries);
        let mut failed = 0;
        let mut waiting = VecDeque::new();
        let mut check = |n: u64, outcome: polypool::Outcome<u64>| match outcome {
            Ok(value) => assert_eq!(value, 2 * n),
            Err(polypool::TaskError::WorkerLost(_)) if retries == 0 => failed += 1,
            Err(error) => panic!("task {n}: {error}"),
        };
        for n in 0..tasks {
            waiting.push_back((n, pool.submit_with(double { n }, options.clone())));
            if waiting.len() == 5_000 {
                let (n, task) = waiting.pop_front().expect("not empty");
                check(n, task.wait());
            }
        }
        for (n, task) in waiting {
            check(n, task.wait());
        }
        over.store(true, Ordering::Relaxed);
        (failed, killer.join().expect("the killer"))
    });
    let stats = pool.stats();
    println!("{kills} kills, {failed} failed, {stats:?}");
    assert_eq!(stats.submitted, tasks);
    goes_on(&pool);
    ends_clean(&pool, Shutdown::Drain);
    drop(pool);
    let same = eventually(seconds(5), || descriptors_and_threads() == before);
    assert!(same, "from {before:?} to {:?}", descriptors_and_threads());
    (failed, kills)
}

fn random_kills_lose_nothing(method: StartMethod) {
    let (failed, kills) = storm(method, 100_000, 10);
    assert_eq!(failed, 0);
    assert!(kills >= 90, "{kills} kills");
}

fn random_kills_without_retries_fail_one_task_each(method: StartMethod) {
    let (failed, kills) = storm(method, 20_000, 0);
    assert!(failed <= kills, "{failed} failed by {kills} kills: a kill costs the one task that runs");
}

fn pools_opened_and_closed_leave_nothing(method: StartMethod) {
    let before = settled_descriptors_and_threads(method);
    for round in 0..200 {
        let pool = builder(method, 2).build().unwrap();
        let tasks: Vec<_> =
            (0..4).map(|n| pool.submit_with(double { n }, TaskOptions::new().timeout(seconds(50)))).collect();
        for (n, task) in (0..).zip(tasks) {
            assert_eq!(task.wait().unwrap(), 2 * n);
        }
        match round % 3 {
            0 => ends_clean(&pool, Shutdown::Drain),
            1 => ends_clean(&pool, Shutdown::Now),
            _ => {
                drop(pool);
                no_process_is_left(seconds(5));
            }
        }
    }
    let same = eventually(seconds(5), || descriptors_and_threads() == before);
    assert!(same, "from {before:?} to {:?}", descriptors_and_threads());
}

fn pools_dropped_at_once_leave_nothing(method: StartMethod) {
    let before = settled_descriptors_and_threads(method);
    for round in 0..200 {
        let pool = builder(method, 2).build().unwrap();
        if round % 2 == 0 {
            pool.submit(double { n: 1 }).detach();
        }
    }
    no_process_is_left(seconds(20));
    let same = eventually(seconds(5), || descriptors_and_threads() == before);
    assert!(same, "from {before:?} to {:?}", descriptors_and_threads());
}
