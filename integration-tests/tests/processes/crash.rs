//! Workers that die while they run a task, and panics that must not kill them.

use std::collections::BTreeSet;

use integration_tests::tasks::{all_but, double};
use integration_tests::{Board, Gate, Row, Traces, millis, seconds};
use polypool::{
    Executor, ExecutorExt, Shutdown, StartMethod, SubmitError, TaskError, TaskOptions, WorkerExit, WorkerLost,
};
use rustix::process::Signal;

use crate::both;
use crate::common::{
    Death, Fault, Faulty, counted, die, die_at_first, ends_clean, goes_on, lost, make_faulty, pass_pid, pid, pids,
    pool, signal, soon, take_faulty,
};

pub(crate) const ROWS: &[Row<fn()>] = both![
    p45_killed_worker_fails_only_its_task,
    p45_each_death_has_its_own_error,
    p46_every_way_to_die_is_noticed,
    p46_abort_in_a_codec_is_noticed,
    p47_panics_are_isolated_and_carry_message_and_place,
    p48_workers_that_kill_each_other,
    last_words_are_in_the_error,
    last_words_are_cut_at_their_beginning,
    retries_run_a_task_again_after_a_crash,
    retries_that_are_used_up_give_the_last_death,
    killed_idle_worker_goes_unnoticed,
    worker_that_closes_its_descriptors_is_replaced,
];

fn p45_killed_worker_fails_only_its_task(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 2);
    let gate = board.gate("hold");
    let (one, other) = (pool.submit(pass_pid { gate: gate.clone() }), pool.submit(pass_pid { gate: gate.clone() }));
    gate.wait_for_arrivals(2);
    let queued: Vec<_> = (0..20).map(|n| pool.submit(double { n })).collect();
    let victim = pids(&pool)[0];
    signal(victim, Signal::KILL);

    let outcomes = [soon_or_held(one, &gate), soon_or_held(other, &gate)];
    let [Err(error), Ok(survivor)] = sorted(outcomes) else { panic!("one of them fails") };
    let TaskError::WorkerLost(lost) = &error else { panic!("{error:?}") };
    assert_eq!((lost.pid, &lost.exit), (victim, &WorkerExit::Signal(9)));
    assert!(error.to_string().contains(&format!("pid {victim}")), "{error}");
    assert!(error.to_string().contains("killed by signal 9"), "{error}");
    assert!(error.to_string().contains("pass_pid"), "{error}");
    assert_ne!(survivor, victim);
    for (n, task) in queued.into_iter().enumerate() {
        assert_eq!(soon(task).unwrap(), 2 * n as u64, "queued tasks never notice");
    }
    assert_eq!(pool.stats().workers_lost, 1);
    goes_on(&pool);
    ends_clean(&pool, Shutdown::Drain);
}

/// The outcome of a task that died, or, of one that did not, after its gate is open.
fn soon_or_held(mut task: polypool::TaskFuture<u32>, gate: &Gate) -> Result<u32, TaskError> {
    match task.wait_timeout(millis(500)) {
        Ok(outcome) => outcome,
        Err(_) => {
            gate.open();
            soon(task)
        }
    }
}

fn sorted(mut outcomes: [Result<u32, TaskError>; 2]) -> [Result<u32, TaskError>; 2] {
    outcomes.sort_by_key(Result::is_ok);
    outcomes
}

fn p45_each_death_has_its_own_error(method: StartMethod) {
    let pool = pool(method, 3);
    let deaths: Vec<_> = (1..=9).map(|code| (code, pool.submit(die { how: Death::Exit(code) }))).collect();
    let mut dead = BTreeSet::new();
    for (code, task) in deaths {
        let lost = lost(soon(task));
        assert_eq!(lost.exit, WorkerExit::Code(code));
        assert!(dead.insert(lost.pid), "a worker dies once");
    }
    goes_on(&pool);
}

fn p46_every_way_to_die_is_noticed(method: StartMethod) {
    let pool = pool(method, 2);
    for how in [Death::Abort, Death::Segfault, Death::Kill, Death::Overflow, Death::OutOfMemory, Death::Exit(42)] {
        let lost = lost(soon(pool.submit(die { how })));
        assert_eq!(lost.exit, how.exit(), "{how:?}");
        assert!(lost.task.ends_with("die"), "{}", lost.task);
    }
    // Leaving with success is no success of the task.
    assert_eq!(lost(soon(pool.submit(die { how: Death::Exit(0) }))).exit, WorkerExit::Code(0));
    goes_on(&pool);
    ends_clean(&pool, Shutdown::Drain);
}

fn p46_abort_in_a_codec_is_noticed(method: StartMethod) {
    let pool = pool(method, 1);
    let in_argument = lost(soon(pool.submit(take_faulty { value: Faulty::new(Fault::AbortInDecode) })));
    assert_eq!(in_argument.exit, WorkerExit::Signal(6));
    let in_result = lost(soon(pool.submit(make_faulty { fault: Fault::AbortInEncode })));
    assert_eq!(in_result.exit, WorkerExit::Signal(6));
    goes_on(&pool);
}

fn p47_panics_are_isolated_and_carry_message_and_place(method: StartMethod) {
    let pool = pool(method, 2);
    let tasks: Vec<_> = (0..16).map(|n| pool.submit(all_but { n, bad: if n % 4 == 3 { n } else { 99 } })).collect();
    let mut values = 0;
    for (n, task) in (0..).zip(tasks) {
        match soon(task) {
            Ok(value) => {
                assert_eq!(value, n);
                values += 1;
            }
            Err(TaskError::Panicked(report)) => {
                assert_eq!(report.message.as_deref(), Some(&*format!("{n} is bad")));
                let place = report.location.expect("the place");
                assert!(place.file.ends_with("tasks.rs") && place.line > 1, "{place:?}");
            }
            Err(other) => panic!("task {n}: {other}"),
        }
    }
    assert_eq!(values, 12);
    assert_eq!(pool.stats().workers_lost, 0, "the workers live on");
    goes_on(&pool);
}

