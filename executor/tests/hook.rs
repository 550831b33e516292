//! A test binary, which has no `main` of its own, starts itself as a worker by `worker_hook!`.
#![cfg(unix)]

use std::time::Duration;

use polypool::{Executor, ExecutorExt, ProcessPool, Shutdown, StartMethod, TaskFuture};

polypool::worker_hook!();

const METHODS: &[StartMethod] =
    if cfg!(target_os = "linux") { &[StartMethod::ForkServer, StartMethod::Spawn] } else { &[StartMethod::Spawn] };

fn pool(method: StartMethod) -> ProcessPool {
    ProcessPool::builder().workers(2).start_method(method).build().expect("the hook is an entry")
}

/// There is no watchdog here: a hang must end by itself.
#[track_caller]
fn soon<T: Send + 'static>(mut task: TaskFuture<T>) -> T {
    task.wait_timeout(Duration::from_secs(30)).expect("no outcome after 30 s").expect("the task succeeds")
}

#[track_caller]
fn drain(pool: &ProcessPool) {
    pool.shutdown(Shutdown::Drain).wait_timeout(Duration::from_secs(30)).expect("the pool ends");
}

#[polypool::task]
fn triple(n: u64) -> (u32, u64) {
    (std::process::id(), 3 * n)
}

#[polypool::task]
async fn triple_async(n: u64) -> u64 {
    tokio::time::sleep(Duration::from_millis(1)).await;
    3 * n
}

#[test]
fn pool_works_in_a_test_binary() {
    for &method in METHODS {
        let pool = pool(method);
        let tasks: Vec<_> = (0..100).map(|n| (n, pool.submit(triple { n }))).collect();
        for (n, task) in tasks {
            let (pid, value) = soon(task);
            assert_ne!(pid, std::process::id(), "{method:?}: it runs elsewhere");
            assert_eq!(value, 3 * n);
        }
        assert_eq!(soon(pool.submit(triple_async { n: 4 })), 12);
        drain(&pool);
    }
}

/// A pool of its own, inside of a worker: the processes of this task and of the inner one, and the inner value.
#[polypool::task]
fn nested(fork: bool, n: u64) -> (u32, u32, u64) {
    let pool = pool(if fork { StartMethod::ForkServer } else { StartMethod::Spawn });
    let (pid, value) = soon(pool.submit(triple { n }));
    drain(&pool);
    (std::process::id(), pid, value)
}

#[test]
fn pool_inside_a_task_works_in_a_test_binary() {
    for &outer in METHODS {
        for &inner in METHODS {
            let pool = pool(outer);
            let fork = inner == StartMethod::ForkServer;
            let (task, innermost, value) = soon(pool.submit(nested { fork, n: 5 }));
            assert_eq!(value, 15);
            let all = std::collections::BTreeSet::from([std::process::id(), task, innermost]);
            assert_eq!(all.len(), 3, "{outer:?}, {inner:?}: three processes");
            drain(&pool);
        }
    }
}

/// The environment of this process, and of what it starts.
#[polypool::task]
fn environment() -> (bool, String) {
    let own = std::env::vars_os().any(|(name, _)| name == "POLYPOOL_WORKER");
    let child = std::process::Command::new("env").output().expect("env is everywhere");
    (own, String::from_utf8_lossy(&child.stdout).into_owned())
}

#[test]
fn worker_does_not_pass_its_variable_on() {
    for &method in METHODS {
        let pool = pool(method);
        let (own, child) = soon(pool.submit(environment {}));
        assert!(!own, "{method:?}: the worker still has it");
        assert!(child.contains("PATH="), "{child}");
        assert!(!child.contains("POLYPOOL_WORKER"), "{method:?}: its children have it");
        drain(&pool);
    }
}