/// Says who it is, waits until all have, and kills them all, itself last.
#[polypool::task]
fn kill_each_other(traces: Traces, workers: usize) {
    let own = std::process::id();
    traces.leave(own.to_string());
    for other in traces.wait_for(workers) {
        let other = other.parse().expect("a process id");
        if other != own {
            signal(other, Signal::KILL);
        }
    }
    loop {
        signal(own, Signal::KILL);
    }
}

fn p48_workers_that_kill_each_other(method: StartMethod) {
    for workers in [1, 2, 5, 13] {
        let board = Board::new();
        let pool = pool(method, workers);
        let tasks: Vec<_> =
            (0..workers).map(|_| pool.submit(kill_each_other { traces: board.traces(), workers })).collect();
        let queued: Vec<_> = (0..50).map(|n| pool.submit(double { n })).collect();
        for task in tasks {
            assert_eq!(lost(task.wait()).exit, WorkerExit::Signal(9));
        }
        for (n, task) in (0..).zip(queued) {
            assert_eq!(task.wait().unwrap(), 2 * n, "with {workers} workers");
        }
        assert_eq!(board.traces().count(), workers, "nothing ran twice");
        ends_clean(&pool, Shutdown::Drain);
    }
}

fn last_words_are_in_the_error(method: StartMethod) {
    let pool = pool(method, 1);
    let out_of_memory = lost(soon(pool.submit(die { how: Death::OutOfMemory })));
    assert!(out_of_memory.stderr_tail.contains("memory allocation of"), "{out_of_memory:?}");
    let overflow = lost(soon(pool.submit(die { how: Death::Overflow })));
    assert!(overflow.stderr_tail.contains("has overflowed its stack"), "{overflow:?}");

    let text = soon(pool.submit(say_and_abort { text: "disk on fire".into() })).unwrap_err().to_string();
    for part in ["worker ", "(pid ", "was killed by signal 6", "say_and_abort", "disk on fire"] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[polypool::task]
fn say_and_abort(text: String) {
    eprintln!("{text}");
    std::process::abort();
}

fn last_words_are_cut_at_their_beginning(method: StartMethod) {
    let pool = pool(method, 1);
    let text = format!("first\n{}\nlast", "x".repeat(1 << 20));
    let WorkerLost { stderr_tail, .. } = lost(soon(pool.submit(say_and_abort { text })));
    assert!(stderr_tail.len() <= 4 * 1024, "{} bytes", stderr_tail.len());
    assert!(stderr_tail.trim_end().ends_with("last"), "…{}", &stderr_tail[stderr_tail.len() - 50..]);
}

fn retries_run_a_task_again_after_a_crash(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 2);
    let task = die_at_first { deaths: 2, traces: board.traces() };
    assert_eq!(soon(pool.submit_with(task, TaskOptions::new().retries(2))).unwrap(), 2);
    assert_eq!(board.traces().all(), ["run 0", "run 1", "run 2"]);
    assert_eq!((pool.stats().retried, pool.stats().workers_lost), (2, 2));
}

fn retries_that_are_used_up_give_the_last_death(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 1);
    let task = die_at_first { deaths: 9, traces: board.traces() };
    // More deaths than workers may die in a row before their first task: these have begun one.
    let lost = lost(soon(pool.submit_with(task, TaskOptions::new().retries(5))));
    assert_eq!(lost.exit, WorkerExit::Signal(6));
    assert!(counted(&board.traces()).into_values().all(|runs| runs == 1));
    assert_eq!(board.traces().count(), 6);
    goes_on(&pool);
}

fn killed_idle_worker_goes_unnoticed(method: StartMethod) {
    let pool = pool(method, 2);
    let mut before = soon(pool.submit(pid {})).unwrap();
    for _ in 0..10 {
        signal(before, Signal::KILL);
        let after = loop {
            // Until the supervisor has seen the death, it may give the dead one a task: that one is lost, or is given
            // to another worker if the dead one had not begun with it. It never began, so it is never lost.
            let now = soon(pool.submit(pid {})).unwrap();
            if now != before {
                break now;
            }
        };
        before = after;
    }
    let error = pool.try_submit(double { n: 1 }).map(drop).map_err(|error| error.error);
    assert!(!matches!(error, Err(SubmitError::Broken(_))));
    ends_clean(&pool, Shutdown::Drain);
}

/// Closes every descriptor but the standard ones, and goes on.
#[polypool::task]
fn close_everything() {
    let open: Vec<u32> = crate::common::numbers_in("/proc/self/fd").filter(|&fd| fd > 2).collect();
    for fd in open {
        let _ = nix::unistd::close(i32::try_from(fd).expect("a descriptor"));
    }
    std::thread::sleep(seconds(30));
}

fn worker_that_closes_its_descriptors_is_replaced(method: StartMethod) {
    let pool = pool(method, 1);
    let lost = lost(soon(pool.submit(close_everything {})));
    assert!(matches!(lost.exit, WorkerExit::Signal(_) | WorkerExit::Code(_)), "{lost:?}");
    goes_on(&pool);
    ends_clean(&pool, Shutdown::Drain);
}
